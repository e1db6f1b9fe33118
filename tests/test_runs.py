"""Runs: written, read, refused, converted to official ids and to TREC's six columns."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import drhard.conversion
from drhard import ids
from drhard.collection import Collection
from drhard.conversion import convert_run
from drhard.errors import InputError
from drhard.files import write_whole_text
from drhard.runs import Ranking, digest_ids, read_rankings, read_run, write_run

import ir_measures
import numpy as np
import pytest
from helpers import must_run, run_script, snapshot


def write(folder: Path, text: str) -> Path:
    path = folder / "dev.rank.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, pid_prefix: str = "") -> dict[int, list[int]]:
    return {qid: pids for qid, pids, *_ in read_run(path, pid_prefix)}


def write_ids(folder: Path, qids: list[int], pids: list[int]) -> Collection:
    """Write the official ids of rows, as preprocess.py does."""
    ids.write_ids(folder / "dev-qid2offset.pickle", np.array(qids))
    ids.write_ids(folder / "pid2offset.pickle", np.array(pids))
    return Collection(folder)


def test_written_run_is_the_published_format(tmp_path: Path) -> None:
    path = tmp_path / "out" / "dev.rank.tsv"
    write_run(path, np.array([[9, 8], [7, 6]]), np.array([[5, 3], [0, 9]]))
    assert path.read_text() == "0\t5\t1\n0\t3\t2\n1\t0\t1\n1\t9\t2\n"
    assert sorted(os.listdir(path.parent)) == ["dev.rank.tsv", "dev.score.npy"]
    assert read(path) == {0: [5, 3], 1: [0, 9]}


class Died(BaseException):
    """The process was killed."""


@pytest.mark.parametrize("calls", range(9))
def test_a_run_has_its_own_scores_whenever_the_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    path = tmp_path / "dev.rank.tsv"
    write_run(path, np.array([[9, 8]]), np.array([[0, 1]]), {"documents": "a", "queries": "a"})
    former = snapshot(tmp_path)
    remaining = iter(range(calls))

    def die_at_last(call: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any) -> None:
            if next(remaining, None) is None:
                raise Died
            call(*arguments)

        return counted

    with monkeypatch.context() as patch, pytest.raises(Died):
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, die_at_last(getattr(os, name)))
        write_run(path, np.array([[7, 6]]), np.array([[2, 3]]), {"documents": "b", "queries": "b"})
    left = {name: content for name, content in snapshot(tmp_path).items() if ".partial" not in name}
    assert path.name not in left or left == former


def test_ranks_decide_not_the_order_of_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "4\t8\t2\n9 1 1\n4\t7\t1\n4\t6\t3\n")
    run = read(path)
    assert run == {4: [7, 8, 6], 9: [1]}
    assert list(run) == [4, 9]
    assert next(read_run(path)) == Ranking(4, [7, 8, 6], [-1, -2, -3], [3, 1, 4])


def test_official_document_ids(tmp_path: Path) -> None:
    assert read(write(tmp_path, "4 D8 1\n"), "D") == {4: [8]}


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("1\t2\t1\n1\t3\n", "line 2: expected 'qid <tab> pid <tab> rank', found 2 fields"),
        ("1\t2\t1\n\n", "line 2: is empty"),
        ("1\t2\t1\thigh\n", "line 1: the score 'high'"),
        ("1\t2\t1\t0.5\t9\n", "line 1: expected"),
        ("1 Q0 2 1 0.5 tag\n", "line 1: expected"),
        ("one\t2\t1\n", "line 1: the id 'one'"),
        ("1\tD2\t1\n", "line 1: the id 'D2'"),
        ("1\t2\t0\n", "line 1: the rank '0'"),
        ("1\t2\t-1\n", "line 1: the rank '-1'"),
        ("1\t2\tfirst\n", "line 1: the rank 'first'"),
        ("1\t2\t²\n", "line 1: the rank '²'"),
        (f"1\t2\t{'9' * 5000}\n", "line 1: the rank"),  # more digits than int() takes
        ("1\t2\t1\n1\t3\t1\n", "line 2: query 1 has two documents of rank 1"),
        ("1\t2\t1\n1\t3\t3\n", "line 2: query 1 has a rank 3 but 2 documents"),
        ("1\t2\t1\n1\t2\t2\n", "line 2: query 1 has document 2 again, first in line 1"),
        ("1\t2\0\t1\n", r"line 1: has the control character '\\x00'"),
        ("1\t2\t1\n1\t3\x1c\t2\n", r"line 2: has the control character '\\x1c'"),
        ("1\t2\u2003\t1\n", r"line 1: the id '2\\u2003'"),
        ("", "the run is empty"),
    ],
)
def test_bad_runs(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        read(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "dev.rank.tsv"))


def test_a_score_behind_the_rank_is_taken(tmp_path: Path) -> None:
    """As the official script takes it; the rank decides."""
    path = write(tmp_path, "4\t8\t2\t9.5\n4\t7\t1\t0.5\n")
    assert read(path) == {4: [7, 8]}
    assert [ranking.docids for ranking in read_rankings(path)] == [["7", "8"]]


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff4\t8\t1\n4\t7\t2\n")
    assert read(path) == {4: [8, 7]}
    assert [ranking.qid for ranking in read_rankings(path)] == ["4"]


def scattered(queries: int, documents: int) -> list[str]:
    """The lines of a run, rank by rank."""
    return [
        f"{query * 11 % queries}\t{query * documents + rank}\t{rank + 1}\n"
        for rank in range(documents)
        for query in range(queries)
    ]


@pytest.mark.parametrize("queries", [1, 2, 63, 64, 65, 200])
def test_queries_that_are_scattered_over_a_run_are_put_together(tmp_path: Path, queries: int) -> None:
    lines = scattered(queries, 3)
    order = list(dict.fromkeys(line.split()[0] for line in lines))
    together = sorted(lines, key=lambda line: order.index(line.split()[0]))
    whole, found = (
        [(qid, pids, scores) for qid, pids, scores, _ in read_run(write(tmp_path, "".join(text)))]
        for text in (together, lines)
    )
    assert found == whole
    for ranking in read_run(tmp_path / "dev.rank.tsv"):
        assert all(
            lines[number - 1].split("\t")[:2] == [str(ranking.qid), str(pid)]
            for number, pid in zip(ranking.lines, ranking.docids, strict=True)
        )


def test_scattered_lines_are_refused_by_their_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 4: query 1 has two documents of rank 1"):
        read(write(tmp_path, "1 5 1\n2 6 1\n2 7 2\n1 8 1\n"))
    with pytest.raises(InputError, match="line 3: query 1 has document 5 again, first in line 1"):
        read(write(tmp_path, "1 5 1\n2 6 1\n1 5 2\n"))


def test_no_room_for_the_parts_of_a_scattered_run_is_not_the_fault_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, collection = write(tmp_path, "".join(scattered(20, 3))), write_ids(tmp_path, [*range(20)], [*range(60)])
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(open, "/dev/full"))
    with pytest.raises(OSError, match=f"No space left on device: '{tempfile.gettempdir()}'"):
        convert_run(source, tmp_path / "out.tsv", collection, "dev", "")
    assert not list(tmp_path.glob("out*"))


def test_blanks_in_front_of_lines_and_queries_that_begin_alike(tmp_path: Path) -> None:
    assert read(write(tmp_path, "1 5 1\n11 6 1\n  1 7 2\n11\t8 2\n1\t9 3\n")) == {1: [5, 7, 9], 11: [6, 8]}


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """Its second reading would find nothing."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is not a regular file; a run is read twice"):
        next(read_rankings(tmp_path / "pipe"))


