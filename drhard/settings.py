"""Settings for encoding and searching. They are made from flags, and checked before the long work begins."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drhard.backends import Backend, CompressedBackend, ExactBackend
from drhard.devices import choose_device, choose_dtype, require_compiler
from drhard.embeddings import encode, open_embeddings
from drhard.encoder import Encoder, check_tokens
from drhard.errors import InputError
from drhard.files import digest_file
from drhard.flags import FLAT, SEARCH_MEMORY_GB
from drhard.index import NO_ROWS, Index
from drhard.numbers import COUNT
from drhard.tokens import TokenMemmap

import numpy as np
import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodingSettings:
    """How texts become embeddings."""

    batch_size: int  # sequences of the maximum length
    device: torch.device
    dtype: torch.dtype = torch.float32  # the precision of the model on a GPU; embeddings are written as float32

    @classmethod
    def from_flags(cls, flags: Namespace) -> "EncodingSettings":
        """Make settings from the encoding flags of :mod:`drhard.flags`.

        Logs a warning if this is the only process and there are several GPUs: it uses one.

        Raises:
            InputError: torch cannot compile for the device.
        """
        device = choose_device(flags.no_cuda)
        if getattr(flags, "torch_compile", False):
            require_compiler(device)
        if device.type == "cuda" and torch.cuda.device_count() > 1:
            log.warning(
                "encodes on one of %d GPUs; to use all, start a process for each with torchrun --nproc_per_node %d",
                *[torch.cuda.device_count()] * 2,
            )
        return cls(flags.batch_size, device, choose_dtype(flags.precision, device))

    def check(self, model: Encoder, *tokens: TokenMemmap) -> None:
        """Raise InputError, before the long work, if ``model`` cannot encode ``tokens`` with these settings."""
        COUNT.check("the batch size", self.batch_size)
        for of in tokens:
            check_tokens(model, of)

    def encode(self, model: Encoder, tokens: TokenMemmap, path: Path) -> np.ndarray:
        """Encode ``tokens`` into ``path``, unless that was done before. Open the embeddings.

        Returns:
            (rows, dim) float32 memmap.

        Raises:
            InputError: as :func:`drhard.embeddings.encode`.
        """
        dim = encode(model, tokens, path, self.batch_size, self.device, self.dtype)
        return open_embeddings(path, dim, len(tokens))


@dataclass(frozen=True)
class SearchSettings:
    """How documents are searched: exactly, on the CPU or on GPUs, or with a compressed index of faiss."""

    gpus: Sequence[int] | None = ()  # empty: on the CPU; None: on all GPUs if they have room for an exact search
    memory_gb: float = SEARCH_MEMORY_GB  # for an exact search on the CPU
    factory: str = FLAT  # a description for faiss.index_factory; Flat is exact
    index_path: Path | None = None  # the file of a compressed index, built if it does not exist
    nprobe: int | None = None  # lists of an inverted file to search; None: the index's setting, 1 in a new one
    ef_search: int | None = None  # how far to search a graph; None: the index's setting
    progress: bool = False
    repeated: bool = False  # whether the same documents are searched again and again, as in ADORE's training
    queries: int = 0  # at least so many are searched

    @classmethod
    def from_flags(cls, flags: Namespace, no_cuda: bool = False) -> "SearchSettings":
        """Make settings from those search flags of :mod:`drhard.flags` that a script has. A search shows progress."""
        given = {name: getattr(flags, name) for name in cls.__dataclass_fields__ if hasattr(flags, name)}
        if no_cuda and given["gpus"] is None:
            given["gpus"] = ()
        return cls(**given, progress=True)

    @property
    def exact(self) -> bool:
        """Whether the search is exact: it finds the best documents, and not some that are nearly the best."""
        return self.factory == FLAT and self.index_path is None

    @property
    def parameters(self) -> dict[str, int]:
        """The search parameters that were set, by faiss's names."""
        values = {"nprobe": self.nprobe, "efSearch": self.ef_search}
        return {name: value for name, value in values.items() if value is not None}

    def check(self, k: int, count: int, dim: int) -> None:
        """Raise InputError, before the long work, if the ``k`` best of ``count`` x ``dim`` cannot be searched."""
        for name, value in self.parameters.items():
            COUNT.check(name, value)
        self._choose().check(k, count, dim)
        if self.exact and self.parameters:
            raise InputError("--nprobe and --ef_search need a compressed index; give --index_factory too")

    def open(self, documents: np.ndarray, k: int, left_out: np.ndarray = NO_ROWS) -> Index:
        """Return an index of ``documents`` (N, dim) float32 that finds up to the ``k`` best.

        Args:
            left_out: (n,) int64 rows that it must not find, such as those of empty texts, ascending.

        Raises:
            InputError: faiss cannot build the index, the file at ``index_path`` was built from other documents, or a
                GPU cannot hold the index.
        """
        return self._choose().open(documents, k, left_out)

    def _choose(self) -> Backend:
        if self.exact:
            return ExactBackend(self.gpus, self.memory_gb, self.progress, self.repeated, self.queries)
        return CompressedBackend(self.factory, self.index_path, self.parameters, self.gpus or (), self.progress)

    def outcome(self) -> str:
        """Return the settings that decide which documents are found. Call it once the index is open."""
        index = self.factory if self.index_path is None else digest_file(self.index_path)
        return " ".join([index, *(f"{name} {value}" for name, value in self.parameters.items())])
