"""Provenance: what a file or a training was made from, so that none is ever taken for another.

Three forms, one idea: a stamp lies beside a file as ``NAME.json``; a record of a training holds what decides its
outcome; a seal lies in a checkpoint folder as ``checkpoint.json``. Each is written here, read here and compared here
with what is expected. :func:`check_made_from` is the sentence that names what differs.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import digest_file, read_object, write_json

log = logging.getLogger(__name__)

DIGEST_DIGITS = 64  # of a SHA-256
SEAL_FILE = "checkpoint.json"


def find_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return the first field of ``expected`` that ``found`` lacks or has otherwise; None if there is none."""
    return next((field for field, value in expected.items() if field not in found or found[field] != value), None)


def check_made_from(
    path: Path, found: Mapping[str, Any], expected: Mapping[str, Any], words: Mapping[str, str], way_out: str
) -> None:
    """Raise InputError if ``path`` was not made from ``expected``.

    Args:
        found: what it was made from.
        words: what the sentence says of a field that differs.
        way_out: the end of the sentence.
    """
    field = find_difference(found, expected)
    if field is not None:
        raise InputError(f"{path}: {words.get(field, f'was made with another {field}')}; {way_out}")


# Stamps


def stamp_path(path: Path) -> Path:
    """Return where it is written down what the file at ``path`` was made from: ``NAME.json`` beside it."""
    return path.with_name(f"{path.name}.json")


def write_stamp(path: Path, made_from: Mapping[str, Any]) -> None:
    """Write down what the file at ``path`` is made from."""
    write_json(stamp_path(path), made_from)


def read_stamp(
    path: Path,
    fields: Mapping[str, type | tuple[type, ...]],
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
) -> dict[str, Any] | None:
    """Return what is written down about the file at ``path``; None if nothing is.

    Args:
        fields, optional: as in :func:`drhard.files.read_object`.

    Raises:
        InputError: there is a stamp, but it is none of a file of this kind.
    """
    stamp = stamp_path(path)
    if not stamp.exists():
        return None
    return read_object(stamp, fields, f"delete it and {path.name} to make both anew", optional)


def warn_of_no_stamp(path: Path) -> None:
    """Log a warning that nothing says what the file at ``path`` was made from."""
    log.warning("%s has no stamp (%s): its size fits, so it is trusted", path, stamp_path(path).name)


def is_unchanged(path: Path, stamp: Mapping[str, Any], field: str = "sha256") -> bool:
    """Return whether the file at ``path`` is the one that its stamp was written for, as far as the stamp tells."""
    return stamp.get(field) in (None, digest_file(path))


# Records of trainings


def check_record(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any], way_out: str) -> None:
    """Raise InputError, ending with ``way_out``, unless the training in ``folder`` was begun with ``expected``.

    Args:
        found: what it was begun with, as it wrote it down.
    """
    words = {}
    for field, value in expected.items():
        begun = found.get(field)
        digests = all(isinstance(one, str) and len(one) >= DIGEST_DIGITS for one in (begun, value))
        differs = f"another {field}" if digests and field != "index" else f"{field} {begun}, not {value}"
        words[field] = f"the training there was begun with {differs}"
    check_made_from(folder, {field: found.get(field) for field in expected}, expected, words, way_out)


def digest_record(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 over a record of settings and digests."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def digest_relevant(relevant: Mapping[int, Sequence[int]]) -> str:
    """Return the SHA-256 over query rows and their relevant rows, whose order counts: one of them is drawn."""
    pairs = [[query, *map(int, relevant[query])] for query in sorted(relevant)]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


# Seals of checkpoints


def write_seal(folder: Path, step: int, record: Mapping[str, Any], names: Iterable[str]) -> None:
    """Write down the step, the training and the digests of the files ``names`` in ``folder``.

    Args:
        record: what decides the outcome of the training.
    """
    files = {name: digest_file(folder / name) for name in sorted(names)}
    write_json(folder / SEAL_FILE, {"step": step, "training": digest_record(record), "files": files}, indent=1)


def read_sealed_step(folder: Path) -> int:
    """Return the step of a sealed checkpoint. Raises InputError if it has no seal."""
    return int(read_object(folder / SEAL_FILE, {"step": int})["step"])


def find_fault(folder: Path, record: Mapping[str, Any], needed: Iterable[str]) -> str | None:
    """Return why ``folder`` is no whole checkpoint of the training; None if it is one.

    Args:
        record: what decides the outcome of the training.
        needed: files that must be in it.
    """
    if not (folder / SEAL_FILE).exists():
        return f"{SEAL_FILE} is missing"
    try:
        found = read_object(folder / SEAL_FILE, {"step": int, "training": str, "files": dict})
    except InputError:
        return f"{SEAL_FILE} is damaged"
    if found["training"] != digest_record(record):
        return "it is of another training"
    for name in sorted({*found["files"], *needed}):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if digest_file(folder / name) != found["files"].get(name):
            return f"{name} is damaged"
    return None
