"""Render a report as text, as Markdown, and as one self-contained HTML page.

:func:`drhard.report.make_report` makes reports.
"""

import html
import re
from pathlib import Path
from typing import Any

from drhard.pictures import draw_table

import jinja2

TEMPLATE = Path(__file__).with_name("report.html")
NONE = "—"
MARKDOWN = re.compile(r"[\\`*_\[\]|$~]")  # characters that Markdown takes for markup
ORIGINS = {"checkpoint": "published checkpoint", "scratch": "made here", "run": "published run"}


def render_text(report: dict[str, Any]) -> str:
    """Render a report for a terminal: a line for each row, with expected and measured values."""
    return "\n\n".join("\n".join(_text_of_table(table)) for table in report["tables"])


def _text_of_table(table: dict[str, Any]) -> list[str]:
    rows, measures = table["rows"], table["measures"]
    width = max(len(row["name"]) for row in rows)
    columns = f"  {'expected':>8} {'measured':>8} {'diff.':>8} {'':5}"
    lines = [f"{table['name']}: {table['title']}", ""]
    lines.append(" " * width + "".join(f"  {name:>32}" for name in measures.values()))
    lines.append(" " * width + columns * len(measures))
    for row in rows:
        cells = [
            f"  {_number(value['expected']):>8} {_number(value['measured']):>8} "
            f"{_number(value['difference'], '+'):>8} {value['status']:5}"
            for value in row["values"].values()
        ]
        lines.append(f"{row['name']:{width}}{''.join(cells)}".rstrip())
    lines += [f"  {row['name']}: {row['note']}" for row in rows if row["note"]]
    lines += [f"  {name}, {digests}" for name, digests in _provenance(table)]
    if table["questions"]:
        lines.append("")
        lines += [f"{asked['question']} {asked['answer']}: {_evidence(table, asked)}" for asked in table["questions"]]
    return lines


def render_markdown(report: dict[str, Any]) -> str:
    """Render a report as Markdown. The number after ± is half the width of the 95 % interval of the mean over seeds."""
    lines = ["# Reproduction", ""]
    for table in _escape(report["tables"]):
        lines += [*_markdown_of_table(table), ""]
    lines.append("Made with " + ", ".join(f"{name} {value}" for name, value in report["machine"].items()) + ".")
    return "\n".join(lines) + "\n"


def _markdown_of_table(table: dict[str, Any]) -> list[str]:
    """Render a table with escaped texts."""
    heads = [head for name in table["measures"].values() for head in (f"{name} expected", "measured", "difference", "")]
    lines = [f"## {table['title']}", "", f"Expected: {table['source']}.", ""]
    lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in table["rows"]:
        cells = []
        for value in row["values"].values():
            cells += [_number(value["expected"]), _with_interval(value)]
            cells += [_number(value["difference"], "+"), value["status"]]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    if table["questions"]:
        lines += ["", "| question | answer | evidence |", "|---|---|---|"]
        lines += [
            f"| {asked['question']} | {asked['answer']} | {_evidence(table, asked)} |" for asked in table["questions"]
        ]
    notes = [f"{row['name']}: {row['note']}." for row in table["rows"] if row["note"]]
    trials = [f"- {name}, {digests}" for name, digests in _provenance(table)]
    lines += ["", *notes] if notes else []
    lines += ["", "Measured on:", "", *trials] if trials else []
    return lines


def render_html(report: dict[str, Any]) -> str:
    """Render a report as one page with pictures and without scripts. It loads nothing else."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "with_interval": _with_interval}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    tables = [
        table
        | {
            "pictures": draw_table(table),
            "evidence": [_evidence(table, asked) for asked in table["questions"]],
            "provenance": _provenance(table),
        }
        for table in report["tables"]
    ]
    return template.render(tables=tables, machine=report["machine"])


def _escape(content: Any) -> Any:
    """Return ``content`` with each text on one line and escaped, so that Markdown shows it unchanged."""
    if isinstance(content, str):
        return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(content.split()), quote=False))
    if isinstance(content, dict):
        return {key: _escape(value) for key, value in content.items()}
    return [_escape(value) for value in content] if isinstance(content, list) else content


def _number(value: float | None, sign: str = "") -> str:
    return NONE if value is None else f"{round(value, 4) + 0.0:{sign}.4f}"  # + 0.0 turns -0.0 into 0.0


def _with_interval(value: dict[str, Any]) -> str:
    text = _number(value["measured"])
    return f"{text} ± {value['half_width']:.4f}" if value["half_width"] is not None else text


def _provenance(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Return for each trial the name of its row, and a text with its origin, seed and digests."""
    lines = []
    for row in table["rows"]:
        for trial in row["trials"]:
            seed = f"seed {trial['seed']}, " if trial["seed"] is not None else ""
            model = f"weights {trial['model']['sha256'][:12]}, " if trial["model"] else ""
            runs = ", ".join(f"{mode} run {run['sha256'][:12]}" for mode, run in trial["runs"].items())
            lines.append((row["name"], f"{ORIGINS[row['origin']]}: {seed}{model}{runs}"))
    return lines


def _evidence(table: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return the differences, intervals and p-values behind an answer."""
    parts = []
    for key, result in asked["measures"].items():
        better, seeds = result["seeds_better"]
        parts.append(
            f"{table['measures'][key]} {result['difference']:+.4f} "
            f"({_number(result['low'], '+')} to {_number(result['high'], '+')}), "
            f"t-test p {_p_value(result['t_test'])}, randomization p {_p_value(result['randomization'])}, "
            f"better for {better} of {seeds} seeds"
        )
    return "; ".join(parts)


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
