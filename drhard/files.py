"""Read files with checks. Write them whole, one writer at a time.

A file gets its name only when it is whole. Until then it is ``NAME.partial``, locked while its writer lives. The
finished file is flushed to the disk, then renamed.

This module needs only Python 3.9 and the standard library: download_data.py runs before anything is installed.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from drhard.errors import InputError, shorten

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"  # in a folder that a process is writing
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # errors of a file system without locks
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
PROBE_BYTES = 1 << 20
BUFFER_BYTES = 1 << 18
BOM = "\ufeff"  # the byte-order mark with which some editors start a text


def partial_path(path: Path) -> Path:
    """Return the name of ``path`` until it is whole."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def claim(unfinished: Path, target: Path) -> Iterator[BinaryIO]:
    """Open ``unfinished`` for appending and lock out other processes until the block ends.

    The lock dies with its process, so another process can claim what a killed one left.

    Args:
        target: the path to name in errors.

    Raises:
        InputError: another process has claimed it; or, by the file's methods, the disk is full or fails.
    """
    while True:
        with io.BufferedWriter(_Raw(unfinished, "a", target), BUFFER_BYTES) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{target}: another process is writing it; wait for it, then run the same command again"
                ) from None
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
        # The former writer renamed or removed the file after we opened it: claim the new one.


@contextmanager
def claim_partial(path: Path) -> Iterator[BinaryIO]:
    """Claim ``{path}.partial``, as :func:`claim` does. Make its folder if it is missing.

    Raises:
        InputError: another process is writing ``path``, or the disk is full or fails.
    """
    with ExitStack() as stack:
        with disk_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(claim(partial_path(path), path))
        yield file


@contextmanager
def sole_writer(folder: str | Path, target: Path | None = None) -> Iterator[None]:
    """Make ``folder`` if it is missing, and lock out other writers until the block ends.

    Args:
        target: the path to name in errors; by default ``folder``.

    Raises:
        InputError: another process is writing there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder / LOCK_FILE, target or folder):
        try:
            yield
        finally:
            (folder / LOCK_FILE).unlink(missing_ok=True)


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Yield the path of an empty file to write. The file is renamed to ``path`` if the block succeeds.

    If the block fails, the new file is removed and ``path`` stays as it was. Prefer :func:`write_whole_file`: some
    libraries lose the error of their last flush when they write by name.

    Raises:
        InputError: another process is writing ``path``, or the disk is full or fails.
    """
    path = Path(path)
    with _replacing(path) as unfinished, disk_faults(path):
        yield unfinished


@contextmanager
def write_whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Do as :func:`write_whole`, but yield a binary file. Check its size before the rename.

    np.save, torch.save and faiss write to this file through Python, so a disk error keeps its reason. An error of the
    block that does not come from writing this file is left as it is.
    """
    path = Path(path)
    with _replacing(path) as unfinished, _open(unfinished, path) as file:
        counted = _Counted(file)
        yield counted  # type: ignore[misc]
        file.flush()
        if os.fstat(file.fileno()).st_size != counted.bytes:
            with disk_faults(path):
                raise OSError(errno.EIO, "the disk lost a part of it", str(path))


@contextmanager
def write_whole_text(path: str | Path) -> Iterator[IO[str]]:
    """Do as :func:`write_whole_file`, but yield a text file: UTF-8, lines end with a line feed."""
    path = Path(path)
    with _replacing(path) as unfinished, _open(unfinished, path) as file, _as_text(file) as text:
        yield text


def _as_text(file: BinaryIO) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8", newline="\n")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file, and rename it to ``path`` if the block succeeds."""
    with claim_partial(path) as claimed:
        try:
            with disk_faults(path):
                claimed.truncate(0)
            yield partial_path(path)
            with disk_faults(path):
                sync(partial_path(path))
                os.replace(partial_path(path), path)
        except BaseException:  # not "finally": once renamed, the name may be another process's claim
            partial_path(path).unlink(missing_ok=True)
            raise


@contextmanager
def _open(unfinished: Path, path: Path) -> Iterator[BinaryIO]:
    """Open ``unfinished`` to write. An error of writing it raises DiskFault, whatever a library makes of that."""
    raw = _Raw(unfinished, "w", path)
    try:
        with io.BufferedWriter(raw, BUFFER_BYTES) as file:
            yield file
    except Exception:
        if raw.fault is not None:
            raise raw.fault from None
        raise


