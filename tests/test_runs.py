"""Runs: written, read, refused, converted to official ids."""

import os
from pathlib import Path

from drhard.errors import InputError
from drhard.runs import convert_run, read_ranked, read_run, without, write_run

import numpy as np
import pytest


def write(folder: Path, text: str) -> Path:
    path = folder / "dev.rank.tsv"
    path.write_text(text)
    return path


def test_written_run_is_the_published_format(tmp_path: Path) -> None:
    path = tmp_path / "out" / "dev.rank.tsv"
    write_run(path, np.array([[5, 3], [0, 9]]))
    assert path.read_text() == "0\t5\t1\n0\t3\t2\n1\t0\t1\n1\t9\t2\n"
    assert os.listdir(path.parent) == ["dev.rank.tsv"]
    assert read_run(path) == {0: [5, 3], 1: [0, 9]}


def test_ranks_decide_not_the_order_of_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "4\t8\t2\n9 1 1\n4\t7\t1\n4\t6\t3\n")
    run = read_run(path)
    assert run == {4: [7, 8, 6], 9: [1]}
    assert list(run) == [4, 9]


def test_official_document_ids(tmp_path: Path) -> None:
    assert list(read_ranked(write(tmp_path, "4 D8 1\n"), "D")) == [(4, 8, 1)]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("1\t2\t1\n1\t3\n", "line 2: expected 'qid <tab> pid <tab> rank', found 2 fields"),
        ("1\t2\t1\n\n", "line 2: expected"),
        ("1\t2\t1\t0.5\n", "line 1: expected"),
        ("one\t2\t1\n", "line 1: the id 'one'"),
        ("1\tD2\t1\n", "line 1: the id 'D2'"),
        ("1\t2\t0\n", "line 1: the rank '0'"),
        ("1\t2\t-1\n", "line 1: the rank '-1'"),
        ("1\t2\tfirst\n", "line 1: the rank 'first'"),
        ("1\t2\t²\n", "line 1: the rank '²'"),
        (f"1\t2\t{'9' * 5000}\n", "line 1: the rank"),  # more digits than int() takes
        ("1\t2\t1\n1\t3\t1\n", "line 2: query 1 has two documents of rank 1"),
        ("1\t2\t1\n1\t3\t3\n", "query 1 has 2 documents but a rank 3"),
        ("1\t2\t1\n1\t2\t2\n", "query 1 has document 2 at two ranks"),
        ("", "the run is empty"),
    ],
)
def test_bad_runs(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        read_run(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "dev.rank.tsv"))


def test_conversion_looks_rows_up_in_both_tables(tmp_path: Path) -> None:
    source = write(tmp_path, "1\t0\t1\n1\t2\t2\n0\t1\t1\n")
    target = tmp_path / "official" / "dev.rank.tsv"
    convert_run(source, target, {100: 0, 200: 1}, {10: 0, 20: 1, 30: 2}, "D")
    assert target.read_text() == "200\tD10\t1\n200\tD30\t2\n100\tD20\t1\n"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("0\t0\t1\n2\t0\t1\n", "line 2: there is no query in row 2"),
        ("0\t0\t1\n0\t9\t2\n", "line 2: there is no document in row 9"),
        ("0\t0\n", "line 1: expected"),
    ],
)
def test_conversion_that_fails_leaves_nothing(tmp_path: Path, text: str, complaint: str) -> None:
    source, target = write(tmp_path, text), tmp_path / "official" / "dev.rank.tsv"
    with pytest.raises(InputError, match=complaint):
        convert_run(source, target, {100: 0}, {10: 0}, "")
    assert not any(path.is_file() for path in target.parent.rglob("*"))


def test_without() -> None:
    ranked = np.array([4, 9, 1, 7, 3])
    assert without(ranked, [9, 3, 100], 2) == [4, 1]
    assert without(ranked, [], 9) == [4, 9, 1, 7, 3]
    assert without(ranked, [4, 9, 1, 7, 3], 2) == []
