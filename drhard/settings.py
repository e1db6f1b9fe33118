"""Settings: what encoding and searching need, made from flags once, checked before the long work, opened after."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drhard.backends import Backend, CompressedBackend, ExactBackend
from drhard.devices import choose_device, choose_dtype
from drhard.embeddings import encode, open_embeddings
from drhard.encoder import RobertaDot, check_tokens
from drhard.errors import InputError
from drhard.exact import SEARCH_MEMORY_GB
from drhard.files import digest_file
from drhard.flags import FLAT
from drhard.index import Index
from drhard.numbers import COUNT
from drhard.tokens import TokenMemmap

import numpy as np
import torch


@dataclass(frozen=True)
class EncodingSettings:
    """How texts become embeddings."""

    batch_size: int  # sequences of the greatest length, for each GPU
    device: torch.device
    dtype: torch.dtype = torch.float32  # what the model computes in on a GPU; what is written is float32

    @classmethod
    def from_flags(cls, flags: Namespace) -> "EncodingSettings":
        """Of the flags that :mod:`drhard.flags` has for encoding. Raises InputError if the GPU is not there."""
        device = choose_device(flags.no_cuda)
        return cls(flags.batch_size, device, choose_dtype(flags.precision, device))

    def check(self, model: RobertaDot, *tokens: TokenMemmap) -> None:
        """Raise InputError, before the long work, if ``model`` cannot encode one of ``tokens`` so."""
        COUNT.check("the batch size", self.batch_size)
        for of in tokens:
            check_tokens(model, of)

    def encode(self, model: RobertaDot, tokens: TokenMemmap, path: Path) -> np.ndarray:
        """Encode ``tokens`` into ``path``, or take what is there already, and open it.

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

    gpus: Sequence[int] | None = ()  # on the CPU if empty; None: on all GPUs if they have room for an exact search
    memory_gb: float = SEARCH_MEMORY_GB  # what an exact search on the CPU may take
    factory: str = FLAT  # a description for faiss.index_factory; Flat is exact
    index_path: Path | None = None  # where a compressed index is, or where it goes once it is built
    nprobe: int | None = None  # lists that an inverted file looks into; None: as the index has it, 1 in a new one
    ef_search: int | None = None  # how far a graph is searched; None: as the index has it
    progress: bool = False

    @classmethod
    def from_flags(cls, flags: Namespace, no_cuda: bool = False) -> "SearchSettings":
        """Of the flags that :mod:`drhard.flags` has for searching, as far as a script has them; shows progress."""
        given = {name: getattr(flags, name) for name in cls.__dataclass_fields__ if hasattr(flags, name)}
        if no_cuda and given["gpus"] is None:
            given["gpus"] = ()
        return cls(**given, progress=True)

    @property
    def exact(self) -> bool:
        """Whether the best documents are found, and not some that are nearly so."""
        return self.factory == FLAT and self.index_path is None

    @property
    def parameters(self) -> dict[str, int]:
        """faiss's names of search parameters, with the values that are set."""
        values = {"nprobe": self.nprobe, "efSearch": self.ef_search}
        return {name: value for name, value in values.items() if value is not None}

    def check(self, k: int, count: int, dim: int) -> None:
        """Raise InputError, before the long work, if the ``k`` best of ``count`` x ``dim`` cannot be searched so."""
        for name, value in self.parameters.items():
            COUNT.check(name, value)
        self._choose().check(k, count, dim)
        if self.exact and self.parameters:
            raise InputError("--nprobe and --ef_search are of a compressed index: give --index_factory too")

    def open(self, documents: np.ndarray, k: int) -> Index:
        """The index of ``documents`` (N, dim) float32, for searches of the ``k`` best and fewer.

        Raises:
            InputError: faiss cannot build such an index, the one at ``index_path`` is not of these documents, or a
                GPU cannot hold it.
        """
        return self._choose().open(documents, k)

    def _choose(self) -> Backend:
        if self.exact:
            return ExactBackend(self.gpus, self.memory_gb, self.progress)
        return CompressedBackend(self.factory, self.index_path, self.parameters, self.gpus or (), self.progress)

    def outcome(self) -> str:
        """What decides which documents are found, beside the documents; call it once the index is open."""
        index = self.factory if self.index_path is None else digest_file(self.index_path)
        return " ".join([index, *(f"{name} {value}" for name, value in self.parameters.items())])
