"""Runs: the ranked documents of each query, ``qid \\t pid \\t rank`` with ranks from 1."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drhard.errors import InputError
from drhard.files import text_lines, whole
from drhard.msmarco import parse_id, parse_number

import numpy as np


def write_run(path: Path, scores: np.ndarray, rows: np.ndarray) -> None:
    """Write a run in row numbers, ``{mode}.rank.tsv``, and beside it its scores, ``{mode}.score.npy``.

    Args:
        scores: (Q, k) float32; ``scores[query, rank - 1]`` is that of a line of the run.
        rows: (Q, k), the document rows of each query row, best first; -1 where there is none, at the end.
    """
    with whole(score_path(path)) as unfinished, open(unfinished, "wb") as file:
        np.save(file, scores.astype(np.float32, copy=False))
    with whole(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for query, documents in enumerate(rows.tolist()):
            file.writelines(f"{query}\t{pid}\t{rank}\n" for rank, pid in enumerate(documents, start=1) if pid >= 0)


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


def convert_run(
    source: str | Path,
    target: str | Path,
    row_of_qid: Mapping[int, int],
    row_of_pid: Mapping[int, int],
    pid_prefix: str,
) -> None:
    """Write a run in row numbers as one in official ids, line by line.

    Raises:
        InputError: as :func:`read_ranked`, or a row is not in the tables.
    """
    qid_of_row = {row: qid for qid, row in row_of_qid.items()}
    pid_of_row = {row: pid for pid, row in row_of_pid.items()}
    with whole(target) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for number, (query, document, rank) in enumerate(read_ranked(source), start=1):
            if query not in qid_of_row or document not in pid_of_row:
                kind, row = ("query", query) if query not in qid_of_row else ("document", document)
                raise InputError(f"{source}, line {number}: there is no {kind} in row {row}; another --preprocess_dir?")
            file.write(f"{qid_of_row[query]}\t{pid_prefix}{pid_of_row[document]}\t{rank}\n")


def without(ranked: np.ndarray, excluded: Sequence[int], k: int) -> list[int]:
    """The first ``k`` of ``ranked`` (n,) that are not in ``excluded``."""
    return ranked[~np.isin(ranked, excluded)][:k].tolist()
