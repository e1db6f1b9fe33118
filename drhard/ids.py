"""Official ids and rows: ``pid2offset.pickle`` and ``{mode}-qid2offset.pickle``, dicts of integers."""

import pickle
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import existing, whole_file

import numpy as np


class _IntDictUnpickler(pickle.Unpickler):
    """Knows dict, int and numpy integers and nothing else: a pickle from elsewhere cannot run code."""

    _ALLOWED = {
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "scalar"): np._core.multiarray.scalar,
        ("numpy._core.multiarray", "scalar"): np._core.multiarray.scalar,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds {module}.{name}") from None


def read_int_dict(path: str | Path) -> dict[int, int]:
    """Read a pickled dict of integers, such as ``pid2offset.pickle``. Raises InputError for anything else."""
    path = existing(path, "preprocess.py writes it")
    try:
        with open(path, "rb") as file:
            content = _IntDictUnpickler(file).load()
    except Exception as error:  # a broken pickle can raise nearly anything
        raise InputError(f"{path}: not a pickled dict of integers ({error}); write it anew") from None
    whole_numbers = (int, np.integer)
    if not isinstance(content, dict) or not all(
        isinstance(key, whole_numbers) and isinstance(value, whole_numbers) for key, value in content.items()
    ):
        raise InputError(f"{path}: not a pickled dict of integers; write it anew")
    return content


def read_ids(path: str | Path) -> np.ndarray:
    """Return (rows,) int64, the official id of each row, from a file such as ``pid2offset.pickle``.

    Raises InputError as :func:`read_int_dict`, or if its rows are not 0, 1, 2, … in some order.
    """
    content = read_int_dict(path)
    rows = np.fromiter(content.values(), np.int64, len(content))
    if not np.array_equal(np.sort(rows), np.arange(len(rows))):
        raise InputError(f"{path}: not a pickled dict of id -> row; run preprocess.py again")
    ids = np.empty(len(rows), np.int64)
    ids[rows] = np.fromiter(content.keys(), np.int64, len(content))
    return ids


def write_int_dict(path: str | Path, keys: np.ndarray) -> None:
    """Pickle ``{keys[i]: i}`` without ever holding the dict: 8.8 million entries would take a gigabyte.

    Args:
        keys: (rows,) int64, each within int32, none twice.
    """
    entry = np.dtype([("k", "S1"), ("key", "<i4"), ("v", "S1"), ("value", "<i4")])
    batch = 10_000
    with whole_file(path) as file:
        file.write(b"\x80\x03}")  # protocol 3, empty dict
        for start in range(0, len(keys), batch):
            part = keys[start : start + batch]
            entries = np.empty(len(part), dtype=entry)
            entries["k"] = entries["v"] = b"J"  # BININT: a signed 4-byte integer
            entries["key"] = part
            entries["value"] = np.arange(start, start + len(part))
            file.write(b"(" + entries.tobytes() + b"u")  # MARK ... SETITEMS
        file.write(b".")
