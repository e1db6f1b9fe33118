"""Queries to multiply with documents in int8 codes, and how far their scores may be from those of float32."""

from dataclasses import dataclass
from typing import Protocol

from drhard.bounds import Bounds
from drhard.codes import GROUP, UNIT, CodedBlock, Codes, count_levels
from drhard.pairs import multiply_pairs
from drhard.products import as_filters, has_fast_int8, int8_products, products

import torch

CONVERTED = 4096  # codes of documents that become float32 at a time; they stay in the cache
PAIRS, NUMBERS_ON_GPU = 1 << 10, 1 << 26  # pairs of a query and a document at a time, or numbers of their documents


class Multiplier(Protocol):
    """Queries that can be multiplied with codes.

    Attributes:
        unit: (Q,) float64: what 1 in a product stands for, for codes of scale 1.
        error: (Q,) float64: at most so many times |scale * c| is the product with a document's codes c off.
        dtype: of the products.
    """

    unit: torch.Tensor
    error: torch.Tensor
    dtype: torch.dtype

    def multiply(self, values: torch.Tensor) -> torch.Tensor:
        """Return the products (B, Q) int32 or float32 with the codes of documents ``values`` (B, dim) int8."""


class FloatQueries:
    """Queries in float32. The codes become float32 too, tile by tile: for processors that are slow with int8.

    Args:
        queries: (Q, dim) float32.
    """

    dtype = torch.float32

    def __init__(self, queries: torch.Tensor):
        self._filters = as_filters(queries)
        self.unit = torch.ones(len(queries), dtype=torch.float64, device=queries.device)
        self.error = norms_of(queries) * float32_error(queries.shape[1])

    def multiply(self, values: torch.Tensor) -> torch.Tensor:
        """See :meth:`Multiplier.multiply`."""
        found = torch.empty(len(values), len(self._filters), device=values.device)
        for part, of_part in zip(values.split(CONVERTED), found.split(CONVERTED), strict=True):
            of_part.copy_(products(part.to(torch.float32), self._filters))
        return found


class CodedQueries:
    """Queries in int8 codes.

    Args:
        queries: (Q, dim) float32.
    """

    dtype = torch.int32

    def __init__(self, queries: torch.Tensor):
        exact = queries.to(torch.float64)
        greatest = exact.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        unit = greatest / count_levels(queries.shape[1])
        rounded = (exact / unit).round()
        self._codes = rounded.to(torch.int8)
        self.unit = unit[:, 0]
        self.error = torch.linalg.vector_norm(exact - rounded * unit, dim=1)

    def multiply(self, values: torch.Tensor) -> torch.Tensor:
        """See :meth:`Multiplier.multiply`. The products are below 2^24."""
        return int8_products(values, self._codes)


def float32_error(dim: int) -> float:
    """Return g, so that a sum of ``dim`` products in float32, in any order, is at most g |q| |d| off."""
    return (dim + 2) * UNIT


def norms_of(vectors: torch.Tensor) -> torch.Tensor:
    """Return the norms (N,) float64 of ``vectors`` (N, dim)."""
    norms: torch.Tensor = torch.linalg.vector_norm(vectors.to(torch.float64), dim=1)
    return norms


