"""Several processes: scripts share their work under torchrun, or refuse it in one sentence."""

import ast
import json
import subprocess
from pathlib import Path

from drhard import processes

import pytest
import sharing
import torch
from helpers import ROOT, given, refused, run_python, save_tiny, write_collection
from safetensors.torch import load_file

SHARING = {"star/train.py"}  # the scripts whose processes share the work
SCRIPTS = {
    str(path.relative_to(ROOT)): path
    for folder in (".", "star", "adore", "data/sample", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
}


def decorators(path: Path) -> set[str]:
    """What decorates the main of a script."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    [main] = [function for function in functions if function.name == "main"]
    return {node.id for node in main.decorator_list if isinstance(node, ast.Name)}


def test_every_script_shares_its_work_or_refuses() -> None:
    assert len(SCRIPTS) > 20
    for name, path in SCRIPTS.items():
        assert decorators(path) == {"shared_command" if name in SHARING else "command"}, name


@pytest.mark.parametrize("script", ["preprocess.py", "adore/train.py", "msmarco_eval.py"])
def test_a_script_for_one_process_refuses_several(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_run", processes._Run(0, 3))
    expected = f"error: {Path(script).name} works in one process, and this run has 3; start it with python, without "
    assert refused(script, "--help", capsys=capsys).startswith(expected)


def test_processes_other_than_the_first_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_run", processes._Run(1, 3))
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    with given("msmarco_eval.py") as script, pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"WORLD_SIZE": "4"}, (0, 1, 0)),  # a variable of something else
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
    ],
)
def test_the_environment_says_which_process_this_is(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in processes._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = processes._read_environment()
    assert (found.rank, found.count, found.local_rank) == expected


@pytest.mark.parametrize("total", [0, 1, 5, 6, 7])
def test_parts_of_a_batch_are_whole_and_in_order(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "_run", processes._Run(rank, 3))
        parts.append(list(range(total))[processes.own_part(total)])
    assert sum(parts, []) == list(range(total))
    assert [len(part) for part in parts] == processes.split(total)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# STAR and its baselines: 9 queries in batches of 4. The last batch has one query, so the second process has none.

QUERIES, DOCUMENTS = 9, 30
CASES: dict[str, tuple[object, ...]] = {
    "star": (),
    "in-batch": ("--negatives", "in-batch"),
    "random": ("--negatives", "random"),
    "hard": ("--negatives", "hard"),
    "chunks": ("--chunk_size", 1),
    "accumulation": ("--gradient_accumulation_steps", 2),
    "checkpointing": ("--gradient_checkpointing", "--per_query_hard_num", 3),
    "mined": ("--negative_ranks", "1-5"),
}


def star_arguments(data: Path, folder: Path, batch: int, case: str, init: str = "init") -> list[object]:
    hard = () if case in ("in-batch", "random", "mined") else ("--hardneg_path", data / "hard.json")
    # With a smaller epsilon, the optimizer would turn the rounding of gradients that are nearly 0 into whole steps. The
    # scores of a tiny model are up to 16, and so is their rounding; the scale makes both smaller.
    numbers = "--adam_epsilon 1e-3 --learning_rate 2e-4 --score_scale 0.1 --num_train_epochs 2 --warmup_steps 1"
    numbers += " --logging_steps 1 --save_steps 2"
    return [
        *("--do_train", "--max_query_length", 6, "--max_doc_length", 10, "--no_cuda", *hard, *numbers.split()),
        *("--preprocess_dir", data / "preprocess", "--init_path", data / init, "--output_dir", folder / case),
        *("--logging_dir", folder / "log" / case, "--per_device_train_batch_size", batch, "--save_total_limit", 0),
        *CASES.get(case, ()),
    ]


def torchrun(*words: object, count: int = 2) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, *words)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_collection(folder / "preprocess", DOCUMENTS, QUERIES)
    (folder / "hard.json").write_text(json.dumps({str(query): list(range(12, 30)) for query in range(QUERIES)}))
    save_tiny(folder / "init")
    save_tiny(folder / "dropout", dropout=0.2)
    return folder


@pytest.fixture(scope="module")
def by_two(data: Path) -> Path:
    """What two processes write: each case, and one with dropout, also broken off and resumed."""
    folder = data / "two"
    folder.mkdir()
    steps = [{"arguments": star_arguments(data, folder, 2, case), "trace": folder / f"{case}.pt"} for case in CASES] + [
        {"arguments": star_arguments(data, folder, 2, "whole", "dropout"), "trace": folder / "whole.pt"},
        {
            "arguments": star_arguments(data, folder, 2, "resumed", "dropout"),
            "trace": folder / "resumed.pt",
            "broken": [folder / "whole", folder / "resumed", 2],
        },
    ]
    (folder / "runs.json").write_text(json.dumps(steps, default=str))
    ended = torchrun(ROOT / "tests" / "sharing.py", folder / "runs.json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"Wrote {folder / 'star'}") == 1
    return folder


@pytest.fixture(scope="module")
def by_one(data: Path) -> Path:
    folder = data / "one"
    folder.mkdir()
    for case in CASES:
        sharing.train(star_arguments(data, folder, 4, case), folder / f"{case}.pt")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_and_gradients_of_one(by_one: Path, by_two: Path, case: str) -> None:
    one, two = (torch.load(folder / f"{case}.pt") for folder in (by_one, by_two))
    assert len(one["losses"]) == 6 and len(set(one["losses"])) > 3
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6, rel=1e-6)
    assert len(two["gradients"]) == len(one["gradients"])
    # The first update starts from the same weights; the optimizer then turns rounding into small differences.
    assert (two["gradients"][0] - one["gradients"][0]).abs().max() <= 1e-6


def test_a_training_of_two_processes_resumes_as_if_unbroken(by_two: Path) -> None:
    whole, resumed = (load_file(by_two / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(torch.load(by_two / "resumed.pt")["losses"]) == 4


def test_one_process_resumes_what_two_began(data: Path, by_two: Path, by_one: Path) -> None:
    folder = data / "fewer"
    sharing.break_off(by_two / "star", folder / "star", 2)
    sharing.train(star_arguments(data, folder, 4, "star"), folder / "star.pt")
    resumed, one = (torch.load(parent / "star.pt") for parent in (folder, by_one))
    assert resumed["losses"] == pytest.approx(one["losses"][2:], abs=1e-5)


def test_bad_input_of_all_processes_is_one_sentence(data: Path, tmp_path: Path) -> None:
    arguments = star_arguments(data, tmp_path, 2, "star", "nowhere")
    ended = torchrun(ROOT / "star" / "train.py", *arguments)
    assert ended.returncode != 0
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "nowhere" in errors[0]
