"""Embeddings, float32 (rows, dim): check that every number is finite, and read some rows."""

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drhard.errors import InputError

import numpy as np

CHECKED_AT_ONCE = 8192  # rows
GATHERED_AT_ONCE = 128  # rows that a thread reads at a time
READERS = 16  # threads: more than processors, as they wait for the disk


def check_finite(embeddings: np.ndarray, first_row: int = 0, name: str | None = None) -> None:
    """Raise InputError, naming the row, if a number in ``embeddings`` (B, dim) is not finite.

    A document with such a number has no score, and it can hide better documents from the search.

    Args:
        first_row: the row of the file at which ``embeddings`` begin.
        name: what to call the file in errors; by default its path if ``embeddings`` are a memmap.
    """
    for start in range(0, len(embeddings), CHECKED_AT_ONCE):
        block = embeddings[start : start + CHECKED_AT_ONCE]
        flat = np.ascontiguousarray(block).reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.dot(flat, flat)):  # the fastest check; it may overflow, so the next one decides
                continue
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            name = name or name_source(embeddings, "the embeddings")
            raise InputError(
                f"{name}: row {first_row + start + bad[0]} has numbers that are not finite; delete it and run the "
                "command that wrote it again"
            )


def name_source(embeddings: np.ndarray, otherwise: str) -> str:
    """Return what to call ``embeddings`` in errors: their file if they are a memmap, else ``otherwise``."""
    return str(getattr(embeddings, "filename", otherwise))


def gather_rows(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return ``vectors[rows]``. Of a memmap, each row is read once, in the order of the file, by several threads.

    The file is mapped anew for a few rows at a time, and without reading ahead. The pages of the memmap itself would
    stay in memory and count as the process's.

    Args:
        vectors: (N, dim).
        rows: int64, of any shape.

    Returns:
        Of the shape of ``rows``, and dim.
    """
    place = find_in_file(vectors)
    if place is None:
        gathered: np.ndarray = np.asarray(vectors)[rows]
        return gathered
    path, start = place
    distinct, inverse = np.unique(rows, return_inverse=True)
    found = np.empty((len(distinct), vectors.shape[1]), dtype=vectors.dtype)
    with open(path, "rb") as file, ThreadPoolExecutor(READERS) as threads:

        def read(first: int) -> None:
            """Read some rows from the file, mapped anew for them."""
            part = slice(first, first + GATHERED_AT_ONCE)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
                mapping.madvise(mmap.MADV_RANDOM)
                source = np.frombuffer(mapping, vectors.dtype, vectors.size, start).reshape(vectors.shape)
                np.take(source, distinct[part], axis=0, out=found[part], mode="clip")  # other modes copy once more
                del source  # before the mapping is closed

        list(threads.map(read, range(0, len(distinct), GATHERED_AT_ONCE)))
    return found if np.array_equal(distinct, rows) else found[inverse.reshape(rows.shape)]


def find_in_file(vectors: np.ndarray) -> tuple[Path, int] | None:
    """Return the file of ``vectors`` (N, dim) and the byte at which they begin in it.

    None if they are not consecutive rows of a memmap.
    """
    mapping = getattr(vectors, "_mmap", None)
    if not isinstance(vectors, np.memmap) or mapping is None or not vectors.flags.c_contiguous:
        return None
    mapped_from = vectors.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    address = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    return Path(str(vectors.filename)), mapped_from + vectors.__array_interface__["data"][0] - address


def whole_file(vectors: np.ndarray) -> Path | None:
    """Return the file of ``vectors`` if they are a whole memmap, and not a part of one; else None."""
    name = vectors.filename if isinstance(vectors, np.memmap) else None
    return Path(name) if name is not None and vectors.nbytes == os.path.getsize(name) else None
