"""Files and checkpoints from the net: resumed, checked, unpacked, and under their name only when they are whole.

Standard library only, and Python 3.9 is enough: this runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import ssl
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NoReturn, cast
from urllib import request as web
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from drhard.archives import CHUNK, WEIGHTS, Progress, unpack, unpack_checkpoint
from drhard.errors import InputError, shorten
from drhard.files import disk_faults, partial_path, read_object, sole_writer, sync

log = logging.getLogger(__name__)

WAITS = (1, 2, 4, 8, 16)  # seconds
TIMEOUT = 60  # seconds without a byte
UNPACKED = 3.5  # times the packed size, to be safe: MS MARCO's 8.4 GB of documents become 22 GB

# Sizes in the manifest are hints. What comes may be larger, and may unpack to more than UNPACKED where text repeats
# itself; beyond these bounds it is another file, or one made to fill the disk.
LARGER = 2  # times the size in the manifest
UNPACKED_MOST = 10  # times the size in the manifest
SLACK = 1 << 20  # bytes, for small files

_PASSING = {408, 429, 500, 502, 503, 504}  # status codes that go away by themselves


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
    """Read a manifest such as ``data/downloads.json``.

    Raises:
        InputError: it is missing or none, or names what is no plain file name, no address of the web or no md5.
    """
    hint = "--manifest names a file like data/downloads.json"
    content = read_object(path, {"files": list, "checkpoints": list, "headers": dict}, hint)
    try:
        files = [_remote_file(entry) for entry in content["files"]]
        checkpoints = [_remote_checkpoint(entry) for entry in content["checkpoints"]]
        for headers in content["headers"].values():
            _require(isinstance(headers, dict), "headers", headers)
            for name, text in headers.items():
                _require(_matches(r"[\w-]+", name) and _matches("[ -~]*", text), "header", {name: text})
    except _Unfit as error:
        raise InputError(f"{path}: {error}; {hint}") from None
    return Manifest(files, checkpoints, content["headers"])


class _Unfit(ValueError):
    """Something in a manifest that is not what it should be."""


_NAME = r"[\w-][\w.-]*"  # of a file: no path, no hidden file, and any file system can write it


def _remote_file(entry: Any) -> RemoteFile:
    dataset, url, size, md5s, names = _values(entry, "dataset", "url", "bytes", "md5", "files")
    _require(dataset in ("passage", "doc"), "dataset", dataset)
    _require(_matches(r"https?://[\w.-]+(:\d{1,5})?/[!-~]+", url), "url", url)
    _require(type(size) is int and 1 <= size < 1 << 50, "bytes", size)
    _require(isinstance(md5s, list) and bool(md5s) and all(_matches("[0-9a-f]{32}", md5) for md5 in md5s), "md5", md5s)
    _require(isinstance(names, list) and bool(names) and all(_matches(_NAME, name) for name in names), "files", names)
    file = RemoteFile(dataset, url, size, md5s, names)
    _require(_matches(_NAME, file.archive), "url", url)
    if names != [file.archive]:
        packed = file.archive.endswith(".tar.gz") or (file.archive.endswith(".gz") and len(names) == 1)
        _require(packed and len(set(names)) == len(names), "files", names)
    return file


def _remote_checkpoint(entry: Any) -> RemoteCheckpoint:
    is_archive = isinstance(entry, dict) and "drive_file" in entry
    dataset, folder, drive_id = _values(entry, "dataset", "folder", "drive_file" if is_archive else "drive_folder")
    _require(dataset in ("passage", "doc"), "dataset", dataset)
    _require(_matches(f"{_NAME}(/{_NAME})*", folder), "folder", folder)
    _require(_matches(r"[\w-]+", drive_id), "id on Google Drive", drive_id)
    return RemoteCheckpoint(dataset, folder, drive_id, is_archive)


def _values(entry: Any, *names: str) -> list[Any]:
    _require(isinstance(entry, dict), "entry", entry)
    for name in names:
        _require(name in entry, f"entry without {name!r}", entry)
    return [entry[name] for name in names]


def _matches(pattern: str, text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(pattern, text, re.ASCII) is not None


def _require(fits: bool, what: str, value: Any) -> None:
    if not fits:
        shown = json.dumps(value)  # ASCII, whatever it is
        raise _Unfit(f"{shown if len(shown) <= 100 else shown[:100] + '...'} is no {what}")


def download(file: RemoteFile, folder: Path, headers: dict[str, str], progress: Progress) -> list[str]:
    """Bring ``file`` into ``folder``, unpacked. What an earlier, stopped call has left is used.

    Returns:
        Those of its names that were written.

    Raises:
        InputError: another process writes there, the server does not give the file, its md5 is wrong, the archive is
            not what it should be, the disk is too small.
    """
    archive = folder / file.archive
    with disk_faults(archive), sole_writer(folder, archive):
        missing = file.missing(folder)
        if not missing:
            forget_archive(file, folder)
            return []
        unpacked = list(file.names) != [file.archive]
        if archive.is_file():  # put there by hand, or an earlier call was stopped while it unpacked
            digest = digest_md5(archive, progress)
            if digest not in file.md5:
                raise InputError(
                    f"{archive}: its md5 is {digest}, not {_either(file.md5)}; remove it and run this again"
                )
        else:
            _download_archive(file, archive, unpacked, headers, progress)
        if unpacked:
            unpack(archive, missing, progress, most=UNPACKED_MOST * file.bytes + SLACK)
            forget_archive(file, folder)
    return missing


def forget_archive(file: RemoteFile, folder: Path) -> None:
    """Remove the archive of ``file``, all of whose names are there, if a process was killed before it could."""
    if list(file.names) != [file.archive]:
        (folder / file.archive).unlink(missing_ok=True)


def _download_archive(
    file: RemoteFile, archive: Path, unpacked: bool, headers: dict[str, str], progress: Progress
) -> None:
    unfinished = partial_path(archive)
    _check_space(file, archive.parent, unfinished, unpacked)
    fetch(file.url, unfinished, headers, progress, file.bytes)
    digest = digest_md5(unfinished, progress)
    if digest not in file.md5:
        unfinished.unlink()
        raise InputError(
            f"{file.url}: the md5 of what came is {digest}, not {_either(file.md5)}; it was damaged on its way or "
            f"has been replaced; it is removed, run the same command again"
        )
    sync(unfinished)
    os.replace(unfinished, archive)


def fetch(
    url: str,
    path: Path,
    headers: dict[str, str],
    progress: Progress,
    size_hint: int = 0,
    waits: Sequence[float] = WAITS,
) -> None:
    """Download ``url`` to ``path``, going on from what is there; passing faults are waited out.

    Args:
        size_hint: how many bytes are expected; 0 if that is not known. Much more is refused.
        waits: seconds before each new attempt; they begin anew when bytes have arrived.

    Raises:
        InputError: the server refuses, fails again and again, or sends nonsense.
    """
    left = iter(waits)
    most = _size(path)
    while True:
        try:
            return _fetch_rest(url, path, headers, progress, size_hint)
        except _PassingFault as fault:
            if _size(path) > most:
                most = _size(path)
                left = iter(waits)
            wait = next(left, None)
            if wait is None:
                raise InputError(
                    f"{url}: {fault}, {len(waits) + 1} times; what has come is kept, run the same command again later"
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
        answer = f"the server answers {error.code} {shorten(error.reason)}"
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
        # urllib's own, of an address that it does not open: another attempt leads there again.
        if isinstance(error, InvalidURL) or (isinstance(error, URLError) and isinstance(reason, str)):
            _refuse_answer(url, reason)
        raise _PassingFault(shorten(reason) or type(reason).__name__) from None
    except (ValueError, OverflowError) as error:  # a redirection to what is no address
        _refuse_answer(url, error)


def _refuse_answer(url: str, reason: object) -> NoReturn:
    raise InputError(
        f"{url}: the server's answer makes no sense ({shorten(reason)}); see whether the file has moved and correct "
        "the manifest"
    ) from None


def _open(request: web.Request) -> HTTPResponse:
    """As urllib's urlopen, but redirections lead to the web alone, not to files, data or FTP."""
    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler,
        web.UnknownHandler,
        web.HTTPHandler,
        web.HTTPSHandler,
        web.HTTPDefaultErrorHandler,
        web.HTTPRedirectHandler,
        web.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return cast(HTTPResponse, opener.open(request, timeout=TIMEOUT))


