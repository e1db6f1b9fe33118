"""Render a report as text, as Markdown, and as one self-contained HTML page.

:func:`drhard.report.make_report` makes reports.
"""

import html
import re
from pathlib import Path
from typing import Any

from drhard.pictures import draw_table, draw_trend

import jinja2

TEMPLATE = Path(__file__).with_name("report.html")
NONE = "—"
MARKDOWN = re.compile(r"[\\`*_\[\]|$~]")  # characters that Markdown takes for markup
NOT_SHOWN = "not shown"
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
        lines += [
            f"{asked['question']} {_answer(asked)}: {'; '.join(_evidence(table, asked))}"
            for asked in table["questions"]
        ]
    return lines


def render_markdown(report: dict[str, Any]) -> str:
    """Render a report as Markdown. The number after ± is half the width of the 95 % interval of the mean over seeds."""
    lines = ["# Reproduction", ""]
    for table in _escape(report["tables"]):
        lines += [*_markdown_of_table(table), ""]
    for trend in _escape(report["trends"]):
        lines += [*_markdown_of_trend(trend), ""]
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
            f"| {asked['question']} | {_answer(asked)} | {'; '.join(_evidence(table, asked))} |"
            for asked in table["questions"]
        ]
        lines += ["", _method(table), ""]
        for asked in table["questions"]:
            lines += _markdown_of_changes(table, asked)
    notes = [f"{row['name']}: {row['note']}." for row in table["rows"] if row["note"]]
    trials = [f"- {name}, {digests}" for name, digests in _provenance(table)]
    lines += ["", *notes] if notes else []
    lines += ["", "Measured on:", "", *trials] if trials else []
    return lines


def _markdown_of_changes(table: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Render the queries that change most with a question's two rows, with escaped texts."""
    changes = asked["changes"]
    lines = [f"### {asked['question']} {_count(changes)}", ""]
    lines += [f"| query | change | ranks, {asked['row']} | ranks, {asked['than']} |", "|---|---|---|---|"]
    for query in (*changes["gaining"], *changes["losing"]):
        ranks = " | ".join(map(_ranks, query["ranks"]))
        lines.append(f"| {_query(table, query)} | {query['gain']:+.2f} | {ranks} |")
    return [*lines, ""]


def _markdown_of_trend(trend: dict[str, Any]) -> list[str]:
    row, than = trend["rows"]
    lines = [f"## {trend['measure']} by the {trend['axis']}", ""]
    lines += [f"| {trend['axis']} | {row} | {than} | difference |", "|---|---|---|---|"]
    points = zip(*trend["rows"].values(), trend["difference"], strict=True)
    return lines + [f"| {of[0][0]:,} | {' | '.join(_mean(*one[1:]) for one in of)} |" for of in points]


def render_html(report: dict[str, Any]) -> str:
    """Render a report as one page with pictures and without scripts. It loads nothing else."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "with_interval": _with_interval, "ranks": _ranks, "count": _count}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    tables = [
        table
        | {
            "pictures": draw_table(table),
            "has_expected": any(one["expected"] is not None for row in table["rows"] for one in row["values"].values()),
            "answers": [_answer(asked) for asked in table["questions"]],
            "evidence": [_evidence(table, asked) for asked in table["questions"]],
            "method": _method(table),
            "provenance": _provenance(table),
        }
        for table in report["tables"]
    ]
    trends = [trend | {"pictures": draw_trend(trend)} for trend in report["trends"]]
    return template.render(tables=tables, trends=trends, machine=report["machine"], describe=_query)


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
    return _mean(value["measured"], value["half_width"])


def _mean(mean: float | None, half_width: float | None) -> str:
    return _number(mean) if half_width is None else f"{_number(mean)} ± {half_width:.4f}"


def _answer(asked: dict[str, Any]) -> str:
    """Return the answer in one word. Behind "not shown" comes what the experiment could have shown."""
    least = next(iter(asked["measures"].values()))["least_found"]
    if asked["answer"] != NOT_SHOWN or least is None:
        return str(asked["answer"])
    return f"{asked['answer']} (a true difference of {least:.4f} would have been found)"


def _method(table: dict[str, Any]) -> str:
    """Return how the questions of a table were answered."""
    if not table["questions"]:
        return ""
    power = table["power"]
    text = (
        f"The answer uses {next(iter(table['measures'].values()))}. The p-values are those of paired two-sided tests "
        "over queries, with each query's mean over the seeds, corrected over the questions by Holm's method. \"Would "
        f'have been found" means: with a probability of {power["power"]:.0%} for another draw of queries, by the '
        f"t-test at the strictest level of Holm's method, {power['level']:.2g}."
    )
    margins = dict.fromkeys(asked["margin"] for asked in table["questions"] if asked["margin"] is not None)
    for margin in margins:
        text += f" One row is as good as another if the whole 95 % interval is above {-margin:g}."
    return text


def _count(changes: dict[str, Any]) -> str:
    return f"{changes['gain']:,} queries gain, {changes['lose']:,} lose, {changes['stay']:,} stay."


def _query(table: dict[str, Any], query: dict[str, Any]) -> str:
    """Return the text of a query, or else its id."""
    if query["qid"] is None:
        return "(not kept)"
    text: str = table["texts"].get("queries", {}).get(query["qid"], f"query {query['qid']}")
    return text


def _ranks(ranks: list[int] | None) -> str:
    """Return the ranks of a query with each seed; a dash if no relevant document was found."""
    return NONE if ranks is None else ", ".join(str(rank) if rank else NONE for rank in ranks)


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


def _evidence(table: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Return for each measure the difference, its interval and the p-values behind an answer."""
    parts = []
    for key, result in asked["measures"].items():
        better, seeds = result["seeds_better"]
        parts.append(
            f"{table['measures'][key]} {result['difference']:+.4f} "
            f"({_number(result['low'], '+')} to {_number(result['high'], '+')}), "
            f"t-test p {_p_value(result['t_test'])}, randomization p {_p_value(result['randomization'])}, "
            f"better for {better} of {seeds} seeds"
        )
    return parts


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
