"""Runs: the ranked documents of each query, as ``qid \\t pid \\t rank`` with ranks from 1, or in TREC's six columns.

Runs are read query by query. A large run would take many gigabytes of memory.
"""

import errno
import functools
import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, cast

from drhard.collection import Collection
from drhard.errors import InputError
from drhard.files import partial_path, read_lines, require_file, sync, write_whole_file, write_whole_text
from drhard.msmarco import parse_id, parse_number, split_fields
from drhard.provenance import stamp_path, write_stamp

import numpy as np

PARTS = 64  # temporary files for a run with scattered queries
RUN_SUFFIX = ".rank.tsv"
STAMP_FIELDS = {"documents": str, "queries": str}


# Write


def write_run(path: Path, scores: np.ndarray, rows: np.ndarray, made_from: Mapping[str, str] | None = None) -> None:
    """Write a run in row numbers, ``{mode}.rank.tsv``, and its scores, ``{mode}.score.npy``, beside it.

    The run gets its name last. So the scores and the stamp beside a run are its own, whenever the process dies.

    Args:
        scores: (Q, k) float32; ``scores[query, rank - 1]`` belongs to one line of the run.
        rows: (Q, k), the document rows of each query row, best first; -1 at the end of a shorter list.
        made_from: the result of :func:`digest_ids`, for a stamp beside the run.
    """
    with write_whole_text(path) as run:
        with write_whole_file(score_path(path)) as score_file:
            np.save(score_file, scores.astype(np.float32, copy=False))
            for query_row, found in enumerate(rows):  # one by one: as Python numbers, all rows take gigabytes
                run.writelines(
                    f"{query_row}\t{row}\t{rank}\n" for rank, row in enumerate(found.tolist(), start=1) if row >= 0
                )
            run.flush()
            sync(partial_path(path))
            for former in (path, stamp_path(path)):
                former.unlink(missing_ok=True)
        if made_from:
            write_stamp(path, made_from)


def run_path(folder: Path, mode: str) -> Path:
    """Return the file of a run, ``{mode}.rank.tsv``."""
    return folder / f"{mode}{RUN_SUFFIX}"


def trec_path(folder: Path, mode: str) -> Path:
    """Return the file of a run in TREC's six columns, ``{mode}.trec``."""
    return folder / f"{mode}.trec"


def score_path(run: Path) -> Path:
    """Return the file of the scores of a run, ``{mode}.score.npy`` beside ``{mode}.rank.tsv``."""
    return run.with_name(f"{run.name.removesuffix(RUN_SUFFIX)}.score.npy")


def digest_ids(collection: Collection, mode: str) -> dict[str, str]:
    """Return a digest of the official ids of documents, and one of the ids of queries. They identify a run's rows.

    Empty if the collection has no official ids. Raises InputError as :func:`drhard.ids.read_ids`.
    """
    if not collection.has_ids(mode):
        return {}
    return {"documents": collection.official_pids().digest(), "queries": collection.official_qids(mode).digest()}


# Read


Id = TypeVar("Id", int, str)


class Ranking(NamedTuple, Generic[Id]):
    """The documents of one query of a run. Ids are official ids, or rows in a run that retrieval wrote."""

    qid: Id
    docids: list[Id]  # best first
    scores: list[float]  # descending; the negative ranks if the run has no scores
    lines: list[int]  # the line number of each document


def read_rankings(path: str | Path) -> Iterator[Ranking[str]]:
    """Read any run: ``qid pid rank`` with or without a score, or TREC's ``qid Q0 docid rank score tag``.

    Ids are kept as they are written. As in trec_eval, TREC's ranks are ignored, tags may contain blanks, and among
    documents with equal scores the greater id comes first.

    Returns:
        The queries in the order of the file.

    Raises:
        InputError: the file is missing or empty, a line is malformed, or a query has a document or a rank twice.
    """
    parse = None
    for qid, lines in _queries(path):
        if parse is None:  # a file has one form
            parse = _ranked if len(lines[0][1]) < 5 else _scored
        ranking = parse(path, qid, lines)
        if len(set(ranking.docids)) < len(lines):
            _refuse_again(path, ranking)
        yield ranking
    if parse is None:
        raise InputError(f"{path}: the run is empty")


def read_run(path: str | Path, pid_prefix: str = "") -> Iterator[Ranking[int]]:
    """Read a run of ``qid pid rank`` whose ids are numbers or rows.

    Args:
        pid_prefix: the prefix of official document ids, "D" for MS MARCO doc.

    Raises:
        InputError: as :func:`read_rankings`; or an id is not a number, or a query's ranks are not 1, 2, 3, …
    """
    for ranking in read_ranked(path):
        number = parse_id(ranking.qid, "", f"{path}, line {ranking.lines[0]}")
        yield Ranking(number, _numbers(path, ranking, pid_prefix), ranking.scores, ranking.lines)


def read_ranked(path: str | Path) -> Iterator[Ranking[str]]:
    """Read a run of ``qid pid rank``. Ids are kept as they are written.

    Raises:
        InputError: as :func:`read_rankings`; or a query's ranks are not 1, 2, 3, …
    """
    empty = True
    for qid, lines in _queries(path):
        empty = False
        ranking = _ranked(path, qid, lines)
        if -ranking.scores[-1] != len(lines):
            raise InputError(
                f"{path}, line {ranking.lines[-1]}: query {qid} has a rank {-ranking.scores[-1]:.0f} but "
                f"{len(lines)} documents"
            )
        if len(set(ranking.docids)) < len(lines):
            _refuse_again(path, ranking)
        yield ranking
    if empty:
        raise InputError(f"{path}: the run is empty")


