"""The answer to a query: the passages that were found. As JSON, as text for a terminal, and as a page.

The page loads nothing else and has no scripts.
"""

import textwrap
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from drhard.known_queries import KnownQuery

import jinja2

TEMPLATE = Path(__file__).with_name("search.html")
SHOWN = 600  # characters of a passage; the page folds the rest away
INDENT = " " * 6


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        rank: from 1.
        pid: its official id.
        text: None if the texts are missing.
        grade: as it was judged for the query; None if it was not.
        other_rank: its rank in the ranking of the other model; None if it is not within :attr:`Answer.depth`.
    """

    rank: int
    pid: str
    score: float
    text: str | None
    grade: int | None
    other_rank: int | None


@dataclass(frozen=True)
class Ranking:
    """The passages that a model found, best first, and how long that took."""

    model: str
    seconds: float
    hits: list[Hit]


@dataclass(frozen=True)
class Answer:
    """What was found for a query.

    Attributes:
        known: the query of the collection that has this text; None if there is none.
        relevant: the official ids of the passages that are judged relevant for it.
        rankings: one for each model.
        depth: the ranks within which the rankings are compared.
    """

    query: str
    known: KnownQuery | None
    relevant: list[str]
    rankings: list[Ranking]
    depth: int

    def as_json(self) -> dict[str, Any]:
        """Return the answer as one JSON object."""
        compared = len(self.rankings) > 1
        rankings = []
        for ranking in self.rankings:
            hits = [asdict(hit) for hit in ranking.hits]
            if not compared:
                for hit in hits:
                    del hit["other_rank"]
            rankings.append({"model": ranking.model, "seconds": round(ranking.seconds, 4), "passages": hits})
        known = self.known and {"mode": self.known.mode, "qid": self.known.qid, "relevant": self.relevant}
        return {"query": self.query, "known": known, "rankings": rankings}


class Search(Protocol):
    """What answers queries.

    Attributes:
        names: the names of its models.
    """

    names: list[str]

    def ask(self, query: str) -> Answer:
        """Answer a typed query. Raises InputError if it cannot be answered."""


# As text


def render_text(answer: Answer, width: int) -> str:
    """Render an answer for a terminal that is ``width`` characters wide. Control characters become blanks."""
    lines = [about(answer)]
    for place, ranking in enumerate(answer.rankings):
        name = f"{ranking.model}, " if len(answer.rankings) > 1 else ""
        lines += ["", f"{name}{ranking.seconds:.3f} s"]
        for hit in ranking.hits:
            marks = [mark for mark in (judged(hit), moved(answer, place, hit)) if mark]
            lines.append("  ".join([f"{hit.rank:4}  {hit.pid}", f"{hit.score:.4f}", *marks]))
            lines += _wrap(hit.text or "", width)
    return "\n".join(map(_printable, lines))


def about(answer: Answer) -> str:
    """Return the query, and, if it is one of the collection, its id and how many passages are relevant."""
    if answer.known is None:
        return answer.query
    count = len(answer.relevant)
    judgements = f"{count} passage{'s' * (count != 1)} judged relevant" if answer.known.grades else "not judged"
    return f"{answer.query}: {answer.known.mode} query {answer.known.qid}, {judgements}"


def judged(hit: Hit) -> str:
    """Return how a passage was judged; empty if it was not."""
    if hit.grade is None:
        return ""
    return f"{'relevant' if hit.grade > 0 else 'not relevant'} (grade {hit.grade})"


def moved(answer: Answer, place: int, hit: Hit) -> str:
    """Return the rank of a passage with the other model: before in the second ranking, now in the first.

    Args:
        place: 0 or 1, that of the passage's ranking.
    """
    if len(answer.rankings) < 2 or hit.rank == hit.other_rank:
        return ""
    word = "was" if place else "now"
    if hit.other_rank is None:
        return f"{word} below {answer.depth}"
    up = (hit.other_rank > hit.rank) == bool(place)
    return f"{'▲' if up else '▼'} {word} {hit.other_rank}"


def _wrap(text: str, width: int) -> list[str]:
    lines = []
    for part in _cut(text)[0].split("\n"):
        lines += textwrap.wrap(_printable(part), width, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def _cut(text: str) -> tuple[str, str]:
    """Return the start of a text that is shown, and the rest."""
    if len(text) <= SHOWN:
        return text, ""
    end = text.rfind(" ", SHOWN // 2, SHOWN)
    end = SHOWN if end < 0 else end
    return text[:end] + " …", text[end:]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


# As a page


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"about": about, "cut": _cut, "judged": judged, "moved": moved}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def render_page(models: list[str], query: str, answer: Answer | None, complaint: str, nonce: str) -> str:
    """Render the page with the field to type into.

    Args:
        models: their names.
        query: what the field holds.
        answer: None before the first query.
        complaint: why there is no answer; empty if there is one.
        nonce: marks the style sheet as ours; see :mod:`drhard.search_app`.
    """
    return _template().render(models=models, query=query, answer=answer, complaint=complaint, nonce=nonce)
