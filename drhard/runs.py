"""Runs: the ranked documents of each query, ``qid \\t pid \\t rank`` with ranks from 1, or in TREC's six columns.

They are read query by query, since all of a large run would take many gigabytes.
"""

import functools
import hashlib
import itertools
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, NamedTuple, NoReturn, TypeVar, cast

from drhard.arrays import read_array
from drhard.collection import Collection
from drhard.errors import InputError
from drhard.files import digest_file, partial_path, read_lines, require_file, write_whole_file, write_whole_text
from drhard.msmarco import parse_id, parse_number, split_fields
from drhard.provenance import check_made_from, find_difference, is_unchanged, read_stamp, stamp_path, write_stamp

import numpy as np

log = logging.getLogger(__name__)

PARTS = 64  # into which a run is split whose queries are scattered over it
RUN_SUFFIX = ".rank.tsv"
STAMP_FIELDS = {"documents": str, "queries": str}


# Written


def write_run(path: Path, scores: np.ndarray, rows: np.ndarray, made_from: Mapping[str, str] | None = None) -> None:
    """Write a run in row numbers, ``{mode}.rank.tsv``, and beside it its scores, ``{mode}.score.npy``.

    Args:
        scores: (Q, k) float32; ``scores[query, rank - 1]`` is that of a line of the run.
        rows: (Q, k), the document rows of each query row, best first; -1 where there is none, at the end.
        made_from: :func:`digest_ids`, which goes into a stamp beside the run.
    """
    stamp_path(path).unlink(missing_ok=True)  # that of a former run; without one nothing is believed of this one
    with (
        write_whole_file(score_path(path)) as score_file,
        write_whole_text(path) as run,
    ):  # named together, when both are whole
        np.save(score_file, scores.astype(np.float32, copy=False))
        for query_row, found in enumerate(rows):  # one by one: as Python's numbers all of them take gigabytes
            run.writelines(
                f"{query_row}\t{row}\t{rank}\n" for rank, row in enumerate(found.tolist(), start=1) if row >= 0
            )
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
    """Return what tells the official ids of a run's rows from others: a digest for documents and one for queries.

    Empty if the collection has no official ids. Raises InputError as :func:`drhard.ids.read_ids`.
    """
    if not collection.has_ids(mode):
        return {}
    return {"documents": _digest_ids(collection.pids()), "queries": _digest_ids(collection.qids(mode))}


