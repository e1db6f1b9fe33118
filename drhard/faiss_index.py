"""Search by an index of faiss, with the protocol of :mod:`drhard.index`.

faiss is imported inside the functions that need it, here and in :mod:`drhard.compressed`. Importing it takes a part of
a second, and the exact search on the CPU does not need it.
"""

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from drhard.devices import require_gpu
from drhard.errors import InputError
from drhard.index import NO_ROWS, RESULTS_AT_ONCE, check_queries, check_topk, restore_rows

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

GPU_TOPK = 2048  # the most that faiss returns from a GPU


class FaissIndex:
    """A search by an index of faiss.

    An inverted file of which few lists are probed may find fewer than k documents for a query. A warning then says
    how many queries are affected. :meth:`search` warns the first time, :meth:`passes` once for all of its queries.

    Args:
        index: of faiss, for inner products.
        progress: show a bar over the queries of :meth:`passes`.
        results_at_once: the most results that :meth:`passes` yields together, for any k.
        left_out: (n,) int64 rows that the index lacks, ascending.
    """

    def __init__(
        self,
        index: Any,
        progress: bool = False,
        results_at_once: int = RESULTS_AT_ONCE,
        left_out: np.ndarray = NO_ROWS,
    ):
        self.index, self.left_out = index, left_out
        self.progress, self.results_at_once = progress, results_at_once
        self._warned = False

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`drhard.index.Index.search`."""
        scores, rows = self._search(queries, k)
        if not self._warned:
            self._warn(int((rows[:, -1] < 0).sum()), len(queries), k)
        return scores, rows

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.index.Index.passes`."""
        together = max(1, self.results_at_once // k)
        fewer = 0
        with tqdm(total=len(queries), unit="query", desc="searching", disable=not self.progress) as bar:
            for first in range(0, len(queries), together):
                scores, rows = self._search(queries[first : first + together], k)
                fewer += int((rows[:, -1] < 0).sum())
                bar.update(len(rows))
                yield scores, rows
        self._warn(fewer, len(queries), k)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        check_queries(queries, self.index.d)
        check_topk(k, self.index.ntotal)
        scores, rows = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), restore_rows(np.take_along_axis(rows, order, 1), self.left_out)

    def _warn(self, fewer: int, queries: int, k: int) -> None:
        if fewer:
            self._warned = True
            log.warning(
                "the index finds fewer than %d documents for %d of %d queries; a greater --nprobe finds more",
                k,
                fewer,
                queries,
            )


def require_faiss() -> None:
    """Raise InputError if faiss is not installed. An exact search on the CPU does not need it."""
    if find_spec("faiss") is None:
        raise InputError("faiss is not installed; install faiss-cpu, or faiss-gpu to search on GPUs")


def check_faiss_gpus(gpus: Sequence[int], k: int = 1) -> None:
    """Raise InputError if faiss cannot search the ``k`` best on ``gpus``."""
    require_faiss()
    import faiss

    if k > GPU_TOPK:
        raise InputError(f"faiss finds at most the {GPU_TOPK} best on a GPU, not {k}; search on the CPU")
    if not hasattr(faiss, "GpuIndexFlatIP"):
        raise InputError(
            "the installed faiss has no GPU support; install requirements.txt on a machine with a GPU, "
            "or omit the flag to search on the CPU"
        )
    require_gpu()  # without a GPU, faiss would abort the process
    for gpu in gpus:
        if not 0 <= gpu < faiss.get_num_gpus():
            raise InputError(f"GPU {gpu} does not exist; faiss sees {faiss.get_num_gpus()}")
