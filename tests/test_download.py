"""download_data.sh as a process against servers on this machine; nothing here reaches the internet."""

import gzip
import hashlib
import io
import itertools
import json
import os
import re
import resource
import stat
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from drhard import downloads
from drhard.archives import unpack, unpack_checkpoint
from drhard.errors import InputError
from drhard.files import sole_writer
from drhard.msmarco import CORPORA
from star_tokenizer import RobertaTokenizer

import numpy as np
import pytest
from fuzz_archives import fuzz
from helpers import ROOT, load_script, refused, run_python
from safetensors.numpy import save_file

TEXT = b"".join(b"%d\tpassage number %d\n" % (i, i * i) for i in range(20_000))  # 0.5 MB


@dataclass
class Site:
    """A server: the files that it gives, how it misbehaves, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # name -> content
    ranges: bool = True  # False: answers 200 with everything, whatever range is asked for
    fail_first: int = 0  # answers that many requests with 503
    break_first: int = 0  # closes that many answers in the middle
    stall: threading.Event | None = None  # waits in the middle of an answer
    answer: bytes | None = None  # sent in place of all that HTTP has
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (name, Range)
    versions: list[str | None] = field(default_factory=list)  # X-Ms-Version


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers["Range"]
            site.requests.append((name, wanted))
            site.versions.append(self.headers["X-Ms-Version"])
            if site.answer is not None:
                self.close_connection = True
                self.wfile.write(site.answer.replace(b"SITE", site.url.encode()))
                return None
            if site.fail_first:
                site.fail_first -= 1
                return self.send_error(503)
            if name not in site.files:
                return self.send_error(404)
            whole = site.files[name]
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start and start >= len(whole):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(whole)}")
                return self.end_headers()
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(whole) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            self.end_headers()
            middle = (start + len(whole)) // 2
            self.wfile.write(whole[start:middle])
            if site.break_first:
                site.break_first -= 1
                return None
            if site.stall:
                site.stall.wait(10)
                return None
            self.wfile.write(whole[middle:])
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The current directory of the script; its data root is ``data`` in there."""
    return tmp_path


