"""Hard negatives are the best that are not relevant, of the ranks and below the margin that are asked for."""

import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import drhard.negatives
from drhard.negatives import HardNegatives, Selection, choose_negatives
from drhard.numbers import Ranks
from drhard.results import Results

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import hard_negatives

SCORES = np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3], dtype=np.float32)  # few, so that some are equal
MARGINS = st.one_of(st.none(), st.sampled_from([0, 0.05, 0.5]), st.floats(0, 0.999))


def as_lists(hard: HardNegatives) -> dict[int, list[int]]:
    return {query: rows.tolist() for query, rows in hard.items()}


def find(seed: int, depth: int) -> Results:
    """Results of 6 queries among 12 documents. Lists end early."""
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(12)[:depth] for _ in range(6)]).astype(np.int32)
    scores = -np.sort(-random.choice(SCORES, rows.shape), axis=1)
    for query in range(6):
        rows[query, random.integers(0, depth + 1) :] = -1
    return Results(scores, rows)


def judge(seed: int) -> dict[int, list[int]]:
    """Query row -> relevant document rows. Some queries have none, one is not searched."""
    random = np.random.default_rng(seed)
    return {query: random.integers(0, 12, random.integers(1, 4)).tolist() for query in (0, 2, 3, 40)}


def chosen_plainly(found: Results, query: int, relevant: Sequence[int], selection: Selection) -> list[int]:
    """What :func:`choose_negatives` chooses for a query, one passage after the other."""
    scores = {row: float(score) for row, score in zip(found.rows[query].tolist(), found.scores[query], strict=True)}
    ranked = [row for row in scores if row >= 0 and row not in relevant]
    ranked = ranked[selection.ranks.first - 1 : selection.ranks.last]
    if selection.margin is None or not relevant:
        return ranked
    if not set(relevant) <= set(scores):
        return []
    lowest = min(scores[row] for row in relevant)
    return [row for row in ranked if scores[row] <= lowest - abs(lowest) * selection.margin]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 11), st.integers(1, 9), MARGINS, st.integers(1, 60))
def test_they_are_those_that_a_loop_chooses(
    seed: int, first: int, more: int, depth: int, margin: float | None, at_once: int
) -> None:
    """Also if several blocks hold the queries, or one query is a block."""
    found, relevant = find(seed, depth), judge(seed)
    selection = Selection(Ranks(first, first + more), margin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drhard.negatives, "COMPARED_AT_ONCE", at_once)
        hard, removed = choose_negatives(found, relevant, selection)
    expected = {query: chosen_plainly(found, query, relevant.get(query, []), selection) for query in range(6)}
    assert as_lists(hard) == expected
    assert hard[0].dtype == np.int32
    assert hard.total == sum(map(len, expected.values()))
    assert hard.find_empty().tolist() == [query for query, rows in expected.items() if not rows]
    without, none = choose_negatives(found, relevant, Selection(selection.ranks))
    assert (removed, none) == (without.total - hard.total, 0)


def choose(scores: Sequence[float], relevant: Sequence[int], ranks: str, margin: float | None) -> list[int]:
    """Choose among the documents 0, 1, … with these scores."""
    found = Results(np.array([scores], dtype=np.float32), np.arange(len(scores), dtype=np.int32)[None])
    hard, _ = choose_negatives(found, {0: relevant}, Selection(Ranks.parse(ranks), margin))
    return as_lists(hard)[0]


@pytest.mark.parametrize(
    ("ranks", "margin", "expected"),
    [
        ("1-4", None, [0, 2, 3, 5]),
        ("2-3", None, [2, 3]),
        ("4-9", None, [5, 6, 7]),
        ("7-9", None, []),
        ("1-9", 0, [5, 6, 7]),  # 4 is relevant and scores 4; 5 scores as much
        ("1-9", 0.25, [6, 7]),
        ("1-9", 0.5, [7]),  # 6 scores 2.5
        ("1-4", 0.25, []),  # ranks 5 and 6 are not asked for
        ("5-6", 0.25, [6, 7]),
    ],
)
def test_ranks_are_counted_before_the_margin_removes_any(ranks: str, margin: float, expected: list[int]) -> None:
    assert choose([9, 8, 7, 6, 4, 4, 2.5, 1], [1, 4], ranks, margin) == expected


def test_the_margin_of_negative_scores_is_below_them() -> None:
    scores = [-1, -2, -2.05, -2.1, -3]
    assert choose(scores, [1], "1-9", 0) == [2, 3, 4]
    assert choose(scores, [1], "1-9", 0.04) == [3, 4]
    assert choose(scores, [1], "1-9", 0.5) == [4]


def test_a_relevant_document_that_was_not_found_scores_at_most_as_much_as_all_that_were() -> None:
    assert choose([5, 4, 3, 2], [1, 9], "1-9", 0.1) == []
    assert choose([5, 4, 3, 2], [1, 9], "1-9", None) == [0, 2, 3]


def test_they_are_a_mapping() -> None:
    hard = HardNegatives(np.array([5, 1, 9]), np.array([2, 2, 3]), np.array([7, 8, 6], dtype=np.int32))
    assert as_lists(hard) == {5: [7, 8], 1: [], 9: [6]}
    assert list(hard) == [5, 1, 9] and len(hard) == 3
    assert 1 in hard and 2 not in hard and 10 not in hard
    assert hard.total == 3
    assert hard.find_empty().tolist() == [1]
    with pytest.raises(KeyError):
        hard[4]


