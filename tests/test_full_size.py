"""Every documented command goes through its checks at MS MARCO's counts, up to where its long work begins.

Token memmaps and embeddings have their full size and take no disk: they are files with holes. Lengths and judgements
are real. What the work begins with raises: the model's first batch, the training, the opening of a file whose reading
is the work (texts and runs).
"""

import builtins
import io
import json
import os
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from drhard.adore import AdoreTraining
from drhard.ids import write_ids
from drhard.msmarco import CORPORA
from drhard.roberta_dot import RobertaDot
from drhard.tables import all_tables
from drhard.tokens import PASSAGES, query_name

import documented
import numpy as np
import psutil
import pytest
from documented import Printed
from helpers import call_script, load_script
from test_walkthrough import ours, without_gpus
from transformers import Trainer

DIM = 64  # of an embedding: reading samples of a file with holes of 27 GB takes seconds
LENGTH = 20  # tokens of each text
LOOKED_AT = 200  # rows of which opening a memmap looks at the end
TOKENS = {PASSAGES: 512}  # width of a row; 64 of a query
IN_PROSE = (  # documented in sentences
    "python star/train.py --do_train --max_query_length 24 --max_doc_length 120 --init_path ./data/passage/warmup "
    "--preprocess_dir ./data/passage/preprocess --output_dir ./mined/models --logging_dir ./mined/log",
    "python star/train.py --do_train --max_query_length 24 --max_doc_length 120 --init_path ./data/passage/warmup "
    "--preprocess_dir ./data/passage/preprocess --output_dir ./chosen/models --logging_dir ./chosen/log "
    "--negative_ranks 10-200 --relative_margin 0.05",
    "python star/prepare_hardneg.py --data_type passage --mode train --negative_ranks 10-1000 --relative_margin 0.05",
    "python star/prepare_hardneg.py --data_type doc --mode train --retriever bm25 --negative_ranks 10-200",
    *(
        f"python star/inference.py --data_type {data_type} --mode {mode} --topk 1000 --search_memory_gb 20"
        for data_type in CORPORA
        for mode in ("train", "test", "lead")
    ),
)


class WorkBegins(BaseException):
    """The checks are over. No Exception, so that nothing takes it for a fault."""


def begin(*_: Any, **__: Any) -> None:
    raise WorkBegins


def hole(path: Path, size: int) -> None:
    """A file of ``size`` zeros that takes no disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def write_tokens(folder: Path, name: str, rows: int) -> None:
    width = TOKENS.get(name, 64)
    hole(folder / f"{name}.memmap", rows * width * 4)
    tokens = np.memmap(folder / f"{name}.memmap", dtype=np.int32, mode="r+", shape=(rows, width))
    tokens[np.linspace(0, rows - 1, min(rows, LOOKED_AT)).astype(np.int64), LENGTH - 1] = 2  # </s>
    tokens.flush()
    np.save(folder / f"{name}_length.npy", np.full(rows, LENGTH, dtype=np.int32))
    (folder / f"{name}_meta").write_text(json.dumps({"type": "int32", "total_number": rows, "embedding_size": width}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with both collections, preprocessed and embedded."""
    folder = tmp_path_factory.mktemp("full")
    synthetic = load_script("benchmarks/synthetic.py")
    synthetic.write_published(folder / "data", DIM)
    for data_type, counts in synthetic.COUNTS.items():
        root, corpus = folder / "data" / data_type, CORPORA[data_type]
        hole(root / "dataset" / corpus.collection, 1)
        write_tokens(root / "preprocess", PASSAGES, counts.documents)
        write_ids(root / "preprocess" / "pid2offset.pickle", np.arange(counts.documents))
        for mode, split in corpus.modes.items():
            queries = counts.judged.get(mode, counts.queries[mode])
            write_tokens(root / "preprocess", query_name(mode), queries)
            ids = pickle.dumps({row: row for row in range(queries)}, protocol=3)
            (root / "preprocess" / f"{mode}-qid2offset.pickle").write_bytes(ids)
            with open(root / "dataset" / split.queries, "w") as file:
                file.writelines(f"{qid}\ttext\n" for qid in range(counts.queries[mode]))
            if split.qrels:
                rows, total, graded = np.arange(queries), counts.judgements[mode], mode == "test"
                for path, prefix in (
                    (root / "preprocess" / f"{mode}-qrel.tsv", ""),
                    (root / "dataset" / split.qrels, corpus.pid_prefix),
                ):
                    synthetic.write_judgements(path, rows, total, counts.documents, prefix, graded)
        with open(root / "hard.json", "w") as file:  # as many queries as there are; fewer negatives
            negatives = ", ".join(f'"{row}": [{row}]' for row in range(counts.judged["train"]))
            file.write(f"{{{negatives}}}")
    return folder


