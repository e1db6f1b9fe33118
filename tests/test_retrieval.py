"""Retrieval and the mining of hard negatives, against the sorted scores of all documents."""

from pathlib import Path
from typing import Any

from drhard.collection import Collection
from drhard.errors import InputError
from drhard.exact import ExactIndex
from drhard.mining import Mined, mine_hard_negatives
from drhard.negatives import Selection
from drhard.numbers import Ranks
from drhard.results import Parts
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


def all_scores() -> np.ndarray:
    """The scores of all 40 passages for each of the four queries, each sequence encoded alone."""
    model = tiny_model()

    def embed(sequences: list[list[int]]) -> np.ndarray:
        with torch.no_grad():
            parts = [model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)) for ids in sequences]
        return torch.cat(parts).double().numpy()

    scores: np.ndarray = embed(random_sequences(4, 7, seed=2)) @ embed(random_sequences(40, 12, seed=0)).T
    assert np.diff(np.sort(scores, axis=1), axis=1).min() > 1e-5  # no near ties that padding could swap
    return scores


def ranking() -> np.ndarray:
    """All 40 passages for each of the four queries, best first."""
    return np.argsort(-all_scores(), axis=1)


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


def mine(preprocessed: Path, folder: Path, selection: Selection) -> Mined:
    with mine_hard_negatives(retriever(), opened(preprocessed), "train", folder, selection) as mined:
        return Mined(mined.hard, np.array(mined.scores), np.array(mined.rows))


@pytest.mark.parametrize("topk", [1, 6, 26])
def test_hard_negatives_are_the_best_that_are_not_relevant(tmp_path: Path, preprocessed: Path, topk: int) -> None:
    mined = mine(preprocessed, tmp_path / "out", Selection(Ranks(1, topk)))
    order = ranking()
    for query in range(4):
        expected = [row for row in order[query].tolist() if row not in RELEVANT.get(query, [])][:topk]
        assert mined.hard[query].tolist() == expected
        assert len(expected) == topk
    np.testing.assert_array_equal(mined.rows, order[:, : topk + 10])
    assert mined.scores.shape == mined.rows.shape
    assert (np.diff(mined.scores, axis=1) <= 0).all()


@pytest.mark.parametrize(
    ("ranks", "margin"), [("3-9", None), ("1-26", 0), ("1-26", 0.05), ("1-26", 0.1), ("9-26", 0.05), ("2-8", 0)]
)
def test_hard_negatives_of_some_ranks_below_the_margin(
    tmp_path: Path, preprocessed: Path, ranks: str, margin: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """By the scores of all passages, so that those of the search are shown to be enough."""
    selection = Selection(Ranks.parse(ranks), margin)
    with caplog.at_level("INFO"):
        mined = mine(preprocessed, tmp_path / "out", selection)
    scores, order, before = all_scores(), ranking(), 0
    for query in range(4):
        relevant = RELEVANT.get(query, [])
        expected = [row for row in order[query].tolist() if row not in relevant]
        expected = expected[selection.ranks.first - 1 : selection.ranks.last]
        before += len(expected)
        if margin is not None and relevant:
            lowest = scores[query, relevant].min()
            expected = [row for row in expected if scores[query, row] <= lowest - abs(lowest) * margin]
        assert mined.hard[query].tolist() == expected
    np.testing.assert_array_equal(mined.rows, order[:, : selection.ranks.last + 10])
    kept, none = mined.hard.total, sum(not len(mined.hard[query]) for query in RELEVANT)
    said = [message for message in caplog.messages if "margin" in message]
    assert (
        said == []
        if margin is None
        else [
            f"the relative margin removed {before - kept} of {before} hard negatives "
            f"({100 * (before - kept) / before:.1f} %); {none} of 3 queries keep none"
        ]
    )


def test_a_margin_that_leaves_no_query_a_negative_is_refused_and_the_search_is_kept(
    tmp_path: Path, preprocessed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = 0
    search = ExactIndex.passes

    def counted(self: ExactIndex, *arguments: Any) -> Parts:
        nonlocal searches
        searches += 1
        return search(self, *arguments)

    monkeypatch.setattr(ExactIndex, "passes", counted)
    with pytest.raises(
        InputError,
        match=r"^no query has a hard negative \(ranks 1-26, margin 0.9\); give a lower --relative_margin or ",
    ):
        mine(preprocessed, tmp_path / "out", Selection(Ranks(1, 26), 0.9))
    again = mine(preprocessed, tmp_path / "out", Selection(Ranks(5, 26), 0.05))
    assert searches == 1
    anew = mine(preprocessed, tmp_path / "new", Selection(Ranks(5, 26), 0.05))
    assert {query: rows.tolist() for query, rows in again.hard.items()} == {
        query: rows.tolist() for query, rows in anew.hard.items()
    }
    assert again.hard.total > 0


def test_more_negatives_than_there_can_be_are_refused(tmp_path: Path, preprocessed: Path) -> None:
    with pytest.raises(InputError, match=r"27 negatives \(--topk or --negative_ranks\) from 40 passages; lower it"):
        mine(preprocessed, tmp_path / "out", Selection(Ranks(20, 27)))
    assert not (tmp_path / "out").exists()
