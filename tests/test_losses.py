"""The losses and the candidates of ADORE against plain loops over the formulas."""

import math

from drhard.adore import Candidates, measure_retrieval
from drhard.losses import adore_loss, pairwise_loss
from drhard.sampling import TrainingDataset
from drhard.strategies import STRATEGIES, AnyDocument, Strategy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

SLOW_MACHINE = settings(deadline=None, max_examples=60)
SEEDS = st.integers(0, 2**32 - 1)


def plain_pairwise_loss(scores: np.ndarray, positive: np.ndarray, negatives: np.ndarray) -> float:
    """-log softmax([s+, s])[0] for each query and each of its negatives; sum divided by their number."""
    terms = []
    for query in range(scores.shape[0]):
        for document in range(scores.shape[1]):
            if negatives[query, document]:
                pair = [math.exp(scores[query, positive[query]]), math.exp(scores[query, document])]
                terms.append(-math.log(pair[0] / sum(pair)))
    return sum(terms) / len(terms) if terms else 0.0


def plain_adore_loss(lists: list[list[tuple[float, bool]]], metric_cut: int | None) -> float:
    """Lists of (score, relevant), best first: the mean over pairs of each query, summed over the queries."""
    total = 0.0
    for entries in lists:

        def gain(rank: int) -> float:
            return 1 / rank if metric_cut is None or rank <= metric_cut else 0.0

        terms = [
            abs(gain(rank_i) - gain(rank_j)) * math.log(1 + math.exp(score_j - score_i))
            for rank_i, (score_i, relevant_i) in enumerate(entries, start=1)
            for rank_j, (score_j, relevant_j) in enumerate(entries, start=1)
            if relevant_i and not relevant_j
        ]
        total += sum(terms) / len(terms) if terms else 0.0
    return total


def star_problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    queries, hard = random.integers(1, 6), random.integers(0, 3)
    documents = queries * (1 + hard)
    scores = torch.from_numpy(random.normal(scale=3, size=(queries, documents)))
    negatives = torch.from_numpy(random.random((queries, documents)) < 0.7)
    return scores, torch.arange(queries), negatives


@SLOW_MACHINE
@given(SEEDS)
def test_pairwise_loss_is_the_formula(seed: int) -> None:
    scores, positive, negatives = star_problem(seed)
    expected = plain_pairwise_loss(scores.numpy(), positive.numpy(), negatives.numpy())
    assert pairwise_loss(scores, positive, negatives).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@SLOW_MACHINE
@given(SEEDS)
def test_pairwise_loss_needs_differences_only(seed: int) -> None:
    scores, positive, negatives = star_problem(seed)
    shift = torch.linspace(-5, 5, len(scores), dtype=scores.dtype)[:, None]
    shifted = pairwise_loss(scores + shift, positive, negatives)
    assert shifted.item() == pytest.approx(pairwise_loss(scores, positive, negatives).item(), rel=1e-4, abs=1e-5)


