"""A report as text, as Markdown, and as one HTML page that needs nothing else."""

import html
import re
from pathlib import Path
from typing import Any

from drhard.pictures import draw_table

import jinja2

TEMPLATE = Path(__file__).with_name("report.html")
NONE = "—"
MARKDOWN = re.compile(r"[\\`*_\[\]|$~]")
ORIGINS = {"checkpoint": "published checkpoint", "scratch": "made here"}


def render_text(report: dict[str, Any]) -> str:
    """For a terminal: a line for each row, expected, measured, difference and status for each measure."""
    lines = []
    for table in report["tables"]:
        width = max(len(row["name"]) for row in table["rows"])
        lines += ["", f"{table['name']}: {table['title']}", ""]
        lines.append(" " * width + "".join(f"  {name:>32}" for name in table["measures"].values()))
        columns = f"  {'expected':>8} {'measured':>8} {'diff.':>8} {'':5}"
        lines.append(" " * width + columns * len(table["measures"]))
        for row in table["rows"]:
            cells = [
                f"  {_number(value['expected']):>8} {_number(value['measured']):>8} "
                f"{_number(value['difference'], '+'):>8} {value['status']:5}"
                for value in row["values"].values()
            ]
            lines.append(f"{row['name']:{width}}{''.join(cells)}".rstrip())
        lines += [f"  {row['name']}: {row['note']}" for row in table["rows"] if row["note"]]
        for row in table["rows"]:
            for trial in row["trials"]:
                lines.append(f"  {row['name']}, {_provenance(row, trial)}")
        if table["questions"]:
            lines.append("")
            lines += [
                f"{asked['question']} {asked['answer']}: {_evidence(table, asked)}" for asked in table["questions"]
            ]
    return "\n".join(lines[1:])


def render_markdown(report: dict[str, Any]) -> str:
    """Tables of Markdown; half widths of 95 % intervals over seeds behind the means."""
    lines = ["# Reproduction", ""]
    for table in _escaped(report["tables"]):
        heads = [
            part for name in table["measures"].values() for part in (f"{name} expected", "measured", "difference", "")
        ]
        lines += [f"## {table['title']}", "", f"Expected: {table['source']}.", ""]
        lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for row in table["rows"]:
            cells = [
                part
                for value in row["values"].values()
                for part in (
                    _number(value["expected"]),
                    _with_interval(value),
                    _number(value["difference"], "+"),
                    value["status"],
                )
            ]
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
        if table["questions"]:
            lines += ["", "| question | answer | evidence |", "|---|---|---|"]
            lines += [
                f"| {asked['question']} | {asked['answer']} | {_evidence(table, asked)} |"
                for asked in table["questions"]
            ]
        notes = [f"{row['name']}: {row['note']}." for row in table["rows"] if row["note"]]
        trials = [f"- {row['name']}, {_provenance(row, trial)}" for row in table["rows"] for trial in row["trials"]]
        lines += ["", *notes] if notes else []
        lines += ["", "Measured on:", "", *trials] if trials else []
        lines.append("")
    lines.append("Made with " + ", ".join(f"{name} {value}" for name, value in report["machine"].items()) + ".")
    return "\n".join(lines) + "\n"


def render_html(report: dict[str, Any]) -> str:
    """One page with pictures, no scripts, nothing fetched."""
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
            "provenance": [(row["name"], _provenance(row, trial)) for row in table["rows"] for trial in row["trials"]],
        }
        for table in report["tables"]
    ]
    return template.render(tables=tables, machine=report["machine"])


def _escaped(content: Any) -> Any:
    """``content`` with all texts in it as Markdown shows them, on one line."""
    if isinstance(content, str):
        return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(content.split()), quote=False))
    if isinstance(content, dict):
        return {key: _escaped(value) for key, value in content.items()}
    return [_escaped(value) for value in content] if isinstance(content, list) else content


def _number(value: float | None, sign: str = "") -> str:
    return NONE if value is None else f"{round(value, 4) + 0.0:{sign}.4f}"  # + 0.0: no -0.0000


def _with_interval(value: dict[str, Any]) -> str:
    text = _number(value["measured"])
    return f"{text} ± {value['half_width']:.4f}" if value["half_width"] is not None else text


def _provenance(row: dict[str, Any], trial: dict[str, Any]) -> str:
    seed = f"seed {trial['seed']}, " if trial["seed"] is not None else ""
    model = f"weights {trial['model']['sha256'][:12]}, " if trial["model"] else ""
    runs = ", ".join(f"{mode} run {run['sha256'][:12]}" for mode, run in trial["runs"].items())
    return f"{ORIGINS[row['origin']]}: {seed}{model}{runs}"


def _evidence(table: dict[str, Any], asked: dict[str, Any]) -> str:
    parts = []
    for key, result in asked["measures"].items():
        better, seeds = result["seeds_better"]
        parts.append(
            f"{table['measures'][key]} {result['difference']:+.4f} "
            f"({_number(result['low'], '+')} to {_number(result['high'], '+')}), "
            f"t-test p {_p(result['t_test'])}, randomization p {_p(result['randomization'])}, "
            f"better for {better} of {seeds} seeds"
        )
    return "; ".join(parts)


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