def _ranked(path: str | Path, qid: str, lines: Sequence[tuple[int, list[str]]]) -> Ranking[str]:
    found = []
    for number, fields in lines:
        if len(fields) not in (3, 4):
            raise InputError(f"{path}, line {number}: expected 'qid <tab> pid <tab> rank', found {len(fields)} fields")
        rank = _rank(fields[2])
        if not rank:
            raise InputError(f"{path}, line {number}: the rank {fields[2][:40]!r} is not 1, 2, 3, …")
        if len(fields) == 4:
            _score(path, number, fields[3])
        found.append((rank, number, fields[1]))
    found.sort()
    for (rank, _, _), (other, number, _) in itertools.pairwise(found):
        if rank == other:
            raise InputError(f"{path}, line {number}: query {qid} has two documents of rank {rank}")
    ranks, numbers, docids = zip(*found, strict=True)
    return Ranking(qid, list(docids), [-float(rank) for rank in ranks], list(numbers))


_rank = functools.lru_cache(10_000)(parse_number)  # every query has the same few thousand ranks


def _scored(path: str | Path, qid: str, lines: Sequence[tuple[int, list[str]]]) -> Ranking[str]:
    found = []
    for number, fields in lines:
        if len(fields) < 6:
            raise InputError(
                f"{path}, line {number}: expected 'qid Q0 docid rank score tag', found {len(fields)} fields"
            )
        found.append((_score(path, number, fields[4]), fields[2], number))
    found.sort(reverse=True)
    scores, docids, numbers = zip(*found, strict=True)
    return Ranking(qid, list(docids), list(scores), list(numbers))


def _score(path: str | Path, number: int, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score) or "_" in text:
        raise InputError(f"{path}, line {number}: the score {text[:40]!r} is not a number")
    return score


def _refuse_again(path: str | Path, ranking: Ranking[str]) -> None:
    first: dict[str, int] = {}
    for number, docid in sorted(zip(ranking.lines, ranking.docids, strict=True)):
        if docid in first:
            raise InputError(
                f"{path}, line {number}: query {ranking.qid} has document {docid} again, first in line {first[docid]}"
            )
        first[docid] = number


def _numbers(path: str | Path, ranking: Ranking[str], prefix: str) -> list[int]:
    numbers = [parse_number(docid.removeprefix(prefix)) for docid in ranking.docids]
    if not all(docid.startswith(prefix) for docid in ranking.docids) or None in numbers:
        return [
            parse_id(docid, prefix, f"{path}, line {line}")
            for docid, line in zip(ranking.docids, ranking.lines, strict=True)
        ]
    return cast(list[int], numbers)


def _queries(path: str | Path) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """Yield each query of a run, in the order of their first lines: (qid, [(line number, fields), …])."""
    if not require_file(path).is_file() and not Path(path).is_dir():  # a folder gets another message
        raise InputError(f"{path}: is not a regular file; a run is read twice, so write it to a file first")
    places, together = _places(path)
    if together:
        for qid, lines in itertools.groupby(_lines(path), key=_qid):
            yield qid, list(lines)
        return
    try:
        yield from _put_together(path, places)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:  # the run is only read
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from None
        raise


def _put_together(path: str | Path, places: Mapping[str, int]) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """Do as :func:`_queries` for scattered queries: split the run, so that only one part at a time is in memory."""
    with ExitStack() as stack:
        open_part = functools.partial(tempfile.TemporaryFile, "w+", encoding="utf-8", newline="\n")
        parts = [stack.enter_context(open_part()) for _ in range(PARTS)]
        for number, fields in _lines(path):
            part = parts[places[fields[0]] * PARTS // len(places)]
            part.write(f"{number} {' '.join(fields)}\n")
        for part in parts:
            part.seek(0)
            queries: dict[str, list[tuple[int, list[str]]]] = {}
            for line in part:
                place, *fields = line.rstrip("\n").split(" ")
                queries.setdefault(fields[0], []).append((int(place), fields))
            yield from sorted(queries.items(), key=lambda query: places[query[0]])


def _places(path: str | Path) -> tuple[dict[str, int], bool]:
    """Number the queries of a run from 0, in the order of their first lines. Return whether each one's are adjacent."""
    places: dict[str, int] = {}
    together, prefix, qid = True, "\n", ""  # no line starts with a line end
    for number, line in read_lines(path):
        if line.startswith(prefix):
            continue
        fields = split_fields(line, path, number)
        if not fields:
            raise InputError(f"{path}, line {number}: is empty; delete it")
        if fields[0] in places and fields[0] != qid:
            together = False
        qid = fields[0]
        places.setdefault(qid, len(places))
        prefix = line[: len(qid) + 1] if line.startswith((f"{qid}\t", f"{qid} ")) else "\n"
    return places, together


def _lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        yield number, split_fields(line, path, number)


def _qid(line: tuple[int, list[str]]) -> str:
    return line[1][0]