def manifest(
    work: Path, site: Site, *files: dict, checkpoints: tuple[dict, ...] = (), runs: tuple[dict, ...] = ()
) -> None:
    """Write ``work/manifest.json``; a file is {"url": name, "files": [...]} and what differs from the usual."""
    entries = []
    for file in files:
        content = site.files.get(file["url"], b"")
        usual = {"dataset": "passage", "bytes": max(1, len(content)), "md5": [md5(content)]}
        entries.append({**usual, **file, "url": f"{site.url}/{file['url']}"})
    host = site.url.removeprefix("http://")
    content = {
        "headers": {host: {"X-Ms-Version": "2019-12-12"}},
        "files": entries,
        "checkpoints": list(checkpoints),
        "runs": list(runs),
    }
    (work / "manifest.json").write_text(json.dumps(content))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tar(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def command(*arguments: str) -> list[str]:
    return ["bash", str(ROOT / "download_data.sh"), *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more}


def script(
    work: Path, *arguments: str, largest_file: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script on ``work/manifest.json``; no file may grow beyond ``largest_file`` bytes."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    return subprocess.run(
        command("--manifest", "manifest.json", *arguments),
        cwd=work,
        env=environment(**variables),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=60,
    )


def must(work: Path, *arguments: str, **variables: str) -> str:
    result = script(work, *arguments, **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def must_refuse(work: Path, *arguments: str, **options: str) -> str:
    """Run a call that has to end with code 2; return its one sentence."""
    result = script(work, *arguments, **options)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    sentences = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(sentences) == 1, result.stderr
    return sentences[0]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_plain_gz_and_tar_arrive_unpacked_and_a_second_call_asks_for_nothing(work: Path, site: Site) -> None:
    site.files = {
        "2019qrels-pass.txt": b"19335 Q0 1017759 0\n",
        "queries.tsv.gz": gzip.compress(b"1\twhat is a star\n"),
        "docs.tsv.gz": gzip.compress(b"D1\turl\ttitle\tbody\n"),
        "both.tar.gz": tar(
            {
                "./collection.tsv": TEXT,
                "qrels.train.tsv": b"1\t0\t0\t1\n",
                "unwanted.tsv": b"u",
                "../outside.tsv": b"o",
                "/tmp/collection.tsv": b"absolute",
                "deep/qrels.train.tsv": b"d",
            }
        ),
    }
    manifest(
        work,
        site,
        {"url": "2019qrels-pass.txt", "files": ["2019qrels-pass.txt"]},
        {"url": "queries.tsv.gz", "files": ["queries.tsv"]},
        {"url": "both.tar.gz", "files": ["collection.tsv", "qrels.train.tsv"]},
        {"url": "docs.tsv.gz", "files": ["docs.tsv.gz"], "dataset": "doc"},
    )
    out = must(work)
    assert tree(work) == {
        "manifest.json",
        "data/passage/dataset/2019qrels-pass.txt",
        "data/passage/dataset/queries.tsv",
        "data/passage/dataset/collection.tsv",
        "data/passage/dataset/qrels.train.tsv",
        "data/doc/dataset/docs.tsv.gz",
    }
    passage = work / "data" / "passage" / "dataset"
    assert (passage / "2019qrels-pass.txt").read_bytes() == site.files["2019qrels-pass.txt"]
    assert (passage / "queries.tsv").read_bytes() == b"1\twhat is a star\n"
    assert (passage / "collection.tsv").read_bytes() == TEXT
    assert (passage / "qrels.train.tsv").read_bytes() == b"1\t0\t0\t1\n"
    assert (work / "data/doc/dataset/docs.tsv.gz").read_bytes() == site.files["docs.tsv.gz"]
    assert out.count("Fetching ") == out.count("Wrote ") == 4
    assert site.versions == ["2019-12-12"] * 4

    site.requests.clear()
    again = must(work)
    assert site.requests == []
    assert again.count("Already exists: ") == 4 and "Fetching" not in again


def test_one_of_the_two_into_another_root(work: Path, site: Site) -> None:
    site.files = {"a.txt": b"a", "b.txt": b"b"}
    manifest(work, site, {"url": "a.txt", "files": ["a.txt"]}, {"url": "b.txt", "files": ["b.txt"], "dataset": "doc"})
    must(work, "doc", "--data_root", "else where")
    assert tree(work) == {"manifest.json", "else where/doc/dataset/b.txt"}
    must(work, "passage", "--data_root", "else where")
    assert tree(work) == {"manifest.json", "else where/doc/dataset/b.txt", "else where/passage/dataset/a.txt"}


def test_what_is_there_packed_or_unpacked_is_not_fetched_again(work: Path, site: Site) -> None:
    site.files = {"docs.tsv.gz": gzip.compress(TEXT), "both.tar.gz": tar({"collection.tsv": TEXT, "q.tsv": b"q"})}
    manifest(
        work,
        site,
        {"url": "docs.tsv.gz", "files": ["docs.tsv.gz"]},
        {"url": "both.tar.gz", "files": ["collection.tsv", "q.tsv"]},
    )
    folder = work / "data/passage/dataset"
    folder.mkdir(parents=True)
    (folder / "docs.tsv").write_bytes(TEXT)
    (folder / "collection.tsv.gz").write_bytes(gzip.compress(TEXT))
    (folder / "both.tar.gz").write_bytes(site.files["both.tar.gz"])  # put there by hand
    must(work, "passage")
    assert site.requests == []
    assert {path.name for path in folder.iterdir()} == {"docs.tsv", "collection.tsv.gz", "q.tsv"}


def test_a_damaged_archive_put_there_by_hand_is_refused_and_left_alone(work: Path, site: Site) -> None:
    site.files = {"queries.tsv.gz": gzip.compress(b"1\tquery\n")}
    manifest(work, site, {"url": "queries.tsv.gz", "files": ["queries.tsv"]})
    archive = work / "data/passage/dataset/queries.tsv.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"half of it")
    assert "queries.tsv.gz: its md5 is " in must_refuse(work)
    assert tree(work / "data") == {"passage/dataset/queries.tsv.gz"}


def start_of_download(work: Path, name: str, content: bytes) -> Path:
    unfinished = work / "data/passage/dataset" / f"{name}.partial"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(content)
    return unfinished


def test_an_interrupted_download_goes_on_with_a_range(work: Path, site: Site) -> None:
    site.files = {"collection.tsv": TEXT}
    manifest(work, site, {"url": "collection.tsv", "files": ["collection.tsv"]})
    start_of_download(work, "collection.tsv", TEXT[:100_001])
    must(work)
    assert site.requests == [("collection.tsv", "bytes=100001-")]
    assert (work / "data/passage/dataset/collection.tsv").read_bytes() == TEXT
    assert tree(work / "data") == {"passage/dataset/collection.tsv"}


def test_a_server_that_ignores_ranges_is_started_over(work: Path, site: Site) -> None:
    site.files, site.ranges = {"collection.tsv": TEXT}, False
    manifest(work, site, {"url": "collection.tsv", "files": ["collection.tsv"]})
    start_of_download(work, "collection.tsv", b"x" * 1000)
    must(work)
    assert site.requests == [("collection.tsv", "bytes=1000-")]
    assert (work / "data/passage/dataset/collection.tsv").read_bytes() == TEXT


@pytest.mark.parametrize(("start", "requests"), [(TEXT, 1), (TEXT + b"more", 2)], ids=["whole", "too long"])
def test_a_partial_file_with_nothing_left_to_fetch(work: Path, site: Site, start: bytes, requests: int) -> None:
    site.files = {"collection.tsv": TEXT}
    manifest(work, site, {"url": "collection.tsv", "files": ["collection.tsv"]})
    start_of_download(work, "collection.tsv", start)
    must(work)
    assert len(site.requests) == requests
    assert (work / "data/passage/dataset/collection.tsv").read_bytes() == TEXT


def test_a_broken_connection_goes_on_where_it_broke(work: Path, site: Site) -> None:
    site.files, site.break_first = {"collection.tsv": TEXT}, 1
    manifest(work, site, {"url": "collection.tsv", "files": ["collection.tsv"]})
    result = script(work)
    assert result.returncode == 0, result.stderr
    half = len(TEXT) // 2
    assert f"the connection ended after {half} of {len(TEXT)} bytes" in result.stderr
    assert site.requests == [("collection.tsv", None), ("collection.tsv", f"bytes={half}-")]
    assert (work / "data/passage/dataset/collection.tsv").read_bytes() == TEXT


def test_a_busy_server_is_asked_again(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site.files, site.fail_first = {"a": TEXT}, 2
    downloads.fetch(f"{site.url}/a", tmp_path / "a.partial", {}, lambda *_: None, waits=(0, 0))
    assert (tmp_path / "a.partial").read_bytes() == TEXT
    site.fail_first = 3
    with pytest.raises(InputError, match="the server answers 503 .* 3 times"):
        downloads.fetch(f"{site.url}/a", tmp_path / "b.partial", {}, lambda *_: None, waits=(0, 0))


def test_it_gives_up_in_the_end_and_keeps_what_has_come(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site.files, site.ranges, site.break_first = {"a": TEXT}, False, 100
    with pytest.raises(InputError, match="the connection ended after .* 3 times"):
        downloads.fetch(f"{site.url}/a", tmp_path / "a.partial", {}, lambda *_: None, waits=(0, 0))
    assert len(site.requests) == 3
    assert (tmp_path / "a.partial").read_bytes() == TEXT[: len(TEXT) // 2]


def test_nobody_there(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError, match="http://127.0.0.1:1/a: .*refused.* 2 times"):
        downloads.fetch("http://127.0.0.1:1/a", tmp_path / "a.partial", {}, lambda *_: None, waits=(0,))


def test_a_killed_download_is_simply_run_again(work: Path, site: Site) -> None:
    site.files, site.stall = {"queries.tsv.gz": gzip.compress(TEXT)}, threading.Event()
    manifest(work, site, {"url": "queries.tsv.gz", "files": ["queries.tsv"]})
    unfinished = work / "data/passage/dataset/queries.tsv.gz.partial"
    process = subprocess.Popen(
        command("--manifest", "manifest.json"), cwd=work, env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while not (unfinished.exists() and unfinished.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert "queries.tsv.gz: another process is writing it" in must_refuse(work)
    process.kill()
    process.wait()
    site.stall.set()
    site.stall = None
    assert tree(work / "data") == {f"passage/dataset/{unfinished.name}", "passage/dataset/.lock"}
    came = unfinished.stat().st_size
    must(work)
    assert site.requests == [("queries.tsv.gz", None), ("queries.tsv.gz", f"bytes={came}-")]
    assert tree(work / "data") == {"passage/dataset/queries.tsv"}
    assert (work / "data/passage/dataset/queries.tsv").read_bytes() == TEXT


TEN = b"0123456789"
NUMBER = b"9" * 5000


@pytest.fixture
def fetched(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes | str]:
    """A function that fetches with a part there already: what came, or the sentence in its place."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def fetch(answer: bytes, start: bytes = b"", size_hint: int = 10) -> bytes | str:
        site.answer = answer
        (tmp_path / "a.partial").write_bytes(start)
        try:
            downloads.fetch(f"{site.url}/a", tmp_path / "a.partial", {}, lambda *_: None, size_hint, waits=())
        except InputError as error:
            return str(error)
        return (tmp_path / "a.partial").read_bytes()

    return fetch


@pytest.mark.parametrize("length", [b"abc", b"-1", NUMBER, b"\xb2", b"", b"1 0", b"0x0A"])
def test_a_length_that_is_no_number_is_left_to_the_md5(fetched: Callable, length: bytes) -> None:
    assert fetched(b"HTTP/1.0 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + TEN) == TEN


@pytest.mark.parametrize(
    "range_", [b"nonsense", b"bytes 7-9/10", b"bytes " + NUMBER + b"-/10", b"bytes 5--9/10", b"bytes */10", None]
)
def test_another_part_than_the_one_asked_for_is_not_appended(fetched: Callable, range_: bytes | None) -> None:
    header = b"" if range_ is None else b"Content-Range: " + range_ + b"\r\n"
    sentence = fetched(b"HTTP/1.0 206 Partial Content\r\n" + header + b"\r\n56789", start=TEN[:5])
    assert "the server sends a part that does not start at byte 5, 1 times; the part downloaded is kept" in sentence
    assert "bytes from" not in fetched(b"HTTP/1.0 206 OK\r\n" + header + b"\r\n56789")


def test_the_part_asked_for_or_the_whole_is_taken(fetched: Callable) -> None:
    assert fetched(b"HTTP/1.0 206 OK\r\nContent-Range: bytes 5-9/10\r\n\r\n56789", start=b"01234") == TEN
    assert fetched(b"HTTP/1.0 206 OK\r\nContent-Range: bytes 0-9/10\r\n\r\n" + TEN, start=b"abc") == TEN
    assert fetched(b"HTTP/1.0 416 No\r\nContent-Range: bytes */nonsense\r\n\r\n", start=TEN) == TEN


def test_a_body_longer_than_promised_is_cut_and_one_without_end_refused(fetched: Callable, tmp_path: Path) -> None:
    assert fetched(b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n" + TEN + TEN) == TEN
    sentence = fetched(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(downloads.SLACK + 3 * downloads.CHUNK))
    assert re.search(r"/a: the server sends more than \d+ bytes, the manifest says 10; .*correct the", sentence)
    assert not (tmp_path / "a.partial").exists()


@pytest.mark.parametrize(
    "place",
    [
        b"file:///etc/passwd",
        b"ftp://127.0.0.1/a",
        b"data:text/plain,x",
        b"http://",
        b"http://[",
        b"http://a:b/",
        b"http://a..b/",
        b"javascript:x",
        b"//[::1/",
        None,
        b"SITE/a",
        b"http://\xff\xfe/",
        b"gopher://\x1b[2Jx",
    ],
)
def test_redirections_to_nonsense(fetched: Callable, place: bytes | None) -> None:
    header = b"" if place is None else b"Location: " + place + b"\r\n"
    sentence = fetched(b"HTTP/1.0 302 Fo\xfcnd \x1b[31m\r\n" + header + b"\r\n")
    assert isinstance(sentence, str) and "/a: the server" in sentence and sentence.isprintable(), sentence
    assert "correct the manifest" in sentence  # at once: another attempt would lead there again


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 5000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.0 999999 x\r\n\r\n",
        b"HTTP/1.0 two OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 1000,
        b"HTTP/1.0 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n01234",
        b"HTTP/1.0 503 \xe4\x1b[2J\xff\r\n\r\n",
        b"HTTP/1.0 404 " + b"n" * 5000 + b"\r\n\r\n",
    ],
)
def test_answers_that_are_none_are_one_sentence(fetched: Callable, answer: bytes) -> None:
    sentence = fetched(answer)
    assert isinstance(sentence, str) and sentence.isprintable() and len(sentence) < 600, sentence


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.0 200 OK\r\nContent-Length: 1000\r\nETag: "x"\r\n\r\n{}',
        b'HTTP/1.0 200 OK\r\nContent-Length: abc\r\nETag: "x"\r\n\r\n{}',
        b"HTTP/1.0 403 No\r\n\r\n<Error><Code>\x1b[2J</Code>",
        b"SSH-2.0\r\n",
    ],
)
def test_an_s3_that_answers_nonsense(site: Site, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    site.answer = answer
    settings = {
        "AWS_ENDPOINT_URL": site.url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="s3://bucket/model/vocab.json: cannot be read: ") as error:
        RobertaTokenizer.from_pretrained("s3://bucket/model")
    assert str(error.value).isprintable()


def test_wrong_bytes_are_refused_and_removed(work: Path, site: Site) -> None:
    site.files = {"queries.tsv.gz": gzip.compress(b"1\tquery\n")}
    manifest(work, site, {"url": "queries.tsv.gz", "files": ["queries.tsv"], "md5": ["0" * 32, "1" * 32]})
    sentence = must_refuse(work)
    assert f"{site.url}/queries.tsv.gz" in sentence
    assert md5(site.files["queries.tsv.gz"]) in sentence and f"{'0' * 32} or {'1' * 32}" in sentence
    assert "run the same command again" in sentence
    assert tree(work / "data") == set()


def test_any_of_the_accepted_md5s_will_do(work: Path, site: Site) -> None:
    site.files = {"a.txt": b"a"}
    manifest(work, site, {"url": "a.txt", "files": ["a.txt"], "md5": ["0" * 32, md5(b"a")]})
    must(work)
    assert (work / "data/passage/dataset/a.txt").read_bytes() == b"a"


def test_a_file_that_has_moved(work: Path, site: Site) -> None:
    manifest(work, site, {"url": "gone.txt", "files": ["gone.txt"]})
    assert f"{site.url}/gone.txt: the server answers 404" in must_refuse(work)
    assert len(site.requests) == 1
    assert tree(work / "data") == set()


@pytest.mark.parametrize("name", ["queries.tsv.gz", "both.tar.gz"])
def test_an_interrupted_unpacking_leaves_nothing_and_is_made_up_for(work: Path, site: Site, name: str) -> None:
    site.files = {name: tar({"queries.tsv": TEXT}) if "tar" in name else gzip.compress(TEXT)}
    manifest(work, site, {"url": name, "files": ["queries.tsv"]})
    assert len(site.files[name]) < 300_000 < len(TEXT)
    sentence = must_refuse(work, largest_file=300_000)  # as a full disk would: the archive fits, its content does not
    assert "too large" in sentence and "run the same command again" in sentence
    assert tree(work / "data") == {f"passage/dataset/{name}"}
    must(work)
    assert len(site.requests) == 1  # the archive was kept
    assert tree(work / "data") == {"passage/dataset/queries.tsv"}
    assert (work / "data/passage/dataset/queries.tsv").read_bytes() == TEXT


def test_archives_that_cannot_be_unpacked(work: Path, site: Site) -> None:
    site.files = {"cut.tsv.gz": gzip.compress(TEXT)[:-1000], "other.tar.gz": tar({"other.tsv": b"o"})}
    manifest(work, site, {"url": "cut.tsv.gz", "files": ["cut.tsv"]})
    assert "cut.tsv.gz: cannot be unpacked" in must_refuse(work)
    assert tree(work / "data") == {"passage/dataset/cut.tsv.gz"}
    manifest(work, site, {"url": "other.tar.gz", "files": ["collection.tsv"]})
    assert "other.tar.gz: lacks collection.tsv" in must_refuse(work)
    assert tree(work / "data") == {"passage/dataset/cut.tsv.gz", "passage/dataset/other.tar.gz"}


def test_a_link_in_a_tar_is_not_followed(work: Path, site: Site) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        link = tarfile.TarInfo("collection.tsv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    site.files = {"both.tar.gz": packed.getvalue()}
    manifest(work, site, {"url": "both.tar.gz", "files": ["collection.tsv"]})
    assert "collection.tsv is not a plain file" in must_refuse(work)


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.LNKTYPE])
def test_what_is_no_file_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, type_ in (("first.tsv", tarfile.REGTYPE), ("collection.tsv", kind)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = type_, "first.tsv"
            archive.addfile(member)
    (tmp_path / "a.tar.gz").write_bytes(packed.getvalue())
    with pytest.raises(InputError, match="a.tar.gz: cannot be unpacked .collection.tsv is not a plain file."):
        unpack(tmp_path / "a.tar.gz", ["first.tsv", "collection.tsv"], lambda *_: None, 10**6)
    assert tree(tmp_path) == {"a.tar.gz"}  # nor what came before it


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar({"a.tsv": b"one", "./a.tsv": b"two"}))
    with pytest.raises(InputError, match="a.tsv appears twice"):
        unpack(tmp_path / "a.tar.gz", ["a.tsv"], lambda *_: None, 10**6)
    (tmp_path / "a.tar.gz").write_bytes(tar({"/a.tsv": b"one"}))
    with pytest.raises(InputError, match="lacks a.tsv"):
        unpack(tmp_path / "a.tar.gz", ["a.tsv"], lambda *_: None, 10**6)
    assert tree(tmp_path) == {"a.tar.gz"}


@pytest.mark.parametrize(
    "members", [{"a.tsv": bytes(10**7)}, {"a.tsv": b"", "b.tsv": bytes(10**7)}, {"n" * 10**7: b""}]
)
def test_bombs_end_with_a_sentence(tmp_path: Path, members: dict[str, bytes]) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar(members))
    with pytest.raises(InputError, match="a.tar.gz: unpacks to more than 1 MB, far more than such a file holds"):
        unpack(tmp_path / "a.tar.gz", ["a.tsv"], lambda *_: None, 10**6)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(InputError, match="a.tsv.gz: unpacks to more than 1 MB"):
        unpack(tmp_path / "a.tsv.gz", ["a.tsv"], lambda *_: None, 10**6)
    assert tree(tmp_path) == {"a.tar.gz", "a.tsv.gz"}


def test_the_bound_is_ten_times_what_the_manifest_says(tmp_path: Path) -> None:
    packed = gzip.compress(bytes(3 * 10**6))
    (tmp_path / "a.tsv.gz").write_bytes(packed)
    file = downloads.RemoteFile("passage", "http://a.org/a.tsv.gz", len(packed), [md5(packed)], ["a.tsv"])
    with pytest.raises(InputError, match="a.tsv.gz: unpacks to more than 1 MB"):
        downloads.download(file, tmp_path, {}, lambda *_: None)
    assert downloads.download(replace(file, bytes=3 * 10**5), tmp_path, {}, lambda *_: None) == ["a.tsv"]
    assert tree(tmp_path) == {"a.tsv"}


def test_damaged_archives_are_one_sentence(tmp_path: Path) -> None:
    well, refused_ = fuzz(150, 0, tmp_path)  # python tests/fuzz_archives.py 10000 is the whole of it
    assert min(well, refused_) > 20


def test_a_full_disk_is_told_and_what_came_is_kept(work: Path, site: Site) -> None:
    site.files = {"collection.tsv": TEXT}
    manifest(work, site, {"url": "collection.tsv", "files": ["collection.tsv"]})
    sentence = must_refuse(work, largest_file=300_000)
    assert re.search(r"collection.tsv: File too large \(the disk mounted at /.* has [\d.]+ GB free\); fix", sentence)
    assert tree(work / "data") == {"passage/dataset/collection.tsv.partial"}
    must(work)
    assert site.requests == [("collection.tsv", None), ("collection.tsv", "bytes=300000-")]
    assert (work / "data/passage/dataset/collection.tsv").read_bytes() == TEXT


def test_names_that_are_no_ascii(work: Path, site: Site) -> None:
    site.files = {"a.txt": b"a"}
    manifest(work, site, {"url": "a.txt", "files": ["a.txt"]})
    language = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = must(work, "--data_root", "Größe 数", **language)
    assert out.isascii() and "Wrote Gr" in out
    assert (work / "Größe 数/passage/dataset/a.txt").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"files": ["../a.tsv"]}, '["../a.tsv"] is not a valid list of files'),
        ({"files": ["/tmp/a.tsv"]}, '["/tmp/a.tsv"] is not a valid list of files'),
        ({"files": ["a\n.tsv"]}, '["a\\n.tsv"] is not a valid list of files'),
        ({"files": [".."]}, '[".."] is not a valid list of files'),
        ({"files": ["größe"]}, "is not a valid list of files"),
        ({"files": ["a.tsv", "b.tsv"]}, "is not a valid list of files"),
        ({"files": []}, "[] is not a valid list of files"),
        ({"files": "a"}, '"a" is not a valid list of files'),
        ({"url": "ftp://a.org/a.gz"}, "is not a valid url"),
        ({"url": "http://a.org/.."}, "is not a valid url"),
        ({"url": "http://a.org/gr\u00f6\u00dfe.gz"}, '"http://a.org/gr\\u00f6\\u00dfe.gz" is not a valid url'),
        ({"url": "http://a.org/a b\r\nX: y/a.gz"}, "is not a valid url"),
        ({"dataset": "../passage"}, "is not a valid dataset"),
        ({"bytes": -1}, "-1 is not a valid number of bytes"),
        ({"bytes": "7"}, '"7" is not a valid number of bytes'),
        ({"bytes": 10**300}, "is not a valid number of bytes"),
        ({"bytes": 0}, "0 is not a valid number of bytes"),
        ({"md5": []}, "[] is not a valid list of md5s"),
        ({"md5": ["x" * 32]}, "is not a valid list of md5s"),
        ({"md5": 7}, "7 is not a valid list of md5s"),
    ],
)
def test_manifests_that_name_what_should_not_be_written(
    work: Path, change: dict[str, object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"dataset": "passage", "url": "http://a.org/a.gz", "bytes": 7, "md5": ["0" * 32], "files": ["a"]} | change
    (work / "m.json").write_text(json.dumps({"files": [entry], "checkpoints": [], "headers": {}}))
    error = refused("download_data.py", "--manifest", work / "m.json", capsys=capsys)
    assert sentence in error and "--manifest names a file like data/downloads.json" in error


@pytest.mark.parametrize("headers", [{"a.org": 7}, {"a.org": {"X: y": "z"}}, {"a.org": {"X": "y\r\nZ: z"}}])
def test_headers_that_would_be_others(work: Path, headers: object, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "m.json").write_text(json.dumps({"files": [], "checkpoints": [], "headers": headers}))
    assert " is not a valid " in refused("download_data.py", "--manifest", work / "m.json", capsys=capsys)


@pytest.mark.parametrize("folder", ["../x", "/tmp/x", "a/../../x", "", "a//b", "größe", "a\0b", 7, None])
def test_checkpoints_that_would_lie_elsewhere(work: Path, folder: object, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"files": [], "checkpoints": [{**STAR, "folder": folder}], "headers": {}}
    (work / "m.json").write_text(json.dumps(content))
    assert "not a valid folder; --manifest" in refused("download_data.py", "--manifest", work / "m.json", capsys=capsys)


def test_too_small_a_disk(work: Path, site: Site) -> None:
    site.files = {"a.gz": gzip.compress(b"a")}
    manifest(work, site, {"url": "a.gz", "files": ["a"], "bytes": 10**15})
    assert re.search(
        r"a.gz needs about 4500000.0 GB, [\d.]+ GB are free; free some space, or .*--data_root", must_refuse(work)
    )
    assert site.requests == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--wrong"], "unrecognized arguments: --wrong"),
        (["passages"], "invalid choice: 'passages'"),
        (["--manifest", "none.json"], "none.json: no such file"),
        (["--manifest", "empty.json"], "empty.json: the field 'files' is missing; --manifest names a file like"),
    ],
)
def test_wrong_arguments(work: Path, site: Site, arguments: list[str], sentence: str) -> None:
    manifest(work, site)
    (work / "empty.json").write_text("{}")
    assert sentence in must_refuse(work, *arguments)


def test_help_names_what_there_is(work: Path, site: Site) -> None:
    out = must(work, "--help")
    assert all(word in out for word in ("bash download_data.sh", "passage", "doc", "--models", "--data_root"))


def test_it_runs_before_anything_is_installed(work: Path, site: Site) -> None:
    site.files = {"q.tsv.gz": gzip.compress(b"q")}
    manifest(work, site, {"url": "q.tsv.gz", "files": ["q.tsv"]})
    without_packages = "-S"
    words = (without_packages, ROOT / "download_data.py", "--manifest", "manifest.json")
    result = run_python(*words, cwd=work, **environment())
    assert result.returncode == 0, result.stderr
    assert tree(work / "data") == {"passage/dataset/q.tsv"}


def test_the_progress_line_tells_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 10.0, 40.0, 41.0, 80.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    progress = load_script("download_data.py").ProgressLine()
    for done in (1_000_000_000, 1_100_000_000, 1_400_000_000, 1_410_000_000, 3_000_000_000):
        progress("downloading", done, 8_400_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "  downloading: 1.40 GB of 8.40 GB, 10 MB/s, 0:11:40 left",
        "  downloading: 3.00 GB of 8.40 GB, 25 MB/s, 0:03:36 left",
    ]


FAKE_GDOWN = """
import json, os, shutil
FROM = os.environ["FAKE_DRIVE"]

def _call(function, id, output, resume):
    assert resume
    with open(os.path.join(FROM, "calls"), "a") as calls:
        calls.write(f"{function} {id}\\n")
    if not os.path.exists(os.path.join(FROM, id)):
        raise RuntimeError("Failed to retrieve it\\nToo many users have viewed or downloaded this file recently.")
    return os.path.join(FROM, id)

def download(id, output, resume):
    shutil.copy(_call("download", id, output, resume), output)

def download_folder(id, output, resume):
    shutil.copytree(_call("download_folder", id, output, resume), output, dirs_exist_ok=True)
"""
WARMUP = {"dataset": "passage", "folder": "warmup", "drive_file": "id-warmup"}
STAR = {"dataset": "passage", "folder": "trained_models/star", "drive_folder": "id-star"}
CHECKPOINT = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x02weights", "vocab.json": b"{}"}


@pytest.fixture
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fake Google Drive holds, and beside it the module that fetches from it."""
    folder = tmp_path_factory.mktemp("drive")
    (folder / "gdown.py").write_text(FAKE_GDOWN)
    return folder


def with_gdown(drive: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(drive), "FAKE_DRIVE": str(drive)}


def write_files(folder: Path, content: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)


def test_models_are_fetched_once_into_the_places_where_the_scripts_look(work: Path, site: Site, drive: Path) -> None:
    doc = {"dataset": "doc", "folder": "trained_models/adore-star", "drive_folder": "id-doc"}
    manifest(work, site, checkpoints=(WARMUP, STAR, doc))
    with zipfile.ZipFile(drive / "id-warmup", "w") as archive:
        archive.writestr("__MACOSX/warm up/._config.json", b"junk")
        archive.writestr("warm up/old/config.json", b"deeper, so another one")
        archive.writestr("warm up/optimizer.pt", b"not needed")
        archive.writestr("../outside.json", b"outside")
        for name, content in CHECKPOINT.items():
            archive.writestr(f"warm up/{name}", content)
    write_files(drive / "id-star", CHECKPOINT)
    write_files(drive / "id-doc" / "a folder in the folder", CHECKPOINT)
    must(work, "passage", **with_gdown(drive))
    assert not (work / "data").exists() and not (drive / "calls").exists()  # no models without --models

    must(work, "--models", **with_gdown(drive))
    places = {"passage/warmup", "passage/trained_models/star", "doc/trained_models/adore-star"}
    assert tree(work / "data") == {f"{place}/{name}" for place in places for name in CHECKPOINT}
    assert (work / "data/passage/warmup/config.json").read_bytes() == b"{}"
    calls = (drive / "calls").read_text()
    assert calls.split("\n")[:3] == ["download id-warmup", "download_folder id-star", "download_folder id-doc"]

    out = must(work, "--models", **with_gdown(drive))
    assert out.count("Already exists: ") == 3
    assert (drive / "calls").read_text() == calls


def test_a_tar_holds_a_checkpoint_as_well(work: Path, site: Site, drive: Path) -> None:
    manifest(work, site, checkpoints=(WARMUP,))
    (drive / "id-warmup").write_bytes(tar({f"./{name}": content for name, content in CHECKPOINT.items()}))
    must(work, "passage", "--models", **with_gdown(drive))
    assert tree(work / "data") == {f"passage/warmup/{name}" for name in CHECKPOINT}


def test_models_that_cannot_be_had(work: Path, site: Site, drive: Path) -> None:
    manifest(work, site, checkpoints=(STAR,))
    sentence = must_refuse(work, "--models", **with_gdown(drive))
    assert "https://drive.google.com/drive/folders/id-star: gdown cannot download it (Failed to retrieve it" in sentence
    assert not (work / "data/passage/trained_models/star").exists()

    write_files(drive / "id-star", {"config.json": b"{}"})
    assert "lacks a config.json with complete weights" in must_refuse(work, "--models", **with_gdown(drive))
    assert not (work / "data/passage/trained_models/star").exists()

    manifest(work, site, checkpoints=(WARMUP,))
    (drive / "id-warmup").write_bytes(b"<html>sign in</html>")
    assert "warmup.archive: the download of https://drive.google.com/file/d/id-warmup lacks" in must_refuse(
        work, "--models", **with_gdown(drive)
    )
    write_files(work / "data/passage/warmup", {"mine.txt": b"mine"})
    assert "warmup: exists but is not a checkpoint" in must_refuse(work, "--models", **with_gdown(drive))


def test_models_without_gdown_say_so_before_anything_is_fetched(work: Path, site: Site, drive: Path) -> None:
    site.files = {"a.txt": b"a"}
    manifest(work, site, {"url": "a.txt", "files": ["a.txt"]}, checkpoints=(STAR,))
    (drive / "gdown.py").write_text("raise ImportError")
    assert "Google Drive needs the package gdown" in must_refuse(work, "--models", **with_gdown(drive))
    assert site.requests == []


RUN = {"dataset": "passage", "folder": "published_runs/star", "mode": "dev", "drive_file": "id-dev"}


def test_a_run_and_its_judgements_are_fetched_and_nothing_else(work: Path, site: Site, drive: Path) -> None:
    site.files = {
        "all.tar.gz": tar({"collection.tsv": TEXT, "qrels.dev.small.tsv": b"7\t0\t3\t1\n"}),
        "qrels.dev.small.tsv": b"7\t0\t3\t1\n",
        "qrels.train.tsv": b"8\t0\t3\t1\n",
    }
    content = ["collection.tsv", "qrels.dev.small.tsv"]
    manifest(
        work,
        site,
        {"url": "all.tar.gz", "files": content},
        *({"url": name, "files": [name]} for name in ("qrels.dev.small.tsv", "qrels.train.tsv")),
        checkpoints=(STAR,),
        runs=(RUN, {**RUN, "mode": "train"}),
    )
    (drive / "id-dev").write_bytes(gzip.compress(b"7\t2\t1\n7\t3\t2\n"))
    out = must(work, "passage", "--runs", **with_gdown(drive))
    run = "passage/published_runs/star/dev.rank.tsv"
    assert f"Wrote data/{run}; it had official ids; 1 of 1 judged queries, 1 of them with a relevant document" in out
    assert tree(work / "data") == {run, f"{run}.json", "passage/dataset/qrels.dev.small.tsv"}
    assert site.requests == [("qrels.dev.small.tsv", None)]
    assert (drive / "calls").read_text() == "download id-dev\n"
    assert must(work, "passage", "--runs", **with_gdown(drive)).count("Already exists: ") == 2

    must(work, "passage")  # the rest
    assert (work / "data/passage/dataset/collection.tsv").read_bytes() == TEXT


def test_runs_need_the_packages(work: Path, site: Site, drive: Path) -> None:
    manifest(work, site, runs=(RUN,))
    (drive / "numpy.py").write_text("raise ImportError")
    assert "--runs needs Python 3.11 or later with the project's packages" in must_refuse(
        work, "passage", "--runs", **with_gdown(drive)
    )
    assert "--runs: not allowed with argument --models" in must_refuse(work, "--models", "--runs")


@pytest.mark.parametrize(
    "change",
    [{"mode": "../dev"}, {"mode": "lead"}, {"folder": "../x"}, {"drive_file": "a/b"}, {"dataset": "images"}],
)
def test_runs_that_would_lie_elsewhere(work: Path, change: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    content = {"files": [], "checkpoints": [], "headers": {}, "runs": [RUN | change]}
    (work / "m.json").write_text(json.dumps(content))
    assert " is not a valid " in refused("download_data.py", "--manifest", work / "m.json", capsys=capsys)


def test_the_manifest_brings_all_published_runs() -> None:
    manifest = downloads.read_manifest(ROOT / "data" / "downloads.json")
    places = {(run.dataset, run.folder, run.mode) for run in manifest.runs}
    folders = [f"published_runs/{name}" for name in ("star", "adore-star")]
    assert places == set(itertools.product(CORPORA, folders, ("train", "dev", "test")))
    assert len({run.drive_id for run in manifest.runs}) == len(manifest.runs) == 12
    for corpus in CORPORA.values():
        for mode in ("train", "dev", "test"):
            name = corpus.modes[mode].qrels
            [file] = manifest.only(corpus.name, [name or ""])
            assert file.bytes < 20e6


def test_the_manifest_brings_what_preprocess_reads() -> None:
    manifest = downloads.read_manifest(ROOT / "data" / "downloads.json")
    for corpus in CORPORA.values():
        files = [file for file in manifest.files if file.dataset == corpus.name]
        names = [name for file in files for name in file.names]
        assert {name for file in manifest.judgements if file.dataset == corpus.name for name in file.names} <= set(
            names
        )
        splits = corpus.modes.values()
        wanted = {corpus.collection} | {name for split in splits for name in (split.queries, split.qrels) if name}
        assert {name.removesuffix(".gz") for name in names} == wanted
        assert len(names) == len(wanted)
    for file in (*manifest.files, *manifest.judgements):
        assert file.url.startswith("https://") and file.bytes > 0
        assert file.md5 and all(re.fullmatch("[0-9a-f]{32}", digest) for digest in file.md5)
        publisher = "msmarco" in file.url.split("/")[2]
        assert manifest.headers_for(file.url) == ({"X-Ms-Version": "2019-12-12"} if publisher else {})


def test_the_manifest_brings_all_published_checkpoints() -> None:
    manifest = downloads.read_manifest(ROOT / "data" / "downloads.json")
    names = ["inbatch-neg", "rand-neg", "star", "adore-inbatch", "adore-rand", "adore-star"]
    places = {f"{dataset}/trained_models/{name}" for dataset in ("passage", "doc") for name in names}
    found = [f"{checkpoint.dataset}/{checkpoint.folder}" for checkpoint in manifest.checkpoints]
    assert sorted(found) == sorted(places | {"passage/warmup"})
    assert [checkpoint.folder for checkpoint in manifest.checkpoints if checkpoint.is_archive] == ["warmup"]
    assert len({checkpoint.drive_id for checkpoint in manifest.checkpoints}) == len(found)


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("pass", "gdown cannot download it (it downloaded nothing)"),
        ("sys.exit(3)", "gdown cannot download it (3)"),
        ("raise KeyError", "gdown cannot download it (KeyError)"),
        ("print('Permission denied', '\\u4e00'); raise RuntimeError('\\u4e00\\x1b[2J')", "gdown cannot download it"),
        ("raise OSError(28, 'No space left on device')", "No space left on device (the disk mounted at"),
        ("put('config.json', b'{}')", "lacks a config.json with complete weights; remove it"),
        ("put('config.json', b'{}'); put('pytorch_model.bin', b'<html>')", "lacks a config.json with complete weights"),
        ("put('config.json', b'{}'); put('pytorch_model.bin', b'PK\\3\\4 and more')", "with complete weights"),
        ("put('config.json', b'{}'); put('model.safetensors', b'\\xff' * 8)", "with complete weights"),
        ("put('config.json', b'{}'); put('model.safetensors', b'\\2' + bytes(7) + b'{}')", "with complete weights"),
        ("put('config.json', b'<html>'); put('pytorch_model.bin', b'\\x80\\2')", "config.json: not a JSON file"),
    ],
)
def test_a_gdown_that_misbehaves(
    work: Path, behaviour: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download_folder(id: str, output: str, resume: bool) -> None:
        def put(name: str, content: bytes) -> None:
            Path(output, name).write_bytes(content)

        exec(behaviour, {"put": put, "sys": sys})

    monkeypatch.setattr(downloads, "import_gdown", lambda: SimpleNamespace(download_folder=download_folder))
    monkeypatch.setattr(load_script("download_data.py"), "import_gdown", lambda: None)
    (work / "m.json").write_text(json.dumps({"files": [], "checkpoints": [STAR], "headers": {}}))
    arguments = ("passage", "--models", "--manifest", work / "m.json", "--data_root", work)
    assert sentence in refused("download_data.py", *arguments, capsys=capsys)
    assert not (work / "passage/trained_models/star").exists()


def test_safetensors_that_are_whole_are_a_checkpoint(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3))}, tmp_path / "model.safetensors")
    assert downloads._is_whole(tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for cut in (0, 7, 8, 20, len(content) - 1):
        (tmp_path / "model.safetensors").write_bytes(content[:cut])
        assert not downloads._is_whole(tmp_path / "model.safetensors")


def test_one_download_of_a_checkpoint_at_a_time(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "m.json").write_text(json.dumps({"files": [], "checkpoints": [STAR], "headers": {}}))
    with sole_writer(work / "passage/trained_models"):
        assert "trained_models/star: another process is writing it" in refused(
            "download_data.py", "passage", "--models", "--manifest", work / "m.json", "--data_root", work, capsys=capsys
        )


def zip_with(name: str, content: bytes, mode: int = 0, encrypted: bool = False, twice: bool = False) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of names that are there twice
        archive.writestr("config.json", b"{}")
        for _ in range(1 + twice):
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content)
    data = bytearray(packed.getvalue())
    if encrypted:  # the flag of the last entry of the directory and of its local header
        for start, offset in ((data.rindex(b"PK\1\2"), 8), (data.rindex(b"PK\3\4"), 6)):
            data[start + offset] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        (zip_with("vocab.json", b"{}", encrypted=True), "vocab.json is encrypted"),
        (zip_with("vocab.json", b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "vocab.json is not a plain file"),
        (zip_with("vocab.json", b"", mode=stat.S_IFIFO | 0o666), "vocab.json is not a plain file"),
        (zip_with("vocab.json/", b""), "vocab.json is not a plain file"),
        (zip_with("vocab.json", b"{}", twice=True), "vocab.json appears twice"),
        (zip_with("vocab.json", b"{}")[:-30], ""),
    ],
)
def test_zips_with_what_is_no_file(tmp_path: Path, packed: bytes, sentence: str) -> None:
    (tmp_path / "a.archive").write_bytes(packed)
    (tmp_path / "out").mkdir()
    try:
        unpack_checkpoint(tmp_path / "a.archive", tmp_path / "out")
    except InputError as error:
        assert "a.archive: cannot be unpacked" in str(error) and sentence in str(error)
    else:
        assert not sentence
    assert not (tmp_path / "out/vocab.json").exists()


def test_checkpoints_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for packed in (zip_with("vocab.json", bytes(2000)), tar({"config.json": b"{}", "vocab.json": bytes(10**6)})):
        (tmp_path / "a.archive").write_bytes(packed)
        with pytest.raises(InputError, match="too large for a checkpoint|unpacks to more than"):
            unpack_checkpoint(tmp_path / "a.archive", tmp_path / "out", most=1000)
