"""The paper's tables: MS MARCO passages and documents, and TREC DL 2019's queries on both.

Most functions below return one step: a command, and a file or folder that appears only when the command's results are
whole. ``Place`` gives the data root, passages or documents, and published models or models trained here. Paths in
commands are quoted for the shell, so a data root may contain blanks and quotes.

Of four rows, the authors also published the runs. These are measured without any model, against the official
judgements.

Models trained from scratch have a folder of their own, ``{root}/{type}/scratch``. Nobody can mistake them for the
published ones.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drhard.msmarco import CORPORA
from drhard.questions import PAPER
from drhard.recipes import (
    CHECKPOINT,
    RUN,
    SCRATCH,
    Measure,
    Row,
    Step,
    Table,
    Trial,
    expect,
    make_step,
    unquote,
)

MODES = ("dev", "test")


@dataclass(frozen=True)
class Static:
    """A training with static negatives.

    Attributes:
        row: the name of its row.
        folder: the name of its model's folder.
        negatives: ``--negatives`` of star/train.py. None for STAR, which has two stages of training.
    """

    row: str
    folder: str
    negatives: str | None


IN_BATCH = Static("In-Batch Neg", "inbatch-neg", "in-batch")
RAND = Static("Rand Neg", "rand-neg", "random")
STAR = Static("STAR", "star", None)


@dataclass(frozen=True)
class PaperRow:
    """A row as the paper prints it.

    Attributes:
        base: the static training. The row shows it, or ADORE trained on top of it.
        adore: the folder of ADORE's model. None for a row without ADORE.
        expected: the published values, in the order of the table's measures; None if there are none.
        has_run: whether the authors published its runs.
    """

    name: str
    base: Static
    adore: str | None
    expected: tuple[float, float, float] | None
    note: str = ""
    has_run: bool = False

    @property
    def folder(self) -> str:
        """The name of the folder of its runs."""
        return self.adore or self.base.folder


@dataclass(frozen=True)
class Task:
    """One of MS MARCO's two tasks: ranking passages, or ranking documents.

    Attributes:
        type: the folder under the data root, and ``--data_type`` of all scripts except preprocess.py.
        type_number: ``--data_type`` of preprocess.py.
        last_text: the file that download_data.sh writes last, and that it does not write with ``--runs``.
        length: most tokens of an embedded document.
        training: the paper's flags for a static training.
    """

    type: str
    type_number: int
    title: str
    last_text: str
    length: int
    training: str
    measures: tuple[Measure, Measure, Measure]
    rows: tuple[PaperRow, ...]


PASSAGE_TASK = Task(
    type="passage",
    type_number=1,
    title="MS MARCO passage dev, TREC DL 2019 passage",
    last_text="msmarco-test2019-queries.tsv",
    length=256,
    training=(
        "--max_query_length 24 --max_doc_length 120 --optimizer_str lamb --learning_rate 1e-4 --fp16 "
        "--gradient_checkpointing"
    ),
    measures=(
        Measure("MRR@10", "dev", "RR@10"),
        Measure("R@100", "dev", "R@100"),
        Measure("nDCG@10", "test", "nDCG@10"),
    ),
    rows=(
        PaperRow("In-Batch Neg", IN_BATCH, None, (0.264, 0.837, 0.583)),
        PaperRow("Rand Neg", RAND, None, (0.301, 0.853, 0.612)),
        PaperRow("STAR", STAR, None, (0.3404237731386721, 0.867, 0.642), has_run=True),
        PaperRow("ADORE (In-Batch Neg)", IN_BATCH, "adore-inbatch", (0.316, 0.860, 0.658)),
        PaperRow("ADORE (Rand Neg)", RAND, "adore-rand", (0.326, 0.865, 0.661)),
        PaperRow("ADORE (STAR)", STAR, "adore-star", (0.34660697230181425, 0.876, 0.683), has_run=True),
    ),
)
DOC_TASK = Task(
    type="doc",
    type_number=0,
    title="MS MARCO doc dev, TREC DL 2019 doc",
    last_text="docleaderboard-queries.tsv",
    length=512,
    training=(
        "--max_query_length 24 --max_doc_length 512 --optimizer_str lamb --learning_rate 1e-4 --fp16 "
        "--gradient_checkpointing"
    ),
    measures=(
        Measure("MRR@100", "dev", "RR@100"),
        Measure("R@100", "dev", "R@100"),
        Measure("nDCG@10", "test", "nDCG@10"),
    ),
    rows=(
        PaperRow("In-Batch Neg", IN_BATCH, None, (0.320, 0.864, 0.544)),
        PaperRow("Rand Neg", RAND, None, (0.330, 0.859, 0.572)),
        PaperRow(
            "STAR",
            STAR,
            None,
            (0.3903422772218344, 0.913, 0.605),
            note="R@100 as two later papers quote it; the published README prints 0.867, likely a slip",
            has_run=True,
        ),
        PaperRow("ADORE (In-Batch Neg)", IN_BATCH, "adore-inbatch", (0.362, 0.884, 0.580)),
        PaperRow("ADORE (Rand Neg)", RAND, "adore-rand", (0.361, 0.885, 0.585)),
        PaperRow("ADORE (STAR)", STAR, "adore-star", (0.4049777020859768, 0.919, 0.628), has_run=True),
    ),
)


@dataclass(frozen=True)
class Place:
    """Where a row is made. ``root`` and ``work`` are quoted for the shell."""

    task: Task
    origin: str
    data_root: Path
    faiss_gpus: Sequence[int]

    @property
    def type(self) -> str:
        return self.task.type

    @property
    def root(self) -> str:
        """The data root."""
        return shlex.quote(str(self.data_root))

    @property
    def work(self) -> str:
        """The folder of models, embeddings and runs."""
        return f"{self.root}/{self.type}" + ("/scratch" if self.origin == SCRATCH else "")

    @property
    def epoch(self) -> str:
        """The encoder's folder within that of an ADORE model: the last epoch's. Empty for a published model."""
        return "/epoch-6" if self.origin == SCRATCH else ""

    def gpus(self, flag: str) -> str:
        """Return ``flag`` with the GPUs to search on, or nothing to search on the CPU."""
        return f"{flag} {' '.join(map(str, self.faiss_gpus))}" if self.faiss_gpus else ""


def texts(at: Place) -> Step:
    return make_step(
        f"{at.root}/{at.type}/dataset/{at.task.last_text}",
        f"bash download_data.sh {at.type} --data_root {at.root}",
    )


def checkpoints(at: Place) -> Step:
    return make_step(
        f"{at.root}/{at.type}/trained_models/adore-star/config.json",
        f"bash download_data.sh {at.type} --models --data_root {at.root}",
    )


def fetch_run(at: Place, row: PaperRow, mode: str) -> Step:
    return make_step(
        f"{at.root}/{at.type}/published_runs/{row.folder}/{mode}.rank.tsv",
        f"bash download_data.sh {at.type} --runs --data_root {at.root}",
    )


def tokens(at: Place) -> Step:
    return make_step(
        f"{at.root}/{at.type}/preprocess/passages_meta",
        f"python preprocess.py --data_type {at.task.type_number} --data_root {at.root}",
    )


def passage_model(at: Place, base: Static) -> Step:
    return make_step(
        f"{at.root}/passage/scratch/trained_models/{base.folder}/config.json",
        f"python reproduce.py run 'passage:{base.row}' --from scratch --data_root {at.root}",
        at.gpus("--faiss_gpus"),
    )


def start(at: Place, base: Static) -> str:
    """Return the encoder that a static training starts from. Documents start from the same row's passage model."""
    return "roberta-base" if at.type == "passage" else f"{at.root}/passage/scratch/trained_models/{base.folder}"


