"""Search by faiss: the parts merge to the whole, ties by the smaller row."""

import sys

import drhard.faiss_index
from drhard.devices import limit_threads
from drhard.errors import InputError
from drhard.faiss_index import FaissIndex, check_gpus, find_gpus_with_room
from drhard.settings import SearchSettings

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

SLOW_MACHINE = settings(deadline=None, max_examples=60)


@SLOW_MACHINE
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12))
def test_shards_merge_to_the_whole(seed: int, shards: int, k: int) -> None:
    random = np.random.default_rng(seed)
    parts = [random.normal(size=(random.integers(1, 9), 5)).astype(np.float32) for _ in range(shards)]
    documents, queries = np.concatenate(parts), random.normal(size=(4, 5)).astype(np.float32)
    k = min(k, len(documents))
    indexes = []
    for part in parts:
        indexes.append(faiss.IndexFlatIP(5))
        indexes[-1].add(part)
    scores, rows = FaissIndex(indexes).search(queries, k)
    exact = queries.astype(np.float64) @ documents.T.astype(np.float64)
    expected = np.argsort(-exact, axis=1)[:, :k]  # random reals: no ties
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, expected, axis=1), rtol=1e-5, atol=1e-5)


def test_ties_across_shards_go_to_the_smaller_row() -> None:
    shards = []
    for _ in range(3):
        shards.append(faiss.IndexFlatIP(2))
        shards[-1].add(np.ones((2, 2), dtype=np.float32))
    _, rows = FaissIndex(shards).search(np.ones((1, 2), dtype=np.float32), 6)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_what_a_gpu_cannot_return_is_refused_before_the_long_work() -> None:
    with pytest.raises(InputError, match="2048"):
        check_gpus([0], 3000)


def test_without_a_gpu_the_search_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_gpus_with_room(1) == []


def test_without_faiss_there_is_a_sentence_and_an_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drhard.faiss_index, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "faiss", None)
    for searching in (SearchSettings(factory="PQ2"), SearchSettings(gpus=[0])):
        with pytest.raises(InputError, match="faiss is not installed; install faiss-cpu, or faiss-gpu"):
            searching.check(1, 4, 4)
    SearchSettings(gpus=None).check(1, 4, 4)
    documents = np.eye(4, dtype=np.float32)
    assert SearchSettings(gpus=None).open(documents, 1).search(documents, 1)[1].ravel().tolist() == [0, 1, 2, 3]
    limit_threads(torch.get_num_threads())
