"""Turn text files into token memmaps: worker processes tokenize batches of lines and write their rows in place."""

import gc
import gzip
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NamedTuple

from drhard.collection import Collection
from drhard.errors import InputError
from drhard.files import (
    decode_line,
    read_lines,
    sole_writer,
    write_json,
    write_whole,
    write_whole_file,
    write_whole_text,
)
from drhard.ids import write_ids
from drhard.msmarco import Corpus, Parser, find_source_file, parse_id, parse_query
from drhard.numbers import COUNT, LENGTH, Range
from drhard.qrels import Judgement, read_judgements
from drhard.tokenizer import RobertaTokenizer
from drhard.tokens import PASSAGES, digest_lengths, query_name

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

TOKEN_DTYPE = np.dtype(np.int32)
BATCH_BYTES = 1 << 18  # text for a worker at a time: a few hundred passages, or one long document
BATCH_TOKENS = 1 << 24  # the largest size of a batch's rows: rows times width
WORKERS = Range(1, 1024)
EMPTY_TEXTS = ("refuse", "skip", "keep")
# A quick test that accepts most texts that are not empty: a printable ASCII character follows the id.
_SURELY_TEXT = re.compile(rb"[^\t]*\t *[!-~]")


@dataclass(frozen=True)
class Lengths:
    """The lengths at which texts are cut: tokens of a document and of a query, characters of a document."""

    doc_tokens: int
    query_tokens: int
    doc_characters: int

    def __post_init__(self) -> None:
        LENGTH.check("the tokens of a document", self.doc_tokens)
        LENGTH.check("the tokens of a query", self.query_tokens)
        COUNT.check("the characters of a document", self.doc_characters)


class _Source(NamedTuple):
    """A text file that becomes the token memmap ``name``."""

    path: Path
    name: str
    prefix: str  # the prefix of its ids
    parse: Parser
    characters: int | None  # where a text is cut
    width: int  # tokens


class _Batch(NamedTuple):
    """Lines for a worker."""

    source: _Source
    numbers: Sequence[int]  # line number of each line
    lines: list[bytes]
    target: Path  # the memmap
    first_row: int


class _Rows(NamedTuple):
    """The result of a batch, whose rows the worker has written already."""

    ids: np.ndarray  # (B,) int64
    lengths: np.ndarray  # (B,) int32
    max_token_id: int
    empty: list[int]  # line numbers of empty texts


class _Written(NamedTuple):
    """The ids of a token memmap that was written."""

    ids: np.ndarray  # (rows,) int64
    left_out: set[int]  # ids of empty texts that were skipped
    source: Path


@dataclass(frozen=True)
class _Job:
    """What the files of a folder have in common."""

    folder: Path
    pool: ProcessPoolExecutor
    workers: int
    tokenizer: str  # the digest of the tokenizer
    empty_texts: str


