"""Exact search: equal to brute force, ties by the smaller row, in blocks of any size, from a file or from memory."""

import os
import threading
from pathlib import Path

import drhard.exact
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.topk import ADDED

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SLOW_MACHINE = settings(deadline=None, max_examples=60)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    """Documents, queries, k, rows of a block, queries of a group; few values, so that ties abound."""
    count, dim = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.integers(0, 3))
    documents = random.integers(-spread, spread + 1, (count, dim)).astype(np.float32)
    if draw(st.booleans()):
        documents = documents[random.integers(0, count, count)]  # duplicates
    queries = random.integers(-2, 3, (draw(st.integers(1, 7)), dim)).astype(np.float32)
    return documents, queries, draw(st.integers(1, count)), draw(st.integers(1, 12)), draw(st.integers(1, 4))


def brute_force(documents: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of the k best by sorting everything; exact, since small whole numbers are."""
    scores = (queries.astype(np.int64) @ documents.astype(np.int64).T).astype(np.float32)
    rows = np.stack([np.lexsort((np.arange(len(documents)), -row))[:k] for row in scores])
    return np.take_along_axis(scores, rows, axis=1), rows


def search_in_blocks(
    documents: np.ndarray, queries: np.ndarray, k: int, block: int, group: int
) -> tuple[np.ndarray, np.ndarray]:
    return ExactIndex(documents, block_rows=block, query_rows=group).search(queries, k)


@SLOW_MACHINE
@given(problems())
def test_equals_brute_force(problem: tuple[np.ndarray, np.ndarray, int, int, int]) -> None:
    documents, queries, k, block, group = problem
    scores, rows = search_in_blocks(documents, queries, k, block, group)
    expected_scores, expected_rows = brute_force(documents, queries, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64


@SLOW_MACHINE
@given(problem=problems())
def test_memmap_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, problem: tuple[np.ndarray, np.ndarray, int, int, int]
) -> None:
    documents, queries, k, block, group = problem
    path = tmp_path_factory.getbasetemp() / "searched.memmap"
    documents.tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=documents.shape)
    scores, rows = search_in_blocks(mapped, queries, k, block, group)
    expected_scores, expected_rows = brute_force(documents, queries, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_part_of_a_memmap_is_searched_as_that_part(tmp_path: Path) -> None:
    documents = np.random.default_rng(0).permutation(20).astype(np.float32)[:, None]
    documents.tofile(tmp_path / "documents.memmap")
    mapped = np.memmap(tmp_path / "documents.memmap", dtype=np.float32, mode="r", shape=(20, 1))
    for part, name in (
        (mapped[5:], "from a later row"),
        (mapped[:15], "to an earlier row"),
        (mapped[::2], "every other"),
    ):
        _, rows = ExactIndex(part).search(np.ones((1, 1), dtype=np.float32), 3)
        np.testing.assert_array_equal(rows, brute_force(np.asarray(part), np.ones((1, 1)), 3)[1], err_msg=name)


def test_ties_beyond_k_keep_the_smallest_rows() -> None:
    documents = np.ones((9, 2), dtype=np.float32)
    _, rows = search_in_blocks(documents, np.ones((1, 2), dtype=np.float32), 4, block=2, group=1)
    assert rows.tolist() == [[0, 1, 2, 3]]


def test_negative_scores_are_found() -> None:
    documents = -np.arange(1, 6, dtype=np.float32)[:, None]
    scores, rows = search_in_blocks(documents, np.ones((1, 1), dtype=np.float32), 5, block=2, group=1)
    assert rows.tolist() == [[0, 1, 2, 3, 4]]
    assert scores.tolist() == [[-1, -2, -3, -4, -5]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    """They have no place in a ranking, and could take others'."""
    documents = np.ones((600, 4), dtype=np.float32)
    queries = np.ones((3, 4), dtype=np.float32)
    documents[417, 2] = value
    documents.tofile(tmp_path / "documents.memmap")
    mapped = np.memmap(tmp_path / "documents.memmap", dtype=np.float32, mode="r", shape=documents.shape)
    with pytest.raises(InputError, match=r"documents\.memmap: row 417 has numbers that are not finite"):
        ExactIndex(mapped).search(queries, 3)
    with pytest.raises(InputError, match="the documents: row 417 "):
        ExactIndex(documents).search(queries, 3)
    queries[2, 0] = value
    with pytest.raises(InputError, match="the queries: row 2 "):
        ExactIndex(documents[:400]).search(queries, 3)


def bytes_of_a_pass(index: ExactIndex, queries: int, k: int) -> int:
    """What is in memory at once when so many queries go past the documents, by the shapes of the arrays."""
    dim = index.documents.shape[1]
    blocks = 3 * index.block_rows * dim * 4
    results = 2 * queries * k * 12  # those of the pass before are still held
    filters, waiting = queries * dim * 4, 3 * queries * k * ADDED.itemsize
    tile = drhard.exact.TILE_SCORES * 4
    return blocks + filters + results + waiting + tile


def test_more_queries_than_the_memory_holds_go_in_passes() -> None:
    random = np.random.default_rng(5)
    documents = random.integers(-2, 3, (50, 3)).astype(np.float32)
    queries = random.integers(-2, 3, (2311, 3)).astype(np.float32)
    index = ExactIndex(documents, memory_gb=0.0226, block_rows=10, query_rows=64)
    together = index.count_together(7)
    assert 64 < together < 1500
    parts = list(index.passes(queries, 7))
    assert [len(rows) for _, rows in parts] == [together] * (2311 // together) + [2311 % together]
    expected_scores, expected_rows = brute_force(documents, queries, 7)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), expected_rows)
    np.testing.assert_array_equal(np.concatenate([scores for scores, _ in parts]), expected_scores)
    for found, expected in zip(index.search(queries, 7), (expected_scores, expected_rows), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [len(rows) for _, rows in ExactIndex(documents).passes(queries, 7)] == [2311]


@pytest.mark.parametrize("k", [10, 210, 2000, 100_000])
@pytest.mark.parametrize("memory_gb", [0.5, 2.0, 4.0])
def test_a_pass_keeps_the_memory_and_makes_use_of_it(memory_gb: float, k: int) -> None:
    index = ExactIndex(np.broadcast_to(np.float32(0), (8_841_823, 768)), memory_gb=memory_gb)
    together = index.count_together(k)
    held = bytes_of_a_pass(index, together, k)
    assert together >= 1
    assert held < memory_gb * 1e9
    assert k == 100_000 or held > 0.5 * memory_gb * 1e9


def test_large_vectors_still_go_past_many_at_a_time() -> None:
    index = ExactIndex(np.broadcast_to(np.float32(0), (1_000_000, 8192)), memory_gb=0.5)
    assert index.count_together(100) == drhard.exact.QUERY_ROWS


class BrokenDisk:
    """Documents whose third block cannot be read."""

    shape = (30, 2)

    def __len__(self) -> int:
        return 30

    def __getitem__(self, rows: slice) -> np.ndarray:
        if rows.start >= 20:
            raise OSError("the disk is gone")
        return np.ones((rows.stop - rows.start, 2), dtype=np.float32)


def test_error_while_reading_surfaces() -> None:
    threads = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        ExactIndex(BrokenDisk(), block_rows=10).search(np.ones((1, 2), dtype=np.float32), 1)
    assert threading.active_count() == threads


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    np.ones((30, 2), dtype=np.float32).tofile(tmp_path / "documents.memmap")
    documents = np.memmap(tmp_path / "documents.memmap", dtype=np.float32, mode="r", shape=(30, 2))
    documents.filename = "/proc/self/mem"  # its first page is no memory, and reading it fails as a damaged disk does
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
        ExactIndex(documents, block_rows=10).search(np.ones((1, 2), dtype=np.float32), 1)


def test_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "documents.memmap"
    np.ones((30, 2), dtype=np.float32).tofile(path)
    documents = np.memmap(path, dtype=np.float32, mode="r", shape=(30, 2))
    os.truncate(path, 25 * 2 * 4)
    with pytest.raises((ValueError, OSError, InputError)):
        ExactIndex(documents, block_rows=10).search(np.ones((1, 2), dtype=np.float32), 1)
