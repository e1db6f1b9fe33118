"""Results of a search, kept on disk. For MS MARCO's training queries they would take a gigabyte of memory."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from drhard.errors import InputError
from drhard.files import claim, disk_faults, partial_path
from drhard.provenance import read_stamp, stamp_path, write_stamp

import numpy as np

log = logging.getLogger(__name__)

WRITTEN_AT_ONCE = 1 << 20  # results written at a time: 8 MB


class Results(NamedTuple):
    """The best documents of each query, in a file that exists until the block of :func:`search_on_disk` ends."""

    scores: np.ndarray  # (Q, k) float32, greatest first
    rows: np.ndarray  # (Q, k) int32; -1 at the end if fewer were found


Parts = Iterator[tuple[np.ndarray, np.ndarray]]


@contextmanager
def search_on_disk(
    run: Path, made_from: Mapping[str, Any], queries: int, k: int, search: Callable[[int], Parts]
) -> Iterator[Results]:
    """Search with the results in ``RUN.found.partial``. A stopped search resumes after its last pass.

    Only this process can write the file until the block ends. The block writes the run. If it ends well, the file is
    removed.

    Args:
        run: the run that the caller writes from the results.
        made_from: what decides the results, in JSON's types. A search resumes only if this is unchanged.
        queries, k: the number of queries, and of documents for each.
        search: takes the number of queries that have results. Yields scores and rows of the others, as
            :meth:`drhard.index.Index.passes` does.

    Raises:
        InputError: another process is writing the run, a score is not finite, or the disk is full.
    """
    path = partial_path(run.with_name(f"{run.name}.found"))
    record = np.dtype([("scores", np.float32, (k,)), ("rows", np.int32, (k,))])  # for each query
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with claim(path, run) as file:
            _search(file, path, dict(made_from, k=k), queries, record, search)
            found = np.memmap(path, dtype=record, mode="r", shape=(queries,)).view(np.ndarray)
            yield Results(found["scores"], found["rows"])
            stamp_path(path).unlink(missing_ok=True)
            path.unlink()


def _search(
    file: BinaryIO,
    path: Path,
    made_from: dict[str, Any],
    queries: int,
    record: np.dtype,
    search: Callable[[int], Parts],
) -> None:
    """Search until ``file``, open at ``path``, has a ``record`` for each query."""
    done = min(os.fstat(file.fileno()).st_size // record.itemsize, queries) if _is_of(path, made_from) else 0
    file.truncate(done * record.itemsize)
    if not done:
        write_stamp(path, made_from)
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
        os.fsync(file.fileno())


def _is_of(path: Path, made_from: dict[str, Any]) -> bool:
    try:
        return read_stamp(path, {}) == made_from
    except InputError:  # a damaged stamp: search again
        return False
