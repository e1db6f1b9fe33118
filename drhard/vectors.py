"""Vectors: float32 (rows, dim) of which every number must be finite."""

from drhard.errors import InputError

import numpy as np

BLOCK_ROWS = 8192  # looked at together


def check_finite(vectors: np.ndarray, first_row: int = 0, name: str | None = None) -> None:
    """Raise InputError, naming the row, if a number of ``vectors`` (B, dim) is not finite.

    A document with such a number has no score, and can keep better ones from being found.

    Args:
        first_row: of the file, in which ``vectors`` begin.
        name: what errors call it; the file if ``vectors`` are a memmap.
    """
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        flat = np.ascontiguousarray(block).reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.dot(flat, flat)):  # the fastest pass over them; what overflows is looked at again
                continue
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise InputError(
                f"{name or name_source(vectors, 'the vectors')}: row {first_row + start + bad[0]} has numbers that are "
                "not finite; the file is damaged, make it anew"
            )


def name_source(vectors: np.ndarray, otherwise: str) -> str:
    """Return what errors call ``vectors``: their file if they are a memmap, else ``otherwise``."""
    return str(getattr(vectors, "filename", otherwise))
