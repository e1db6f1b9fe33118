"""Every command of docs/walkthrough.md, in order and as printed but for sizes; README.md prints some of them.

What stands in for what: downloads are a synthetic collection and tiny checkpoints, in the very folders that
download_data.sh fills; ``roberta-base`` is a folder of that name; training stops after a few steps; flags that name
GPUs are left out where there are none.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import documented
import pytest
import torch
from documented import README, WALKTHROUGH, YOUR_RETRIEVER, Printed
from helpers import call_script, load_script

SIZES = {  # appended
    "star/train.py": ("--max_steps", "2", "--per_device_train_batch_size", "4"),
    "adore/train.py": ("--per_gpu_batch_size", "8", "--logging_steps", "1"),
}
GPU_FLAGS = ("--faiss_gpu_index", "--faiss_gpus")
ELSEWHERE = (  # what sets up, and what other tests run
    "python3 -m venv",
    "pip install",
    "bash quickstart.sh",
    "bash run_tests.sh",
    "python benchmarks/",
    "python reproduce.py",
    "python search.py",
    "python tests/campaigns",
    "first=",  # of a Slurm file
)
QUERIES = {"train": 40, "dev": 100, "test": 5}  # judged, of 500 documents; enough for two runs to differ


def without_gpus(words: tuple[str, ...]) -> list[str]:
    """The words without the flags that name GPUs which are not there, and their numbers, or that need one."""
    kept, dropping = [], False
    for word in words:
        dropping = word in GPU_FLAGS or (dropping and word.isdigit())
        if not dropping or torch.cuda.device_count() > 3:
            kept.append(word)
    return kept if torch.cuda.is_available() else [word for word in kept if word != "--bf16"]


def run(command: Printed) -> None:
    """Run a command in this process; fail with the place where it is printed."""
    script = command.script
    words = [*without_gpus(command.words[2:]), *SIZES.get(script, ())]
    try:
        call_script(script, *words)
    except SystemExit as end:
        pytest.fail(f"{command.where}: 'python {script} {' '.join(words)}' ended with exit code {end.code}")


def ours(commands: list[Printed]) -> Iterator[Printed]:
    """Those that the walk-through runs here, each once; fails for a command of a kind that is not known."""
    seen = set()
    for command in map(documented.in_one_process, commands):
        line = " ".join(command.words)
        if command.script in documented.SCRIPTS:
            if line not in seen:
                seen.add(line)
                yield command
        elif not (line.startswith(ELSEWHERE) or line.split()[:2] == ["bash", "download_data.sh"]):
            pytest.fail(f"{command.where}: '{line}' is run by no test; teach one to run it")


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, after the downloads."""
    synthetic = load_script("benchmarks/synthetic.py")
    synthetic.write_published(tmp_path / "data")
    for data_type, counts in synthetic.COUNTS.items():
        (tmp_path / "data" / data_type / "dataset").mkdir(parents=True)
        few = synthetic.Counts(500, counts.scaled(0).queries | QUERIES, QUERIES, QUERIES)
        synthetic.write_collection(data_type, few, tmp_path / "data" / data_type / "dataset")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("downloaded")
def test_every_command_of_the_walkthrough_runs_after_those_before_it() -> None:
    commands = list(ours(documented.in_document(WALKTHROUGH)))
    assert {command.script for command in commands} == set(documented.SCRIPTS)
    made_by: dict[Path, Printed] = {}
    for command in commands:
        before = set(Path().rglob("*"))
        run(command)
        made_by |= dict.fromkeys(set(Path().rglob("*")) - before, command)
    check_readme(commands, made_by)
    # What it says of documents: the commands behind the sentence, with doc for passage.
    text = WALKTHROUGH.read_text(encoding="utf-8")
    said = "For documents, replace `passage` with `doc`, give 512 as `--max_doc_length`, and add the cut 100"
    assert said in text
    for command in ours(documented.in_text(text.partition(said)[2], "for documents")):
        run(for_documents(command))
    # And of the STAR model that was trained just now, in place of the published one.
    said = "replace `trained_models/star` with `star_train/models` and `evaluate/star` with `evaluate/star_train`"
    assert said in text
    for command in commands:
        line = " ".join(command.words)
        if "adore_train" in line and "passage" in line:
            run(from_own_star(command))


def check_readme(commands: list[Printed], made_by: dict[Path, Printed]) -> None:
    """README's commands are some of these, and what one of them names was downloaded or made by one before it.

    Those about one's own model are all the commands of docs/your-retriever.md, in its order. That page has a test.
    """
    lines, so_far = {command.words for command in commands}, set()
    theirs = [command.words for command in documented.in_document(YOUR_RETRIEVER)]
    printed = documented.in_document(README)
    assert [command.words for command in printed if command.words in theirs] == theirs
    for command in ours([command for command in printed if command.words not in theirs]):
        assert command.words in lines, command
        so_far.add(command.words)
        for word in command.words:
            if Path(word) in made_by:
                assert made_by[Path(word)].words in so_far, f"{command.where}: nothing before it makes {word}"


def for_documents(command: Printed) -> Printed:
    words = [re.sub(r"\bpassage\b", "doc", word) for word in command.words]
    if "--max_doc_length" in words:
        words[words.index("--max_doc_length") + 1] = "512"
    if command.script == "msmarco_eval.py":
        words.append("100")
    return Printed(command.where, tuple(words))


def from_own_star(command: Printed) -> Printed:
    words = [
        word.replace("trained_models/star", "star_train/models")
        .replace("evaluate/star/", "evaluate/star_train/")
        .replace("adore_train", "adore_own")
        for word in command.words
    ]
    return Printed(command.where, tuple(words))
