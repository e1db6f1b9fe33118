"""Archives from elsewhere: only what is wanted is written, all of it or nothing, and no more than it may be.

Standard library only, and Python 3.9 is enough, as for :mod:`drhard.downloads`.
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

Progress = Callable[[str, int, int], None]  # "downloading" / "checking" / "unpacking", bytes done, bytes in all

CHUNK = 1 << 18
AT_ONCE = 1 << 24  # bytes; a name in a tar archive is read into memory, whatever its size
CHECKPOINT_MOST = 8 << 30  # bytes; roberta-base with its optimizer's state takes 1.5 GB
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# All that loading a checkpoint needs; an archive may hold much more (optimizer states, logs).
_CHECKPOINT_FILES = (
    "config.json",
    *WEIGHTS,
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def unpack(archive: Path, names: Sequence[str], progress: Progress, most: int) -> None:
    """Unpack a ``.gz`` to its one name, or the members called ``names`` of a ``.tar.gz``, beside the archive.

    Only these names are ever written, whatever else an archive holds, and all of them or none.

    Args:
        most: bytes that it may unpack to.

    Raises:
        InputError: one is not in it, is there twice or is no plain file, or there are more than ``most`` bytes in it.
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
            raise InputError(f"{archive}: holds no {', '.join(sorted(missing))}; is it the archive of the manifest?")


class _Bounded:
    """An unpacked file that ends with an InputError where it is larger than ``most`` bytes."""

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
    """``file``, bounded; it has what tarfile uses of a file."""
    return cast("IO[bytes]", _Bounded(file, archive, most))


def _wanted(archive: Path, members: Iterable[tuple[str, str, Any]], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Those of the members (name, what is wrong with it or "", itself) that are called as one of ``names``.

    Raises InputError if one is there twice, or if something is wrong with it.
    """
    found = set()
    for name, fault, member in members:
        name = name[2:] if name.startswith("./") else name
        if name not in names:
            continue
        if fault or name in found:
            raise InputError(f"{archive}: cannot be unpacked ({name} is {fault or 'there twice'}); remove it")
        found.add(name)
        yield name, member


def _require_content(file: IO[bytes] | None) -> IO[bytes]:
    assert file is not None, "only plain files are asked for"
    return file


def _fault_in_tar(member: tarfile.TarInfo) -> str:
    return "" if member.isreg() and not member.issparse() else "no plain file"


def _fault_in_zip(member: zipfile.ZipInfo, most: int) -> str:
    if member.flag_bits & 1:
        return "encrypted"
    if member.file_size > most:
        return "too large for a checkpoint"
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
    return "" if not member.is_dir() and kind in (0, stat.S_IFREG) else "no plain file"


@contextmanager
def _unpacking(archive: Path) -> Iterator[None]:
    """Turn what the block raises because ``archive`` is damaged, or made to do damage, into an InputError."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the libraries raise whatever a damaged field leads to
        # Of the disk, but for one that says that a place before the start of the file was looked for.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise InputError(f"{archive}: cannot be unpacked ({shorten(error)}); remove it and run this again") from None


def unpack_checkpoint(archive: Path, folder: Path, most: int = CHECKPOINT_MOST) -> None:
    """Write the checkpoint that a zip or tar archive holds, at whatever depth, flat into ``folder``.

    Nothing is written if it is no archive or has no checkpoint in it. Raises InputError as :func:`unpack`; ``most`` is
    how many bytes it may unpack to.
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
                in_zip = [(member.filename, _fault_in_zip(member, most), member) for member in zipped.infolist()]
                _write_members(archive, in_zip, zipped.open, folder)


def _decompressed(packed: IO[bytes]) -> IO[bytes]:
    start = packed.read(6)
    packed.seek(0)
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "lzma")):
        if start.startswith(magic):
            return cast("IO[bytes]", import_module(name).open(packed))  # not every Python is built with all of them
    return packed


def _write_members(
    archive: Path, members: Sequence[tuple[str, str, Any]], open_member: Callable[[Any], IO[bytes]], folder: Path
) -> None:
    configs = [path for path in (PurePosixPath(name) for name, _, _ in members) if path.name == "config.json"]
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
