"""Qrels: one reader for official files and for ours."""

from pathlib import Path

from drhard.errors import InputError
from drhard.qrels import read_judgements, read_relevant

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
    path = write(tmp_path, "3 0 9 1\n1 0 4 0\n3 0 7 2\n3 0 9 3\n2 0 4 -1\n5 0 4 1\n")
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
        ("1 0 2 0\n", "nothing is judged relevant"),
        ("", "nothing is judged relevant"),
    ],
)
def test_bad_qrels(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        read_relevant(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "qrels.tsv"))


def test_missing_qrels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"qrels\.tsv: no such file"):
        read_relevant(tmp_path / "qrels.tsv")
