"""Runs: the ranked documents of each query, ``qid \\t pid \\t rank`` with ranks from 1, or in TREC's six columns."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from drhard.errors import InputError
from drhard.files import text_lines, whole_file, whole_text
from drhard.msmarco import parse_id, parse_number

import numpy as np

log = logging.getLogger(__name__)


def write_run(path: Path, scores: np.ndarray, rows: np.ndarray) -> None:
    """Write a run in row numbers, ``{mode}.rank.tsv``, and beside it its scores, ``{mode}.score.npy``.

    Args:
        scores: (Q, k) float32; ``scores[query, rank - 1]`` is that of a line of the run.
        rows: (Q, k), the document rows of each query row, best first; -1 where there is none, at the end.
    """
    with whole_file(score_path(path)) as score_file, whole_text(path) as run:  # named together, when both are whole
        np.save(score_file, scores.astype(np.float32, copy=False))
        for query, documents in enumerate(rows):  # one by one: as Python's numbers all of them take gigabytes
            run.writelines(
                f"{query}\t{row}\t{rank}\n" for rank, row in enumerate(documents.tolist(), start=1) if row >= 0
            )


def score_path(run: Path) -> Path:
    """The file of the scores of a run, ``{mode}.score.npy`` beside ``{mode}.rank.tsv``."""
    return run.with_name(f"{run.name.removesuffix('.rank.tsv')}.score.npy")


def read_ranked(path: str | Path, pid_prefix: str = "") -> Iterator[tuple[int, int, int]]:
    """Yield (qid, pid, rank) of each line of a run. Raises InputError if the file is missing or a line is bad.

    Args:
        pid_prefix: what official document ids begin with, "D" for MS MARCO doc.
    """
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        fields = line.split()
        if len(fields) != 3:
            raise InputError(f"{where}: expected 'qid <tab> pid <tab> rank', found {len(fields)} fields")
        rank = parse_number(fields[2])
        if not rank:
            raise InputError(f"{where}: the rank {fields[2][:40]!r} is not 1, 2, 3, …")
        yield parse_id(fields[0], "", where), parse_id(fields[1], pid_prefix, where), rank


def read_run(path: str | Path, pid_prefix: str = "") -> dict[int, list[int]]:
    """Read a run.

    Returns:
        qid -> pids, best first; queries in the order of the file.

    Raises:
        InputError: as :func:`read_ranked`, or a query's ranks are not 1, 2, 3, … or name a document twice.
    """
    ranked: dict[int, dict[int, int]] = {}
    for number, (qid, pid, rank) in enumerate(read_ranked(path, pid_prefix), start=1):
        pids = ranked.setdefault(qid, {})
        if rank in pids:
            raise InputError(f"{path}, line {number}: query {qid} has two documents of rank {rank}")
        pids[rank] = pid
    run = {}
    for qid, pids in ranked.items():
        order = [pids[rank] for rank in sorted(pids)]
        if max(pids) != len(pids):
            raise InputError(f"{path}: query {qid} has {len(pids)} documents but a rank {max(pids)}")
        if len(set(order)) != len(order):
            twice = next(pid for pid in order if order.count(pid) > 1)
            raise InputError(f"{path}: query {qid} has document {pid_prefix}{twice} at two ranks")
        run[qid] = order
    if not run:
        raise InputError(f"{path}: the run is empty")
    return run


def read_scored(path: str | Path) -> dict[str, dict[str, float]]:
    """Read any run: ours or an official one (``qid pid rank``), or TREC's (``qid Q0 docid rank score tag``).

    Returns:
        qid -> docid -> score, ids as they are written; minus the rank where the run has no scores. As in
        trec_eval, TREC's column of ranks does not count.

    Raises:
        InputError: the file is missing or empty, or a line is bad or names a document again.
    """
    run: dict[str, dict[str, float]] = {}
    ranked = set()  # the queries that have ranks for scores
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        fields = line.split()
        if len(fields) == 3:
            qid, docid, rank = fields
            if not parse_number(rank):
                raise InputError(f"{where}: the rank {rank[:40]!r} is not 1, 2, 3, …")
            score = -float(rank)
            ranked.add(qid)
        elif len(fields) == 6:
            qid, _, docid, _, text, _ = fields
            try:
                score = float(text)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise InputError(f"{where}: the score {text[:40]!r} is not a number")
        else:
            raise InputError(f"{where}: expected 'qid pid rank' or 'qid Q0 docid rank score tag'")
        scores = run.setdefault(qid, {})
        if docid in scores:
            raise InputError(f"{where}: query {qid} has document {docid} again")
        scores[docid] = score
    for qid in ranked:
        if len(set(run[qid].values())) < len(run[qid]):
            raise InputError(f"{path}: query {qid} has two documents of one rank")
    if not run:
        raise InputError(f"{path}: the run is empty")
    return run


def convert_run(
    source: Path,
    target: str | Path,
    qids: np.ndarray,
    pids: np.ndarray,
    pid_prefix: str,
    trec_tag: str | None = None,
) -> None:
    """Write a run in row numbers as one in official ids, line by line.

    Args:
        qids, pids: (rows,) int64, the official id of each row.
        trec_tag: write TREC's six columns, with this tag. Scores come from the file beside ``source``; equal
            ones are told apart by the least step of a float32, since trec_eval breaks ties by docid and not by
            rank. Without that file they are 1/rank, with a warning.

    Raises:
        InputError: as :func:`read_ranked`, or a row is not in the tables or not in the file of scores.
    """
    score_of = _Scores(source) if trec_tag is not None else None
    with whole_text(target) as file:
        for number, (query, document, rank) in enumerate(read_ranked(source), start=1):
            if query >= len(qids) or document >= len(pids):
                kind, row = ("query", query) if query >= len(qids) else ("document", document)
                raise InputError(f"{source}, line {number}: there is no {kind} in row {row}; another --preprocess_dir?")
            qid, docid = qids[query], f"{pid_prefix}{pids[document]}"
            if score_of is None:
                file.write(f"{qid}\t{docid}\t{rank}\n")
            else:
                file.write(f"{qid} Q0 {docid} {rank} {score_of(query, rank):.9g} {trec_tag}\n")


class _Scores:
    """Scores of a run by query row and rank, strictly falling along the ranks of a query."""

    def __init__(self, run: Path):
        self.path = score_path(run)
        if not self.path.exists():
            log.warning("%s: no such file; the scores of the TREC run are 1/rank", self.path)
            self._scores = None
            return
        try:
            scores = np.load(self.path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{self.path}: not a NumPy file ({error})") from None
        if scores.ndim != 2 or scores.dtype != np.float32:
            raise InputError(f"{self.path}: expected float32 scores of queries x ranks")
        with np.errstate(over="ignore"):  # faiss has the least float32 where nothing was found
            for rank in range(1, scores.shape[1]):
                below = np.nextafter(scores[:, rank - 1], np.float32(-np.inf))
                scores[:, rank] = np.minimum(scores[:, rank], below)
        self._scores = scores

    def __call__(self, query: int, rank: int) -> float:
        if self._scores is None:
            return 1 / rank
        if not (query < self._scores.shape[0] and rank <= self._scores.shape[1]):
            raise InputError(f"{self.path}: has no score for rank {rank} of query {query}; it is another run's")
        return float(self._scores[query, rank - 1])


def without(ranked: np.ndarray, excluded: Sequence[int], k: int) -> list[int]:
    """The first ``k`` of ``ranked`` (n,) that are not in ``excluded``."""
    return ranked[~np.isin(ranked, excluded)][:k].tolist()
