"""The table of the embedded sample: twelve rows for a laptop. Each trained row has three seeds.

Each step below has a file or folder that appears only when its command's results are whole, and the command, which
runs in the project's folder.
"""

from dataclasses import dataclass
from pathlib import Path

from drhard.recipes import SCRATCH, Measure, Question, Row, Step, Table, Trial, make_step

ROOT = "runs/sample"
WORK = f"{ROOT}/passage"
SEEDS = (42, 43, 44)
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

TEXTS = make_step(
    f"{WORK}/dataset",
    f"mkdir -p {WORK} && rm -rf {WORK}/dataset.partial && cp -R data/sample/passage/dataset {WORK}/dataset.partial",
    f"&& mv {WORK}/dataset.partial {WORK}/dataset",
)
START = make_step(
    f"{WORK}/warmup",
    f"rm -rf {WORK}/warmup.partial && cp -R data/sample/warmup {WORK}/warmup.partial",
    f"&& mv {WORK}/warmup.partial {WORK}/warmup",
)
TOKENS = make_step(
    f"{WORK}/preprocess/passages_meta",
    f"python preprocess.py --data_type 1 --data_root {ROOT} --model_name_or_path {WORK}/warmup --max_query_length 64",
)
HARD_NEGATIVES = make_step(
    f"{WORK}/warmup_retrieve/hard.json",
    f"python star/prepare_hardneg.py --data_type passage --data_root {ROOT} --max_doc_length 64 --mode train --topk 10",
)


def retrieve_bm25(mode: str) -> Step:
    return make_step(
        f"{WORK}/evaluate/bm25/{mode}.rank.tsv",
        f"python star/prepare_hardneg.py --data_type passage --data_root {ROOT} --retriever bm25 --k1 0.9 --b 0.4",
        f"--mode {mode} --output_dir {WORK}/evaluate/bm25",
    )


def retrieve_start(mode: str) -> Step:
    return make_step(
        f"{WORK}/evaluate/warmup/{mode}.rank.tsv",
        f"python star/inference.py --data_type passage --data_root {ROOT} --max_doc_length 64 --mode {mode}",
        f"--model_dir {WORK}/warmup --output_dir {WORK}/evaluate/warmup",
    )


@dataclass(frozen=True)
class Static:
    """A training of both encoders with static negatives. Each training encodes 51,200 documents.

    Attributes:
        folder: the folder of its models, one for each seed.
        negatives: ``--negatives`` of star/train.py.
        batch: queries in a step.
    """

    folder: str
    negatives: str
    batch: int
    rate: str = "1e-3"
    steps: int = 1600

    @property
    def mined(self) -> bool:
        """Whether its negatives are mined first."""
        from drhard.strategies import STRATEGIES  # imported here: flags are parsed before NumPy loads

        return STRATEGIES[self.negatives].mined


IN_BATCH = Static("in-batch", "in-batch", batch=32)
RANDOM = Static("random", "random", batch=16)
HARD = Static("hard", "hard", batch=16)
STAR = Static("star", "star", batch=16)
# The same budget in fewer, larger steps: 128 documents a step, 1.3 % of the collection.
IN_BATCH_LARGE = Static("in-batch-large", "in-batch", batch=128, rate="2e-3", steps=400)
STAR_LARGE = Static("star-large", "star", batch=64, rate="2e-3", steps=400)


def train(base: Static, seed: int) -> Step:
    model = f"{base.folder}/seed-{seed}"
    return make_step(
        f"{WORK}/trained_models/{model}/config.json",
        f"python star/train.py --do_train --negatives {base.negatives}",
        f"--hardneg_path {WORK}/warmup_retrieve/hard.json" if base.mined else "",
        f"--init_path {WORK}/warmup --preprocess_dir {WORK}/preprocess",
        f"--output_dir {WORK}/trained_models/{model} --logging_dir {WORK}/log/{model} --seed {seed}",
        f"--per_device_train_batch_size {base.batch} --max_query_length 24 --max_doc_length 64 --optimizer_str lamb",
        f"--learning_rate {base.rate} --max_steps {base.steps} --warmup_steps 50 --save_steps 400",
    )


def retrieve(base: Static, seed: int, mode: str) -> Step:
    model = f"{base.folder}/seed-{seed}"
    return make_step(
        f"{WORK}/evaluate/{model}/{mode}.rank.tsv",
        f"python star/inference.py --data_type passage --data_root {ROOT} --max_doc_length 64 --mode {mode}",
        f"--model_dir {WORK}/trained_models/{model} --output_dir {WORK}/evaluate/{model}",
    )


def train_adore(base: Static, seed: int, folder: str, index: str) -> Step:
    model, start = f"{folder}/seed-{seed}", f"{base.folder}/seed-{seed}"
    return make_step(
        f"{WORK}/trained_models/{model}/epoch-5/config.json",
        f"python adore/train.py --metric_cut 200 --init_path {WORK}/trained_models/{start}",
        f"--pembed_path {WORK}/evaluate/{start}/passages.memmap --preprocess_dir {WORK}/preprocess",
        f"--model_save_dir {WORK}/trained_models/{model} --log_dir {WORK}/log/{model} --seed {seed}",
        "--learning_rate 5e-5 --warmup_steps 100 --num_train_epochs 5 --logging_steps 50",
        index,
    )


