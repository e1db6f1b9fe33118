"""The losses of STAR and ADORE, as pure functions of scores."""

import torch
from torch.nn import functional


def pairwise_loss(scores: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Return the pairwise softmax loss over the documents of a batch (sections 3.2 and 4.1 of the paper).

    STAR and its baselines differ only in ``negatives``; see :meth:`drhard.strategies.Strategy.mask`. The term for
    query i, its positive d+ and a negative d is ``-log softmax([s(i, d+), s(i, d)])[0]``, which is
    ``log(1 + exp(s(i, d) - s(i, d+)))``. As published, the sum of all terms is divided by their number.

    Args:
        scores: (B, D) query-document inner products, converted to float32 first.
        positive: (B,) int64, the column of each query's positive.
        negatives: (B, D) bool, which documents are negatives of which query.

    Returns:
        The loss; 0 without any negative.
    """
    scores = scores.float()
    margins = scores - scores.gather(1, positive[:, None])  # (B, D)
    terms = functional.softplus(margins) * negatives
    return terms.sum() / negatives.sum().clamp(min=1)


def adore_loss(
    scores: torch.Tensor, relevant: torch.Tensor, listed: torch.Tensor, metric_cut: int | None = None
) -> torch.Tensor:
    """Return LambdaLoss on retrieved lists with MRR as the metric (section 4.2 of the paper).

    Ranks r start at 1. Beyond ``metric_cut``, 1/r counts as 0. The loss of a query is the mean of
    ``|1/r_i - 1/r_j| * log(1 + exp(s_j - s_i))`` over all pairs of a relevant document i and another document j.

    Args:
        scores: (Q, C) of the listed documents with the current query embeddings, in the order of the list.
        relevant: (Q, C) bool. The masks may be on the CPU when the scores are on a GPU, so that nobody waits for it.
        listed: (Q, C) bool, False behind the end of a list shorter than C.
        metric_cut: None for no cut. Published: without a cut every weight was 0, and so was the loss.

    Returns:
        The sum over the queries.
    """
    scores = scores.float()
    ranks = torch.arange(1, scores.shape[1] + 1, device=relevant.device)
    gains = 1 / ranks.float()  # (C,)
    if metric_cut is not None:
        gains = gains * (ranks <= metric_cut)
    relevant, others = relevant & listed, ~relevant & listed
    query, place = relevant.nonzero(as_tuple=True)  # (R,) one row for each relevant document of each list
    weights = (gains[place][:, None] - gains[None, :]).abs() * others[query]  # (R, C)
    pairs = (relevant.sum(1) * others.sum(1))[query].clamp(min=1)  # (R,)
    query, place, weights, pairs = (
        part.to(scores.device, non_blocking=True) for part in (query, place, weights, pairs)
    )
    margins = scores[query] - scores[query, place][:, None]  # (R, C)
    terms = (functional.softplus(margins) * weights).sum(1) / pairs
    return terms.sum()
