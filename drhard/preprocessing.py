"""Text files to token memmaps: streamed through worker processes that write rows where they belong."""

import gc
import gzip
import json
import logging
import multiprocessing
import os
import signal
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from drhard.errors import InputError
from drhard.files import decode_line, text_lines, whole, whole_file, whole_text
from drhard.ids import write_int_dict
from drhard.msmarco import Corpus, parse_document, parse_id, parse_passage, parse_query, source_file
from drhard.qrels import Judgement, read_judgements
from drhard.tokens import PASSAGES, query_name
from star_tokenizer import RobertaTokenizer

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

TOKEN_DTYPE = np.dtype(np.int32)
BATCH_BYTES = 1 << 18  # of text to a worker at a time: a few hundred passages, or one long document


@dataclass(frozen=True)
class Lengths:
    """Where texts are cut: tokens of a document and of a query, characters of a document."""

    doc_tokens: int
    query_tokens: int
    doc_characters: int

    def __post_init__(self):
        for what, value, least in (
            ("tokens of a document", self.doc_tokens, 2),
            ("tokens of a query", self.query_tokens, 2),
            ("characters of a document", self.doc_characters, 1),
        ):
            if value < least:
                raise InputError(f"{value} {what} are too few; give at least {least}")


class _Batch(NamedTuple):
    """Lines on their way to a worker."""

    source: Path
    numbers: Sequence[int]  # line number of each line
    lines: list[bytes]
    target: Path  # the memmap
    first_row: int


def preprocess(corpus: Corpus, root: Path, tokenizer: RobertaTokenizer, lengths: Lengths, workers: int) -> list[Path]:
    """Write the ``preprocess`` folder of a collection; splits whose query file is not there are left out.

    Args:
        root: the folder with ``dataset/``; ``preprocess/`` is written beside it.
        workers: processes that tokenize.

    Returns:
        The memmaps written.

    Raises:
        InputError: a source file is missing or a line in it is bad; nothing of that file is written.
    """
    if workers < 1:
        raise InputError(f"{workers} processes cannot do the work; give at least 1")
    dataset, target = root / "dataset", root / "preprocess"
    collection = source_file(dataset, corpus.collection)
    if collection is None:
        raise InputError(f"{dataset / corpus.collection}: no such file; download_data.sh {corpus.name} fetches it")
    judged: dict[str, list[Judgement]] = {}
    queries: dict[str, Path] = {}
    qrels: dict[str, Path] = {}
    for mode, split in corpus.splits.items():  # all that can be checked early is, before the long work
        path = source_file(dataset, split.queries)
        if path is None:
            log.warning("%s: no such file; the %s queries are left out", dataset / split.queries, mode)
            continue
        queries[mode] = path
        if split.qrels is not None:
            qrels[mode] = source_file(dataset, split.qrels) or dataset / split.qrels
            judged[mode] = list(read_judgements(qrels[mode], corpus.pid_prefix))
    target.mkdir(parents=True, exist_ok=True)
    written = []
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer, corpus.name, lengths),
    ) as pool:
        try:
            pids = _write_tokens(
                pool, workers, collection, target, PASSAGES, _tokenize_documents, lengths.doc_tokens, None
            )
            write_int_dict(target / "pid2offset.pickle", pids)
            row_of_pid = _RowLookup(pids)
            written.append(target / f"{PASSAGES}.memmap")
            for mode, path in queries.items():
                keep = {judgement.qid for judgement in judged[mode]} if mode in judged else None
                name = query_name(mode)
                qids = _write_tokens(pool, workers, path, target, name, _tokenize_queries, lengths.query_tokens, keep)
                write_int_dict(target / f"{mode}-qid2offset.pickle", qids)
                if mode in judged:
                    _write_qrels(
                        target / f"{mode}-qrel.tsv", judged[mode], _RowLookup(qids), row_of_pid,
                        qrels[mode], path, collection,
                    )  # fmt: skip
                written.append(target / f"{name}.memmap")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return written


def _write_tokens(
    pool: ProcessPoolExecutor,
    workers: int,
    source: Path,
    folder: Path,
    name: str,
    tokenize: Callable[[_Batch], tuple[np.ndarray, np.ndarray]],
    width: int,
    keep: set[int] | None,
) -> np.ndarray:
    """Tokenize one file into ``{name}.memmap``, ``{name}_length.npy`` and ``{name}_meta``; return its ids."""
    with ExitStack() as files:
        # The last to be entered gets its name first: the meta, by which readers know the file, comes last.
        meta_path = files.enter_context(whole(folder / f"{name}_meta"))
        lengths_file = files.enter_context(whole_file(folder / f"{name}_length.npy"))
        memmap_path = files.enter_context(whole(folder / f"{name}.memmap"))
        ids, lengths = [], []
        pending: deque[tuple[Future, int]] = deque()
        with tqdm(total=source.stat().st_size, unit="B", unit_scale=True, desc=name, smoothing=0.1) as bar:

            def collect() -> None:
                future, position = pending.popleft()
                batch_ids, batch_lengths = future.result()
                ids.append(batch_ids)
                lengths.append(batch_lengths)
                bar.update(position - bar.n)

            for batch, position in _batches(source, memmap_path, keep):
                pending.append((pool.submit(tokenize, batch), position))
                while len(pending) > 4 * workers:  # bounds the text in flight
                    collect()
            while pending:
                collect()
            bar.update(bar.total - bar.n)
        if not ids:
            what = "no query in it is judged" if keep is not None else "there is nothing in it"
            raise InputError(f"{source}: {what}")
        all_ids, all_lengths = np.concatenate(ids), np.concatenate(lengths)
        _refuse_duplicates(all_ids, source)
        np.save(lengths_file, all_lengths)
        meta = {"type": TOKEN_DTYPE.name, "total_number": len(all_ids), "embedding_size": width}
        meta_path.write_text(json.dumps(meta))
    return all_ids