@dataclass(frozen=True)
class Widths:
    """How far scores found by codes may be from those of float32.

    This covers what rounding to codes lost, and the rounding of the float32 score itself.

    Attributes:
        per_lost, per_norm, least: (Q,) float64: the width is per_lost * lost + per_norm * norm + least for documents
            with ``lost`` and ``norm``, see :class:`drhard.codes.CodedBlock`.
    """

    per_lost: torch.Tensor
    per_norm: torch.Tensor
    least: torch.Tensor

    @classmethod
    def of_queries(cls, norms: torch.Tensor, error: torch.Tensor, mean_norm: float, dim: int) -> "Widths":
        """Return those of queries, given their ``norms`` (Q,) and :attr:`Multiplier.error`, both float64."""
        rounding, more = float32_error(dim), 1 + 1e-9
        underflow = dim * torch.finfo(torch.float32).tiny  # each product may lose so much
        least = rounding * mean_norm * norms + underflow
        return cls((1 + rounding) * norms * more, (error + rounding * norms) * more, least * more)

    def at(self, query: torch.Tensor) -> "Widths":
        """Return those of each ``query`` (n,) int64."""
        return Widths(*(of.index_select(0, query) for of in (self.per_lost, self.per_norm, self.least)))

    def of(self, lost: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Return the widths for documents, float64. ``lost`` and ``norm`` are spread as for a sum."""
        width = self.least.addcmul(self.per_lost, lost).addcmul(self.per_norm, norm)
        return torch.nan_to_num(width, nan=torch.inf, posinf=torch.inf)


class RoundedQueries:
    """Queries, and all that a bound on their scores needs.

    Args:
        queries: (Q, dim) float32, finite.
        mean: (dim,) float32, that of the codes.
    """

    def __init__(self, queries: torch.Tensor, mean: torch.Tensor):
        self._queries, dim = queries, queries.shape[1]
        fast = has_fast_int8(queries.device)
        self._multiplier: Multiplier = CodedQueries(queries) if fast else FloatQueries(queries)
        self.dtype = self._multiplier.dtype
        exact, norms = mean.to(torch.float64), norms_of(queries)
        self._offset = queries.to(torch.float64) @ exact  # (Q,) the score of the mean
        mean_norm = float(torch.linalg.vector_norm(exact))
        self._widths = Widths.of_queries(norms, self._multiplier.error, mean_norm, dim)
        self._closer = Widths.of_queries(norms, norms * float32_error(dim), mean_norm, dim)  # queries are not rounded

    def __len__(self) -> int:
        return len(self._queries)

    def multiply(self, values: torch.Tensor) -> torch.Tensor:
        """See :meth:`Multiplier.multiply`."""
        return self._multiplier.multiply(values)

    def scores_below(
        self, products: torch.Tensor, lost: torch.Tensor, norm: torch.Tensor, share: float
    ) -> torch.Tensor:
        """Return the scores (Q,) float64 that ``products`` (Q,) stand for, for codes of scale 1, less a share of width.

        Args:
            lost, norm: () float64, of a document, see :class:`drhard.codes.CodedBlock`.
        """
        score = products * self._multiplier.unit + self._offset - share * self._widths.of(lost, norm)
        return torch.nan_to_num(score, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)

    def bounds(self, block: CodedBlock) -> Bounds:
        """Return what the products with ``block`` tell of its float32 scores."""
        width = self._widths.of(block.lost[:, None], block.norm[:, None])
        return Bounds(block.scale[:, None] * self._multiplier.unit, self._offset - width, self._offset + width)

    def bound_pairs(
        self, codes: Codes, query: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the codes of documents tell of the scores of pairs, if the query is not rounded.

        Args:
            query, position: both (n,) int64, ``query`` ascending; see :class:`drhard.codes.Codes`.

        Returns:
            A lower and an upper bound of the scores, both (n,) float64.
        """
        on_cpu = query.device.type == "cpu"
        size = PAIRS if on_cpu else max(1, NUMBERS_ON_GPU // codes.values.shape[1])
        each = torch.arange(min(size, len(query)))
        found = [query.new_empty(0, dtype=torch.float32)]
        for asked, wanted in zip(query.split(size), position.split(size), strict=True):
            values = codes.values.index_select(0, wanted).to(torch.float32)
            if on_cpu:
                found.append(multiply_pairs(values, self._queries, asked, each[: len(asked)]))
            else:
                found.append(values.mul_(self._queries.index_select(0, asked)).sum(dim=1))
        scale, lost, norm = (of.index_select(0, position // GROUP) for of in (codes.scale, codes.lost, codes.norm))
        score = torch.cat(found) * scale + self._offset.index_select(0, query)
        width = self._closer.at(query).of(lost, norm)
        return score - width, score + width
