"""Read relevance judgements, ``qid 0 pid rel`` separated by tabs or blanks. Ids are official ids or our rows.

A pair judged twice with the same grade counts once. A pair with two grades is an error.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from drhard.errors import InputError
from drhard.files import read_lines
from drhard.msmarco import parse_id, split_fields
from drhard.numbers import Range

# trec_eval loops from 0 to the highest grade. A grade of 2**31 - 1 would cost it 16 GB.
GRADE = Range(-1_000_000, 1_000_000)


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
    for number, qid, pid, grade in _lines(path):
        where = f"{path}, line {number}"
        yield Judgement(parse_id(qid, "", where), parse_id(pid, pid_prefix, where), grade, number)


def _lines(path: str | Path) -> Iterator[tuple[int, str, str, int]]:
    """Yield (line number, qid, pid, grade), each pair once. The ids are the strings in the file."""
    judged: dict[tuple[str, str], tuple[int, int]] = {}  # (qid, pid) -> grade, line number
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        fields = split_fields(line, path, number)
        if len(fields) != 4:
            raise InputError(f"{where}: expected 'qid 0 pid grade', found {len(fields)} fields")
        qid, _, pid, text = fields
        grade = _grade(text, where)
        first_grade, first = judged.setdefault((qid, pid), (grade, number))
        if first_grade != grade:
            raise InputError(
                f"{where}: query {qid} and document {pid} have grade {grade} here and {first_grade} in line {first}; "
                "delete one of the two"
            )
        if first == number:
            yield number, qid, pid, grade


def _grade(text: str, where: str) -> int:
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
    return _relevant(path, read_judgements(path, pid_prefix))


def read_relevant_rows(path: str | Path, queries: int, documents: int) -> dict[int, list[int]]:
    """Do as :func:`read_relevant` for a file in rows. Raises InputError too if a query or document does not exist."""

    def check_rows() -> Iterator[Judgement]:  # qid and pid of these judgements are rows
        for judgement in read_judgements(path):
            for kind, row, count in (("query", judgement.qid, queries), ("document", judgement.pid, documents)):
                if row >= count:
                    raise InputError(f"{path}, line {judgement.line}: names {kind} {row}, there are {count}")
            yield judgement

    return _relevant(path, check_rows())


def _relevant(path: str | Path, judgements: Iterator[Judgement]) -> dict[int, list[int]]:
    relevant: dict[int, dict[int, None]] = {}
    for judgement in judgements:
        if judgement.grade > 0:
            relevant.setdefault(judgement.qid, {})[judgement.pid] = None
    if not relevant:
        raise InputError(f"{path}: judges no document relevant; training and MRR need one")
    return {qid: list(pids) for qid, pids in relevant.items()}


def read_grades(path: str | Path) -> dict[str, dict[str, int]]:
    """Return qid -> docid -> grade, with all grades. The ids are the strings in the file.

    Raises InputError as :func:`read_judgements`, and if the file is empty.
    """
    grades: dict[str, dict[str, int]] = {}
    for _, qid, pid, grade in _lines(path):
        grades.setdefault(qid, {})[pid] = grade
    if not grades:
        raise InputError(f"{path}: holds no judgement")
    return grades
