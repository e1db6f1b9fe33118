"""MS MARCO's and TREC's text files: their names, their fields, and what is wrong with a line."""

import re
from dataclasses import dataclass
from pathlib import Path

from drhard.errors import InputError


@dataclass(frozen=True)
class Split:
    """The files of one set of queries; without ``qrels`` (leaderboard queries) all its queries are kept."""

    queries: str
    qrels: str | None


@dataclass(frozen=True)
class Corpus:
    """The names of the official files of one collection, and how its document ids are written."""

    name: str  # "passage" or "doc", the folder under the data root
    collection: str
    pid_prefix: str  # official ids are "D123" for documents, "123" for passages
    splits: dict[str, Split]


PASSAGE = Corpus(
    name="passage",
    collection="collection.tsv",
    pid_prefix="",
    splits={
        "train": Split("queries.train.tsv", "qrels.train.tsv"),
        "dev": Split("queries.dev.small.tsv", "qrels.dev.small.tsv"),
        "test": Split("msmarco-test2019-queries.tsv", "2019qrels-pass.txt"),
        "lead": Split("queries.eval.small.tsv", None),
    },
)
DOC = Corpus(
    name="doc",
    collection="msmarco-docs.tsv",
    pid_prefix="D",
    splits={
        "train": Split("msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"),
        "dev": Split("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
        "test": Split("msmarco-test2019-queries.tsv", "2019qrels-docs.txt"),
        "lead": Split("docleaderboard-queries.tsv", None),
    },
)
CORPORA = {corpus.name: corpus for corpus in (PASSAGE, DOC)}
MODES = tuple(PASSAGE.splits)


def parse_id(field: str, prefix: str, where: str) -> int:
    """An official id as a number, ``prefix`` taken off. Raises InputError, naming ``where``, if it is none."""
    digits = field
    if digits.startswith(prefix):
        digits = digits[len(prefix) :]
        number = parse_number(digits)
        if number is not None:
            return number
    kind = f"{prefix!r} and digits" if prefix else "digits"
    raise InputError(f"{where}: the id {field[:40]!r} is not {kind} (up to {2**31 - 1})")


def parse_number(digits: str) -> int | None:
    """A whole number that fits into int32, None for anything else."""
    if digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) < 2**31:
        return int(digits)
    return None


def parse_query(line: str, where: str) -> tuple[int, str]:
    """``qid \\t text`` as (qid, text). Raises InputError, naming ``where``, for a bad line."""
    fields = line.split("\t")
    if len(fields) < 2:
        raise InputError(f"{where}: expected 'qid <tab> query', found no tab")
    return parse_id(fields[0], "", where), _text(fields[1], where)


def parse_passage(line: str, where: str) -> tuple[int, str]:
    """``pid \\t text`` as (pid, text). Raises InputError, naming ``where``, for a bad line."""
    fields = line.split("\t")
    if len(fields) < 2:
        raise InputError(f"{where}: expected 'pid <tab> passage', found no tab")
    return parse_id(fields[0], "", where), _text(fields[1], where)


def parse_document(line: str, where: str) -> tuple[int, str]:
    """``Dpid \\t url \\t title \\t body`` as (pid, url<sep>title<sep>body); ``<sep>`` is plain text to RoBERTa.

    Raises InputError, naming ``where``, for a bad line.
    """
    fields = line.split("\t")
    if len(fields) < 4:
        raise InputError(f"{where}: expected 'D<pid> <tab> url <tab> title <tab> body', found {len(fields)} fields")
    url, title, body = (field.rstrip() for field in fields[1:4])
    return parse_id(fields[0], "D", where), _text(f"{url}<sep>{title}<sep>{body}", where)


def _text(field: str, where: str) -> str:
    text = field.rstrip()
    if not text:
        raise InputError(f"{where}: the text is empty")
    return text


def source_file(folder: Path, name: str) -> Path | None:
    """``folder/name``, or ``folder/name.gz`` in its place, or None if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


CONTROL = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f]")  # all control characters but the tab


def split_fields(line: str, path: str | Path, number: int) -> list[str]:
    """The fields of a line of qrels or of a run: what stands between blanks and tabs, as trec_eval splits.

    Other white space, such as a no-break space, is part of a field. Raises InputError for a control character.
    """
    if line.replace("\t", " ").isprintable():  # so that there is no other white space
        return line.split()
    control = CONTROL.search(line)
    if control:
        raise InputError(f"{path}, line {number}: has the control character {control[0]!r}; delete it")
    return [field for field in re.split("[ \t]+", line) if field]
