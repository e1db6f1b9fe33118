"""Run scripts on randomly damaged files.

    python tests/campaigns/mutations.py --count 20000

A script may end with exit code 0 and a sensible result, or with exit code 2 and one sentence that names a file.
Everything else is a finding: a traceback, another exit code, a signal, numbers that are not finite, or more memory or
time than a tiny file needs. A script must not start a program, or change a file outside the working folder. What it
makes of a sentence-transformers folder must be the same as before, or what sentence-transformers makes of the damaged
folder. The seed and its number decide a case.
"""

import atexit
import hashlib
import importlib
import json
import multiprocessing
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaign import Campaign, Campaigner, Case, Finding, Outcome, end, parse_arguments
from mutators import (
    BYTES,
    FLOATS,
    GZIP,
    HTTP,
    JSON,
    MODEL_JSON,
    NPY,
    PICKLE,
    SAFETENSORS,
    TAR,
    TEXT,
    ZIP,
    Mutator,
    mutate,
)
from processes import OUTSIDE, PROJECT, Ended, Hanging, Limits, Running, Way, reap, start
from scripts_under_test import (
    EMBEDDINGS,
    MODEL,
    PREPROCESS,
    SCRIPTS,
    SMALL,
    WARMUP,
    Script,
    World,
    logs_of,
    serve_raw,
    signature,
    the_error,
)

MORE_MEMORY = 3 << 30
SECONDS = 60
SAMPLE = 1 / 50  # share of the real cases that also start a new process; it takes a hundred times as long
MEMORY = "out of memory"
REFUSED = "sentence-transformers refuses"


@dataclass(frozen=True)
class Target:
    """A file to damage, and the script that reads it.

    Attributes:
        state: "" for a working folder with only the inputs, "done" if the script has ended there, "stopped" if it was
            stopped in the middle.
        weight: its frequency relative to the others.
        model: the file is part of a sentence-transformers folder. sentence-transformers is asked what it makes of it.
    """

    script: str
    path: str
    mutators: tuple[Mutator, ...]
    weight: float = 1
    state: str = ""
    model: bool = False

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.script}{f' ({self.state})' if self.state else ''}: {self.path.removeprefix('data/')}"


DATASET = "data/passage/dataset"
DOCS = "data/doc/dataset"
BIN = "pytorch_model.bin"
QUICK, SLOW = 10, 0.5

# The files of a sentence-transformers folder, those of its tokenizer first
TOKENIZER = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer.json")
TOKENIZER = (*TOKENIZER, "tokenizer_config.json", "config.json")
HEADS = tuple(f"{folder}/config.json" for folder in ("1_Pooling", "2_Dense", "3_LayerNorm", "4_Normalize"))
WEIGHTS = tuple(f"{folder}model.safetensors" for folder in ("", "2_Dense/", "3_LayerNorm/"))
FOLDERS = {  # of a model, by the script that reads it
    "preprocess-sentence": "base",
    "inference-sentence": MODEL,
    "star-train-measured": WARMUP,
    "adore-train-measured": MODEL,
    "export": MODEL,
    "export-router": MODEL,
}
SENTENCE_TARGETS = [
    Target(
        script,
        f"{folder}/{name}",
        SAFETENSORS if name in WEIGHTS else MODEL_JSON,
        SLOW if "train" in script else 1,
        model=True,
    )
    for script, folder in FOLDERS.items()
    for name in (TOKENIZER if script == "preprocess-sentence" else (*TOKENIZER, *HEADS, *WEIGHTS))
]