def _digest_ids(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").data).hexdigest()


# Read


Id = TypeVar("Id", int, str)


class Ranking(NamedTuple, Generic[Id]):
    """What a run has for one query: official ids, or rows in a run of ours."""

    qid: Id
    docids: list[Id]  # best first
    scores: list[float]  # falling; minus the ranks where the run has no scores
    lines: list[int]  # the number of the line of each document


def read_rankings(path: str | Path) -> Iterator[Ranking[str]]:
    """Read any run: ours or an official one (``qid pid rank``, then a score or not), or TREC's (``qid Q0 docid rank
    score tag``), ids as they are written.

    As in trec_eval, TREC's column of ranks does not count, a tag may hold blanks, and documents with equal scores are
    ranked by their ids, the greater first.

    Returns:
        The queries in the order of the file.

    Raises:
        InputError: the file is missing or empty, or a line is bad or names a document or a rank of its query again.
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
    """Read a run of ``qid pid rank`` with ids that are numbers, or of rows.

    Args:
        pid_prefix: what official document ids begin with, "D" for MS MARCO doc.

    Raises:
        InputError: as :func:`read_rankings`, or an id is no number, or a query's ranks are not 1, 2, 3, …
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
        number = parse_id(qid, "", f"{path}, line {ranking.lines[0]}")
        yield Ranking(number, _numbers(path, ranking, pid_prefix), ranking.scores, ranking.lines)
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


_rank = functools.lru_cache(10_000)(parse_number)  # the same few thousand for every query


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
    """Yield each query of a run, in the order in which they begin: (qid, [(line number, fields), …])."""
    if not require_file(path).is_file() and not Path(path).is_dir():  # a folder has a sentence of its own
        raise InputError(f"{path}: is not a regular file; a run is read twice, write it to a file first")
    places, together = _places(path)
    if together:
        for qid, lines in itertools.groupby(_lines(path), key=_qid):
            yield qid, list(lines)
        return
    with ExitStack() as stack:  # split, so that a part at a time is in memory
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
    """The place of each query of a run, from 0 in the order in which they begin, and whether its lines are together."""
    places: dict[str, int] = {}
    together, prefix, qid = True, "\n", ""  # no line begins with its end
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


# Converted


def convert_run(
    source: Path, target: Path, collection: Collection, mode: str, pid_prefix: str, trec_tag: str | None = None
) -> bool:
    """Write a run in row numbers as one in official ids.

    Args:
        collection: whose rows they are.
        trec_tag: write TREC's six columns, with this tag. Scores come from the file beside ``source``; equal
            ones are told apart by the least step of a float32, since trec_eval breaks ties by docid and not by
            rank. Without that file they are 1/rank, with a warning.

    Returns:
        False if ``target`` is there already, made from the same files with the same settings.

    Raises:
        InputError: as :func:`read_run`; ``source`` was made with other ids, or has a row that they or the file of
            scores do not have; or another ``target`` is there.
    """
    pids, qids = collection.pids(), collection.qids(mode)
    digests = {"documents": _digest_ids(pids), "queries": _digest_ids(qids)}
    stamp = read_stamp(source, STAMP_FIELDS)
    if stamp is not None:
        paths = {"documents": collection.pids_path, "queries": collection.qids_path(mode)}
        words = {name: f"was made with other {name} than {path} has" for name, path in paths.items()}
        check_made_from(source, stamp, digests, words, "name its own --preprocess_dir")
    scores = score_path(source)
    made_from = digests | {
        "run": digest_file(require_file(source)),
        "scores": digest_file(scores) if trec_tag is not None and scores.exists() else None,
        "pid_prefix": pid_prefix,
        "trec_tag": trec_tag,
    }
    if target.exists():
        if _is_made_from(target, made_from):
            return False
        _refuse_target(target)
    with write_whole_text(target) as file:
        if target.exists():  # another process was quicker
            _refuse_target(target)
        for line in _converted(source, qids, pids, pid_prefix, trec_tag):
            file.write(line)
        file.flush()
        # The stamp comes first: a run that is whole is known as such, whenever this process dies.
        write_stamp(target, made_from | {"output": digest_file(partial_path(target))})
    return True


def _is_made_from(target: Path, made_from: Mapping[str, str | None]) -> bool:
    text = (str, type(None))
    stamp = read_stamp(target, {name: text for name in made_from} | {"output": str})
    return stamp is not None and find_difference(stamp, made_from) is None and is_unchanged(target, stamp, "output")


def _refuse_target(target: Path) -> NoReturn:
    raise InputError(
        f"{target}: there is a run already, made from something else; delete it or name another --output_dir"
    )


def _converted(
    source: Path, qids: np.ndarray, pids: np.ndarray, pid_prefix: str, trec_tag: str | None
) -> Iterator[str]:
    """Yield the lines of the run ``source`` in official ids; ``qids`` (Q,) and ``pids`` (P,) are those of each row."""
    scores_of = _Scores.read(source) if trec_tag is not None else None
    for query_row, rows, _, lines in read_run(source):  # a run of ours has rows where others have ids
        if query_row >= len(qids):
            raise InputError(
                f"{source}, line {lines[0]}: there is no query in row {query_row}; another --preprocess_dir?"
            )
        if max(rows) >= len(pids):
            row, line = next((row, line) for row, line in zip(rows, lines, strict=True) if row >= len(pids))
            raise InputError(f"{source}, line {line}: there is no document in row {row}; another --preprocess_dir?")
        qid, docids = qids[query_row], [f"{pid_prefix}{pid}" for pid in pids[rows].tolist()]
        if scores_of is None:
            yield from (f"{qid}\t{docid}\t{rank}\n" for rank, docid in enumerate(docids, start=1))
            continue
        for rank, (docid, score) in enumerate(zip(docids, scores_of(query_row, len(docids)), strict=True), start=1):
            yield f"{qid} Q0 {docid} {rank} {score:.9g} {trec_tag}\n"


class _Scores:
    """Scores of a run by query row, strictly falling along the ranks of a query; 1/rank where there are none.

    Args:
        path: what errors name.
        scores: (Q, k) float32.
    """

    def __init__(self, path: Path, scores: np.ndarray | None):
        self.path = path
        self._scores = scores

    @classmethod
    def read(cls, run: Path) -> "_Scores":
        """Read the scores beside ``run``; log a warning if there are none. Raises InputError if they are damaged."""
        path = score_path(run)
        if not path.exists():
            log.warning("%s: no such file; the scores of the TREC run are 1/rank", path)
            return cls(path, None)
        scores = np.array(read_array(path, "retrieve again"))  # to be changed
        if scores.ndim != 2 or scores.dtype != np.float32:
            raise InputError(f"{path}: expected float32 scores of queries x ranks")
        with np.errstate(over="ignore"):  # faiss has the least float32 where nothing was found
            for rank in range(1, scores.shape[1]):
                below = np.nextafter(scores[:, rank - 1], np.float32(-np.inf))
                scores[:, rank] = np.minimum(scores[:, rank], below)
        return cls(path, scores)

    def __call__(self, query_row: int, count: int) -> list[float]:
        """The scores of the first ``count`` ranks. Raises InputError if the file does not have them."""
        if self._scores is None:
            return [1 / rank for rank in range(1, count + 1)]
        depth = self._scores.shape[1] if query_row < self._scores.shape[0] else 0
        if count > depth:
            raise InputError(
                f"{self.path}: has no score for rank {depth + 1} of query {query_row}; it is another run's"
            )
        scores = self._scores[query_row, :count]
        if not np.isfinite(scores).all():
            raise InputError(f"{self.path}: has scores of query {query_row} that are not finite; retrieve again")
        values: list[float] = scores.tolist()
        return values
