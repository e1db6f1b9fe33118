"""Score pairs of a query and a document in float32: documents in memory, in a file, or on a GPU."""

import os
import threading
import warnings
from contextlib import suppress
from typing import Protocol

from drhard.blocks import BLOCK_ROWS, read_blocks
from drhard.vectors import find_in_file, gather_rows

import numpy as np
import torch

AGAIN = 1 << 14  # documents of a memmap to score at a time
AGAIN_ON_GPU = 1 << 27  # numbers of documents on a GPU to score at a time
FEWEST_SUMS = 32  # rows that a GPU always sums together: it sums fewer in another order
# A disk reads up to so many rows as fast as one, if they follow each other. So where one in so many is wanted, the file
# is read from end to end.
BETWEEN = 8
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")  # we make them for one function only


class Vectors(Protocol):
    """The documents in float32."""

    @property
    def device(self) -> torch.device | None:
        """Where the documents are in memory; None if they are in a file."""

    def score(self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Return the scores (n,) float32 of pairs of a query and a document.

        Each pair is summed in the same way, wherever it stands, so equal documents get equal scores.

        Args:
            queries: (Q, dim) float32.
            query, row: both (n,) int64, on the device of ``queries``; ``query`` ascends.
        """

    def expect(self, rows: torch.Tensor) -> None:
        """Prepare for documents (n,) int64 that will probably be scored, while the caller goes on."""

    def is_read_whole(self, pairs: int) -> bool:
        """Return whether to score so many pairs takes as long as to read all documents."""


class HostVectors:
    """Documents in memory or in a file.

    Args:
        documents: (N, dim) float32.

    Attributes:
        device: see :class:`Vectors`.
    """

    def __init__(self, documents: np.ndarray):
        self._documents = documents
        self._place = find_in_file(documents)
        # A read-only array is read as a file is: torch wants to be able to write.
        in_memory = self._place is None and documents.flags.c_contiguous and documents.flags.writeable
        self._in_memory = torch.from_numpy(documents) if in_memory else None
        self.device = self._in_memory.device if self._in_memory is not None else None

    def score(self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """See :meth:`Vectors.score`."""
        pairs = queries.cpu(), query.cpu(), row.cpu()
        scores = self._score_from_file(*pairs) if self._in_memory is None else multiply_pairs(self._in_memory, *pairs)
        return scores.to(queries.device)

    def expect(self, rows: torch.Tensor) -> None:
        """See :meth:`Vectors.expect`. The system reads them into its cache."""
        if self._place is None or not hasattr(os, "posix_fadvise"):
            return
        wanted = np.unique(rows.cpu().numpy())
        if self.is_read_whole(len(wanted)):
            return
        path, start = self._place
        size = self._documents.shape[1] * self._documents.itemsize

        def read_ahead() -> None:
            with suppress(OSError), open(path, "rb") as file:
                for first in (start + wanted * size).tolist():
                    os.posix_fadvise(file.fileno(), first, size, os.POSIX_FADV_WILLNEED)

        threading.Thread(target=read_ahead, name="read ahead", daemon=True).start()

    def is_read_whole(self, pairs: int) -> bool:
        """See :meth:`Vectors.is_read_whole`."""
        return self._in_memory is None and pairs * BETWEEN > len(self._documents)

    def _score_from_file(self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Score in the order of the file, a part of its rows at a time."""
        scores, rows = torch.empty(len(row)), row.numpy()
        by_row = np.argsort(rows, kind="stable")
        for first in range(0, len(rows), AGAIN):
            some = np.sort(by_row[first : first + AGAIN])
            distinct, place = np.unique(rows[some], return_inverse=True)
            vectors = torch.from_numpy(self._read(distinct))
            scores[some] = multiply_pairs(vectors, queries, query[some], torch.from_numpy(place))
        return scores

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Return the documents of ``rows``, ascending: what lies between them is read too if it is little."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first > BETWEEN * len(rows):
            return gather_rows(self._documents, rows)
        found, done = np.empty((len(rows), self._documents.shape[1]), dtype=np.float32), 0
        for start, block in read_blocks(self._documents[first:last], BLOCK_ROWS):
            end = int(np.searchsorted(rows, first + start + len(block)))
            np.take(block, rows[done:end] - (first + start), axis=0, out=found[done:end], mode="clip")
            done = end
        return found


class DeviceVectors:
    """Documents on a GPU.

    Args:
        documents: (N, dim) float32.

    Attributes:
        device: the GPU.
    """

    def __init__(self, documents: torch.Tensor):
        self._documents = documents
        self.device = documents.device

    def score(self, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """See :meth:`Vectors.score`."""
        return sum_pairs(self._documents, queries, query, row)

    def expect(self, rows: torch.Tensor) -> None:
        """See :meth:`Vectors.expect`. There is nothing to do."""

    def is_read_whole(self, pairs: int) -> bool:
        """See :meth:`Vectors.is_read_whole`."""
        return False


def multiply_pairs(
    documents: torch.Tensor, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor
) -> torch.Tensor:
    """Return the products (n,) float32 of ``queries[query]`` and ``documents[row]`` on a CPU.

    Each is summed in the same way. torch has a function for products at the places of a sparse matrix, which copies no
    vectors.

    Args:
        documents, queries: (N, dim) and (Q, dim) float32.
        query, row: both (n,) int64; ``query`` ascends.
    """
    starts, shape = torch.searchsorted(query, torch.arange(len(queries) + 1)), (len(queries), len(documents))
    pairs = torch.sparse_csr_tensor(starts, row, torch.zeros(len(row)), shape, check_invariants=False)
    products: torch.Tensor = torch.sparse.sampled_addmm(pairs, queries, documents.T, beta=0).values()
    return products


def sum_pairs(documents: torch.Tensor, queries: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Return what :func:`multiply_pairs` does, on a GPU. The vectors are copied, a part at a time."""
    scores = torch.empty(len(row), device=row.device)
    size = max(1, AGAIN_ON_GPU // documents.shape[1])
    for first in range(0, len(row), size):
        part = slice(first, first + size)
        rows, asked = (torch.cat((places[part], places[:1].expand(FEWEST_SUMS))) for places in (row, query))
        scores[part] = documents[rows].mul_(queries[asked]).sum(dim=1)[:-FEWEST_SUMS]
    return scores