def retrieve_adore(base: Static, seed: int, folder: str, mode: str) -> Step:
    model, start = f"{folder}/seed-{seed}", f"{base.folder}/seed-{seed}"
    return make_step(
        f"{WORK}/evaluate/{model}/{mode}.rank.tsv",
        f"python adore/inference.py --model_dir {WORK}/trained_models/{model}/epoch-5",
        f"--output_dir {WORK}/evaluate/{model} --preprocess_dir {WORK}/preprocess --mode {mode}",
        f"--dmemmap_path {WORK}/evaluate/{start}/passages.memmap",
    )


def trial_of_bm25() -> Trial:
    return Trial(
        seed=None,
        steps=(TEXTS, START, TOKENS, retrieve_bm25("dev"), retrieve_bm25("test")),
        model=None,
        runs=_runs("bm25"),
        log_dir=None,
    )


def trial_of_start() -> Trial:
    return Trial(
        seed=None,
        steps=(TEXTS, START, TOKENS, retrieve_start("dev"), retrieve_start("test")),
        model=Path(f"{WORK}/warmup"),
        runs=_runs("warmup"),
        log_dir=None,
    )


def trial_of_static(base: Static, seed: int) -> Trial:
    model = f"{base.folder}/seed-{seed}"
    return Trial(
        seed=seed,
        steps=(*_static_steps(base, seed), retrieve(base, seed, "test")),
        model=Path(f"{WORK}/trained_models/{model}"),
        runs=_runs(model),
        log_dir=Path(f"{WORK}/log/{model}"),
    )


def trial_of_adore(base: Static, seed: int, folder: str, index: str = "") -> Trial:
    """Return ADORE's trial on a static model.

    Args:
        folder: the folder of ADORE's models, one for each seed.
        index: flags of adore/train.py for a compressed index.
    """
    model = f"{folder}/seed-{seed}"
    steps = (
        *_static_steps(base, seed),
        train_adore(base, seed, folder, index),
        retrieve_adore(base, seed, folder, "dev"),
        retrieve_adore(base, seed, folder, "test"),
    )
    return Trial(
        seed=seed,
        steps=steps,
        model=Path(f"{WORK}/trained_models/{model}/epoch-5"),
        runs=_runs(model),
        log_dir=Path(f"{WORK}/log/{model}"),
    )


def _static_steps(base: Static, seed: int) -> list[Step]:
    """Return the steps up to the embeddings of a static model."""
    mining = [HARD_NEGATIVES] if base.mined else []
    return [TEXTS, START, TOKENS, *mining, train(base, seed), retrieve(base, seed, "dev")]


def _runs(folder: str) -> dict[str, Path]:
    return {mode: Path(f"{WORK}/evaluate/{folder}/{mode}.rank.tsv") for mode in ("dev", "test")}


def make_row(name: str, expected: tuple[float, float, float], *trials: Trial) -> Row:
    return Row("sample", name, dict(zip(MEASURES, expected, strict=True)), {SCRATCH: trials})


def sample_table() -> Table:
    """Return the sample's table. Its expected values were measured with these commands (data/sample/results)."""
    compressed = "--index_factory OPQ16,PQ16"

    def static(base: Static) -> list[Trial]:
        return [trial_of_static(base, seed) for seed in SEEDS]

    def adore(base: Static, folder: str, index: str = "") -> list[Trial]:
        return [trial_of_adore(base, seed, folder, index) for seed in SEEDS]

    rows = (
        make_row("BM25", (0.6967, 0.9590, 0.7209), trial_of_bm25()),
        make_row("Warm-up", (0.4968, 0.9650, 0.5692), trial_of_start()),
        make_row("In-Batch Neg", (0.5621, 0.9663, 0.6161), *static(IN_BATCH)),
        make_row("Rand Neg", (0.5091, 0.9533, 0.5619), *static(RANDOM)),
        make_row("Hard only", (0.5054, 0.9293, 0.5370), *static(HARD)),
        make_row("STAR", (0.5724, 0.9703, 0.6155), *static(STAR)),
        make_row("ADORE (In-Batch Neg)", (0.5788, 0.9717, 0.6371), *adore(IN_BATCH, "adore-in-batch")),
        make_row("ADORE (Rand Neg)", (0.5561, 0.9677, 0.6044), *adore(RANDOM, "adore-random")),
        make_row("ADORE (STAR)", (0.5851, 0.9733, 0.6292), *adore(STAR, "adore-star")),
        make_row("ADORE (STAR), compressed", (0.5876, 0.9737, 0.6301), *adore(STAR, "adore-star-pq", compressed)),
        make_row("In-Batch Neg, large batch", (0.5682, 0.9693, 0.6132), *static(IN_BATCH_LARGE)),
        make_row("STAR, large batch", (0.5727, 0.9697, 0.6171), *static(STAR_LARGE)),
    )
    return Table(
        name="sample",
        title="The embedded sample",
        source="measured with these very commands; data/sample/results",
        measures=MEASURES,
        ok=0.0005,
        close=0.01,
        qrels={mode: Path(f"{WORK}/preprocess/{mode}-qrel.tsv") for mode in ("dev", "test")},
        rows={row.name: row for row in rows},
        questions=QUESTIONS,
        gains=("ADORE (STAR)", "STAR"),
    )