def _fetch_rest(url: str, path: Path, headers: dict[str, str], progress: Progress, size_hint: int) -> None:
    """One attempt of :func:`fetch`. Raises _PassingFault if the connection ends too early."""
    done = _size(path)
    response, total = _ask(url, {**headers, "Range": f"bytes={done}-"} if done else headers)
    if response is None:  # no bytes from there on: md5 decides whether it is whole
        if total is not None and done != total:  # more than there is: not the beginning of this file
            path.unlink()
            _fetch_rest(url, path, headers, progress, size_hint)
        return
    with response:
        # 200 instead of 206: the server ignores ranges and sends all of it.
        start, total = _range(response.headers) if response.status == 206 else (0, _length(response.headers))
        if start not in (0, done):
            raise _PassingFault(f"the server sends another part than the one from byte {done} on")
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
                if size_hint and done > LARGER * size_hint + SLACK:
                    path.unlink()
                    raise InputError(
                        f"{url}: the server sends more than {done} bytes, the manifest says {size_hint}; it is another "
                        "file, correct the manifest"
                    )
    if total is not None and done != total:
        raise _PassingFault(f"the connection ended after {done} of {total} bytes")


def _ask(url: str, headers: Mapping[str, str]) -> tuple[HTTPResponse | None, int | None]:
    """The answer to a request; (None, size of the whole) if there are no bytes from the first wanted one on."""
    with _network(url):
        try:
            return _open(web.Request(url, headers=dict(headers))), None
        except HTTPError as error:
            if error.code != 416 or "Range" not in headers:
                raise
            return None, _range(error.headers)[1]
    raise AssertionError("_network ends with an exception where its block does")


