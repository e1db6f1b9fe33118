"""Pictures of a report's tables, as SVG that stands in a page by itself."""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

WIDTH = 5.2  # inches, 500 pixels: hardly scaled on a telephone, so that letters stay legible
STATIC, ADORE, OTHER, EXPECTED = "#3b6ea8", "#c8553d", "#8a8f98", "#222222"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # wider than what the page takes in its place, so that nothing is cut off
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "text.parse_math": False,  # a name may hold dollars
    "svg.hashsalt": "drhard",  # the same report gives the same file
}


def draw_table(table: dict[str, Any]) -> list[tuple[str, str]]:
    """The pictures that a table's measurements allow: (caption, SVG) each.

    Args:
        table: as :func:`drhard.report.make_report` gives it.
    """
    pictures = []
    key = next(iter(table["measures"]))
    name = table["measures"][key]
    if any(row["trials"] for row in table["rows"]):
        caption = f"{name} of each row; a line for the 95 % interval of the mean over seeds, a dot for each seed."
        if any(row["values"][key]["expected"] is not None for row in table["rows"]):
            caption += " The black mark is the expected value."
        pictures.append((caption, _draw(0.9 + 0.34 * len(table["rows"]), lambda axes: _bars(axes, table, key))))
    for tag, title, wanted in (
        ("train/loss", "Loss of the static trainings, for each seed", lambda row: "train/mrr_10" not in row),
        ("train/mrr_10", "MRR@10 of ADORE's own retrieval for the training queries, for each seed", lambda _: True),
    ):
        curves = [
            (row["name"], trial["curves"][tag])
            for row in table["rows"]
            for trial in row["trials"]
            if tag in trial["curves"] and wanted(trial["curves"])
        ]
        if curves:
            pictures.append((f"{title}.", _draw(3.6, lambda axes, c=curves, t=tag: _curves(axes, c, t))))
    if table["gains"]:
        gains = table["gains"]
        caption = (
            f"What each query gains or loses in {gains['measure']} from {gains['than']} to {gains['row']}, "
            "queries in the order of their gain."
        )
        pictures.append((caption, _draw(2.9, lambda axes: _gains(axes, gains["values"]))))
    return pictures


def _draw(height: float, draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial")
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg, count=1)


def _colour(name: str) -> str:
    return ADORE if name.startswith("ADORE") else OTHER if name in ("BM25", "Warm-up") else STATIC


def _bars(axes: Axes, table: dict[str, Any], key: str) -> None:
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
    axes.set_xlim(max(0, min(shown) - 0.35 * (max(shown) - min(shown)) - 0.02), max(shown) + 0.03)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"{table['measures'][key]} (the axis does not begin at 0)")
    axes.grid(axis="x", alpha=0.3)


def _curves(axes: Axes, curves: list[tuple[str, list[list[float]]]], tag: str) -> None:
    names = list(dict.fromkeys(name for name, _ in curves))
    palette = plt.get_cmap("tab10").colors
    colours = {name: palette[place % len(palette)] for place, name in enumerate(names)}
    for name, points in curves:
        steps, values = np.array(points, dtype=float).T  # None, a value that is not finite, becomes NaN
        axes.plot(steps, values, color=colours[name], lw=1.1, alpha=0.8, label=name)
    handles = {}
    for line in axes.get_lines():
        handles.setdefault(line.get_label(), line)
    axes.legend(
        handles.values(),
        handles.keys(),
        fontsize=8,
        frameon=False,
        ncols=2,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
    )
    if tag == "train/loss":
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel({"train/loss": "loss (log scale)", "train/mrr_10": "MRR@10"}[tag])
    axes.grid(alpha=0.3)


def _gains(axes: Axes, values: list[float]) -> None:
    gains = np.array(values)
    places = np.arange(len(gains))
    for chosen, colour in ((gains > 0, STATIC), (gains < 0, ADORE)):
        axes.fill_between(places, np.where(chosen, gains, 0), step="mid", color=colour, lw=0)
    axes.axhline(0, color="black", lw=0.8)
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    axes.set_title(f"{better} queries gain, {worse} lose, {len(gains) - better - worse} stay", fontsize=10)
    axes.set_xlabel("queries")
    axes.set_ylabel("difference")
