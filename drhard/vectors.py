"""Check vectors, float32 (rows, dim): every number must be finite."""

from drhard.errors import InputError

import numpy as np

CHECKED_AT_ONCE = 8192  # rows


def check_finite(vectors: np.ndarray, first_row: int = 0, name: str | None = None) -> None:
    """Raise InputError, naming the row, if a number in ``vectors`` (B, dim) is not finite.

    A document with such a number has no score, and it can hide better documents from the search.

    Args:
        first_row: the row of the file at which ``vectors`` begin.
        name: what to call the file in errors; by default its path if ``vectors`` are a memmap.
    """
    for start in range(0, len(vectors), CHECKED_AT_ONCE):
        block = vectors[start : start + CHECKED_AT_ONCE]
        flat = np.ascontiguousarray(block).reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.dot(flat, flat)):  # the fastest check; it may overflow, so the next one decides
                continue
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise InputError(
                f"{name or name_source(vectors, 'the vectors')}: row {first_row + start + bad[0]} has numbers that are "
                "not finite; the file is damaged, make it again"
            )


def name_source(vectors: np.ndarray, otherwise: str) -> str:
    """Return what to call ``vectors`` in errors: their file if they are a memmap, else ``otherwise``."""
    return str(getattr(vectors, "filename", otherwise))
