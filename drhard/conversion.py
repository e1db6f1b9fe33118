"""Convert results in rows to official ids: runs, and hard negatives for other libraries."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from drhard.arrays import read_array
from drhard.collection import Collection
from drhard.errors import InputError
from drhard.files import digest_file, partial_path, require_file, write_whole_text
from drhard.hard_json import read_hard_negatives
from drhard.ids import Numbers
from drhard.names import OfficialIds
from drhard.provenance import check_made_from, find_difference, is_unchanged, read_stamp, write_stamp
from drhard.runs import STAMP_FIELDS, read_run, run_path, score_path

import numpy as np

log = logging.getLogger(__name__)


def convert_run(
    source: Path, target: Path, collection: Collection, mode: str, pid_prefix: str, trec_tag: str | None = None
) -> bool:
    """Convert a run in row numbers to official ids.

    Args:
        collection: the collection that the rows belong to.
        trec_tag: write TREC's six columns, with this tag. Scores come from the file beside ``source``. Among equal
            scores, each is lowered by the smallest step of a float32, since trec_eval breaks ties by docid and not by
            rank. Without that file, scores are 1/rank, with a warning.

    Returns:
        False if ``target`` already exists, made from the same files with the same settings.

    Raises:
        InputError: as :func:`read_run`; ``source`` was made with other ids; the collection or the file of scores lacks
            one of its rows; or ``target`` exists and was made from something else.
    """
    qids, pids, digests = _official_ids(source, collection, mode, pid_prefix)
    scores = score_path(source)
    made_from = digests | {
        "run": digest_file(require_file(source)),
        "scores": digest_file(scores) if trec_tag is not None and scores.exists() else None,
        "pid_prefix": pid_prefix if isinstance(pids, Numbers) else "",
        "trec_tag": trec_tag,
    }
    return _write_once(target, made_from, _converted(source, qids, pids, trec_tag))


def _official_ids(
    run: Path, collection: Collection, mode: str, pid_prefix: str
) -> tuple[OfficialIds, OfficialIds, dict[str, str]]:
    """Return the official ids of queries and of documents, and their digests.

    Raises InputError if ``run``, whose rows they are, was made with other ids.
    """
    qids, pids = collection.official_qids(mode), collection.official_pids(pid_prefix)
    digests = {"documents": pids.digest(), "queries": qids.digest()}
    stamp = read_stamp(run, STAMP_FIELDS)
    if stamp is not None:
        paths = {"documents": collection.pids_path, "queries": collection.qids_path(mode)}
        words = {name: f"was made with {name} other than those in {path}" for name, path in paths.items()}
        way_out = "name its own --preprocess_dir, or search again if documents were appended"
        check_made_from(run, stamp, digests, words, way_out)
    return qids, pids, digests


def _write_once(target: Path, made_from: Mapping[str, str | None], lines: Iterable[str]) -> bool:
    """Write ``lines`` to ``target``, and its stamp. Return False if it already exists, made from the same.

    Raises InputError if it was made from something else.
    """
    if target.exists():
        text = (str, type(None))
        stamp = read_stamp(target, {name: text for name in made_from} | {"output": str})
        if stamp is None or find_difference(stamp, made_from) or not is_unchanged(target, stamp, "output"):
            raise InputError(
                f"{target}: already exists and was made from something else; delete it or name another --output_dir"
            )
        return False
    with write_whole_text(target) as file:
        if target.exists():
            raise InputError(f"{target}: another process has just written it; run the same command again")
        file.writelines(lines)
        file.flush()
        # The stamp is written first: if this process dies after the file is complete, the next one recognises it.
        write_stamp(target, {**made_from, "output": digest_file(partial_path(target))})
    return True


def _converted(source: Path, qids: OfficialIds, pids: OfficialIds, trec_tag: str | None) -> Iterator[str]:
    """Yield the lines of the run ``source`` with official ids."""
    scores_of = _Scores.read(source) if trec_tag is not None else None
    for query_row, rows, _, lines in read_run(source):  # a run that retrieval wrote has rows as ids
        if query_row >= len(qids):
            raise InputError(
                f"{source}, line {lines[0]}: there is no query in row {query_row}; name its own --preprocess_dir"
            )
        if max(rows) >= len(pids):
            row, line = next((row, line) for row, line in zip(rows, lines, strict=True) if row >= len(pids))
            raise InputError(f"{source}, line {line}: there is no document in row {row}; name its own --preprocess_dir")
        [qid], docids = qids.take([query_row]), pids.take(rows)
        if scores_of is None:
            yield from (f"{qid}\t{docid}\t{rank}\n" for rank, docid in enumerate(docids, start=1))
            continue
        for rank, (docid, score) in enumerate(zip(docids, scores_of(query_row, len(docids)), strict=True), start=1):
            yield f"{qid} Q0 {docid} {rank} {score:.9g} {trec_tag}\n"


class _Scores:
    """The scores of a run by query row. They descend strictly with the rank.

    Args:
        path: the file that errors name.
        scores: (Q, k) float32. None: the scores are 1/rank.
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
        scores = np.array(read_array(path, "run the command that wrote it again"))  # a copy, to change it
        if scores.ndim != 2 or scores.dtype != np.float32:
            raise InputError(f"{path}: expected float32 scores of queries x ranks")
        with np.errstate(over="ignore"):  # faiss gives the least float32 if it finds nothing
            for rank in range(1, scores.shape[1]):
                below = np.nextafter(scores[:, rank - 1], np.float32(-np.inf))
                scores[:, rank] = np.minimum(scores[:, rank], below)
        return cls(path, scores)

    def __call__(self, query_row: int, count: int) -> list[float]:
        """Return the scores of the first ``count`` ranks. Raises InputError if the file does not have them."""
        if self._scores is None:
            return [1 / rank for rank in range(1, count + 1)]
        depth = self._scores.shape[1] if query_row < self._scores.shape[0] else 0
        if count > depth:
            raise InputError(
                f"{self.path}: has no score for rank {depth + 1} of query {query_row}; it belongs to another run"
            )
        scores = self._scores[query_row, :count]
        if not np.isfinite(scores).all():
            raise InputError(
                f"{self.path}: has scores of query {query_row} that are not finite; run the command that wrote it again"
            )
        values: list[float] = scores.tolist()
        return values


