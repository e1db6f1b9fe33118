"""Queries to multiply with documents in int8 codes, and how far their scores may be from those of float32."""

from typing import Protocol

from drhard.codes import UNIT, CodedBlock, count_levels
from drhard.products import as_filters, has_fast_int8, int8_products, products
from drhard.sieve import Bounds

import torch

CONVERTED = 8192  # codes of documents that become float32 at a time; they stay in the cache
SHIFT = 128  # codes of the second part of a query stand for 1 / 128 of those of the first


class Multiplier(Protocol):
    """Queries that can be multiplied with codes.

    Attributes:
        unit: (Q,) float64: what 1 in a product stands for, for codes of scale 1.
        error: (Q,) float64: at most so many times |scale * c| is the product with a document's codes c off.
    """

    unit: torch.Tensor
    error: torch.Tensor

    def multiply(self, values: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """Return the products (B, Q) int32 or float32 with the codes of documents ``values`` (B, dim) int8.

        Args:
            first: (B, Q) what the same queries in one part gave, if they have two. It is not computed again.
        """


class FloatQueries:
    """Queries in float32. The codes become float32 too, tile by tile: for processors that are slow with int8.

    Args:
        queries: (Q, dim) float32.
    """

    def __init__(self, queries: torch.Tensor):
        self._filters = as_filters(queries)
        self.unit = torch.ones(len(queries), dtype=torch.float64, device=queries.device)
        self.error = norms_of(queries) * float32_error(queries.shape[1])

    def multiply(self, values: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """See :meth:`Multiplier.multiply`."""
        return torch.cat([products(part.to(torch.float32), self._filters) for part in values.split(CONVERTED)])


class CodedQueries:
    """Queries in int8 codes, of one part or two. The second part holds what rounding the first one lost.

    Args:
        queries: (Q, dim) float32.
        parts: 1 or 2. The error of two is 1 / 128 of that of one.
    """

    def __init__(self, queries: torch.Tensor, parts: int):
        levels = count_levels(queries.shape[1])
        exact = queries.to(torch.float64)
        greatest = exact.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        unit = greatest / levels
        first = (exact / unit).round()
        codes = [first.to(torch.int8)]
        lost = exact - first * unit
        if parts == 2:
            unit = unit / SHIFT
            second = (lost / unit).round()  # at most SHIFT / 2
            codes.append(second.to(torch.int8))
            lost = lost - second * unit
        self._codes = torch.cat(codes)  # one product with all of them is faster than one with each
        self.unit = unit[:, 0]
        self.error = torch.linalg.vector_norm(lost, dim=1)

    def multiply(self, values: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """See :meth:`Multiplier.multiply`.

        Those of one part are below 2^24. The two parts of a number are together at most 128 times the largest code, so
        their products are below 2^31.
        """
        queries = len(self.unit)
        if first is not None:
            return int8_products(values, self._codes[queries:]).add_(first, alpha=SHIFT)
        found = int8_products(values, self._codes)
        if len(self._codes) == queries:
            return found
        return torch.add(found[:, queries:], found[:, :queries], alpha=SHIFT)


def float32_error(dim: int) -> float:
    """Return g, so that a sum of ``dim`` products in float32, in any order, is at most g |q| |d| off."""
    return (dim + 2) * UNIT


def norms_of(vectors: torch.Tensor) -> torch.Tensor:
    """Return the norms (N,) float64 of ``vectors`` (N, dim)."""
    norms: torch.Tensor = torch.linalg.vector_norm(vectors.to(torch.float64), dim=1)
    return norms


class RoundedQueries:
    """Queries, and all that a bound on their scores needs.

    Args:
        queries: (Q, dim) float32, finite.
        mean: (dim,) float32, that of the codes.
        parts: 1 or 2: with how many parts the queries are coded, where int8 is fast.

    Attributes:
        parts: with how many they are coded; 1 where they are not, but multiplied in float32.
    """

    def __init__(self, queries: torch.Tensor, mean: torch.Tensor, parts: int):
        fast = has_fast_int8(queries.device)
        self.parts = parts if fast else 1
        self._multiplier: Multiplier = CodedQueries(queries, parts) if fast else FloatQueries(queries)
        self._norms = norms_of(queries)
        exact = mean.to(torch.float64)
        self._offset = queries.to(torch.float64) @ exact  # (Q,) the score of the mean
        self._mean_norm = float(torch.linalg.vector_norm(exact))
        self._float32_error = float32_error(queries.shape[1])
        self._underflow = queries.shape[1] * torch.finfo(torch.float32).tiny  # each product may lose so much

    def multiply(self, values: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
        """See :meth:`Multiplier.multiply`."""
        return self._multiplier.multiply(values, first)

    def bounds(self, block: CodedBlock) -> Bounds:
        """Return what the products with ``block`` tell of its float32 scores.

        The width covers what rounding to codes lost, and the rounding of the float32 score itself.
        """
        rounding = self._float32_error * (self._mean_norm + block.norm + block.lost)
        width = torch.outer(block.lost + rounding, self._norms) + torch.outer(block.norm, self._multiplier.error)
        width += self._underflow
        return Bounds(
            slope=block.scale[:, None] * self._multiplier.unit,
            offset=self._offset,
            width=torch.nan_to_num(width * (1 + 1e-9), nan=torch.inf, posinf=torch.inf),
        )