TARGETS = {
    target.name: target
    for target in (
        # Evaluation, which takes milliseconds
        Target("msmarco-eval", "qrels.tsv", TEXT, QUICK),
        Target("msmarco-eval", "dev.rank.tsv", TEXT, QUICK),
        Target("trec-eval", "qrels.tsv", TEXT, QUICK),
        Target("trec-eval", "dev.rank.tsv", TEXT, QUICK),
        Target("trec-eval", "run.trec", TEXT, QUICK),
        Target("cvt-back", "run/dev.rank.tsv", TEXT, QUICK),
        Target("cvt-back", f"{PREPROCESS}/pid2offset.pickle", PICKLE, QUICK),
        Target("cvt-back", f"{PREPROCESS}/dev-qid2offset.pickle", PICKLE, QUICK),
        Target("cvt-back-trec", "run/dev.rank.tsv", TEXT, QUICK),
        Target("cvt-back-trec", "run/dev.score.npy", NPY, QUICK),
        # Texts
        Target("import", "beir/corpus.jsonl", TEXT, QUICK),
        Target("import", "beir/queries.jsonl", TEXT, QUICK),
        Target("import", "beir/qrels/test.tsv", TEXT, QUICK),
        Target("import", f"{DATASET}/import.json", JSON, QUICK, "done"),
        Target("append", f"{DATASET}/import.json", JSON, QUICK),
        Target("append", f"{DATASET}/collection.ids", TEXT, QUICK),
        Target("preprocess-append", f"{PREPROCESS}/passages_meta", JSON),
        Target("preprocess-append", f"{DATASET}/import.json", JSON),
        Target("inference-append", f"{EMBEDDINGS}/passages.memmap.json", JSON),
        Target("preprocess-passage", f"{DATASET}/collection.tsv", TEXT, 2),
        Target("preprocess-passage", f"{DATASET}/collection.tsv.gz", GZIP),
        Target("preprocess-passage", f"{DATASET}/queries.train.tsv", TEXT),
        Target("preprocess-passage", f"{DATASET}/qrels.train.tsv", TEXT),
        Target("preprocess-passage", f"{DATASET}/2019qrels-pass.txt", TEXT),
        Target("preprocess-passage", "base/vocab.json", JSON),
        Target("preprocess-passage", "base/merges.txt", TEXT),
        Target("preprocess-doc", f"{DOCS}/msmarco-docs.tsv", TEXT),
        Target("preprocess-doc", f"{DOCS}/msmarco-docdev-qrels.tsv", TEXT),
        Target("mine-bm25", f"{DATASET}/collection.tsv", TEXT),
        Target("mine-bm25", f"{DATASET}/queries.train.tsv", TEXT),
        Target("mine-bm25", f"{PREPROCESS}/train-qrel.tsv", TEXT),
        Target("mine-bm25", f"{PREPROCESS}/pid2offset.pickle", PICKLE),
        # Tokens and models
        Target("star-inference", f"{PREPROCESS}/passages_meta", JSON, 2),
        Target("star-inference", f"{PREPROCESS}/passages_length.npy", NPY),
        Target("star-inference", f"{PREPROCESS}/passages.memmap", BYTES),
        Target("star-inference", f"{PREPROCESS}/dev-query_meta", JSON),
        Target("star-inference", f"{PREPROCESS}/dev-query_length.npy", NPY),
        Target("star-inference", f"{MODEL}/config.json", JSON, 3),
        Target("star-inference", f"{MODEL}/model.safetensors", SAFETENSORS, 2),
        Target("star-inference", f"{MODEL}/{BIN}", ZIP, 2),
        Target("star-inference", f"{EMBEDDINGS}/passages.memmap", FLOATS, 1, "done"),
        Target("star-inference", f"{EMBEDDINGS}/passages.memmap.json", JSON, 1, "done"),
        Target("star-inference", f"{EMBEDDINGS}/dev-query.memmap.json", JSON, 1, "done"),
        Target("adore-inference", f"{EMBEDDINGS}/passages.memmap", FLOATS, 2),
        Target("adore-inference", f"{EMBEDDINGS}/passages.memmap.json", JSON),
        Target("adore-inference", f"{MODEL}/config.json", JSON),
        Target("adore-inference-index", "out/index.faiss", BYTES, 3, "done"),
        Target("adore-inference-index", "out/index.faiss.json", JSON, 1, "done"),
        Target("mine-dense", f"{PREPROCESS}/train-qrel.tsv", TEXT),
        Target("mine-dense", "data/passage/warmup/config.json", JSON),
        # Training
        Target("star-train", "data/passage/warmup_retrieve/hard.json", JSON, 2),
        Target("star-train", f"{PREPROCESS}/train-qrel.tsv", TEXT, SLOW),
        Target("star-train", f"{PREPROCESS}/train-query_meta", JSON, SLOW),
        Target("star-train", "data/passage/warmup/config.json", JSON, SLOW),
        Target("star-train", "data/passage/warmup/model.safetensors", SAFETENSORS, SLOW),
        Target("star-train", "out/models/training.json", JSON, SLOW, "stopped"),
        *(
            Target("star-train", f"out/models/checkpoint-4/{name}", mutators, SLOW, "stopped")
            for name, mutators in (
                ("trainer_state.json", JSON),
                ("config.json", JSON),
                ("model.safetensors", SAFETENSORS),
                ("optimizer.pt", ZIP),
                ("scheduler.pt", ZIP),
                ("rng_state.pth", ZIP),
            )
        ),
        Target("adore-train", f"{EMBEDDINGS}/passages.memmap", FLOATS),
        Target("adore-train", f"{PREPROCESS}/train-qrel.tsv", TEXT, SLOW),
        Target("adore-train", f"{PREPROCESS}/train-query_length.npy", NPY),
        Target("adore-train", f"{MODEL}/model.safetensors", SAFETENSORS, SLOW),
        Target("adore-train", "out/models/training_state.pt", ZIP, 2, "stopped"),
        Target("adore-train-index", "out/index.faiss", BYTES, SLOW, "stopped"),
        # Reports and downloads
        Target("reproduce-report", "runs/evaluate/dev.rank.tsv", TEXT, SLOW),
        Target("reproduce-report", "runs/evaluate/dev-query.memmap.json", JSON, SLOW),
        Target("reproduce-report", "runs/log/events", BYTES, SLOW),
        Target("download", "downloads.json", JSON, 6),
        Target("download", "collection.tar.gz", TAR, 8),
        Target("download", "msmarco-docs.tsv.gz", GZIP, 5),
        Target("download", "answer", HTTP, 8),
        *SENTENCE_TARGETS,
    )
}


