"""Embedding memmaps: float32 (rows, dim). A stamp beside each says what it was made from."""

import logging
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from drhard import processes
from drhard.collection import Collection
from drhard.devices import to_device
from drhard.encoder import Encoder, HalfPrecision, check_tokens, model_inputs
from drhard.errors import InputError
from drhard.files import (
    DiskFault,
    claim_partial,
    disk_faults,
    partial_path,
    remove_folder,
    write_whole_file,
)
from drhard.growth import finish_growth, grow_files, is_growing
from drhard.prefetch import prefetch
from drhard.provenance import (
    check_made_from,
    digest_record,
    digest_sample,
    find_difference,
    read_stamp,
    stamp_path,
    warn_of_no_stamp,
    write_stamp,
)
from drhard.tokens import TokenMemmap
from drhard.windows import WindowedFile

import numpy as np
import psutil
import torch
from torch import nn
from tqdm import tqdm

log = logging.getLogger(__name__)

DTYPE = np.dtype(np.float32)
CPU_TOKENS = 1536  # most tokens in a batch, so that the activations stay in the caches; --batch_size may be larger
# On a GPU, a sequence counts at least so many tokens. The default of 32 sequences then gives batches of 16,384 tokens,
# also of short queries. roberta-base's smallest products of such a batch have 768 tiles of 128 x 128 numbers, several
# for each of an H100's 132 processors. They take 7 ms, and launching them 1 ms.
GPU_LENGTH = 512
# The flags of the inference scripts.
PRECISION_FLAGS = {"float32": "neither --fp16 nor --bf16", "float16": "--fp16", "bfloat16": "--bf16"}
ONE_COLLECTION = "give the embeddings and the --preprocess_dir of one collection"
STAMP_FIELDS = {"model": str, "tokens": str, "length": int, "rows": int, "dim": int, "dtype": str}
WINDOW = 8192  # rows; fixed, so that encoding can resume with another batch size