def _batches(source: Path, target: Path, keep: set[int] | None) -> Iterator[tuple[_Batch, int]]:
    """Yield (lines for a worker, bytes of the source read so far)."""
    number, row = 0, 0
    with open(source, "rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if source.suffix == ".gz" else raw
        while True:
            try:
                lines = file.readlines(BATCH_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{source}: damaged after line {number} ({error})") from None
            if not lines:
                return
            numbers: Sequence[int] = range(number + 1, number + 1 + len(lines))
            number += len(lines)
            if keep is not None:
                kept = [(n, line) for n, line in zip(numbers, lines, strict=True) if _qid(line, source, n) in keep]
                numbers, lines = [n for n, _ in kept], [line for _, line in kept]
            if lines:
                yield _Batch(source, numbers, lines, target, row), raw.tell()
                row += len(lines)


def _qid(line: bytes, source: Path, number: int) -> int:
    field = line.split(b"\t", 1)[0]
    return parse_id(decode_line(field, source, number), "", f"{source}, line {number}")


def _refuse_duplicates(ids: np.ndarray, source: Path) -> None:
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        duplicate = int(twice[0])
        numbers = [
            number
            for number, line in text_lines(source)
            if int(line.split("\t", 1)[0].strip().removeprefix("D")) == duplicate
        ]
        raise InputError(f"{source}, line {numbers[1]}: the id {duplicate} is there already, in line {numbers[0]}")


class _RowLookup:
    """Official id -> row by bisection: 16 bytes an id, where a dict takes over 100."""

    def __init__(self, ids: np.ndarray):
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows of ``ids``, -1 for unknown ones."""
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[places] == ids, self._order[places], -1)


def _write_qrels(
    path: Path,
    judged: list[Judgement],
    row_of_qid: _RowLookup,
    row_of_pid: _RowLookup,
    source: Path,
    queries: Path,
    collection: Path,
) -> None:
    query_rows = row_of_qid(np.array([judgement.qid for judgement in judged]))
    doc_rows = row_of_pid(np.array([judgement.pid for judgement in judged]))
    for rows, kind, file in ((query_rows, "query", queries), (doc_rows, "document", collection)):
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            judgement = judged[unknown[0]]
            id_ = judgement.qid if kind == "query" else judgement.pid
            raise InputError(f"{source}, line {judgement.line}: the {kind} {id_} is not in {file}")
    with whole_text(path) as file:
        for query_row, doc_row, judgement in zip(query_rows, doc_rows, judged, strict=True):
            file.write(f"{query_row}\t0\t{doc_row}\t{judgement.grade}\n")


# In the workers


class _Worker(NamedTuple):
    tokenizer: RobertaTokenizer
    parse_document: Callable[[str, str], tuple[int, str]]
    lengths: Lengths


_worker: _Worker


def _start_worker(tokenizer: RobertaTokenizer, corpus_name: str, lengths: Lengths) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    gc.disable()  # nothing here is cyclic, and looking for it took an eighth of the time
    _worker = _Worker(tokenizer, parse_document if corpus_name == "doc" else parse_passage, lengths)


def _tokenize_documents(batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
    return _tokenize(batch, _worker.parse_document, _worker.lengths.doc_characters, _worker.lengths.doc_tokens)


def _tokenize_queries(batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
    return _tokenize(batch, parse_query, None, _worker.lengths.query_tokens)


def _tokenize(
    batch: _Batch, parse: Callable[[str, str], tuple[int, str]], characters: int | None, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write the rows of a batch into the memmap; return ids (B,) int64 and lengths (B,) int32."""
    ids = np.empty(len(batch.lines), dtype=np.int64)
    texts = []
    source = str(batch.source)
    for index, (number, line) in enumerate(zip(batch.numbers, batch.lines, strict=True)):
        where = f"{source}, line {number}"
        ids[index], text = parse(decode_line(line, source, number), where)
        texts.append(text[:characters])
        if texts[-1].isspace():
            raise InputError(f"{where}: the text is empty in its first {characters} characters")
    rows, lengths = _worker.tokenizer.encode_rows(texts, width)  # published: pads with 0, not the pad id
    file = os.open(batch.target, os.O_WRONLY)
    try:
        data, offset = memoryview(rows).cast("B"), batch.first_row * rows[0].nbytes
        while data:
            count = os.pwrite(file, data, offset)
            data, offset = data[count:], offset + count
    finally:
        os.close(file)
    return ids, lengths