def mutations(world: World, names: list[str]) -> Campaign:
    """Return the campaign over the targets ``names``."""
    if any(TARGETS[name].model for name in names):
        importlib.import_module("sentence_transformers")  # before the forks
    templates = Templates(world, names)
    weights = [TARGETS[name].weight for name in names]

    def campaign(case: Case) -> Outcome:
        target = TARGETS[case.random.choices(names, weights)[0]]
        outcome = Outcome(case.number, target.name, "")
        outcome.how = templates.damage(target, case.folder, case.random)
        twin = case.folder.with_name(f"{case.number}-twin")
        # The new process runs in addition to the fork. Not for downloads: a damaged manifest could reach the network.
        sample = case.real and case.random.random() < SAMPLE and target.script != "download"
        if sample:
            shutil.copytree(case.folder, twin)
        script = SCRIPTS[target.script]
        limits = Limits(more_memory=MORE_MEMORY)
        running = world.start(script, case.folder, limits=limits, confine=True, prepare=_prepare(target))
        ended = _judge(case, running, outcome, target)
        if outcome.result == "accepted" and target.model:
            _compare_with_theirs(world, script, case.folder, outcome)
        if sample and ended:
            outcome.findings += _differs(ended, world.run(script, twin, real=True))
            reap()
            for folder in (twin, logs_of(twin)):
                shutil.rmtree(folder)
        return outcome

    return campaign


def _differs(fork: Ended, real: Ended) -> list[Finding]:
    """Return a finding if a new process ends otherwise than the fork did."""
    if (fork.code, the_error(fork.stderr)) == (real.code, the_error(real.stderr)):
        return []
    return [Finding("a process of its own ends otherwise", f"{fork.describe()}\n---\n{real.describe()}")]


def _compare_with_theirs(world: World, script: Script, folder: Path, outcome: Outcome) -> None:
    """Add a finding if sentence-transformers makes something else of the damaged folder than a script did.

    If it refuses the folder, the script must have made the same as of the undamaged one.
    """
    theirs = PROJECT / "tests" / "campaigns" / "their_embeddings.py"
    arguments = [script.name, str(world.root / "base" / "passage")]
    way = Way(limits=Limits(more_memory=MORE_MEMORY))
    ended = start(theirs, arguments, folder, logs_of(folder) / "theirs", way).wait(SECONDS)
    same = all(problem.endswith("is left over") for problem in world.compare(script, folder))
    if ended.code and not (REFUSED in ended.stderr and same):
        outcome.result = "differs"
        outcome.findings.append(Finding(f"not as sentence-transformers: {signature(ended)}", ended.describe()))


def _names_a_file(sentence: str, folder: Path) -> bool:
    """Return whether an error starts with the path of a file or folder, or of one that is missing in a model's."""
    path = re.match(r"error: (.*?)(: |, line )", sentence)
    return path is not None and (folder / path[1]).parent.parent.exists()


