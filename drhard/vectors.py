"""Embeddings, float32 (rows, dim): check that every number is finite, and read some rows."""

from concurrent.futures import ThreadPoolExecutor

from drhard.errors import InputError

import numpy as np

CHECKED_AT_ONCE = 8192  # rows
GATHERED_AT_ONCE = 64  # rows that a thread reads at a time
READERS = 8  # threads: more than processors, as they wait for the disk


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

    Args:
        vectors: (N, dim).
        rows: int64, of any shape.

    Returns:
        Of the shape of ``rows``, and dim.
    """
    if not isinstance(vectors, np.memmap):
        gathered: np.ndarray = vectors[rows]
        return gathered
    distinct, place = np.unique(rows, return_inverse=True)
    found = np.empty((len(distinct), vectors.shape[1]), dtype=vectors.dtype)

    def gather(first: int) -> None:
        part = slice(first, first + GATHERED_AT_ONCE)
        np.take(vectors, distinct[part], axis=0, out=found[part], mode="clip")  # other modes copy once more

    with ThreadPoolExecutor(READERS) as threads:
        list(threads.map(gather, range(0, len(distinct), GATHERED_AT_ONCE)))
    return found if np.array_equal(distinct, rows) else found[place.reshape(rows.shape)]
