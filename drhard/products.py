"""Multiply documents and queries: in float32 with oneDNN, and in int8.

torch multiplies with MKL, which is slow on AMD's processors. NumPy multiplies with OpenBLAS, which is slow for matrices
of few rows. torch contains oneDNN too, but float32 reaches it only through a convolution. So we write a product as a
convolution: the rows are the pixels of an image, the other matrix is its filters. Where torch lacks oneDNN, the same
call gives the same numbers.

The exact search uses this product. The encoder's linear layers do not: on an AMD EPYC, nn.Linear is as fast (1,536
rows, 768 to 768 numbers: 20.9 ms against 21.0; to 3,072: 81.9 against 80.9) and gives the same bits.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import nn

IN_CACHE = 4096  # rows of int8 that a CPU multiplies at a time
_ALIGNED = 8  # CUDA multiplies int8 matrices whose sides are multiples of this
_LEAST_ROWS = 17  # and that have so many rows


def as_filters(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix (N, K) as the filters (N, K, 1, 1) of a convolution, without a copy."""
    return matrix[:, :, None, None].contiguous(memory_format=torch.channels_last)


def products(rows: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``rows @ matrix.T + bias`` (M, N) for ``rows`` (M, K) and the ``filters`` of a matrix (N, K)."""
    image = rows[None, :, None, :].permute(0, 3, 1, 2)  # (1, K, M, 1), channels last
    return nn.functional.conv2d(image, filters, bias)[0, :, :, 0].T


@contextmanager
def in_whole_float32() -> Iterator[None]:
    """Multiply float32 matrices on GPUs without TF32, whatever a training's --tf32 has set."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def int8_products(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return ``rows @ matrix.T`` (M, N) int32 for int8 ``rows`` (M, K) and ``matrix`` (N, K), on any device."""
    if rows.device.type == "cpu":
        if rows.shape[1] == 1:  # torch 2.13 returns wrong products of a single dimension on processors with VNNI
            rows, matrix = (nn.functional.pad(of, (0, 1)) for of in (rows, matrix))
        found = torch.empty(len(rows), len(matrix), dtype=torch.int32)
        for part, of_part in zip(rows.split(IN_CACHE), found.split(IN_CACHE), strict=True):
            torch._int_mm(part, matrix.T, out=of_part)
        return found
    count, columns, dim = len(rows), len(matrix), rows.shape[1]
    more = -dim % _ALIGNED
    if more or count < _LEAST_ROWS:
        rows = nn.functional.pad(rows, (0, more, 0, max(0, _LEAST_ROWS - count)))
    if more or columns % _ALIGNED:
        matrix = nn.functional.pad(matrix, (0, more, 0, -columns % _ALIGNED))
    return torch._int_mm(rows, matrix.T)[:count, :columns]


@cache
def has_fast_int8(device: torch.device) -> bool:
    """Return whether ``device`` multiplies int8 matrices faster than float32 ones. It is measured, in 0.1 s or less.

    Processors without VNNI take many times as long.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 5)  # tensor cores for int8
    rows, matrix = (torch.ones(count, 512, dtype=torch.int8) for count in (2048, 64))
    filters, floats = as_filters(matrix.float()), rows.float()
    ways = (lambda: int8_products(rows, matrix)), (lambda: products(floats, filters))
    times = np.array([[_time(way) for way in ways] for _ in range(20)])  # in turn, so that other work delays both
    of_int8, of_float32 = times.min(axis=0).tolist()
    return bool(of_int8 < of_float32)


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