def train_baseline(at: Place, base: Static) -> Step:
    return make_step(
        f"{at.work}/trained_models/{base.folder}/config.json",
        f"CUDA_VISIBLE_DEVICES=0 python star/train.py --do_train --negatives {base.negatives}",
        f"--init_path {start(at, base)} --preprocess_dir {at.root}/{at.type}/preprocess",
        f"--output_dir {at.work}/trained_models/{base.folder} --logging_dir {at.work}/log/{base.folder}",
        at.task.training,
    )


def bm25_negatives(at: Place) -> Step:
    return make_step(
        f"{at.root}/{at.type}/bm25_retrieve/hard.json",
        f"python star/prepare_hardneg.py --data_type {at.type} --data_root {at.root} --retriever bm25 --mode train",
    )


def warm_up(at: Place) -> Step:
    """Return the training of the paper's BM25 Neg. STAR learns from the negatives that this model mines."""
    return make_step(
        f"{at.work}/warmup/config.json",
        "CUDA_VISIBLE_DEVICES=0 python star/train.py --do_train --negatives hard",
        f"--hardneg_path {at.root}/{at.type}/bm25_retrieve/hard.json --init_path {start(at, STAR)}",
        f"--preprocess_dir {at.root}/{at.type}/preprocess --output_dir {at.work}/warmup",
        f"--logging_dir {at.work}/log/warmup {at.task.training}",
    )


def hard_negatives(at: Place) -> Step:
    return make_step(
        f"{at.work}/warmup_retrieve/hard.json",
        f"python star/prepare_hardneg.py --data_type {at.type} --data_root {at.root} --max_query_length 32",
        f"--max_doc_length {at.task.length} --mode train --model_dir {at.work}/warmup",
        f"--output_dir {at.work}/warmup_retrieve",
    )


def train_star(at: Place) -> Step:
    return make_step(
        f"{at.work}/trained_models/star/config.json",
        f"CUDA_VISIBLE_DEVICES=0 python star/train.py --do_train --hardneg_path {at.work}/warmup_retrieve/hard.json",
        f"--init_path {at.work}/warmup --preprocess_dir {at.root}/{at.type}/preprocess",
        f"--output_dir {at.work}/trained_models/star --logging_dir {at.work}/log/star {at.task.training}",
    )


