"""Retrieval and the mining of hard negatives, against the sorted scores of all documents."""

from pathlib import Path

from drhard.collection import Collection
from drhard.errors import InputError
from drhard.mining import Mined, mine_hard_negatives
from drhard.retrieval import Retriever
from drhard.settings import EncodingSettings, SearchSettings
from drhard.tokens import PASSAGES, query_name

import numpy as np
import pytest
import torch
from helpers import random_sequences, tiny_model, write_qrels, write_tokens

RELEVANT = {0: [3, 5, 20], 1: list(range(14)), 3: [7]}  # 1 has more than the 10 that the run holds beside topk


@pytest.fixture
def preprocessed(tmp_path: Path) -> Path:
    folder = tmp_path / "preprocess"
    write_tokens(folder, PASSAGES, random_sequences(40, 12, seed=0), 16)
    write_tokens(folder, query_name("train"), random_sequences(4, 7, seed=2), 8)
    write_qrels(folder / "train-qrel.tsv", RELEVANT)
    return folder


def ranking() -> np.ndarray:
    """All 40 passages for each of the four queries, each sequence encoded alone, best first."""
    model = tiny_model()

    def embed(sequences: list[list[int]]) -> np.ndarray:
        with torch.no_grad():
            parts = [model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)) for ids in sequences]
        return torch.cat(parts).double().numpy()

    scores = embed(random_sequences(4, 7, seed=2)) @ embed(random_sequences(40, 12, seed=0)).T
    assert np.diff(np.sort(scores, axis=1), axis=1).min() > 1e-5  # no near ties that padding could swap
    return np.argsort(-scores, axis=1)


def retriever(**searching: object) -> Retriever:
    return Retriever(tiny_model(), EncodingSettings(8, torch.device("cpu")), SearchSettings(**searching))


def opened(preprocessed: Path) -> Collection:
    return Collection(preprocessed, max_query_length=8, max_doc_length=16)


def test_retrieve_is_the_ranking(tmp_path: Path, preprocessed: Path) -> None:
    with retriever().retrieve(opened(preprocessed), "train", tmp_path / "out", 9) as found:
        scores, rows = np.array(found.scores), np.array(found.rows)
    np.testing.assert_array_equal(rows, ranking()[:, :9])
    embedded = [
        np.fromfile(tmp_path / "out" / f"{name}.memmap", dtype=np.float32).reshape(-1, 16)
        for name in ("train-query", "passages")
    ]
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", embedded[0], embedded[1][rows]), rtol=1e-5)
    assert np.fromfile(tmp_path / "out" / "passages-id.memmap", dtype=np.int32).tolist() == list(range(40))
    assert np.fromfile(tmp_path / "out" / "train-query-id.memmap", dtype=np.int32).tolist() == list(range(4))


def mine(preprocessed: Path, folder: Path, topk: int) -> Mined:
    with mine_hard_negatives(retriever(), opened(preprocessed), "train", folder, topk) as mined:
        return Mined(mined.hard, np.array(mined.scores), np.array(mined.rows))


@pytest.mark.parametrize("topk", [1, 6, 26])
def test_hard_negatives_are_the_best_that_are_not_relevant(tmp_path: Path, preprocessed: Path, topk: int) -> None:
    mined = mine(preprocessed, tmp_path / "out", topk)
    order = ranking()
    for query in range(4):
        expected = [row for row in order[query].tolist() if row not in RELEVANT.get(query, [])][:topk]
        assert mined.hard[query].tolist() == expected
        assert len(expected) == topk
    np.testing.assert_array_equal(mined.rows, order[:, : topk + 10])
    assert mined.scores.shape == mined.rows.shape
    assert (np.diff(mined.scores, axis=1) <= 0).all()


def test_more_negatives_than_there_can_be_are_refused(tmp_path: Path, preprocessed: Path) -> None:
    with pytest.raises(InputError, match="27 negatives .* 40 passages"):
        mine(preprocessed, tmp_path / "out", 27)
    assert not (tmp_path / "out").exists()
