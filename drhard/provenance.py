"""Provenance: what a file was made from, in a stamp beside it, so that a file is never taken for another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drhard.files import read_object, write_json


def stamp_of(path: Path) -> Path:
    """Where it is written down what the file at ``path`` was made from: ``NAME.json`` beside it."""
    return path.with_name(f"{path.name}.json")


def write_stamp(path: Path, made_from: Mapping[str, Any]) -> None:
    """Write down what the file at ``path`` is made from."""
    write_json(stamp_of(path), made_from)


def read_stamp(
    path: Path, fields: Mapping[str, type], optional: Mapping[str, type] | None = None
) -> dict[str, Any] | None:
    """What is written down about the file at ``path``; None if nothing is.

    Args:
        fields, optional: as in :func:`drhard.files.read_object`.

    Raises:
        InputError: there is a stamp, but it is none of a file of this kind.
    """
    stamp = stamp_of(path)
    if not stamp.exists():
        return None
    return read_object(stamp, fields, f"delete it and {path.name} to make both anew", optional)