def test_conversion_looks_rows_up_in_both_tables(tmp_path: Path) -> None:
    source = write(tmp_path, "1\t0\t1\n1\t2\t2\n0\t1\t1\n")
    target = tmp_path / "official" / "dev.rank.tsv"
    assert convert_run(source, target, write_ids(tmp_path, [100, 200], [10, 20, 30]), "dev", "D")
    assert target.read_text() == "200\tD10\t1\n200\tD30\t2\n100\tD20\t1\n"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("0\t0\t1\n2\t0\t1\n", "line 2: there is no query in row 2"),
        ("0\t0\t1\n0\t9\t2\n", "line 2: there is no document in row 9"),
        ("0\t0\n", "line 1: expected"),
        ("0\t0\t1\n0\t1\t1\n", "line 2: query 0 has two documents of rank 1"),
        ("0\t0\t1\n0\t0\t2\n", "line 2: query 0 has document 0 again"),
        ("0\t0\t1\n0\t1\t3\n", "line 2: query 0 has a rank 3 but 2 documents"),
        ("", "the run is empty"),
    ],
)
def test_conversion_that_fails_leaves_nothing(tmp_path: Path, text: str, complaint: str) -> None:
    source, target = write(tmp_path, text), tmp_path / "official" / "dev.rank.tsv"
    with pytest.raises(InputError, match=complaint):
        convert_run(source, target, write_ids(tmp_path, [100], [10, 20]), "dev", "")
    assert not any(path.is_file() for path in target.parent.rglob("*"))


