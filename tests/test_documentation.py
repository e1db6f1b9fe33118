"""What is written: the README is short, links resolve, tables are whole, and what is named exists."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import documented
import pytest
from documented import CHANGELOG, DOCUMENTS, README, WALKTHROUGH, Printed
from helpers import ROOT, parse_flags
from transformers import TrainingArguments

WORDS = 1000  # of the README, without its commands: five minutes
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^][]*\]\(([^()\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*)")
NAMED = re.compile(r"(?:\w+/)*\w+\.(?:py|sh)\b")
PLACEHOLDER = "NAME"
TORCHRUN = {"max_restarts", "nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "standalone"}
SLURM = {"cpus", "gpus", "nodes", "ntasks"}  # the first words of sbatch's flags
PIP = {"dest", "no", "platform", "python", "requirement"}  # likewise
OTHERS = {"logdir", *TORCHRUN, *SLURM, *PIP}  # the first is tensorboard's
FOLDERS = (
    *(".", "drhard", "star", "adore", "tests", "tests/campaigns", "benchmarks"),
    *("data", "data/sample", "data/gcide", "data/code"),
)
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in FOLDERS
    for pattern in ("*.py", "*.sh")
    for path in sorted((ROOT / folder).glob(pattern))
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


def prose(text: str) -> str:
    """A document without its code blocks."""
    return FENCED.sub("", text)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", prose(path.read_text(encoding="utf-8")), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"`|\[|\]\([^)]*\)", "", heading)).lower().replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def tables(text: str) -> Iterator[list[str]]:
    """The tables of a document, each a list of its lines."""
    for block in re.findall(r"(?:^\|.*\n?)+", prose(text), re.MULTILINE):
        yield block.rstrip("\n").split("\n")


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", CODE.sub("", line)))


def test_readme_is_read_in_five_minutes() -> None:
    assert len(prose(README.read_text(encoding="utf-8")).split()) <= WORDS


def test_commands_of_the_readme_are_those_of_the_documents_behind_it() -> None:
    behind = {
        command.words
        for path in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md")
        for command in documented.in_document(path)
    }
    for command in documented.in_document(README):
        assert command.words in behind, command


@each_document
def test_links_resolve(path: Path) -> None:
    for link in LINK.findall(CODE.sub("", prose(path.read_text(encoding="utf-8")))):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path}: {link}"
        assert file.is_relative_to(ROOT), f"{path}: {link}"
        if anchor:
            assert anchor in anchors(file), f"{path}: {link}; there are {sorted(anchors(file))}"


@each_document
def test_tables_are_whole(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for table in tables(text):
        assert re.fullmatch(r"\|(:?-+:?\|)+", table[1]), table[0]
        assert {cells(line) for line in table} == {cells(table[0])}, table[0]
        assert f"\n\n{table[0]}\n" in text  # else it is no table


def is_flag(name: str) -> bool:
    """Whether a script or the library knows a flag of this name."""
    return (
        name in OTHERS
        or name in TrainingArguments.__dataclass_fields__
        or re.search(rf'"--{name}"|^    {name}: |\("{name}",', SOURCES, re.MULTILINE) is not None
    )


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path != CHANGELOG], ids=name_of)
def test_what_is_named_exists(path: Path) -> None:
    """Scripts and flags in code blocks, and whatever sentences name in code."""
    text = path.read_text(encoding="utf-8")
    code = FENCED.findall(text) + CODE.findall(prose(text))
    for part in code:
        for name in FLAG.findall(part):
            assert is_flag(name), f"{path}: --{name}"
    for name in {name for part in code for name in NAMED.findall(part) if PLACEHOLDER not in name}:
        exists = (ROOT / name).exists() if "/" in name else any((ROOT / folder / name).exists() for folder in FOLDERS)
        assert exists, f"{path}: {name}"


def commands() -> list[Printed]:
    return [command for path in DOCUMENTS for command in documented.in_document(path)]


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.where}: {command.words[-1]}")
def test_printed_script_exists_and_knows_the_flags(command: Printed) -> None:
    """Scripts of the walk-through run in test_walkthrough.py; others are looked at."""
    program, *words = command.words
    if program not in ("python", "bash"):
        return
    script = ROOT / words[0]
    assert script.exists(), command
    if command.script in documented.SCRIPTS:
        return
    own = [script, script.with_suffix(".py"), script.with_name("measuring.py"), ROOT / "drhard" / "making.py"]
    beside = script.glob("*.py") if script.is_dir() else own
    source = "\n".join(path.read_text(encoding="utf-8") for path in beside if path.exists())
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, command


@pytest.mark.parametrize(
    "command",
    [command for command in commands() if "torchrun" in command.words],
    ids=lambda command: f"{command.where}: {command.words[-1]}",
)
def test_scripts_know_the_flags_behind_torchrun(command: Printed) -> None:
    words = command.words[command.words.index("torchrun") + 1 :]
    script = next(number for number, word in enumerate(words) if word.endswith(".py"))
    assert {word[2:] for word in words[:script] if word.startswith("--")} <= TORCHRUN
    parse_flags(words[script], *words[script + 1 :])


def test_walkthrough_runs_every_script_of_the_pipeline() -> None:
    assert {command.script for command in documented.in_document(WALKTHROUGH)} >= set(documented.SCRIPTS)
