"""Worker processes that tokenize batches of lines and write their rows in place."""

import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from drhard.dataset import START, Place
from drhard.errors import InputError
from drhard.files import decode_line, disk_faults, write_at
from drhard.model_tokenizer import Tokenizer
from drhard.msmarco import Parser
from drhard.numbers import Range

import numpy as np

WORKERS = Range(1, 1024)


class Source(NamedTuple):
    """A text file, or a part of one, that becomes the token memmap ``name``."""

    path: Path
    name: str
    parse: Parser
    prompt: str  # in front of each text
    characters: int | None  # where a text is cut
    width: int  # tokens
    start: Place = START
    end: int | None = None  # in bytes; None: the end of the file

    def size(self) -> int:
        """Return the number of bytes to read."""
        return (self.path.stat().st_size if self.end is None else self.end) - self.start.bytes


class Batch(NamedTuple):
    """Lines for a worker."""

    source: Source
    numbers: Sequence[int]  # line number of each line
    lines: list[bytes]
    target: Path  # the memmap
    first_row: int


class Rows(NamedTuple):
    """The result of a batch, whose rows the worker has written already."""

    first_row: int
    ids: np.ndarray  # (B,) int64
    lengths: np.ndarray  # (B,) int32
    max_token_id: int
    empty: list[int]  # line numbers of empty texts
    empty_rows: list[int]  # their rows


@contextmanager
def open_pool(workers: int, tokenizer: Tokenizer) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that tokenize.

    The workers exit when this process does, even if it is killed. They read the tokenizer from a temporary file without
    a name; sent through a pipe, it would make them start one by one. While the pool is open, SIGTERM acts as Ctrl-C.

    Raises:
        InputError: a worker was killed, or the disk of temporary files is full.
    """
    with (
        _keep(tokenizer) as kept,
        ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(kept,),
        ) as pool,
    ):
        terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with _stops_delayed():
                for _ in range(workers):  # each call starts a worker
                    pool.submit(os.getpid)
            yield pool
        except BrokenProcessPool:
            # Python before 3.11.5 would wait forever for a batch that is still on its way to the worker (gh-94777).
            pool._call_queue._reader.close()  # type: ignore[attr-defined]
            raise InputError(
                f"one of {workers} worker processes was killed, probably for lack of memory; give fewer --threads or "
                "free memory, then run the same command again"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, terminate)


@contextmanager
def _keep(tokenizer: Tokenizer) -> Iterator[Connection]:
    """Yield the file that holds ``tokenizer``, as a Connection, which multiprocessing can pass to a new process."""
    with ExitStack() as stack:
        with disk_faults(Path(tempfile.gettempdir()) / "tokenizer"):
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            write_at(file.fileno(), memoryview(pickle.dumps(tokenizer)), 0)
        kept = stack.enter_context(Connection(os.dup(file.fileno())))
        yield kept


@contextmanager
def _stops_delayed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM act when the block ends. A worker would print a traceback if its start were cut short.

    The workers inherit the blocked signals, so that only the parent handles Ctrl-C. Blocking alone does not keep them
    from the parent: a thread of a library may receive a signal, and Python then calls the handler in this thread.
    """
    stops, noted = (signal.SIGINT, signal.SIGTERM), []
    handlers = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in stops}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if noted:
        raise KeyboardInterrupt


_tokenizer: Tokenizer


def _start_worker(kept: Connection) -> None:
    global _tokenizer
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    gc.disable()  # there are no reference cycles here, and searching for them took an eighth of the time
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with kept, mmap.mmap(kept.fileno(), 0, access=mmap.ACCESS_READ) as content:  # the workers share its position
        _tokenizer = pickle.loads(content)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # waits on a pipe whose other end the parent holds, so it notices even SIGKILL
    os._exit(1)


def tokenize(batch: Batch) -> Rows:
    """Tokenize a batch and write its rows into the memmap."""
    source, texts, empty, empty_rows = batch.source, [], [], []
    ids = np.empty(len(batch.lines), dtype=np.int64)
    path, parse, characters = str(source.path), source.parse, source.characters
    for index, (number, line) in enumerate(zip(batch.numbers, batch.lines, strict=True)):
        ids[index], text = parse(decode_line(line, path, number), f"{path}, line {number}")
        cut = text[:characters]
        if not text:
            empty.append(number)
            empty_rows.append(batch.first_row + index)
        elif cut.isspace():  # published: an IndexError
            cut = text.lstrip()[:characters]
        texts.append(source.prompt + cut)
    rows, lengths = _tokenizer.encode_rows(texts, source.width)  # published: pads with 0, not the pad id
    file = os.open(batch.target, os.O_WRONLY)
    try:
        write_at(file, rows.data.cast("B"), batch.first_row * rows[0].nbytes)
    finally:
        os.close(file)
    return Rows(batch.first_row, ids, lengths, int(rows[:, : lengths.max()].max()), empty, empty_rows)
