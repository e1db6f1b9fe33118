"""Download files and checkpoints: resume, check, unpack. A file gets its name only when it is whole.

This module needs only Python 3.9 and the standard library: it runs before anything is installed.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from drhard.archives import CHUNK, Progress, unpack, unpack_checkpoint
from drhard.errors import InputError, shorten
from drhard.files import disk_faults, partial_path, read_object, sole_writer, sync
from drhard.hub import CONFIG_FILE, WEIGHTS_FILES

log = logging.getLogger(__name__)

DRIVE = "https://drive.google.com"
WAITS = (1, 2, 4, 8, 16)  # seconds
TIMEOUT = 60  # seconds without a byte
UNPACKED = 3.5  # times the packed size, a safe estimate: MS MARCO's 8.4 GB of documents unpack to 22 GB

# Sizes in the manifest are hints. A file may be larger, and repetitive text may unpack to more than UNPACKED. Beyond
# these bounds it is the wrong file, or one made to fill the disk.
LARGER = 2  # times the size in the manifest
UNPACKED_MOST = 10  # times the size in the manifest
SLACK = 1 << 20  # bytes, for small files

_PASSING = {408, 429, 500, 502, 503, 504}  # status codes that go away by themselves


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, and the files it becomes in ``{data_root}/{dataset}/dataset``."""

    dataset: str  # "passage" or "doc"
    url: str
    bytes: int  # a hint
    md5: Sequence[str]  # any of them is right
    names: Sequence[str]  # of the file itself, of a .gz unpacked, or of the wanted members of a .tar.gz

    @property
    def archive(self) -> str:
        """The file name in the url."""
        return PurePosixPath(urlsplit(self.url).path).name

    def missing(self, folder: Path) -> list[str]:
        """Return the names that are not in ``folder``. A file that has its name is whole.

        NAME.gz counts as NAME and NAME as NAME.gz, because the readers take either. The archive itself does not count
        as the file it becomes: otherwise an interrupted unpacking would never be repeated.
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
        """The address for a browser."""
        return _drive_file(self.drive_id) if self.is_archive else f"{DRIVE}/drive/folders/{self.drive_id}"


@dataclass(frozen=True)
class RemoteRun:
    """A published run on Google Drive: a file."""

    dataset: str
    folder: str  # its place in {data_root}/{dataset}
    mode: str  # whose queries it ranks for
    drive_id: str

    @property
    def url(self) -> str:
        """The address for a browser."""
        return _drive_file(self.drive_id)


def _drive_file(drive_id: str) -> str:
    return f"{DRIVE}/file/d/{drive_id}"


@dataclass(frozen=True)
class Manifest:
    """What to fetch, and the request headers for each host.

    Attributes:
        judgements: files that are members of larger archives in ``files``, for whoever needs no more.
    """

    files: list[RemoteFile]
    judgements: list[RemoteFile]
    checkpoints: list[RemoteCheckpoint]
    runs: list[RemoteRun]
    headers: dict[str, dict[str, str]]

    def only(self, dataset: str, names: Iterable[str]) -> list[RemoteFile]:
        """Return the files to download that become some of ``names`` and nothing else."""
        files = [file for file in (*self.files, *self.judgements) if file.dataset == dataset]
        return [file for file in files if set(file.names) <= set(names)]

    def headers_for(self, url: str) -> dict[str, str]:
        """Return the extra headers for a request to ``url``."""
        return self.headers.get(urlsplit(url).netloc, {})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest such as ``data/downloads.json``.

    Raises:
        InputError: the manifest is missing or malformed, or a file name, url or md5 in it is not valid.
    """
    hint = "--manifest names a file like data/downloads.json"
    required = {"files": list, "checkpoints": list, "headers": dict}
    content = read_object(path, required, hint, {"judgements": list, "runs": list})
    try:
        files, judgements = (
            [_remote_file(entry) for entry in content.get(name, [])] for name in ("files", "judgements")
        )
        checkpoints = [_remote_checkpoint(entry) for entry in content["checkpoints"]]
        runs = [_remote_run(entry) for entry in content.get("runs", [])]
        for headers in content["headers"].values():
            _require(isinstance(headers, dict), "set of headers", headers)
            for name, text in headers.items():
                _require(_matches(r"[\w-]+", name) and _matches("[ -~]*", text), "header", {name: text})
    except _Unfit as error:
        raise InputError(f"{path}: {error}; {hint}") from None
    return Manifest(files, judgements, checkpoints, runs, content["headers"])


