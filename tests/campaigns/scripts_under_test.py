"""Every script of the project in a tiny world: its inputs, its command line, and the files that it leaves.

Each script has one unbroken run, in a folder of its own. Later scripts read its files. Broken runs are compared to it.
"""

import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socketserver
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mutators import STRANGER
from processes import PROJECT, Ended, Running, Way, end_with_parent, start

Digests = dict[str, str]  # path in a folder -> digest of the file's content

PREPROCESS, WARMUP, MODEL = "data/passage/preprocess", "data/passage/warmup", "data/passage/trained_models/star"
EMBEDDINGS, DATASET = "data/passage/evaluate/star", "data/passage/dataset"
LENGTHS = ("--max_query_length", "12", "--max_doc_length", "16")


@dataclass(frozen=True)
class Script:
    """A command of the project.

    Attributes:
        inputs: path in the working folder -> path in the world, ``base/...``, ``sentence/...`` or ``NAME/...`` of
            another script.
        leaves: patterns of further files that a stopped run may leave, beside those of all scripts.
        prints: whether its output is its result.
        workers: whether it starts processes.
        grows: whether it changes files of its inputs, so that it gets copies.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    inputs: Mapping[str, str]
    leaves: tuple[str, ...] = ()
    prints: bool = False
    workers: bool = False
    grows: bool = False

    @property
    def needs(self) -> list[str]:
        """What writes its inputs: other scripts, and names of :data:`BASES`."""
        return list(dict.fromkeys(path.split("/")[0] for path in self.inputs.values()))


def _star(*flags: str) -> tuple[str, ...]:
    return (
        "--do_train",
        *LENGTHS,
        "--preprocess_dir",
        PREPROCESS,
        "--init_path",
        WARMUP,
        "--output_dir",
        "out/models",
        "--logging_dir",
        "out/log",
        "--per_device_train_batch_size",
        "8",
        "--num_train_epochs",
        "3",
        "--save_steps",
        "4",
        "--warmup_steps",
        "2",
        "--learning_rate",
        "1e-3",
        "--logging_steps",
        "3",
        "--no_cuda",
        *flags,
    )


def _adore(*flags: str) -> tuple[str, ...]:
    return (
        "--metric_cut",
        "20",
        "--init_path",
        MODEL,
        "--pembed_path",
        f"{EMBEDDINGS}/passages.memmap",
        "--model_save_dir",
        "out/models",
        "--log_dir",
        "out/log",
        "--preprocess_dir",
        PREPROCESS,
        "--neg_topk",
        "20",
        "--max_seq_length",
        "12",
        "--per_gpu_batch_size",
        "8",
        "--warmup_steps",
        "2",
        "--num_train_epochs",
        "3",
        "--save_steps",
        "5",
        "--logging_steps",
        "2",
        "--learning_rate",
        "1e-3",
        *flags,
    )


def _export(query: str, document: str) -> tuple[str, ...]:
    run = ["--run", f"{EMBEDDINGS}/dev.rank.tsv", "--qrels", f"{PREPROCESS}/dev-qrel.tsv"]
    return ("--query_model", query, "--document_model", document, "--output_dir", "out/exported", *run)


def _retrieve(mode: str, *flags: str) -> tuple[str, ...]:
    return (
        "--model_dir",
        MODEL,
        "--output_dir",
        "out/evaluate",
        "--preprocess_dir",
        PREPROCESS,
        "--mode",
        mode,
        "--topk",
        "20",
        "--dmemmap_path",
        f"{EMBEDDINGS}/passages.memmap",
        "--max_seq_length",
        "12",
        "--no_cuda",
        *flags,
    )


def _encode(mode: str, *flags: str) -> tuple[str, ...]:
    return ("--data_type", "passage", *LENGTHS, "--mode", mode, "--topk", "20", "--no_cuda", *flags)


TOKENS = {PREPROCESS: f"preprocess-passage/{PREPROCESS}"}
STAR_INPUTS = TOKENS | {WARMUP: "base/warmup"}
MINED = {"data/passage/warmup_retrieve/hard.json": "mine-dense/data/passage/warmup_retrieve/hard.json"}
ADORE_INPUTS = TOKENS | {MODEL: "base/model", EMBEDDINGS: f"star-inference/{EMBEDDINGS}"}
_CVT_BACK = (
    *["--input_dir", "run", "--output_dir", "out", "--mode", "dev", "--dataset", "passage", "--preprocess_dir"],
    PREPROCESS,
)
COMPRESSED = ("--index_factory", "IVF8,SQ8", "--index_path", "out/index.faiss")
CONVERT = {PREPROCESS: TOKENS[PREPROCESS], "run": f"star-inference/{EMBEDDINGS}"}
CHECKPOINTS = ("out/models/checkpoint-*",)  # the Trainer writes into them; those that are not whole are skipped

# With a sentence-transformers folder as the model, and trainings that measure it
SENTENCE_TOKENS = {PREPROCESS: f"preprocess-sentence/{PREPROCESS}"}
SENTENCE_INPUTS = SENTENCE_TOKENS | {MODEL: "sentence/model"}
SENTENCE_EMBEDDINGS = {EMBEDDINGS: f"inference-sentence/{EMBEDDINGS}"}
# All ranks count, so that the value changes with the weights. "best" and "evaluation" are written during a training.
MEASURED = ("--eval_split", "dev", "--metric", "nDCG@5000")
BEST = ("out/models/best/*", "out/models/evaluation/*")

_TOKENIZE = ("--model_name_or_path", "base", "--max_seq_length", "16", "--max_query_length", "12", "--threads", "1")

SCRIPTS = {
    script.name: script
    for script in (
        Script(
            "preprocess-passage",
            "preprocess.py",
            (
                "--data_type",
                "1",
                "--model_name_or_path",
                "base",
                "--max_seq_length",
                "16",
                "--max_query_length",
                "12",
                "--threads",
                "2",
            ),
            {"data/passage/dataset": "base/passage", "base": "base/vocabulary"},
            workers=True,
        ),
        Script(
            "preprocess-doc",
            "preprocess.py",
            ("--data_type", "0", "--model_name_or_path", "base", "--max_seq_length", "32", "--threads", "1"),
            {"data/doc/dataset": "base/doc", "base": "base/vocabulary"},
            workers=True,
        ),
        Script("import", "import_collection.py", ("beir",), {"beir": "base/beir"}),
        Script(
            "preprocess-import", "preprocess.py", _TOKENIZE, {DATASET: f"import/{DATASET}", "base": "base/vocabulary"}
        ),
        Script(
            "inference-import",
            "star/inference.py",
            _encode("test"),
            {PREPROCESS: f"preprocess-import/{PREPROCESS}", MODEL: "base/model"},
        ),
        Script(
            "append",
            "import_collection.py",
            ("--append", "--corpus", "more.jsonl"),
            {DATASET: f"import/{DATASET}", "more.jsonl": "base/more.jsonl"},
            leaves=(f"{DATASET}/*",),
            grows=True,
        ),
        Script(
            "preprocess-append",
            "preprocess.py",
            _TOKENIZE,
            {DATASET: f"append/{DATASET}", PREPROCESS: f"preprocess-import/{PREPROCESS}", "base": "base/vocabulary"},
            leaves=(f"{PREPROCESS}/*",),
            workers=True,
            grows=True,
        ),
        Script(
            "inference-append",
            "star/inference.py",
            _encode("test"),
            {
                PREPROCESS: f"preprocess-append/{PREPROCESS}",
                EMBEDDINGS: f"inference-import/{EMBEDDINGS}",
                MODEL: "base/model",
            },
            leaves=(f"{EMBEDDINGS}/*",),
            grows=True,
        ),
        Script("star-inference", "star/inference.py", _encode("dev"), TOKENS | {MODEL: "base/model"}),
        Script("mine-dense", "star/prepare_hardneg.py", _encode("train"), STAR_INPUTS),
        Script(
            "mine-bm25",
            "star/prepare_hardneg.py",
            ("--data_type", "passage", "--retriever", "bm25", "--mode", "train", "--topk", "20"),
            TOKENS | {"data/passage/dataset": "base/passage"},
        ),
        Script(
            "star-train",
            "star/train.py",
            _star("--hardneg_path", next(iter(MINED))),
            STAR_INPUTS | MINED,
            leaves=CHECKPOINTS,
        ),
        Script("star-train-mining", "star/train.py", _star(), STAR_INPUTS, leaves=CHECKPOINTS),
        Script("adore-train", "adore/train.py", _adore(), ADORE_INPUTS, leaves=("out/models/training_state.pt",)),
        Script(
            "adore-train-index",
            "adore/train.py",
            _adore(*COMPRESSED),
            ADORE_INPUTS,
            leaves=("out/models/training_state.pt",),
        ),
        Script("adore-inference", "adore/inference.py", _retrieve("dev"), ADORE_INPUTS),
        Script("adore-inference-index", "adore/inference.py", _retrieve("dev", *COMPRESSED), ADORE_INPUTS),
        Script(
            "cvt-back",
            "cvt_back.py",
            _CVT_BACK,
            CONVERT,
        ),
        Script(
            "cvt-back-trec",
            "cvt_back.py",
            (*_CVT_BACK, "--trec"),
            CONVERT,
        ),
        Script(
            "msmarco-eval",
            "msmarco_eval.py",
            ("qrels.tsv", "dev.rank.tsv"),
            {
                "qrels.tsv": f"preprocess-passage/{PREPROCESS}/dev-qrel.tsv",
                "dev.rank.tsv": f"star-inference/{EMBEDDINGS}/dev.rank.tsv",
            },
            prints=True,
        ),
        Script(
            "trec-eval",
            "trec_eval.py",
            ("qrels.tsv", "dev.rank.tsv", "-q", "--compare", "other.rank.tsv"),
            {
                "qrels.tsv": f"preprocess-passage/{PREPROCESS}/dev-qrel.tsv",
                "dev.rank.tsv": f"star-inference/{EMBEDDINGS}/dev.rank.tsv",
                "other.rank.tsv": "base/other/dev.rank.tsv",
            },
            prints=True,
        ),
        Script(
            "reproduce-report",
            "tests/campaigns/reproduce_tiny.py",
            ("report", "--output_dir", "out"),
            {
                "runs/preprocess": TOKENS[PREPROCESS],
                "runs/model": "base/model",
                "runs/log": "adore-train/out/log",
                "runs/evaluate": f"star-inference/{EMBEDDINGS}",
                "runs/other": "base/other",
            },
            prints=True,
        ),
        Script(
            "reproduce-run",
            "tests/campaigns/reproduce_tiny.py",
            ("run", "tiny:made"),
            {
                PREPROCESS: TOKENS[PREPROCESS],
                "run": f"star-inference/{EMBEDDINGS}",
            },
            workers=True,
        ),
        Script(
            "preprocess-sentence",
            "preprocess.py",
            ("--model_name_or_path", "base", "--max_seq_length", "8", "--max_query_length", "6", "--threads", "1"),
            {"data/passage/dataset": "base/passage", "base": "sentence/model"},
            workers=True,
        ),
        Script("inference-sentence", "star/inference.py", _encode("dev"), SENTENCE_INPUTS),
        Script(
            "star-train-measured",
            "star/train.py",
            # With this seed, each of three evaluations finds a better model in the large world.
            _star(*MEASURED, "--eval_steps", "6", "--negatives", "in-batch", "--seed", "3", "--learning_rate", "1e-2"),
            SENTENCE_TOKENS | {WARMUP: "sentence/model"},
            leaves=(*CHECKPOINTS, *BEST),
        ),
        Script(
            "adore-train-measured",
            "adore/train.py",
            _adore(*MEASURED, "--eval_steps", "3"),
            SENTENCE_INPUTS | SENTENCE_EMBEDDINGS,
            leaves=("out/models/training_state.pt", *BEST),
        ),
        Script("export", "export.py", _export(MODEL, MODEL), SENTENCE_INPUTS | SENTENCE_EMBEDDINGS),
        Script(
            "export-router",
            "export.py",
            _export("runs/adore/epoch-3", MODEL),
            SENTENCE_INPUTS | SENTENCE_EMBEDDINGS | {"runs/adore": "adore-train-measured/out/models"},
        ),
        Script(
            "export-embeddings",
            "export.py",
            (
                *["--embeddings", f"{EMBEDDINGS}/passages.memmap", "--preprocess_dir", PREPROCESS],
                *["--faiss", "out/index.faiss", "--flex", "out/flex"],
            ),
            TOKENS | {EMBEDDINGS: f"star-inference/{EMBEDDINGS}"},
        ),
        Script(
            "download",
            "download_data.py",
            ("--manifest", "downloads.json"),
            {"downloads.json": "base/downloads.json"},
            leaves=("data/*/dataset/*.tar.gz", "data/*/dataset/*.gz"),
        ),
    )
}

# The same scripts on other splits of the same folder, for pairs.
OTHERS = {
    script.name: script
    for script in (
        Script("star-inference-test", "star/inference.py", _encode("test"), SCRIPTS["star-inference"].inputs),
        Script(
            "mine-there",
            "star/prepare_hardneg.py",
            _encode("train", "--model_dir", MODEL, "--output_dir", EMBEDDINGS),
            SCRIPTS["star-inference"].inputs,
        ),
        Script("adore-inference-index-test", "adore/inference.py", _retrieve("test", *COMPRESSED), ADORE_INPUTS),
    )
}
PAIRS = [(name, name) for name in SCRIPTS if not SCRIPTS[name].prints] + [
    ("star-inference", "star-inference-test"),
    ("star-inference", "mine-there"),
    ("adore-inference-index", "adore-inference-index-test"),
    ("adore-train-index", "adore-inference-index-test"),
]

# The base: texts, a vocabulary, two encoders, a server


@dataclass(frozen=True)
class Size:
    """How large the world is."""

    passages: int = 20_000  # three windows of encoding
    documents: int = 300
    queries: int = 48  # training queries; half as many dev queries


SMALL = Size(passages=120, documents=40, queries=24)


TEXT = "where is the river rhine does it end in alps or sea a star ball of plasma gravity holds an encoder turns text"


def write_base(folder: Path, size: Size) -> None:
    """Write the inputs of the first scripts. It computes with torch, so call it in a separate process."""
    sys.path.append(str(PROJECT / "tests"))
    from drhard.msmarco import DOC, PASSAGE

    import numpy as np
    from helpers import save_tiny, save_vocabulary

    dice = np.random.default_rng(0)
    save_vocabulary(folder / "vocabulary")
    for name, seed in (("warmup", 1), ("model", 2)):
        save_vocabulary(save_tiny(folder / name, seed, dropout=0.1, num_hidden_layers=1))
    relevant = _write_corpus(folder / "passage", PASSAGE, size.passages, size.queries, dice)
    _write_corpus(folder / "doc", DOC, size.documents, size.queries, dice)
    _write_beir(folder / "beir", size, dice)
    more = [{"_id": f"m{number}", "text": TEXT[number:]} for number in range(20)]
    _write_lines(folder / "more.jsonl", map(json.dumps, more))
    (folder / "other").mkdir()  # a run in rows that finds the relevant passages at random ranks
    run = []
    for row, found in enumerate(relevant):
        rows = dice.choice(size.passages, 20, replace=False).tolist()
        rows[dice.integers(20)] = found
        run += [f"{row}\t{pid}\t{rank}" for rank, pid in enumerate(dict.fromkeys(rows), start=1)]
    _write_lines(folder / "other" / "dev.rank.tsv", run)


def _write_beir(folder: Path, size: Size, dice: Any) -> None:
    """Write a BEIR folder with random texts, a few of them empty."""
    words = TEXT.split()
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(dice.choice(words, dice.integers(0, 9))) for _ in range(size.passages)]
    rows = [{"_id": f"d{number:04}é", "title": text[:9], "text": text} for number, text in enumerate(texts)]
    _write_lines(folder / "corpus.jsonl", map(json.dumps, rows))
    _write_lines(
        folder / "queries.jsonl", (json.dumps({"_id": f"q{n}", "text": f"query {n}"}) for n in range(size.queries))
    )
    judged = [f"q{n}\t{rows[dice.integers(len(rows))]['_id']}\t1" for n in range(size.queries)]
    _write_lines(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judged])


def write_sentence(folder: Path, size: Size) -> None:
    """Write ``model``, a folder that sentence-transformers itself makes, with prompts and heads. Call it as write_base.

    It holds a module of code too, which stops whoever imports it outside its folder.
    """
    sys.path.append(str(PROJECT / "tests"))
    import torch
    from helpers import save_plain
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer

    plain = save_plain(folder / "plain", "bert")
    torch.manual_seed(5)
    modules = [Transformer(str(plain)), Pooling(16, "mean"), Dense(16, 12), LayerNorm(12), Normalize()]
    prompts = {"query": "is ", "document": "text: "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(folder / "model"))
    (folder / "model" / f"{STRANGER}.py").write_text('import os\nos.system("true")\n')


def _write_corpus(folder: Path, corpus: Any, count: int, queries: int, dice: Any) -> list[int]:
    """Write the official files of a collection with random texts; return the row relevant to each dev query."""
    words, prefix = TEXT.split(), corpus.pid_prefix

    def text(least: int, most: int) -> str:
        return " ".join(dice.choice(words, dice.integers(least, most)))

    folder.mkdir()
    pids = (dice.permutation(count) * 3 + 7).tolist()
    relevant = []
    body = (lambda pid: f"http://x/{pid}\t{text(1, 4)}\t{text(10, 40)}") if prefix else lambda _: text(2, 7)
    _write_lines(folder / corpus.collection, [f"{prefix}{pid}\t{body(pid)}" for pid in pids])
    for number, (mode, split) in enumerate(corpus.modes.items(), start=1):
        qids = range(2000 * number, 2000 * number + (queries if mode == "train" else queries // 2))
        _write_lines(folder / split.queries, [f"{qid}\t{text(2, 6)}" for qid in (*qids, 99_999)])
        if split.qrels is None:
            continue
        grades = (1, 2, 3) if mode == "test" else (1,)
        judged = {qid: dice.choice(count, len(grades), replace=False).tolist() for qid in qids}
        separator = "\t" if mode != "test" and not prefix else " "
        _write_lines(
            folder / split.qrels,
            [
                separator.join((str(qid), "0", f"{prefix}{pids[row]}", str(grade)))
                for qid, rows in judged.items()
                for row, grade in zip(rows, grades, strict=True)
            ],
        )
        if mode == "dev":
            relevant = [rows[0] for rows in judged.values()]
    return relevant


BASES = {"base": write_base, "sentence": write_sentence}


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_downloads(folder: Path, url: str) -> None:
    """Write a site of three archives, each half a megabyte, and its manifest."""
    import random

    random = random.Random(0)
    site = folder / "site"
    site.mkdir()
    texts = {
        name: "".join(f"{number}\t{random.getrandbits(200):x}\n" for number in range(8000)).encode()
        for name in ("collection.tsv", "queries.train.tsv", "msmarco-docs.tsv", "qrels.tsv")
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("collection.tsv", "queries.train.tsv"):
            member = tarfile.TarInfo(name)
            member.size = len(texts[name])
            archive.addfile(member, io.BytesIO(texts[name]))
    served = {
        ("passage", "collection.tar.gz", ("collection.tsv", "queries.train.tsv")): packed.getvalue(),
        ("passage", "qrels.tsv", ("qrels.tsv",)): texts["qrels.tsv"],
        ("doc", "msmarco-docs.tsv.gz", ("msmarco-docs.tsv",)): gzip.compress(texts["msmarco-docs.tsv"], mtime=0),
    }
    files = []
    for (dataset, name, names), content in served.items():
        (site / name).write_bytes(content)
        md5 = hashlib.md5(content).hexdigest()
        files.append({"dataset": dataset, "url": f"{url}/{name}", "bytes": len(content), "md5": [md5], "files": names})
    manifest = {"headers": {}, "files": files, "checkpoints": []}
    (folder / "downloads.json").write_text(json.dumps(manifest, indent=1))


def serve(folder: Path) -> str:
    """Serve ``folder``, slowly, from a process that ends with this one; return its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                return self.send_error(404)
            content, wanted = path.read_bytes(), self.headers["Range"]
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            for start_ in range(first, len(content), 1 << 15):
                self.wfile.write(content[start_ : start_ + (1 << 15)])
                time.sleep(0.01)
            return None

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # the client was killed

    return _serve(Server(("127.0.0.1", 0), Handler))


