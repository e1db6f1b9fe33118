"""Search backends: the kinds of index that the flags of a search choose from.

To add one: write an index with the protocol of :mod:`drhard.index`, give it a backend here, and name it in
:meth:`drhard.settings.SearchSettings._choose`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drhard.compressed import check_factory, open_compressed
from drhard.exact import SEARCH_MEMORY_GB, ExactIndex
from drhard.faiss_index import GPU_TOPK, check_gpus, find_gpus_with_room, open_on_gpus, require_faiss
from drhard.files import require_file
from drhard.flags import FLAT
from drhard.index import Index, check_topk
from drhard.numbers import SEARCH_GB

import numpy as np


class Backend(Protocol):
    """One kind of index: what can be checked before the long work, and how it is opened."""

    def check(self, k: int, count: int, dim: int) -> None:
        """Raise InputError if the ``k`` best of ``count`` documents of ``dim`` dimensions cannot be searched so."""

    def open(self, documents: np.ndarray, k: int) -> Index:
        """Return an index of ``documents`` (N, dim) float32, for searches of the ``k`` best and fewer."""


@dataclass(frozen=True)
class ExactBackend:
    """Exact search, on the CPU or on GPUs."""

    gpus: Sequence[int] | None = ()  # none: on the CPU; None: on all GPUs if they have room
    memory_gb: float = SEARCH_MEMORY_GB  # what a search on the CPU may take
    progress: bool = False

    def check(self, k: int, count: int, dim: int) -> None:
        """See :meth:`Backend.check`."""
        check_topk(k, count)
        SEARCH_GB.check("--search_memory_gb", self.memory_gb)
        if self.gpus:
            check_gpus(self.gpus, k)

    def open(self, documents: np.ndarray, k: int) -> Index:
        """See :meth:`Backend.open`. Raises InputError if a GPU cannot hold its part of the documents."""
        gpus = self.gpus
        if gpus is None:
            gpus = find_gpus_with_room(documents.nbytes) if k <= GPU_TOPK else ()
        if gpus:
            return open_on_gpus(documents, gpus, self.progress)
        return ExactIndex(documents, self.progress, self.memory_gb)


@dataclass(frozen=True)
class CompressedBackend:
    """A compressed index of faiss, on the CPU or on GPUs."""

    factory: str  # a description for faiss.index_factory; Flat for that of the file
    path: Path | None  # where the index is, or where it goes once it is built
    parameters: Mapping[str, int]  # of a search, by faiss's names
    gpus: Sequence[int] = ()
    progress: bool = False

    def check(self, k: int, count: int, dim: int) -> None:
        """See :meth:`Backend.check`."""
        check_topk(k, count)
        require_faiss()
        if self.gpus:
            check_gpus(self.gpus, k)
        if self.factory == FLAT and self.path is not None:
            require_file(self.path, "with --index_factory it is built there")
        else:
            check_factory(self.factory, dim, self.parameters, bool(self.gpus))

    def open(self, documents: np.ndarray, k: int) -> Index:
        """See :meth:`Backend.open`. Raises InputError as :func:`drhard.compressed.open_compressed`."""
        return open_compressed(documents, self.factory, self.path, self.parameters, self.gpus, self.progress)
