"""Matrix products by oneDNN, which uses the processors of all makers.

Of the products that torch and NumPy come with, MKL's is slow on AMD's processors and OpenBLAS's is slow for matrices of
few rows. oneDNN is in torch too, where float32 reaches it by a convolution alone: rows are the pixels of an image, the
matrix they are multiplied by is its filters. Where torch has no oneDNN the same call gives the same numbers.

The exact search multiplies with it. Linear layers of the encoder do not: on an AMD EPYC nn.Linear takes as long (1,536
rows, 768 to 768 numbers: 20.9 ms against 21.0; to 3,072: 81.9 against 80.9) and gives the same bits.
"""

import torch
from torch import nn


def as_filters(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix (N, K) as the filters (N, K, 1, 1) of a convolution; it is not copied."""
    return matrix[:, :, None, None].contiguous(memory_format=torch.channels_last)


def products(rows: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``rows @ matrix.T + bias`` (M, N) for rows (M, K) and a matrix (N, K) that is given as filters."""
    image = rows[None, :, None, :].permute(0, 3, 1, 2)  # (1, K, M, 1), what belongs to a pixel side by side
    return nn.functional.conv2d(image, filters, bias)[0, :, :, 0].T
