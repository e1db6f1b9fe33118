"""Provenance: what a file or a training was made from, so that none is ever taken for another.

It has three forms. A stamp lies beside a file as ``NAME.json``. A record holds what decides the outcome of a training.
A seal lies in a checkpoint folder as ``checkpoint.json``. This module writes them, reads them, and compares them with
what is expected. :func:`check_made_from` raises the error that names the difference.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drhard.arrays import spread
from drhard.errors import InputError
from drhard.files import digest_file, read_object, write_json
from drhard.vectors import gather_rows

import numpy as np

log = logging.getLogger(__name__)

DIGEST_DIGITS = 64  # of a SHA-256
SAMPLED_ROWS = 1000
SEAL_FILE = "checkpoint.json"


def find_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return the first field of ``expected`` that ``found`` lacks or has with another value; None if all match."""
    return next((field for field, value in expected.items() if field not in found or found[field] != value), None)


def check_made_from(
    path: Path, found: Mapping[str, Any], expected: Mapping[str, Any], words: Mapping[str, str], way_out: str
) -> None:
    """Raise InputError if ``path`` was not made from ``expected``.

    Args:
        found: what it was made from.
        words: for each field, what the message says if it differs.
        way_out: the end of the message.
    """
    field = find_difference(found, expected)
    if field is not None:
        raise InputError(f"{path}: {words.get(field, f'was made with another {field}')}; {way_out}")


# Stamps


def stamp_path(path: Path) -> Path:
    """Return the path of a file's stamp: ``NAME.json`` beside it."""
    return path.with_name(f"{path.name}.json")


def write_stamp(path: Path, made_from: Mapping[str, Any]) -> None:
    """Write the stamp of the file at ``path``: what it is made from."""
    write_json(stamp_path(path), made_from)


def read_stamp(
    path: Path,
    fields: Mapping[str, type | tuple[type, ...]],
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
) -> dict[str, Any] | None:
    """Return the stamp of the file at ``path``; None if it has none.

    Args:
        fields, optional: as in :func:`drhard.files.read_object`.

    Raises:
        InputError: the stamp is damaged or lacks one of ``fields``.
    """
    stamp = stamp_path(path)
    if not stamp.exists():
        return None
    return read_object(stamp, fields, f"delete it and {path.name}, and both are made again", optional)


def warn_of_no_stamp(path: Path) -> None:
    """Log a warning that the file at ``path`` has no stamp."""
    log.warning("%s has no stamp (%s): its size fits, so it is trusted", path, stamp_path(path).name)


def is_unchanged(path: Path, stamp: Mapping[str, Any], field: str = "sha256") -> bool:
    """Return whether the file at ``path`` has the digest in its stamp. True if the stamp holds none."""
    return stamp.get(field) in (None, digest_file(path))


def digest_sample(array: np.ndarray) -> str:
    """Return the SHA-256 of a thousand rows spread over ``array`` (rows, width), to tell large files apart quickly.

    It does not depend on the integer type.
    """
    rows = spread(len(array), SAMPLED_ROWS)
    found = gather_rows(array, rows) if array.ndim == 2 else array[rows]  # pages of a memmap would stay in memory
    numbers = found.astype(np.int64 if array.dtype.kind in "iu" else array.dtype)
    return hashlib.sha256(numbers.tobytes()).hexdigest()


# Records of trainings


def check_record(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any], way_out: str) -> None:
    """Raise InputError, ending with ``way_out``, unless the training in ``folder`` was begun with ``expected``.

    Args:
        found: what it was begun with, by its own record. Earlier versions recorded less.
    """
    lacking = next((field for field in expected if field not in found), None)
    if lacking is not None:
        raise InputError(
            f"{folder}: an earlier version began the training there and did not record its {lacking}; {way_out}"
        )
    words = {}
    for field, value in expected.items():
        begun = found[field]
        digests = all(isinstance(one, str) and len(one) >= DIGEST_DIGITS for one in (begun, value))
        differs = f"another {field}" if digests and field != "index" else f"{field} {begun}, not {value}"
        words[field] = f"the training there was begun with {differs}"
    check_made_from(folder, found, expected, words, way_out)


def digest_record(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record of settings and digests."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def digest_relevant(relevant: Mapping[int, Sequence[int]]) -> str:
    """Return the SHA-256 of query rows and their relevant rows. Their order counts: a training draws by position."""
    pairs = [[query, *map(int, relevant[query])] for query in sorted(relevant)]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


# Seals of checkpoints


def write_seal(folder: Path, step: int, record: Mapping[str, Any], names: Iterable[str]) -> None:
    """Write the seal of ``folder``: the step, the training, and the digests of the files ``names``.

    Args:
        record: what decides the outcome of the training.
    """
    files = {name: digest_file(folder / name) for name in sorted(names)}
    write_json(folder / SEAL_FILE, {"step": step, "training": digest_record(record), "files": files}, indent=1)


def read_sealed_step(folder: Path) -> int:
    """Return the step of a sealed checkpoint. Raises InputError if it has no seal."""
    return int(read_object(folder / SEAL_FILE, {"step": int})["step"])


def find_fault(folder: Path, record: Mapping[str, Any], needed: Iterable[str]) -> str | None:
    """Return why ``folder`` is not a whole checkpoint of the training; None if it is one.

    Args:
        record: what decides the outcome of the training.
        needed: files that the checkpoint must have.
    """
    if not (folder / SEAL_FILE).exists():
        return f"{SEAL_FILE} is missing"
    try:
        found = read_object(folder / SEAL_FILE, {"step": int, "training": str, "files": dict})
    except InputError:
        return f"{SEAL_FILE} is damaged"
    if found["training"] != digest_record(record):
        return "it belongs to another training"
    for name in sorted({*found["files"], *needed}):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest_file(folder / name) != found["files"].get(name):
            return f"{name} is damaged"
    return None
