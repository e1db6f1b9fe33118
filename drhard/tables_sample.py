"""The tables of the embedded sample: rows for a laptop. Each trained row has three seeds.

One table starts from the sample's own small warm-up model, the other from all-MiniLM-L6-v2, which many people use.

Each step below has a file or folder that appears only when its command's results are whole, and the command, which
runs in the project's folder.
"""

from dataclasses import dataclass
from pathlib import Path

from drhard.recipes import SCRATCH, Measure, Question, Row, Step, Table, Trial, expect, make_step

ROOT = "runs/sample"
WORK = f"{ROOT}/passage"
SEEDS = (42, 43, 44)
QUERY_LENGTH = 24  # tokens of a query in static trainings
DOC_LENGTH = 64  # tokens of a document
COMPRESSED = "--index_factory OPQ16,PQ16"
MEASURES = {
    "mrr": Measure("dev MRR@10", "dev", "RR@10"),
    "r100": Measure("dev R@100", "dev", "R@100"),
    "ndcg10": Measure("test nDCG@10", "test", "nDCG@10"),
}
QUESTIONS = (
    Question("Is STAR better than In-Batch Neg?", "STAR", "In-Batch Neg"),
    Question("Is STAR better than Rand Neg?", "STAR", "Rand Neg"),
    Question("Does ADORE improve In-Batch Neg?", "ADORE (In-Batch Neg)", "In-Batch Neg"),
    Question("Does ADORE improve Rand Neg?", "ADORE (Rand Neg)", "Rand Neg"),
    Question("Does ADORE improve STAR?", "ADORE (STAR)", "STAR"),
    Question("Is STAR better than hard negatives only?", "STAR", "Hard only"),
    Question(
        "Is ADORE trained against a compressed index as good?", "ADORE (STAR), compressed", "ADORE (STAR)", equal=True
    ),
    Question("Is STAR better than In-Batch Neg in large batches?", "STAR, large batch", "In-Batch Neg, large batch"),
)
MINILM_QUESTIONS = (
    Question("Does STAR improve MiniLM?", "STAR", "MiniLM"),
    Question("Does ADORE improve MiniLM?", "ADORE (MiniLM)", "MiniLM"),
    Question("Is STAR better than In-Batch Neg?", "STAR", "In-Batch Neg"),
    Question("Does ADORE improve In-Batch Neg?", "ADORE (In-Batch Neg)", "In-Batch Neg"),
    Question("Does ADORE improve STAR?", "ADORE (STAR)", "STAR"),
    Question("Is STAR better than BM25?", "STAR", "BM25"),
)


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
        folder: the name of the model's folder, and of its runs' folder.
        tokens: the name of its tokens' folder.
        place: the step that puts the model there.
        tokenize: the step that makes its tokens.
        mine: the step that mines hard negatives with it.
        optimizer: ``--optimizer_str`` of star/train.py.
        adore: the settings of ADORE.
    """

    folder: str
    tokens: str
    place: Step
    tokenize: Step
    mine: Step
    optimizer: str
    adore: Adore


@dataclass(frozen=True)
class Static:
    """A training of both encoders with static negatives. The defaults are those of the sample's own model.

    Attributes:
        start: the model that it starts from.
        folder: the folder of its models, one for each seed.
        negatives: ``--negatives`` of star/train.py.
        batch: queries in a step.
        flags: further flags of star/train.py.
    """

    start: Start
    folder: str
    negatives: str
    batch: int
    rate: str = "1e-3"
    steps: int = 1600
    warmup: int = 50
    flags: str = "--save_steps 400"

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


TEXTS = make_step(
    f"{WORK}/dataset",
    f"mkdir -p {WORK} && rm -rf {WORK}/dataset.partial && cp -R data/sample/passage/dataset {WORK}/dataset.partial",
    f"&& mv {WORK}/dataset.partial {WORK}/dataset",
)

# The sample's own model. Each of its trainings encodes 51,200 documents.
WARM_UP = Start(
    folder="warmup",
    tokens="preprocess",
    place=make_step(
        f"{WORK}/warmup",
        f"rm -rf {WORK}/warmup.partial && cp -R data/sample/warmup {WORK}/warmup.partial",
        f"&& mv {WORK}/warmup.partial {WORK}/warmup",
    ),
    tokenize=make_step(
        f"{WORK}/preprocess/passages_meta",
        f"python preprocess.py --data_type 1 --data_root {ROOT} --model_name_or_path {WORK}/warmup",
        "--max_query_length 64",
    ),
    mine=make_step(
        f"{WORK}/warmup_retrieve/hard.json",
        f"python star/prepare_hardneg.py --data_type passage --data_root {ROOT} --max_doc_length {DOC_LENGTH}",
        "--mode train --topk 10",
    ),
    optimizer="lamb",
    adore=Adore(rate="5e-5", warmup=100, epochs=5),
)
IN_BATCH = Static(WARM_UP, "in-batch", "in-batch", batch=32)
RANDOM = Static(WARM_UP, "random", "random", batch=16)
HARD = Static(WARM_UP, "hard", "hard", batch=16)
STAR = Static(WARM_UP, "star", "star", batch=16)
# The same budget in fewer, larger steps: 128 documents a step, 1.3 % of the collection.
IN_BATCH_LARGE = Static(WARM_UP, "in-batch-large", "in-batch", batch=128, rate="2e-3", steps=400)
STAR_LARGE = Static(WARM_UP, "star-large", "star", batch=64, rate="2e-3", steps=400)

# A model that everyone uses. Each of its static trainings encodes 3,200 documents. For the choice of the settings, see
# data/sample/README.md.
MINILM = Start(
    folder="minilm",
    tokens="preprocess-minilm",
    place=make_step(
        f"{WORK}/minilm/config.json",
        f"python data/sample/minilm.py --output_dir {WORK}/minilm",
    ),
    tokenize=make_step(
        f"{WORK}/preprocess-minilm/passages_meta",
        f"python preprocess.py --data_type passage --data_root {ROOT} --model_name_or_path {WORK}/minilm",
        f"--preprocess_dir {WORK}/preprocess-minilm --max_seq_length 256 --max_query_length 64",
    ),
    mine=make_step(
        f"{WORK}/minilm_retrieve/hard.json",
        f"python star/prepare_hardneg.py --data_type passage --data_root {ROOT} --max_doc_length {DOC_LENGTH}",
        f"--mode train --topk 30 --preprocess_dir {WORK}/preprocess-minilm --model_dir {WORK}/minilm",
        f"--output_dir {WORK}/minilm_retrieve",
    ),
    optimizer="adamw",
    adore=Adore(rate="5e-5", warmup=50, epochs=1),
)
MINILM_FLAGS = "--save_steps 50 --logging_steps 10"
MINILM_IN_BATCH = Static(
    MINILM, "minilm-in-batch", "in-batch", batch=32, rate="1e-4", steps=100, warmup=10, flags=MINILM_FLAGS
)
MINILM_STAR = Static(MINILM, "minilm-star", "star", batch=16, rate="1e-4", steps=100, warmup=10, flags=MINILM_FLAGS)


def retrieve_bm25(mode: str) -> Step:
    return make_step(
        f"{WORK}/evaluate/bm25/{mode}.rank.tsv",
        f"python star/prepare_hardneg.py --data_type passage --data_root {ROOT} --retriever bm25 --k1 0.9 --b 0.4",
        f"--mode {mode} --output_dir {WORK}/evaluate/bm25",
    )


def train(base: Static, seed: int) -> Step:
    model, start = f"{base.folder}/seed-{seed}", base.start
    return make_step(
        f"{WORK}/trained_models/{model}/config.json",
        f"python star/train.py --do_train --negatives {base.negatives}",
        f"--hardneg_path {start.mine.makes}" if base.mined else "",
        f"--init_path {WORK}/{start.folder} --preprocess_dir {WORK}/{start.tokens}",
        f"--output_dir {WORK}/trained_models/{model} --logging_dir {WORK}/log/{model} --seed {seed}",
        f"--per_device_train_batch_size {base.batch} --max_query_length {QUERY_LENGTH} --max_doc_length {DOC_LENGTH}",
        f"--optimizer_str {start.optimizer} --learning_rate {base.rate} --max_steps {base.steps}",
        f"--warmup_steps {base.warmup} {base.flags}",
    )


def untrained(start: Start) -> Encoder:
    return Encoder(
        start,
        model=f"{WORK}/{start.folder}",
        runs=f"{WORK}/evaluate/{start.folder}",
        steps=(TEXTS, start.place, start.tokenize),
    )


def trained(base: Static, seed: int) -> Encoder:
    start = base.start
    mining = [start.mine] if base.mined else []
    return Encoder(
        start,
        model=f"{WORK}/trained_models/{base.folder}/seed-{seed}",
        runs=f"{WORK}/evaluate/{base.folder}/seed-{seed}",
        steps=(*untrained(start).steps, *mining, train(base, seed)),
    )


def retrieve(encoder: Encoder, mode: str) -> Step:
    """Return the search with both encoders. It leaves the embeddings of the passages, from which ADORE starts."""
    tokens = encoder.start.tokens
    return make_step(
        f"{encoder.runs}/{mode}.rank.tsv",
        f"python star/inference.py --data_type passage --data_root {ROOT} --max_doc_length {DOC_LENGTH} --mode {mode}",
        f"--model_dir {encoder.model} --output_dir {encoder.runs}",
        "" if tokens == "preprocess" else f"--preprocess_dir {WORK}/{tokens}",  # the script's default
    )


def train_adore(encoder: Encoder, seed: int, folder: str, index: str) -> Step:
    model, start = f"{folder}/seed-{seed}", encoder.start
    return make_step(
        f"{WORK}/trained_models/{model}/epoch-{start.adore.epochs}/config.json",
        f"python adore/train.py --metric_cut 200 --init_path {encoder.model}",
        f"--pembed_path {encoder.runs}/passages.memmap --preprocess_dir {WORK}/{start.tokens}",
        f"--model_save_dir {WORK}/trained_models/{model} --log_dir {WORK}/log/{model} --seed {seed}",
        f"--learning_rate {start.adore.rate} --warmup_steps {start.adore.warmup}",
        f"--num_train_epochs {start.adore.epochs} --logging_steps 50",
        index,
    )


def retrieve_adore(encoder: Encoder, seed: int, folder: str, mode: str) -> Step:
    model, start = f"{folder}/seed-{seed}", encoder.start
    return make_step(
        f"{WORK}/evaluate/{model}/{mode}.rank.tsv",
        f"python adore/inference.py --model_dir {WORK}/trained_models/{model}/epoch-{start.adore.epochs}",
        f"--output_dir {WORK}/evaluate/{model} --preprocess_dir {WORK}/{start.tokens} --mode {mode}",
        f"--dmemmap_path {encoder.runs}/passages.memmap",
    )


def trial_of_bm25() -> Trial:
    return Trial(
        seed=None,
        steps=(*untrained(WARM_UP).steps, retrieve_bm25("dev"), retrieve_bm25("test")),
        model=None,
        runs=_runs(f"{WORK}/evaluate/bm25"),
        log_dir=None,
    )


def trial_of_start(start: Start) -> Trial:
    encoder = untrained(start)
    return Trial(
        seed=None,
        steps=(*encoder.steps, retrieve(encoder, "dev"), retrieve(encoder, "test")),
        model=Path(encoder.model),
        runs=_runs(encoder.runs),
        log_dir=None,
    )


def trial_of_static(base: Static, seed: int) -> Trial:
    encoder = trained(base, seed)
    return Trial(
        seed=seed,
        steps=(*encoder.steps, retrieve(encoder, "dev"), retrieve(encoder, "test")),
        model=Path(encoder.model),
        runs=_runs(encoder.runs),
        log_dir=Path(f"{WORK}/log/{base.folder}/seed-{seed}"),
    )


def trial_of_adore(base: Start | Static, seed: int, folder: str, index: str = "") -> Trial:
    """Return ADORE's trial on a static model, or on a model as it is.

    Args:
        folder: the folder of ADORE's models, one for each seed.
        index: flags of adore/train.py for a compressed index.
    """
    encoder = untrained(base) if isinstance(base, Start) else trained(base, seed)
    model = f"{folder}/seed-{seed}"
    steps = (
        *encoder.steps,
        retrieve(encoder, "dev"),
        train_adore(encoder, seed, folder, index),
        retrieve_adore(encoder, seed, folder, "dev"),
        retrieve_adore(encoder, seed, folder, "test"),
    )
    return Trial(
        seed=seed,
        steps=steps,
        model=Path(f"{WORK}/trained_models/{model}/epoch-{encoder.start.adore.epochs}"),
        runs=_runs(f"{WORK}/evaluate/{model}"),
        log_dir=Path(f"{WORK}/log/{model}"),
    )


def _runs(folder: str) -> dict[str, Path]:
    return {mode: Path(f"{folder}/{mode}.rank.tsv") for mode in ("dev", "test")}


def make_row(table: str, name: str, expected: tuple[float, float, float] | None, *trials: Trial) -> Row:
    """Return a row.

    Args:
        expected: the values of :data:`MEASURES`; None until they are measured.
    """
    return Row(table, name, expect(MEASURES, expected), {SCRATCH: trials})


def make_table(start: Start, name: str, title: str, questions: tuple[Question, ...], *rows: Row) -> Table:
    """Return a table of rows that start from one model. Its expected values were measured with these commands."""
    return Table(
        name=name,
        title=title,
        source="measured with these very commands; data/sample/results",
        measures=MEASURES,
        ok=0.0005,
        close=0.01,
        qrels={mode: Path(f"{WORK}/{start.tokens}/{mode}-qrel.tsv") for mode in ("dev", "test")},
        rows={row.name: row for row in rows},
        questions=questions,
        gains=("ADORE (STAR)", "STAR"),
    )


def static(base: Static) -> list[Trial]:
    return [trial_of_static(base, seed) for seed in SEEDS]


def adore(base: Start | Static, folder: str, index: str = "") -> list[Trial]:
    return [trial_of_adore(base, seed, folder, index) for seed in SEEDS]


def sample_table() -> Table:
    """Return the table of the sample's own model."""

    def row(name: str, mrr: float, r100: float, ndcg10: float, *trials: Trial) -> Row:
        return make_row("sample", name, (mrr, r100, ndcg10), *trials)

    return make_table(
        WARM_UP,
        "sample",
        "The embedded sample",
        QUESTIONS,
        row("BM25", 0.6967, 0.9590, 0.7209, trial_of_bm25()),
        row("Warm-up", 0.4968, 0.9650, 0.5692, trial_of_start(WARM_UP)),
        row("In-Batch Neg", 0.5621, 0.9663, 0.6161, *static(IN_BATCH)),
        row("Rand Neg", 0.5091, 0.9533, 0.5619, *static(RANDOM)),
        row("Hard only", 0.5054, 0.9293, 0.5370, *static(HARD)),
        row("STAR", 0.5724, 0.9703, 0.6155, *static(STAR)),
        row("ADORE (In-Batch Neg)", 0.5788, 0.9717, 0.6371, *adore(IN_BATCH, "adore-in-batch")),
        row("ADORE (Rand Neg)", 0.5561, 0.9677, 0.6044, *adore(RANDOM, "adore-random")),
        row("ADORE (STAR)", 0.5851, 0.9733, 0.6292, *adore(STAR, "adore-star")),
        row("ADORE (STAR), compressed", 0.5876, 0.9737, 0.6301, *adore(STAR, "adore-star-pq", COMPRESSED)),
        row("In-Batch Neg, large batch", 0.5682, 0.9693, 0.6132, *static(IN_BATCH_LARGE)),
        row("STAR, large batch", 0.5727, 0.9697, 0.6171, *static(STAR_LARGE)),
    )


