"""Search on several devices: what one device finds, whatever is on each. CPUs take the place of GPUs."""

from typing import Any

import drhard.pairs
import drhard.rounded
import drhard.shards
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.shards import SCRATCH, Shard, ShardedIndex, bytes_of_codes, find_gpus_with_room, open_shards
from drhard.sieve import best_of_pairs

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")
PATIENT = settings(deadline=None, max_examples=60)


@PATIENT
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 30), st.booleans(), st.booleans())
def test_shards_find_what_the_whole_has(seed: int, shards: int, k: int, copied: bool, coded: bool) -> None:
    """Small whole numbers, so that ties abound; some documents are not found. Shards with documents give their rows."""
    random = np.random.default_rng(seed)
    documents = random.integers(-2, 3, (random.integers(2, 60), 5)).astype(np.float32)
    queries = random.integers(-2, 3, (4, 5)).astype(np.float32)
    left_out = np.flatnonzero(random.random(len(documents)) < 0.2)[: len(documents) - 1]
    k = min(k, len(documents) - len(left_out))
    index = open_small(documents, shards, left_out, copied, coded)
    assert all((shard.copy is not None) == copied for shard in index.shards)
    for found, expected in zip(
        index.search(queries, k), ExactIndex(documents, left_out=left_out).search(queries, k), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    rows = random.integers(0, len(documents), (3, 7))
    gathered = index.gather(rows, CPU)
    if copied:
        np.testing.assert_array_equal(gathered, documents[rows])
    else:
        assert gathered is None


def open_small(
    documents: np.ndarray, shards: int, left_out: np.ndarray, copied: bool, coded: bool = True
) -> ShardedIndex:
    with pytest.MonkeyPatch.context() as patch:
        if coded:
            patch.setattr(drhard.shards, "FEWEST_CODED", 0)
        room = 10**6 if copied else bytes_of_codes(-(-len(documents) // shards), documents.shape[1])
        patch.setattr(drhard.shards, "free_bytes", lambda _: SCRATCH + room)
        return open_shards(documents, [CPU] * shards, left_out=left_out)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("parts", ["float32", "int8"])
def test_many_queries_in_parts(monkeypatch: pytest.MonkeyPatch, copied: bool, parts: str) -> None:
    monkeypatch.setattr(drhard.shards, "SIEVES", 1 << 20)
    monkeypatch.setattr(drhard.pairs, "AGAIN_ON_GPU", 500 * 32)
    monkeypatch.setattr(drhard.rounded, "has_fast_int8", lambda _: parts == "int8")
    random = np.random.default_rng(1)
    documents, queries = (random.standard_normal((count, 32), dtype=np.float32) for count in (3000, 120))
    index = open_small(documents, 2, np.arange(0, 3000, 7), copied)
    passes = list(index.passes(queries, 20))
    assert len(passes) > 2
    scores, rows = (np.concatenate(of_passes) for of_passes in zip(*passes, strict=True))
    expected_scores, expected_rows = ExactIndex(documents, left_out=np.arange(0, 3000, 7)).search(queries, 20)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    assert (rows == expected_rows).mean() > 0.999


@pytest.mark.parametrize("copied", [True, False])
def test_documents_that_codes_cannot_tell_apart(monkeypatch: pytest.MonkeyPatch, copied: bool) -> None:
    monkeypatch.setattr(drhard.shards, "DENSE_SCORES", 1800)
    monkeypatch.setattr(drhard.shards, "TILE_SCORES", 1 << 10)
    documents = np.ones((5000, 4), dtype=np.float32)
    documents[4321] = 2
    index = open_small(documents, 2, np.array([3]), copied)
    searched = []
    for shard in index.shards:
        monkeypatch.setattr(shard, "_search_all", lambda *of, all_=shard._search_all: searched.append(1) or all_(*of))
    scores, rows = index.search(np.ones((2, 4), dtype=np.float32), 5)
    assert rows.tolist() == [[4321, 0, 1, 2, 4]] * 2 and scores.tolist() == [[8, 4, 4, 4, 4]] * 2
    assert searched


def test_a_training_in_tf32_searches_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    matmul_before, seen = matmul.fp32_precision, []
    search_all = Shard._search_all

    def look(*arguments: Any) -> Any:
        seen.append(matmul.fp32_precision)
        return search_all(*arguments)

    monkeypatch.setattr(Shard, "_search_all", look)
    documents = np.random.default_rng(0).standard_normal((20, 4), dtype=np.float32)
    try:
        matmul.fp32_precision = "tf32"
        open_shards(documents, [CPU, CPU]).search(documents[:3], 2)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = matmul_before
    assert seen == ["ieee", "ieee"]


def test_the_best_of_pairs() -> None:
    best = best_of_pairs(torch.tensor([[1.0, -0.0, 0.0, -5.0]]), torch.tensor([7, 9, 8, 2**31 - 1]), 3)
    assert best[0].tolist() == [[1, 0, 0]] and best[1].tolist() == [[7, 8, 9]]
    more = best_of_pairs(torch.tensor([[1.0, -torch.inf]]), torch.tensor([6, 5]), 3, best)
    assert more[0].tolist() == [[1, 1, 0]] and more[1].tolist() == [[6, 7, 8]]


def test_memory_that_is_missing_is_told() -> None:
    documents = np.ones((10, 4), dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drhard.shards, "free_bytes", lambda _: SCRATCH)
        with pytest.raises(InputError, match="cpu has 3.0 GB free, and the codes of its 10 embeddings need 3.0"):
            open_shards(documents, [CPU])
    assert bytes_of_codes(8_841_823, 768) < 7.1e9  # MS MARCO on a GPU of 12 GB


def test_without_a_gpu_the_search_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_gpus_with_room(10, 4) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(drhard.shards, "explain_no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(drhard.shards, "free_bytes", lambda _: 10 * 10**9)
    assert find_gpus_with_room(8_841_823, 768) == [0, 1]
    assert find_gpus_with_room(30_000_000, 768) == []
