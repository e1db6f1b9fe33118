"""Draw the tables of a report, and its curves, as SVG for a page."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, NullLocator

WIDTH = 5.2  # inches, or 500 pixels: a telephone hardly scales it, so letters stay legible
STATIC, ADORE, OTHER, EXPECTED = "#3b6ea8", "#c8553d", "#8a8f98", "#222222"
ANSWERS = {"yes": "#19713c", "no": "#b3261e", "not shown": "#5b6270"}
MARKERS = ("o", "s", "D")  # of the measures
STRIPE = 0.15  # inches for an interval
UNTRAINED = ("BM25", "Warm-up", "MiniLM")  # rows whose models nobody trained here
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # wider than the page's own fonts, so no text is cut off
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "text.parse_math": False,  # a name may contain dollar signs
    "svg.hashsalt": "drhard",  # the same report gives the same file
}


@dataclass(frozen=True)
class Curves:
    """A kind of learning curve.

    Attributes:
        tag: TensorBoard's.
        axis: what the y-axis shows.
        log: whether its scale is logarithmic.
        unless: skip trainings that also have the curve with this tag.
    """

    tag: str
    caption: str
    axis: str
    log: bool = False
    unless: str | None = None


CURVES = (
    Curves(
        "train/loss",
        "Loss of the static trainings, for each seed.",
        "loss (log scale)",
        log=True,
        unless="train/mrr_10",  # ADORE has another loss
    ),
    Curves("train/mrr_10", "MRR@10 of ADORE's own retrieval for the training queries, for each seed.", "MRR@10"),
)

Picture = tuple[str, str]  # caption, SVG


class PlainNumbers(LogFormatter):
    """Labels such as 0.01 for a logarithmic scale. The default writes formulas, which STYLE does not parse."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""  # empty for a tick without a label


def draw_table(table: dict[str, Any]) -> list[Picture]:
    """Draw the measurements of a table.

    Args:
        table: a table of the report that :func:`drhard.report.make_report` returns.

    Returns:
        Pictures of the rows, the answers and the learning curves, as far as the table has them.
    """
    pictures = []
    if any(row["trials"] for row in table["rows"]):
        pictures.append(_draw_rows(table))
    if table["questions"]:
        pictures.append(_draw_answers(table))
    for kind in CURVES:
        curves = [
            (row["name"], trial["curves"][kind.tag])
            for row in table["rows"]
            for trial in row["trials"]
            if kind.tag in trial["curves"] and kind.unless not in trial["curves"]
        ]
        if curves:
            pictures.append((kind.caption, _to_svg(3.6, partial(_plot_curves, curves=curves, kind=kind))))
    return pictures


def draw_trend(trend: dict[str, Any]) -> list[Picture]:
    """Draw a curve of the report: the values of both rows, and their difference."""
    row, than = trend["rows"]
    lines = {"rows": trend["rows"], "difference": {f"{row} − {than}": trend["difference"]}}
    captions = {
        "rows": f"{trend['measure']} by the {trend['axis']}, with the 95 % interval of the mean over seeds.",
        "difference": f"How far {row} is ahead of {than}: the mean difference of a seed, with its 95 % interval.",
    }
    return [
        (captions[kind], _to_svg(3.2, partial(_plot_trend, lines=of_kind, trend=trend)))
        for kind, of_kind in lines.items()
    ]


def _draw_rows(table: dict[str, Any]) -> Picture:
    key, name = next(iter(table["measures"].items()))
    caption = f"{name} of each row; a line for the 95 % interval of the mean over seeds, a dot for each seed."
    if any(row["values"][key]["expected"] is not None for row in table["rows"]):
        caption += " The black mark is the expected value."
    return caption, _to_svg(0.9 + 0.34 * len(table["rows"]), partial(_plot_rows, table=table, key=key))


def _draw_answers(table: dict[str, Any]) -> Picture:
    caption = (
        "The difference that each question asks for, with its 95 % interval over queries, and the p-value of the test "
        f"that finds less. The answer and the p-value are those of {next(iter(table['measures'].values()))}."
    )
    if any(asked["margin"] is not None for asked in table["questions"]):
        caption += " Where the question is whether a row is as good, the dashed line is the loss that does not count."
    height = 1.0 + STRIPE * len(table["questions"]) * (1.8 + len(table["measures"]))
    return caption, _to_svg(height, partial(_plot_answers, table=table))


