"""Arrays: open ``.npy`` files of any origin, and choose rows to look at."""

from pathlib import Path

from drhard.errors import InputError, reason_of
from drhard.files import require_file

import numpy as np


def read_array(path: str | Path, hint: str) -> np.ndarray:
    """Open a ``.npy`` file as a memmap, so that a false header cannot ask for more memory than the file has bytes.

    Args:
        hint: how to get the file if it is missing or damaged.

    Returns:
        A read-only array. Its shape and type are what the file says.

    Raises:
        InputError: the file is missing, is not a NumPy file, holds Python objects, or is shorter than its header says.
    """
    path = require_file(path, hint)
    try:
        if not path.is_file():
            raise ValueError("not a file")
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can raise nearly anything
        reason = reason_of(error)
        raise InputError(f"{path}: not a NumPy file ({reason[:100]}); {hint}") from None


def spread(count: int, most: int) -> np.ndarray:
    """Return up to ``most`` positions, int64, spread evenly over 0 … ``count`` - 1, including both ends."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