class _Unfit(ValueError):
    """An entry of a manifest is not valid."""


_NAME = r"[\w-][\w.-]*"  # a file name that is not a path, is not hidden, and is valid on any file system


def _remote_file(entry: Any) -> RemoteFile:
    dataset, url, size, md5s, names = _values(entry, "dataset", "url", "bytes", "md5", "files")
    _require(dataset in ("passage", "doc"), "dataset", dataset)
    _require(_matches(r"https?://[\w.-]+(:\d{1,5})?/[!-~]+", url), "url", url)
    _require(type(size) is int and 1 <= size < 1 << 50, "number of bytes", size)
    digests_fit = isinstance(md5s, list) and bool(md5s) and all(_matches("[0-9a-f]{32}", md5) for md5 in md5s)
    _require(digests_fit, "list of md5s", md5s)
    names_fit = isinstance(names, list) and bool(names) and all(_matches(_NAME, name) for name in names)
    _require(names_fit, "list of files", names)
    file = RemoteFile(dataset, url, size, md5s, names)
    _require(_matches(_NAME, file.archive), "url", url)
    if names != [file.archive]:
        packed = file.archive.endswith(".tar.gz") or (file.archive.endswith(".gz") and len(names) == 1)
        _require(packed and len(set(names)) == len(names), "list of files", names)
    return file


def _remote_checkpoint(entry: Any) -> RemoteCheckpoint:
    is_archive = isinstance(entry, dict) and "drive_file" in entry
    dataset, folder, drive_id = _values(entry, "dataset", "folder", "drive_file" if is_archive else "drive_folder")
    _check_place(dataset, folder, drive_id)
    return RemoteCheckpoint(dataset, folder, drive_id, is_archive)


def _remote_run(entry: Any) -> RemoteRun:
    dataset, folder, mode, drive_id = _values(entry, "dataset", "folder", "mode", "drive_file")
    _check_place(dataset, folder, drive_id)
    _require(mode in ("train", "dev", "test"), "mode", mode)
    return RemoteRun(dataset, folder, mode, drive_id)


def _check_place(dataset: Any, folder: Any, drive_id: Any) -> None:
    _require(dataset in ("passage", "doc"), "dataset", dataset)
    _require(_matches(f"{_NAME}(/{_NAME})*", folder), "folder", folder)
    _require(_matches(r"[\w-]+", drive_id), "id on Google Drive", drive_id)


def _values(entry: Any, *names: str) -> list[Any]:
    _require(isinstance(entry, dict), "entry", entry)
    for name in names:
        _require(name in entry, f"entry: it lacks {name!r}", entry)
    return [entry[name] for name in names]


