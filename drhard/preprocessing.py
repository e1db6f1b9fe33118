"""Turn text files into token memmaps: worker processes tokenize batches of lines and write their rows in place."""

import gzip
import logging
import os
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drhard.collection import Collection
from drhard.dataset import START, digest_parts, end_of, names_of, read_import
from drhard.earlier_tokens import EarlierTokens, find_earlier_tokens
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
    judged = {mode: list(read_judgements(path, corpus.pid_prefix)) for mode, path in qrels.items()}
    empty_texts, target = empty_texts or corpus.empty_texts, target or root / "preprocess"
    prompts, characters = tokenizer.prompts, lengths.doc_characters
    source = Source(collection, PASSAGES, corpus.parse, prompts["passage"], characters, lengths.doc_tokens)
    made_from = {} if content is None else _describe(content, source, empty_texts)
    with sole_writer(target) as lock, prepare_growth(prepared_in(target)) as folder:
        earlier = None
        if content is not None and collection.suffix != ".gz":  # in which no passage can be found by its offset
            expected = made_from | _describe_tokens(source, tokenizer)
            earlier = find_earlier_tokens(target, content, expected, list(queries))
            source = source._replace(
                start=START if earlier is None else earlier.end, end=end_of(content["parts"]).bytes
            )
        workers = min(workers, 1 + source.size() // BATCH_BYTES)
        with open_pool(workers, tokenizer, lock, folder) as pool:
            job = _Job(folder, pool, workers, tokenizer.digest(), empty_texts, corpus.names, made_from)
            documents = _write_tokens(job, source, None, earlier)
            write_ids(Collection(folder).pids_path, documents.ids)
            row_of_pid = _RowLookup(documents.ids)
            for mode, path in queries.items():
                source = Source(path, query_name(mode), parse_query, prompts["query"], None, lengths.query_tokens)
                asked = _write_tokens(job, source, {one.qid for one in judged[mode]} if mode in judged else None)
                write_ids(Collection(folder).qids_path(mode), asked.ids)
                if mode in judged:
                    rows = _judged_rows(judged[mode], qrels[mode], asked, documents, _RowLookup(asked.ids), row_of_pid)
                    _write_qrels(Collection(folder).qrels_path(mode), judged[mode], *rows)
        if earlier is None:
            _publish(folder, target)
        else:
            _append(folder, target, earlier, len(documents.ids))
    return [target / f"{name}.memmap" for name in (PASSAGES, *map(query_name, queries))]


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


def _write_tokens(job: _Job, source: Source, keep: set[int] | None, earlier: EarlierTokens | None = None) -> _Written:
    """Tokenize one file into ``{name}.memmap``, ``{name}_length.npy`` and ``{name}_meta``.

    Args:
        keep: the ids of the texts to keep; None for all.
        earlier: the rows to which these are appended. The memmap and the file of the official ids get only the new
            ones, the other files all.
    """
    with write_whole(job.folder / f"{source.name}.memmap") as memmap:
        parts, left_out = _tokenized(job, source, memmap, keep)
        empty = [number for part in parts for number in part.empty]
        if empty and job.empty_texts == "refuse":
            raise InputError(_about_empty(source.path, empty))
        if not (parts or earlier):
            what = "none of its queries is judged; check the qrels" if keep is not None else "holds no text"
            raise InputError(f"{source.path}: {what}")
        rows = _join(parts, earlier)
        _refuse_duplicates(rows.ids, source)
    if empty or left_out:
        done = f"kept {len(empty)} empty texts" if empty else f"skipped {len(left_out)} empty texts"
        log.warning("%s: %s", source.path, done)
    if earlier is not None:
        left_out |= earlier.left_out()
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


def _join(parts: Sequence[Rows], earlier: EarlierTokens | None) -> Rows:
    """Return all rows as one part, those of ``earlier`` first. It has no line numbers of empty texts."""
    first = 0 if earlier is None else len(earlier.ids)
    empty_rows = [first + row for part in parts for row in part.empty_rows]
    if earlier is not None:
        parts = [earlier.rows(), *parts]
        empty_rows = parts[0].empty_rows + empty_rows
    ids, lengths = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:2])
    return Rows(ids, lengths, max(part.max_token_id for part in parts), [], empty_rows)


