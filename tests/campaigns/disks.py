"""Run scripts on disks that fill up after a random number of bytes. Then make room and run them again.

    python tests/campaigns/disks.py --count 200

The disk is a tmpfs of a random size, smaller than the script needs, in a mount namespace of its own (this needs root).
In other cases, each file is limited to a random size. A script must end with exit code 2 and one sentence that names a
file and its disk. Files with final names must be whole. Once there is room, the same command must succeed and leave
the files of an unbroken run.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from campaign import Campaign, Campaigner, Case, Finding, Outcome, end, parse_arguments
from processes import Ended, Hanging, Limits, reap
from scripts_under_test import SCRIPTS, Script, Size, World, signature, the_error

NAMES = [name for name, script in SCRIPTS.items() if not script.prints]
PAGE = os.sysconf("SC_PAGE_SIZE")
ENOUGH = 256 << 20
LIMITED_FILES = 0.25  # share of cases that limit each file and not the disk
SENTENCE = re.compile(r"error: .*?[\w.-]+\.?[\w-]*: .*(disk|space|free|File too large)")

NO_LIMITS = Limits()

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE, MS_REMOUNT, MNT_DETACH = 0x20000, 0x4000, 0x40000, 0x20, 2


def own_mounts() -> bool:
    """Give this process and its children a mount namespace of their own. Return False if it may not."""
    return _libc.unshare(CLONE_NEWNS) == 0 and _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0


@contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """Mount an empty disk of ``size`` bytes on ``folder`` while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount(folder, size, 0)
    try:
        yield
    finally:
        _libc.umount2(os.fsencode(folder), MNT_DETACH)


def resize(folder: Path, size: int) -> None:
    """Make the disk on ``folder`` larger."""
    _mount(folder, size, MS_REMOUNT)


def _mount(folder: Path, size: int, flags: int) -> None:
    if _libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount", str(folder))


class Peaks:
    """Of each unbroken run, in bytes: the disk use before it began, the peak, and the largest file."""

    def __init__(self, world: World, names: list[str], mounts: bool):
        self.start: dict[str, int] = {}
        self.disk: dict[str, int] = {}
        self.file: dict[str, int] = {}
        for name in names:
            folder = world.root / f"{name}.disk"
            if mounts:
                with disk(folder, ENOUGH):
                    self._measure(world, SCRIPTS[name], folder)
            else:
                self._measure(world, SCRIPTS[name], folder)

    def _measure(self, world: World, script: Script, folder: Path) -> None:
        world.prepare(script, folder)
        self.start[script.name] = most = _used(folder)
        running = world.start(script, folder)
        largest = 0
        while not running.ended_within(0.003):
            most = max(most, _used(folder))
        ended = running.wait()
        if ended.code or world.compare(script, folder):
            raise RuntimeError(f"{script.name} on a disk with room: {ended.describe()}")
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                largest = max(largest, path.stat().st_size)
        self.disk[script.name], self.file[script.name] = most, largest


def _used(folder: Path) -> int:
    disk = os.statvfs(folder)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def disks(world: World, names: list[str]) -> Campaign:
    """Return the campaign over the scripts ``names``."""
    world.make(names)
    mounts = own_mounts()
    if not mounts:
        print("no disk may be mounted here: all cases limit the size of files")
    peaks = Peaks(world, names, mounts)

    def campaign(case: Case) -> Outcome:
        name = names[case.number % len(names)]
        outcome = Outcome(case.number, name, "")
        trial = _Trial(world, SCRIPTS[name], case.folder, case.real, outcome)
        if mounts and case.random.random() > LIMITED_FILES:
            room = (peaks.disk[name] - peaks.start[name]) // PAGE
            size = peaks.start[name] + PAGE * case.random.randint(1, max(room - 1, 1))
            outcome.how = f"a disk of {size} bytes of {peaks.disk[name]}"
            with disk(case.folder, size):
                if trial.fill():
                    resize(case.folder, ENOUGH)
                    trial.go_on()
        else:
            size = case.random.randint(0, peaks.file[name] - 1)
            outcome.how = f"files of {size} bytes of {peaks.file[name]}"
            if trial.fill(Limits(file_size=size)):
                trial.go_on()
        outcome.how += " (processes of their own)" * case.real
        return outcome

    return campaign


@dataclass
class _Trial:
    """A script, a folder on a disk with too little room, and the outcome."""

    world: World
    script: Script
    folder: Path
    real: bool
    outcome: Outcome

    def _find(self, kind: str, ended: Ended) -> None:
        self.outcome.findings.append(Finding(kind, ended.describe()))

    def _run(self, run: int, limits: Limits = NO_LIMITS) -> Ended | None:
        try:
            return self.world.run(self.script, self.folder, run, real=self.real, limits=limits)
        except Hanging as error:
            self.outcome.findings.append(Finding("hangs" if run == 0 else "hangs when there is room", str(error)))
            return None
        finally:
            left = reap()
            if left:
                self.outcome.findings.append(Finding("processes left", "\n".join(left)))

    def fill(self, limits: Limits = NO_LIMITS) -> bool:
        """Run the script with too little room. Return False if the room was enough."""
        self.world.prepare(self.script, self.folder)
        self.outcome.result = "disk full" if limits == NO_LIMITS else "file limited"
        ended = self._run(0, limits)
        if ended is None:
            return True
        if ended.code == 0:
            self.outcome.result, self.outcome.counts = "room enough", False
            problems = self.world.compare(self.script, self.folder)
        else:
            sentence = the_error(ended.stderr)
            if ended.code != 2 or sentence is None:
                self._find(signature(ended), ended)
            elif not SENTENCE.search(sentence):
                self._find(f"names no file or no disk: {signature(ended)}", ended)
            problems = self.world.compare_stopped(self.script, self.folder)
        for problem in problems:
            self._find(problem, ended)
        return ended.code != 0

    def go_on(self) -> None:
        """Run the same command with enough room."""
        ended = self._run(1)
        if ended is None:
            return
        if ended.code:
            self._find(f"with room: {signature(ended)}", ended)
            return
        for problem in self.world.compare(self.script, self.folder):
            self._find(f"with room: {problem}", ended)


def main() -> None:
    args = parse_arguments(__doc__, 200, NAMES)
    with Campaigner(args.output, args.jobs, args.seed) as campaigner:
        campaign = disks(campaigner.world(Size()), args.only or NAMES)
        end(campaigner.run("disks", campaign, args.count, args.numbers or ()))


if __name__ == "__main__":
    main()
