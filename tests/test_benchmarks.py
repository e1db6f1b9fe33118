"""The benchmarks run, at a small size, find the same as the published way, and write what they print."""

import json
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import documented
import pytest
from helpers import ROOT, call_script, load_script, must_run
from test_walkthrough import SIZES


@pytest.fixture(autouse=True)
def small_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of the machine is measured with a small product."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(import_module("measuring"), "SQUARE", 64)


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


def test_importing(tmp_path: Path) -> None:
    printed, results = run_benchmark("importing", tmp_path, "--passages", 300, "--rounds", 1, "--folder", tmp_path)
    assert [way["way"] for way in results["ways"]] == ["lines", "JSON", "import"]
    assert all(way["seconds"] > 0 and way["memory_gb"] > 0 for way in results["ways"])
    assert "| import_collection.py |" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"results.json"}


def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps run in this process: starting so many would take a minute."""

    def run_here(script: str, *flags: Any) -> dict[str, Any]:
        return json.loads(must_run(script, *flags, cwd=tmp_path))

    monkeypatch.setattr(load_script("benchmarks/training.py"), "run_apart", run_here)
    _, results = run_benchmark(
        "training",
        tmp_path,
        "--documents",
        2000,
        "--batch",
        4,
        "--large_batch",
        6,
        "--chunk",
        2,
        "--layers",
        1,
        "--rounds",
        1,
    )
    check_ways(results["adore"])
    check_ways(results["star"])
    assert [way["queries"] for way in results["star"]] == [4, 4, 4, 4, 6]
    assert all(way["difference"] < 1e-6 for way in results["star"])


def test_gpu(tmp_path: Path) -> None:
    """Here it runs on the CPU."""
    sizes = ("--passages", 3, "--documents", 300, "--batch", 2, "--layers", 1, "--vocabulary", 100)
    sizes += ("--rounds", 1, "--steps", 1, "--square", 64, "--mined", 64)
    printed, results = run_benchmark("gpu", tmp_path, *sizes)
    ways = [row["way"] for row in results["results"]]
    assert [way.partition(",")[0].split()[0] for way in ways] == [
        *["encoding"] * 3,
        *("making", "a", "a", "mining", "mining"),
        *["STAR"] * 3,
        *("ADORE", "ADORE", "LAMB"),
    ]
    assert all(row["seconds"] > 0 and row["rate"] > 0 and row["peak_gb"] > 0 for row in results["results"])
    assert set(results["rates"]) == {"float32", "bfloat16", "float16", "int8"}
    assert printed.count("tokens/s") == 3
    _, results = run_benchmark("gpu", tmp_path, *sizes, "--parts", "lamb")
    assert [row["way"] for row in results["results"]] == ["LAMB"]


def test_scaling(tmp_path: Path) -> None:
    _, results = run_benchmark(
        "scaling", tmp_path, "--folder", tmp_path, "--rows", 11_000, "--dim", 16, "--search_memory_gb", 0.5
    )
    assert [row["rows"] for row in results["search"]] == [11_000] * 4
    assert [row["rows"] for row in results["preprocessing"]] == [11_000]
    # Importing torch's build with CUDA takes 0.7 GB by itself.
    assert all(row["peak_gb"] - row["libraries_gb"] < 0.5 for row in results["search"])
    assert not list(tmp_path.glob("*.memmap")) and not list(tmp_path.glob("*.int8*"))


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
def test_too_little_is_refused(
    tmp_path: Path, flags: tuple[Any, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = flags
    with pytest.raises(SystemExit) as ended, chdir(tmp_path):
        call_script(f"benchmarks/{name}.py", *rest)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == sentence
    assert not list(tmp_path.iterdir())


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, whose commands run in this process, in small batches: starting so many would take minutes."""
    module = load_script("benchmarks/rehearsal.py")
    ran: list[str] = []

    def in_process(words: list[str], folder: Path, log: Path, stop: bool = False) -> dict[str, Any]:
        ran.append(" ".join(words))
        call_script(*words, *SIZES.get(words[0], ()))
        return {"seconds": 1.0, "peak_gb": 0.5, "disk_gb": 0.1, "code": 0, "stopped": False}

    monkeypatch.setattr(module, "measure", in_process)
    module.ran = ran
    return module