def preprocess(
    corpus: Corpus,
    root: Path,
    tokenizer: RobertaTokenizer,
    lengths: Lengths,
    workers: int,
    empty_texts: str = "refuse",
) -> list[Path]:
    """Write the ``preprocess`` folder of a collection. Skip the modes whose query file is missing.

    All files get their names together, at the end. A run that fails or is killed leaves the earlier files in place.

    Args:
        root: the folder with ``dataset/``; ``preprocess/`` is written beside it.
        workers: the number of processes that tokenize.
        empty_texts: what to do with empty texts: "refuse" them, "skip" their lines and judgements, or "keep" them as
            ``<s> </s>``.

    Returns:
        The paths of the memmaps written.

    Raises:
        InputError: a source file is missing or a line in it is bad, another process is writing the folder, a worker
            was killed, or the disk is full.
    """
    WORKERS.check("the number of processes", workers)
    collection, queries, qrels = _find_sources(corpus, root / "dataset")
    # Check everything that can be checked before the long work.
    judged = {mode: list(read_judgements(path, corpus.pid_prefix)) for mode, path in qrels.items()}
    workers = min(workers, 1 + collection.stat().st_size // BATCH_BYTES)
    target = root / "preprocess"
    with sole_writer(target) as lock, _staged(target / ".partial") as folder:
        with _pool(workers, tokenizer, lock, folder) as pool:
            job = _Job(folder, pool, workers, tokenizer.digest(), empty_texts)
            source = _Source(
                collection, PASSAGES, corpus.pid_prefix, corpus.parse, lengths.doc_characters, lengths.doc_tokens
            )
            documents = _write_tokens(job, source, None)
            staged = Collection(folder)
            write_ids(staged.pids_path, documents.ids)
            row_of_pid = _RowLookup(documents.ids)
            for mode, path in queries.items():
                keep = {judgement.qid for judgement in judged[mode]} if mode in judged else None
                source = _Source(path, query_name(mode), "", parse_query, None, lengths.query_tokens)
                asked = _write_tokens(job, source, keep)
                write_ids(staged.qids_path(mode), asked.ids)
                if mode in judged:
                    rows = _judged_rows(judged[mode], qrels[mode], asked, documents, _RowLookup(asked.ids), row_of_pid)
                    _write_qrels(staged.qrels_path(mode), judged[mode], *rows)
        _publish(folder, target, [mode for mode in corpus.modes if mode not in queries])
    return [target / f"{name}.memmap" for name in (PASSAGES, *map(query_name, queries))]


def _find_sources(corpus: Corpus, dataset: Path) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """Return the path of the collection, and the paths of the queries and of the qrels by mode."""
    collection = find_source_file(dataset, corpus.collection)
    if collection is None:
        raise InputError(f"{dataset / corpus.collection}: no such file; download_data.sh {corpus.name} fetches it")
    queries, qrels = {}, {}
    for mode, files in corpus.modes.items():
        path = find_source_file(dataset, files.queries)
        if path is None:
            log.warning("%s: no such file; skipping the %s queries", dataset / files.queries, mode)
            continue
        queries[mode] = path
        if files.qrels is not None:
            qrels[mode] = find_source_file(dataset, files.qrels) or dataset / files.qrels
    return collection, queries, qrels


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and remove it when the block ends."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staged: Path, target: Path, absent: list[str]) -> None:
    """Move the new files to their names.

    The old metas are removed first, and the new ones are moved last. Readers refuse a folder without metas, so a run
    killed in between never leaves a readable mix of two runs.

    Args:
        absent: the modes without new files. Their earlier files stay if they belong to the same documents.
    """
    names = {path.name for path in staged.iterdir()}
    stale = [path for mode in absent for path in target.glob(f"{mode}-q*") if path.is_file()]
    if stale and not _same_ids(Collection(staged), Collection(target)):
        for path in sorted(stale, key=_meta_last, reverse=True):
            log.warning("%s: removed; it was made with other documents, and its source no longer exists", path)
            path.unlink()
    for name in filter(_meta_last, names):
        (target / name).unlink(missing_ok=True)
    for name in sorted(names, key=_meta_last):
        os.replace(staged / name, target / name)


def _same_ids(new: Collection, old: Collection) -> bool:
    try:
        return np.array_equal(new.pids(), old.pids())
    except InputError:  # the old file is missing or damaged
        return False


def _meta_last(name: str | Path) -> bool:
    return str(name).endswith("_meta")


def _write_tokens(job: _Job, source: _Source, keep: set[int] | None) -> _Written:
    """Tokenize one file into ``{name}.memmap``, ``{name}_length.npy`` and ``{name}_meta``.

    Args:
        keep: the ids of the texts to keep; None for all.
    """
    left_out: set[int] = set()
    with write_whole(job.folder / f"{source.name}.memmap") as memmap:
        parts = list(_tokenized(job, source, memmap, _filter(source, keep, job.empty_texts, left_out)))
        empty = [number for part in parts for number in part.empty]
        if empty and job.empty_texts == "refuse":
            raise InputError(_about_empty(source.path, empty))
        if not parts:
            what = "none of its queries is judged; check the qrels" if keep is not None else "holds no text"
            raise InputError(f"{source.path}: {what}")
        ids, lengths = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:2])
        _refuse_duplicates(ids, source)
    if empty or left_out:
        done = f"kept {len(empty)} empty texts" if empty else f"skipped {len(left_out)} empty texts"
        log.warning("%s: %s", source.path, done)
    with write_whole_file(job.folder / f"{source.name}_length.npy") as file:
        np.save(file, lengths)
    meta = {"type": TOKEN_DTYPE.name, "total_number": len(ids), "embedding_size": source.width}
    meta |= {"tokenizer": job.tokenizer, "max_token_id": max(part.max_token_id for part in parts)}
    write_json(job.folder / f"{source.name}_meta", meta | {"lengths": digest_lengths(lengths)})
    return _Written(ids, left_out, source.path)


