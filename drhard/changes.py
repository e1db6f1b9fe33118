"""Which queries gain and lose most from one row of a table to another, with their texts where those are there."""

import logging
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drhard.collection import Collection
from drhard.dataset import find_corpus
from drhard.errors import InputError
from drhard.measured import Judged, MeasuredTrial
from drhard.msmarco import CORPORA, find_source_file
from drhard.passage_texts import open_passage_texts
from drhard.recipes import Table
from drhard.texts import read_query_texts

import numpy as np

log = logging.getLogger(__name__)

SHOWN = 5  # queries that gain, and as many that lose
LONGEST = 200  # characters of a passage


def find_changes(table: Table, pair: Sequence[Sequence[MeasuredTrial]], judged: Judged) -> dict[str, Any]:
    """Compare two rows query by query, in the table's first measure. A query's value is its mean over the seeds.

    Args:
        pair: the trials of both rows.
        judged: the judgements that are there.

    Returns:
        The numbers of queries that gain, lose and stay, and the queries that gain and lose most, the greatest change
        first. A query has its id and the ranks of its first relevant document with each seed of both rows (0 if it was
        not found). It has the first documents of both rows, by their first seeds, and the relevant documents. None
        stands for what nobody kept.
    """
    key, measure = next(iter(table.measures.items()))
    row, than = (np.mean([trial.queries[key] for trial in trials], axis=0) for trials in pair)
    gains = row - than
    grades = judged.get(table.qrels[measure.mode], {})
    qids = _find_ids([trials[0] for trials in pair], list(grades), len(gains))
    order = np.argsort(-gains, kind="stable")
    best = [place for place in order[:SHOWN] if gains[place] > 0]
    worst = [place for place in order[::-1][:SHOWN] if gains[place] < 0]

    def describe(place: int) -> dict[str, Any]:
        qid = qids[place] if qids else None
        relevant = [docid for docid, grade in grades.get(qid, {}).items() if grade > 0] if qid is not None else []
        return {
            "qid": qid,
            "gain": float(gains[place]),
            "ranks": [_ranks(trials, place) for trials in pair],
            "tops": [trials[0].tops[qid] if trials[0].tops and qid is not None else None for trials in pair],
            "relevant": relevant or None,
        }

    return {
        "gain": int((gains > 0).sum()),
        "lose": int((gains < 0).sum()),
        "stay": int((gains == 0).sum()),
        "gaining": [describe(place) for place in best],
        "losing": [describe(place) for place in worst],
    }


def _find_ids(first: Iterable[MeasuredTrial], judged: list[str], count: int) -> list[str] | None:
    """Return the ids of the queries, from a record or else from the judgements; None if both are missing."""
    kept = [list(trial.tops) for trial in first if trial.tops is not None]
    return next((ids for ids in (*kept, judged) if len(ids) == count), None)


def _ranks(trials: Sequence[MeasuredTrial], place: int) -> list[int] | None:
    ranks = [int(trial.ranks[place]) for trial in trials if trial.ranks is not None]
    return ranks if len(ranks) == len(trials) else None


def read_texts(table: Table, changes: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the texts of the queries and of the documents in ``changes``, by their ids.

    Args:
        table: a table whose ids are rows. Its judgements lie in a ``preprocess`` folder beside the texts.
        changes: what :func:`find_changes` returned.

    Returns:
        Empty if there are no texts, or, with a warning, if they cannot be read.
    """
    mode = next(iter(table.measures.values())).mode
    shown = [query for change in changes for query in (*change["gaining"], *change["losing"]) if query["qid"]]
    docids = {docid for query in shown for docs in (query["relevant"], *query["tops"]) for docid in docs or ()}
    try:
        return _read_texts(table.qrels[mode].parent, mode, {query["qid"] for query in shown}, docids)
    except InputError as error:
        log.warning("%s; the report of %s has no texts", error, table.name)
        return {}


def _read_texts(folder: Path, mode: str, qids: Iterable[str], docids: Iterable[str]) -> dict[str, dict[str, str]]:
    dataset = folder.parent / "dataset"
    collection = Collection(folder)
    if folder.parent.name not in CORPORA or not collection.has_ids(mode):
        return {}
    corpus = find_corpus(CORPORA[folder.parent.name], dataset)
    queries = corpus.modes[mode].queries if mode in corpus.modes else None
    if queries is None or find_source_file(dataset, queries) is None:
        return {}
    pids, rows = collection.pids(), sorted(map(int, docids))
    texts = open_passage_texts(corpus, dataset, folder, pids)
    if texts is None:
        return {}
    of_queries = read_query_texts(corpus, dataset, collection, mode)
    if max(rows, default=0) >= len(pids) or max(map(int, qids), default=0) >= len(of_queries):
        raise InputError(f"{folder}: has fewer queries or passages than were measured")
    return {
        "queries": {qid: of_queries[int(qid)] for qid in sorted(qids, key=int)},
        "passages": {
            str(row): textwrap.shorten(text, LONGEST, placeholder=" …")
            for row, text in zip(rows, texts.read(rows), strict=True)
        },
    }
