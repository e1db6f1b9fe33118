"""A handful of each campaign, so that the campaigns themselves keep working; whole, they take half an hour."""

import json
import sys
from pathlib import Path

from conftest import PROJECT, run_script

# Scripts that take fractions of a second in the tiny collection.
SCRIPTS = ("adore-train", "adore-inference", "star-inference", "mine-bm25", "msmarco-eval")


def test_campaigns(tmp_path: Path) -> None:
    """Kills, pairs, full disks and mutated inputs find nothing, and say what they did."""
    result = run_script(
        "tests/campaigns", "--kills", "5", "--pairs", "3", "--disks", "4", "--mutations", "25", "--small",
        "--only", *SCRIPTS, "--output", tmp_path / "campaigns.json", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    for name, count in (("kills", 5), ("pairs", 3), ("disks", 4), ("mutations", 25)):
        figures = json.loads((tmp_path / f"campaigns-{name}.json").read_text())
        assert figures["cases"] == count
        assert sum(sum(row.values()) for row in figures["counts"].values()) >= count
        assert f"{name}: {count} cases" in result.stdout


def test_a_fault_is_found(tmp_path: Path) -> None:
    """A script that leaves a file that is not whole, and a process, when it is killed."""
    folder = PROJECT / "tests" / "campaigns"
    assert folder.is_dir() and sys.executable