def test_a_selection_in_words() -> None:
    assert str(Selection(Ranks(1, 200))) == "200 hard negatives"
    assert str(Selection(Ranks(10, 200))) == "191 hard negatives (ranks 10-200)"
    assert str(Selection(Ranks(1, 5), 0.05)) == "5 hard negatives (ranks 1-5, margin 0.05)"


# What sentence-transformers chooses

QUERIES, DOCUMENTS = 20, 60


class Embedded:
    """A model of sentence-transformers, as far as mining needs one. A text is the number of a row."""

    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.queries = random.normal(size=(QUERIES, 8)).astype(np.float32)
        self.documents = random.normal(size=(DOCUMENTS, 8)).astype(np.float32)
        self.documents[:, 0] = random.uniform(1, 1.5, DOCUMENTS)
        self.queries[::4, 0] = -30  # so all scores of these are negative

    def encode_query(self, texts: Sequence[str], **_: object) -> np.ndarray:
        return self.queries[[int(text) for text in texts]]

    def encode_document(self, texts: Sequence[str], **_: object) -> np.ndarray:
        return self.documents[[int(text) for text in texts]]

    def similarity(self, queries: np.ndarray, documents: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(queries) @ documents.T

    def similarity_pairwise(self, queries: np.ndarray, documents: torch.Tensor) -> torch.Tensor:
        return (torch.from_numpy(queries) * documents).sum(1)


class Pairs(dict[str, list[str]]):
    """What mining needs of a data set of the datasets library, which the tests do not install."""

    from_dict = dict

    @property
    def column_names(self) -> list[str]:
        return list(self)

    def __len__(self) -> int:
        return len(self["query"])

    def to_pandas(self) -> "Pairs":
        return self

    def groupby(self, _: str) -> "Pairs":
        return self

    def count(self) -> "Pairs":
        return self

    def to_dict(self) -> dict[str, dict[str, int]]:
        """The number of relevant passages of each query."""
        return {"relevant": {query: self["query"].count(query) for query in self["query"]}}


def chosen_by_sentence_transformers(
    model: Embedded, relevant: Mapping[int, Sequence[int]], selection: Selection
) -> dict[int, list[int]]:
    pairs = [(str(query), str(row)) for query, rows in relevant.items() for row in rows]
    first, last = selection.ranks.first - 1, selection.ranks.last
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_negatives, "is_datasets_available", lambda: True)
        patch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=Pairs))
        mined = hard_negatives.mine_hard_negatives(
            Pairs(query=[query for query, _ in pairs], relevant=[row for _, row in pairs]),
            model,
            corpus=[str(row) for row in range(DOCUMENTS)],
            range_min=first,
            range_max=last,
            num_negatives=last - first,
            relative_margin=selection.margin,
            verbose=False,
        )
    chosen: dict[int, list[int]] = {query: [] for query in relevant}
    for query, positive, negative in zip(mined["query"], mined["relevant"], mined["negative"], strict=True):
        if int(positive) == relevant[int(query)][0]:  # there is a triplet for each of them
            chosen[int(query)].append(int(negative))
    return chosen


def embed_and_judge(seed: int) -> tuple[Embedded, Results, dict[int, list[int]]]:
    """A model, its ranking of 50 documents, and two relevant documents for each query, not all of them ranked high.

    For a query with fewer relevant documents than another, sentence-transformers looks a little deeper than range_max.
    """
    model, random = Embedded(seed), np.random.default_rng(seed)
    scores = model.queries @ model.documents.T
    order = np.argsort(-scores, axis=1)
    relevant = {query: order[query, random.choice(40, 2, replace=False)].tolist() for query in range(QUERIES)}
    rows = order[:, :50]
    return model, Results(np.take_along_axis(scores, rows, 1), rows), relevant


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ranks", "margin"), [("1-20", None), ("4-20", None), ("7-7", None), ("1-20", 0), ("1-40", 0.05), ("1-30", 0.3)]
)
def test_each_setting_is_that_of_sentence_transformers(seed: int, ranks: str, margin: float | None) -> None:
    model, found, relevant = embed_and_judge(seed)
    selection = Selection(Ranks.parse(ranks), margin)
    depth = selection.ranks.last + 10  # as mining searches; some relevant documents are not found
    hard, removed = choose_negatives(Results(*(of[:, :depth] for of in found)), relevant, selection)
    assert as_lists(hard) == chosen_by_sentence_transformers(model, relevant, selection)
    assert hard.total > 10 and (removed > 10 or margin is None)


def test_both_settings_together_are_not_those_of_sentence_transformers() -> None:
    """There, range_min skips passages that the margin leaves."""
    model, found, relevant = embed_and_judge(seed=0)
    below, _ = choose_negatives(found, relevant, Selection(Ranks(1, 30), 0.05))
    theirs = chosen_by_sentence_transformers(model, relevant, Selection(Ranks(4, 30), 0.05))
    assert theirs == {query: rows[3:] for query, rows in as_lists(below).items()}
    best, _ = choose_negatives(found, relevant, Selection(Ranks(1, 3)))
    ours, _ = choose_negatives(found, relevant, Selection(Ranks(4, 30), 0.05))
    assert as_lists(ours) != theirs
    assert as_lists(ours) == {query: [row for row in rows if row not in best[query]] for query, rows in below.items()}
