"""The index protocol: what every index refuses."""

from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.faiss_index import FaissIndex

import faiss
import numpy as np
import pytest


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_queries_that_are_not_numbers_are_refused(kind: str, value: float) -> None:
    documents = np.ones((4, 2), dtype=np.float32)
    shard = faiss.IndexFlatIP(2)
    shard.add(documents)
    index = ExactIndex(documents) if kind == "exact" else FaissIndex(shard)
    with pytest.raises(InputError, match="the queries: row 1 has numbers that are not finite"):
        index.search(np.array([[1, 1], [value, 1]], dtype=np.float32), 2)


@pytest.mark.parametrize("k", [0, -1, 5])
@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_k_must_be_possible(kind: str, k: int) -> None:
    documents = np.ones((4, 2), dtype=np.float32)
    shard = faiss.IndexFlatIP(2)
    shard.add(documents)
    index = ExactIndex(documents) if kind == "exact" else FaissIndex(shard)
    with pytest.raises(InputError, match=f"{k} best of 4 documents"):
        index.search(np.ones((1, 2), dtype=np.float32), k)


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_other_dimension_is_refused(kind: str) -> None:
    documents = np.ones((4, 2), dtype=np.float32)
    shard = faiss.IndexFlatIP(2)
    shard.add(documents)
    index = ExactIndex(documents) if kind == "exact" else FaissIndex(shard)
    with pytest.raises(InputError, match="3 dimensions, the documents 2"):
        index.search(np.ones((1, 3), dtype=np.float32), 1)