def serve_raw(folder: Path) -> str:
    """Answer a request for ``/PATH`` with the bytes of ``folder/PATH``, head and all, from a process of its own."""

    class Handler(socketserver.StreamRequestHandler):
        timeout = 10

        def handle(self) -> None:
            words = self.rfile.readline(4096).split()
            while self.rfile.readline(65536).strip():
                pass
            path = folder / os.fsdecode(words[1]).lstrip("/") if len(words) > 1 else folder
            path = path if path.is_file() else path.parent  # PATH/NAME, so that a client sees the name
            if path.is_file():
                self.wfile.write(path.read_bytes())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    return _serve(Server(("127.0.0.1", 0), Handler))


def _serve(server: socketserver.BaseServer) -> str:
    if os.fork() == 0:
        try:
            end_with_parent()
            server.serve_forever(poll_interval=0.5)
        finally:
            os._exit(0)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    server.socket.close()
    return address


# The world


@dataclass
class Unbroken:
    """The result of an unbroken run."""

    files: Digests
    stdout: str
    seconds: float
    file_events: int
    bytes: int = 0  # on the disk
    watched: int = 0  # events that FolderWatch saw


@dataclass
class World:
    """A folder with the base, the unbroken runs, and the folders of the cases."""

    root: Path
    size: Size
    unbroken: dict[str, Unbroken] = field(default_factory=dict)
    _checked: Digests = field(default_factory=dict)

    def make(self, names: Iterable[str], watch: Callable[[Path, Running], int] | None = None) -> None:
        """Make the unbroken runs of the scripts ``names`` and of those whose files they read."""
        for name in names:
            self._make(name, watch)

    def _make(self, name: str, watch: Callable[[Path, Running], int] | None) -> None:
        if name in self.unbroken:
            return
        if name in BASES:
            self._make_base(name)
            return
        script = (SCRIPTS | OTHERS)[name]
        for needed in script.needs:
            self._make(needed, watch)
        folder = self.root / name
        self.prepare(script, folder)
        running = self.start(script, folder)
        watched = watch(folder, running) if watch else 0
        ended = running.wait()
        if ended.code:
            raise RuntimeError(f"the unbroken run of {name}: {ended.describe()}")
        used = sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink())
        files = snapshot(folder)
        stdout = ended.stdout.replace(str(folder), "")
        self.unbroken[name] = Unbroken(files, stdout, ended.seconds, ended.file_events or 0, used, watched)

    def _make_base(self, name: str) -> None:
        folder = self.root / name
        if folder.exists():
            return
        folder.mkdir(parents=True)
        _in_a_fork(lambda: BASES[name](folder, self.size))
        if name == "base":
            write_downloads(folder, serve(folder / "site"))

    def check(self) -> None:
        """Raise RuntimeError if the world has changed since the last check. All cases read it."""
        found = snapshot(self.root)
        changed = [name for name, digest in self._checked.items() if found.get(name) != digest]
        if changed:
            raise RuntimeError(f"scripts have changed their input: {changed}")
        self._checked = found

    def prepare(self, script: Script, folder: Path) -> None:
        """Make a working folder with the inputs of a script."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, origin in script.inputs.items():
            place = folder / name
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                if script.grows and (self.root / origin).is_dir():
                    shutil.copytree(self.root / origin, place)
                else:
                    place.symlink_to(self.root / origin)

    def start(self, script: Script, folder: Path, run: int = 0, **way: Any) -> Running:
        """Start a script in ``folder``. ``run`` numbers the runs there; ``way`` goes to :class:`processes.Way`."""
        return start(PROJECT / script.script, script.arguments, folder, logs_of(folder) / str(run), Way(**way))

    def run(self, script: Script, folder: Path, run: int = 0, **way: Any) -> Ended:
        """Run a script in ``folder`` to its end. Raises Hanging."""
        return self.start(script, folder, run, **way).wait()

    def compare(self, script: Script, folder: Path, files: Digests | None = None) -> list[str]:
        """Return the differences between the folder of a successful run and the unbroken run."""
        expected = self.unbroken[script.name].files if files is None else files
        found = snapshot(folder)
        problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
        problems += [
            f"{name} is not that of an unbroken run"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ]
        return problems + [f"{name} is left over" for name in sorted(found.keys() - expected.keys())]

    def compare_stopped(self, script: Script, folder: Path, files: Digests | None = None) -> list[str]:
        """Return what is wrong in the folder of a stopped run. A file with a final name must be whole."""
        expected = self.unbroken[script.name].files if files is None else files
        problems = []
        for name, digest in snapshot(folder).items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in (*UNFINISHED, *script.leaves)):
                continue
            if name not in expected:
                problems.append(f"{name} was left, which an unbroken run does not have")
            elif expected[name] != digest:
                problems.append(f"{name} has its final name but is not whole")
        return problems


def logs_of(folder: Path) -> Path:
    """Return the folder for the output of the runs in ``folder``: beside it, not on its disk."""
    return folder.with_name(f"{folder.name}.logs")


# Names that show that a file is unfinished. A stopped script may leave such files.
UNFINISHED = ("*.partial", "*.partial/*", "*/.partial-*", ".partial-*", "*.lock", "*.partial*")


def _in_a_fork(work: Callable[[], None]) -> None:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the world could not be made")


# Comparing

# Not compared: TensorBoard's files are named by the time, training_args.bin and report.* hold paths and versions.
IGNORED = re.compile(r"(^|/)(events\.out\.tfevents\.|training_args\.bin$)")
LOGS_OF_STATE = ("log_history", "total_flos")  # of trainer_state.json


def snapshot(folder: Path) -> Digests:
    """Return path and digest of every file under ``folder``, except links and ignored files."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if not path.is_symlink() and not IGNORED.search(relative):
                found[relative] = digest_of(path)
    return found


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of its content if files with the same content may differ in their bytes."""
    content = path.read_bytes()
    try:
        if path.name == "trainer_state.json":
            state = json.loads(content)
            content = json.dumps({key: state[key] for key in state if key not in LOGS_OF_STATE}).encode()
        elif path.name == "checkpoint.json":  # digests of files, of which some are not compared by their bytes
            seal = json.loads(content)
            content = json.dumps([seal["step"], seal["training"], sorted(seal["files"])]).encode()
        elif path.suffix in (".pt", ".pth", ".bin") and zipfile.is_zipfile(path):
            import torch

            content = json.dumps(_structure(torch.load(path, map_location="cpu", weights_only=False))).encode()
    except Exception:  # not whole: its bytes
        pass
    return hashlib.sha256(content).hexdigest()


def _structure(value: Any) -> Any:
    """Return ``value`` in JSON's types, with digests in place of arrays and tensors."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return [[repr(key), _structure(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_structure(item) for item in value]
    return repr(value)


def the_error(stderr: str) -> str | None:
    """Return the single ``error:`` sentence at the end of ``stderr``. None if there is none, several or a traceback."""
    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) == 2 and errors[1].startswith("error: the command above ended with"):  # of reproduce.py, behind it
        errors.pop()
        lines.pop()
    if "Traceback" in stderr or len(errors) != 1 or lines[-1] != errors[0]:
        return None
    return errors[0]


def signature(ended: Ended) -> str:
    """Return the kind of a failure: exit code, error, and the innermost line of the project in the traceback."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    if "Traceback" in ended.stderr:
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt|Warning|Exit|Fault)\b", line)]
        places = re.findall(rf'File "{re.escape(str(PROJECT))}/(?!\.venv)([^"]+)", line (\d+)', ended.stderr)
        where = f" in {places[-1][0]}:{places[-1][1]}" if places else ""
        return f"exit {ended.code}, traceback: {_general(errors[-1] if errors else lines[-1])}{where}"
    return f"exit {ended.code}: {_general(lines[-1] if lines else 'nothing said')}"


def _general(line: str) -> str:
    line = re.sub(r"\b[0-9a-f]{12,}\b", "#", line)
    return re.sub(r"\d+", "#", line)[:110]
