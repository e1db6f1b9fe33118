"""Documents as int8 codes, a quarter of float32's size, with a bound on what rounding lost.

A document d is stored as c, whole numbers from -levels to levels, so that mean + scale * c is near d. With the lost
part e = d - mean - scale * c, and a query rounded to q':

    q·d  =  q·mean + scale * q'·c  +  q·e + (q - q')·(scale * c)

The last two terms are at most |q| |e| + |q - q'| |scale * c|, by Cauchy and Schwarz. docs/exact-search.md has the proof
with the rounding errors of float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from drhard.arrays import spread
from drhard.blocks import BLOCK_ROWS, read_blocks
from drhard.prefetch import prefetch
from drhard.vectors import check_finite, name_source

import numpy as np
import torch
from tqdm import tqdm

UNIT = 2.0**-24  # half the distance of 1 to the next float32: the greatest relative error of a float32 operation
SAMPLE = 8192  # documents from which the mean is taken
GROUP = 256  # documents that share a scale
_TINY = float(np.finfo(np.float32).tiny)


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


def encode_block(block: torch.Tensor, mean: torch.Tensor, levels: int) -> CodedBlock:
    """Round documents to codes.

    Args:
        block: (B, dim) float32, finite, on any device; up to 32,768 documents.
        mean: (dim,) float32, on the same device.
        levels: see :func:`count_levels`.
    """
    centred = block - mean
    ranges, places = centred.abs().amax(dim=1).sort()
    centred = centred[places]
    scale = _greatest(ranges).div_(levels).clamp_min_(_TINY)
    of_row = scale.repeat_interleave(GROUP)[: len(block), None]
    rounded = (centred / of_row).round_()
    values = rounded.to(torch.int8)
    norm = torch.linalg.vector_norm(rounded.mul_(of_row), dim=1)
    lost = torch.linalg.vector_norm(centred.sub_(rounded), dim=1)
    # Each number of centred and rounded has three roundings, each sum dim + 1 more and a square root.
    norm, lost = _greatest(norm).to(torch.float64), _greatest(lost).to(torch.float64)
    more, least = 1 + (block.shape[1] + 8) * UNIT, _TINY * block.shape[1]
    lost = torch.nan_to_num(lost * more + 4 * UNIT * (norm + lost) + least, nan=math.inf, posinf=math.inf)
    return CodedBlock(values, places.to(torch.int16), scale.to(torch.float64), lost, norm * more + least)


def _greatest(numbers: torch.Tensor) -> torch.Tensor:
    """Return the greatest of each group of ``numbers`` (B,)."""
    return torch.stack([group.max() for group in numbers.split(GROUP)])


def choose_mean(documents: np.ndarray) -> np.ndarray:
    """Return the mean (dim,) float32 of a few thousand of ``documents`` (N, dim). The bound holds for any mean."""
    rows = spread(len(documents), SAMPLE)
    with np.errstate(all="ignore"):  # what is not finite is refused when its block is read
        mean = np.asarray(documents[rows], dtype=np.float64).mean(axis=0).astype(np.float32)
    return np.where(np.isfinite(mean), mean, np.float32(0))


class Codes:
    """All documents as codes, in blocks.

    Args:
        mean: (dim,) float32.
        blocks: of ``block_rows`` documents each, but for the last.
    """

    def __init__(self, mean: torch.Tensor, blocks: list[CodedBlock], block_rows: int):
        self.mean, self._blocks, self.block_rows = mean, blocks, block_rows

    def __iter__(self) -> Iterator[tuple[int, CodedBlock]]:
        """Yield the first row of each block, and the block."""
        return zip(range(0, len(self._blocks) * self.block_rows, self.block_rows), self._blocks, strict=True)


def encode_documents(
    documents: np.ndarray, mean: torch.Tensor, block_rows: int = BLOCK_ROWS
) -> Iterator[tuple[int, CodedBlock]]:
    """Yield the first row of each block of ``documents`` (N, dim) float32, and the block as codes on ``mean``'s device.

    Raises:
        InputError: a document is not finite, or the file became shorter.
    """
    levels, name = count_levels(documents.shape[1]), name_source(documents, "the documents")
    for first, block in prefetch(read_blocks(documents, block_rows)):
        check_finite(block, first, name)
        yield first, encode_block(torch.from_numpy(block).to(mean.device), mean, levels)


def keep_codes(documents: np.ndarray, device: torch.device, progress: bool = False) -> Codes:
    """Encode ``documents`` (N, dim) float32, and keep their codes on ``device``.

    Raises:
        InputError: as :func:`encode_documents`.
    """
    mean = torch.from_numpy(choose_mean(documents)).to(device)
    blocks = []
    with tqdm(total=len(documents), unit="doc", unit_scale=True, desc="rounding to int8", disable=not progress) as bar:
        for _, block in encode_documents(documents, mean):
            blocks.append(block)
            bar.update(len(block.values))
    return Codes(mean, blocks, BLOCK_ROWS)
