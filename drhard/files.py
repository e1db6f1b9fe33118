"""Files: read with checks, written whole, by one writer at a time.

Every file of this project appears under its name only when it is whole. It is written as ``NAME.partial``, which is
locked while its writer lives, flushed to the disk, and then renamed.

Standard library only, and Python 3.9 is enough: download_data.py runs before anything is installed.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from drhard.errors import InputError, shorten

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"  # in a folder that one process writes
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # what a file system without locks answers
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
PROBE_BYTES = 1 << 20
BOM = "\ufeff"  # some editors put this byte-order mark in front of a text


def partial_path(path: Path) -> Path:
    """The name under which ``path`` is written until it is whole."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def claim(unfinished: Path, target: Path) -> Iterator[BinaryIO]:
    """Open ``unfinished`` for appending and keep other processes from it until the block ends.

    The lock dies with its process, so what a killed process left can be claimed again.

    Args:
        target: what errors name.

    Raises:
        InputError: another process has claimed it.
    """
    while True:
        with open(unfinished, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{target}: another process is writing it; wait for it, then run this again") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                log.warning("%s: its file system has no locks; let one process at a time write there", target)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(unfinished))
            except FileNotFoundError:
                same = False
            if same:
                yield file
                return
        # Its former writer renamed or removed the file between our opening and our locking: claim the new one.


@contextmanager
def sole_writer(folder: str | Path, target: Path | None = None) -> Iterator[BinaryIO]:
    """Make ``folder`` if need be, and keep other processes from writing into it until the block ends.

    What is yielded is the locked file: the lock lasts as long as a process has it open.

    Args:
        target: what errors name, if not the folder.

    Raises:
        InputError: another process is writing there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder / LOCK_FILE, target or folder) as lock:
        try:
            yield lock
        finally:
            (folder / LOCK_FILE).unlink(missing_ok=True)


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Write to the yielded path, an empty file; it gets the name ``path`` if the block ends well.

    If not, it is removed, and what was at ``path`` stays. Write with :func:`write_whole_file` where you can: some
    libraries that write by name lose the error of their last flush.

    Raises:
        InputError: another process is writing ``path``, or its disk takes no more.
    """
    path = Path(path)
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with claim(partial_path(path), path) as claimed:
            claimed.truncate(0)
            try:
                yield partial_path(path)
                sync(partial_path(path))
                os.replace(partial_path(path), path)
            except BaseException:  # not "finally": once renamed, the name may be another process's claim
                partial_path(path).unlink(missing_ok=True)
                raise


@contextmanager
def write_whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """:func:`write_whole` for those who write bytes to a file object. Every byte is accounted for before the rename.

    np.save, torch.save and faiss write to it through Python, so that an error of the disk keeps its reason.
    """
    with write_whole(path) as unfinished, open(unfinished, "wb") as file:
        counted = _Counted(file)
        yield counted  # type: ignore[misc]
        file.flush()
        if os.fstat(file.fileno()).st_size != counted.bytes:
            raise OSError(errno.EIO, "the disk has lost a part of it", str(path))


@contextmanager
def write_whole_text(path: str | Path) -> Iterator[IO[str]]:
    """:func:`write_whole` for those who write text: UTF-8, lines end with a line feed."""
    with write_whole(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def write_whole_folder(folder: str | Path, last: str = "") -> Iterator[Path]:
    """:func:`write_whole` for a folder of files: write them into the yielded folder.

    If the block ends well, a new folder appears at once. Into one that is there the files are moved one by one:
    ``last`` leaves it first and comes last, so a folder that has this file is whole.

    Raises:
        InputError: another process is writing ``folder``, or its disk takes no more.
    """
    folder = Path(folder)
    there = folder.is_dir()
    unfinished = folder / ".partial" if there else partial_path(folder)
    lock = unfinished.with_name(f"{unfinished.name}.lock")
    with disk_faults(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with claim(lock, folder):
            try:
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
                unfinished.mkdir()
                yield unfinished
                files = sorted(unfinished.iterdir(), key=lambda path: (path.name == last, path.name))
                for path in files:
                    sync(path)
                if there:
                    if last:
                        (folder / last).unlink(missing_ok=True)
                    for path in files:
                        os.replace(path, folder / path.name)
                else:
                    os.replace(unfinished, folder)
                    sync(folder.parent)
                sync(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
                lock.unlink(missing_ok=True)


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove what killed writers of folders ``pattern`` left in ``folder``. Its sole writer calls it."""
    for left in folder.glob(f"{pattern}.partial"):
        shutil.rmtree(left, ignore_errors=True)
    for lock in folder.glob(f"{pattern}.partial.lock"):
        lock.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder. Its name goes first, so that no part of it is ever taken for the whole."""
    shutil.rmtree(partial_path(folder), ignore_errors=True)
    os.replace(folder, partial_path(folder))
    shutil.rmtree(partial_path(folder), ignore_errors=True)


class _Counted:
    """What is written to ``file``, counted. No file of the system to NumPy, which would write past Python."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.bytes = 0

    def write(self, data: Any) -> int:
        """Write all of ``data`` (bytes or what has a buffer); return how many bytes that were."""
        count = self._file.write(data)
        self.bytes += count
        return count

    def flush(self) -> None:
        """Hand to the system what is waiting."""
        self._file.flush()

    def tell(self) -> int:
        """How many bytes have been written."""
        return self.bytes


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn what the block raises because the disk of ``path`` takes no more into an InputError that says so.

    Libraries raise errors of many kinds then, some without a reason. So the disk itself is asked.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.errno in DISK_FAULTS:
            _refuse_disk(path, error)
        if error.errno is None:
            _ask_disk(path)
        raise
    except Exception:
        _ask_disk(path)
        raise


def _ask_disk(path: Path) -> None:
    """Raise InputError if the disk of ``path`` does not take another megabyte."""
    try:
        with tempfile.TemporaryFile(dir=find_folder_above(path)) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        _refuse_disk(path, error)


def _refuse_disk(path: Path, error: OSError) -> NoReturn:
    folder = find_folder_above(path)
    mount = folder.resolve()
    while not mount.is_mount():
        mount = mount.parent
    free = shutil.disk_usage(folder).free
    raise InputError(
        f"{path}: {error.strerror} (the disk mounted at {mount} has {free / 1e9:.1f} GB free); "
        "put that right and run the same command again"
    ) from None


def find_folder_above(path: Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    return next(folder for folder in (path.absolute().parent, *path.absolute().parents) if folder.is_dir())


def sync(path: Path) -> None:
    """Wait until a file is on the disk. Raises OSError, with the path, if the disk does not take it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not a file of a disk
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file, as sha256sum prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: str | Path, hint: str = "") -> Path:
    """``path`` as a Path. Raises InputError, with ``hint`` on how to get it, if nothing is there."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder{'; ' + hint if hint else ''}")
    return path


# JSON


def write_json(path: str | Path, content: Any, **format: Any) -> None:
    """Write ``content`` as JSON, whole. Raises ValueError for what JSON does not know, such as NaN."""
    with write_whole_text(path) as file:
        json.dump(content, file, allow_nan=False, **format)


def read_object(
    path: str | Path,
    fields: Mapping[str, type | tuple[type, ...]],
    hint: str = "",
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        fields: those that must be in it, with the types that their values may have. ``float`` takes whole numbers
            too, and no type takes a bool but ``bool`` itself.
        hint: what to do if the file is not what it should be.
        optional: those that may be in it.
        name: what errors call the file, if not ``path``.

    Returns:
        The object, other fields included.

    Raises:
        InputError: the file is missing or not one JSON object, names a field twice, is nested too deep, has a number
            that is not finite or has too many digits, or lacks a field or has it with another type.
    """
    path = require_file(path)
    name = name or str(path)
    hint = f"; {hint}" if hint else ""
    if path.is_dir():
        raise InputError(f"{name}: is a folder; a JSON file is expected")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shorten(error)
        raise InputError(f"{name}: not a JSON file ({reason}){hint}") from None
    if not isinstance(content, dict):
        raise InputError(f"{name}: expected a JSON object, found {_KINDS[type(content)]}{hint}")
    check_fields(name, content, fields, hint, optional)
    return content


def check_fields(
    where: str,
    content: Mapping[str, Any],
    fields: Mapping[str, type | tuple[type, ...]],
    hint: str = "",
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
) -> None:
    """Raise InputError, naming ``where``, if ``content`` lacks one of ``fields`` or has a field with another type.

    Args:
        fields, optional: as in :func:`read_object`.
        hint: the end of the sentence.
    """
    for field, types in {**fields, **(optional or {})}.items():
        types = types if isinstance(types, tuple) else (types,)
        if field not in content:
            if field not in fields:
                continue
            raise InputError(f"{where}: the field {field!r} is missing{hint}")
        if not _is_one_of(content[field], types):
            expected = " or ".join(_KINDS[kind] for kind in types)
            raise InputError(f"{where}: the field {field!r} is {_shown(content[field])}, expected {expected}{hint}")


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _is_one_of(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (isinstance(value, int) and float in types)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)  # YAML has dates too
    return text if len(text) <= 40 else f"{text[:40]}…"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content


def _finite(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


# Text


def read_lines(path: str | Path, name: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 text file, gzipped or not.

    A byte-order mark at the start of the file is no part of its first line.

    Args:
        name: what errors call the file, if not ``path``.

    Raises:
        InputError: the file is missing or damaged, or a line is not UTF-8.
    """
    name = name or str(path)
    if require_file(path).is_dir():
        raise InputError(f"{name}: is a folder; a text file is expected")
    number = 0
    with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, decode_line(line, name, number)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{name}: damaged after line {number} ({error})") from None


def decode_line(line: bytes, path: str | Path, number: int) -> str:
    """Line ``number`` of ``path`` as text, without its end. Raises InputError if it is not UTF-8."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: not UTF-8 text (byte {error.start} of the line)") from None
    return text.removeprefix(BOM) if number == 1 else text
