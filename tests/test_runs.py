"""Runs: written, read, refused, converted to official ids and to TREC's six columns."""

import os
import pickle
from pathlib import Path

from drhard.errors import InputError
from drhard.runs import convert_run, read_ranked, read_run, without, write_run

import ir_measures
import numpy as np
import pytest
from conftest import must_run, run_script


def write(folder: Path, text: str) -> Path:
    path = folder / "dev.rank.tsv"
    path.write_text(text)
    return path


def test_written_run_is_the_published_format(tmp_path: Path) -> None:
    path = tmp_path / "out" / "dev.rank.tsv"
    write_run(path, np.array([[9, 8], [7, 6]]), np.array([[5, 3], [0, 9]]))
    assert path.read_text() == "0\t5\t1\n0\t3\t2\n1\t0\t1\n1\t9\t2\n"
    assert sorted(os.listdir(path.parent)) == ["dev.rank.tsv", "dev.score.npy"]
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
    convert_run(source, target, np.array([100, 200]), np.array([10, 20, 30]), "D")
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
        convert_run(source, target, np.array([100]), np.array([10]), "")
    assert not any(path.is_file() for path in target.parent.rglob("*"))


def test_without() -> None:
    ranked = np.array([4, 9, 1, 7, 3])
    assert without(ranked, [9, 3, 100], 2) == [4, 1]
    assert without(ranked, [], 9) == [4, 9, 1, 7, 3]
    assert without(ranked, [4, 9, 1, 7, 3], 2) == []


# Scores, and TREC's six columns


def test_scores_stand_beside_the_run(tmp_path: Path) -> None:
    scores = np.array([[2.5, 1.5], [0.25, -3.0]])
    write_run(tmp_path / "dev.rank.tsv", scores, np.array([[5, 3], [0, 9]]))
    found = np.load(tmp_path / "dev.score.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, scores)


def test_where_nothing_was_found_nothing_is_written(tmp_path: Path) -> None:
    scores = np.array([[2, 1, 0], [0, 0, 0], [3, 0, 0]], dtype=np.float32)
    write_run(tmp_path / "dev.rank.tsv", scores, np.array([[5, 0, -1], [-1, -1, -1], [7, -1, -1]]))
    assert (tmp_path / "dev.rank.tsv").read_text() == "0\t5\t1\n0\t0\t2\n2\t7\t1\n"
    assert read_run(tmp_path / "dev.rank.tsv") == {0: [5, 0], 2: [7]}


QIDS = 100 + 7 * np.arange(6)
PIDS = np.random.default_rng(0).permutation(2000)[:40]


def scored_rows() -> tuple[np.ndarray, np.ndarray]:
    """Runs of six queries: many ties, ties next to the least step above them, -1 at the ends of two lists."""
    random = np.random.default_rng(1)
    rows = np.stack([random.permutation(40)[:30] for _ in range(6)])
    scores = -np.sort(-random.integers(-8, 9, (6, 30)) / 4, axis=1).astype(np.float32)
    scores[1] = 170.3
    scores[2] = 0
    scores[3, :2] = 0.7, np.nextafter(np.float32(0.7), np.float32(0))
    scores[3, 2:] = scores[3, 1]
    rows[4, 20:], scores[4, 20:] = -1, np.finfo(np.float32).min  # as faiss has it
    rows[5, 3:], scores[5, 3:] = -1, 0  # as BM25 has it
    return scores, rows


def test_trec_run_gives_the_measures_of_the_ranks(tmp_path: Path) -> None:
    scores, rows = scored_rows()
    source, target = tmp_path / "dev.rank.tsv", tmp_path / "dev.trec"
    write_run(source, scores, rows)
    convert_run(source, target, QIDS, PIDS, "D", trec_tag="star")
    fields = [line.split(" ") for line in target.read_text().splitlines()]
    assert len(fields) == (rows >= 0).sum()
    assert {(line[1], line[5]) for line in fields} == {("Q0", "star")}

    docids = [f"D{pid}" for pid in PIDS]
    by_rank: dict[str, dict[str, float]] = {}
    for query, qid in enumerate(QIDS):
        found = [docids[row] for row in rows[query] if row >= 0]
        by_rank[str(qid)] = {docid: 100.0 - rank for rank, docid in enumerate(found)}
        lines = [line for line in fields if line[0] == str(qid)]
        assert [(line[2], int(line[3])) for line in lines] == list(zip(found, range(1, 31), strict=False))
        written = np.array([float(line[4]) for line in lines], dtype=np.float32)  # trec_eval reads float32
        assert (np.diff(written) < 0).all()
        np.testing.assert_allclose(written, scores[query, : len(found)], rtol=1e-5, atol=1e-30)
    random = np.random.default_rng(2)
    judged = {
        qid: {str(docid): int(random.integers(0, 4)) for docid in random.choice(list(run), min(len(run), 8), False)}
        for qid, run in by_rank.items()
    }
    measures = [ir_measures.parse_measure(name) for name in ("nDCG@10", "AP", "RR@10", "RR", "R@5", "P@1", "AP(rel=3)")]
    of_trec, of_ranks = (
        {
            (metric.query_id, str(metric.measure)): metric.value
            for metric in ir_measures.iter_calc(measures, judged, run)
        }
        for run in (list(ir_measures.read_trec_run(str(target))), by_rank)
    )
    assert of_trec == of_ranks
    assert len(set(of_trec.values())) > 10


def test_scores_that_differ_stay_as_they_are(tmp_path: Path) -> None:
    source, target = tmp_path / "dev.rank.tsv", tmp_path / "dev.trec"
    scores = np.array([[171.23456, 0.1, 1e-20, -7.25]], dtype=np.float32)
    write_run(source, scores, np.array([[3, 1, 0, 2]]))
    convert_run(source, target, QIDS, PIDS, "", trec_tag="t")
    written = [float(line.split()[4]) for line in target.read_text().splitlines()]
    np.testing.assert_array_equal(np.array(written, dtype=np.float32), scores[0])


def test_without_scores_one_divided_by_the_rank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path, "1\t0\t1\n1\t2\t2\n0\t1\t1\n1\t1\t3\n")
    convert_run(source, tmp_path / "dev.trec", np.array([100, 200]), np.array([10, 20, 30]), "", trec_tag="t")
    assert (tmp_path / "dev.trec").read_text() == (
        "200 Q0 10 1 1 t\n200 Q0 30 2 0.5 t\n100 Q0 20 1 1 t\n200 Q0 20 3 0.333333333 t\n"
    )
    [warning] = caplog.messages
    assert warning == f"{tmp_path / 'dev.score.npy'}: no such file; the scores of the TREC run are 1/rank"