def rehearse(folder: Path, *flags: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call_script("benchmarks/rehearsal.py", "--folder", folder, *flags)


def test_rehearsal(tmp_path: Path, rehearsal: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--scale", 0.001)
    rehearse(tmp_path, *flags, "--output", tmp_path / "results.json")
    table, printed = (tmp_path / "rehearsal.md").read_text(), capsys.readouterr().out.splitlines()
    assert set(table.splitlines()) <= set(printed)
    assert "passage: 8,842 documents, 533 training judgements" in table
    assert "doc: 3,214 documents, 367 training judgements" in table
    assert len(rehearsal.ran) == len(json.loads((tmp_path / "results.json").read_text())["results"])
    for root in (tmp_path / "data" / "passage", tmp_path / "data" / "doc"):
        assert {"bm25_retrieve", "star_train", "official_runs"} <= {path.name for path in root.iterdir()}
        assert (root / "evaluate" / "star_train" / "dev.rank.tsv").exists()
    ran = len(rehearsal.ran)
    rehearse(tmp_path, *flags)  # everything has its result
    assert len(rehearsal.ran) == ran
    with pytest.raises(SystemExit):
        rehearse(tmp_path, "--scale", 0.002)
    assert "belongs to a rehearsal with" in capsys.readouterr().err


def test_rehearsal_has_every_flag_that_is_documented(rehearsal: ModuleType) -> None:
    """But for GPUs and folders; what stands for a count of MS MARCO's is in it too."""
    plans = [rehearsal.Plan(name, counts, 10**6, True, True) for name, counts in rehearsal.COUNTS.items()]
    rehearsed: dict[str, set[str]] = {}
    for plan in plans:
        for step in plan.commands():
            words = step.line.split()
            rehearsed.setdefault(words[0], set()).update(word for word in words if word.startswith("-"))
    assert set(rehearsed) == set(documented.SCRIPTS)
    for printed in documented.in_documents():
        if printed.script in documented.SCRIPTS:
            flags = {word for word in printed.words if word.startswith("-")} - {"--faiss_gpu_index", "--output_dir"}
            assert flags <= rehearsed[printed.script], printed
    counts = plans[0].counts
    assert (counts.documents, counts.judged, counts.queries["lead"], counts.judgements["train"]) == (
        8_841_823,
        {"train": 502_939, "dev": 6_980, "test": 43},
        6_837,
        532_761,
    )
    counts = plans[1].counts
    assert (counts.documents, counts.judged, counts.queries["lead"], counts.judgements["train"]) == (
        3_213_835,
        {"train": 367_013, "dev": 5_193, "test": 43},
        5_793,
        367_013,
    )


def test_rehearsal_at_full_size_leaves_out_and_retrieves_among_fewer(rehearsal: ModuleType) -> None:
    steps = list(rehearsal.Plan("passage", rehearsal.COUNTS["passage"], 500_000, False, False).commands())
    left_out = [step.line for step in steps if step.left_out]
    assert len(left_out) == 2
    assert all("bm25" in line or "--negatives star" in line for line in left_out)
    for step in steps:
        assert ("--mode train" in step.line) == ("--data_root ./few" in step.line and "preprocess.py" not in step.line)


def test_rehearsal_measures_all_processes_and_stops_what_is_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_script("benchmarks/rehearsal.py")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "work").mkdir()
    child = "import sys, time; held = b'x' * 100_000_000; print('loss=1', flush=True); time.sleep(60)"
    (tmp_path / "parent.py").write_text(
        f"import subprocess, sys, time\nheld = b'x' * 100_000_000\nopen('file', 'wb').write(held)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    child.kill()\n    sys.exit(130)\n"
    )
    result = module.measure(["parent.py"], tmp_path / "work", tmp_path / "work" / "logs" / "log", stop=True)
    assert result["stopped"] and result["code"] == 130
    assert 0.2 <= result["peak_gb"] < 0.3
    assert 0.1 <= result["disk_gb"] < 0.11
    assert result["seconds"] < 30


def test_rehearsal_stops_at_a_failure_and_goes_on_there(
    tmp_path: Path, rehearsal: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = iter([0, 2, 0, 0])

    def two_commands(plan: Any) -> list[Any]:
        return [rehearsal.Command("one.py"), rehearsal.Command("two.py", search=True)]

    def measure(words: list[str], folder: Path, log: Path, stop: bool = False) -> dict[str, Any]:
        rehearsal.ran.append(words[0])
        log.parent.mkdir(exist_ok=True)
        log.write_text("error: too much\n")
        return {"seconds": 1.0, "peak_gb": 4.0, "disk_gb": 0.0, "code": next(results), "stopped": False}

    monkeypatch.setattr(rehearsal.Plan, "prepare", lambda plan, folder: None)
    monkeypatch.setattr(rehearsal.Plan, "commands", two_commands)
    monkeypatch.setattr(rehearsal, "measure", measure)
    for expected in ("ended with exit code 2: error: too much", "1 commands took more memory than their limit: one.py"):
        with pytest.raises(SystemExit):
            rehearse(tmp_path, "--scale", 0.001, "--data_type", "passage")
        assert expected in capsys.readouterr().err.replace("passage: ", "")
    assert rehearsal.ran == ["one.py", "two.py", "two.py"]
    assert "4.00 **over**" in (tmp_path / "rehearsal.md").read_text()


def test_rehearsal_needs_room(
    tmp_path: Path, rehearsal: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with pytest.raises(SystemExit):
        rehearse(tmp_path)
    assert "GB, but its disk has only 1.0" in capsys.readouterr().err