def test_a_run_knows_the_ids_that_it_was_made_with(tmp_path: Path) -> None:
    """The same collection in another order, or other queries, would give official ids of other documents."""
    own = write_ids(tmp_path / "own", [100, 200], [10, 20, 30])
    run = tmp_path / "dev.rank.tsv"
    write_run(run, np.array([[2, 1], [2, 1]]), np.array([[0, 1], [2, 0]]), digest_ids(own, "dev"))
    for name, kind, qids, pids in (
        ("order", "documents", [100, 200], [10, 30, 20]),
        ("more", "documents", [100, 200], [10, 20, 30, 40]),
        ("queries", "queries", [200, 100], [10, 20, 30]),
    ):
        with pytest.raises(InputError, match=f"dev.rank.tsv: was made with {kind} other than those in .*{name}/"):
            convert_run(run, tmp_path / "out.tsv", write_ids(tmp_path / name, qids, pids), "dev", "")
    assert convert_run(run, tmp_path / "out.tsv", own, "dev", "")
    write_run(run, np.array([[2, 1]]), np.array([[0, 1]]))  # without official ids: the former stamp is not its own
    assert convert_run(run, tmp_path / "other.tsv", Collection(tmp_path / "order"), "dev", "")


def test_without_official_ids_a_run_has_no_stamp(tmp_path: Path) -> None:
    assert digest_ids(Collection(tmp_path), "dev") == {}
    write_run(tmp_path / "dev.rank.tsv", np.array([[2, 1]]), np.array([[0, 1]]), {})
    assert sorted(os.listdir(tmp_path)) == ["dev.rank.tsv", "dev.score.npy"]


def test_what_is_converted_already_is_known(tmp_path: Path) -> None:
    """As after the death of a process that had finished; what was made from something else stays and is refused."""
    source, target = tmp_path / "dev.rank.tsv", tmp_path / "out" / "dev.trec"
    ids = write_ids(tmp_path / "pre", [100, 200], [10, 20, 30])
    write_run(source, np.array([[2, 1], [2, 1]]), np.array([[0, 1], [2, 0]]))
    assert convert_run(source, target, ids, "dev", "D", "star")
    before = target.read_bytes()
    assert not convert_run(source, target, ids, "dev", "D", "star")
    target.unlink()  # as after a death between the names of the stamp and of the run
    assert convert_run(source, target, ids, "dev", "D", "star")
    assert target.read_bytes() == before
    for prefix, tag in (("", "star"), ("D", "other"), ("D", None)):
        with pytest.raises(InputError, match="dev.trec: already exists and was made from something else"):
            convert_run(source, target, ids, "dev", prefix, tag)
    target.write_bytes(before + b"100 Q0 D9 3 1 star\n")
    with pytest.raises(InputError, match="already exists and was made from something else"):
        convert_run(source, target, ids, "dev", "D", "star")
    target.write_bytes(before)
    write_run(source, np.array([[2, 1], [3, 1]]), np.array([[0, 1], [2, 0]]))  # other scores
    with pytest.raises(InputError, match="already exists and was made from something else"):
        convert_run(source, target, ids, "dev", "D", "star")
    assert target.read_bytes() == before


