"""Vectors: float32 (rows, dim) of which every number must be finite."""

from drhard.errors import InputError

import numpy as np


def check_finite(vectors: np.ndarray, first_row: int = 0, name: str | None = None) -> None:
    """Raise InputError, naming the row, if a number of ``vectors`` (B, dim) is not finite.

    A document with such a number has no score, and can keep better ones from being found.

    Args:
        first_row: of the file, in which ``vectors`` begin.
        name: what errors call it; the file if ``vectors`` are a memmap.
    """
    flat = np.ascontiguousarray(vectors).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat, flat)):  # the fastest pass over them; it may overflow, but never hides anything
            return
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        name = name or str(getattr(vectors, "filename", "the vectors"))
        raise InputError(
            f"{name}: row {first_row + bad[0]} has numbers that are not finite; the file is damaged, make it anew"
        )
