"""Search by faiss: ties by the smaller row, and what it cannot do."""

import sys

import drhard.faiss_index
from drhard.devices import limit_threads
from drhard.errors import InputError
from drhard.faiss_index import FaissIndex, check_faiss_gpus
from drhard.settings import SearchSettings

import faiss
import numpy as np
import pytest
import torch


def test_ties_go_to_the_smaller_row() -> None:
    index = faiss.IndexFlatIP(2)
    index.add(np.ones((6, 2), dtype=np.float32))
    _, rows = FaissIndex(index).search(np.ones((1, 2), dtype=np.float32), 6)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_what_a_gpu_cannot_return_is_refused_before_the_long_work() -> None:
    with pytest.raises(InputError, match="2048"):
        check_faiss_gpus([0], 3000)


def test_without_faiss_there_is_a_sentence_and_an_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drhard.faiss_index, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="faiss is not installed; install faiss-cpu, or faiss-gpu"):
        SearchSettings(factory="PQ2").check(1, 4, 4)
    SearchSettings(gpus=None).check(1, 4, 4)
    documents = np.eye(4, dtype=np.float32)
    assert SearchSettings(gpus=None).open(documents, 1).search(documents, 1)[1].ravel().tolist() == [0, 1, 2, 3]
    limit_threads(torch.get_num_threads())