def hard_negatives_path(folder: Path, mode: str) -> Path:
    """Return the file of hard negatives in official ids, ``{mode}.hard.jsonl``."""
    return folder / f"{mode}.hard.jsonl"


def convert_hard_negatives(
    source: Path, target: Path, collection: Collection, mode: str, pid_prefix: str, retriever: str
) -> bool:
    """Convert ``hard.json`` to official ids, as sentence-transformers publishes MS MARCO's hard negatives.

    Each line is ``{"qid": …, "pos": [pid, …], "neg": {retriever: [pid, …]}}``, hardest first. Ids are numbers if the
    collection's are.

    Args:
        collection: the collection that the rows belong to.
        retriever: what found the negatives.

    Returns:
        False if ``target`` already exists, made from the same files.

    Raises:
        InputError: as :func:`drhard.hard_json.read_hard_negatives`; the run beside ``source`` was made with other ids;
            or ``target`` exists and was made from something else.
    """
    require_file(source, "star/prepare_hardneg.py writes it")
    qids, pids, digests = _official_ids(run_path(source.parent, mode), collection, mode, pid_prefix)
    relevant = collection.relevant(mode, len(pids), len(qids))
    made_from = digests | {
        "hard_negatives": digest_file(source),
        "judgements": digest_file(collection.qrels_path(mode)),
        "pid_prefix": pid_prefix if isinstance(pids, Numbers) else "",
        "retriever": retriever,
    }
    hard = read_hard_negatives(source, relevant, len(pids))
    numeric = isinstance(pids, Numbers) and not pid_prefix

    def spell(ids: OfficialIds, rows: Iterable[int]) -> list[str] | list[int]:
        names = ids.take(list(rows))
        return [int(name) for name in names] if numeric else names

    def lines() -> Iterator[str]:
        for row, wanted in sorted(relevant.items()):
            [qid] = spell(qids, [row])
            negatives = {retriever: spell(pids, hard[row].tolist())}
            yield json.dumps({"qid": qid, "pos": spell(pids, wanted), "neg": negatives}, ensure_ascii=False) + "\n"

    return _write_once(target, made_from, lines())