def _write_names(job: _Job, source: Source, ids: np.ndarray, earlier: EarlierTokens | None) -> None:
    """Write the official ids of the rows, which are texts, from the table beside the source."""
    names = Names(source.path.with_name(names_of(source.path.name.removesuffix(".gz"))))
    if int(ids.max()) >= len(names):
        raise InputError(f"{names.path}: has {len(names)} ids, but {source.path} has the number {ids.max()}")
    first, before = (0, None) if earlier is None else (len(earlier.ids), earlier.names)
    copy_names(names, ids[first:], job.folder / source.name, before)


def _tokenized(job: _Job, source: Source, memmap: Path, keep: set[int] | None) -> tuple[list[Rows], set[int]]:
    """Have the workers write the rows of ``memmap``.

    Returns:
        The result of each batch in line order, and the ids of empty texts that were skipped.
    """
    parts: list[Rows] = []
    left_out: set[int] = set()
    pending: deque[tuple[Future[Rows], int]] = deque()
    size = source.size()
    with tqdm(total=size, unit="B", unit_scale=True, desc=source.name, smoothing=0.1) as bar:

        def take_first() -> None:
            future, position = pending.popleft()
            parts.append(future.result())
            bar.update(position - bar.n)

        row = 0
        for chosen in _read(source, keep, job.empty_texts == "skip"):
            left_out.update(chosen.left_out)
            for batch in _batches(chosen, source, memmap, row):
                pending.append((job.pool.submit(tokenize, batch), chosen.position))
                while len(pending) > 4 * job.workers:  # bounds the text in memory
                    take_first()
            row += len(chosen.lines)
        while pending:
            take_first()
        bar.update(size - bar.n)
    return parts, left_out


class _Chosen(NamedTuple):
    """The lines of a part of a source that become rows."""

    numbers: Sequence[int]  # line number of each line
    lines: list[bytes]
    left_out: list[int]  # ids of empty texts
    position: int  # bytes of the source read so far, from its start


def _read(source: Source, keep: set[int] | None, skip_empty: bool) -> Iterator[_Chosen]:
    """Read a source part by part. Choose the lines whose id is in ``keep``; None for all."""
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
            left_out: list[int] = []
            number += len(lines)
            if keep is not None or skip_empty:
                numbers, lines, left_out = _choose(source, zip(numbers, lines, strict=True), keep, skip_empty)
            yield _Chosen(numbers, lines, left_out, raw.tell() - source.start.bytes)


def _choose(
    source: Source, numbered: Iterable[tuple[int, bytes]], keep: set[int] | None, skip_empty: bool
) -> tuple[list[int], list[bytes], list[int]]:
    """Return the fields of :class:`_Chosen`, but for the last, for lines with their numbers."""
    numbers, lines, left_out = [], [], []
    for number, line in numbered:
        if keep is not None and _qid(line, source.path, number) not in keep:
            continue
        if skip_empty and not _SURELY_TEXT.match(line):
            id_, text = source.parse(decode_line(line, source.path, number), f"{source.path}, line {number}")
            if not text:
                left_out.append(id_)
                continue
        numbers.append(number)
        lines.append(line)
    return numbers, lines, left_out


def _batches(chosen: _Chosen, source: Source, memmap: Path, first_row: int) -> Iterator[Batch]:
    """Split lines into batches for workers."""
    most = max(BATCH_TOKENS // source.width, 1)
    for start in range(0, len(chosen.lines), most):
        part = slice(start, start + most)
        yield Batch(source, chosen.numbers[part], chosen.lines[part], memmap, first_row + start)


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
