"""Guess the score that the k-th best document of a query has, from a sample of the documents."""

import math
from collections.abc import Callable

from drhard.bounds import greatest_of
from drhard.codes import GROUP, Codes
from drhard.cores import Map
from drhard.rounded import RoundedQueries

import numpy as np
import torch

SAMPLED = 32  # one document in so many is in the sample
FAR_OFF, MORE = 4, 3  # standard deviations, and ranks, that the rank of the guess is worse than expected
# The guess is lower by so many times the width of a score, divided by the root of the dimensions. What rounding lost in
# each of them is random, so scores by codes are hardly further off. For 768 dimensions this is a ninth of the width.
SLACK = 3
OF_FEW = 8  # times as many documents as are ranked are each the best of a few
AT_ONCE, AT_ONCE_ON_GPU = 1 << 18, 1 << 25  # scores; those of a CPU core stay in its cache


class Sample:
    """Some of the documents, from which the floors of queries are guessed.

    Args:
        codes: of all documents.
        absent: (n,) int64 positions of those that are left out, ascending.
    """

    def __init__(self, codes: Codes, absent: np.ndarray):
        positions = np.setdiff1d(np.arange(SAMPLED // 2, len(codes.values), SAMPLED), absent)
        np.random.default_rng(0).shuffle(positions)  # documents that are alike often follow each other
        self._share = len(positions) / max(1, len(codes.values) - len(absent))
        chosen = torch.from_numpy(positions).to(codes.values.device)
        self._values = codes.values.index_select(0, chosen)
        self._scale = codes.scale.index_select(0, chosen // GROUP).to(torch.float32)[:, None]
        self._lost, self._norm = codes.lost.median(), codes.norm.median()

    def guess(self, queries: RoundedQueries, k: int, on_cores: Map = map) -> torch.Tensor | None:
        """Return scores (Q,) float64 that k of all documents reach, very probably; None if the sample is too small.

        The sample has a known share of the k best, with the standard deviation of a Poisson distribution.

        Args:
            on_cores: parts of the sample are scored with it.
        """
        expected = k * self._share
        rank = math.ceil(expected + FAR_OFF * math.sqrt(expected) + MORE)
        at_once = (AT_ONCE if self._values.device.type == "cpu" else AT_ONCE_ON_GPU) // len(queries)

        def score(part: slice) -> torch.Tensor:
            return queries.multiply(self._values[part]) * self._scale[part]

        floors = guess_floors(score, len(self._values), rank, at_once, on_cores)
        share = SLACK / math.sqrt(self._values.shape[1])
        return None if floors is None else queries.scores_below(floors, self._lost, self._norm, share)


def guess_floors(
    scores: Callable[[slice], torch.Tensor], count: int, rank: int, at_once: int, on_cores: Map = map
) -> torch.Tensor | None:
    """Return the score (Q,) that has about ``rank`` in a sample; None if the sample is smaller.

    The best of each few documents take their place, which is much faster. So the score is somewhat too low.

    Args:
        scores: returns those of a part of the sample, (B, Q).
        count: size of the sample.
        at_once: size of a part.
        on_cores: parts are scored with it.
    """
    if rank > count:
        return None
    few = max(1, count // (OF_FEW * rank))
    step = max(1, at_once // few) * few
    best, parts = None, range(0, count, step)

    def score(first: int) -> torch.Tensor:
        return greatest_of(scores(slice(first, first + step)), few)

    for first, of_part in zip(parts, on_cores(score, parts), strict=True):
        if best is None:  # one array: small ones, kept between the large ones of the parts, would fragment the memory
            best = of_part.new_empty(count // few, of_part.shape[1])
        best[first // few :][: len(of_part)] = of_part
    return None if best is None else best.topk(rank, dim=0).values[-1]
