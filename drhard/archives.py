"""Unpack downloaded archives: write only the wanted files, all or none of them, up to a size limit.

This module needs only Python 3.9 and the standard library, as :mod:`drhard.downloads` does.
"""

from __future__ import annotations

import errno
import gzip
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from drhard.errors import InputError, shorten
from drhard.files import write_whole_file
from drhard.hub import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILES

Progress = Callable[[str, int, int], None]  # "downloading" / "checking" / "unpacking", bytes done, bytes in all

CHUNK = 1 << 18
AT_ONCE = 1 << 24  # bytes; tarfile reads a member's name into memory, however long it is
CHECKPOINT_MOST = 8 << 30  # bytes; roberta-base with its optimizer's state takes 1.5 GB
# The files that loading a checkpoint needs. An archive may hold much more, such as optimizer states and logs.
_CHECKPOINT_FILES = (
    CONFIG_FILE,
    *WEIGHTS_FILES,
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def unpack(archive: Path, names: Sequence[str], progress: Progress, most: int) -> None:
    """Unpack a ``.gz``, or the members ``names`` of a ``.tar.gz``, beside the archive.

    Writes all of ``names`` or none, and no other file, whatever the archive holds.

    Args:
        most: the largest unpacked size, in bytes.

    Raises:
        InputError: a member is missing, appears twice or is not a plain file, or the archive unpacks to more than
            ``most`` bytes.
    """
    total = archive.stat().st_size
    with ExitStack() as targets, _unpacking(archive), open(archive, "rb") as packed:

        def write(source: IO[bytes], name: str) -> None:
            target = targets.enter_context(write_whole_file(archive.with_name(name)))
            for chunk in iter(lambda: source.read(CHUNK), b""):
                target.write(chunk)
                progress("unpacking", packed.tell(), total)

        content = _bounded(gzip.GzipFile(fileobj=packed), archive, most)
        if not archive.name.endswith(".tar.gz"):
            write(content, names[0])
            return
        missing = set(names)
        with tarfile.open(fileobj=content, mode="r:") as members:
            inside = ((member.name, _fault_in_tar(member), member) for member in members)
            for name, member in _wanted(archive, inside, names):
                write(_require_content(members.extractfile(member)), name)
                missing.remove(name)
        if missing:
            raise InputError(f"{archive}: lacks {', '.join(sorted(missing))}; is it the archive of the manifest?")


class _Bounded:
    """An unpacked file that raises InputError beyond ``most`` bytes."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, archive: Path, most: int):
        self._file, self._archive, self._most = file, archive, most

    def read(self, size: int) -> bytes:
        if size > AT_ONCE:
            raise tarfile.ReadError(f"a name of {size} bytes")
        data = self._file.read(size)
        self._check(self._file.tell())
        return data

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise InputError(
                f"{self._archive}: unpacks to more than {self._most / 1e6:.0f} MB, far more than such a file holds; "
                "remove it"
            )


def _bounded(file: IO[bytes] | gzip.GzipFile, archive: Path, most: int) -> IO[bytes]:
    """Bound ``file``. The result has the methods that tarfile uses."""
    return cast("IO[bytes]", _Bounded(file, archive, most))


def _wanted(archive: Path, members: Iterable[tuple[str, str, Any]], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the members that are called as one of ``names``. Raises InputError if one has a fault or appears twice.

    Args:
        members: the name of each, its fault or "", and the member itself.
    """
    found = set()
    for name, fault, member in members:
        name = name[2:] if name.startswith("./") else name
        if name not in names:
            continue
        if fault or name in found:
            raise InputError(f"{archive}: cannot be unpacked ({name} {fault or 'appears twice'}); remove it")
        found.add(name)
        yield name, member


def _require_content(file: IO[bytes] | None) -> IO[bytes]:
    assert file is not None, "only plain files are asked for"
    return file


def _fault_in_tar(member: tarfile.TarInfo) -> str:
    return "" if member.isreg() and not member.issparse() else "is not a plain file"


def _fault_in_zip(member: zipfile.ZipInfo, most: int, purpose: str) -> str:
    if member.flag_bits & 1:
        return "is encrypted"
    if member.file_size > most:
        return f"is too large for {purpose}"
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
    return "" if not member.is_dir() and kind in (0, stat.S_IFREG) else "is not a plain file"


@contextmanager
def _unpacking(archive: Path) -> Iterator[None]:
    """Turn the errors of a damaged or malicious ``archive`` into an InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged field can make the libraries raise anything
        # Errors of the disk pass through. EINVAL is the archive's: it points before its own start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise InputError(
            f"{archive}: cannot be unpacked ({shorten(error)}); remove it and run the same command again"
        ) from None


def unpack_checkpoint(archive: Path, folder: Path, most: int = CHECKPOINT_MOST) -> None:
    """Find the checkpoint in a zip or tar archive, at any depth, and write its files flat into ``folder``.

    Writes nothing if ``archive`` is not an archive or holds no checkpoint. Raises InputError as :func:`unpack`;
    ``most`` is how many bytes it may unpack to.
    """
    with _unpacking(archive), open(archive, "rb") as packed:
        unpacked = _bounded(_decompressed(packed), archive, most)
        if unpacked.read(512)[257:262] == b"ustar":  # first: a tar that ends with torch's weights looks like a zip
            unpacked.seek(0)
            with tarfile.open(fileobj=unpacked, mode="r:") as content:
                in_tar = [(member.name, _fault_in_tar(member), member) for member in content]
                _write_members(archive, in_tar, lambda member: _require_content(content.extractfile(member)), folder)
        elif zipfile.is_zipfile(packed):
            with zipfile.ZipFile(packed) as zipped:
                in_zip = [
                    (member.filename, _fault_in_zip(member, most, "a checkpoint"), member)
                    for member in zipped.infolist()
                ]
                _write_members(archive, in_zip, zipped.open, folder)


def unpack_in_place(path: Path, most: int) -> None:
    """Replace a zip or tar archive by the only file in it, and a ``.gz``, ``.bz2`` or ``.xz`` by what it unpacks to.

    The content decides what ``path`` is, not its name. Folders and hidden files do not count. Any other file is left as
    it is.

    Args:
        most: the largest unpacked size, in bytes.

    Raises:
        InputError: as :func:`unpack`; or an archive holds several files, or none.
    """
    with _unpacking(path), open(path, "rb") as packed:
        content = _decompressed(packed)
        unpacked = _bounded(content, path, most)
        if unpacked.read(512)[257:262] == b"ustar":
            unpacked.seek(0)
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                in_tar = [(member.name, _fault_in_tar(member), member) for member in tar if not member.isdir()]
                _copy_only(path, in_tar, lambda member: _require_content(tar.extractfile(member)))
        elif content is not packed:
            unpacked.seek(0)
            with write_whole_file(path) as file:
                shutil.copyfileobj(unpacked, file, CHUNK)
        elif zipfile.is_zipfile(packed):
            with zipfile.ZipFile(packed) as zipped:
                files = [member for member in zipped.infolist() if not member.is_dir()]
                in_zip = [(member.filename, _fault_in_zip(member, most, "a run"), member) for member in files]
                _copy_only(path, in_zip, zipped.open)


def _copy_only(path: Path, members: Sequence[tuple[str, str, Any]], open_member: Callable[[Any], IO[bytes]]) -> None:
    """Write the only one of ``members`` to ``path``.

    Args:
        members: the name of each, its fault or "", and the member itself.
    """
    hidden = (".", "__MACOSX")
    wanted = [one for one in members if not any(part.startswith(hidden) for part in PurePosixPath(one[0]).parts)]
    if len(wanted) != 1:
        raise InputError(f"{path}: holds {len(wanted)} files; put the one that is wanted in its place")
    [(name, fault, member)] = wanted
    if fault:
        raise InputError(f"{path}: cannot be unpacked ({name} {fault}); remove it")
    with open_member(member) as source, write_whole_file(path) as file:
        shutil.copyfileobj(source, file, CHUNK)


def _decompressed(packed: IO[bytes]) -> IO[bytes]:
    start = packed.read(6)
    packed.seek(0)
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "lzma")):
        if start.startswith(magic):
            return cast("IO[bytes]", import_module(name).open(packed))  # some builds of Python lack one of these
    return packed


def _write_members(
    archive: Path, members: Sequence[tuple[str, str, Any]], open_member: Callable[[Any], IO[bytes]], folder: Path
) -> None:
    configs = [path for path in (PurePosixPath(name) for name, _, _ in members) if path.name == CONFIG_FILE]
    if not configs:
        return
    inside = min(configs, key=lambda path: len(path.parts)).parent
    beside = (
        (path.name if path.parent == inside else "", fault, member)
        for name, fault, member in members
        for path in [PurePosixPath(name)]
    )
    with ExitStack() as targets:
        for name, member in _wanted(archive, beside, _CHECKPOINT_FILES):
            with open_member(member) as source:
                shutil.copyfileobj(source, targets.enter_context(write_whole_file(folder / name)), CHUNK)