def reproduced() -> Iterator[Printed]:
    """The commands of the rows of the paper's tables."""
    for name in ("passage", "doc"):
        for row in all_tables()[name].rows.values():
            for origin in row.trials:
                for step in row.steps(origin):
                    words = shlex.split(step.command)
                    words = words[words[0].startswith("CUDA_VISIBLE_DEVICES=") :]
                    command = Printed(f"reproduce.py show '{row.id}'", tuple(words))
                    if command.script in documented.SCRIPTS:
                        yield command


def data_type_of(words: Sequence[str]) -> str:
    return "doc" if any("doc" in word.split("/") for word in words) else "passage"


def kind_of(command: Printed) -> tuple[str, ...]:
    """What is the same for commands that differ only in paths, or in the GPUs that they name."""
    numbers = {"0": "doc", "1": "passage"}  # what --data_type may be too
    words = [numbers.get(word, word) for word in without_gpus(command.words[2:])]
    plain = [
        f"{word} {following}"
        for word, following in zip(words, [*words[1:], "-"], strict=True)
        if word.startswith("-") and "/" not in following and word not in ("--data_root", "--model_gpu_index")
    ]
    return (data_type_of(command.words), command.script or "", *sorted(plain))


def every_command() -> list[Printed]:
    """One of each kind."""
    # star/train.py without --hardneg_path mines 210 results for each of 502,939 queries.
    in_prose = [Printed("in a sentence", tuple(line.split())) for line in IN_PROSE]
    kinds: dict[tuple[str, ...], Printed] = {}
    for command in [*ours([*documented.in_documents(), *documented.in_scripts(), *in_prose]), *reproduced()]:
        kinds.setdefault(kind_of(command), command)
    return list(kinds.values())


def shown(command: Printed) -> str:
    return f"{command.where}: {' '.join(command.words[1:])}"[:80]


def provide(command: Printed, folder: Path) -> set[Path]:
    """Make what a command reads that commands before it would have made; return the files whose reading is work."""
    words, data_type = command.words[2:], data_type_of(command.words)
    root, documents = Path("data", data_type), load_script("benchmarks/synthetic.py").COUNTS[data_type].documents
    work = {folder / "data" / name / "dataset" / corpus.collection for name, corpus in CORPORA.items()}
    for flag, value in zip(["", *words], words, strict=False):
        if command.script in ("star/train.py", "adore/train.py") and flag in ("--output_dir", "--model_save_dir"):
            shutil.rmtree(value, ignore_errors=True)
        if flag in ("--init_path", "--model_dir") and not Path(value, "config.json").exists():
            shutil.copytree(folder / "roberta-base", value, dirs_exist_ok=True)
        if flag == "--hardneg_path" and not Path(value).exists():
            Path(value).parent.mkdir(parents=True, exist_ok=True)
            os.link(root / "hard.json", value)
        if flag in ("--pembed_path", "--dmemmap_path"):
            hole(Path(value), documents * DIM * 4)
        if flag == "--input_dir" and "--hard_negatives" in words:
            Path(value).mkdir(parents=True, exist_ok=True)
            Path(value, "hard.json").write_text("{}")
            work.add(Path(value, "hard.json").absolute())
        elif value.endswith(".rank.tsv") or flag == "--input_dir":
            run = Path(value) if value.endswith(".tsv") else Path(value, f"{words[words.index('--mode') + 1]}.rank.tsv")
            run.parent.mkdir(parents=True, exist_ok=True)
            run.write_text("0\t1\t1\n")
            work.add(run.absolute())
    return work


READERS = {"read_relevant_rows", "read_hard_negatives", "read_ids"}
READ_ONCE: dict[tuple[Any, ...], Any] = {}


def once(read: Callable[..., Any], path: Path, *arguments: Any) -> Any:
    """What a reader of a large file returns, read once for all tests: it takes a second."""
    counts = [argument if isinstance(argument, int) else len(argument) for argument in arguments]
    key = (read.__name__, Path(path).stat().st_ino, *counts)
    if key not in READ_ONCE:
        READ_ONCE[key] = read(path, *arguments)
    return READ_ONCE[key]


@pytest.mark.parametrize("command", every_command(), ids=shown)
def test_checks_pass_at_full_size(command: Printed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = without_gpus(command.words[2:])
    work, real_open = provide(command, folder), open

    def open_unless_work(file: Any, *arguments: Any, **more: Any) -> Any:
        if isinstance(file, str | os.PathLike) and Path(file).absolute() in work:
            raise WorkBegins
        return real_open(file, *arguments, **more)

    monkeypatch.setattr(builtins, "open", open_unless_work)
    monkeypatch.setattr(io, "open", open_unless_work)
    monkeypatch.setattr(RobertaDot, "forward", begin)
    monkeypatch.setattr(Trainer, "train", begin)
    monkeypatch.setattr(AdoreTraining, "run", begin)
    load_script(command.script)
    import_module("drhard.retrieval")  # which a script imports later
    for module in list(sys.modules.values()):
        for name in READERS & vars(module).keys():
            monkeypatch.setattr(module, name, partial(once, vars(module)[name]))
    # No machine has room for all embeddings.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0, total=0))
    with pytest.raises(WorkBegins):
        call_script(command.script, *words)
