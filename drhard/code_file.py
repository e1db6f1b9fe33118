"""The codes of an embedding memmap on disk, ``passages.int8`` beside ``passages.memmap``, so that they are made once.

The file has the safetensors format. It is mapped into memory, so processes that search the same documents share it.
"""

import json
import logging
from pathlib import Path
from typing import Any, BinaryIO

from drhard.arrays import spread
from drhard.blocks import BLOCK_ROWS
from drhard.codes import GROUP, Codes, choose_mean, empty_tables, encode_documents, fill_tables, keep_codes
from drhard.embeddings import digest_embeddings
from drhard.errors import InputError, reason_of
from drhard.files import DiskFault, write_whole_file
from drhard.provenance import find_difference, read_stamp, stamp_path, write_stamp
from drhard.vectors import gather_rows, whole_file

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)

STAMP_FIELDS = {"format": int, "embeddings": str, "rows": int, "dim": int}
FORMAT = 1
CHECKED = 1000  # documents that are compared with their codes when a file is opened
_ALIGNED = 8  # rows are filled up to a multiple of this, so that each tensor begins where its numbers may
_TYPES = {"I8": 1, "I16": 2, "F64": 8, "F32": 4}


def codes_path(embeddings: Path) -> Path:
    """Return the file of the codes of the embeddings at a path."""
    return embeddings.with_suffix(".int8")


def open_codes(documents: np.ndarray, progress: bool = False) -> Codes:
    """Return the codes of ``documents`` (N, dim) float32. Those of a whole memmap are kept in a file beside it.

    A file that belongs to other embeddings, or that is damaged, is made again. If it cannot be written, a warning says
    so, and the codes are kept in memory.

    Raises:
        InputError: a document is not finite.
    """
    codes = open_code_file(documents, progress)
    return keep_codes(documents, torch.device("cpu"), progress) if codes is None else codes


def open_code_file(documents: np.ndarray, progress: bool = False) -> Codes | None:
    """Return the codes of ``documents`` from the file beside them, as :func:`open_codes` does.

    None if the documents are not a whole memmap, or if the file cannot be written; a warning says so.
    """
    embeddings = whole_file(documents)
    if embeddings is None:
        return None
    stamp = {
        "format": FORMAT,
        "embeddings": digest_embeddings(documents),
        "rows": len(documents),
        "dim": documents.shape[1],
    }
    codes = _read(embeddings, stamp, documents)
    if codes is None:
        codes = _make(documents, embeddings, stamp, progress)
    return codes


def _make(documents: np.ndarray, embeddings: Path, stamp: dict[str, Any], progress: bool) -> Codes | None:
    path = codes_path(embeddings)
    mean = torch.from_numpy(choose_mean(documents))
    try:
        stamp_path(path).unlink(missing_ok=True)
        with write_whole_file(path) as file:
            _write(documents, mean, file, progress)
        write_stamp(path, stamp)
    except (OSError, DiskFault) as error:
        log.warning("%s: cannot be written (%s); going on without this file", path, reason_of(error))
        return None
    codes = _read(embeddings, stamp, documents)
    if codes is None:
        raise InputError(f"{path}: was changed while it was made; run the same command again")
    return codes


def _write(documents: np.ndarray, mean: torch.Tensor, file: BinaryIO, progress: bool) -> None:
    """Write the codes block by block, and what belongs to them at the end."""
    count, dim = documents.shape
    more = -count % _ALIGNED
    places, scale, lost, norm = tables = empty_tables(count, mean.device)
    groups = len(scale)
    shapes = {
        "values": ("I8", [count + more, dim]),
        "places": ("I16", [count + more]),
        "scale": ("F64", [groups]),
        "lost": ("F64", [groups]),
        "norm": ("F64", [groups]),
        "mean": ("F32", [dim]),
    }
    file.write(_header(shapes))
    for number, block in enumerate(encode_documents(documents, mean, progress)):
        file.write(block.values.numpy().data)
        fill_tables(tables, number, block)
    file.write(bytes(more * dim))
    file.write(places.numpy().data)
    file.write(bytes(more * places.itemsize))
    for table in (scale, lost, norm, mean):
        file.write(table.numpy().data)


def _header(shapes: dict[str, tuple[str, list[int]]]) -> bytes:
    """Return the start of a safetensors file whose tensors lie in this order."""
    header: dict[str, Any] = {}
    end = 0
    for name, (kind, shape) in shapes.items():
        start, end = end, end + int(np.prod(shape)) * _TYPES[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _read(embeddings: Path, stamp: dict[str, Any], documents: np.ndarray) -> Codes | None:
    """Map the codes of ``documents`` from a file; None if it is missing, damaged, or belongs to other embeddings."""
    path = codes_path(embeddings)
    if not path.is_file():
        return None
    try:
        found = read_stamp(path, STAMP_FIELDS)
        if found is None or find_difference(found, stamp) is not None:
            return None
        if embeddings.stat().st_mtime_ns > path.stat().st_mtime_ns:
            return None  # were written to since; the stamp tells of few rows
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("values", "places", "scale", "lost", "norm", "mean")}
    except (InputError, SafetensorError, OSError):
        return None
    values, places = (tensors.pop(name)[: len(documents)] for name in ("values", "places"))
    codes = Codes(values=values, places=places, **tensors)
    return codes if _belong_together(codes, documents) else None


def _belong_together(codes: Codes, documents: np.ndarray) -> bool:
    """Return whether each document has a place, and the codes of a thousand are as near as the bounds say."""
    wanted = spread(len(documents) - 1, CHECKED - 1) + 1  # others than those of the digest
    for first in range(0, len(documents), BLOCK_ROWS):
        positions = torch.arange(first, min(first + BLOCK_ROWS, len(documents)))
        block, rows = codes.part(first, first + len(positions)), codes.rows(positions)
        if not torch.equal(rows.sort().values, positions):
            return False
        chosen = np.flatnonzero(np.isin(rows.numpy(), wanted))
        exact = gather_rows(documents, rows.numpy()[chosen]).astype(np.float64) - codes.mean.numpy()
        group = torch.from_numpy(chosen) // GROUP
        lost = exact - (block.values[chosen] * block.scale[group, None]).numpy()
        if (np.linalg.norm(lost, axis=1) > block.lost[group].numpy()).any():
            return False
    return True
