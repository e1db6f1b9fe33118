"""Draw the tables of a report as SVG for a page."""

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
from matplotlib.ticker import LogFormatter

WIDTH = 5.2  # inches, or 500 pixels: a telephone hardly scales it, so letters stay legible
STATIC, ADORE, OTHER, EXPECTED = "#3b6ea8", "#c8553d", "#8a8f98", "#222222"
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
        Pictures of the rows, the learning curves and the gains of each query, as far as the table has them.
    """
    pictures = []
    if any(row["trials"] for row in table["rows"]):
        pictures.append(_draw_rows(table))
    for kind in CURVES:
        curves = [
            (row["name"], trial["curves"][kind.tag])
            for row in table["rows"]
            for trial in row["trials"]
            if kind.tag in trial["curves"] and kind.unless not in trial["curves"]
        ]
        if curves:
            pictures.append((kind.caption, _to_svg(3.6, partial(_plot_curves, curves=curves, kind=kind))))
    if table["gains"]:
        pictures.append(_draw_gains(table["gains"]))
    return pictures


def _draw_rows(table: dict[str, Any]) -> Picture:
    key, name = next(iter(table["measures"].items()))
    caption = f"{name} of each row; a line for the 95 % interval of the mean over seeds, a dot for each seed."
    if any(row["values"][key]["expected"] is not None for row in table["rows"]):
        caption += " The black mark is the expected value."
    return caption, _to_svg(0.9 + 0.34 * len(table["rows"]), partial(_plot_rows, table=table, key=key))


def _draw_gains(gains: dict[str, Any]) -> Picture:
    caption = (
        f"What each query gains or loses in {gains['measure']} from {gains['than']} to {gains['row']}, "
        "queries in the order of their gain."
    )
    return caption, _to_svg(2.9, partial(_plot_gains, values=gains["values"]))


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


def _plot_gains(axes: Axes, values: list[float]) -> None:
    gains = np.array(values)
    places = np.arange(len(gains))
    for chosen, colour in ((gains > 0, STATIC), (gains < 0, ADORE)):
        axes.fill_between(places, np.where(chosen, gains, 0), step="mid", color=colour, lw=0)
    axes.axhline(0, color="black", lw=0.8)
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    axes.set_title(f"{better} queries gain, {worse} lose, {len(gains) - better - worse} stay", fontsize=10)
    axes.set_xlabel("queries")
    axes.set_ylabel("difference")
