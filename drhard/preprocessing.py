"""Turn text files into token memmaps: worker processes tokenize batches of lines and write their rows in place."""

import gzip
import logging
import os
import re
import uuid
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drhard import processes
from drhard.collection import Collection
from drhard.dataset import START, digest_parts, end_of, names_of, read_import
from drhard.earlier_tokens import EarlierTokens, find_earlier_tokens
from drhard.errors import InputError
from drhard.files import (
    decode_line,
    disk_faults,
    read_lines,
    sole_writer,
    sync,
    write_json,
    write_whole_file,
    write_whole_text,
)
from drhard.growth import grow_files, prepare_growth, prepared_in
from drhard.ids import write_ids
from drhard.model_tokenizer import Tokenizer
from drhard.msmarco import Corpus, find_source_file, parse_id, parse_query
from drhard.names import Names, copy_names, names_path, offsets_path
from drhard.numbers import COUNT, LENGTH
from drhard.qrels import Judgement, read_judgements
from drhard.tokens import PASSAGES, digest_lengths, empty_path, query_name
from drhard.workers import WORKERS, Batch, Rows, Source, open_pool, tokenize

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

# Processes take so many rows at a time. For any width, these are whole pages of memory, also those of 64 KiB: machines
# that write parts of one page could undo each other's writes, as NFS works.
TASK_ROWS = 1 << 14
TOKEN_DTYPE = np.dtype(np.int32)
BATCH_BYTES = 1 << 18  # text for a worker at a time: a few hundred passages, or one long document
BATCH_TOKENS = 1 << 24  # the largest size of a batch's rows: rows times width
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


class _Judged(NamedTuple):
    """The judgements of a mode."""

    path: Path
    judgements: list[Judgement]

    def qids(self) -> set[int]:
        return {judgement.qid for judgement in self.judgements}


class _Tokens(NamedTuple):
    """The tokens of a source, which lie in a file of their own. Only the first process knows all rows."""

    source: Source
    path: Path
    rows: Rows
    left_out: set[int]  # ids of empty texts that were skipped


class _Written(NamedTuple):
    """The ids of a token memmap that was written."""

    ids: np.ndarray  # (rows,) int64
    left_out: set[int]  # ids of empty texts that were skipped
    source: Path


@dataclass(frozen=True)
class _Job:
    """What the files of a folder have in common."""

    folder: Path
    scratch: Path  # a folder inside
    pool: ProcessPoolExecutor
    workers: int
    tokenizer: str  # the digest of the tokenizer
    empty_texts: str
    names: bool  # whether the official ids are texts
    made_from: dict[str, Any]  # what the meta of the passages says of their source


