"""Encode a collection and a mode's queries with one encoder, and search."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from drhard import processes
from drhard.collection import Collection
from drhard.embeddings import digest_embeddings, write_row_numbers
from drhard.encoder import Encoder
from drhard.index import NO_ROWS
from drhard.results import Parts, Results, results_path, search_on_disk
from drhard.settings import EncodingSettings, SearchSettings
from drhard.tokens import TokenMemmap

import numpy as np


@dataclass(frozen=True)
class Retriever:
    """An encoder, with settings for encoding and for searching its embeddings."""

    model: Encoder
    encoding: EncodingSettings
    searching: SearchSettings

    def check(self, collection: Collection, mode: str, topk: int) -> None:
        """Raise InputError, before the long work, if it must fail."""
        self.encoding.check(self.model, collection.queries(mode), collection.passages)
        self.searching.check(topk, collection.count_found(), self.model.output_embedding_size)

    @contextmanager
    def retrieve(self, collection: Collection, mode: str, folder: Path, topk: int) -> Iterator[Results]:
        """Encode a mode's queries and the passages into ``folder`` and search the passages.

        Embeddings go into ``{name}.memmap`` and ``{name}-id.memmap``. A later call reuses them. A stopped search leaves
        its results there too, and resumes. Several processes must call this together; they share the work.

        Args:
            topk: passages for each query.

        Raises:
            InputError: as :meth:`check`, :meth:`EncodingSettings.encode` and :meth:`SearchSettings.open`.
        """
        self.check(collection, mode, topk)
        queries = self._encode(collection.queries(mode), folder)
        passages = self._encode(collection.passages, folder)
        results, left_out = results_path(folder, mode), collection.left_out
        with search_embeddings(queries, passages, self.searching, results, topk, left_out) as found:
            yield found

    def _encode(self, tokens: TokenMemmap, folder: Path) -> np.ndarray:
        embeddings = self.encoding.encode(self.model, tokens, folder / f"{tokens.name}.memmap")
        processes.first_value(lambda: write_row_numbers(folder / f"{tokens.name}-id.memmap", len(tokens)))
        return embeddings


@contextmanager
def search_embeddings(
    queries: np.ndarray,
    documents: np.ndarray,
    searching: SearchSettings,
    results: Path,
    topk: int,
    left_out: np.ndarray = NO_ROWS,
) -> Iterator[Results]:
    """Search ``documents`` (N, dim) for ``queries`` (Q, dim), both float32. The results stay on disk.

    Args:
        results: their file; see :func:`drhard.results.search_on_disk`.
        left_out: (n,) int64 rows of documents that are not found, ascending.
    """
    opened = None if searching.exact else searching.open(documents, topk, left_out)  # its file decides what is found

    def search(done: int) -> Parts:
        index = opened
        if index is None:
            index = replace(searching, queries=len(queries) - done).open(documents, topk, left_out)
        return index.passes(queries[done:], topk)

    made_from = {
        "queries": digest_embeddings(queries),
        "documents": digest_embeddings(documents),
        "index": searching.outcome(),
    }
    if len(left_out):
        made_from["left_out"] = hashlib.sha256(left_out.tobytes()).hexdigest()
    with search_on_disk(results, made_from, len(queries), topk, search) as found:
        yield found
