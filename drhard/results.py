"""Results of a search, kept on disk. For MS MARCO's training queries they would take a gigabyte of memory."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from drhard import processes
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
    removed: ``path`` itself never appears. Several processes must search together; the first one writes, and all read.

    Args:
        path: the file of the results; see :func:`results_path`.
        made_from: what decides the results, in JSON's types. A search resumes only if this is unchanged.
        queries, k: the number of queries, and of documents for each.
        search: takes the number of queries that have results. Yields scores and rows of the others, as
            :meth:`drhard.index.Index.passes` does.

    Raises:
        InputError: another process is writing the file, a score is not finite, or the disk is full.
    """
    target = _Target(
        partial_path(path),
        dict(made_from, k=k),
        queries,
        np.dtype([("scores", np.float32, (k,)), ("rows", np.int32, (k,))]),
    )
    with ExitStack() as stack:
        done = processes.first_value(lambda: target.begin(stack.enter_context(claim_partial(path))))
        if done < queries:
            for scores, rows in search(done):
                target.add(scores, rows)
        processes.wait_for_all()
        found = np.memmap(target.path, dtype=target.record, mode="r", shape=(queries,)).view(np.ndarray)
        yield Results(found["scores"], found["rows"])
        processes.wait_for_all()
        target.remove()


@dataclass
class _Target:
    """The file of the results. The first process writes it.

    Attributes:
        record: the results of a query.
        file: open in the first process once the search has begun.
        done: the number of queries that have results.
    """

    path: Path
    made_from: dict[str, Any]
    queries: int
    record: np.dtype
    file: BinaryIO | None = None
    done: int = 0

    def begin(self, file: BinaryIO) -> int:
        """Keep what an earlier search has completed. Return the number of its queries."""
        size = os.fstat(file.fileno()).st_size
        self.file, self.done = file, _read_done(self.path, self.made_from, size // self.record.itemsize)
        with disk_faults(self.path):
            file.truncate(self.done * self.record.itemsize)
        if not self.done:
            write_stamp(self.path, self.made_from | {"done": 0})
        elif self.done < self.queries:
            log.info("resuming the search after %d of %d queries", self.done, self.queries)
        return self.done

    def add(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """Write the results of a pass. Raises InputError if a score is not finite, or the disk is full."""
        file, path = self.file, self.path
        if file is None:
            return
        at_once = max(1, WRITTEN_AT_ONCE // scores.shape[1])
        for first in range(0, len(rows), at_once):
            part = slice(first, first + at_once)
            block = np.empty(len(rows[part]), dtype=self.record)
            block["scores"], block["rows"] = scores[part], rows[part]
            if not (np.isfinite(block["scores"]) | (block["rows"] < 0)).all():
                raise InputError(f"{path}: a score is not finite; numbers in the embeddings or the index are too large")
            file.write(block.data)
        file.flush()
        with disk_faults(path):
            os.fsync(file.fileno())
        self.done += len(rows)
        write_stamp(path, self.made_from | {"done": self.done})

    def remove(self) -> None:
        """Remove the file."""
        if self.file is not None:
            stamp_path(self.path).unlink(missing_ok=True)
            self.path.unlink()


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
