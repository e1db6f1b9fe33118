"""Run scripts as processes, to kill and watch them and to clean up after them.

Importing torch takes seconds. So a script runs in a fork of this process, which has imported everything. ``runpy`` runs
it with its own arguments, folder, session and output files. ``real=True`` starts a new Python instead.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import os
import resource
import runpy
import select
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
# The libraries read these when they are loaded. A process to be forked must have only one thread.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
ENVIRONMENT = ONE_THREAD | {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
    "PYTHONPATH": str(PROJECT),
}
HEAVY = (
    "numpy",
    "torch",
    "faiss",
    "transformers",
    "transformers.trainer",
    "accelerate",
    "safetensors.torch",
    "scipy.stats",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch.utils.tensorboard",
    "ir_measures",
    "bm25s",
    "psutil",
    "tqdm",
)
OURS = sorted(path.stem for path in (PROJECT / "drhard").glob("*.py") if path.stem != "__init__")
HANG_SECONDS = 120
PIPE_BYTES = 1 << 20
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
PROGRAMS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn"}
OUTSIDE = 98  # exit code of a process that tried to leave its folder
LEFT_SECONDS = 10  # in which the workers of a killed process must end

_libc = ctypes.CDLL(None, use_errno=True)


def load_everything() -> None:
    """Import the scripts' modules once, before the first fork."""
    os.environ |= ENVIRONMENT
    sys.path.insert(0, str(PROJECT))
    for module in (*(f"drhard.{name}" for name in OURS), "star_tokenizer", *HEAVY):
        importlib.import_module(module)
    # The Trainer and from_pretrained import these on first use.
    for module in ("transformers.modeling_utils", "transformers.models.roberta.modeling_roberta"):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # otherwise garbage collection in a fork copies all memory
    with open("/proc/self/status") as status:
        threads = next(int(line.split()[1]) for line in status if line.startswith("Threads:"))
    if threads > 1:
        raise RuntimeError(f"{threads} threads after importing; a fork of them would not be like a new process")


def adopt_orphans() -> None:
    """Make this process the parent of all orphans among its descendants, so that it can find them."""
    PR_SET_CHILD_SUBREAPER = 36
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    PR_SET_PDEATHSIG = 1
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@dataclass(frozen=True)
class Limits:
    """The limits of a run; None for no limit."""

    more_memory: int | None = None  # bytes of address space beyond those of this process
    file_size: int | None = None  # bytes of each file


