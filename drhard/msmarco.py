"""The text formats of collections: the names of MS MARCO's files, and the parsers of their lines.

To add a format, write a parser of its lines here, make a :class:`Corpus` of it, and add that to :data:`CORPORA`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from drhard.errors import InputError

LARGEST_ID = 2**31 - 1  # files store ids as int32
DOC_PREFIX = "D"  # the official id of a document is "D123", that of a passage "123"


_V2_ID = re.compile("msmarco_.*_[0-9]")


def parse_id(field: str, prefix: str, where: str) -> int:
    """Return an official id as a number, without ``prefix``.

    Raises InputError, naming ``where``, unless ``prefix`` and the number spell ``field`` again. Runs are written with
    these ids, and an evaluation takes another spelling for another id.
    """
    if field.startswith(prefix):
        number = parse_number(field[len(prefix) :])
        if number is not None:
            return number
    kind = f"a whole number up to {LARGEST_ID} without leading zeros, signs or blanks"
    kind = f"{prefix!r} and {kind}" if prefix else kind
    raise InputError(f"{where}: the id {field[:40]!r} is not {kind}{_hint(field, prefix)}")


def _hint(field: str, prefix: str) -> str:
    """Return the end of the message about a bad id: what to do."""
    if _V2_ID.match(field):
        return "; MS MARCO v2's ids are texts: import_collection.py takes its files"
    number = parse_number(field.strip().removeprefix(prefix).lstrip("+0 "))
    return "" if number is None else f"; write {prefix}{number} in all files"


def parse_number(digits: str) -> int | None:
    """Return the int32 number that ``digits`` spells in its only form: "7", not "07" or "+7". None if it is not one."""
    if digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= LARGEST_ID:
        return int(digits) if digits[0] != "0" or digits == "0" else None
    return None


def parse_query(line: str, where: str) -> tuple[int, str]:
    """Parse ``qid \\t text`` into (qid, text). The text may be empty. Raises InputError, naming ``where``."""
    qid, text = _fields(line, 2, "qid <tab> query", where)
    return parse_id(qid, "", where), text


def parse_passage(line: str, where: str) -> tuple[int, str]:
    """Parse ``pid \\t text`` into (pid, text). The text may be empty. Raises InputError, naming ``where``."""
    pid, text = _fields(line, 2, "pid <tab> passage", where)
    return parse_id(pid, "", where), text


def parse_document(line: str, where: str) -> tuple[int, str]:
    """Parse ``Dpid \\t url \\t title \\t body`` into (pid, url<sep>title<sep>body).

    ``<sep>`` is not a special token: RoBERTa reads it as plain text. Raises InputError, naming ``where``.
    """
    pid, url, title, body = _fields(line, 4, "D<pid> <tab> url <tab> title <tab> body", where)
    return parse_id(pid, DOC_PREFIX, where), f"{url.rstrip()}<sep>{title.rstrip()}<sep>{body}"


def _fields(line: str, count: int, form: str, where: str) -> list[str]:
    """Split a line into its fields, and strip white space from the end of the last."""
    fields = line.split("\t", count - 1)
    if len(fields) < count:
        raise InputError(f"{where}: expected '{form}', found {len(fields)} field{'s' * (len(fields) > 1)}")
    fields[-1] = fields[-1].rstrip()
    if "\t" in fields[-1]:  # published: silently dropped
        raise InputError(f"{where}: expected '{form}', found text after another tab; replace tabs in texts by blanks")
    return fields


def find_source_file(folder: Path, name: str) -> Path | None:
    """Return ``folder/name`` if it exists, else ``folder/name.gz`` if it exists, else None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


CONTROL = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f]")  # control characters except the tab


def split_fields(line: str, path: str | Path, number: int) -> list[str]:
    """Split a line of qrels or of a run at blanks and tabs, as trec_eval does.

    Other white space, such as a no-break space, is part of a field. Raises InputError for a control character.
    """
    if line.replace("\t", " ").isprintable():  # then it has no other white space
        return line.split()
    control = CONTROL.search(line)
    if control:
        raise InputError(f"{path}, line {number}: has the control character {control[0]!r}; delete it")
    return [field for field in re.split("[ \t]+", line) if field]


# The formats


class QueryFiles(NamedTuple):
    """The files of a mode: queries and judgements. A mode without ``qrels``, such as lead, keeps all its queries."""

    queries: str
    qrels: str | None


class Bm25Parameters(NamedTuple):
    """BM25's parameters.

    Attributes:
        k1: saturates a word's frequency.
        b: sets how much a document's length counts.
        split_names: whether names in source code, such as ``get_value`` and ``getValue``, are split into words.
    """

    k1: float
    b: float
    split_names: bool = False


NOT_TUNED = Bm25Parameters(0.9, 0.4)
Parser = Callable[[str, str], tuple[int, str]]  # (line, what to call it in errors) -> (official id, text)


@dataclass(frozen=True)
class Corpus:
    """The text format of a collection and the names of its files.

    Attributes:
        name: the folder under the data root.
        collection: the file of the passages or documents.
        pid_prefix: the prefix of the official ids of documents.
        parse: the parser of a line of ``collection``.
        modes: the files of each mode.
        bm25: BM25's parameters for this collection.
        names: whether its ids are only numbers of lines, and a table beside each file has the official ids: see
            :mod:`drhard.names`.
        empty_texts: what preprocess.py does with empty texts, unless a flag says otherwise.
    """

    name: str
    collection: str
    pid_prefix: str
    parse: Parser
    modes: dict[str, QueryFiles]
    bm25: Bm25Parameters
    names: bool = False
    empty_texts: str = "refuse"


PASSAGE = Corpus(
    name="passage",
    collection="collection.tsv",
    pid_prefix="",
    parse=parse_passage,
    modes={
        "train": QueryFiles("queries.train.tsv", "qrels.train.tsv"),
        "dev": QueryFiles("queries.dev.small.tsv", "qrels.dev.small.tsv"),
        "test": QueryFiles("msmarco-test2019-queries.tsv", "2019qrels-pass.txt"),
        "lead": QueryFiles("queries.eval.small.tsv", None),
    },
    bm25=Bm25Parameters(0.82, 0.68),  # tuned
)
DOC = Corpus(
    name="doc",
    collection="msmarco-docs.tsv",
    pid_prefix=DOC_PREFIX,
    parse=parse_document,
    modes={
        "train": QueryFiles("msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"),
        "dev": QueryFiles("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
        "test": QueryFiles("msmarco-test2019-queries.tsv", "2019qrels-docs.txt"),
        "lead": QueryFiles("docleaderboard-queries.tsv", None),
    },
    bm25=NOT_TUNED,
)
CORPORA = {corpus.name: corpus for corpus in (PASSAGE, DOC)}
