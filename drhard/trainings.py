"""The trainings of a table on a laptop: a starting model, static negatives, ADORE, and the commands for each.

Each step has a file or folder that appears only when its command's results are whole. Commands run in the project's
folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drhard.recipes import Measure, Question, Row, Step, Table, Trial, make_step

MODES = ("dev", "test")
MEASURES = {
    "mrr": Measure("dev MRR@10", "dev", "RR@10"),
    "r100": Measure("dev R@100", "dev", "R@100"),
    "ndcg10": Measure("test nDCG@10", "test", "nDCG@10"),
}

SEARCH, ADORE_SEARCH = "--faiss_gpus", "--faiss_gpu_index"  # two published names of the same


@dataclass(frozen=True)
class Data:
    """A collection, and how its texts are cut.

    Attributes:
        root: its data root.
        texts: the step that puts the texts there.
        query_length: tokens of a query in static trainings.
        doc_length: tokens of a document.
        bm25: further flags of BM25's search.
        gpus: the GPUs to search on; passages are then encoded in half precision. Empty for the CPU.
    """

    root: str
    texts: Step
    query_length: int = 24
    doc_length: int = 64
    bm25: str = ""
    gpus: Sequence[int] = ()

    @property
    def work(self) -> str:
        return f"{self.root}/passage"

    def search_on(self, flag: str) -> str:
        """Return ``flag`` with the GPUs; "" for the CPU."""
        return f"{flag} {' '.join(map(str, self.gpus))}" if self.gpus else ""

    @property
    def precision(self) -> str:
        return "--fp16" if self.gpus else ""


@dataclass(frozen=True)
class Adore:
    """Settings of adore/train.py."""

    rate: str
    warmup: int
    epochs: int


@dataclass(frozen=True)
class Start:
    """A model that trainings start from, and what they share.

    Attributes:
        data: the collection.
        folder: the name of the model's folder, and of its runs' folder.
        tokens: the name of its tokens' folder.
        place: the step that puts the model there.
        tokenize: the step that makes its tokens.
        mine: the step that mines hard negatives with it.
        optimizer: ``--optimizer_str`` of star/train.py.
        adore: the settings of ADORE.
    """

    data: Data
    folder: str
    tokens: str
    place: Step
    tokenize: Step
    mine: Step
    optimizer: str
    adore: Adore


@dataclass(frozen=True)
class Static:
    """A training of both encoders with static negatives.

    Attributes:
        start: the model that it starts from.
        folder: the folder of its models, one for each seed.
        negatives: ``--negatives`` of star/train.py.
        batch: queries in a step.
        rate: the learning rate after ``warmup`` of all ``steps``.
        flags: further flags of star/train.py.
        mine: the step that mines its hard negatives; None for the start's.
        first: an earlier training, whose model it starts from and mines its hard negatives with.
        depth: how many of the hardest it mines with that model.
    """

    start: Start
    folder: str
    negatives: str
    batch: int
    rate: str
    steps: int
    warmup: int
    flags: str
    mine: Step | None = None
    first: "Static | None" = None
    depth: int = 0

    @property
    def mined(self) -> bool:
        """Whether its negatives are mined first."""
        from drhard.strategies import STRATEGIES  # imported here: flags are parsed before NumPy loads

        return STRATEGIES[self.negatives].mined


@dataclass(frozen=True)
class Encoder:
    """A model of queries and passages.

    Attributes:
        start: the model that its training started from, or that it is.
        model: its folder.
        runs: the folder of its embeddings and runs.
        steps: all steps that make it and its tokens.
    """

    start: Start
    model: str
    runs: str
    steps: tuple[Step, ...]


def mine_with(data: Data, model: str, output: str, selection: str, tokens: str) -> Step:
    """Return the step that mines hard negatives of the training queries.

    Args:
        model: the folder of the model.
        output: the folder to write.
        selection: flags that choose among the passages that are found.
        tokens: the name of the model's tokens' folder.
    """
    return make_step(
        f"{output}/hard.json",
        f"python star/prepare_hardneg.py --data_type passage --data_root {data.root}",
        f"--max_doc_length {data.doc_length} --mode train {selection}",
        f"--preprocess_dir {data.work}/{tokens} --model_dir {model} --output_dir {output}",
        data.precision,
    )


def train(base: Static, seed: int) -> tuple[Step, ...]:
    """Return the steps of a training: mining, if it needs that, and the training itself."""
    model, start, data = f"{base.folder}/seed-{seed}", base.start, base.start.data
    init, mine = f"{data.work}/{start.folder}", base.mine or start.mine
    if base.first:
        init = trained(base.first, seed).model
        mine = mine_with(data, init, f"{data.work}/mined/{model}", f"--topk {base.depth}", start.tokens)
    training = make_step(
        f"{data.work}/trained_models/{model}/config.json",
        f"python star/train.py --do_train --negatives {base.negatives}",
        f"--hardneg_path {mine.makes}" if base.mined else "",
        f"--init_path {init} --preprocess_dir {data.work}/{start.tokens}",
        f"--output_dir {data.work}/trained_models/{model} --logging_dir {data.work}/log/{model} --seed {seed}",
        f"--per_device_train_batch_size {base.batch} --max_query_length {data.query_length}",
        f"--max_doc_length {data.doc_length}",
        f"--optimizer_str {start.optimizer} --learning_rate {base.rate} --max_steps {base.steps}",
        f"--warmup_steps {base.warmup} {base.flags}",
    )
    return (mine, training) if base.mined else (training,)


def untrained(start: Start) -> Encoder:
    return Encoder(
        start,
        model=f"{start.data.work}/{start.folder}",
        runs=f"{start.data.work}/evaluate/{start.folder}",
        steps=(start.data.texts, start.place, start.tokenize),
    )


def trained(base: Static, seed: int) -> Encoder:
    before = trained(base.first, seed) if base.first else untrained(base.start)
    return Encoder(
        base.start,
        model=f"{base.start.data.work}/trained_models/{base.folder}/seed-{seed}",
        runs=f"{base.start.data.work}/evaluate/{base.folder}/seed-{seed}",
        steps=(*before.steps, *train(base, seed)),
    )


def retrieve(encoder: Encoder, mode: str) -> Step:
    """Return the search with both encoders. It leaves the embeddings of the passages, from which ADORE starts."""
    data, tokens = encoder.start.data, encoder.start.tokens
    return make_step(
        f"{encoder.runs}/{mode}.rank.tsv",
        f"python star/inference.py --data_type passage --data_root {data.root} --max_doc_length {data.doc_length}",
        f"--mode {mode} --model_dir {encoder.model} --output_dir {encoder.runs}",
        "" if tokens == "preprocess" else f"--preprocess_dir {data.work}/{tokens}",  # the script's default
        data.search_on(SEARCH),
        data.precision,
    )


def train_adore(encoder: Encoder, seed: int, folder: str, index: str) -> Step:
    model, start, data = f"{folder}/seed-{seed}", encoder.start, encoder.start.data
    return make_step(
        f"{data.work}/trained_models/{model}/epoch-{start.adore.epochs}/config.json",
        f"python adore/train.py --metric_cut 200 --init_path {encoder.model}",
        f"--pembed_path {encoder.runs}/passages.memmap --preprocess_dir {data.work}/{start.tokens}",
        f"--model_save_dir {data.work}/trained_models/{model} --log_dir {data.work}/log/{model} --seed {seed}",
        f"--learning_rate {start.adore.rate} --warmup_steps {start.adore.warmup}",
        f"--num_train_epochs {start.adore.epochs} --logging_steps 50",
        index or data.search_on(ADORE_SEARCH),
    )


def retrieve_adore(encoder: Encoder, seed: int, folder: str, mode: str) -> Step:
    model, start, data = f"{folder}/seed-{seed}", encoder.start, encoder.start.data
    return make_step(
        f"{data.work}/evaluate/{model}/{mode}.rank.tsv",
        f"python adore/inference.py --model_dir {data.work}/trained_models/{model}/epoch-{start.adore.epochs}",
        f"--output_dir {data.work}/evaluate/{model} --preprocess_dir {data.work}/{start.tokens} --mode {mode}",
        f"--dmemmap_path {encoder.runs}/passages.memmap",
        data.search_on(SEARCH),
    )


def retrieve_bm25(start: Start, mode: str) -> Step:
    data = start.data
    return make_step(
        f"{data.work}/evaluate/bm25/{mode}.rank.tsv",
        f"python star/prepare_hardneg.py --data_type passage --data_root {data.root} --retriever bm25 --k1 0.9 --b 0.4",
        data.bm25,
        f"--mode {mode} --output_dir {data.work}/evaluate/bm25",
        "" if start.tokens == "preprocess" else f"--preprocess_dir {data.work}/{start.tokens}",
    )


def trial_of_bm25(start: Start, modes: Sequence[str] = MODES) -> Trial:
    return Trial(
        seed=None,
        steps=(*untrained(start).steps, *(retrieve_bm25(start, mode) for mode in modes)),
        model=None,
        runs=_runs(f"{start.data.work}/evaluate/bm25", modes),
        log_dir=None,
    )


def trial_of_start(start: Start, modes: Sequence[str] = MODES) -> Trial:
    encoder = untrained(start)
    return Trial(
        seed=None,
        steps=(*encoder.steps, *(retrieve(encoder, mode) for mode in modes)),
        model=Path(encoder.model),
        runs=_runs(encoder.runs, modes),
        log_dir=None,
    )


def trial_of_static(base: Static, seed: int, modes: Sequence[str] = MODES) -> Trial:
    encoder = trained(base, seed)
    return Trial(
        seed=seed,
        steps=(*encoder.steps, *(retrieve(encoder, mode) for mode in modes)),
        model=Path(encoder.model),
        runs=_runs(encoder.runs, modes),
        log_dir=Path(f"{base.start.data.work}/log/{base.folder}/seed-{seed}"),
    )


def trial_of_adore(
    base: Start | Static, seed: int, folder: str, index: str = "", modes: Sequence[str] = MODES
) -> Trial:
    """Return ADORE's trial on a static model, or on a model as it is.

    Args:
        folder: the folder of ADORE's models, one for each seed.
        index: flags of adore/train.py for a compressed index.
    """
    encoder = untrained(base) if isinstance(base, Start) else trained(base, seed)
    model, work = f"{folder}/seed-{seed}", encoder.start.data.work
    steps = (
        *encoder.steps,
        retrieve(encoder, "dev"),
        train_adore(encoder, seed, folder, index),
        *(retrieve_adore(encoder, seed, folder, mode) for mode in modes),
    )
    return Trial(
        seed=seed,
        steps=steps,
        model=Path(f"{work}/trained_models/{model}/epoch-{encoder.start.adore.epochs}"),
        runs=_runs(f"{work}/evaluate/{model}", modes),
        log_dir=Path(f"{work}/log/{model}"),
    )


def _runs(folder: str, modes: Sequence[str]) -> dict[str, Path]:
    return {mode: Path(f"{folder}/{mode}.rank.tsv") for mode in modes}


def make_table(
    start: Start,
    title: str,
    source: str,
    rows: Sequence[Row],
    questions: Iterable[Question] = (),
    measures: Mapping[str, Measure] = MEASURES,
) -> Table:
    """Return the table of rows that start from one model."""
    return Table(
        name=rows[0].table,
        title=title,
        source=source,
        measures=measures,
        ok=0.0005,
        close=0.01,
        qrels={
            mode: Path(f"{start.data.work}/{start.tokens}/{mode}-qrel.tsv")
            for mode in sorted({measure.mode for measure in measures.values()})
        },
        rows={row.name: row for row in rows},
        questions=tuple(questions),
    )