@dataclass
class Ended:
    """How a run ended. The exit code is the negative number of the signal if one killed it."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    file_events: int | None = None  # names made, renamed or removed, where they were counted

    def describe(self) -> str:
        """Return the exit code and the end of standard error."""
        return f"exit code {self.code}: {self.stderr[-1500:]}"


@dataclass
class Running:
    """A run that was started."""

    pid: int
    logs: Path
    pipes: dict[str, int] = field(default_factory=dict)  # "stdout" and "stderr" where they are no files
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.pidfd = os.pidfd_open(self.pid)

    def ended_within(self, seconds: float) -> bool:
        """Wait up to ``seconds``. Return whether it has ended."""
        return bool(select.select([self.pidfd], [], [], max(seconds, 0))[0])

    def send(self, number: int) -> bool:
        """Send a signal to this process, not to its group. Return False if it has ended already."""
        if self.ended_within(0):
            return False
        os.kill(self.pid, number)
        return True

    def wait(self, seconds: float = HANG_SECONDS) -> Ended:
        """Wait for its end. If that takes too long, kill it and raise Hanging."""
        if not self.ended_within(seconds):
            os.kill(self.pid, signal.SIGKILL)
            ended = self._collect()
            raise Hanging(f"did not end in {seconds:.0f} s: {ended.stderr[-1500:]}")
        return self._collect()

    def _collect(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.begun
        os.close(self.pidfd)
        for name, pipe in self.pipes.items():
            with contextlib.suppress(BlockingIOError):  # nothing was said, and a child still lives
                (self.logs / name).write_bytes(os.read(pipe, PIPE_BYTES))
            os.close(pipe)
        out, err, events = (self.logs / name for name in ("stdout", "stderr", "events"))
        count = int(events.read_text()) if events.exists() and events.stat().st_size else None
        texts = (path.read_text(encoding="utf-8", errors="backslashreplace") for path in (out, err))
        return Ended(os.waitstatus_to_exitcode(status), *texts, seconds, count)


class Hanging(Exception):
    """A run that does not end."""


@dataclass(frozen=True)
class Way:
    """How a script is run.

    Attributes:
        real: start a new Python instead of a fork.
        die_at: (number of a file event, signal): the process sends itself the signal just before this event. A file
            event makes, opens for writing, renames or removes a name under its folder (fork only).
        prepare: called in the fork before the script runs.
        confine: end the process with ``OUTSIDE`` if it starts a program, or changes a file outside its folder and the
            folder for temporary files (fork only).
    """

    real: bool = False
    limits: Limits = Limits()
    die_at: tuple[int, int] | None = None
    prepare: Callable[[], None] | None = None
    confine: bool = False


def start(script: Path, arguments: Sequence[str], folder: Path, logs: Path, way: Way) -> Running:
    """Start a script in ``folder``. Its output goes into the folder ``logs``."""
    logs.mkdir(parents=True, exist_ok=True)
    for name in ("stdout", "stderr", "events"):
        (logs / name).write_text("")
    sys.stdout.flush()
    sys.stderr.flush()
    # The limit on files must not apply to the output.
    pipes, ends = _pipes() if way.limits.file_size is not None else ({}, {})
    pid = os.fork()
    if pid == 0:
        try:
            _enter(folder, logs, way.limits, ends)
            if way.real:
                os.execve(sys.executable, [sys.executable, str(script), *arguments], os.environ)
            if way.limits.file_size is None:
                _count_file_events(folder, logs / "events", way)
            if way.prepare:
                way.prepare()
            _run(script, arguments)
        finally:
            os._exit(99)
    for descriptor in ends.values():
        os.close(descriptor)
    return Running(pid, logs, pipes)


def _pipes() -> tuple[dict[str, int], dict[str, int]]:
    """Open pipes that hold all output of a script. Return the ends for reading and those for writing."""
    readers, writers = {}, {}
    for name in ("stdout", "stderr"):
        readers[name], writers[name] = os.pipe()
        fcntl.fcntl(writers[name], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(readers[name], False)
    return readers, writers


def _enter(folder: Path, logs: Path, limits: Limits, pipes: dict[str, int]) -> None:
    end_with_parent()
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(pipes.get(name) or os.open(logs / name, os.O_WRONLY | os.O_APPEND), descriptor)
    for descriptor in os.listdir("/proc/self/fd"):
        if int(descriptor) > 2:
            with contextlib.suppress(OSError):
                os.close(int(descriptor))
    os.chdir(folder)
    if limits.more_memory is not None:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.more_memory,) * 2)
    if limits.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_size,) * 2)


def _run(script: Path, arguments: Sequence[str]) -> None:
    """Run a script to the end of this process, as ``python script arguments`` does."""
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _count_file_events(folder: Path, counted: Path, way: Way) -> None:
    """Count the file events of this process under ``folder``. Send the signal of ``way.die_at`` at its event."""
    sys.dont_write_bytecode = True
    inside = f"{folder}{os.sep}"
    allowed = (inside, f"{tempfile.gettempdir()}{os.sep}", "/dev/", "/proc/")
    process, counts = os.getpid(), os.open(counted, os.O_WRONLY)
    count, busy = 0, False

    def stop(what: str) -> None:
        os.write(2, f"Outside: {what}\n".encode())
        os._exit(OUTSIDE)

    def changed(event: str, arguments: tuple) -> str | None:
        path = arguments[0] if event in CHANGES or event == "open" else None
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return None
        path = os.fsdecode(path) if isinstance(path, bytes) else path
        return os.path.abspath(path) if isinstance(path, (str, os.PathLike)) else None

    def heed(event: str, arguments: tuple) -> None:
        nonlocal count, busy
        if busy or os.getpid() != process:
            return
        busy = True
        try:
            path = changed(event, arguments)
            if way.confine and event in PROGRAMS and arguments[0] != "nvidia-smi":  # which only reads
                stop(f"{event} {arguments[:2]}")
            if way.confine and path and not f"{path}{os.sep}".startswith(allowed):
                stop(f"{event} {path}")
            if path is None or not path.startswith(inside):
                return
            count += 1
            os.pwrite(counts, str(count).encode(), 0)
        finally:
            busy = False
        if way.die_at and count == way.die_at[0]:
            os.kill(process, way.die_at[1])

    sys.addaudithook(heed)


# Processes left behind


def reap(seconds: float | None = None) -> list[str]:
    """Wait until all children of this process have ended, adopted orphans included.

    Returns:
        The command lines of those still alive after ``seconds`` (LEFT_SECONDS). They are killed.
    """
    until = time.monotonic() + (LEFT_SECONDS if seconds is None else seconds)
    pause = 0.001
    while _reap_ended():
        if time.monotonic() > until:
            break
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    else:
        return []
    left = []
    while _reap_ended():  # a killed process may leave children of its own
        for pid, command in _children():
            left.append(command)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return left


def _reap_ended() -> bool:
    """Collect the children that have ended. Return whether there are others."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def _children() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    yield int(entry), file.read().replace(b"\0", b" ").decode(errors="replace")[:200]


# Changes in a folder


class FolderWatch:
    """Counts the events of all files under a folder by inotify."""

    MODIFY, CREATE, DELETE, MOVED_TO, CLOSE_WRITE = 0x2, 0x100, 0x200, 0x80, 0x8
    IS_DIRECTORY = 0x40000000

    def __init__(self, folder: Path):
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders: dict[int, str] = {}
        self._add(str(folder))

    def __enter__(self) -> "FolderWatch":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _add(self, folder: str) -> None:
        mask = self.MODIFY | self.CREATE | self.DELETE | self.MOVED_TO | self.CLOSE_WRITE
        number = _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask)
        if number < 0:
            return  # it has gone again
        self._folders[number] = folder
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    self._add(entry.path)

    def wait(self, running: Running, count: int | None, seconds: float = HANG_SECONDS) -> int:
        """Wait for ``count`` events (None: any number) or the end of ``running``. Return the number of events."""
        seen = 0
        until = time.monotonic() + seconds
        while count is None or seen < count:
            ready = select.select([self._descriptor, running.pidfd], [], [], max(until - time.monotonic(), 0))[0]
            seen += self._read()
            if not ready or (running.pidfd in ready and self._descriptor not in ready):
                break
        return seen

    def _read(self) -> int:
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return 0
        seen = offset = 0
        while offset < len(data):
            number, mask, _, length = struct.unpack_from("iIII", data, offset)
            name = os.fsdecode(data[offset + 16 : offset + 16 + length].rstrip(b"\0"))
            offset += 16 + length
            seen += 1
            if mask & self.CREATE and mask & self.IS_DIRECTORY and number in self._folders:
                self._add(os.path.join(self._folders[number], name))
        return seen
