"""Several processes: scripts share their work under torchrun, or refuse it in one sentence."""

import ast
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import drhard.windows
from drhard import processes
from drhard.adore import AdoreTraining
from drhard.embeddings import encode
from drhard.errors import InputError
from drhard.tokens import PASSAGES, TokenMemmap

import numpy as np
import pytest
import sharing
import torch
from helpers import ROOT, given, refused, run_python, save_tiny, snapshot, the_error, tiny_model, write_collection
from safetensors.torch import load_file

# The scripts whose processes share the work
SHARING = {
    *("adore/inference.py", "adore/train.py", "preprocess.py"),
    *("star/inference.py", "star/prepare_hardneg.py", "star/train.py"),
}
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


@pytest.mark.parametrize("script", ["cvt_back.py", "search.py", "msmarco_eval.py"])
def test_a_script_for_one_process_refuses_several(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_run", processes._Run(0, 3))
    expected = f"error: {Path(script).name} works in one process, and this run has 3; start it with python, without "
    assert refused(script, "--help", capsys=capsys).startswith(expected)


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({"SLURM_STEP_NUM_TASKS": "3"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "mpirun"),
        ({"PMI_SIZE": "3"}, "mpirun"),
        ({"SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "3", "WORLD_SIZE": "3"}, "mpirun"),
        ({"SLURM_STEP_NUM_TASKS": "3", "RANK": "0", "WORLD_SIZE": "1"}, "srun"),  # a torchrun --standalone in each
    ],
)
@pytest.mark.parametrize("script", ["star/train.py", "preprocess.py"])
def test_copies_that_do_not_know_of_each_other_are_refused(
    variables: dict[str, str],
    launcher: str,
    script: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_run", processes._read_environment())
    sentence = refused(script, "--help", capsys=capsys)
    assert sentence.startswith(f"error: {launcher} started 3 copies of this command, which would overwrite each other")


def test_one_torchrun_on_each_machine_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_run", processes._Run(3, 16))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert processes.find_copies() is None
    monkeypatch.setattr(processes, "_run", processes._Run())
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_NTASKS", "8")  # in the script of a job
    assert processes.find_copies() is None


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


def test_libraries_see_no_variables_of_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_run", processes._Run())
    for name in ("RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_DYNAMO_BACKEND", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    processes.start()
    assert {name for name in os.environ if "RANK" in name or "WORLD" in name or "ACCELERATE" in name} == set()
    assert os.environ["MASTER_PORT"] == "1"


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
    "mined": ("--negative_ranks", "1-5", "--eval_split", "dev", "--metric", "RR@5"),
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


ADORE = {
    "adore": (),
    "cut and added up": ("--metric_cut", 3, "--gradient_accumulation_steps", 2),
    "compressed": ("--index_factory", "SQ8"),
}


def adore_arguments(data: Path, folder: Path, batch: int, case: str, init: str = "init") -> list[object]:
    numbers = "--adam_epsilon 1e-3 --learning_rate 2e-4 --score_scale 0.1 --num_train_epochs 2 --warmup_steps 1"
    numbers += " --logging_steps 1 --neg_topk 20 --max_seq_length 6 --eval_split dev --metric RR@5"
    return [
        *("--preprocess_dir", data / "preprocess", "--pembed_path", data / "documents" / "passages.memmap"),
        *("--init_path", data / init, "--model_save_dir", folder / case, "--log_dir", folder / "log" / case),
        *("--per_gpu_batch_size", batch, *numbers.split(), *ADORE.get(case, ())),
    ]


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Start two processes. Forks cover the same code, so coverage need not slow them down."""
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, *words)
    return run_python(*words, COVERAGE_PROCESS_CONFIG="")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    for mode in ("train", "dev"):
        write_collection(folder / "preprocess", DOCUMENTS, QUERIES, mode)
    (folder / "hard.json").write_text(json.dumps({str(query): list(range(12, 30)) for query in range(QUERIES)}))
    save_tiny(folder / "init")
    save_tiny(folder / "dropout", dropout=0.2)
    passages = TokenMemmap.open(folder / "preprocess", PASSAGES, 10)
    encode(tiny_model(), passages, folder / "documents" / "passages.memmap", 8, torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Callable[[int], Path]:
    """The folder of what 1, 2 or 4 processes train: each case with batches of 4. The odd last batch has one query."""

    @cache
    def train(count: int) -> Path:
        folder = data / f"trained{count}"
        folder.mkdir()

        def work() -> None:
            for case in (*CASES, *ADORE):
                script, arguments = ("adore", adore_arguments) if case in ADORE else ("star", star_arguments)
                trace = folder / f"{case}.pt"
                sharing.train(f"{script}/train.py", arguments(data, folder, 4 // count, case), trace)

        sharing.share(count, work, folder / "printed")
        return folder

    return train


@pytest.mark.parametrize("case", [*CASES, *ADORE])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_have_the_losses_and_gradients_of_one(trained: Callable[[int], Path], case: str, count: int) -> None:
    one, several = (torch.load(trained(number) / f"{case}.pt") for number in (1, count))
    assert len(one["losses"]) == 6 and len(set(one["losses"])) > 3
    assert several["losses"] == pytest.approx(one["losses"], abs=1e-6, rel=1e-6)
    assert len(several["gradients"]) == len(one["gradients"])
    # The first update starts from the same weights; the optimizer then turns rounding into small differences.
    assert (several["gradients"][0] - one["gradients"][0]).abs().max() <= 1e-6
    assert (trained(count) / "printed" / "1.txt").read_text() == ""
    written = trained(count) / case / "epoch-2" if case in ADORE else trained(count) / case
    assert (trained(count) / "printed" / "0.txt").read_text().count(f"Wrote {written}\n") == 1


def break_off(whole: Path, folder: Path, step: int) -> None:
    """Make ``folder`` what a training would have left that was killed after ``step``."""
    shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(whole / "training.json", folder)


def test_a_training_of_two_processes_resumes_as_if_unbroken(data: Path, tmp_path: Path) -> None:
    def train(case: str) -> None:
        sharing.train("star/train.py", star_arguments(data, tmp_path, 2, case, "dropout"), tmp_path / f"{case}.pt")

    sharing.share(2, lambda: train("whole"), tmp_path / "printed")
    break_off(tmp_path / "whole", tmp_path / "resumed", 2)
    sharing.share(2, lambda: train("resumed"), tmp_path / "printed")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(torch.load(tmp_path / "resumed.pt")["losses"]) == 4


def test_adore_of_two_processes_resumes_as_if_unbroken(data: Path, tmp_path: Path) -> None:
    """Stopped by SIGTERM in one of them, then killed. One process can go on with what two began."""
    train_step = AdoreTraining._train_step

    def train(case: str, batch: int = 2, fault: signal.Signals | None = None, at: int = 0) -> None:
        def step(self: AdoreTraining, rows: np.ndarray) -> object:
            if self.step == at and fault is not None and processes.rank() == 1:
                os.kill(os.getpid(), fault)
            return train_step(self, rows)

        arguments = adore_arguments(data, tmp_path, batch, case, "dropout")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AdoreTraining, "_train_step", step)
            sharing.train("adore/train.py", arguments, tmp_path / f"{case}.pt")

    log = tmp_path / "printed"
    sharing.share(2, lambda: train("whole"), log)
    stopped = sharing.start_processes(2, lambda: train("broken", 2, signal.SIGTERM, 3), log / "stopped")
    assert sharing.wait_for(stopped) == [130, 130]
    shutil.copytree(tmp_path / "broken", tmp_path / "fewer")
    killed = sharing.start_processes(2, lambda: train("broken", 2, signal.SIGKILL, 5), log / "killed")
    assert sharing.wait_for(killed) == [2, -signal.SIGKILL]
    assert the_error((log / "killed" / "0.txt").read_text()) == f"error: {processes.LEFT_ALONE}"
    sharing.share(2, lambda: train("broken"), log)
    whole, broken = (load_file(tmp_path / name / "epoch-2" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    train("fewer", 4)
    losses = [torch.load(tmp_path / f"{name}.pt")["losses"] for name in ("whole", "fewer")]
    assert len(losses[0]) == 6 and len(losses[1]) == 2


def test_one_process_resumes_what_two_began(data: Path, trained: Callable[[int], Path], tmp_path: Path) -> None:
    break_off(trained(2) / "star", tmp_path / "star", 2)
    sharing.train("star/train.py", star_arguments(data, tmp_path, 4, "star"), tmp_path / "star.pt")
    resumed, one = (torch.load(parent / "star.pt") for parent in (tmp_path, trained(1)))
    assert resumed["losses"] == pytest.approx(one["losses"][2:], abs=1e-5)


# Encoding, searching and mining: 30 passages in windows and blocks of 7


def retrieve(data: Path, folder: Path) -> None:
    """Run the scripts that encode, search and mine."""
    both = ["--preprocess_dir", data / "preprocess", "--no_cuda"]
    star = [*both, "--data_type", "passage", "--max_query_length", 6, "--max_doc_length", 10]
    encoded = folder / "star"
    sharing.run_script(
        "star/inference.py", *star, "--model_dir", data / "init", "--output_dir", encoded, "--mode", "dev", "--topk", 25
    )
    mined = ["--model_dir", data / "init", "--output_dir", folder / "mined", "--mode", "train", "--topk", 12]
    sharing.run_script("star/prepare_hardneg.py", *star, *mined)
    adore = ["--model_dir", data / "dropout", "--output_dir", folder / "adore", "--mode", "dev", "--topk", 3]
    sharing.run_script("adore/inference.py", *both, *adore, "--dmemmap_path", encoded / "passages.memmap")


def same_files(folder: Path, expected: Path) -> bool:
    found = [snapshot(parent / name) for parent in (folder, expected) for name in ("star", "mined", "adore")]
    return found[:3] == found[3:]


@pytest.fixture(scope="module")
def retrieved(data: Path) -> Path:
    """What one process retrieves."""
    sharing.share(1, lambda: retrieve(data, data / "retrieved"), data / "printed")
    assert len(snapshot(data / "retrieved")) >= 15
    return data / "retrieved"


@pytest.mark.parametrize("count", [2, 3])
def test_processes_retrieve_and_mine_the_same_bytes(data: Path, retrieved: Path, tmp_path: Path, count: int) -> None:
    sharing.share(count, lambda: retrieve(data, tmp_path), tmp_path / "printed")
    assert same_files(tmp_path, retrieved)
    assert (tmp_path / "printed" / "1.txt").read_text() == ""


def test_encoding_goes_on_with_another_number_after_a_kill(data: Path, retrieved: Path, tmp_path: Path) -> None:
    write_at = drhard.windows.write_at

    def die_before_a_mark(descriptor: int, window: memoryview, place: int) -> None:
        if os.fstat(descriptor).st_size == 5:  # the marks of the passages
            if processes.rank() == 1:
                (tmp_path / "dies").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while not (tmp_path / "dies").exists():  # else this process may take all windows
                time.sleep(0.01)
        write_at(descriptor, window, place)

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drhard.windows, "write_at", die_before_a_mark)
            retrieve(data, tmp_path)

    assert sharing.wait_for(sharing.start_processes(2, killed, tmp_path / "killed", silence=5)) == [2, -signal.SIGKILL]
    assert the_error((tmp_path / "killed" / "0.txt").read_text()) == f"error: {processes.LEFT_ALONE}"
    marks = (tmp_path / "star" / "passages.memmap.partial.windows").read_bytes()
    assert len(marks) == 5 and 1 <= marks.count(1) < 5  # what the other process had in work, and what it still read
    sharing.share(3, lambda: retrieve(data, tmp_path), tmp_path / "printed")
    assert same_files(tmp_path, retrieved)


# Faults


def test_no_process_waits_for_a_dead_one(tmp_path: Path) -> None:
    """Neither for its value, nor at the end, nor for its tensors."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_before_a_value() -> None:
        processes.first_value(die)

    def die_before_the_end() -> None:
        if processes.rank() == 0:
            die()
        processes.wait_for_all()

    def die_before_tensors() -> None:
        processes.gather_numbers(1)
        if processes.rank() == 0:
            die()
        processes.gather_numbers(1)

    for work in (die_before_a_value, die_before_the_end, die_before_tensors):
        log = tmp_path / work.__name__
        assert sharing.wait_for(sharing.start_processes(2, work, log, silence=2)) == [-signal.SIGKILL, 2]
        assert (log / "1.txt").read_text() == f"error: {processes.LEFT_ALONE}\n"


def test_what_fails_in_one_process_ends_all_with_one_sentence(tmp_path: Path) -> None:
    def fail_in_a_task() -> None:
        with processes.share_tasks(3) as tasks:
            for task in tasks:
                if task == 1:
                    raise InputError("task 1 is bad")

    def fail_in_the_first() -> None:
        def fail() -> None:
            raise InputError("task 1 is bad")

        processes.first_value(fail)

    for work in (fail_in_a_task, fail_in_the_first):
        log = tmp_path / work.__name__
        assert sharing.wait_for(sharing.start_processes(3, work, log)) == [2, 2, 2]
        assert "".join(path.read_text() for path in log.iterdir()) == "error: task 1 is bad\n"


@pytest.mark.parametrize("script", ["star/train.py", "star/inference.py"])
def test_folders_that_are_not_shared_are_refused(data: Path, tmp_path: Path, script: str) -> None:
    def work() -> None:
        own = tmp_path / f"host{processes.rank()}"
        if script == "star/train.py":
            sharing.run_script(script, *star_arguments(data, own, 2, "star"))
        else:
            retrieve(data, own)

    codes = sharing.wait_for(sharing.start_processes(2, work, tmp_path / "printed"))
    assert codes == [2, 2]
    printed = "".join((tmp_path / "printed" / f"{rank}.txt").read_text() for rank in (0, 1))
    assert "is not one folder for all processes of this run; give one that all machines share" in the_error(printed)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root, and ip of iproute2")
def test_two_hosts_train_and_resume_in_a_shared_folder(
    data: Path, trained: Callable[[int], Path], tmp_path: Path
) -> None:
    def train() -> None:
        sharing.train("star/train.py", star_arguments(data, tmp_path, 2, "star"), tmp_path / "star.pt")
        sharing.train("adore/train.py", adore_arguments(data, tmp_path, 2, "adore"), tmp_path / "adore.pt")

    with sharing.two_hosts() as move:
        sharing.share(2, train, tmp_path / "printed", prepare=move)
        for case in ("star", "adore"):
            found, expected = (torch.load(folder / f"{case}.pt")["losses"] for folder in (tmp_path, trained(2)))
            assert found == expected
        (tmp_path / "star" / "checkpoint.json").unlink()
        (tmp_path / "adore" / "epoch-2" / "config.json").unlink()
        sharing.share(2, train, tmp_path / "printed", prepare=move)
    assert torch.load(tmp_path / "star.pt")["losses"] == torch.load(tmp_path / "adore.pt")["losses"] == []
    assert (tmp_path / "star" / "checkpoint.json").exists()
    assert (tmp_path / "adore" / "epoch-2" / "config.json").exists()


def test_torchrun_restarts_a_killed_process_and_the_weights_are_the_same(data: Path, tmp_path: Path) -> None:
    def train() -> None:
        sharing.run_script("star/train.py", *star_arguments(data, tmp_path, 2, "whole", "dropout"))

    sharing.share(2, train, tmp_path / "printed")
    arguments = star_arguments(data, tmp_path, 2, "killed", "dropout")
    ended = torchrun("--max-restarts", 2, ROOT / "tests" / "sharing.py", "star/train.py", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert f"resuming from {tmp_path / 'killed' / 'checkpoint-2'}" in ended.stdout
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_bad_input_of_all_processes_is_one_sentence(data: Path, tmp_path: Path) -> None:
    def work() -> None:
        sharing.run_script("star/train.py", *star_arguments(data, tmp_path, 2, "star", "nowhere"))

    assert sharing.wait_for(sharing.start_processes(2, work, tmp_path / "printed")) == [2, 2]
    printed = "".join(path.read_text() for path in (tmp_path / "printed").iterdir())
    assert "nowhere" in the_error(printed)


@pytest.mark.parametrize(
    ("gpus", "torchrun", "expected"),
    [(0, True, None), (1, False, None), (1, True, "1 GPU"), (3, True, "3 GPU"), (4, True, "7"), (8, False, "7")],
)
def test_each_process_sees_its_own_gpu(
    gpus: int, torchrun: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth process of four. The user let them see GPUs 4 to 7, if there are four."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(processes, "_run", processes._Run(3, 4, local_rank=3, on_machine=4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is as before after the test
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    if gpus == 4:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    if gpus in (1, 3) and expected:
        with pytest.raises(InputError, match=rf"this machine has {expected}.s. for 4 processes"):
            processes._choose_gpu()
    else:
        processes._choose_gpu()
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == ("3" if gpus == 8 else expected)


def test_bm25_mines_in_one_process(data: Path, tmp_path: Path) -> None:
    def work() -> None:
        options = ["--data_type", "passage", "--mode", "train", "--preprocess_dir", data / "preprocess"]
        sharing.run_script("star/prepare_hardneg.py", *options, "--retriever", "bm25", "--data_root", tmp_path)

    assert sharing.wait_for(sharing.start_processes(2, work, tmp_path / "printed")) == [2, 2]
    printed = "".join(path.read_text() for path in (tmp_path / "printed").iterdir())
    assert "--retriever bm25 works in one process" in the_error(printed)