def _tokenized(job: _Job, source: _Source, memmap: Path, wanted: "_Filter | None") -> Iterator[_Rows]:
    """Have the workers write the rows of ``memmap``. Yield the result of each batch in line order."""
    pending: deque[tuple[Future[_Rows], int]] = deque()
    size = source.path.stat().st_size
    with tqdm(total=size, unit="B", unit_scale=True, desc=source.name, smoothing=0.1) as bar:

        def first() -> _Rows:
            future, position = pending.popleft()
            rows = future.result()
            bar.update(position - bar.n)
            return rows

        for batch, position in _batches(source, memmap, wanted):
            pending.append((job.pool.submit(_tokenize, batch), position))
            while len(pending) > 4 * job.workers:  # bounds the text in memory
                yield first()
        while pending:
            yield first()
        bar.update(size - bar.n)


_Filter = Callable[[int, bytes], bool]  # line number, line


def _filter(source: _Source, keep: set[int] | None, empty_texts: str, left_out: set[int]) -> _Filter | None:
    """Return the test of which lines become rows; None for all. It adds the ids of empty texts to ``left_out``."""
    skip = empty_texts == "skip"
    if keep is None and not skip:
        return None

    def wanted(number: int, line: bytes) -> bool:
        if keep is not None and _qid(line, source.path, number) not in keep:
            return False
        if skip and not _SURELY_TEXT.match(line):
            id_, text = source.parse(decode_line(line, source.path, number), f"{source.path}, line {number}")
            if not text:
                left_out.add(id_)
                return False
        return True

    return wanted