def _range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and size of the whole from ``Content-Range``, None for what it does not say."""
    match = re.fullmatch(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)", headers["Content-Range"] or "", re.ASCII)
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _length(headers: Message) -> int | None:
    """``Content-Length``, None if it is not there or no number of bytes; then the md5 decides."""
    length = headers["Content-Length"] or ""
    return int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None


def digest_md5(path: Path, progress: Progress) -> str:
    """The md5 of a file, in hexadecimal digits."""
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, _size(path)
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
            done += len(chunk)
            progress("checking", done, total)
    return digest.hexdigest()


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
        InputError: another process writes there, gdown is missing or gets nothing, or what it gets is no checkpoint.
    """
    gdown = import_gdown()
    with disk_faults(folder), sole_writer(folder.parent, folder):
        if is_checkpoint(folder):
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: is in the way and no checkpoint; move it elsewhere and run this again")
        unfinished = partial_path(folder)
        unfinished.mkdir(exist_ok=True)
        archive = folder.with_name(f"{folder.name}.archive")
        with _google_drive(checkpoint, folder):
            if checkpoint.is_archive:
                gdown.download(id=checkpoint.drive_id, output=str(archive), resume=True)
            else:
                gdown.download_folder(id=checkpoint.drive_id, output=str(unfinished), resume=True)
            if not (archive.is_file() if checkpoint.is_archive else any(unfinished.iterdir())):
                raise RuntimeError("nothing came")
        if checkpoint.is_archive:
            unpack_checkpoint(archive, unfinished)
        whole = _find_checkpoint(unfinished)
        if whole is None:
            kept = archive if checkpoint.is_archive else unfinished
            raise InputError(
                f"{kept}: what {checkpoint.url} gave holds no config.json with whole weights; remove it and run this "
                "again"
            )
        for path in whole.iterdir():
            if path.is_file():
                sync(path)
        os.replace(whole, folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        archive.unlink(missing_ok=True)


@contextmanager
def _google_drive(checkpoint: RemoteCheckpoint, folder: Path) -> Iterator[None]:
    """Turn whatever gdown, and what it is built on, ends with into an InputError."""
    try:
        with disk_faults(folder):
            yield
    except (InputError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{checkpoint.url}: gdown did not get it ({shorten(error) or type(error).__name__}); Google Drive refuses "
            f"files that are asked for often: try again in some hours, or fetch it with a browser into {folder}"
        ) from None


def _find_checkpoint(folder: Path) -> Path | None:
    """The shallowest folder in ``folder`` with a config and weights: Drive may hold them in a folder of their own."""
    for config in sorted(folder.rglob("config.json"), key=lambda path: len(path.parts)):
        if any(_is_whole(config.parent / name) for name in WEIGHTS):
            read_object(config, {}, "remove it and run this again")
            return config.parent
    return None


def _is_whole(weights: Path) -> bool:
    """Whether a file can be weights: Google Drive sends pages in their place, and a line may break."""
    if not weights.is_file():
        return False
    if weights.suffix != ".safetensors":
        with open(weights, "rb") as file:
            old = file.read(2) == b"\x80\x02"  # torch.save before 1.6: a pickle, whose end is not known
        return old or zipfile.is_zipfile(weights)
    with open(weights, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            tensors: Any = json.loads(file.read(size)) if size < CHUNK << 8 else None
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            return bool(8 + size + max(ends) == _size(weights))
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
            return False


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


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _either(digests: Sequence[str]) -> str:
    return " or ".join(digests)