def test_pairwise_loss_without_negatives_is_zero() -> None:
    scores = torch.randn(3, 3, requires_grad=True)
    loss = pairwise_loss(scores, torch.arange(3), torch.zeros(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


def test_pairwise_loss_of_equal_scores_is_log_two() -> None:
    loss = pairwise_loss(torch.zeros(2, 4), torch.arange(2), ~torch.eye(2, 4, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(2))


def test_pairwise_loss_works_in_float32() -> None:
    # In half precision 2048 and 2049 are one number; the difference of scores is what counts.
    scores = torch.tensor([[0.0, 11.0]], dtype=torch.bfloat16)
    loss = pairwise_loss(scores, torch.tensor([0]), torch.tensor([[False, True]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(11)), rel=1e-6)


def test_pairwise_gradient_pushes_positive_up_and_negatives_down() -> None:
    scores = torch.tensor([[100.0, -200.0, 300.0]], requires_grad=True)
    pairwise_loss(scores, torch.tensor([0]), torch.tensor([[False, True, True]])).backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0, 0] < 0 < scores.grad[0, 2]
    assert scores.grad.sum().item() == pytest.approx(0, abs=1e-6)


def plain_strategy_loss(
    strategy: Strategy,
    batch: list[tuple[int, int, list[int]]],
    relevant: dict[int, list[int]],
    score: dict[tuple[int, int], float],
) -> float:
    """A strategy's loss from the paper's words: a batch of (query, positive, negatives drawn), looped over twice."""
    terms = []
    for query, positive, drawn in batch:
        own = [document for document in drawn if document not in relevant[query]]
        others = []
        for _, other_positive, other_drawn in batch:
            others += [other_positive, *other_drawn]
        others = [document for document in others if document not in relevant[query]]
        for document in others if strategy.in_batch else own:
            terms.append(math.log(1 + math.exp(score[query, document] - score[query, positive])))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("strategy", [one for one in STRATEGIES.values() if type(one).mask is Strategy.mask], ids=str)
@SLOW_MACHINE
@given(SEEDS)
def test_each_strategy_is_a_double_loop_over_its_negatives(strategy: Strategy, seed: int) -> None:
    random = np.random.default_rng(seed)
    count, documents, drawn = 6, 9, strategy.count_drawn(int(random.integers(1, 4)))
    # So few documents that positives, drawn ones and judged ones meet in every batch.
    relevant = {q: random.choice(documents, random.integers(1, 3), replace=False).tolist() for q in range(count)}
    hard = {q: [d for d in range(documents) if d not in relevant[q]] for q in range(count)}
    scores = random.normal(scale=2, size=(count, documents))
    data = TrainingDataset(relevant, hard if strategy.mined else AnyDocument(documents), drawn, seed)
    examples = [data[index] for index in random.choice(count, 4, replace=False)]

    rows = [example.positive for example in examples] + [row for example in examples for row in example.drawn]
    table = torch.from_numpy(scores[[example.query for example in examples]][:, rows])
    mask = strategy.mask(examples, relevant)
    loss = pairwise_loss(table, torch.arange(len(examples)), torch.from_numpy(mask)).item()

    batch = [(example.query, example.positive, list(example.drawn)) for example in examples]
    score = {(q, d): scores[q, d] for q in range(count) for d in range(documents)}
    assert loss == pytest.approx(plain_strategy_loss(strategy, batch, relevant, score), rel=1e-5, abs=1e-6)


def adore_problem(seed: int) -> tuple[list[list[tuple[float, bool]]], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lists of different lengths, as plain lists and as padded tensors with noise where nothing is listed."""
    random = np.random.default_rng(seed)
    width = random.integers(2, 9)
    lists = []
    scores = torch.from_numpy(random.normal(scale=3, size=(4, width))).float()
    relevant = torch.from_numpy(random.random((4, width)) < 0.3)
    listed = torch.zeros(4, width, dtype=torch.bool)
    for query, length in enumerate(random.integers(1, width + 1, 4)):
        listed[query, :length] = True
        lists.append(list(zip(scores[query, :length].tolist(), relevant[query, :length].tolist(), strict=True)))
    return lists, scores, relevant, listed


@SLOW_MACHINE
@given(SEEDS, st.one_of(st.none(), st.integers(1, 9)))
def test_adore_loss_is_the_formula(seed: int, metric_cut: int | None) -> None:
    lists, scores, relevant, listed = adore_problem(seed)
    expected = plain_adore_loss(lists, metric_cut)
    assert adore_loss(scores, relevant, listed, metric_cut).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@SLOW_MACHINE
@given(SEEDS)
def test_adore_loss_needs_differences_only(seed: int) -> None:
    _, scores, relevant, listed = adore_problem(seed)
    shifted = adore_loss(scores + torch.tensor([[3.0], [-2.0], [1.0], [0.0]]), relevant, listed, 5)
    assert shifted.item() == pytest.approx(adore_loss(scores, relevant, listed, 5).item(), rel=1e-3, abs=1e-5)


@SLOW_MACHINE
@given(SEEDS, st.integers(1, 9))
def test_adore_loss_sums_over_queries(seed: int, metric_cut: int) -> None:
    _, scores, relevant, listed = adore_problem(seed)
    apart = sum(
        adore_loss(*(part[query : query + 1] for part in (scores, relevant, listed)), metric_cut).item()
        for query in range(len(scores))
    )
    assert adore_loss(scores, relevant, listed, metric_cut).item() == pytest.approx(apart, rel=1e-4, abs=1e-6)


def test_adore_loss_without_relevant_or_without_others_is_zero() -> None:
    listed = torch.ones(2, 3, dtype=torch.bool)
    relevant = torch.tensor([[True] * 3, [False] * 3])
    scores = torch.randn(2, 3, requires_grad=True)
    loss = adore_loss(scores, relevant, listed, 3)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad.any()


def test_adore_pairs_beyond_the_cut_weigh_nothing() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]], requires_grad=True)
    relevant = torch.tensor([[False, False, True, False]])
    adore_loss(scores, relevant, torch.ones(1, 4, dtype=torch.bool), metric_cut=2).backward()
    assert scores.grad[0, 3] == 0  # both it and the relevant one count 0
    assert (scores.grad[0, :2] > 0).all()


def test_adore_gradients_are_finite_for_extreme_scores() -> None:
    scores = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    relevant = torch.tensor([[False, True, False]])
    loss = adore_loss(scores, relevant, torch.ones(1, 3, dtype=torch.bool), None)
    loss.backward()
    # |1/2 - 1/1| (1e4 + 1e4) and |1/2 - 1/3| (0 + 1e4), the mean of the two pairs
    assert loss.item() == pytest.approx((0.5 * 2e4 + 1e4 / 6) / 2, rel=1e-5)
    assert torch.isfinite(scores.grad).all()


@SLOW_MACHINE
@given(SEEDS)
def test_candidates_append_relevant_ones_where_none_was_retrieved(seed: int) -> None:
    random = np.random.default_rng(seed)
    topk = random.integers(1, 6)
    retrieved = np.stack([random.permutation(12)[:topk] for _ in range(5)])
    relevant = [random.permutation(12)[: random.integers(1, 5)].tolist() for _ in range(5)]
    candidates = Candidates(retrieved, relevant)
    for query in range(5):
        expected = retrieved[query].tolist()
        if not set(expected) & set(relevant[query]):
            expected = expected + relevant[query]
        listed = candidates.listed[query]
        assert candidates.rows[query][listed].tolist() == expected
        assert not listed[len(expected) :].any()
        assert candidates.relevant[query][listed].tolist() == [row in relevant[query] for row in expected]
        assert not candidates.relevant[query][~listed].any()


def test_relevant_one_behind_the_list_has_the_rank_of_its_place() -> None:
    """None of two retrieved: the relevant document stands in rank 3, within a cut of 3, beyond one of 2."""
    candidates = Candidates(np.array([[7, 8]]), [[5]])
    scores = torch.tensor([[2.0, 1.0, 0.0]])
    relevant, listed = torch.from_numpy(candidates.relevant), torch.from_numpy(candidates.listed)
    terms = [math.log(1 + math.exp(2)), math.log(1 + math.exp(1))]
    expected_3 = ((1 - 1 / 3) * terms[0] + (1 / 2 - 1 / 3) * terms[1]) / 2
    expected_2 = (1 * terms[0] + 1 / 2 * terms[1]) / 2
    assert adore_loss(scores, relevant, listed, 3).item() == pytest.approx(expected_3, rel=1e-5)
    assert adore_loss(scores, relevant, listed, 2).item() == pytest.approx(expected_2, rel=1e-5)


@SLOW_MACHINE
@given(SEEDS)
def test_retrieval_quality_by_hand(seed: int) -> None:
    random = np.random.default_rng(seed)
    topk = random.integers(1, 15)
    retrieved = np.stack([random.permutation(20)[:topk] for _ in range(4)])
    relevant = [random.permutation(20)[: random.integers(1, 5)].tolist() for _ in range(4)]
    reciprocal, recall = [], []
    for rows, wanted in zip(retrieved.tolist(), relevant, strict=True):
        ranks = [rank for rank, row in enumerate(rows[:10], start=1) if row in wanted]
        reciprocal.append(1 / ranks[0] if ranks else 0)
        recall.append(len(ranks) / len(wanted))
    mrr_10, recall_10 = measure_retrieval(retrieved, relevant)
    assert mrr_10 == pytest.approx(sum(reciprocal) / 4)
    assert recall_10 == pytest.approx(sum(recall) / 4)