def minilm_table() -> Table:
    """Return the table of all-MiniLM-L6-v2."""

    def row(name: str, mrr: float, r100: float, ndcg10: float, *trials: Trial) -> Row:
        return make_row("minilm", name, (mrr, r100, ndcg10), *trials)

    return make_table(
        MINILM,
        "minilm",
        "The embedded sample, with all-MiniLM-L6-v2",
        MINILM_QUESTIONS,
        row("BM25", 0.6967, 0.9590, 0.7209, trial_of_bm25()),
        row("MiniLM", 0.6262, 0.9860, 0.6615, trial_of_start(MINILM)),
        row("In-Batch Neg", 0.7699, 0.9937, 0.8044, *static(MINILM_IN_BATCH)),
        row("STAR", 0.7920, 0.9940, 0.8222, *static(MINILM_STAR)),
        row("ADORE (MiniLM)", 0.6701, 0.9933, 0.7030, *adore(MINILM, "minilm-adore")),
        row("ADORE (In-Batch Neg)", 0.7895, 0.9960, 0.8219, *adore(MINILM_IN_BATCH, "minilm-adore-in-batch")),
        row("ADORE (STAR)", 0.8027, 0.9960, 0.8344, *adore(MINILM_STAR, "minilm-adore-star")),
    )