def test_a_run_that_another_process_wrote_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = write(tmp_path, "0\t0\t1\n"), tmp_path / "out.tsv"
    ids = write_ids(tmp_path, [100], [10])
    monkeypatch.setattr(drhard.conversion, "write_whole_text", quicker := Quicker(target))
    with pytest.raises(InputError, match="another process has just written it"):
        convert_run(source, target, ids, "dev", "")
    assert quicker.ran and target.read_text() == "theirs"


class Quicker:
    """write_whole_text, but that ``target`` is there once its lock is taken."""

    def __init__(self, target: Path):
        self.target, self.ran = target, False

    @contextmanager
    def __call__(self, path: Path) -> Iterator[IO[str]]:
        with write_whole_text(path) as file:
            self.target.write_text("theirs")
            self.ran = True
            yield file


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
    assert read(tmp_path / "dev.rank.tsv") == {0: [5, 0], 2: [7]}


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
    convert_run(source, target, write_ids(tmp_path, list(QIDS), list(PIDS)), "dev", "D", trec_tag="star")
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
    convert_run(source, target, write_ids(tmp_path, list(QIDS), list(PIDS)), "dev", "", trec_tag="t")
    written = [float(line.split()[4]) for line in target.read_text().splitlines()]
    np.testing.assert_array_equal(np.array(written, dtype=np.float32), scores[0])


def test_without_scores_one_divided_by_the_rank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path, "1\t0\t1\n1\t2\t2\n0\t1\t1\n1\t1\t3\n")
    convert_run(source, tmp_path / "dev.trec", write_ids(tmp_path, [100, 200], [10, 20, 30]), "dev", "", "t")
    assert (tmp_path / "dev.trec").read_text() == (
        "200 Q0 10 1 1 t\n200 Q0 30 2 0.5 t\n200 Q0 20 3 0.333333333 t\n100 Q0 20 1 1 t\n"
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
        convert_run(source, target, write_ids(tmp_path, list(QIDS), list(PIDS)), "dev", "", trec_tag="t")
    assert str(error.value).startswith(str(tmp_path / "dev.score.npy"))
    assert not list(tmp_path.glob("dev.trec*"))
    convert_run(source, tmp_path / "official.tsv", Collection(tmp_path), "dev", "")  # which needs no scores


def test_cvt_back_writes_a_trec_run(tmp_path: Path) -> None:
    folder = tmp_path / "evaluate" / "adore-star"
    write_run(folder / "dev.rank.tsv", np.array([[2, 2], [4, 1]]), np.array([[1, 0], [0, 1]]))
    write_ids(tmp_path / "pre", [5, 7], [10, 30])
    arguments = (
        "cvt_back.py",
        "--input_dir",
        "evaluate/adore-star",
        "--preprocess_dir",
        "pre",
        "--output_dir",
        "official",
        "--mode",
        "dev",
        "--dataset",
        "doc",
        "--trec",
    )
    assert must_run(*arguments, cwd=tmp_path).splitlines()[-1] == "Wrote official/dev.trec"
    assert sorted(os.listdir(tmp_path / "official")) == ["dev.trec", "dev.trec.json"]
    assert (tmp_path / "official/dev.trec").read_text() == (
        "5 Q0 D30 1 2 adore-star\n5 Q0 D10 2 1.99999988 adore-star\n7 Q0 D10 1 4 adore-star\n7 Q0 D30 2 1 adore-star\n"
    )
    assert must_run(*arguments, cwd=tmp_path).splitlines()[-1] == (
        "official/dev.trec already exists, made from the same run"
    )
    os.remove(tmp_path / "official/dev.trec.json")  # as if it came from elsewhere
    again = run_script(*arguments, cwd=tmp_path)
    assert again.returncode == 2 and "official/dev.trec: already exists" in again.stderr
