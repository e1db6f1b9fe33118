"""Collect the documents that can be among the k best of each query, from scores that are known to within a width."""

import threading
from dataclasses import dataclass

from drhard.codes import GROUP

import numpy as np
import torch

QUERY_BITS = 32  # where the query stands in the whole numbers by which documents are sorted
OF_FEW = 4  # times k documents give the first floors, each the best of a few
FOUND = 96  # bytes of a document while it is added
SIEVED = 8 + 8 + 4 + 4  # bytes of a document that may be among the best: query, row, bounds


@dataclass(frozen=True)
class Bounds:
    """What products tell of scores: slope[g, q] * product[d, q] + offset[q] ± width[g, q] for document d of group g.

    Attributes:
        slope, width: (G, Q) float64, for each :data:`drhard.codes.GROUP` documents; slope is positive.
        offset: (Q,) float64.
    """

    slope: torch.Tensor
    offset: torch.Tensor
    width: torch.Tensor


class Sieve:
    """The rows whose score can be among a query's k best.

    A lower and an upper bound are known of the score of each document. The k-th greatest lower bound of a query is its
    floor: at least k documents are as good. A document whose upper bound is below the floor is therefore none of the k
    best, whatever its score is. All others are kept.

    Args:
        queries, k: their numbers.
        device: where the scores are.
        lock: held while documents are merged. Sieves that share it merge one at a time, for their memory.

    Attributes:
        floors: (Q,) float64; -inf until k documents are known.
        kept: the number of documents kept at the last merge, all queries together.
    """

    def __init__(self, queries: int, k: int, device: torch.device, lock: threading.Lock):
        self._k, self._lock = k, lock
        self.floors = torch.full((queries,), -torch.inf, dtype=torch.float64, device=device)
        self.kept = 0
        self._known = False  # whether there are floors
        self._waiting: list[tuple[torch.Tensor, ...]] = []  # query, row, lower bound, upper bound
        self._count = 0  # documents that wait or are kept

    def add(
        self, products: torch.Tensor, rows: torch.Tensor, bounds: Bounds, groups: torch.Tensor | None = None
    ) -> None:
        """Add documents.

        Args:
            products: (B, Q) int32 or float32. Documents with the least number of that type are never found.
            rows: (B,) int64.
            groups: (B,) int64: their places in ``bounds``. None: each :data:`drhard.codes.GROUP` of them are one.
        """
        if groups is None and not self._known and len(products) >= self._k:
            self._raise_floors(products, bounds)
        hits = self._find(products, bounds, groups)
        if len(hits) == 0:
            return
        queries = products.shape[1]
        document, query = hits // queries, hits % queries
        group = document // GROUP if groups is None else groups.index_select(0, document)
        of_group = group * queries + query
        slope, width = (of.view(-1).index_select(0, of_group) for of in (bounds.slope, bounds.width))
        whole = products.is_contiguous()  # on a GPU, they may be a part of what it has multiplied
        value = products.view(-1).index_select(0, hits) if whole else products[document, query]
        value = value * slope + bounds.offset.index_select(0, query)
        lower, upper = _round_down(value - width), -_round_down(-value - width)
        found = query, rows.index_select(0, document), lower, upper
        with self._lock:
            self._waiting.append(found)
            self._count += len(hits)
            if self._count - self.kept >= max(self.kept, len(self.floors) * self._k):
                self._merge()

    def sift(self, products: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        """Return the places (n,) int64, ascending, of the documents that can be among the best of any query.

        Args:
            products: (B, Q), as in :meth:`add`.
        """
        reached = torch.zeros(len(products), dtype=torch.bool, device=products.device)
        reached[self._find(products, bounds) // products.shape[1]] = True
        return _places(reached)

    def _raise_floors(self, products: torch.Tensor, bounds: Bounds) -> None:
        """Raise the floors to what the first documents alone give.

        The best of each few documents take their place. The k-th best of them is nearly the k-th best of all.
        """
        few = 1
        while few < GROUP and len(products) >= 2 * few * OF_FEW * self._k:
            few *= 2
        whole = len(products) // few
        best = _greatest_of(products[: whole * few].view(whole, few, -1))
        slope, width = (of.repeat_interleave(GROUP // few, dim=0)[:whole] for of in (bounds.slope, bounds.width))
        lower = best * slope + (bounds.offset - width)
        lower = torch.where(best == least_score(products.dtype), -torch.inf, lower)
        floors = lower.topk(self._k, dim=0).values[-1]
        with self._lock:
            self.floors, self._known = self.floors.maximum(floors), True

    def _find(self, products: torch.Tensor, bounds: Bounds, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Return the places in ``products``, flattened, of those that can reach the floors, ascending."""
        below = _below((self.floors - bounds.width - bounds.offset) / bounds.slope, products.dtype)
        if groups is not None:
            return _places(products > below.index_select(0, groups))
        whole = len(products) // GROUP * GROUP
        mask = torch.empty(products.shape, dtype=torch.bool, device=products.device)
        for part, of_groups in (slice(0, whole), below[: whole // GROUP, None]), (slice(whole, None), below[-1:, None]):
            if len(products[part]):
                numbers, reached = (of.view(len(of_groups), -1, of.shape[1]) for of in (products[part], mask[part]))
                _greater(numbers, of_groups, reached)
        return _places(mask)

    def merge(self) -> None:
        """Drop the documents that are below the floors of all documents added so far."""
        with self._lock:
            self._merge()

    def _merge(self) -> None:
        """Drop the documents that are below the floors of all documents added so far.

        A GPU is waited for once, or twice as long as a query has no floor.
        """
        if not self._waiting:
            return
        query, row, lower, upper = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        keys = _sort(_encode(query, lower))
        bounds = torch.arange(len(self.floors) + 1, device=query.device) << QUERY_BITS
        starts = torch.searchsorted(keys, bounds)
        kth = _decode(keys[(starts[:-1] + self._k - 1).clamp_max(len(keys) - 1)])
        enough = starts.diff() >= self._k
        self.floors = torch.where(enough, self.floors.maximum(kth.to(torch.float64)), self.floors)
        self._known = self._known or bool(enough.all())
        alive = _places(upper >= self.floors[query])
        self._waiting = [tuple(part.index_select(0, alive) for part in (query, row, lower, upper))]
        self.kept = self._count = len(alive)

    def rows(self) -> torch.Tensor:
        """Return the rows (n,) int64 of the documents that wait or are kept, in no order."""
        none = torch.empty(0, dtype=torch.int64, device=self.floors.device)
        return torch.cat([none, *(row for _, row, _, _ in self._waiting)])

    def found(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the query and the row of each document that is kept, both (n,) int64, by query, then by row."""
        self.merge()
        if not self._waiting:
            return (torch.empty(0, dtype=torch.int64, device=self.floors.device),) * 2
        query, row, _, _ = self._waiting[0]
        count = int(row.max()) + 1
        pairs = _sort(query * count + row)
        return pairs // count, pairs % count


def _encode(query: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Return whole numbers (n,) int64 that ascend by query, and within a query from the greatest lower bound on.

    Sorting whole numbers is several times as fast as sorting places by two keys.
    """
    bits = lower.view(torch.int32).to(torch.int64)
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # as the float32 numbers do
    return (query << QUERY_BITS) + (0x7FFFFFFF - ascending)


def best_of_pairs(
    scores: torch.Tensor, rows: torch.Tensor, k: int, best: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores and the rows, both (Q, K), of the best documents, up to ``k``; a tie goes to the smaller row.

    Args:
        scores: (Q, B) float32.
        rows: (B,) int64, below 2^31.
        best: what this function returned for other documents.
    """
    keys = _encode_with_row(scores, rows)
    if best is not None:
        keys = torch.cat([_encode_with_row(*best), keys], dim=1)
    keys = keys.topk(min(k, keys.shape[1]), dim=1, largest=False).values  # ascending, and all differ
    return _decode(keys >> 31), keys & 0x7FFFFFFF


def _encode_with_row(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return whole numbers that ascend from the greatest score on, and for equal scores from the smallest row on."""
    none = torch.zeros((), dtype=torch.int64, device=scores.device)
    return (_encode(none, scores + 0.0) << 31) + rows


def order_by_score(query: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Return the stable order (n,) int64 by query, and within a query from the greatest ``score`` (n,) float32 on."""
    keys = _encode(query, score + 0.0)  # -0 and 0 are equal
    if keys.device.type == "cpu":
        return torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))
    return keys.argsort(stable=True)


def _decode(numbers: torch.Tensor) -> torch.Tensor:
    """Return the lower bounds (n,) float32 of what :func:`_encode` returned."""
    ascending = 0x7FFFFFFF - (numbers & 0xFFFFFFFF)
    return torch.where(ascending < 0, ascending ^ 0x7FFFFFFF, ascending).to(torch.int32).view(torch.float32)


def least_score(dtype: torch.dtype) -> float:
    """Return a score that no document has."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _below(least: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return thresholds of ``dtype``, each below its number of ``least``, float64, but not below the least score."""
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return (least.ceil() - 1).clamp(limits.min, limits.max).to(dtype)
    return _round_down(least)


def _round_down(numbers: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers that are below ``numbers``, float64."""
    rounded = numbers.to(torch.float32)
    return torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))


def _greater(numbers: torch.Tensor, least: torch.Tensor, mask: torch.Tensor) -> None:
    """Fill ``mask`` with ``numbers > least``. NumPy compares in a third of torch's time on a CPU core."""
    if mask.device.type == "cpu":
        np.greater(numbers.numpy(), least.numpy(), out=mask.numpy())
    else:
        torch.gt(numbers, least, out=mask)


def _greatest_of(numbers: torch.Tensor) -> torch.Tensor:
    """Return the greatest of each few ``numbers`` (B, few, Q), in shape (B, Q)."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(numbers.numpy().max(axis=1))
    return numbers.amax(dim=1)


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Return the places of ``mask`` that are true, flattened. NumPy finds them in a third of torch's time on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero()[:, 0]


def _sort(numbers: torch.Tensor) -> torch.Tensor:
    """Return whole numbers (n,) in ascending order. NumPy sorts them in a fraction of torch's time on a CPU."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.sort(numbers.numpy()))
    return numbers.sort().values