def _matches(pattern: str, text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(pattern, text, re.ASCII) is not None


def _require(fits: bool, what: str, value: Any) -> None:
    if not fits:
        shown = json.dumps(value)  # always ASCII
        raise _Unfit(f"{shown if len(shown) <= 100 else shown[:100] + '...'} is not a valid {what}")


def download(file: RemoteFile, folder: Path, headers: dict[str, str], progress: Progress) -> list[str]:
    """Download ``file`` into ``folder`` and unpack it. An interrupted download resumes.

    Returns:
        The names of the files written.

    Raises:
        InputError: another process is writing there, the server refuses the file, its md5 is wrong, the archive is
            damaged, or the disk is too small.
    """
    archive = folder / file.archive
    with disk_faults(archive), sole_writer(folder, archive):
        missing = file.missing(folder)
        if not missing:
            forget_archive(file, folder)
            return []
        unpacked = list(file.names) != [file.archive]
        if archive.is_file():  # put there by hand, or left by a call that was stopped while unpacking
            digest = digest_md5(archive, progress)
            if digest not in file.md5:
                raise InputError(
                    f"{archive}: its md5 is {digest}, not {_either(file.md5)}; remove it and run the same command again"
                )
        else:
            _download_archive(file, archive, unpacked, headers, progress)
        if unpacked:
            unpack(archive, missing, progress, most=UNPACKED_MOST * file.bytes + SLACK)
            forget_archive(file, folder)
    return missing


def forget_archive(file: RemoteFile, folder: Path) -> None:
    """Remove the archive of ``file``, which is already unpacked, if a killed process left it."""
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
            f"{file.url}: the md5 of the download is {digest}, not {_either(file.md5)}; it was damaged on the way, or "
            f"the server has another file now; it is removed, run the same command again"
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
    """Download ``url`` to ``path``. Resume a partial file, and retry after passing faults.

    Args:
        size_hint: the expected number of bytes; 0 if unknown. Much more is refused.
        waits: seconds before each new attempt; they start over once bytes have arrived.

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
                    f"{url}: {fault}, {len(waits) + 1} times; the part downloaded is kept, run the same command again "
                    "later"
                ) from None
            log.warning("%s: %s; next attempt in %d s", url, fault, wait)
            time.sleep(wait)


class _PassingFault(Exception):
    """A failure of the network or the server that another attempt may overcome."""


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Turn network errors into :class:`_PassingFault` if a retry may help, else into InputError."""
    try:
        yield
    except HTTPError as error:
        answer = f"the server answers {error.code} {shorten(error.reason)}"
        if error.code in _PASSING:
            raise _PassingFault(answer) from None
        raise InputError(f"{url}: {answer}; check whether the file has moved and correct the manifest") from None
    except (OSError, HTTPException) as error:  # no route, no name, reset, timeout, ...
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InputError(
                f"{url}: Python cannot verify the certificate ({reason.verify_message}); install root certificates "
                "(python.org's Python on macOS: 'Install Certificates.command') or point SSL_CERT_FILE to them"
            ) from None
        # urllib refuses to open this address, so another attempt would fail too.
        if isinstance(error, InvalidURL) or (isinstance(error, URLError) and isinstance(reason, str)):
            _refuse_answer(url, reason)
        raise _PassingFault(shorten(reason) or type(reason).__name__) from None
    except (ValueError, OverflowError) as error:  # a redirection to something that is not an address
        _refuse_answer(url, error)


def _refuse_answer(url: str, reason: object) -> NoReturn:
    raise InputError(
        f"{url}: the server's answer makes no sense ({shorten(reason)}); check whether the file has moved and correct "
        "the manifest"
    ) from None


def _open(request: web.Request) -> HTTPResponse:
    """Open as urllib's urlopen does, but follow redirections to HTTP and HTTPS only, not to files, data or FTP."""
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
    """Make one attempt of :func:`fetch`. Raises _PassingFault if the connection ends too early."""
    done = _size(path)
    response, total = _ask(url, {**headers, "Range": f"bytes={done}-"} if done else headers)
    if response is None:  # the server has no bytes after ours: the md5 decides whether our file is whole
        if total is not None and done != total:  # ours is longer: it is not the beginning of this file
            path.unlink()
            _fetch_rest(url, path, headers, progress, size_hint)
        return
    with response:
        # 200 instead of 206: the server ignores ranges and sends all of it.
        start, total = _range(response.headers) if response.status == 206 else (0, _length(response.headers))
        if start not in (0, done):
            raise _PassingFault(f"the server sends a part that does not start at byte {done}")
        done = start
        with open(path, "ab" if done else "wb") as file:
            while True:
                with _network(url):
                    chunk = response.read1(CHUNK)  # does not wait: a slow line shows progress, a kill loses little
                if not chunk:
                    break
                file.write(chunk)
                done += len(chunk)
                progress("downloading", done, total or size_hint)
                if size_hint and done > LARGER * size_hint + SLACK:
                    path.unlink()
                    raise InputError(
                        f"{url}: the server sends more than {done} bytes, the manifest says {size_hint}; this is the "
                        "wrong file, correct the manifest"
                    )
    if total is not None and done != total:
        raise _PassingFault(f"the connection ended after {done} of {total} bytes")


def _ask(url: str, headers: Mapping[str, str]) -> tuple[HTTPResponse | None, int | None]:
    """Send a request. Return (answer, None), or (None, full size) if no bytes follow the first one asked for."""
    with _network(url):
        try:
            return _open(web.Request(url, headers=dict(headers))), None
        except HTTPError as error:
            if error.code != 416 or "Range" not in headers:
                raise
            return None, _range(error.headers)[1]
    raise AssertionError("_network turns every exception of its block into another")


def _range(headers: Message) -> tuple[int | None, int | None]:
    """Return the first byte and the full size from ``Content-Range``; None for what it does not say."""
    match = re.fullmatch(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)", headers["Content-Range"] or "", re.ASCII)
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _length(headers: Message) -> int | None:
    """Return ``Content-Length``; None if it is missing or not a number. Then the md5 decides."""
    length = headers["Content-Length"] or ""
    return int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None


def digest_md5(path: Path, progress: Progress) -> str:
    """Return the md5 of a file, in hexadecimal digits."""
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
            f"{folder}: {file.archive} needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some space, "
            "or choose another folder with --data_root"
        )


