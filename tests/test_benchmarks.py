"""The benchmarks run, at a small size, and write what they print."""

import json
from pathlib import Path

from conftest import must_run


def test_search(tmp_path: Path) -> None:
    printed = must_run(
        "benchmarks/search.py", "--documents", 3000, "--dim", 16, "--rounds", 2, "--output", tmp_path / "search.json",
        cwd=tmp_path,
    )  # fmt: skip
    results = json.loads((tmp_path / "search.json").read_text())
    assert results["machine"]["cores"] >= 1
    assert [work["queries"] for work in results["results"]] == [640, 32]
    for work in results["results"]:
        assert work["ways"][0]["times_faster"] == 1
        assert all(way["seconds"] > 0 for way in work["ways"])
    assert printed.count("| ours |") == 2
