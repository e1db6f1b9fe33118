"""Shared by the benchmarks: measure several methods of doing the same work in turn, and print medians and ratios.

Machines are noisy, so each method runs once in every round. Ratios compare times of the same round.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drhard  # noqa: F401  sets what torch reads when it is loaded
from drhard.files import write_json

import psutil
import threadpoolctl
import torch

ROOT = Path(__file__).resolve().parent.parent
SQUARE = 4096  # rows and columns


def positive(text: str) -> int:
    """Parse a flag's whole number of at least 1. argparse shows the error."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give at least 1")
    return number


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flags of all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write JSON there")
    return parser


def measure_in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Run every way once in each round; return the seconds that each took."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(seconds: dict[str, list[float]], base: str) -> list[dict[str, Any]]:
    """Return a row for each method: median seconds, and the median speed-up over ``base``."""
    return [
        {
            "way": name,
            "seconds": statistics.median(values),
            "times_faster": statistics.median(b / a for a, b in zip(values, seconds[base], strict=True)),
        }
        for name, values in seconds.items()
    ]


def measure_with_rate(
    ways: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu"
) -> tuple[dict[str, list[float]], float]:
    """Measure in turn, and return the FLOP/s of a large square product, by torch or NumPy, in the same rounds."""
    square = torch.randn(SQUARE, SQUARE, device=device)
    on_cpu = square.cpu().numpy()

    def multiply() -> None:
        square @ square
        if square.is_cuda:
            torch.cuda.synchronize()

    squares = {"square, torch": multiply, "square, NumPy": lambda: on_cpu @ on_cpu}
    seconds = measure_in_turn(ways | squares, rounds)
    return seconds, 2 * SQUARE**3 / min(statistics.median(seconds.pop(name)) for name in squares)


def peak_memory_gb() -> float:
    """Return the peak resident memory of this process in 10^9 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the memory of the parent process before the fork
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def run_apart(script: str, *flags: Any) -> dict[str, Any]:
    """Run a benchmark's script in a separate process. Return the JSON that it prints."""
    command = [sys.executable, script, *map(str, flags)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def time_and_memory_of(command: list[Any]) -> tuple[float, float]:
    """Run a command. Return its seconds, and the peak memory of all its processes together in GB."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family) / 1e9)
            process.wait(0.1)
        except (psutil.NoSuchProcess, subprocess.TimeoutExpired):
            continue
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"error: {command[1]} failed")
    return seconds, peak


def machine() -> dict[str, Any]:
    """Describe the machine, with the date."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "blas": sorted(  # OpenBLAS has several kernels for a processor; OPENBLAS_CORETYPE may choose one
            f"{library['filepath'].rpartition('/')[2].partition('-')[0]} {library['version']} {library['architecture']}"
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"
        ),
    }


def show(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row) + " |")


def show_machine() -> None:
    """Print the description of the machine."""
    here = machine()
    print(f"{here['date']}: {here['cores']} cores of {here['cpu']}, {here['memory_gb']} GB, {', '.join(here['blas'])}")


def save(path: Path | None, results: dict[str, Any]) -> None:
    """Write the results as JSON if a path is given."""
    if path is not None:
        write_json(path, {"machine": machine()} | results, indent=1)
        print(f"\nWrote {path}")
