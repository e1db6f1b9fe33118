"""Worker processes that tokenize batches of lines and write their rows in place."""

import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NamedTuple

from drhard.dataset import START, Place
from drhard.errors import InputError
from drhard.files import decode_line, write_whole_file
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

    ids: np.ndarray  # (B,) int64
    lengths: np.ndarray  # (B,) int32
    max_token_id: int
    empty: list[int]  # line numbers of empty texts
    empty_rows: list[int]  # their rows


@contextmanager
def open_pool(workers: int, tokenizer: Tokenizer, lock: BinaryIO, folder: Path) -> Iterator[ProcessPoolExecutor]:
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
            pickled.unlink(missing_ok=True)


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
        data, offset = rows.data.cast("B"), batch.first_row * rows[0].nbytes
        while data:
            count = os.pwrite(file, data, offset)
            data, offset = data[count:], offset + count
    finally:
        os.close(file)
    return Rows(ids, lengths, int(rows[:, : lengths.max()].max()), empty, empty_rows)
