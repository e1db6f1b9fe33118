"""Encode a collection and a mode's queries with one encoder, and search. Mine hard negatives, also with BM25."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from drhard.bm25 import Bm25Index
from drhard.collection import Collection
from drhard.embeddings import digest_embeddings, write_row_numbers
from drhard.encoder import RobertaDot
from drhard.errors import InputError, shorten
from drhard.index import RESULTS_AT_ONCE
from drhard.msmarco import Bm25Parameters, Corpus
from drhard.negatives import HardNegatives, exclude_relevant
from drhard.results import Results, search_on_disk
from drhard.settings import EncodingSettings, SearchSettings
from drhard.texts import read_passage_texts, read_query_texts
from drhard.tokens import TokenMemmap

import numpy as np

log = logging.getLogger(__name__)

EXTRA = 10  # published: the run beside hard.json has topk + 10 passages, since relevant ones may be among them


@dataclass(frozen=True)
class Retriever:
    """An encoder, with settings for encoding and for searching its embeddings."""

    model: RobertaDot
    encoding: EncodingSettings
    searching: SearchSettings

    def check(self, collection: Collection, mode: str, topk: int) -> None:
        """Raise InputError, before the long work, if it must fail."""
        self.encoding.check(self.model, collection.queries(mode), collection.passages)
        self.searching.check(topk, len(collection.passages), self.model.output_embedding_size)

    @contextmanager
    def retrieve(self, collection: Collection, mode: str, run: Path, topk: int) -> Iterator[Results]:
        """Encode a mode's queries and the passages into the folder of ``run`` and search the passages.

        Embeddings go into ``{name}.memmap`` and ``{name}-id.memmap``. A later call reuses them.

        Args:
            run: where the caller writes the results; see :func:`drhard.results.search_on_disk`.
            topk: passages for each query.

        Raises:
            InputError: as :meth:`check`, :meth:`EncodingSettings.encode` and :meth:`SearchSettings.open`.
        """
        self.check(collection, mode, topk)
        queries = self._encode(collection.queries(mode), run.parent)
        passages = self._encode(collection.passages, run.parent)
        with search_embeddings(queries, passages, self.searching, run, topk) as found:
            yield found

    def _encode(self, tokens: TokenMemmap, folder: Path) -> np.ndarray:
        embeddings = self.encoding.encode(self.model, tokens, folder / f"{tokens.name}.memmap")
        write_row_numbers(folder / f"{tokens.name}-id.memmap", len(tokens))
        return embeddings


@contextmanager
def search_embeddings(
    queries: np.ndarray, documents: np.ndarray, searching: SearchSettings, run: Path, topk: int
) -> Iterator[Results]:
    """Search ``documents`` (N, dim) for ``queries`` (Q, dim), both float32. The results stay on disk.

    Args:
        run: where the caller writes the results; see :func:`drhard.results.search_on_disk`.
    """
    index = searching.open(documents, topk)
    made_from = {
        "queries": digest_embeddings(queries),
        "documents": digest_embeddings(documents),
        "index": searching.outcome(),
    }
    with search_on_disk(run, made_from, len(queries), topk, lambda done: index.passes(queries[done:], topk)) as found:
        yield found


class Mined(NamedTuple):
    """Hard negatives, and the run that they come from. The run includes relevant passages."""

    hard: HardNegatives
    scores: np.ndarray  # (queries, topk + 10) float32
    rows: np.ndarray  # (queries, topk + 10) int32, -1 at the end if fewer were found


@contextmanager
def mine_hard_negatives(
    retriever: Retriever, collection: Collection, mode: str, run: Path, topk: int
) -> Iterator[Mined]:
    """Mine the ``topk`` best passages of each query that are not judged relevant to it (section 4.1 of the paper).

    Args:
        run: see :meth:`Retriever.retrieve`.

    Raises:
        InputError: as :meth:`Retriever.retrieve`, or there are too few passages.
    """
    relevant = collection.relevant(mode)
    depth = _depth(relevant, len(collection.passages), topk)
    with retriever.retrieve(collection, mode, run, depth) as found:
        yield _mined(found, relevant, topk)


@contextmanager
def mine_bm25_negatives(
    corpus: Corpus, root: Path, mode: str, run: Path, topk: int, parameters: Bm25Parameters
) -> Iterator[Mined]:
    """Mine hard negatives with BM25, as the paper's warm-up needs them.

    A query gets fewer than ``topk`` if fewer passages share a word with it.

    Args:
        root: the folder with ``dataset/`` and ``preprocess/``.
    """
    collection = Collection(root / "preprocess")
    passages = collection.passages
    queries = read_query_texts(corpus, root, mode)
    relevant = collection.relevant(mode, queries=len(queries))
    depth = _depth(relevant, len(passages), topk)
    index = Bm25Index(read_passage_texts(corpus, root), len(passages), parameters)
    texts = hashlib.sha256("\n".join(queries).encode()).hexdigest()
    made_from = {"queries": texts, "documents": passages.digest(), "index": f"BM25 {parameters.k1} {parameters.b}"}

    def passes(done: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        together = max(1, RESULTS_AT_ONCE // depth)
        for first in range(done, len(queries), together):
            yield index.search(queries[first : first + together], depth)

    with search_on_disk(run, made_from, len(queries), depth, passes) as found:
        without = np.flatnonzero(found.rows[:, 0] < 0)
        if len(without):
            log.warning(
                "%d of %d queries share no word with any document, so BM25 finds nothing for them; the first is %s",
                len(without),
                len(queries),
                shorten(queries[without[0]]),
            )
        yield _mined(found, relevant, topk)


def _depth(relevant: Mapping[int, Sequence[int]], count: int, topk: int) -> int:
    """Return how many passages to find for a query, so that ``topk`` of them are not relevant."""
    most = max(map(len, relevant.values()))
    if topk + most > count:
        raise InputError(f"cannot mine {topk} negatives (--topk) from {count} passages; lower it")
    return min(topk + max(EXTRA, most), count)


def _mined(found: Results, relevant: Mapping[int, Sequence[int]], topk: int) -> Mined:
    hard = exclude_relevant(found.rows, relevant, topk)
    return Mined(hard, found.scores[:, : topk + EXTRA], found.rows[:, : topk + EXTRA])
