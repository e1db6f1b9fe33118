"""Files and checkpoints from the net: resumed, checked, unpacked, and under their name only when they are whole.

Standard library only, and Python 3.9 is enough: this runs before anything is installed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import ssl
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from drhard.errors import InputError

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # "downloading" / "checking" / "unpacking", bytes done, bytes in all

WAITS = (1, 2, 4, 8, 16)  # seconds before each new attempt; they begin anew when bytes have arrived
TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 18
UNPACKED = 3.5  # times the packed size, to be safe: MS MARCO's 8.4 GB of documents become 22 GB

_PASSING = {408, 429, 500, 502, 503, 504}  # status codes that go away by themselves
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# All that loading a checkpoint needs; an archive may hold much more (optimizer states, logs).
_CHECKPOINT_FILES = (
    "config.json", *_WEIGHTS, "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """A file on the net, and what it becomes in ``{data_root}/{dataset}/dataset``."""

    dataset: str  # "passage" or "doc"
    url: str
    bytes: int  # a hint
    md5: Sequence[str]  # any of them is right
    names: Sequence[str]  # of the file itself, of a .gz unpacked, or of the wanted members of a .tar.gz

    @property
    def archive(self) -> str:
        """Its name on the net."""
        return PurePosixPath(urlsplit(self.url).path).name

    def missing(self, folder: Path) -> list[str]:
        """Those of its names that are not in ``folder``. What is there is whole: that is how it got its name.

        NAME.gz stands for NAME and NAME for NAME.gz, as the readers take either; only the archive itself does
        not stand for what it becomes, or an unpacking that was stopped would never be made up for.
        """

        def present(name: str) -> bool:
            twin = name[:-3] if name.endswith(".gz") else f"{name}.gz"
            return (folder / name).is_file() or (twin != self.archive and (folder / twin).is_file())

        return [name for name in self.names if not present(name)]


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A published checkpoint on Google Drive: a folder of its files, or a single archive."""

    dataset: str
    folder: str  # its place in {data_root}/{dataset}
    drive_id: str
    is_archive: bool

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        kind = "file/d" if self.is_archive else "drive/folders"
        return f"https://drive.google.com/{kind}/{self.drive_id}"


@dataclass(frozen=True)
class Manifest:
    """What there is to fetch, and the request headers that a host wants."""

    files: list[RemoteFile]
    checkpoints: list[RemoteCheckpoint]
    headers: dict[str, dict[str, str]]

    def headers_for(self, url: str) -> dict[str, str]:
        """The extra headers of a request for ``url``."""
        return self.headers.get(urlsplit(url).netloc, {})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest such as ``data/downloads.json``. Raises InputError if it is missing or none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = [
            RemoteFile(entry["dataset"], entry["url"], int(entry["bytes"]), entry["md5"], entry["files"])
            for entry in content["files"]
        ]
        checkpoints = [
            RemoteCheckpoint(
                entry["dataset"], entry["folder"], entry.get("drive_folder") or entry["drive_file"],
                is_archive="drive_file" in entry,
            )
            for entry in content["checkpoints"]
        ]  # fmt: skip
        return Manifest(files, checkpoints, content["headers"])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; --manifest names a file like data/downloads.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest like data/downloads.json ({error!r})") from None


