"""A handful of each campaign, so that the campaigns themselves keep working; whole, they take half an hour."""

import json
import re
from pathlib import Path

from helpers import ROOT, run_script

SCRIPTS = ("adore-inference", "mine-bm25", "msmarco-eval")  # those that take least


def test_campaigns(tmp_path: Path) -> None:
    """Kills, pairs, full disks and mutated inputs find nothing, and say what they did."""
    result = run_script(
        "tests/campaigns",
        "--kills",
        "5",
        "--pairs",
        "2",
        "--disks",
        "3",
        "--mutations",
        "20",
        "--small",
        "--real",
        "0",
        "--only",
        *SCRIPTS,
        "--output",
        tmp_path / "campaigns.json",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name, count in (("kills", 5), ("pairs", 2), ("disks", 3), ("mutations", 20)):
        figures = json.loads((tmp_path / f"campaigns-{name}.json").read_text())
        assert figures["cases"] == count
        assert sum(sum(row.values()) for row in figures["counts"].values()) >= count
        assert f"{name}: {count} cases" in result.stdout


FAULTY = """
import pathlib, subprocess, time
path = pathlib.Path("out/result.txt")
path.parent.mkdir(exist_ok=True)
worker = subprocess.Popen(["sleep", "30"])
if not path.exists():
    with open(path, "w") as file:
        for number in range(100):
            print(number, "x" * 100, file=file, flush=True)
            time.sleep(0.002)
worker.kill()
"""
CAMPAIGN = """
import sys
sys.path[:0] = [{folder!r}]
import processes, scripts_under_test, kills, pairs, disks
from campaign import Campaigner
processes.LEFT_SECONDS = 0.2
script = scripts_under_test.Script("faulty", {script!r}, (), {{}})
scripts_under_test.SCRIPTS["faulty"] = pairs.ALL["faulty"] = script
pairs.NAMES["two"] = ("faulty", "faulty")
with Campaigner(load=False) as campaigner:
    world = campaigner.world(scripts_under_test.SMALL)
    campaigner.run("kills", kills.kills(world, ["faulty"]), 12)
    campaigner.run("pairs", pairs.pairs(world, ["two"]), 2)
    campaigner.run("disks", disks.disks(world, ["faulty"]), 4)
"""


def test_faults_are_found(tmp_path: Path) -> None:
    """The campaigns find a file that is not whole, a process left behind and a traceback."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "campaign.py").write_text(
        CAMPAIGN.format(folder=str(ROOT / "tests" / "campaigns"), script=str(tmp_path / "faulty.py"))
    )
    result = run_script(tmp_path / "campaign.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    killed, paired, filled = re.split(r"^pairs: |^disks: ", result.stdout, flags=re.MULTILINE)
    assert "kills: 12 cases" in killed
    assert "out/result.txt has its final name but is not whole" in killed
    assert "processes left after SIGKILL" in killed
    assert "run again: out/result.txt is not that of an unbroken run" in killed
    assert "2 cases" in paired
    assert "traceback: OSError: [Errno #] No space left on device" in filled
