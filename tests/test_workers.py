"""The workers of preprocess.py end with it, however it ends, and it ends if one of them does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from drhard.workers import _stops_delayed

import pytest
from helpers import ROOT, TEXTS, save_vocabulary, snapshot, the_error


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started, but not the one by which Python keeps track of semaphores."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(happens: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose passages take some seconds."""
    root = tmp_path_factory.mktemp("large")
    dataset = root / "passage" / "dataset"
    dataset.mkdir(parents=True)
    with open(dataset / "collection.tsv", "w") as file:
        file.writelines(f"{pid}\t{pid} {TEXTS[pid % 4] * 5}\n" for pid in range(400_000))
    save_vocabulary(root / "base")
    return root


@pytest.mark.parametrize(
    "what", ["the parent by SIGKILL", "a worker by SIGKILL", "Ctrl-C", "SIGTERM", "SIGTERM at the start"]
)
def test_no_process_is_left_behind(large: Path, what: str) -> None:
    command = [
        sys.executable,
        str(ROOT / "preprocess.py"),
        "--data_root",
        str(large),
        "--model_name_or_path",
        str(large / "base"),
        "--threads",
        "2",
    ]
    pattern = "passage/preprocess/.partial/*/passages.memmap"
    old = set(large.glob(pattern))  # of a killed parent

    def new_memmaps() -> set[Path]:
        return set(large.glob(pattern)) - old

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        if what == "SIGTERM at the start":
            wait_until(lambda: children(process.pid))
        else:
            wait_until(lambda: any(path.stat().st_size for path in new_memmaps()) and len(children(process.pid)) == 2)
        workers = children(process.pid)
        if what == "Ctrl-C":  # which a terminal sends to all
            os.killpg(process.pid, signal.SIGINT)
        elif what == "a worker by SIGKILL":
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            time.sleep(1)  # batches fill the pipe to the workers
            os.kill(workers[0], signal.SIGKILL)
            os.kill(workers[1], signal.SIGCONT)
        else:
            process.send_signal(signal.SIGKILL if "SIGKILL" in what else signal.SIGTERM)
        stderr = process.communicate()[1]
    wait_until(lambda: not any(map(alive, workers)), seconds=10)
    assert "Traceback" not in stderr
    if what == "the parent by SIGKILL":
        assert process.returncode == -signal.SIGKILL
        return
    left = snapshot(large / "passage" / "preprocess")
    assert left == {}
    if what == "a worker by SIGKILL":
        assert process.returncode == 2
        assert the_error(stderr).startswith("error: one of 2 worker processes was killed, probably for lack of mem")
    else:
        assert process.returncode == 130
        assert stderr.splitlines()[-1] == "stopped; run the same command again to resume"


def test_a_stop_that_a_thread_receives_waits_for_the_start_of_the_workers() -> None:
    """Threads of libraries do not block signals. Python calls the handler in the main thread all the same."""
    steps, begun, done = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (begun.set(), done.wait()))  # made before the signals are blocked
    thread.start()
    begun.wait()
    try:
        with pytest.raises(KeyboardInterrupt), _stops_delayed():
            signal.pthread_kill(thread.ident, signal.SIGINT)
            time.sleep(0.2)
            steps.append("started")
    finally:
        done.set()
        thread.join()
    assert steps == ["started"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stop_of_the_process_waits_too() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), _stops_delayed():
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append("started")
    assert steps == ["started"]