def retrieve(at: Place, base: Static, mode: str) -> Step:
    return make_step(
        f"{at.work}/evaluate/{base.folder}/{mode}.rank.tsv",
        f"python star/inference.py --data_type {at.type} --data_root {at.root} --max_doc_length {at.task.length}",
        f"--mode {mode} --model_dir {at.work}/trained_models/{base.folder}",
        f"--output_dir {at.work}/evaluate/{base.folder}",
        at.gpus("--faiss_gpus"),
    )


def train_adore(at: Place, base: Static, adore: str) -> Step:
    return make_step(
        f"{at.work}/trained_models/{adore}{at.epoch}/config.json",
        f"python adore/train.py --metric_cut 200 --init_path {at.work}/trained_models/{base.folder}",
        f"--pembed_path {at.work}/evaluate/{base.folder}/passages.memmap",
        f"--preprocess_dir {at.root}/{at.type}/preprocess --model_save_dir {at.work}/trained_models/{adore}",
        f"--log_dir {at.work}/log/{adore}",
        at.gpus("--faiss_gpu_index"),
    )


def retrieve_adore(at: Place, base: Static, adore: str, mode: str) -> Step:
    return make_step(
        f"{at.work}/evaluate/{adore}/{mode}.rank.tsv",
        f"python adore/inference.py --model_dir {at.work}/trained_models/{adore}{at.epoch}",
        f"--output_dir {at.work}/evaluate/{adore} --preprocess_dir {at.root}/{at.type}/preprocess --mode {mode}",
        f"--dmemmap_path {at.work}/evaluate/{base.folder}/passages.memmap",
        at.gpus("--faiss_gpus"),
    )


def train_static(at: Place, base: Static) -> list[Step]:
    """Return all steps of a static training from scratch."""
    steps = [texts(at), tokens(at)]
    if at.type == "doc":
        steps.insert(0, passage_model(at, base))
    if base is STAR:
        return [*steps, bm25_negatives(at), warm_up(at), hard_negatives(at), train_star(at)]
    return [*steps, train_baseline(at, base)]


def make_trial(at: Place, row: PaperRow) -> Trial:
    base, adore = row.base, row.adore
    scratch = at.origin == SCRATCH
    steps = train_static(at, base) if scratch else [texts(at), checkpoints(at), tokens(at)]
    steps.append(retrieve(at, base, "dev"))
    if adore is None:
        model = base.folder
        steps.append(retrieve(at, base, "test"))
    else:
        model = f"{adore}{at.epoch}"
        if scratch:
            steps.append(train_adore(at, base, adore))
        steps += [retrieve_adore(at, base, adore, mode) for mode in MODES]
    return Trial(
        seed=None,
        steps=tuple(steps),
        model=unquote(f"{at.work}/trained_models/{model}"),
        runs={mode: unquote(f"{at.work}/evaluate/{row.folder}/{mode}.rank.tsv") for mode in MODES},
        log_dir=unquote(f"{at.work}/log/{row.folder}") if scratch else None,
    )


def published_trial(at: Place, row: PaperRow) -> Trial:
    """Return the authors' runs of a row, which have official ids."""
    steps = {mode: fetch_run(at, row, mode) for mode in MODES}
    judgements = {mode: files.qrels for mode, files in CORPORA[at.type].modes.items() if files.qrels and mode in MODES}
    return Trial(
        seed=None,
        steps=tuple(steps.values()),
        model=None,
        runs={mode: step.makes for mode, step in steps.items()},
        log_dir=None,
        qrels={mode: at.data_root / at.type / "dataset" / name for mode, name in judgements.items()},
    )


def make_row(task: Task, row: PaperRow, places: Mapping[str, Place], measures: Mapping[str, Measure]) -> Row:
    trials = {origin: (make_trial(places[origin], row),) for origin in (CHECKPOINT, SCRATCH)}
    if row.has_run:
        trials[RUN] = (published_trial(places[RUN], row),)
    return Row(task.type, row.name, expect(measures, row.expected), trials, row.note)


def msmarco_table(task: Task, data_root: Path, faiss_gpus: Sequence[int]) -> Table:
    """Return the paper's table for passages or documents.

    Args:
        faiss_gpus: the GPUs that the commands search on; none for the CPU.
    """
    places = {origin: Place(task, origin, data_root, faiss_gpus) for origin in (CHECKPOINT, SCRATCH, RUN)}
    measures = dict(zip(("mrr", "r100", "ndcg10"), task.measures, strict=True))
    rows = [make_row(task, row, places, measures) for row in task.rows]
    preprocess = data_root / task.type / "preprocess"
    return Table(
        name=task.type,
        title=task.title,
        source="Zhan et al., SIGIR 2021 (arXiv 2104.08051), and the README of its code",
        measures=measures,
        ok=0.0005,
        close=0.003,
        qrels={mode: preprocess / f"{mode}-qrel.tsv" for mode in MODES},
        rows={row.name: row for row in rows},
        questions=PAPER,
    )