def download(file: RemoteFile, folder: Path, headers: dict[str, str], progress: Progress) -> None:
    """Bring ``file`` into ``folder``, unpacked. What an earlier, stopped call has left is used.

    Raises:
        InputError: the server does not give it, its md5 is wrong, the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / file.archive
    unpacked = list(file.names) != [file.archive]
    if archive.is_file():  # put there by hand, or an earlier call was stopped while it unpacked
        digest = md5_of(archive, progress)
        if digest not in file.md5:
            raise InputError(f"{archive}: its md5 is {digest}, not {_either(file.md5)}; remove it and run this again")
    else:
        unfinished = _partial(archive)
        _check_space(file, folder, unfinished, unpacked)
        fetch(file.url, unfinished, headers, progress, file.bytes)
        digest = md5_of(unfinished, progress)
        if digest not in file.md5:
            unfinished.unlink()
            raise InputError(
                f"{file.url}: the md5 of what came is {digest}, not {_either(file.md5)}; it was damaged on its way or "
                f"has been replaced; it is removed, run the same command again"
            )
        os.replace(unfinished, archive)
    if unpacked:
        unpack(archive, file.missing(folder), progress)
        archive.unlink()


def fetch(url: str, path: Path, headers: dict[str, str], progress: Progress, size_hint: int = 0) -> None:
    """Download ``url`` to ``path``, going on from what is there; passing faults are waited out.

    Raises InputError if the server refuses, or fails again and again.
    """
    waits = iter(WAITS)
    most = _size(path)
    while True:
        try:
            return _fetch_rest(url, path, headers, progress, size_hint)
        except _PassingFault as fault:
            if _size(path) > most:
                most = _size(path)
                waits = iter(WAITS)
            wait = next(waits, None)
            if wait is None:
                raise InputError(
                    f"{url}: {fault}, {len(WAITS) + 1} times; what has come is kept, run the same command again later"
                ) from None
            log.warning("%s: %s; next attempt in %d s", url, fault, wait)
            time.sleep(wait)


class _PassingFault(Exception):
    """The network or the server failed in a way that another attempt may mend."""


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Sort what can go wrong on the net into faults that pass and those that do not (InputError)."""
    try:
        yield
    except HTTPError as error:
        answer = f"the server answers {error.code} {error.reason}"
        if error.code in _PASSING:
            raise _PassingFault(answer) from None
        raise InputError(f"{url}: {answer}; see whether the file has moved and correct the manifest") from None
    except (OSError, HTTPException) as error:  # no route, no name, reset, timeout, ...
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InputError(
                f"{url}: Python cannot verify the certificate ({reason.verify_message}); install root certificates "
                "(python.org's Python on macOS: 'Install Certificates.command') or point SSL_CERT_FILE to them"
            ) from None
        raise _PassingFault(str(reason) or type(reason).__name__) from None


def _fetch_rest(url: str, path: Path, headers: dict[str, str], progress: Progress, size_hint: int) -> None:
    """One attempt of :func:`fetch`. Raises _PassingFault if the connection ends too early."""
    done = _size(path)
    request = Request(url, headers={**headers, "Range": f"bytes={done}-"} if done else headers)
    response = None
    with _network(url):
        try:
            response = urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            if not done or error.code != 416:  # 416: no bytes from there on
                raise
            total = _range(error.headers["Content-Range"])[1]
    if response is None:
        if done != total:  # more than there is: not the beginning of this file
            path.unlink()
            _fetch_rest(url, path, headers, progress, size_hint)
        return
    with response:
        # 200 instead of 206: the server ignores ranges and sends all of it.
        start, total = _range(response.headers["Content-Range"]) if response.status == 206 else (0, _length(response))
        if start not in (0, done):
            raise _PassingFault(f"the server sends bytes from {start} on, not from {done} on")
        done = start
        with open(path, "ab" if done else "wb") as file:
            while True:
                with _network(url):
                    chunk = response.read1(CHUNK)  # what has come: a slow line shows its progress, a kill loses little
                if not chunk:
                    break
                file.write(chunk)
                done += len(chunk)
                progress("downloading", done, total or size_hint)
    if total is not None and done != total:
        raise _PassingFault(f"the connection ended after {done} of {total} bytes")


