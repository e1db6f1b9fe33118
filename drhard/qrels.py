"""Read relevance judgements, ``qid 0 pid rel`` separated by tabs or blanks. Ids are official ids or our rows.

Three columns, query, document and grade, are read too if the first line names them, as in BEIR's files.

A pair judged twice with the same grade counts once. A pair with two grades is an error.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from drhard.errors import InputError
from drhard.files import read_lines
from drhard.msmarco import parse_id, split_fields
from drhard.numbers import Range

# trec_eval loops from 0 to the highest grade. A grade of 2**31 - 1 would cost it 16 GB.
GRADE = Range(-1_000_000, 1_000_000)

# Names of columns: BEIR's, then other usual ones.
QUERY_COLUMNS = ("query-id", "query_id", "qid")
DOCUMENT_COLUMNS = ("corpus-id", "corpus_id", "docid", "doc_id", "docno", "pid")
GRADE_COLUMNS = ("score", "relevance", "grade", "label", "rel")
_HEADER = "query-id corpus-id score"

_NUMBER = re.compile("[Dd]?[-+]?[0-9]+")
Id = TypeVar("Id", int, str)


class Judgement(NamedTuple):
    """One line of a qrels file."""

    qid: int
    pid: int
    grade: int
    line: int  # line number from 1


def read_judgements(path: str | Path, pid_prefix: str = "") -> Iterator[Judgement]:
    """Yield the judgements of a qrels file in order.

    Args:
        pid_prefix: the prefix of official document ids, "D" for MS MARCO doc.

    Raises:
        InputError: the file is missing, a line is not a judgement, or a pair has two grades.
    """
    for number, qid, pid, grade in read_named_judgements(path):
        where = f"{path}, line {number}"
        yield Judgement(parse_id(qid, "", where), parse_id(pid, pid_prefix, where), grade, number)


NamedJudgement = tuple[int, str, str, int]  # line number from 1; qid and docid as they are written; grade


def read_named_judgements(path: str | Path) -> Iterator[NamedJudgement]:
    """Yield the judgements of a qrels file in order, each pair once. The ids are the strings in the file.

    Raises InputError as :func:`read_judgements`.
    """
    return merge_judgements(_lines(path), lambda number: f"{path}, line {number}")


def _lines(path: str | Path) -> Iterator[NamedJudgement]:
    columns = 4
    for number, line in read_lines(path):
        fields = split_fields(line, path, number)
        if number == 1 and _is_header(fields):
            columns = 3
            continue
        if len(fields) != columns:
            form = "qid 0 pid grade" if columns == 4 else _HEADER
            way = f"; three need the header '{_HEADER}' in the first line" if (number, len(fields)) == (1, 3) else ""
            raise InputError(f"{path}, line {number}: expected '{form}', found {len(fields)} fields{way}")
        yield number, fields[0], fields[-2], parse_grade(fields[-1], f"{path}, line {number}")


def _is_header(fields: list[str]) -> bool:
    """Return whether the first line of a file is the header that BEIR's three columns have."""
    columns = (QUERY_COLUMNS, DOCUMENT_COLUMNS, GRADE_COLUMNS)
    return len(fields) == 3 and all(field.lower() in names for field, names in zip(fields, columns, strict=True))


def merge_judgements(judgements: Iterable[NamedJudgement], where: Callable[[int], str]) -> Iterator[NamedJudgement]:
    """Yield each pair of a query and a document once.

    Args:
        where: returns what errors call the judgement of a number.

    Raises:
        InputError: a pair has two grades.
    """
    judged: dict[tuple[str, str], tuple[int, int]] = {}  # (qid, docid) -> grade, number
    for number, qid, docid, grade in judgements:
        first_grade, first = judged.setdefault((qid, docid), (grade, number))
        if first_grade != grade:
            raise InputError(
                f"{where(number)}: query {qid} and document {docid} have grade {grade} here and {first_grade} in "
                f"{where(first).rpartition(', ')[2]}; delete one of the two"
            )
        if first == number:
            yield number, qid, docid, grade


def parse_grade(text: str, where: str) -> int:
    """Return the grade that ``text`` spells. Raises InputError, naming ``where``, if it is not a whole number."""
    try:
        grade = int(text) if text.isascii() and "_" not in text else None
    except ValueError:  # not a number, or too many digits for int()
        grade = None
    if grade is None:
        raise InputError(f"{where}: the grade {text[:40]!r} is not a whole number")
    GRADE.check(f"{where}: the grade", grade)
    return grade


def read_relevant(path: str | Path, pid_prefix: str = "") -> dict[int, list[int]]:
    """Return qid -> its relevant pids (grade 1 or more) in file order, each once.

    Raises InputError as :func:`read_judgements`, and if no document in the file is relevant.
    """
    return _relevant(path, ((qid, pid, grade) for qid, pid, grade, _ in read_judgements(path, pid_prefix)))


def read_relevant_rows(path: str | Path, queries: int, documents: int) -> dict[int, list[int]]:
    """Do as :func:`read_relevant` for a file in rows. Raises InputError too if a query or document does not exist."""

    def check_rows() -> Iterator[tuple[int, int, int]]:  # query row, document row, grade
        for judgement in read_judgements(path):
            for kind, row, count in (("query", judgement.qid, queries), ("document", judgement.pid, documents)):
                if row >= count:
                    raise InputError(f"{path}, line {judgement.line}: names {kind} {row}, there are {count}")
            yield judgement.qid, judgement.pid, judgement.grade

    return _relevant(path, check_rows())


def read_relevant_names(path: str | Path) -> dict[str, list[str]]:
    """Do as :func:`read_relevant` for ids that are texts, kept as they are written."""
    return _relevant(path, ((qid, docid, grade) for _, qid, docid, grade in read_named_judgements(path)))


def _relevant(path: str | Path, judgements: Iterable[tuple[Id, Id, int]]) -> dict[Id, list[Id]]:
    relevant: dict[Id, dict[Id, None]] = {}
    for qid, pid, grade in judgements:
        if grade > 0:
            relevant.setdefault(qid, {})[pid] = None
    if not relevant:
        raise InputError(f"{path}: judges no document relevant; training and MRR need one")
    return {qid: list(pids) for qid, pids in relevant.items()}


def has_names(path: str | Path) -> bool:
    """Return whether ids of a qrels file are texts: neither numbers, in whatever spelling, nor MS MARCO's ``D123``.

    Raises InputError as :func:`read_judgements`.
    """
    return any(
        _NUMBER.fullmatch(qid) is None or _NUMBER.fullmatch(docid) is None
        for _, qid, docid, _ in read_named_judgements(path)
    )


def read_grades(path: str | Path) -> dict[str, dict[str, int]]:
    """Return qid -> docid -> grade, with all grades. The ids are the strings in the file.

    Raises InputError as :func:`read_judgements`, and if the file is empty.
    """
    grades: dict[str, dict[str, int]] = {}
    for _, qid, pid, grade in read_named_judgements(path):
        grades.setdefault(qid, {})[pid] = grade
    if not grades:
        raise InputError(f"{path}: holds no judgement")
    return grades
