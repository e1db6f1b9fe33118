"""The tables of the embedded sample: rows for a laptop. Each trained row has three seeds.

One table starts from the sample's own small warm-up model, the other from all-MiniLM-L6-v2, which many people use.

Each step below has a file or folder that appears only when its command's results are whole, and the command, which
runs in the project's folder.
"""

from drhard.questions import (
    BETTER_THAN_HARD,
    COMPRESSED_AS_GOOD,
    IN_LARGE_BATCHES,
    PAPER,
    does_adore_improve,
    is_star_better_than,
)
from drhard.recipes import SCRATCH, Question, Row, Table, Trial, expect, make_step
from drhard.trainings import (
    MEASURES,
    Adore,
    Data,
    Start,
    Static,
    make_table,
    trial_of_adore,
    trial_of_bm25,
    trial_of_start,
    trial_of_static,
)

ROOT = "runs/sample"
WORK = f"{ROOT}/passage"
SEEDS = (42, 43, 44)
COMPRESSED = "--index_factory OPQ16,PQ16"
SOURCE = "measured with these very commands; data/sample/results"
QUESTIONS = (*PAPER, BETTER_THAN_HARD, COMPRESSED_AS_GOOD, IN_LARGE_BATCHES)
MINILM_QUESTIONS = (
    Question("Does STAR improve MiniLM?", "STAR", "MiniLM"),
    does_adore_improve("MiniLM"),
    is_star_better_than("In-Batch Neg"),
    does_adore_improve("In-Batch Neg"),
    does_adore_improve("STAR"),
    is_star_better_than("BM25"),
)


TEXTS = make_step(
    f"{WORK}/dataset",
    f"mkdir -p {WORK} && rm -rf {WORK}/dataset.partial && cp -R data/sample/passage/dataset {WORK}/dataset.partial",
    f"&& mv {WORK}/dataset.partial {WORK}/dataset",
)

DATA = Data(ROOT, TEXTS)

# The sample's own model. Each of its trainings encodes 51,200 documents.
WARM_UP = Start(
    DATA,
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
        f"python star/prepare_hardneg.py --data_type passage --data_root {ROOT} --max_doc_length {DATA.doc_length}",
        "--mode train --topk 10",
    ),
    optimizer="lamb",
    adore=Adore(rate="5e-5", warmup=100, epochs=5),
)


def of_sample(folder: str, negatives: str, batch: int, rate: str = "1e-3", steps: int = 1600) -> Static:
    return Static(WARM_UP, folder, negatives, batch, rate, steps, warmup=50, flags="--save_steps 400")


IN_BATCH = of_sample("in-batch", "in-batch", batch=32)
RANDOM = of_sample("random", "random", batch=16)
HARD = of_sample("hard", "hard", batch=16)
STAR = of_sample("star", "star", batch=16)
# The same budget in fewer, larger steps: 128 documents a step, 1.3 % of the collection.
IN_BATCH_LARGE = of_sample("in-batch-large", "in-batch", batch=128, rate="2e-3", steps=400)
STAR_LARGE = of_sample("star-large", "star", batch=64, rate="2e-3", steps=400)

# A model that everyone uses. Each of its static trainings encodes 3,200 documents. For the choice of the settings, see
# data/sample/README.md.
MINILM = Start(
    DATA,
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
        f"python star/prepare_hardneg.py --data_type passage --data_root {ROOT} --max_doc_length {DATA.doc_length}",
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


def make_row(table: str, name: str, expected: tuple[float, float, float] | None, *trials: Trial) -> Row:
    """Return a row.

    Args:
        expected: the values of :data:`MEASURES`; None until they are measured.
    """
    return Row(table, name, expect(MEASURES, expected), {SCRATCH: trials})


def static(base: Static) -> list[Trial]:
    return [trial_of_static(base, seed) for seed in SEEDS]


def adore(base: Start | Static, folder: str, index: str = "") -> list[Trial]:
    return [trial_of_adore(base, seed, folder, index) for seed in SEEDS]


def sample_table() -> Table:
    """Return the table of the sample's own model."""

    def row(name: str, mrr: float, r100: float, ndcg10: float, *trials: Trial) -> Row:
        return make_row("sample", name, (mrr, r100, ndcg10), *trials)

    rows = [
        row("BM25", 0.6967, 0.9590, 0.7209, trial_of_bm25(WARM_UP)),
        row("Warm-up", 0.4968, 0.9650, 0.5692, trial_of_start(WARM_UP)),
        row("In-Batch Neg", 0.5644, 0.9677, 0.6161, *static(IN_BATCH)),
        row("Rand Neg", 0.5117, 0.9557, 0.5555, *static(RANDOM)),
        row("Hard only", 0.4945, 0.9320, 0.5340, *static(HARD)),
        row("STAR", 0.5687, 0.9700, 0.6130, *static(STAR)),
        row("ADORE (In-Batch Neg)", 0.5837, 0.9720, 0.6368, *adore(IN_BATCH, "adore-in-batch")),
        row("ADORE (Rand Neg)", 0.5598, 0.9653, 0.6033, *adore(RANDOM, "adore-random")),
        row("ADORE (STAR)", 0.5807, 0.9737, 0.6290, *adore(STAR, "adore-star")),
        row("ADORE (STAR), compressed", 0.5839, 0.9717, 0.6286, *adore(STAR, "adore-star-pq", COMPRESSED)),
        row("In-Batch Neg, large batch", 0.5669, 0.9690, 0.6153, *static(IN_BATCH_LARGE)),
        row("STAR, large batch", 0.5699, 0.9700, 0.6140, *static(STAR_LARGE)),
    ]
    return make_table(WARM_UP, "The embedded sample", SOURCE, rows, QUESTIONS)


def minilm_table() -> Table:
    """Return the table of all-MiniLM-L6-v2."""

    def row(name: str, mrr: float, r100: float, ndcg10: float, *trials: Trial) -> Row:
        return make_row("minilm", name, (mrr, r100, ndcg10), *trials)

    rows = [
        row("BM25", 0.6967, 0.9590, 0.7209, trial_of_bm25(WARM_UP)),
        row("MiniLM", 0.6262, 0.9860, 0.6615, trial_of_start(MINILM)),
        row("In-Batch Neg", 0.7699, 0.9937, 0.8044, *static(MINILM_IN_BATCH)),
        row("STAR", 0.7920, 0.9940, 0.8222, *static(MINILM_STAR)),
        row("ADORE (MiniLM)", 0.6701, 0.9933, 0.7030, *adore(MINILM, "minilm-adore")),
        row("ADORE (In-Batch Neg)", 0.7895, 0.9960, 0.8219, *adore(MINILM_IN_BATCH, "minilm-adore-in-batch")),
        row("ADORE (STAR)", 0.8027, 0.9960, 0.8344, *adore(MINILM_STAR, "minilm-adore-star")),
    ]
    return make_table(MINILM, "The embedded sample, with all-MiniLM-L6-v2", SOURCE, rows, MINILM_QUESTIONS)