def download_checkpoint(checkpoint: RemoteCheckpoint, folder: Path) -> None:
    """Download a checkpoint from Google Drive into ``folder`` with gdown, which resumes interrupted downloads.

    Raises:
        InputError: another process is writing there, gdown is missing or fails, or the download is not a checkpoint.
    """
    gdown = import_gdown()
    with disk_faults(folder), sole_writer(folder.parent, folder):
        if is_checkpoint(folder):
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"{folder}: exists but is not a checkpoint; move it elsewhere and run the same command again"
            )
        unfinished = partial_path(folder)
        unfinished.mkdir(exist_ok=True)
        archive = folder.with_name(f"{folder.name}.archive")
        with _google_drive(checkpoint.url, folder, "into"):
            if checkpoint.is_archive:
                gdown.download(id=checkpoint.drive_id, output=str(archive), resume=True)
            else:
                gdown.download_folder(id=checkpoint.drive_id, output=str(unfinished), resume=True)
            if not (archive.is_file() if checkpoint.is_archive else any(unfinished.iterdir())):
                raise RuntimeError("it downloaded nothing")
        if checkpoint.is_archive:
            unpack_checkpoint(archive, unfinished)
        whole = _find_checkpoint(unfinished)
        if whole is None:
            kept = archive if checkpoint.is_archive else unfinished
            raise InputError(
                f"{kept}: the download of {checkpoint.url} lacks a {CONFIG_FILE} with complete weights; remove it and "
                "run the same command again"
            )
        for path in whole.iterdir():
            if path.is_file():
                sync(path)
        os.replace(whole, folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        archive.unlink(missing_ok=True)


def download_run(run: RemoteRun, path: Path) -> None:
    """Download a published run, as it is, from Google Drive to ``path`` with gdown, which resumes it.

    Raises:
        InputError: gdown is missing or fails.
    """
    gdown = import_gdown()
    with _google_drive(run.url, path, "as"):
        gdown.download(id=run.drive_id, output=str(path), resume=True)
        if not path.is_file():
            raise RuntimeError("it downloaded nothing")


@contextmanager
def _google_drive(url: str, path: Path, preposition: str) -> Iterator[None]:
    """Turn every error of gdown, and of the packages it uses, into an InputError.

    Args:
        path: where the download goes.
        preposition: "into" a folder, or "as" a file.
    """
    try:
        with disk_faults(path):
            yield
    except (InputError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{url}: gdown cannot download it ({shorten(error) or type(error).__name__}); Google Drive refuses popular "
            f"files at times: try again in some hours, or download it with a browser {preposition} {path}"
        ) from None


def _find_checkpoint(folder: Path) -> Path | None:
    """Return the shallowest folder in ``folder`` with a config and weights: Drive may keep them in a subfolder."""
    for config in sorted(folder.rglob(CONFIG_FILE), key=lambda path: len(path.parts)):
        if any(_is_whole(config.parent / name) for name in WEIGHTS_FILES):
            read_object(config, {}, "remove it and run the same command again")
            return config.parent
    return None


def _is_whole(weights: Path) -> bool:
    """Return whether a file can be whole weights: Drive may send a web page instead, or a download may break off."""
    if not weights.is_file():
        return False
    if weights.suffix != ".safetensors":
        with open(weights, "rb") as file:
            old = file.read(2) == b"\x80\x02"  # torch.save before 1.6: a pickle, which does not say where it ends
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
    """Import gdown. Raises InputError if it is not installed."""
    try:
        import gdown  # imported here: only checkpoints and runs need it, and files must download without any package
    except ImportError:
        raise InputError(
            f"Google Drive needs the package gdown, which {sys.executable} lacks; install it: {sys.executable} -m pip "
            "install gdown"
        ) from None
    return gdown


def is_checkpoint(folder: Path) -> bool:
    """Return whether ``folder`` is a checkpoint. It gets its name only when it is whole."""
    return (folder / CONFIG_FILE).is_file()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _either(digests: Sequence[str]) -> str:
    return " or ".join(digests)