def _prepare(target: Target) -> Callable[[], None]:
    """Return what a fork does before its script runs. It saves time that does not depend on the damaged file."""

    def prepare() -> None:
        atexit._clear()  # of what was imported before the fork
        context = multiprocessing.get_context
        multiprocessing.get_context = lambda method=None: context("fork")  # workers that have imported everything
        if target.script == "download":
            time.sleep = lambda seconds: None  # between attempts
            connect = socket.create_connection

            def local(address: tuple[str, int], *arguments: object, **options: object) -> socket.socket:
                if address[0] != "127.0.0.1":
                    raise OSError(101, "Network is unreachable")
                return connect(address, *arguments, **options)

            socket.create_connection = local

    return prepare


def _judge(case: Case, running: Running, outcome: Outcome, target: Target) -> Ended | None:
    """Wait for the end of a run and judge it. Return None if it hangs."""
    try:
        ended = running.wait(SECONDS)
    except Hanging as error:
        outcome.result = "hangs"
        outcome.findings.append(Finding("hangs", str(error)))
        reap(0)
        return None
    left = reap(2)
    sentence = the_error(ended.stderr)
    if ended.code == 0:
        outcome.result = "accepted"
        kind = nonsense(case.folder, ended, case.folder / target.path)
    elif ended.code == 2 and sentence:
        outcome.result = "refused"
        kind = f"more than {MORE_MEMORY >> 30} GB, {sentence[:100]}" if MEMORY in sentence else None
        if not kind and target.model and not _names_a_file(sentence, case.folder):
            kind = f"names no file: {sentence[:150]}"
    else:
        kind = signature(ended)
        outcome.result = (
            "traceback"
            if "Traceback" in ended.stderr
            else "signal"
            if ended.code < 0
            else "outside"
            if ended.code == OUTSIDE
            else "no sentence"
        )
    if kind:
        outcome.findings.append(Finding(kind, ended.describe()))
        if outcome.result in ("accepted", "refused"):
            outcome.result = "nonsense" if ended.code == 0 else "memory" if MEMORY in kind else "no file"
    if left:
        outcome.findings.append(Finding("processes left", "\n".join(left)))
    return ended


def nonsense(folder: Path, ended: Ended, damaged: Path) -> str | None:
    """Return what makes no sense in the files and output of a successful run; None if all is well.

    The damaged file itself is not judged: nobody can tell whether one of its numbers was changed.
    """
    import numpy as np
    from safetensors.numpy import load_file

    if re.search(r"\s[-+]?(nan|inf|infinity)\b(?!\t)", ended.stdout, re.IGNORECASE):  # and no id before its value
        return "prints a number that is not finite"
    for value in re.findall(r"(?:^MRR @\d+: |^\S+\s+\S+\s+)(-?[\d.]+(?:e-?\d+)?)$", ended.stdout, re.MULTILINE):
        if not 0 <= float(value) <= 1:
            return "prints a measure that is not within 0 and 1"
    written = [
        *folder.glob("out/**/*"),
        *folder.glob("data/passage/evaluate/**/*"),
        *folder.glob("data/passage/*_retrieve/*"),
    ]
    for path in written:
        if path == damaged:
            continue
        if path.name.endswith("rank.tsv") and not path.stat().st_size:
            return f"{path.name} is empty"
        if path.name.endswith(".score.npy") and not np.isfinite(np.load(path)).all():
            return f"{path.name} holds numbers that are not finite"
        if path.name == "model.safetensors" and "checkpoint-" not in str(path):
            for tensor in load_file(path).values():
                if not np.isfinite(tensor).all():
                    return "weights that are not finite"
        if path.name.endswith((".memmap", "qembed.memmap")) and not path.name.endswith("-id.memmap"):
            numbers = np.fromfile(path, dtype=np.float32)
            if not np.isfinite(numbers).all():
                return f"{path.name} holds numbers that are not finite"
    return None


# Templates of the cases