def _batches(source: _Source, memmap: Path, wanted: _Filter | None) -> Iterator[tuple[_Batch, int]]:
    """Yield (batch for a worker, bytes of the source read so far)."""
    number, row = 0, 0
    most = max(BATCH_TOKENS // source.width, 1)
    with open(source.path, "rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if source.path.suffix == ".gz" else raw
        while True:
            try:
                lines = file.readlines(BATCH_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{source.path}: damaged after line {number} ({error})") from None
            if not lines:
                return
            numbers: Sequence[int] = range(number + 1, number + 1 + len(lines))
            number += len(lines)
            if wanted is not None:
                kept = [(n, line) for n, line in zip(numbers, lines, strict=True) if wanted(n, line)]
                numbers, lines = [n for n, _ in kept], [line for _, line in kept]
            for start in range(0, len(lines), most):
                part = slice(start, start + most)
                yield _Batch(source, numbers[part], lines[part], memmap, row), raw.tell()
                row += len(lines[part])


def _qid(line: bytes, source: Path, number: int) -> int:
    field = line.split(b"\t", 1)[0]
    return parse_id(decode_line(field, source, number), "", f"{source}, line {number}")


def _about_empty(source: Path, numbers: list[int]) -> str:
    lines = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    what = f"line {lines}: the text is empty" if len(numbers) == 1 else f"lines {lines}: {len(numbers)} texts are empty"
    return f"{source}, {what}; give --empty_texts skip to leave them out, or keep to make rows without words"


def _refuse_duplicates(ids: np.ndarray, source: _Source) -> None:
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        ids = (
            (number, source.parse(line, f"{source.path}, line {number}")[0]) for number, line in read_lines(source.path)
        )
        numbers = [number for number, id_ in ids if id_ == twice[0]]
        raise InputError(
            f"{source.path}, line {numbers[1]}: the id {twice[0]} is already used in line {numbers[0]}; give each text "
            "its own id"
        )


class _RowLookup:
    """Map official ids to rows by bisection. It takes 16 bytes per id; a dict takes over 100."""

    def __init__(self, ids: np.ndarray):
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Return the row of each of ``ids``, -1 for an unknown one."""
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[places] == ids, self._order[places], -1)


def _judged_rows(
    judged: list[Judgement],
    qrels: Path,
    queries: _Written,
    documents: _Written,
    row_of_qid: _RowLookup,
    row_of_pid: _RowLookup,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the query row and the document row of each judgement, -1 for a skipped text."""
    qids = np.array([judgement.qid for judgement in judged])
    pids = np.array([judgement.pid for judgement in judged])
    query_rows, doc_rows = row_of_qid(qids), row_of_pid(pids)
    for kind, ids, rows, texts in (("query", qids, query_rows, queries), ("document", pids, doc_rows, documents)):
        for place in np.flatnonzero(rows < 0):
            if int(ids[place]) not in texts.left_out:
                line = judged[place].line
                raise InputError(f"{qrels}, line {line}: the {kind} {ids[place]} is not in {texts.source}")
    without_text = int(((query_rows < 0) | (doc_rows < 0)).sum())
    if without_text:
        log.warning("%s: skipped %d judgements of empty texts", qrels, without_text)
    return query_rows, doc_rows


def _write_qrels(path: Path, judged: list[Judgement], query_rows: np.ndarray, doc_rows: np.ndarray) -> None:
    with write_whole_text(path) as file:
        for query_row, doc_row, judgement in zip(query_rows, doc_rows, judged, strict=True):
            if query_row >= 0 and doc_row >= 0:
                file.write(f"{query_row}\t0\t{doc_row}\t{judgement.grade}\n")


# The workers


@contextmanager
def _pool(workers: int, tokenizer: RobertaTokenizer, lock: BinaryIO, folder: Path) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that tokenize.

    The workers exit when this process does, even if it is killed, and hold ``lock`` until then. They read the tokenizer
    from a file in ``folder``; sent through a pipe, it would make them start one by one. While the pool is open, SIGTERM
    acts as Ctrl-C.

    Raises:
        InputError: a worker was killed.
    """
    pickled = folder / "tokenizer.pickle"
    with write_whole_file(pickled) as file:
        pickle.dump(tokenizer, file)
    with (
        Connection(os.dup(lock.fileno())) as held,  # multiprocessing can pass a Connection to a new process
        ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(pickled, held),
        ) as pool,
    ):
        terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            # The workers inherit the blocked signals, so that only the parent handles Ctrl-C.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                for _ in range(workers):  # each call starts a worker
                    pool.submit(os.getpid)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
            yield pool
        except BrokenProcessPool:
            # Python before 3.11.5 would wait forever for a batch that is still on its way to the worker (gh-94777).
            pool._call_queue._reader.close()  # type: ignore[attr-defined]
            raise InputError(
                f"one of {workers} worker processes was killed, probably for lack of memory; give fewer --threads or "
                "free memory, then run this again"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, terminate)
            pickled.unlink(missing_ok=True)


_tokenizer: RobertaTokenizer
_lock: Connection


def _start_worker(pickled: Path, lock: Connection) -> None:
    global _tokenizer, _lock
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    gc.disable()  # there are no reference cycles here, and searching for them took an eighth of the time
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer, _lock = pickle.loads(pickled.read_bytes()), lock


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # waits on a pipe whose other end the parent holds, so it notices even SIGKILL
    os._exit(1)


def _tokenize(batch: _Batch) -> _Rows:
    """Tokenize a batch and write its rows into the memmap."""
    source, texts, empty = batch.source, [], []
    ids = np.empty(len(batch.lines), dtype=np.int64)
    path, parse, characters = str(source.path), source.parse, source.characters
    for index, (number, line) in enumerate(zip(batch.numbers, batch.lines, strict=True)):
        ids[index], text = parse(decode_line(line, path, number), f"{path}, line {number}")
        cut = text[:characters]
        if not text:
            empty.append(number)
        elif cut.isspace():  # published: an IndexError
            cut = text.lstrip()[:characters]
        texts.append(cut)
    rows, lengths = _tokenizer.encode_rows(texts, source.width)  # published: pads with 0, not the pad id
    file = os.open(batch.target, os.O_WRONLY)
    try:
        data, offset = rows.data.cast("B"), batch.first_row * rows[0].nbytes
        while data:
            count = os.pwrite(file, data, offset)
            data, offset = data[count:], offset + count
    finally:
        os.close(file)
    return _Rows(ids, lengths, int(rows[:, : lengths.max()].max()), empty)