def _range(header: str | None) -> tuple[int | None, int | None]:
    """First byte and size of the whole from ``Content-Range``, None for what it does not say."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", header or "")
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _length(response: HTTPResponse) -> int | None:
    length = response.headers["Content-Length"]
    return int(length) if length else None


def md5_of(path: Path, progress: Progress) -> str:
    """The md5 of a file, in hexadecimal digits."""
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, _size(path)
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
            done += len(chunk)
            progress("checking", done, total)
    return digest.hexdigest()


def unpack(archive: Path, names: Sequence[str], progress: Progress) -> None:
    """Unpack a ``.gz`` to its one name, or the members called ``names`` of a ``.tar.gz``, beside the archive.

    Only these names are ever written, whatever else an archive holds. Raises InputError if one is not in it.
    """
    missing = set(names)
    total = _size(archive)
    with open(archive, "rb") as packed:

        def write(source: IO[bytes], name: str) -> None:
            unfinished = _partial(archive.with_name(name))
            try:
                with open(unfinished, "wb") as target:
                    for chunk in iter(lambda: source.read(CHUNK), b""):
                        target.write(chunk)
                        progress("unpacking", packed.tell(), total)
                os.replace(unfinished, archive.with_name(name))
            finally:
                unfinished.unlink(missing_ok=True)
            missing.remove(name)

        try:
            if archive.name.endswith(".tar.gz"):
                with tarfile.open(fileobj=packed, mode="r|gz") as members:
                    for member in members:
                        name = member.name.removeprefix("./")
                        if name in missing and member.isfile():
                            write(members.extractfile(member), name)
            else:
                with gzip.open(packed) as content:
                    write(content, names[0])
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{archive}: cannot be unpacked ({error}); remove it and run this again") from None
    if missing:
        raise InputError(f"{archive}: holds no {', '.join(sorted(missing))}; is it the archive of the manifest?")


def _check_space(file: RemoteFile, folder: Path, unfinished: Path, unpacked: bool) -> None:
    need = file.bytes * (1 + UNPACKED * unpacked) - _size(unfinished)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"{folder}: {file.archive} needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room, or "
            "name another place with --data_root"
        )


def download_checkpoint(checkpoint: RemoteCheckpoint, folder: Path) -> None:
    """Bring a checkpoint from Google Drive into ``folder``, by gdown, which resumes what it has begun.

    Raises:
        InputError: gdown is missing or gets nothing, or what it gets is no checkpoint.
    """
    gdown = import_gdown()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is in the way and no checkpoint; move it elsewhere and run this again")
    unfinished = _partial(folder)
    unfinished.mkdir(parents=True, exist_ok=True)
    archive = folder.with_name(f"{folder.name}.archive")
    try:
        if checkpoint.is_archive:
            gdown.download(id=checkpoint.drive_id, output=str(archive), resume=True)
        else:
            gdown.download_folder(id=checkpoint.drive_id, output=str(unfinished), resume=True)
    except Exception as error:  # gdown's own, and those of what it is built on
        raise InputError(
            f"{checkpoint.url}: gdown did not get it ({_first_line(error)}); Google Drive refuses files that are asked "
            f"for often: try again in some hours, or fetch it with a browser into {folder}"
        ) from None
    if checkpoint.is_archive:
        _unpack_checkpoint(archive, unfinished)
    # Shallowest first: a Drive folder may hold the checkpoint in a folder of its own.
    for config in sorted(unfinished.rglob("config.json"), key=lambda path: len(path.parts)):
        if any((config.parent / name).is_file() for name in _WEIGHTS):
            os.replace(config.parent, folder)
            shutil.rmtree(unfinished, ignore_errors=True)
            archive.unlink(missing_ok=True)
            return
    kept = archive if checkpoint.is_archive else unfinished
    raise InputError(
        f"{kept}: what {checkpoint.url} gave holds no config.json with weights; remove it and run this again"
    )


def import_gdown() -> ModuleType:
    """The gdown package. Raises InputError if it is not installed."""
    try:
        import gdown  # here, because only checkpoints need it and nothing else needs a package
    except ImportError:
        raise InputError(
            f"--models needs the package gdown, which {sys.executable} lacks; install it: {sys.executable} -m pip "
            "install gdown"
        ) from None
    return gdown


def is_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint is there: it is moved to its place only when it is whole."""
    return (folder / "config.json").is_file()


def _unpack_checkpoint(archive: Path, folder: Path) -> None:
    """Write the checkpoint that a zip or tar archive holds, at whatever depth, flat into ``folder``."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as content:
                _write_members(content.namelist(), content.open, folder)
        elif archive.is_file() and tarfile.is_tarfile(archive):
            with tarfile.open(archive) as content:
                _write_members(content.getnames(), content.extractfile, folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"{archive}: cannot be unpacked ({error}); remove it and run this again") from None


def _write_members(members: Sequence[str], open_member: Callable[[str], IO[bytes]], folder: Path) -> None:
    configs = [PurePosixPath(member) for member in members if PurePosixPath(member).name == "config.json"]
    if not configs:
        return
    inside = min(configs, key=lambda path: len(path.parts)).parent
    for member in members:
        path = PurePosixPath(member)
        if path.parent == inside and path.name in _CHECKPOINT_FILES:
            with open_member(member) as source, open(folder / path.name, "wb") as target:
                shutil.copyfileobj(source, target, CHUNK)


def _partial(path: Path) -> Path:
    """As drhard.files.partial, which needs numpy."""
    return path.with_name(f"{path.name}.partial")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _either(digests: Sequence[str]) -> str:
    return " or ".join(digests)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
