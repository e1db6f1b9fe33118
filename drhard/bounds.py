"""Bounds on float32 scores, from products with codes: which documents can reach a score, and which do."""

from dataclasses import dataclass

from drhard.codes import GROUP

import numpy as np
import torch

COMPARED = 1024  # numbers that NumPy compares at a time
OF_FEW = 4  # times k documents give floors, each the best of a few
RANKED, RANKED_ON_GPU = 1 << 18, 1 << 22  # numbers that are ranked at a time


@dataclass(frozen=True)
class Bounds:
    """What products tell of scores: that of document d of group g is slope[g, q] * product[d, q] and a number between.

    Attributes:
        slope: (G, Q) float64, for each :data:`drhard.codes.GROUP` documents; positive.
        lower, upper: (G, Q) float64: the numbers between which the one that is added lies.
    """

    slope: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor

    def least_products(self, floors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return numbers (G, Q) of ``dtype``; only a greater product has a score that can reach ``floors`` (Q,)."""
        return _below((floors - self.upper) / self.slope, dtype)

    def floors(self, products: torch.Tensor, k: int) -> torch.Tensor:
        """Return a score (Q,) float64 that k or more documents reach; -inf if there are fewer.

        The best of each few documents take their place. The k-th best of them is nearly the k-th best of all.

        Args:
            products: (B, Q) of these groups. Documents with the least number of that type are never found.
        """
        if len(products) < k:
            return torch.full_like(self.lower[0], -torch.inf)
        few = 1
        while few < GROUP and len(products) >= 2 * few * OF_FEW * k:
            few *= 2
        best, floors = greatest_of(products, few), torch.empty_like(self.lower[0])
        size = max(1, (RANKED if best.device.type == "cpu" else RANKED_ON_GPU) // len(best))
        for first in range(0, len(floors), size):
            some = slice(first, first + size)
            slope, lower = (
                of[:, some].repeat_interleave(GROUP // few, dim=0)[: len(best)] for of in (self.slope, self.lower)
            )
            lower.add_(slope.mul_(best[:, some])).masked_fill_(best[:, some] == least_score(best.dtype), -torch.inf)
            floors[some] = lower.topk(k, dim=0).values[-1]
        return floors

    def of_pairs(self, products: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 bounds of the scores of pairs.

        Args:
            products: (n,).
            places: (n,) int64, which of all G * Q combinations of a group and a query.
        """
        slope, lower, upper = (of.view(-1).index_select(0, places) for of in (self.slope, self.lower, self.upper))
        score = products * slope
        return outwards(lower.add_(score), upper.add_(score))


def reach(products: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Return which ``products`` (B, Q) are greater than ``least``, (B, Q) bool.

    Args:
        least: (G, Q) of the same type, for each :data:`drhard.codes.GROUP` documents.
    """
    queries = products.shape[1]
    whole = len(products) // GROUP * GROUP
    mask = torch.empty(products.shape, dtype=torch.bool, device=products.device)
    together = 1  # rows of products: NumPy compares many numbers at a time much faster
    while products.is_contiguous() and together < GROUP and 2 * together * queries <= COMPARED:
        together *= 2
    if whole:
        shape = whole // GROUP, -1, together * queries
        least_of_rows = least[: whole // GROUP, None].repeat(1, 1, together)
        _greater(products[:whole].view(shape), least_of_rows, mask[:whole].view(shape))
    if whole < len(products):
        _greater(products[whole:], least[-1:], mask[whole:])
    return mask


def count_true(mask: torch.Tensor) -> int:
    """Return how many of ``mask`` are true."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())


def places_of(mask: torch.Tensor) -> torch.Tensor:
    """Return the places of ``mask`` that are true, flattened. NumPy finds them in a third of torch's time on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero()[:, 0]


def numbers_at(numbers: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the ``numbers`` (B, Q) at ``places`` (n,), which count through all of them."""
    if numbers.is_contiguous():  # on a GPU, they may be a part of what it has multiplied
        return numbers.view(-1).index_select(0, places)
    return numbers[places // numbers.shape[1], places % numbers.shape[1]]


def least_score(dtype: torch.dtype) -> float:
    """Return a score that no document has."""
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def outwards(lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 bounds below ``lower`` and above ``upper``, both float64."""
    return _round(lower, -torch.inf), _round(upper, torch.inf)


def _below(least: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return thresholds of ``dtype``, each below its number of ``least``, float64, but not below the least score."""
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return (least.ceil() - 1).clamp(limits.min, limits.max).to(dtype)
    return _round(least, -torch.inf)


def _round(numbers: torch.Tensor, towards: float) -> torch.Tensor:
    """Return float32 numbers that are beyond ``numbers``, float64, in the direction of an infinite number."""
    rounded = numbers.to(torch.float32)
    return torch.nextafter(rounded, rounded.new_full((), towards))


def greatest_of(numbers: torch.Tensor, few: int) -> torch.Tensor:
    """Return the greatest of each few ``numbers`` (B, Q), in shape (B // few, Q)."""
    if few == 1:
        return numbers
    whole = len(numbers) // few
    numbers = numbers[: whole * few].view(whole, few, numbers.shape[1])
    if numbers.device.type == "cpu":
        return torch.from_numpy(numbers.numpy().max(axis=1))
    return numbers.amax(dim=1)


def _greater(numbers: torch.Tensor, least: torch.Tensor, mask: torch.Tensor) -> None:
    """Fill ``mask`` with ``numbers > least``. NumPy compares in a third of torch's time on a CPU core."""
    if mask.device.type == "cpu":
        np.greater(numbers.numpy(), least.numpy(), out=mask.numpy())
    else:
        torch.gt(numbers, least, out=mask)
