"""Documents as int8 codes, a quarter of float32's size, with a bound on what rounding lost.

A document d is stored as c, whole numbers from -levels to levels, so that mean + scale * c is near d. With the lost
part e = d - mean - scale * c, and a query rounded to q':

    q·d  =  q·mean + scale * q'·c  +  q·e + (q - q')·(scale * c)

The last two terms are at most |q| |e| + |q - q'| |scale * c|, by Cauchy and Schwarz. docs/exact-search.md has the proof
with the rounding errors of float32.
"""

import math
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass

from drhard.arrays import spread
from drhard.blocks import BLOCK_ROWS, read_blocks
from drhard.cores import Map, on_all_cores
from drhard.prefetch import prefetch
from drhard.vectors import check_finite, gather_rows, name_source

import numpy as np
import torch
from tqdm import tqdm

UNIT = 2.0**-24  # half the distance of 1 to the next float32: the greatest relative error of a float32 operation
SAMPLE = 8192  # documents from which the mean is taken
GROUP = 256  # documents that share a scale
ENCODED = 512  # that a core encodes at a time
_TINY, _HUGE = (float(number) for number in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def count_levels(dim: int) -> int:
    """Return the largest code. Sums of ``dim`` products of codes stay below 2^24, so float32 holds them exactly."""
    return min(127, math.isqrt((2**24 - 1) // dim))


@dataclass(frozen=True)
class CodedBlock:
    """Documents of a block as codes, ordered by their range. Each :data:`GROUP` of them has a scale.

    Attributes:
        values: (B, dim) int8.
        places: (B,) int16: where the documents stand in the block.
        scale: (G,) float64: what a code of 1 stands for in each group.
        lost: (G,) float64: no |d - mean - scale * c| of the group is greater.
        norm: (G,) float64: no |scale * c| is.
    """

    values: torch.Tensor
    places: torch.Tensor
    scale: torch.Tensor
    lost: torch.Tensor
    norm: torch.Tensor


def encode_block(block: torch.Tensor, mean: torch.Tensor, levels: int, on_cores: Map = map) -> CodedBlock:
    """Round documents to codes.

    Args:
        block: (B, dim) float32, finite, on any device; up to 32,768 documents.
        mean: (dim,) float32, on the same device.
        levels: see :func:`count_levels`.
        on_cores: on a CPU, some documents at a time are encoded with it; they stay in the cache of a core.
    """
    count, size = len(block), ENCODED if block.device.type == "cpu" else max(1, len(block))
    ranges, norm, lost = torch.empty(3, count, device=block.device)
    values = torch.empty(block.shape, dtype=torch.int8, device=block.device)

    def find_range(first: int) -> None:
        part = slice(first, first + size)
        torch.amax((block[part] - mean).abs_(), dim=1, out=ranges[part])

    def encode(first: int) -> None:
        part = slice(first, first + size)
        centred = block.index_select(0, places[part]).sub_(mean)
        rounded = (centred / of_row[part]).round_()
        values[part] = rounded
        torch.linalg.vector_norm(rounded.mul_(of_row[part]), dim=1, out=norm[part])
        torch.linalg.vector_norm(centred.sub_(rounded), dim=1, out=lost[part])

    for _ in on_cores(find_range, range(0, count, size)):
        pass
    ranges, places = ranges.sort()
    scale = _greatest(ranges).div_(levels).clamp_(_TINY, _HUGE)
    of_row = scale.repeat_interleave(GROUP)[:count, None]
    for _ in on_cores(encode, range(0, count, size)):
        pass
    # Each number of centred and rounded has three roundings, each sum dim + 1 more and a square root. A square below
    # the smallest normal number may be lost.
    norm, lost = _greatest(norm).to(torch.float64), _greatest(lost).to(torch.float64)
    more, least = 1 + (block.shape[1] + 8) * UNIT, math.sqrt(_TINY * block.shape[1]) + _TINY * block.shape[1]
    lost = torch.nan_to_num(lost * more + 4 * UNIT * (norm + lost) + least, nan=math.inf, posinf=math.inf)
    return CodedBlock(values, places.to(torch.int16), scale.to(torch.float64), lost, norm * more + least)


def _greatest(numbers: torch.Tensor) -> torch.Tensor:
    """Return the greatest of each group of ``numbers`` (B,)."""
    return torch.stack([group.max() for group in numbers.split(GROUP)])


def choose_mean(documents: np.ndarray) -> np.ndarray:
    """Return the mean (dim,) float32 of a few thousand of ``documents`` (N, dim). The bound holds for any mean."""
    rows = spread(len(documents), SAMPLE)
    with np.errstate(all="ignore"):  # what is not finite is refused when its block is read
        mean = gather_rows(documents, rows).mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.where(np.isfinite(mean), mean, np.float32(0))


@dataclass(frozen=True)
class Codes:
    """All documents as codes, block after block, each as :class:`CodedBlock` has them.

    The position of a document is its place among all codes. It differs from its row, as codes are ordered by range.

    Attributes:
        mean: (dim,) float32.
        values: (N, dim) int8.
        places: (N,) int16.
        scale, lost, norm: (G,) float64.
    """

    mean: torch.Tensor
    values: torch.Tensor
    places: torch.Tensor
    scale: torch.Tensor
    lost: torch.Tensor
    norm: torch.Tensor

    def part(self, first: int, last: int) -> CodedBlock:
        """Return the documents from position ``first``, which begins a group, to ``last``."""
        groups = slice(first // GROUP, -(-last // GROUP))
        return CodedBlock(
            self.values[first:last], self.places[first:last], self.scale[groups], self.lost[groups], self.norm[groups]
        )

    def rows(self, position: torch.Tensor) -> torch.Tensor:
        """Return the rows (n,) int64 of the documents at positions (n,) int64."""
        first = position & -BLOCK_ROWS  # of the block: BLOCK_ROWS is a power of two
        return first + self.places.index_select(0, position)


def encode_documents(
    documents: np.ndarray, mean: torch.Tensor, progress: bool = False, copy: torch.Tensor | None = None
) -> Iterator[CodedBlock]:
    """Yield each :data:`BLOCK_ROWS` of ``documents`` (N, dim) float32 as codes on the device of ``mean``.

    Args:
        progress: show a bar over the documents.
        copy: (N, dim) float32 on the same device; it is filled with the documents.

    Raises:
        InputError: a document is not finite, or the file became shorter.
    """
    levels, name = count_levels(documents.shape[1]), name_source(documents, "the documents")
    bar = tqdm(total=len(documents), unit="doc", unit_scale=True, desc="rounding to int8", disable=not progress)
    cores = on_all_cores() if mean.device.type == "cpu" and len(documents) > ENCODED else nullcontext(map)
    with bar, cores as on_cores, closing(prefetch(read_blocks(documents, BLOCK_ROWS))) as blocks:
        for first, block in blocks:
            check_finite(block, first, name)
            on_device = torch.from_numpy(block).to(mean.device)
            if copy is not None:
                copy[first : first + len(block)] = on_device
            yield encode_block(on_device, mean, levels, on_cores)
            bar.update(len(block))


def keep_codes(
    documents: np.ndarray, device: torch.device, progress: bool = False, copy: torch.Tensor | None = None
) -> Codes:
    """Encode ``documents`` (N, dim) float32, and keep their codes on ``device``.

    Args:
        copy: see :func:`encode_documents`.

    Raises:
        InputError: as :func:`encode_documents`.
    """
    count, dim = documents.shape
    mean = torch.from_numpy(choose_mean(documents)).to(device)
    values = torch.empty(count, dim, dtype=torch.int8, device=device)
    codes = Codes(mean, values, *empty_tables(count, device))
    for number, block in enumerate(encode_documents(documents, mean, progress, copy)):
        values[number * BLOCK_ROWS :][: len(block.values)] = block.values
        fill_tables((codes.places, codes.scale, codes.lost, codes.norm), number, block)
    return codes


Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # places, scale, lost, norm, as Codes has them


def empty_tables(count: int, device: torch.device) -> Tables:
    """Return what ``count`` documents need beside their codes, not yet filled.

    It is allocated at once. Small pieces between the large ones of each block would keep these from being freed.
    """
    groups = -(-count // GROUP)
    scale, lost, norm = torch.empty(3, groups, dtype=torch.float64, device=device)
    return torch.empty(count, dtype=torch.int16, device=device), scale, lost, norm


def fill_tables(tables: Tables, number: int, block: CodedBlock) -> None:
    """Fill in what the block of this number has."""
    places, *of_groups = tables
    places[number * BLOCK_ROWS :][: len(block.places)] = block.places
    first = number * BLOCK_ROWS // GROUP
    for table, part in zip(of_groups, (block.scale, block.lost, block.norm), strict=True):
        table[first : first + len(part)] = part
