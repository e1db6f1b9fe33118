"""Qrels: one reader for official files and for ours."""

from collections.abc import Callable
from pathlib import Path

from drhard.errors import InputError
from drhard.qrels import read_grades, read_judgements, read_relevant, read_relevant_rows

import pytest


def write(folder: Path, text: str) -> Path:
    path = folder / "qrels.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_tabs_and_blanks_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, "3\t0\t7\t1\n1 Q0 9 3\r\n3\t0\t5\t0\n")
    assert [tuple(judgement) for judgement in read_judgements(path)] == [(3, 7, 1, 1), (1, 9, 3, 2), (3, 5, 0, 3)]


def test_official_document_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "3 0 D7 1\n")
    assert [(judgement.qid, judgement.pid) for judgement in read_judgements(path, "D")] == [(3, 7)]


def test_relevant_are_grades_from_one_none_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "3 0 9 1\n1 0 4 0\n3 0 7 2\n3 0 9 1\n2 0 4 -1\n5 0 4 1\n")
    relevant = read_relevant(path)
    assert relevant == {3: [9, 7], 5: [4]}
    assert list(relevant) == [3, 5]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("1 0 2 1\n1 0 2\n", "line 2: expected 'qid 0 pid grade', found 3 fields"),
        ("1 0 2 1\n\n", "line 2: expected 'qid 0 pid grade', found 0 fields"),
        ("1 0 2 1 5\n", "line 1: expected 'qid 0 pid grade', found 5 fields"),
        ("one 0 2 1\n", "line 1: the id 'one'"),
        ("1 0 D2 1\n", "line 1: the id 'D2'"),
        ("1 0 2 1\n1 0 3 good\n", "line 2: the grade 'good'"),
        ("1 0 2 1.5\n", "line 1: the grade '1.5'"),
        ("1 0 2 1_0\n", "line 1: the grade '1_0'"),
        ("1 0 2 ２\n", "line 1: the grade '２'"),
        (f"1 0 2 {'9' * 5000}\n", "line 1: the grade '9999999999999999999999999999999999999999' is not"),
        ("1 0 2 1\n1 0 3 1000001\n", "line 2: the grade is 1000001, expected a whole number from -1000000 to 1000000"),
        ("1 0 2 -4294967295\n", "line 1: the grade is -4294967295"),
        ("1 0 2\0 1\n", r"line 1: has the control character '\\x00'"),
        ("1 0 2 1\n1\x1f0 3 1\n", r"line 2: has the control character '\\x1f'"),
        ("1 0 2\x0b1\n", r"line 1: has the control character '\\x0b'"),
        ("1 0 2\u00851 1\n", r"line 1: has the control character '\\x85'"),
        ("1\u00a00 2 1 1\n", r"line 1: the id '1\\xa00'"),  # a no-break space is part of an id, as to trec_eval
        ("1 0 2 0\n", "judges no document relevant"),
        ("", "judges no document relevant"),
    ],
)
def test_bad_qrels(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        read_relevant(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "qrels.tsv"))


def test_missing_qrels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"qrels\.tsv: no such file"):
        read_relevant(tmp_path / "qrels.tsv")


READERS: dict[str, Callable[[Path], object]] = {
    "read_judgements": lambda path: list(read_judgements(path)),
    "read_relevant": read_relevant,
    "read_relevant_rows": lambda path: read_relevant_rows(path, 10, 10),
    "read_grades": read_grades,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pair_with_two_grades_is_refused(tmp_path: Path, reader: str) -> None:
    path = write(tmp_path, "3 0 9 1\n3 0 7 1\n3\t0\t9\t0\n")
    with pytest.raises(InputError, match="line 3: query 3 and document 9 have grade 0 here and 1 in line 1"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
def test_a_pair_judged_twice_alike_counts_once(tmp_path: Path, reader: str) -> None:
    once = READERS[reader](write(tmp_path, "3 0 9 1\n3 0 7 1\n"))
    assert READERS[reader](write(tmp_path, "3 0 9 1\n3 0 7 1\n3\tQ0 9 1\n")) == once


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path, reader: str) -> None:
    plain = READERS[reader](write(tmp_path, "3 0 9 1\n"))
    assert READERS[reader](write(tmp_path, "\ufeff3 0 9 1\n")) == plain


def test_ids_may_hold_what_is_no_blank_to_trec_eval(tmp_path: Path) -> None:
    assert read_grades(write(tmp_path, "q\u00a01  0\tD\u20281 2\n")) == {"q\u00a01": {"D\u20281": 2}}