class Templates:
    """A folder for each target, to copy for each case. It has the script's inputs, and its files if it has run."""

    def __init__(self, world: World, names: list[str]):
        world.make(dict.fromkeys(["cvt-back-trec", *(TARGETS[name].script for name in names)]))
        self.world = world
        self._raw = serve_raw(world.root.parent)
        for target in {(TARGETS[name].script, TARGETS[name].state): TARGETS[name] for name in names}.values():
            self._make(target)

    def folder(self, target: Target) -> Path:
        """Return the template of a target."""
        return self.world.root / f"{target.script}.template{target.state}"

    def damage(self, target: Target, folder: Path, dice: random.Random) -> str:
        """Make ``folder`` from the template and damage the target's file there. Return how."""
        shutil.copytree(self.folder(target), folder, symlinks=True)
        if target.script == "download":
            return self._damage_download(target, folder, dice)
        path = self._path(target, folder)
        damaged, how = mutate(path.read_bytes(), target.mutators, dice)
        path.write_bytes(damaged)
        return how

    def _path(self, target: Target, folder: Path) -> Path:
        """Return the file in ``folder`` to damage. Make it first if the template does not have it."""
        path = folder / target.path
        if target.path.endswith(BIN):
            self._safetensors_to_bin(path)
        elif target.path == "runs/log/events":
            return next(path.parent.glob("events.*"))
        elif target.path == "run.trec":
            shutil.copy(self.world.root / "cvt-back-trec" / "out" / "dev.trec", folder / "dev.rank.tsv")
            return folder / "dev.rank.tsv"
        elif target.path.endswith("collection.tsv.gz"):
            import gzip

            text = path.with_suffix("")
            path.write_bytes(gzip.compress(text.read_bytes(), mtime=0))
            text.unlink()
        return path

    def _damage_download(self, target: Target, folder: Path, dice: random.Random) -> str:
        """Write a server's answers and a manifest. Damage one of them, and return how."""
        url = f"{self._raw}/{folder.relative_to(self.world.root.parent)}"
        manifest = json.loads((folder / "downloads.json").read_text())
        how = ""
        for file in manifest["files"]:
            name = file["url"].rpartition("/")[2]
            content = (self.world.root / "base" / "site" / name).read_bytes()
            if name == target.path:
                content, how = mutate(content, target.mutators, dice)
                file |= {"bytes": len(content), "md5": [hashlib.md5(content).hexdigest()]}
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
            if target.path == "answer" and name == "qrels.tsv":
                answer, how = mutate(answer, target.mutators, dice)
            (folder / f"answer-{name}").write_bytes(answer)
            file["url"] = f"{url}/answer-{name}/{name}"
        text = json.dumps(manifest).encode()
        if target.path == "downloads.json":
            text, how = mutate(text, target.mutators, dice)
        (folder / "downloads.json").write_bytes(text)
        return how

    def _safetensors_to_bin(self, path: Path) -> None:
        import torch
        from safetensors.torch import load_file

        weights = path.with_name("model.safetensors")
        torch.save(load_file(weights), path)
        weights.unlink()

    def _make(self, target: Target) -> None:
        script, folder = SCRIPTS[target.script], self.folder(target)
        made = folder.with_suffix(f".making{target.state}")
        self.world.prepare(script, made)
        if target.state == "done":
            _must(self.world.run(script, made))
        elif target.state == "stopped":
            self._stop(script, made)
        shutil.copytree(made, folder, symlinks=False)

    def _stop(self, script: Script, folder: Path) -> None:
        """Stop a training in the middle, so that it can be resumed."""
        if script.name == "star-train":
            events = range(self.world.unbroken[script.name].file_events // 3, 10_000)
            number = signal.SIGKILL
        else:  # ADORE writes its state on SIGTERM
            events = range(self.world.unbroken[script.name].file_events // 2, 10_000)
            number = signal.SIGTERM
        for event in events:
            shutil.rmtree(folder, ignore_errors=True)
            self.world.prepare(script, folder)
            self.world.start(script, folder, die_at=(event, number)).wait()
            if (folder / "out/models/checkpoint-4/trainer_state.json").exists() or number == signal.SIGTERM:
                return


def _must(ended: Ended) -> None:
    if ended.code:
        raise RuntimeError(ended.describe())


def main() -> None:
    args = parse_arguments(__doc__, 20_000, TARGETS)
    with Campaigner(args.output, args.jobs, args.seed) as campaigner:
        campaign = mutations(campaigner.world(SMALL), args.only or list(TARGETS))
        end(campaigner.run("mutations", campaign, args.count, args.numbers or ()))


if __name__ == "__main__":
    main()
