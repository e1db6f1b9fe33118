"""Search backends: the kinds of index that a search can use. Flags choose one.

To add one: write an index with the protocol of :mod:`drhard.index`, give it a backend here, and return the backend from
:meth:`drhard.settings.SearchSettings._choose`. docs/architecture.md has all steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drhard import processes
from drhard.code_file import open_code_file, open_codes
from drhard.codes import Codes
from drhard.compressed import check_factory, open_compressed
from drhard.embeddings import fits_in_memory, read_if_it_fits
from drhard.exact import ExactIndex
from drhard.faiss_index import check_faiss_gpus, require_faiss
from drhard.files import require_file
from drhard.flags import FLAT, SEARCH_MEMORY_GB
from drhard.index import Index, check_topk, part_of
from drhard.numbers import SEARCH_GB
from drhard.parts import FirstsIndex, SharedIndex, own_rows
from drhard.products import has_fast_int8
from drhard.shards import ShardedIndex, check_gpus, find_gpus_with_room, open_shards
from drhard.vectors import check_finite, name_source

import numpy as np
import torch

FEWEST_CODED = 200_000  # documents; with fewer, scoring some again costs more than int8 saves
# So many queries win back the time that the codes take, which must stay in a file. With 100,000 documents in a file,
# float32 is faster.
MANY_QUERIES, MANY_DOCUMENTS = 4096, 500_000


class Backend(Protocol):
    """One kind of index: checks before the long work, and opening it."""

    def check(self, k: int, count: int, dim: int) -> None:
        """Raise InputError if the index cannot find the ``k`` best of ``count`` documents of ``dim`` dimensions."""

    def open(self, documents: np.ndarray, k: int, left_out: np.ndarray) -> Index:
        """Return an index of ``documents`` (N, dim) float32 that finds up to the ``k`` best.

        Args:
            left_out: (n,) int64 rows that it must not find, ascending.
        """


@dataclass(frozen=True)
class ExactBackend:
    """Exact search, on the CPU or on GPUs."""

    gpus: Sequence[int] | None = ()  # empty: on the CPU; None: on all GPUs if they have room
    memory_gb: float = SEARCH_MEMORY_GB  # for a search on the CPU
    progress: bool = False
    repeated: bool = False  # whether the index will be searched again and again
    queries: int = 0  # at least so many will be searched

    def check(self, k: int, count: int, dim: int) -> None:
        """See :meth:`Backend.check`."""
        check_topk(k, count)
        SEARCH_GB.check("--search_memory_gb", self.memory_gb)
        if self.gpus:
            check_gpus(self.gpus)

    def open(self, documents: np.ndarray, k: int, left_out: np.ndarray) -> Index:
        """See :meth:`Backend.open`. Raises InputError if a GPU cannot hold its part of the documents.

        Several processes hold a part of the documents each. All of them must open and search the index together.
        """
        if processes.count() == 1:
            return self._open(documents, left_out)
        own = own_rows(len(documents))
        part, absent = documents[own], part_of(left_out, own.start, own.stop - own.start)
        if self.repeated and not self.gpus:
            part = read_if_it_fits(part)
            check_finite(part, own.start, name_source(documents, "the documents"))
        return SharedIndex(self._open(part, absent), part, len(documents))

    def _open(self, documents: np.ndarray, left_out: np.ndarray) -> ExactIndex | ShardedIndex:
        gpus = self.gpus
        if gpus is None:
            gpus = find_gpus_with_room(*documents.shape)
        if gpus and len(documents):
            check_gpus(gpus)
            return open_shards(documents, [torch.device("cuda", gpu) for gpu in gpus], self.progress, left_out)
        codes = self._open_codes(documents)
        return ExactIndex(documents, self.progress, self.memory_gb, left_out=left_out, codes=codes)

    def _open_codes(self, documents: np.ndarray) -> Codes | None:
        """Return the int8 codes of the documents if it is faster to make them and to search by them; else None."""
        if self.repeated and isinstance(documents, np.memmap) and len(documents) and not fits_in_memory(documents):
            return open_codes(documents, progress=True)  # a search of a few queries waits for the disk
        many = self.queries >= MANY_QUERIES and len(documents) >= MANY_DOCUMENTS
        if not (self.repeated and len(documents) >= FEWEST_CODED or many) or not has_fast_int8(torch.device("cpu")):
            return None
        return (open_codes if self.repeated else open_code_file)(documents, progress=True)


@dataclass(frozen=True)
class CompressedBackend:
    """A compressed index of faiss, on the CPU or on GPUs."""

    factory: str  # a description for faiss.index_factory; Flat to use the file's index
    path: Path | None  # the file of the index, built if it does not exist; None: built for this run only
    parameters: Mapping[str, int]  # search parameters by faiss's names
    gpus: Sequence[int] = ()
    progress: bool = False

    def check(self, k: int, count: int, dim: int) -> None:
        """See :meth:`Backend.check`."""
        check_topk(k, count)
        require_faiss()
        if self.gpus:
            check_faiss_gpus(self.gpus, k)
        if self.factory == FLAT and self.path is not None:
            require_file(self.path, "give --index_factory to build it")
        else:
            check_factory(self.factory, dim, self.parameters, bool(self.gpus))

    def open(self, documents: np.ndarray, k: int, left_out: np.ndarray) -> Index:
        """See :meth:`Backend.open`. Raises InputError as :func:`drhard.compressed.open_compressed`.

        The first of several processes holds the whole index. All of them must open and search it together.
        """
        opened: list[Index] = []

        def open_here() -> None:
            options = self.path, self.parameters, self.gpus, self.progress, left_out
            opened.append(open_compressed(documents, self.factory, *options))

        processes.first_value(open_here)
        return opened[0] if processes.count() == 1 else FirstsIndex(next(iter(opened), None))