def preprocess(
    corpus: Corpus,
    root: Path,
    tokenizer: Tokenizer,
    lengths: Lengths,
    workers: int,
    empty_texts: str | None = None,
    target: Path | None = None,
) -> list[Path]:
    """Write the ``preprocess`` folder of a collection. Skip the modes whose query file is missing.

    All files get their names together, at the end. A run that fails or is killed leaves the earlier files in place. If
    passages were appended to an imported collection since an earlier run with the same settings, only these are
    tokenized.

    Args:
        root: the folder with ``dataset/``.
        target: the folder to write; by default ``preprocess/`` beside ``dataset/``.
        workers: the number of processes that tokenize.
        empty_texts: what to do with empty texts: "refuse" them, "skip" their lines and judgements, or "keep" them as
            ``<s> </s>``, which no search finds. None: what ``corpus`` says.

    Returns:
        The paths of the memmaps written.

    Raises:
        InputError: a source file is missing or a line in it is bad, another process is writing the folder, a worker
            was killed, or the disk is full.
    """
    WORKERS.check("the number of processes", workers)
    content = read_import(root / "dataset") if corpus.names else None
    collection, queries, qrels = _find_sources(corpus, root / "dataset")
    # Check everything that can be checked before the long work.
    judged = {mode: _Judged(path, list(read_judgements(path, corpus.pid_prefix))) for mode, path in qrels.items()}
    empty_texts, target = empty_texts or corpus.empty_texts, target or root / "preprocess"
    prompts, characters = tokenizer.prompts, lengths.doc_characters
    source = Source(collection, PASSAGES, corpus.parse, prompts["passage"], characters, lengths.doc_tokens)
    made_from = {} if content is None else _describe(content, source, empty_texts)
    sizes = {path.name: path.stat().st_size for path in (collection, *queries.values(), *qrels.values())}
    settings = [sizes, *astuple(lengths), empty_texts, made_from, dict(prompts), tokenizer.digest()]
    processes.require_same(settings, "texts, tokenizers or flags")
    processes.require_shared(target)
    with _open_folder(target) as (folder, scratch):
        earlier = None
        if content is not None and collection.suffix != ".gz":  # in which no passage can be found by its offset
            expected = made_from | _describe_tokens(source, tokenizer)
            earlier = find_earlier_tokens(target, content, expected, list(queries))
            source = source._replace(
                start=START if earlier is None else earlier.end, end=end_of(content["parts"]).bytes
            )
        processes.require_same(list(source.start), f"tokens in {target}")
        workers = min(workers, 1 + source.size() // BATCH_BYTES)
        with open_pool(workers, tokenizer) as pool:
            job = _Job(folder, scratch, pool, workers, tokenizer.digest(), empty_texts, corpus.names, made_from)
            documents = _tokenize(job, source, None)
            asked = {}
            for mode, path in queries.items():
                source = Source(path, query_name(mode), parse_query, prompts["query"], None, lengths.query_tokens)
                asked[mode] = _tokenize(job, source, judged[mode].qids() if mode in judged else None)
            rows = processes.first_value(lambda: _write_folder(job, documents, asked, judged, earlier))
        processes.first_value(
            lambda: _publish(folder, target) if earlier is None else _append(folder, target, earlier, rows)
        )
    return [target / f"{name}.memmap" for name in (PASSAGES, *map(query_name, queries))]


@contextmanager
def _open_folder(target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder for new files, which the first process prepares, and a folder inside that is of this run alone.

    Processes of an earlier run may still end: what they write does not get into the second folder.
    """
    with ExitStack() as stack:

        def prepare() -> str:
            stack.enter_context(sole_writer(target))
            scratch = stack.enter_context(prepare_growth(prepared_in(target))) / uuid.uuid4().hex
            scratch.mkdir()
            return scratch.name

        name = processes.first_value(prepare)
        yield prepared_in(target), prepared_in(target) / name


def _describe(content: Mapping[str, Any], source: Source, empty_texts: str) -> dict[str, Any]:
    """Return what the meta of the passages of an imported collection says of their source.

    Args:
        content: ``import.json``.
    """
    corpus = digest_parts(content, len(content["parts"]))
    return {"corpus": corpus, "empty_texts": empty_texts, "characters": source.characters}


def _describe_tokens(source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the meta of the tokens of a source says of how they are made."""
    return {"embedding_size": source.width, "tokenizer": tokenizer.digest(), "prompt": source.prompt}


def _write_folder(
    job: _Job,
    documents: _Tokens,
    asked: Mapping[str, _Tokens],
    judged: Mapping[str, _Judged],
    earlier: EarlierTokens | None,
) -> int:
    """Write the files of the passages and of the queries ``asked`` in each mode. Return the number of passages.

    Args:
        documents: those that are not in ``earlier``.
    """
    known = _write_tokens(job, documents, earlier)
    write_ids(Collection(job.folder).pids_path, known.ids)
    row_of_pid = _RowLookup(known.ids)
    for mode, tokens in asked.items():
        queries = _write_tokens(job, tokens)
        write_ids(Collection(job.folder).qids_path(mode), queries.ids)
        if mode in judged:
            rows = _judged_rows(judged[mode], queries, known, _RowLookup(queries.ids), row_of_pid)
            _write_qrels(Collection(job.folder).qrels_path(mode), judged[mode].judgements, *rows)
    job.scratch.rmdir()
    return len(known.ids)


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


def _publish(staged: Path, target: Path) -> None:
    """Move the new files to their names.

    The old metas are removed first, and the new ones are moved last, that of the passages as the very last. Readers
    refuse a folder without metas, so a run killed in between never leaves a readable mix of two runs.

    Modes without new files keep their earlier files if those belong to the same documents.
    """
    names = {path.name for path in staged.iterdir()}
    new, old = Collection(staged), Collection(target)
    absent = [mode for mode in old.splits() if mode not in new.splits()]
    stale = [path for mode in absent for path in _files_of(target, mode)]
    if stale and not _same_ids(new, old):
        for path in sorted(stale, key=_meta_last, reverse=True):
            log.warning("%s: removed; it was made with other documents, and its source no longer exists", path)
            path.unlink()
    for name in sorted(filter(_meta_last, names), key=_meta_last, reverse=True):
        (target / name).unlink(missing_ok=True)
    for name in (PASSAGES, *map(query_name, new.splits())):  # what a collection may have or lack
        for path in (empty_path(target, name), names_path(target / name), offsets_path(target / name)):
            path.unlink(missing_ok=True)
    for name in sorted(names, key=_meta_last):
        os.replace(staged / name, target / name)


def _append(staged: Path, target: Path, earlier: EarlierTokens, rows: int) -> None:
    """Add the tokens and ids of new passages to the ``earlier`` ones, and replace all other files.

    Args:
        rows: the number of passages, the new ones included.
    """
    old_empty = [path for path in target.glob("*-query_empty.npy") if not (staged / path.name).exists()]
    ends = {earlier.tokens.path.name: earlier.tokens.path.stat().st_size, earlier.names.path.name: earlier.names.bytes}
    grow_files(staged, ends, f"{PASSAGES}_meta")
    for path in old_empty:  # their metas no longer name them
        path.unlink()
    log.info("%s: appended %d passages to %d", target, rows - len(earlier.ids), len(earlier.ids))


def _files_of(folder: Path, mode: str) -> list[Path]:
    """Return the files of a mode."""
    names = [
        f"{query_name(mode)}{end}" for end in (".memmap", "_length.npy", "_meta", "_empty.npy", ".ids", ".ids.npy")
    ]
    of = Collection(folder)
    paths = [*(folder / name for name in names), of.qids_path(mode), of.qrels_path(mode)]
    return [path for path in paths if path.is_file()]


def _same_ids(new: Collection, old: Collection) -> bool:
    try:
        return new.official_pids().digest() == old.official_pids().digest()
    except InputError:  # the old file is missing or damaged
        return False


def _meta_last(name: str | Path) -> int:
    return str(name).endswith("_meta") + str(name).endswith(f"{PASSAGES}_meta")


def _write_tokens(job: _Job, tokens: _Tokens, earlier: EarlierTokens | None = None) -> _Written:
    """Write ``{name}.memmap``, ``{name}_length.npy`` and ``{name}_meta`` of one file.

    Args:
        earlier: the rows to which these are appended. The memmap and the file of the official ids get only the new
            ones, the other files all.
    """
    source, left_out = tokens.source, tokens.left_out
    empty = tokens.rows.empty
    if empty and job.empty_texts == "refuse":
        raise InputError(_about_empty(source.path, empty))
    if not (len(tokens.rows.ids) or earlier):
        what = "holds no text" if source.name == PASSAGES else "none of its queries is judged; check the qrels"
        raise InputError(f"{source.path}: {what}")
    rows = _join(tokens.rows, earlier)
    _refuse_duplicates(rows.ids, source)
    if empty or left_out:
        done = f"kept {len(empty)} empty texts" if empty else f"skipped {len(left_out)} empty texts"
        log.warning("%s: %s", source.path, done)
    if earlier is not None:
        left_out |= earlier.left_out()
    with disk_faults(tokens.path):
        sync(tokens.path)
        os.replace(tokens.path, job.folder / tokens.path.name)
    with write_whole_file(job.folder / f"{source.name}_length.npy") as file:
        np.save(file, rows.lengths)
    meta: dict[str, Any] = {"type": TOKEN_DTYPE.name, "total_number": len(rows.ids), "embedding_size": source.width}
    if rows.empty_rows:
        meta["empty"] = len(rows.empty_rows)
        with write_whole_file(empty_path(job.folder, source.name)) as file:
            np.save(file, np.array(rows.empty_rows, dtype=np.int64))
    if job.names:
        _write_names(job, source, rows.ids, earlier)
    meta |= {"tokenizer": job.tokenizer, "max_token_id": rows.max_token_id, "prompt": source.prompt}
    meta["lengths"] = digest_lengths(rows.lengths)
    write_json(job.folder / f"{source.name}_meta", meta | (job.made_from if source.name == PASSAGES else {}))
    return _Written(rows.ids, left_out, source.path)


def _join(new: Rows, earlier: EarlierTokens | None) -> Rows:
    """Return the rows of ``earlier`` and, behind them, the new ones. It has no line numbers of empty texts."""
    if earlier is None:
        return new
    old = earlier.rows()
    ids, lengths = (np.concatenate(arrays) for arrays in ((old.ids, new.ids), (old.lengths, new.lengths)))
    empty_rows = old.empty_rows + [len(old.ids) + row for row in new.empty_rows]
    return Rows(0, ids, lengths, max(old.max_token_id, new.max_token_id), [], empty_rows)


def _write_names(job: _Job, source: Source, ids: np.ndarray, earlier: EarlierTokens | None) -> None:
    """Write the official ids of the rows, which are texts, from the table beside the source."""
    names = Names(source.path.with_name(names_of(source.path.name.removesuffix(".gz"))))
    if int(ids.max()) >= len(names):
        raise InputError(f"{names.path}: has {len(names)} ids, but {source.path} has the number {ids.max()}")
    first, before = (0, None) if earlier is None else (len(earlier.ids), earlier.names)
    copy_names(names, ids[first:], job.folder / source.name, before)


class _Placed(NamedTuple):
    """A batch for a worker."""

    batch: Batch
    position: int  # of the end of its lines, as :class:`_Chosen` has it


def _tokenize(job: _Job, source: Source, keep: set[int] | None) -> _Tokens:
    """Have the workers of all processes write the tokens of one file.

    Each process reads all lines and has its own workers tokenize some of them. A gzipped file cannot be read otherwise,
    and so each process knows the row and the number of each line.

    Args:
        keep: the ids of the texts to keep; None for all.
    """
    path = job.scratch / f"{source.name}.memmap"
    parts: list[Rows] = []
    left_out: set[int] = set()
    pending: deque[tuple[Future[Rows], int]] = deque()
    size = source.size()
    processes.first_value(path.touch)
    with tqdm(total=size, unit="B", unit_scale=True, desc=source.name, smoothing=0.1) as bar:

        def take_first() -> None:
            future, position = pending.popleft()
            parts.append(future.result())
            bar.update(position - bar.n)

        with processes.share_tasks() as tasks, disk_faults(path):
            chosen = _read(source, keep, job.empty_texts == "skip", left_out)
            for batch, position in _own_batches(_batches(chosen, source, path), tasks):
                pending.append((job.pool.submit(tokenize, batch), position))
                while len(pending) > 4 * job.workers:  # bounds the text in memory
                    take_first()
            while pending:
                take_first()
        bar.update(size - bar.n)
    return _Tokens(source, path, _collect(parts), left_out)


def _own_batches(batches: Iterable[_Placed], tasks: Iterator[int]) -> Iterator[_Placed]:
    """Yield the batches that this process tokenizes: those in one of its ``tasks`` of :data:`TASK_ROWS` rows."""
    own = next(tasks, None)
    for placed in batches:
        task = placed.batch.first_row // TASK_ROWS
        if own is not None and task > own:
            own = next(tasks, None)
        if own is None:  # another process failed
            return
        if task == own:
            yield placed


def _collect(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all processes as one part, in the first process."""
    starts = np.array([part.first_row for part in parts], dtype=np.int64)
    counts = np.array([len(part.ids) for part in parts], dtype=np.int64)
    ids = np.concatenate([np.empty(0, dtype=np.int64), *(part.ids for part in parts)])
    lengths = np.concatenate([np.empty(0, dtype=np.int32), *(part.lengths for part in parts)])
    empty = [place for part in parts for place in zip(part.empty_rows, part.empty, strict=True)]
    arrays = (starts, counts, ids, lengths, np.array(empty, dtype=np.int64).reshape(-1, 2))
    starts, counts, ids, lengths, places = map(processes.collect, arrays)
    rows = np.arange(len(ids)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    ids[rows], lengths[rows] = ids.copy(), lengths.copy()
    largest = max(processes.gather_numbers(max((part.max_token_id for part in parts), default=0)))
    empty_rows, lines = places[np.argsort(places[:, 0])].T.tolist()
    return Rows(0, ids, lengths, largest, lines, empty_rows)


class _Chosen(NamedTuple):
    """The lines of a part of a source that become rows."""

    numbers: Sequence[int]  # line number of each line
    lines: list[bytes]
    position: int  # bytes of the source read so far, from its start


def _read(source: Source, keep: set[int] | None, skip_empty: bool, left_out: set[int]) -> Iterator[_Chosen]:
    """Read a source part by part. Choose the lines whose id is in ``keep``; None for all.

    Args:
        left_out: gets the ids of the empty texts that are skipped.
    """
    number = source.start.lines
    with open(source.path, "rb") as raw:
        raw.seek(source.start.bytes)
        file = gzip.GzipFile(fileobj=raw) if source.path.suffix == ".gz" else raw
        while True:
            # The end of a part is that of a line. readlines goes on until it has more bytes than asked for.
            left = BATCH_BYTES if source.end is None else source.end - raw.tell()
            try:
                lines = file.readlines(min(BATCH_BYTES, max(left - 1, 1))) if left > 0 else []
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{source.path}: damaged after line {number} ({error})") from None
            if not lines:
                return
            numbers: Sequence[int] = range(number + 1, number + 1 + len(lines))
            number += len(lines)
            if keep is not None or skip_empty:
                numbered = zip(numbers, lines, strict=True)
                numbers, lines = _choose(source, numbered, keep, left_out if skip_empty else None)
            yield _Chosen(numbers, lines, raw.tell() - source.start.bytes)


def _choose(
    source: Source, numbered: Iterable[tuple[int, bytes]], keep: set[int] | None, left_out: set[int] | None
) -> tuple[list[int], list[bytes]]:
    """Return the numbers and the lines that are chosen. ``left_out`` gets the ids of empty texts; None keeps them."""
    numbers, lines = [], []
    for number, line in numbered:
        if keep is not None and _qid(line, source.path, number) not in keep:
            continue
        if left_out is not None and not _SURELY_TEXT.match(line):
            id_, text = source.parse(decode_line(line, source.path, number), f"{source.path}, line {number}")
            if not text:
                left_out.add(id_)
                continue
        numbers.append(number)
        lines.append(line)
    return numbers, lines


def _batches(parts: Iterable[_Chosen], source: Source, memmap: Path) -> Iterator[_Placed]:
    """Split lines into batches, each of rows of one task."""
    most = max(BATCH_TOKENS // source.width, 1)
    row = 0
    for numbers, lines, position in parts:
        start = 0
        while start < len(lines):
            part = slice(start, start + min(most, TASK_ROWS - row % TASK_ROWS))
            batch = Batch(source, numbers[part], lines[part], memmap, row)
            yield _Placed(batch, position)
            start, row = start + len(batch.lines), row + len(batch.lines)


def _qid(line: bytes, source: Path, number: int) -> int:
    field = line.split(b"\t", 1)[0]
    return parse_id(decode_line(field, source, number), "", f"{source}, line {number}")


def _about_empty(source: Path, numbers: list[int]) -> str:
    lines = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    what = f"line {lines}: the text is empty" if len(numbers) == 1 else f"lines {lines}: {len(numbers)} texts are empty"
    return f"{source}, {what}; give --empty_texts skip to leave them out, or keep to make rows without words"


def _refuse_duplicates(ids: np.ndarray, source: Source) -> None:
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        parsed = (
            (number, source.parse(line, f"{source.path}, line {number}")[0]) for number, line in read_lines(source.path)
        )
        numbers = [number for number, id_ in parsed if id_ == twice[0]]
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
    judged: _Judged,
    queries: _Written,
    documents: _Written,
    row_of_qid: _RowLookup,
    row_of_pid: _RowLookup,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the query row and the document row of each judgement, -1 for a skipped text."""
    qids = np.array([judgement.qid for judgement in judged.judgements])
    pids = np.array([judgement.pid for judgement in judged.judgements])
    query_rows, doc_rows = row_of_qid(qids), row_of_pid(pids)
    for kind, ids, rows, texts in (("query", qids, query_rows, queries), ("document", pids, doc_rows, documents)):
        for place in np.flatnonzero(rows < 0):
            if int(ids[place]) not in texts.left_out:
                line = judged.judgements[place].line
                raise InputError(f"{judged.path}, line {line}: the {kind} {ids[place]} is not in {texts.source}")
    without_text = int(((query_rows < 0) | (doc_rows < 0)).sum())
    if without_text:
        log.warning("%s: skipped %d judgements of empty texts", judged.path, without_text)
    return query_rows, doc_rows


def _write_qrels(path: Path, judged: list[Judgement], query_rows: np.ndarray, doc_rows: np.ndarray) -> None:
    with write_whole_text(path) as file:
        for query_row, doc_row, judgement in zip(query_rows, doc_rows, judged, strict=True):
            if query_row >= 0 and doc_row >= 0:
                file.write(f"{query_row}\t0\t{doc_row}\t{judgement.grade}\n")