def _to_svg(height: float, plot: Callable[[Axes], None]) -> str:
    """Return the plot by ``plot`` as SVG, ``height`` inches high."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        plot(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial")
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg, count=1)


def _colour(name: str) -> str:
    return ADORE if name.startswith("ADORE") else OTHER if name in UNTRAINED else STATIC


def _plot_rows(axes: Axes, table: dict[str, Any], key: str) -> None:
    rows = table["rows"]
    for place, row in enumerate(rows):
        value = row["values"][key]
        if value["measured"] is not None:
            axes.barh(place, value["measured"], height=0.62, color=_colour(row["name"]), alpha=0.75)
            if value["half_width"]:
                axes.errorbar(value["measured"], place, xerr=value["half_width"], color="black", lw=1.2, capsize=2.5)
            seeds = [trial["values"][key] for trial in row["trials"]] if len(row["trials"]) > 1 else []
            axes.scatter(seeds, [place] * len(seeds), s=7, color="black", zorder=3)
        if value["expected"] is not None:
            axes.plot([value["expected"]] * 2, [place - 0.4, place + 0.4], color=EXPECTED, lw=1.8)
    shown = [row["values"][key][part] for row in rows for part in ("measured", "expected")]
    shown = [value for value in shown if value is not None]
    least, most = min(shown), max(shown)
    axes.set_xlim(max(0, least - 0.35 * (most - least) - 0.02), most + 0.03)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"{table['measures'][key]} (the axis does not begin at 0)", loc="right")
    axes.grid(axis="x", alpha=0.3)


def _plot_curves(axes: Axes, curves: list[tuple[str, list[list[float]]]], kind: Curves) -> None:
    names = list(dict.fromkeys(name for name, _ in curves))
    colours = {name: f"C{place % 10}" for place, name in enumerate(names)}  # matplotlib's ten
    for name, points in curves:
        steps, values = np.array(points, dtype=float).T  # None (a value that is not finite) becomes NaN
        axes.plot(steps, values, color=colours[name], lw=1.1, alpha=0.8, label=name)
    first: dict[str, Line2D] = {}  # all seeds of a row share one colour and one line of the legend
    for line in axes.get_lines():
        first.setdefault(str(line.get_label()), line)
    axes.legend(
        list(first.values()),
        list(first),
        fontsize=8,
        frameon=False,
        ncols=2,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
    )
    if kind.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PlainNumbers())
        axes.yaxis.set_minor_formatter(PlainNumbers())
    axes.set_xlabel("step")
    axes.set_ylabel(kind.axis)
    axes.grid(alpha=0.3)


def _plot_answers(axes: Axes, table: dict[str, Any]) -> None:
    """Draw a forest plot. Each question has a line of text, and below it an interval for each measure."""
    names, height = table["measures"], 1.8 + len(table["measures"])  # of a question, in stripes
    for number, asked in enumerate(table["questions"]):
        _plot_answer(axes, asked, number * height)
    for key, marker in zip(names, MARKERS, strict=False):
        axes.plot([], [], marker, color=OTHER, ms=5, label=names[key])
    axes.set_ylim(len(table["questions"]) * height, -0.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def _plot_answer(axes: Axes, asked: dict[str, Any], top: float) -> None:
    """Draw a question below ``top``, its answer, and its intervals, of which the first one gives the answer."""
    results, colour = list(asked["measures"].values()), ANSWERS[asked["answer"]]
    bottom = top + 1.3 + len(results)
    p = max(results[0]["t_test"], results[0]["randomization"])
    p_value = "" if asked["margin"] is not None else f", p {'< 0.001' if p < 0.001 else f'{p:.3f}'}"
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
    beside["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # no line crosses the letters
    axes.text(0, top + 0.8, asked["question"], **beside)
    axes.text(1, top + 0.8, f"{asked['answer']}{p_value}", ha="right", color=colour, **beside)
    axes.plot([0, 0], [top + 1.3, bottom], color="black", lw=0.8, zorder=1)
    if asked["margin"] is not None:
        axes.plot([-asked["margin"]] * 2, [top + 1.3, bottom], color="black", lw=1, ls=(0, (3, 2)))
    for number, (result, marker) in enumerate(zip(results, MARKERS, strict=False)):
        of, place = colour if number == 0 else OTHER, top + 1.8 + number
        if result["low"] is not None:  # a single query has no interval
            axes.plot([result["low"], result["high"]], [place] * 2, color=of, lw=1.3 if number else 2.4)
        axes.plot(result["difference"], place, marker, color=of, ms=5.5 - number)


def _plot_trend(axes: Axes, lines: dict[str, list[list[float]]], trend: dict[str, Any]) -> None:
    for (name, points), colour, marker in zip(lines.items(), (STATIC, ADORE), MARKERS, strict=False):
        at, means, halves = np.array(sorted(points), dtype=float).T  # None (one seed has no interval) becomes NaN
        axes.errorbar(at, means, yerr=halves, color=colour, lw=1.5, marker=marker, ms=5, capsize=3, label=name)
    if len(lines) == 1:
        axes.axhline(0, color="black", lw=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(at, [f"{value:,.0f}" for value in at])
    axes.set_xlabel(f"{trend['axis']} (log scale)")
    axes.set_ylabel(trend["measure"] if len(lines) > 1 else f"difference in {trend['measure']}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
