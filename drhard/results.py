"""Results of a search, kept on disk. For MS MARCO's training queries they would take a gigabyte of memory."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from drhard.errors import InputError
from drhard.files import claim_partial, disk_faults, partial_path
from drhard.provenance import read_stamp, stamp_path, write_stamp

import numpy as np

log = logging.getLogger(__name__)

WRITTEN_AT_ONCE = 1 << 20  # results written at a time: 8 MB


class Results(NamedTuple):
    """The best documents of each query, in a file that exists until the block of :func:`search_on_disk` ends."""

    scores: np.ndarray  # (Q, k) float32, greatest first
    rows: np.ndarray  # (Q, k) int32; -1 at the end if fewer were found


Parts = Iterator[tuple[np.ndarray, np.ndarray]]


def results_path(folder: Path, mode: str) -> Path:
    """Return the file of the results of a search for a mode's queries, ``{mode}.rank.tsv.found``."""
    return folder / f"{mode}.rank.tsv.found"


@contextmanager
def search_on_disk(
    path: Path, made_from: Mapping[str, Any], queries: int, k: int, search: Callable[[int], Parts]
) -> Iterator[Results]:
    """Search with the results in a file, ``{path}.partial``. A stopped search resumes after its last pass.

    Only this process can write the file until the block ends. The block uses the results. If it ends well, the file is
    removed: ``path`` itself never appears.

    Args:
        path: the file of the results; see :func:`results_path`.
        made_from: what decides the results, in JSON's types. A search resumes only if this is unchanged.
        queries, k: the number of queries, and of documents for each.
        search: takes the number of queries that have results. Yields scores and rows of the others, as
            :meth:`drhard.index.Index.passes` does.

    Raises:
        InputError: another process is writing the file, a score is not finite, or the disk is full.
    """
    unfinished = partial_path(path)
    record = np.dtype([("scores", np.float32, (k,)), ("rows", np.int32, (k,))])  # for each query
    with claim_partial(path) as file:
        _search(file, unfinished, dict(made_from, k=k), queries, record, search)
        found = np.memmap(unfinished, dtype=record, mode="r", shape=(queries,)).view(np.ndarray)
        yield Results(found["scores"], found["rows"])
        stamp_path(unfinished).unlink(missing_ok=True)
        unfinished.unlink()


def _search(
    file: BinaryIO,
    path: Path,
    made_from: dict[str, Any],
    queries: int,
    record: np.dtype,
    search: Callable[[int], Parts],
) -> None:
    """Search until ``file``, open at ``path``, has a ``record`` for each query."""
    done = _read_done(path, made_from, os.fstat(file.fileno()).st_size // record.itemsize)
    with disk_faults(path):
        file.truncate(done * record.itemsize)
    if not done:
        write_stamp(path, made_from | {"done": 0})
    elif done < queries:
        log.info("resuming the search after %d of %d queries", done, queries)
    if done == queries:
        return
    for scores, rows in search(done):
        at_once = max(1, WRITTEN_AT_ONCE // scores.shape[1])
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            block = np.empty(len(rows[part]), dtype=record)
            block["scores"], block["rows"] = scores[part], rows[part]
            if not (np.isfinite(block["scores"]) | (block["rows"] < 0)).all():
                raise InputError(f"{path}: a score is not finite; numbers in the embeddings or the index are too large")
            file.write(block.data)
        file.flush()
        with disk_faults(path):
            os.fsync(file.fileno())
        done += len(rows)
        write_stamp(path, made_from | {"done": done})


def _read_done(path: Path, made_from: dict[str, Any], written: int) -> int:
    """Return how many queries an earlier search has completed, of the ``written`` results in its file.

    A partial pass is discarded. Searching only the remaining queries would round scores differently, and near ties
    could swap.
    """
    try:
        stamp = read_stamp(path, {"done": int})
    except InputError:  # damaged, or of an earlier version: all that is lost is part of a search
        return 0
    if stamp is None or stamp != made_from | {"done": stamp["done"]}:
        return 0
    return stamp["done"] if 0 <= stamp["done"] <= written else 0
