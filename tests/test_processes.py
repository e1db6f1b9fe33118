"""Several processes: scripts share their work under torchrun, or refuse it in one sentence."""

import ast
from pathlib import Path

from drhard import processes

import pytest
from helpers import ROOT, given, refused

SHARING: set[str] = set()  # the scripts whose processes share the work
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