@pytest.mark.parametrize(
    "scores, complaint",
    [
        (np.zeros((1, 2), np.float32), "has no score for rank 1 of query 1"),
        (np.zeros((2, 1), np.float32), "has no score for rank 2 of query 0"),
        (np.zeros(4, np.float32), "expected float32 scores"),
        (np.zeros((2, 2), np.float64), "expected float32 scores"),
        (np.array([["a", "b"]], dtype=object), "not a NumPy file"),  # a pickle, which could run code
        (b"\x93NUMPY", "not a NumPy file"),
        (b"", "not a NumPy file"),
    ],
    ids=["a query short", "a rank short", "flat", "float64", "objects", "cut off", "empty"],
)
def test_scores_of_another_run_are_refused(tmp_path: Path, scores: np.ndarray | bytes, complaint: str) -> None:
    source, target = write(tmp_path, "0\t0\t1\n0\t1\t2\n1\t1\t1\n1\t0\t2\n"), tmp_path / "dev.trec"
    if isinstance(scores, bytes):
        (tmp_path / "dev.score.npy").write_bytes(scores)
    else:
        np.save(tmp_path / "dev.score.npy", scores)
    with pytest.raises(InputError, match=complaint) as error:
        convert_run(source, target, QIDS, PIDS, "", trec_tag="t")
    assert str(error.value).startswith(str(tmp_path / "dev.score.npy"))
    assert not list(tmp_path.glob("dev.trec*"))
    convert_run(source, tmp_path / "official.tsv", QIDS, PIDS, "")  # which needs no scores


def test_cvt_back_writes_a_trec_run(tmp_path: Path) -> None:
    folder = tmp_path / "evaluate" / "adore-star"
    write_run(folder / "dev.rank.tsv", np.array([[2, 2], [4, 1]]), np.array([[1, 0], [0, 1]]))
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre/pid2offset.pickle").write_bytes(pickle.dumps({10: 0, 30: 1}))
    (tmp_path / "pre/dev-qid2offset.pickle").write_bytes(pickle.dumps({7: 1, 5: 0}))
    arguments = (
        "cvt_back.py", "--input_dir", "evaluate/adore-star", "--preprocess_dir", "pre", "--output_dir", "official",
        "--mode", "dev", "--dataset", "doc", "--trec",
    )  # fmt: skip
    assert must_run(*arguments, cwd=tmp_path).splitlines()[-1] == "Wrote official/dev.trec"
    assert os.listdir(tmp_path / "official") == ["dev.trec"]
    assert (tmp_path / "official/dev.trec").read_text() == (
        "5 Q0 D30 1 2 adore-star\n5 Q0 D10 2 1.99999988 adore-star\n7 Q0 D10 1 4 adore-star\n7 Q0 D30 2 1 adore-star\n"
    )
    again = run_script(*arguments, cwd=tmp_path)
    assert again.returncode == 2 and "official/dev.trec: there is a run already" in again.stderr