class _Raw(io.FileIO):
    """A file to write, without a buffer. Its last error of the disk is ``fault``. Errors call it ``path``."""

    def __init__(self, unfinished: Path, mode: str, path: Path):
        with disk_faults(path):
            super().__init__(str(unfinished), mode)
        self.path = path
        self.fault: DiskFault | None = None

    def write(self, data: Any) -> int:
        """Write some of ``data``. Raises DiskFault if the disk is full or fails."""
        try:
            with disk_faults(self.path):
                return super().write(data)
        except DiskFault as fault:
            self.fault = fault
            raise


@contextmanager
def write_whole_folder(folder: str | Path, last: str = "") -> Iterator[Path]:
    """Do as :func:`write_whole` for a folder: yield an empty folder to write files into.

    If the block succeeds, a new ``folder`` appears at once. If ``folder`` exists, the files are moved into it one by
    one: the old ``last`` is removed first and the new one is moved last. A folder with this file is therefore whole.

    Raises:
        InputError: another process is writing ``folder``, or the disk is full or fails.
    """
    folder = Path(folder)
    unfinished = folder / ".partial" if folder.is_dir() else partial_path(folder)
    lock = _lock_path(unfinished)
    with disk_faults(folder):
        if folder.is_dir():
            _remove_left(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with claim(lock, folder):
            try:
                shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
                unfinished.mkdir()
                yield unfinished
                entries = sorted(unfinished.iterdir(), key=lambda path: (path.name == last, path.name))
                for path in unfinished.rglob("*"):
                    sync(path)
                if folder.is_dir():  # now: another process may have made it since
                    if last:
                        (folder / last).unlink(missing_ok=True)
                    for path in entries:
                        remove_folder(folder / path.name)
                        os.replace(path, folder / path.name)
                else:
                    os.replace(unfinished, folder)
                    sync(folder.parent)
                sync(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
                lock.unlink(missing_ok=True)


def _lock_path(unfinished: Path) -> Path:
    return unfinished.with_name(f"{unfinished.name}.lock")


def _remove_left(folder: Path) -> None:
    """Remove what a process left that was killed as it gave ``folder`` its name."""
    lock = _lock_path(partial_path(folder))
    if lock.exists():
        with suppress(InputError), claim(lock, folder):  # an InputError: another process is there
            shutil.rmtree(partial_path(folder), ignore_errors=True)
            lock.unlink()


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove what killed writers of the folders ``pattern`` left in ``folder``. Only its sole writer may call this."""
    for left in folder.glob(f"{pattern}.partial"):
        shutil.rmtree(left, ignore_errors=True)
    for lock in folder.glob(f"{pattern}.partial.lock"):
        lock.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists, and what a killed process left of it.

    It is renamed first, so that a half-removed folder is never taken for a whole one.
    """
    shutil.rmtree(partial_path(folder), ignore_errors=True)
    if folder.is_dir():
        os.replace(folder, partial_path(folder))
        shutil.rmtree(partial_path(folder), ignore_errors=True)


class _Counted:
    """A file that counts the bytes written to it. It has no descriptor, so NumPy writes through Python."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.bytes = 0

    def write(self, data: Any) -> int:
        """Write all of ``data`` (bytes or a buffer). Return the number of bytes."""
        count = self._file.write(data)
        self.bytes += count
        return count

    def flush(self) -> None:
        """Hand buffered bytes to the system."""
        self._file.flush()

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self.bytes


class DiskFault(InputError):
    """A disk is full or fails. What is written already may be of use once that is fixed."""


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn an error of the block into a DiskFault if the disk of ``path`` is full or fails.

    The block should only write ``path``: a system's error often names no file. One that names another file is left as
    it is. Libraries report a full disk by many kinds of errors, some without a reason. So we test the disk itself.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if _names_another(error, path):
            raise
        if error.errno in DISK_FAULTS:
            _refuse_disk(path, error)
        if error.errno is None:
            _ask_disk(path)
        raise
    except Exception:
        _ask_disk(path)
        raise


def _names_another(error: OSError, path: Path) -> bool:
    """Return whether ``error`` names files, but neither ``path`` nor what is made on the way to it."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    ours = {str(path), *map(str, path.parents)}
    inside = (f"{path}{os.sep}", str(partial_path(path)))
    return bool(names) and not any(name in ours or name.startswith(inside) for name in names)


def _ask_disk(path: Path) -> None:
    """Raise DiskFault if the disk of ``path`` cannot hold another megabyte."""
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
    raise DiskFault(
        f"{path}: {error.strerror} (the disk mounted at {mount} has {free / 1e9:.1f} GB free); "
        "fix this and run the same command again"
    ) from None


def find_folder_above(path: Path) -> Path:
    """Return the nearest folder above ``path`` that exists."""
    return next(folder for folder in (path.absolute().parent, *path.absolute().parents) if folder.is_dir())


def sync(path: Path) -> None:
    """Flush a file to the disk. Raises OSError, with the path, if the disk fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # raised for what is not on a disk, such as /dev/null
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: memoryview, place: int) -> None:
    """Write all bytes of ``data`` into an open file, from byte ``place``."""
    while data:
        written = os.pwrite(descriptor, data, place)
        data, place = data[written:], place + written


def digest_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, as sha256sum prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: str | Path, hint: str = "") -> Path:
    """Return ``path`` as a Path. Raises InputError if it does not exist; ``hint`` says how to get it."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder{'; ' + hint if hint else ''}")
    return path


# JSON


def write_json(path: str | Path, content: Any, **format: Any) -> None:
    """Write ``content`` as JSON, whole. Raises ValueError for values that JSON lacks, such as NaN."""
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
        fields: the required fields and the types of their values. ``float`` accepts whole numbers too. Only ``bool``
            accepts a bool.
        hint: what to do about a bad file.
        optional: fields that may be missing, and the types of their values.
        name: what to call the file in errors; by default ``path``.

    Returns:
        The object with all its fields, unknown ones included.

    Raises:
        InputError: the file is missing or is not one JSON object; it names a field twice or nests too deep; a number
            is not finite or has too many digits; a field is missing or has the wrong type.
    """
    name = name or str(path)
    hint = f"; {hint}" if hint else ""
    content = read_json(path, name, hint)
    if not isinstance(content, dict):
        raise InputError(f"{name}: expected a JSON object, found {_KINDS[type(content)]}{hint}")
    check_fields(name, content, fields, hint, optional)
    return content


def read_json(path: str | Path, name: str | None = None, hint: str = "") -> Any:
    """Read a JSON file. The arguments and errors are those of :func:`read_object`."""
    path = require_file(path)
    name = name or str(path)
    if path.is_dir():
        raise InputError(f"{name}: is a folder; a JSON file is expected")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_finite)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()  # half a pair is no text: a UnicodeEncodeError
        return content
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shorten(error)
        raise InputError(f"{name}: not a JSON file ({reason}){hint}") from None


def check_fields(
    where: str,
    content: Mapping[str, Any],
    fields: Mapping[str, type | tuple[type, ...]],
    hint: str = "",
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
) -> None:
    """Raise InputError, naming ``where``, if a field of ``content`` is missing or has the wrong type.

    Args:
        fields, optional: as in :func:`read_object`.
        hint: the end of the message.
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


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
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
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return content


def _finite(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


# Text


def read_lines(path: str | Path, name: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 text file, gzipped or not.

    A byte-order mark at the start of the file is dropped.

    Args:
        name: what to call the file in errors; by default ``path``.

    Raises:
        InputError: the file is missing or damaged, or a line is not UTF-8.
    """
    for number, line in enumerate(read_raw_lines(path, name), start=1):
        yield number, decode_line(line, name or str(path), number)


def read_raw_lines(path: str | Path, name: str | None = None, start: int = 0) -> Iterator[bytes]:
    """Yield the lines of a file, gzipped or not, with their ends. Errors as in :func:`read_lines`.

    Args:
        name: as in :func:`read_lines`.
        start: the byte to begin at, of the content.
    """
    name = name or str(path)
    if require_file(path).is_dir():
        raise InputError(f"{name}: is a folder; a text file is expected")
    number = 0
    with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
        try:
            file.seek(start)
            for line in file:
                yield line
                number += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{name}: damaged after line {number} ({error})") from None


def decode_line(line: bytes, path: str | Path, number: int) -> str:
    """Decode line ``number`` of ``path``, without its end. Raises InputError if it is not UTF-8."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}: not UTF-8 text (byte {error.start} of the line)") from None
    return text.removeprefix(BOM) if number == 1 else text
