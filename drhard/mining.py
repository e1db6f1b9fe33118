"""Mine hard negatives with an encoder or with BM25.

This module is light to import, and BM25 needs no torch.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from drhard.collection import Collection
from drhard.errors import InputError, shorten
from drhard.index import RESULTS_AT_ONCE
from drhard.msmarco import Bm25Parameters, Corpus
from drhard.negatives import HardNegatives, Selection, choose_negatives
from drhard.results import Results, results_path, search_on_disk
from drhard.texts import read_passage_texts, read_query_texts

import numpy as np

if TYPE_CHECKING:
    from drhard.retrieval import Retriever

log = logging.getLogger(__name__)

EXTRA = 10  # published: the run beside hard.json has topk + 10 passages, since relevant ones may be among them


class Mined(NamedTuple):
    """Hard negatives, and the run that they come from. The run includes relevant passages."""

    hard: HardNegatives
    scores: np.ndarray  # (queries, topk + 10) float32
    rows: np.ndarray  # (queries, topk + 10) int32, -1 at the end if fewer were found


@contextmanager
def mine_hard_negatives(
    retriever: "Retriever", collection: Collection, mode: str, folder: Path, selection: Selection
) -> Iterator[Mined]:
    """Mine the best passages of each query that are not judged relevant to it (section 4.1 of the paper).

    Args:
        folder: where embeddings are written; see :meth:`drhard.retrieval.Retriever.retrieve`.
        selection: which of the passages to keep.

    Raises:
        InputError: as :meth:`drhard.retrieval.Retriever.retrieve`; or there are too few passages, or ``selection``
            leaves no query a hard negative.
    """
    relevant = collection.relevant_found(mode)
    depth = _depth(relevant, collection.count_found(), selection.ranks.last)
    with retriever.retrieve(collection, mode, folder, depth) as found:
        yield _mined(found, relevant, selection)


@contextmanager
def mine_bm25_negatives(
    corpus: Corpus,
    dataset: Path,
    collection: Collection,
    mode: str,
    folder: Path,
    selection: Selection,
    parameters: Bm25Parameters,
) -> Iterator[Mined]:
    """Mine hard negatives with BM25, as the paper's warm-up needs them.

    A query gets fewer if too few passages share a word with it.

    Args:
        dataset: the folder of the texts.
        collection: what preprocess.py made of them.
        folder: where a stopped search leaves its results, and resumes.
        selection: which of the passages to keep.

    Raises:
        InputError: the texts are not those of the collection; or as :func:`mine_hard_negatives`.
    """
    passages = collection.passages
    queries = read_query_texts(corpus, dataset, collection, mode)
    relevant = collection.relevant_found(mode, queries=len(queries))
    depth = _depth(relevant, collection.count_found(), selection.ranks.last)
    documents = read_passage_texts(corpus, dataset, collection)

    # Imported here: bm25s takes a second to load, and missing texts should be told before that.
    from drhard.bm25 import Bm25Index

    index = Bm25Index(documents, len(passages), parameters)
    texts = hashlib.sha256("\n".join(queries).encode()).hexdigest()
    words = " split_names" if parameters.split_names else ""
    kind = f"BM25 {parameters.k1} {parameters.b}{words}"
    made_from = {"queries": texts, "documents": passages.digest(), "index": kind}

    def passes(done: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        together = max(1, RESULTS_AT_ONCE // depth)
        for first in range(done, len(queries), together):
            yield index.search(queries[first : first + together], depth)

    with search_on_disk(results_path(folder, mode), made_from, len(queries), depth, passes) as found:
        without = np.flatnonzero(found.rows[:, 0] < 0)
        if len(without):
            log.warning(
                "%d of %d queries share no word with any passage, so BM25 finds nothing for them; the first is %s",
                len(without),
                len(queries),
                shorten(queries[without[0]]),
            )
        yield _mined(found, relevant, selection)


def _depth(relevant: Mapping[int, Sequence[int]], count: int, topk: int) -> int:
    """Return how many passages to find for a query, so that ``topk`` of them are not relevant."""
    most = max(map(len, relevant.values()))
    if topk + most > count:
        raise InputError(f"cannot mine {topk} negatives (--topk or --negative_ranks) from {count} passages; lower it")
    return min(topk + max(EXTRA, most), count)


def _mined(found: Results, relevant: Mapping[int, Sequence[int]], selection: Selection) -> Mined:
    hard, removed = choose_negatives(found, relevant, selection)
    lacking = np.isin(np.fromiter(relevant, dtype=np.int64), hard.find_empty())
    if selection.margin is not None:
        log.info(
            "the relative margin removed %d of %d hard negatives (%.1f %%); %d of %d queries keep none",
            removed,
            removed + hard.total,
            100 * removed / max(1, removed + hard.total),
            lacking.sum(),
            len(lacking),
        )
    if lacking.all() and not selection.plain:
        # Raised while the results of the search are on disk, so that the next call can use them.
        lower = "" if selection.margin is None else "a lower --relative_margin or "
        raise InputError(f"no query has a hard negative ({selection.outcome()}); give {lower}other --negative_ranks")
    shown = selection.ranks.last + EXTRA
    return Mined(hard, found.scores[:, :shown], found.rows[:, :shown])
