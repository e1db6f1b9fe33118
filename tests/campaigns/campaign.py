"""Shared by the campaigns: flags, workers that run cases, counts, and findings."""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from processes import adopt_orphans, end_with_parent, load_everything
from scripts_under_test import Size, World, logs_of
from tqdm import tqdm

KEPT_OF_A_KIND = 3  # folders kept for findings of a kind; of further ones only the text is kept


@dataclass
class Finding:
    """Something that went wrong."""

    kind: str
    detail: str


@dataclass
class Outcome:
    """How a case went.

    Attributes:
        subject: the script, or the kind of input.
        result: a short name for this outcome, to count by.
        counts: False for a case that missed its purpose, such as a kill that came too late.
    """

    number: int
    subject: str
    result: str
    counts: bool = True
    findings: list[Finding] = field(default_factory=list)
    how: str = ""  # what was done, for the record
    kept: str | None = None  # the folder of the case


@dataclass
class Case:
    """A running case: its number, its random numbers, its folder, and whether it uses new processes and not forks."""

    number: int
    random: random.Random
    folder: Path
    real: bool


Campaign = Callable[[Case], Outcome]
REAL = 0.1  # share of cases that run new processes and not forks; the outcome must be the same


def parse_arguments(description: str, count: int, subjects: Iterable[str]) -> argparse.Namespace:
    """Parse the flags of a campaign."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count, help="cases that count (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed; decides every case (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (%(default)s)")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures; folders go into FILE.findings")
    parser.add_argument("--only", nargs="+", choices=sorted(subjects), metavar="NAME", help=", ".join(sorted(subjects)))
    parser.add_argument(
        "--numbers",
        type=int,
        nargs="+",
        metavar="N",
        help="run only these cases of a campaign with the same --only and --seed; --output keeps their folders",
    )
    return parser.parse_args()


class Campaigner:
    """Runs campaigns in a temporary folder.

    Args:
        output: FILE.json. Findings go into FILE-NAME.json, and the folders of their cases into FILE.json.findings.
        load: import all libraries first. Scripts without libraries do not need this.
        real: the share of cases with new processes.
    """

    def __init__(self, output: Path | None = None, jobs: int = 2, seed: int = 0, load: bool = True, real: float = REAL):
        if load:
            load_everything()
        # Not a TemporaryDirectory: the exit functions of every fork would remove it.
        self._folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        self._worlds: dict[Size, World] = {}
        self.jobs, self.seed, self.output, self.real = jobs, seed, output, real
        self.keep = output.with_name(f"{output.name}.findings").absolute() if output else None

    def __enter__(self) -> "Campaigner":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def world(self, size: Size) -> World:
        """Return the world of a size."""
        if size not in self._worlds:
            self._worlds[size] = World(self._folder / f"world-{size.passages}", size)
        return self._worlds[size]

    def run(self, name: str, campaign: Campaign, count: int, numbers: Sequence[int] = ()) -> list[Outcome]:
        """Run cases until ``count`` of them count, or the cases ``numbers``. Print and save the outcomes."""
        begun = time.monotonic()
        cases = self._folder / name
        cases.mkdir()
        if numbers:
            todo, wanted = iter(numbers), len(numbers)
        else:
            todo, wanted = iter(range(2 * count + 20)), count
        workers = [self._worker(name, campaign, cases, bool(numbers)) for _ in range(min(self.jobs, wanted))]
        outcomes: list[Outcome] = []
        counted = 0
        kept: Counter[str] = Counter()
        for world in self._worlds.values():
            world.check()
        idle, busy = list(workers), 0
        with tqdm(total=wanted, desc=name, unit="case", mininterval=0.5 if sys.stderr.isatty() else 20) as bar:
            while True:
                while idle and counted + busy < wanted and (number := next(todo, None)) is not None:
                    full = tuple(kind for kind, times in kept.items() if times >= KEPT_OF_A_KIND)
                    idle.pop().send((number, full))
                    busy += 1
                if not busy:
                    break
                for worker in wait([worker for worker in workers if worker not in idle]):
                    outcome = worker.recv()  # EOFError: the worker has died
                    if isinstance(outcome, str):
                        raise RuntimeError(f"{name}: a case broke the campaign itself\n{outcome}")
                    idle.append(worker)
                    busy -= 1
                    outcomes.append(outcome)
                    kept.update({finding.kind for finding in outcome.findings})
                    counts = int(outcome.counts or bool(numbers))
                    counted += counts
                    bar.set_postfix(findings=sum(len(found.findings) for found in outcomes), refresh=False)
                    bar.update(counts)
        for worker in workers:
            worker.send((None, ()))
        for world in self._worlds.values():
            world.check()
        self._tell(name, outcomes, time.monotonic() - begun)
        return outcomes

    def _worker(self, name: str, campaign: Campaign, cases: Path, keep_all: bool) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork():
            theirs.close()
            return ours
        ours.close()
        try:
            end_with_parent()
            adopt_orphans()
            while True:
                number, full = theirs.recv()
                if number is None:
                    break
                folder = cases / str(number)
                dice = random.Random(f"{name} {self.seed} {number}")
                case = Case(number, dice, folder, dice.random() < self.real)
                outcome = campaign(case)
                kinds = {finding.kind for finding in outcome.findings}
                if self.keep and (keep_all or kinds - set(full)):
                    outcome.kept = str(self._keep(name, folder, outcome))
                for part in (folder, logs_of(folder)):
                    shutil.rmtree(part, ignore_errors=True)
                theirs.send(outcome)
        except BaseException:
            theirs.send(traceback.format_exc())
        finally:
            os._exit(0)

    def _keep(self, name: str, folder: Path, outcome: Outcome) -> Path:
        place = self.keep / name / str(outcome.number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for part, kept in ((folder, "files"), (logs_of(folder), "logs")):
            if part.exists():
                shutil.copytree(part, place / kept, symlinks=True)
        (place / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1))
        return place

    def _tell(self, name: str, outcomes: list[Outcome], seconds: float) -> None:
        counts: dict[str, Counter[str]] = {}
        for outcome in outcomes:
            counts.setdefault(outcome.subject, Counter())[outcome.result] += 1
        findings = [(outcome, finding) for outcome in outcomes for finding in outcome.findings]
        by_kind: dict[tuple[str, str], list[tuple[Outcome, Finding]]] = {}
        for outcome, finding in findings:
            by_kind.setdefault((outcome.subject, finding.kind), []).append((outcome, finding))
        counted = sum(outcome.counts for outcome in outcomes)
        print(
            f"\n{name}: {counted} cases in {seconds:.0f} s, {len(outcomes) - counted} that do not count, "
            f"{len(findings)} findings\n"
        )
        columns = list(dict.fromkeys(result for row in counts.values() for result in sorted(row)))
        print(f"| {name} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for subject, row in sorted(counts.items()):
            print(f"| {subject} | {' | '.join(str(row[column] or '') for column in columns)} |")
        print(f"| all | {' | '.join(str(sum(row[column] for row in counts.values())) for column in columns)} |")
        if by_kind:
            print("\nFindings:")
        for (subject, kind), found in sorted(by_kind.items(), key=lambda item: -len(item[1])):
            outcome, finding = found[0]
            numbers = " ".join(str(outcome.number) for outcome, _ in found[:8])
            print(f"- {len(found)} × {subject}: {kind}\n    --numbers {numbers}   {outcome.how}")
            for line in finding.detail.strip().splitlines()[-6:]:
                print(f"    | {line[:200]}")
        if self.output:
            path = self.output.with_name(f"{self.output.stem}-{name}{self.output.suffix or '.json'}")
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {
                "campaign": name,
                "seed": self.seed,
                "cases": counted,
                "seconds": round(seconds),
                "counts": {subject: dict(row) for subject, row in sorted(counts.items())},
                "findings": [asdict(outcome) for outcome in outcomes if outcome.findings],
            }
            path.write_text(json.dumps(content, indent=1))
        sys.stdout.flush()


def end(outcomes: Iterable[Outcome]) -> None:
    """Exit with code 1 if there are findings."""
    sys.exit(int(any(outcome.findings for outcome in outcomes)))
