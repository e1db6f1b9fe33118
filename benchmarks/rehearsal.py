"""Rehearse the whole walk-through at MS MARCO's counts: run each command with its published flags, and measure it.

The collection is synthetic and the encoder tiny (one layer of 16). Passages, documents, queries and judgements are as
many as MS MARCO has. Each command runs as a separate process in the folder, as in docs/walkthrough.md. The rehearsal
stops if a command fails. Run it again to resume there. At the end it fails if a command took more than 3 GB of memory
beside what --search_memory_gb allows.

    python benchmarks/rehearsal.py --folder /data/rehearsal                 # everything: 2 hours, 45 GB of disk
    python benchmarks/rehearsal.py --folder /tmp/rehearsal --scale 0.001    # a thousandth of it

Differences from the published commands: STAR trains two steps. ADORE is stopped by Ctrl-C after its first logged steps,
resumed, and stopped again. Documents are encoded 16 at a time (--chunk_size): the activations of 256 documents of 512
tokens take 2.9 GB even in this encoder. GPUs are not used. Retrieval for all training queries searches only the first
--train_documents: 502,939 queries by 8,841,823 passages would be 4.4e12 scores.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drhard.commands import command
from drhard.errors import InputError
from drhard.files import read_object, sole_writer, write_json, write_whole_text
from drhard.flags import SEARCH_MEMORY_GB
from drhard.msmarco import CORPORA

import psutil
from measuring import ROOT, arguments, positive, save, show_machine
from synthetic import COUNTS, HIDDEN, Counts, write_collection, write_published

OWN_GB = 3.0  # memory limit of any command
TRAIN_DOCUMENTS = 500_000
SMALL = 0.1  # up to this scale, BM25 mines by default and STAR also mines its own negatives
SECONDS = 0.1  # least time between two looks at a command's memory
STOP_AT = re.compile(rb"loss\W+\d")  # in ADORE's output once it has logged
RECORD, TABLE = "rehearsal.json", "rehearsal.md"
TEXT_BYTES = {"passage": 120, "doc": 80}  # of a document's line on disk; documents are packed
WIDTH = {"passage": 256, "doc": 512}  # published --max_doc_length of inference
TRAINED_WIDTH = {"passage": 120, "doc": 512}
CHUNKS = {"passage": "", "doc": " --chunk_size 16"}
CAPTION = """Seconds are those of the whole process. Memory is the most that all processes of the command held
together: anonymous and shared pages (Pss_Anon and Pss_Shmem of /proc/PID/smaps_rollup, looked at every 0.1 s, or less
often where a look takes over 10 ms). Pages of files, memmaps and libraries among them, do not count: the system drops
them when memory runs short. The limit is 3 GB and, for a command that searches, the 2 GB that --search_memory_gb
allows. Disk is what the folder gained."""


@dataclass(frozen=True)
class Command:
    """One command of the walk-through.

    Attributes:
        line: the command as typed in the folder, with the script's path in the project.
        search: whether it may also take the memory that ``--search_memory_gb`` allows.
        stop: whether to stop it by Ctrl-C after its first logged steps.
        left_out: why it does not run.
    """

    line: str
    search: bool = False
    stop: bool = False
    left_out: str = ""

    @property
    def limit_gb(self) -> float:
        """The memory limit."""
        return OWN_GB + (SEARCH_MEMORY_GB if self.search else 0)


@dataclass(frozen=True)
class Plan:
    """The rehearsal of one collection.

    Attributes:
        train_documents: the number of documents searched for all training queries.
        small: whether STAR also mines its own negatives.
        bm25: whether BM25 mines.
        root: the data root, in the folder.
    """

    data_type: str
    counts: Counts
    train_documents: int
    small: bool
    bm25: bool
    root: str = "./data"

    @property
    def few(self) -> str:
        """The data root of the collection to search for all training queries."""
        return self.root if self.train_documents >= self.counts.documents else "./few"

    @property
    def few_counts(self) -> Counts:
        """The counts of the collection in ``few``."""
        return replace(self.counts, documents=min(self.train_documents, self.counts.documents))

    def prepare(self, folder: Path) -> None:
        """Write the texts and the checkpoints."""
        write_published(folder / self.root)
        for root, counts in {self.root: self.counts, self.few: self.few_counts}.items():
            dataset = folder / root / self.data_type / "dataset"
            dataset.mkdir(parents=True, exist_ok=True)
            write_collection(self.data_type, counts, dataset)

    def disk_bytes(self) -> int:
        """Return roughly how many bytes everything takes."""
        total = 0
        for counts in {self.root: self.counts, self.few: self.few_counts}.values():
            tokens, vectors = 4 * 512, 3 * 4 * HIDDEN
            total += counts.documents * (TEXT_BYTES[self.data_type] + tokens + vectors + 12)
            total += sum(counts.queries.values()) * (40 + 4 * 64 + 4 * HIDDEN)
        results = self.counts.judged["train"] * (100 + 210)  # each a line of a run and a score; some in hard.json too
        return int(1.2 * (total + results * (23 + 4) + self.counts.judged["train"] * 200 * 9))

    def commands(self) -> Iterator[Command]:
        """Yield the commands in the order of docs/walkthrough.md."""
        few = [] if self.few == self.root else [self._preprocess(self.few)]
        yield self._preprocess(self.root)
        yield from few
        yield from self._retrieval()
        yield from self._evaluation()
        yield from self._star()
        yield from self._adore()
        qrels, run = (
            f"{self.few}/{self.data_type}/{file}"
            for file in ("preprocess/train-qrel.tsv", "evaluate/star/train.rank.tsv")
        )
        yield Command(f"msmarco_eval.py {qrels} {run}")
        yield Command(f"trec_eval.py {qrels} {run}")

    def _preprocess(self, root: str) -> Command:
        number = {"passage": 1, "doc": 0}[self.data_type]
        return Command(f"preprocess.py --data_type {number}" + self._at(root))

    def _at(self, root: str) -> str:
        return "" if root == self.root else f" --data_root {root}"

    def _retrieval(self) -> Iterator[Command]:
        for mode in ("dev", "test", "lead", "train"):
            width = WIDTH[self.data_type]
            line = f"star/inference.py --data_type {self.data_type} --max_doc_length {width} --mode {mode}"
            if mode == "train":
                line += self._at(self.few)
                if self.few != self.root:
                    line += f" --model_dir {self.root}/{self.data_type}/trained_models/star"
            yield Command(line, search=True)
        for mode in ("dev", "test"):
            yield self._adore_inference("trained_models/adore-star", "adore-star", "star", mode)

    def _adore_inference(self, model: str, output: str, documents: str, mode: str) -> Command:
        data = f"{self.root}/{self.data_type}"
        return Command(
            f"adore/inference.py --model_dir {data}/{model} --output_dir {data}/evaluate/{output} "
            f"--preprocess_dir {data}/preprocess --mode {mode} "
            f"--dmemmap_path {data}/evaluate/{documents}/passages.memmap",
            search=True,
        )

    def _evaluation(self) -> Iterator[Command]:
        data, corpus = f"{self.root}/{self.data_type}", CORPORA[self.data_type]
        run, official = f"{data}/evaluate/adore-star", f"{data}/official_runs/adore-star"
        passage = self.data_type == "passage"
        yield Command(
            f"msmarco_eval.py {data}/preprocess/dev-qrel.tsv {run}/dev.rank.tsv" + ("" if passage else " 100")
        )
        for trec in ("", " --trec"):
            yield Command(
                f"cvt_back.py --input_dir {run} --preprocess_dir {data}/preprocess --output_dir {official} --mode dev "
                f"--dataset {self.data_type}{trec}"
            )
        judgements = f"{data}/dataset/{corpus.modes['dev'].qrels}"
        yield Command(f"msmarco_eval.py {judgements} {official}/dev.rank.tsv" + ("" if passage else " doc"))
        yield Command(f"trec_eval.py -l 2 {data}/preprocess/test-qrel.tsv {run}/test.rank.tsv")
        yield Command(
            f"trec_eval.py {data}/preprocess/dev-qrel.tsv {run}/dev.rank.tsv --measures RR@10 R@100 "
            f"--compare {data}/evaluate/star/dev.rank.tsv"
        )

    def _star(self) -> Iterator[Command]:
        data, few = f"{self.root}/{self.data_type}", f"{self.few}/{self.data_type}"
        width, trained = WIDTH[self.data_type], TRAINED_WIDTH[self.data_type]
        mine = f"star/prepare_hardneg.py --data_type {self.data_type}"
        # No warm-up model for documents was published.
        start = f"{self.root}/passage/" + ("warmup" if self.data_type == "passage" else "trained_models/star")
        yield Command(
            f"{mine} --max_query_length 32 --max_doc_length {width} --mode train --model_dir {start}"
            + self._at(self.few),
            search=True,
        )
        reason = "" if self.bm25 else "BM25 takes 10 GB and a night for all passages; --bm25 includes it"
        yield Command(f"{mine} --retriever bm25 --mode train" + self._at(self.few), left_out=reason)
        for negatives, hard in (("", True), ("in-batch", False), ("random", False), ("hard", True), ("star", False)):
            name = f"star_train{negatives and f'-{negatives}'}"
            mines_itself = negatives == "star"
            yield Command(
                f"star/train.py --do_train --max_query_length 24 --max_doc_length {trained} "
                f"--preprocess_dir {data}/preprocess "
                + (f"--hardneg_path {few}/warmup_retrieve/hard.json " if hard else "")
                + f"--init_path {start} --output_dir {data}/{name}/models --logging_dir {data}/{name}/log "
                "--optimizer_str lamb --learning_rate 1e-4 --gradient_checkpointing --fp16 --max_steps 2"
                + CHUNKS[self.data_type]
                + (f" --negatives {negatives}" if negatives else ""),
                search=mines_itself,
                left_out="" if self.small or not mines_itself else "mines as prepare_hardneg.py does, which ran above",
            )
        yield Command(
            f"star/inference.py --data_type {self.data_type} --max_doc_length {width} --mode dev "
            f"--model_dir {data}/star_train/models --output_dir {data}/evaluate/star_train",
            search=True,
        )

    def _adore(self) -> Iterator[Command]:
        data = f"{self.root}/{self.data_type}"
        line = (
            f"adore/train.py --metric_cut 200 --init_path {data}/trained_models/star "
            f"--pembed_path {data}/evaluate/star/passages.memmap --model_save_dir {data}/adore_train/models "
            f"--log_dir {data}/adore_train/log --preprocess_dir {data}/preprocess --model_gpu_index 0"
        )
        yield Command(line, stop=True)
        yield Command(f"{line}  # resumes", stop=True)


class Record:
    """The results so far, in ``FOLDER/rehearsal.json``. A command with a result does not run again."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        if path.exists():
            content = read_object(path, {"settings": dict, "results": dict})
            if content["settings"] != settings:
                raise InputError(f"{path}: belongs to a rehearsal with {content['settings']}; name another --folder")
            self.results = content["results"]
        self.settings = settings

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep the result of a command."""
        self.results[name] = result
        write_json(self.path, {"settings": self.settings, "results": self.results}, indent=1)


def parse_arguments() -> Any:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for all files, which are kept")
    parser.add_argument("--data_type", nargs="+", choices=list(COUNTS), default=list(COUNTS), help="default: both")
    parser.add_argument("--scale", type=float, default=1.0, help="of MS MARCO's counts (1)")
    parser.add_argument("--bm25", action="store_true", help=f"mine with BM25 at a scale above {SMALL:g} too")
    parser.add_argument(
        "--train_documents",
        type=positive,
        default=TRAIN_DOCUMENTS,
        help="documents to search for all training queries (%(default)d)",
    )
    args = parser.parse_args()
    if not 0 < args.scale <= 1:
        parser.error(f"argument --scale: {args.scale:g} is not a part of MS MARCO; give more than 0, up to 1")
    return args


def measure(words: list[str], folder: Path, log: Path, stop: bool = False) -> dict[str, Any]:
    """Run a command in the folder, with its output in ``log``.

    Args:
        words: the script, relative to the project, and its arguments.
        stop: press Ctrl-C once the command has logged a loss.

    Returns:
        seconds, peak_gb, disk_gb, code (what it ended with) and stopped (whether by us).
    """
    before, start = used_bytes(folder), time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    log.parent.mkdir(exist_ok=True)
    peak, stopped = 0, False
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / words[0]), *words[1:]],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            look_at = 0.0
            while process.poll() is None:
                ends = stop and not stopped and bool(STOP_AT.search(log.read_bytes()))
                started = time.perf_counter()
                if ends or started >= look_at:
                    peak = max(peak, memory_of_tree(process.pid))
                    # To count, the system goes through all pages of a memmap. A look may take a tenth of the time.
                    look_at = time.perf_counter() + 10 * (time.perf_counter() - started)
                if ends:
                    process.send_signal(signal.SIGINT)
                    stopped = True
                time.sleep(SECONDS)
        except BaseException:
            process.wait()  # Ctrl-C has reached it too; it puts its work in order
            raise
    return {
        "seconds": time.perf_counter() - start,
        "peak_gb": peak / 1e9,
        "disk_gb": (used_bytes(folder) - before) / 1e9,
        "code": process.returncode,
        "stopped": stopped,
    }


def memory_of_tree(pid: int) -> int:
    """Return the bytes that a process and its descendants hold and that no file backs."""
    try:
        root = psutil.Process(pid)
        return sum(memory_of(process) for process in [root, *root.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def memory_of(process: psutil.Process) -> int:
    """Return the bytes of a process's anonymous memory and of its part of shared memory; 0 once it has ended."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    try:
        if not rollup.exists():  # not Linux
            return process.memory_full_info().uss
        fields = dict(line.split(":", 1) for line in rollup.read_text().splitlines()[1:])
        return sum(int(fields[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem"))
    except (OSError, psutil.Error):
        return 0


def used_bytes(folder: Path) -> int:
    """Return the bytes that the files in a folder take on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink())


def rehearse(plan: Plan, folder: Path, record: Record) -> Iterator[tuple[str, Command, dict[str, Any]]]:
    """Run each command without a result. Yield all names, commands and results. Raises InputError if one fails."""
    name = f"{plan.data_type}: write the collection"
    if name not in record.results:
        start, before = time.perf_counter(), used_bytes(folder)
        plan.prepare(folder)
        seconds, disk_gb = time.perf_counter() - start, (used_bytes(folder) - before) / 1e9
        record.add(name, {"seconds": seconds, "disk_gb": disk_gb})
    for number, step in enumerate(plan.commands(), start=1):
        name = f"{plan.data_type}: {step.line}"
        if step.left_out:
            yield name, step, {"left_out": step.left_out}
            continue
        if name not in record.results:
            log = folder / "logs" / f"{plan.data_type}-{number:02}.log"
            result = measure(step.line.partition("  #")[0].split(), folder, log, step.stop)
            if result["code"] != 0 and not (result["stopped"] and result["code"] == 130):
                last = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()[-1:]
                raise InputError(
                    f"'python {step.line}' ended with exit code {result['code']}: {' '.join(last)} ({log}); "
                    "fix this and run the same command again"
                )
            record.add(name, result)
        yield name, step, record.results[name]


def table_row(plan: Plan, step: Command, result: dict[str, Any]) -> str:
    """Return a line of the table in Markdown."""
    line = step.line.replace(f"{plan.root}/{plan.data_type}/", "")
    if step.left_out:
        return f"| `{line}` | skipped: {step.left_out} | | | |"
    over = " **over**" if result["peak_gb"] > step.limit_gb else ""
    figures = f"{result['seconds']:.1f} | {result['peak_gb']:.2f}{over} | {step.limit_gb:g} | {result['disk_gb']:.2f}"
    return f"| `{line}`{' (stopped by Ctrl-C)' if result['stopped'] else ''} | {figures} |"


def header(plan: Plan) -> list[str]:
    """Return the lines above the table of a collection."""
    counts = plan.counts
    queries = ", ".join(
        f"{counts.judged.get(mode, counts.queries[mode]):,} {mode}" for mode in ("train", "dev", "test", "lead")
    )
    title = (
        f"{plan.data_type}: {counts.documents:,} documents, {counts.judgements['train']:,} training judgements; "
        f"queries: {queries}"
    )
    if plan.few != plan.root:
        title += f"; in {plan.few}: the same queries, {plan.few_counts.documents:,} documents"
    title += f". Paths are those in {plan.root}/{plan.data_type}"
    return ["", title, "", "| command | seconds | memory, GB | its limit | disk, GB |", "|---|---|---|---|---|"]


@command
def main() -> None:
    args = parse_arguments()
    folder = args.folder.resolve()
    small = args.scale <= SMALL
    plans = [
        Plan(data_type, COUNTS[data_type].scaled(args.scale), args.train_documents, small, small or args.bm25)
        for data_type in args.data_type
    ]
    lines: list[str] = []

    def tell(*more: str) -> None:
        lines.extend(more)
        print("\n".join(more), flush=True)
        with write_whole_text(folder / TABLE) as file:
            file.write("\n".join(lines) + "\n")

    with sole_writer(folder):
        record = Record(folder / RECORD, {"scale": args.scale, "train_documents": args.train_documents})
        room = shutil.disk_usage(folder).free + used_bytes(folder)
        needed = sum(plan.disk_bytes() for plan in plans)
        if room < needed:
            raise InputError(f"{folder}: needs {needed / 1e9:.1f} GB, but its disk has only {room / 1e9:.1f}")
        show_machine()
        results, over = [], []
        for plan in plans:
            tell(*header(plan))
            for name, step, result in rehearse(plan, folder, record):
                tell(table_row(plan, step, result))
                results.append({"command": name, "limit_gb": step.limit_gb} | result)
                if result.get("peak_gb", 0) > step.limit_gb:
                    over.append(name)
                if args.output:
                    write_json(args.output, {"results": results})
        tell("", CAPTION)
        save(args.output, {"scale": args.scale, "results": results})
    if over:
        raise InputError(f"{len(over)} commands took more memory than their limit: {'; '.join(over)}")


if __name__ == "__main__":
    main()
