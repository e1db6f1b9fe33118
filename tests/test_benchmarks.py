"""The benchmarks run, at a small size, find the same as the published way, and write what they print."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import must_run, run_script


def run_benchmark(name: str, folder: Path, *flags: Any) -> tuple[str, dict[str, Any]]:
    """What it prints, and the JSON that it writes."""
    printed = must_run(f"benchmarks/{name}.py", *flags, "--output", folder / "results.json", cwd=folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["blas"]
    return printed, results


def check_ways(ways: list[dict[str, Any]]) -> None:
    assert ways[0]["times_faster"] == 1
    assert all(way["seconds"] > 0 for way in ways)


def test_search(tmp_path: Path) -> None:
    printed, results = run_benchmark("search", tmp_path, "--documents", 3000, "--dim", 16, "--rounds", 2)
    assert [work["queries"] for work in results["results"]] == [640, 32]
    for work in results["results"]:
        check_ways(work["ways"])
    assert printed.count("| ours |") == 2


def test_encoding(tmp_path: Path) -> None:
    printed, results = run_benchmark("encoding", tmp_path, "--passages", 40, "--layers", 1, "--rounds", 1)
    check_ways(results["ways"])
    assert 0 < results["difference"] <= 1e-5
    assert "| ours |" in printed


def test_tokenizing(tmp_path: Path) -> None:
    _, results = run_benchmark("tokenizing", tmp_path, "--lines", 300, "--rounds", 1)
    check_ways(results["ways"])
    assert len(results["ways"]) == 4
    assert results["lines"] == 300
    assert results["tokens"] > 300 * 20


def test_training(tmp_path: Path) -> None:
    _, results = run_benchmark(
        "training", tmp_path,
        "--documents", 2000, "--batch", 4, "--large_batch", 6, "--chunk", 2, "--layers", 1, "--rounds", 1,
    )  # fmt: skip
    check_ways(results["adore"])
    check_ways(results["star"])
    assert [way["queries"] for way in results["star"]] == [4, 4, 4, 6]
    assert all(way["difference"] < 1e-6 for way in results["star"])


def test_scaling(tmp_path: Path) -> None:
    _, results = run_benchmark(
        "scaling", tmp_path, "--folder", tmp_path, "--rows", 11_000, "--dim", 16, "--search_memory_gb", 0.5
    )
    assert [row["rows"] for row in results["search"]] == [11_000, 11_000]
    assert [row["rows"] for row in results["preprocessing"]] == [11_000]
    # Importing torch's build with CUDA takes 0.7 GB by itself.
    assert all(row["peak_gb"] - row["libraries_gb"] < 0.5 for row in results["search"])
    assert not list(tmp_path.glob("*.memmap"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("search", "--documents", 150), "error: cannot return the 200 best of 150 documents; choose 1 to 150"),
        (("search", "--rounds", 0), "search.py: error: argument --rounds: 0 is too few; give at least 1"),
        (
            ("scaling", "--folder", ".", "--rows", 199),
            "error: cannot return the 200 best of 199 documents; choose 1 to 199",
        ),
    ],
)
def test_too_little_is_refused(tmp_path: Path, flags: tuple[Any, ...], sentence: str) -> None:
    name, *rest = flags
    result = run_script(f"benchmarks/{name}.py", *rest, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == sentence
    assert not list(tmp_path.iterdir())
