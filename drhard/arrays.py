"""Arrays in ``.npy`` files, from wherever they come."""

from pathlib import Path

from drhard.errors import InputError
from drhard.files import require_file

import numpy as np


def read_array(path: str | Path, hint: str) -> np.ndarray:
    """Open a ``.npy`` file. Nothing of it is read yet, and no more can be than the file holds.

    Args:
        hint: how to get the file, if it is missing or damaged.

    Returns:
        The array, which cannot be written to; its shape and type are whatever the file says.

    Raises:
        InputError: the file is missing, is none of NumPy's, holds Python's objects, or is shorter than it says.
    """
    path = require_file(path, hint)
    try:
        if not path.is_file():
            raise ValueError("not a file")
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can raise nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a NumPy file ({reason[:100]}); {hint}") from None