def encode(
    model: Encoder,
    tokens: TokenMemmap,
    path: str | Path,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Write the embeddings of all rows of ``tokens`` to ``path``. A stopped run resumes.

    Rows are encoded in windows. Within a window they are batched by length, which saves padding. Threads prepare
    batches and write windows while the model works. If there are several processes, each takes the next window when it
    has time; who encodes a window changes no byte. A resumed run keeps the windows that the unfinished file has.

    Args:
        path: float32 (rows, dim); its stamp is ``path`` + ``.json``. An existing file is reused if its stamp says
            that encoding would give the same. If it has the first rows of that, it grows: the windows that it has in
            full stay, and it can be used until the others are encoded.
        batch_size: sequences of the maximum length in a batch, or of GPU_LENGTH if that is more. A batch takes more of
            shorter ones.
        dtype: the precision of the model's backbone. The file is float32 in any case.

    Returns:
        dim, the size of an embedding.

    Raises:
        InputError: the model cannot read ``tokens``, the existing file was made from something else, or the model
            gives numbers that are not finite; or the processes have different input, or do not see the same folder.
    """
    path = Path(path)
    check_tokens(model, tokens)
    stamp = _make_stamp(model, tokens, dtype)
    encoding = _Encoding(model, tokens, batch_size, device, dtype)
    processes.require_same(digest_record(stamp), "models, texts or lengths")
    processes.require_shared(path.parent)
    with ExitStack() as stack:  # the first process decides what is encoded, and gives the file its name
        job = processes.first_value(lambda: stack.enter_context(_plan(tokens, path, stamp)))
        if job is not None:
            _encode_windows(encoding, _Job(*job))
        processes.first_value(stack.close)
    return int(stamp["dim"])


class _Encoding(NamedTuple):
    """What is encoded, and how."""

    model: Encoder
    tokens: TokenMemmap
    batch_size: int
    device: torch.device
    dtype: torch.dtype


class _Job(NamedTuple):
    """Windows to encode into a file. The file begins with row ``first``, and is counted in windows from there."""

    path: str
    rows: int  # of the file
    first: int
    windows: list[int]


@contextmanager
def _plan(tokens: TokenMemmap, path: Path, stamp: dict[str, Any]) -> Iterator[_Job | None]:
    """Yield what must be encoded, or None. The block does so. Then finish the file.

    Raises:
        InputError: as :func:`encode`.
    """
    prepared = _prepared(path)
    unfinished = prepared.exists() or partial_path(path).exists()
    if path.exists() and not unfinished and not _can_grow(path, stamp, tokens):
        _check(path, stamp)
        log.info("%s already exists; reusing it", path)
        yield None
        return
    with claim_partial(path) as file:
        finish_growth(prepared)
        if not path.exists():
            shutil.rmtree(prepared, ignore_errors=True)  # of a file that was deleted since
            with _plan_file(0, path, stamp, file) as job:
                yield job
            return
        try:
            if _can_grow(path, stamp, tokens):
                with _plan_growth(path, stamp) as growth:
                    yield growth
            else:  # finished by another process since we looked, or just now
                shutil.rmtree(prepared, ignore_errors=True)
                _check(path, stamp)
                yield None
        finally:
            partial_path(path).unlink()


@contextmanager
def _plan_file(first: int, path: Path, stamp: dict[str, Any], file: BinaryIO) -> Iterator[_Job]:
    """Plan to write the embeddings of the rows from ``first`` on to ``path``.

    Args:
        first: the first row of a window.
        stamp: of ``path``.
        file: the unfinished file of ``path``, claimed.
    """
    target = _windowed(path, stamp["rows"], stamp["dim"])
    with disk_faults(path):
        missing = _begin(target, stamp, file)
    yield _Job(str(path), stamp["rows"], first, missing)
    with disk_faults(path):
        target.finish()


def _windowed(path: Path, rows: int, dim: int) -> WindowedFile:
    row_bytes = dim * DTYPE.itemsize
    return WindowedFile(path, rows * row_bytes, WINDOW * row_bytes)


def _prepared(path: Path) -> Path:
    """Return the folder in which the new end of the embeddings at ``path`` is prepared."""
    return path.with_name(f"{path.name}.growing")


def _can_grow(path: Path, stamp: dict[str, Any], tokens: TokenMemmap) -> bool:
    """Return whether ``path`` has the embeddings of the first rows of what ``stamp`` describes, and no others."""
    found = read_embedding_stamp(path)
    if found is None or not 0 < found["rows"] < stamp["rows"]:
        return False
    expected = stamp | {"rows": found["rows"], "tokens": tokens.digest_first(found["rows"])}
    whole = path.stat().st_size == found["rows"] * stamp["dim"] * DTYPE.itemsize
    return whole and find_difference(found, expected) is None


@contextmanager
def _plan_growth(path: Path, stamp: dict[str, Any]) -> Iterator[_Job | None]:
    """Plan to encode the rows of ``stamp`` that the embeddings at ``path`` lack, and to append them.

    The last window of the file is encoded again unless it is full, since its batches are now others.
    """
    row_bytes, prepared = stamp["dim"] * DTYPE.itemsize, _prepared(path)
    there = path.stat().st_size // row_bytes
    first = there // WINDOW * WINDOW
    end, stamp_of_end = prepared / path.name, stamp | {"rows": stamp["rows"] - first}
    log.info("%s: appends %d embeddings to %d", path, stamp["rows"] - there, there)
    if not _is_end(end, stamp_of_end):
        shutil.rmtree(prepared, ignore_errors=True)
    prepared.mkdir(exist_ok=True)
    if end.exists():
        yield None
    else:
        with claim_partial(end) as file, _plan_file(first, end, stamp_of_end, file) as job:
            yield job
    write_stamp(end, stamp)
    grow_files(prepared, {path.name: first * row_bytes}, stamp_path(path).name)


def _is_end(end: Path, stamp: dict[str, Any]) -> bool:
    """Return whether a stopped process left ``end``, or a part of it, made from what ``stamp`` says."""
    with suppress(InputError):
        return read_embedding_stamp(end) == stamp
    return False


def _make_stamp(model: Encoder, tokens: TokenMemmap, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the embeddings of ``tokens`` are made from."""
    return {
        "model": model.fingerprint(),
        "tokens": tokens.digest(),
        "length": tokens.max_length,
        "rows": len(tokens),
        "dim": model.output_embedding_size,
        "dtype": DTYPE.name,
        "precision": _name(dtype),
    }


def _begin(target: WindowedFile, stamp: dict[str, Any], file: BinaryIO) -> list[int]:
    """Cut the unfinished ``file`` to the windows that it has with this ``stamp``. Return the numbers of the others.

    Raises:
        InputError: it was made from something else.
    """
    count, missing = -(-target.size // target.window), target.find_missing()
    if len(missing) < count and _has_stamp(target.path, stamp, partial_path(target.path)):
        target.begin(file, missing)
        return missing
    every = list(range(count))
    target.begin(file, every)  # before the new stamp is written, which does not hold for the old rows
    write_stamp(target.path, stamp)
    return every


def _encode_windows(encoding: _Encoding, job: _Job) -> None:
    """Encode windows, shared with the other processes, and write each while the next one is computed.

    Raises:
        InputError: as :func:`encode`.
    """
    path = Path(job.path)
    target = _windowed(path, job.rows, encoding.model.output_embedding_size)
    starts = [job.first + number * WINDOW for number in job.windows]
    with target.writing() as write, processes.share_tasks(len(starts)) as tasks:
        try:
            own = (starts[task] for task in tasks)
            with closing(_embed(encoding, starts, own)) as windows, ThreadPoolExecutor(1) as writer:
                writing = writer.submit(lambda: None)
                for start, window in windows:
                    _require_finite(window, path, encoding.dtype)
                    writing.result()
                    writing = writer.submit(write, (start - job.first) // WINDOW, window)
                writing.result()
        except DiskFault:  # a later run keeps what was written
            raise
        except InputError:  # the unfinished file is of no use
            target.discard()
            stamp_path(path).unlink(missing_ok=True)
            raise


def _require_finite(window: np.ndarray, path: Path, dtype: torch.dtype) -> None:
    """Raise InputError if a number is not finite."""
    if not np.isfinite(window).all():
        raise InputError(f"{path}: the model gives embeddings that are not finite{_reason(dtype)}")


def _embed(encoding: _Encoding, starts: Sequence[int], own: Iterable[int]) -> Generator[tuple[int, np.ndarray]]:
    """Yield the first row and the embeddings (W, dim) of each window of this process.

    Args:
        starts: the first rows of all windows that must be encoded, ascending.
        own: those of this process, ascending.
    """
    model, tokens, batch_size, device, dtype = encoding
    model = model.to(device).eval()
    module: nn.Module = model if dtype == torch.float32 else HalfPrecision(model, dtype)
    dim = model.output_embedding_size
    embeddings = torch.empty(0, dim)
    left = sum(_count_window(tokens, start) for start in starts)
    total = int(tokens.lengths.sum())
    bar = tqdm(total=total, initial=total - left, unit="token", unit_scale=True, desc=f"encoding {tokens.name}")
    batches = prefetch(_batches(tokens, own, batch_size, model.config.pad_token_id, device))
    order = iter(starts)
    with bar, closing(batches):
        for batch in batches:
            if batch.first_of_window:
                _pass_to(batch.start, order, tokens, bar)
                embeddings = torch.empty(min(WINDOW, len(tokens) - batch.start), dim, device=device)
            with torch.inference_mode():  # not around the loop: it would apply in the caller between two windows
                embeddings[batch.rows] = module(batch.ids, batch.mask)
            bar.update(batch.tokens)
            if batch.last_of_window:
                yield batch.start, embeddings.cpu().numpy()
        _pass_to(len(tokens), order, tokens, bar)


def _count_window(tokens: TokenMemmap, start: int) -> int:
    """Return the number of tokens in the window that begins with row ``start``."""
    return int(tokens.lengths[start : start + WINDOW].sum())


def _pass_to(start: int, order: Iterator[int], tokens: TokenMemmap, bar: "tqdm[Any]") -> None:
    """Count the windows before ``start`` as done: other processes took them."""
    for other in order:
        if other == start:
            return
        bar.update(_count_window(tokens, other))


def _reason(dtype: torch.dtype) -> str:
    """Return why embeddings are not finite, and what to do."""
    precision = _name(dtype)
    if precision == "float32":
        return "; its weights are damaged"
    return f" in {precision}; try without {PRECISION_FLAGS[precision]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Batch(NamedTuple):
    start: int  # first row of the window
    rows: torch.Tensor  # (B,) int64, counted from the start of the window
    ids: torch.Tensor  # (B, L) int64
    mask: torch.Tensor | None  # (B, L) int64
    tokens: int  # without padding
    first_of_window: bool
    last_of_window: bool


def _batches(
    tokens: TokenMemmap, starts: Iterable[int], batch_size: int, pad_id: int, device: torch.device
) -> Iterator[_Batch]:
    """Yield the rows of the windows that begin at ``starts``, batched by length, on ``device``."""
    most_tokens = count_tokens(batch_size, tokens.max_length, device)
    for start in starts:
        lengths = tokens.lengths[start : start + WINDOW]
        by_length = np.argsort(-lengths, kind="stable")  # longest first: a lack of memory shows at once
        first = 0
        while first < len(by_length):
            size = max(1, most_tokens // int(lengths[by_length[first]]))
            rows = by_length[first : first + size]
            ids, mask = model_inputs(*tokens.batch(start + rows, pad_id), device)
            last = first + size >= len(by_length)
            yield _Batch(start, to_device(rows, device), ids, mask, int(lengths[rows].sum()), first == 0, last)
            first += size


def count_tokens(batch_size: int, max_length: int, device: torch.device) -> int:
    """Return the most tokens of a batch: what fills a GPU, or the caches of a CPU."""
    if device.type == "cpu":
        return min(batch_size * max_length, CPU_TOKENS)
    return batch_size * max(max_length, GPU_LENGTH)


def write_row_numbers(path: str | Path, rows: int) -> None:
    """Write row numbers as int32, which the published project keeps in a file beside its embeddings."""
    with write_whole_file(path) as file:
        file.write(np.arange(rows, dtype=np.int32).data)


def open_embeddings(path: str | Path, dim: int, rows: int | None = None) -> np.ndarray:
    """Open an embedding memmap, read-only.

    Args:
        dim: the size of an embedding. The file alone does not show it.
        rows: the expected number of rows; None for any.

    Returns:
        (rows, dim) float32 memmap.

    Raises:
        InputError: the file is missing, or its size does not fit ``dim``, ``rows`` or its stamp.
    """
    path = Path(path)
    if is_growing(_prepared(path)):
        raise InputError(
            f"{path}: embeddings are being appended to it, or that was interrupted; wait, or run the same command as "
            "before again"
        )
    if not path.is_file():
        hint = "; writing it was interrupted, run the same command again" if partial_path(path).exists() else ""
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else f'no such file{hint}'}")
    size, row_bytes = path.stat().st_size, dim * DTYPE.itemsize
    if size == 0 or size % row_bytes or (rows is not None and size != rows * row_bytes):
        expected = f"{rows} embeddings" if rows is not None else "a number of embeddings"
        raise InputError(f"{path}: has {size} bytes, which is not {expected} of {dim} float32 each")
    count = size // row_bytes
    stamp = read_embedding_stamp(path)
    if stamp is not None and (stamp["rows"], stamp["dim"], stamp["dtype"]) != (count, dim, DTYPE.name):
        raise InputError(
            f"{path}: holds {count} embeddings of {dim} {DTYPE}, but {stamp_path(path).name} says {stamp['rows']} of "
            f"{stamp['dim']} {stamp['dtype'][:20]}; the file was cut, or another model made it"
        )
    return np.memmap(path, dtype=DTYPE, mode="r", shape=(count, dim))


def open_document_embeddings(path: Path, dim: int, collection: Collection) -> np.ndarray:
    """Open the embeddings of the passages of ``collection``. Compare both if the collection has its passages.

    Returns:
        (rows, dim) float32 memmap.

    Raises:
        InputError: as :func:`open_embeddings`; or the embeddings belong to other passages.
    """
    documents = open_embeddings(path, dim)
    stamp = read_embedding_stamp(path)
    if stamp is None:
        warn_of_no_stamp(path)
    if not collection.has_passages:
        return documents
    passages = collection.passages
    if len(passages) != len(documents):
        raise InputError(
            f"{path}: holds {len(documents)} embeddings, but there are {len(passages)} passages in {passages.path}; "
            f"{ONE_COLLECTION}"
        )
    if stamp is not None:
        words = {"tokens": f"was made from other texts than those in {passages.path}"}
        check_made_from(path, stamp, {"tokens": passages.digest()}, words, ONE_COLLECTION)
    return documents


def remove_embeddings_of_others(folder: Path, model: Encoder) -> None:
    """Remove ``folder`` if an encoder other than ``model`` wrote its embeddings. Only its sole writer may call this."""
    stamps = [read_embedding_stamp(path) for path in folder.glob("*.memmap")]
    if any(stamp is not None and stamp["model"] != model.fingerprint() for stamp in stamps):
        remove_folder(folder)


def digest_embeddings(embeddings: np.ndarray) -> str:
    """Return a digest that tells ``embeddings`` (rows, dim) from others: their number, SHA-256 of a thousand rows."""
    return f"{len(embeddings)}-{digest_sample(embeddings)}"


def read_embedding_stamp(path: Path) -> dict[str, Any] | None:
    """Read what the embeddings at ``path`` were made from; None without a stamp. Raises InputError for a bad stamp."""
    stamp = read_stamp(path, STAMP_FIELDS, {"precision": str})
    if stamp is not None:
        stamp.setdefault("precision", "float32")  # older stamps lack it
    return stamp


def _check(path: Path, stamp: dict[str, Any]) -> None:
    """Raise InputError unless the file at ``path`` can be used as what ``stamp`` describes."""
    open_embeddings(path, stamp["dim"], stamp["rows"])
    if not _has_stamp(path, stamp):
        warn_of_no_stamp(path)


def _has_stamp(path: Path, stamp: dict[str, Any], file: Path | None = None) -> bool:
    """Return whether ``path`` has a stamp. Raises InputError, naming ``file``, if it differs from ``stamp``."""
    found = read_embedding_stamp(path)
    if found is None:
        return False
    words = {
        "model": "was made with other weights",
        "tokens": "was made with other texts",
        "length": "was made with another maximum length",
        "precision": f"was made with {PRECISION_FLAGS.get(found['precision'], 'another precision')}",
    }
    check_made_from(file or path, found, stamp, words, "delete it to make it again, or name another output folder")
    return True


def are_made_by(path: Path, fingerprint: str) -> bool:
    """Return whether a model made the embeddings at ``path``; True if they have no stamp.

    Args:
        fingerprint: :meth:`drhard.encoder.Encoder.fingerprint` of the model.
    """
    stamp = read_embedding_stamp(path)
    return stamp is None or stamp["model"] == fingerprint


def warn_if_made_by_another(path: Path, model: Encoder) -> None:
    """Log a warning if the stamp of the embeddings at ``path`` names another model than ``model``."""
    if not are_made_by(path, model.fingerprint()):
        log.warning("%s: was not made by the model that the training starts from", path)


def read_if_it_fits(documents: np.ndarray) -> np.ndarray:
    """Read a memmap into memory if it fits. Otherwise return the memmap."""
    return np.array(documents) if fits_in_memory(documents) else documents


def fits_in_memory(documents: np.ndarray) -> bool:
    """Return whether each process on this machine can read as many ``documents`` and leave as much memory free."""
    return documents.nbytes * 2 * processes.count_on_machine() <= psutil.virtual_memory().available
