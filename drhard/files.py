"""Files that appear under their name only when they are whole."""

import gzip
import hashlib
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drhard.errors import InputError

import numpy as np


def partial(path: Path) -> Path:
    """The name under which ``path`` is written until it is whole."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Write to the yielded path; it gets the name ``path`` if the block ends well and is removed if not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = partial(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any, **format: Any) -> None:
    """Write ``content`` as JSON, whole."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, **format), encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises InputError if it is missing or not JSON."""
    path = existing(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None


def existing(path: str | Path, hint: str = "") -> Path:
    """``path`` as a Path. Raises InputError, with ``hint`` on how to get it, if nothing is there."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder{'; ' + hint if hint else ''}")
    return path


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, as sha256sum prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def write_int_dict(path: str | Path, keys: np.ndarray) -> None:
    """Pickle ``{keys[i]: i}`` without ever holding the dict: 8.8 million entries would take a gigabyte.

    Args:
        keys: (rows,) int64, each within int32, none twice.
    """
    entry = np.dtype([("k", "S1"), ("key", "<i4"), ("v", "S1"), ("value", "<i4")])
    batch = 10_000
    with whole(path) as unfinished, open(unfinished, "wb") as file:
        file.write(b"\x80\x03}")  # protocol 3, empty dict
        for start in range(0, len(keys), batch):
            part = keys[start : start + batch]
            entries = np.empty(len(part), dtype=entry)
            entries["k"] = entries["v"] = b"J"  # BININT: a signed 4-byte integer
            entries["key"] = part
            entries["value"] = np.arange(start, start + len(part))
            file.write(b"(" + entries.tobytes() + b"u")  # MARK ... SETITEMS
        file.write(b".")


def text_lines(path: str | Path, name: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 text file, gzipped or not.

    Args:
        name: what errors call the file, if not ``path``.

    Raises:
        InputError: the file is missing or damaged, or a line is not UTF-8.
    """
    name = name or str(path)
    if existing(path).is_dir():
        raise InputError(f"{name}: is a folder; a text file is expected")
    number = 0
    with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, decode_line(line, name, number)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{name}: damaged after line {number} ({error})") from None


def decode_line(line: bytes, path: str | Path, number: int) -> str:
    """One line of ``path`` as text, without its end. Raises InputError if it is not UTF-8."""
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: not UTF-8 text (byte {error.start} of the line)") from None
