"""The tables of data/gcide, a reverse dictionary: the paper's claims where they can be told apart.

There are two models: all-MiniLM-L6-v2, and a small one that was pre-trained on this collection. Their settings were
chosen with held-out training queries: ``gcide-held-out`` and ``gcide-small-held-out`` have the rows for that, and
data/gcide/choose.py writes data/gcide/settings.json.

Within a table, all static trainings encode as many documents, unless a row's name says otherwise.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drhard.recipes import SCRATCH, Made, Measure, Question, Row, Step, Table, Trial, expect, make_step
from drhard.trainings import (
    MEASURES,
    Adore,
    Data,
    Start,
    Static,
    make_table,
    mine_with,
    trial_of_adore,
    trial_of_bm25,
    trial_of_start,
    trial_of_static,
)

HERE = Path(__file__).resolve().parent.parent / "data" / "gcide"
SETTINGS = HERE / "settings.json"
RECORDS = HERE / "results" / "records.jsonl.gz"
SIZES = (10_000, 30_000, 111_672)  # passages; the last is all
HELD_OUT_SEED = 42
SOURCE = "none yet; rows that were not run here come from committed records, see data/gcide/README.md"
Measures = Mapping[str, Measure]
HELD_OUT_MEASURES = {"mrr": Measure("held-out MRR@10", "dev", "RR@10")}


@dataclass(frozen=True)
class Model:
    """A model that the trainings start from, and the values to choose its settings from.

    Attributes:
        table: the table of its results.
        name: its name in settings.json, and of its folder.
        title: its name in tables.
        optimizer: ``--optimizer_str`` of star/train.py.
        steps: of a static training with 32 documents each. The warm-up takes a tenth of them.
        rates: learning rates of static trainings.
        usual_rate: the one of them at which everything else is chosen.
        adore_rates: learning rates of ADORE.
        epochs: of ADORE.
        index: a compressed index of its embeddings, as faiss calls it.
        seeds: of each row.
    """

    table: str
    name: str
    title: str
    optimizer: str
    steps: int
    rates: tuple[str, ...]
    usual_rate: str
    adore_rates: tuple[str, ...]
    epochs: int
    index: str
    seeds: tuple[int, ...]


MINILM = Model(
    table="gcide",
    name="minilm",
    title="MiniLM",
    optimizer="adamw",
    steps=400,
    rates=("2.5e-5", "5e-5", "1e-4", "2e-4"),
    usual_rate="1e-4",
    adore_rates=("2e-5", "5e-5", "1e-4", "2e-4"),
    epochs=1,
    index="OPQ48,PQ48",
    seeds=(42, 43, 44),
)
SMALL = Model(
    table="gcide-small",
    name="warmup",
    title="Warm-up",
    optimizer="lamb",
    steps=800,
    rates=("2.5e-4", "5e-4", "1e-3", "2e-3"),
    usual_rate="1e-3",
    adore_rates=("2e-5", "5e-5", "1e-4", "2e-4"),
    epochs=2,
    index="OPQ16,PQ16",
    seeds=(42, 43, 44, 45, 46),
)
MODELS = (MINILM, SMALL)
WARMUP = Made(
    Path("data/gcide/warmup"),
    "python data/gcide/make_gcide.py --output_dir runs/gcide/passage/dataset; "
    "python data/sample/minilm.py --output_dir runs/gcide/passage/minilm; "
    "python data/sample/pretrain.py --gcide runs/gcide/passage/dataset --teacher runs/gcide/passage/minilm "
    "--work_dir runs/pretrain-gcide --output_dir data/gcide/warmup",
)
RANKS = ("1-10", "1-30", "1-200", "1-500")  # of hard negatives
USUAL_RANKS = "1-30"  # at which everything else is chosen
LATER_RANKS = ("10-100", "30-200")  # without the hardest, which may be unjudged positives
MARGINS = ("0.05", "0.1", "0.2")


def data_of(name: str, flags: str, gpus: Sequence[int]) -> Data:
    """Return a form of the data.

    Args:
        name: the folder under ``runs``.
        flags: flags of make_gcide.py.
    """
    folder = f"runs/{name}/passage/dataset"
    step = make_step(folder, f"python data/gcide/make_gcide.py --output_dir {folder}", flags)
    return Data(f"runs/{name}", step, gpus=gpus)


def start_of(model: Model, data: Data, ranks: str, adore_rate: str) -> Start:
    """Return a model as a start.

    Args:
        ranks: the ranks of its hard negatives.
        adore_rate: ADORE's learning rate.
    """
    folder, tokens = f"{data.work}/{model.name}", f"preprocess-{model.name}"
    if model is MINILM:
        place = make_step(f"{folder}/config.json", f"python data/sample/minilm.py --output_dir {folder}")
    else:
        place = make_step(
            folder,
            f"rm -rf {folder}.partial && cp -R data/gcide/warmup {folder}.partial && mv {folder}.partial {folder}",
        )
    tokenize = make_step(
        f"{data.work}/{tokens}/passages_meta",
        f"python preprocess.py --data_type passage --data_root {data.root} --model_name_or_path {folder}",
        f"--preprocess_dir {data.work}/{tokens} --max_seq_length 256 --max_query_length 64",
    )
    return Start(
        data,
        model.name,
        tokens,
        place,
        tokenize,
        mine=mine(model, data, f"--negative_ranks {ranks}"),
        optimizer=model.optimizer,
        adore=Adore(adore_rate, warmup=50, epochs=model.epochs),
    )


def mine(model: Model, data: Data, selection: str) -> Step:
    """Return the step that mines with the model as it is. ``selection`` is flags of star/prepare_hardneg.py."""
    name = "-".join(selection.replace("--", "").split())
    return mine_with(
        data,
        f"{data.work}/{model.name}",
        f"{data.work}/mined/{model.name}-{name}",
        selection,
        f"preprocess-{model.name}",
    )


def static(
    model: Model, start: Start, folder: str, negatives: str, rate: str, batch: int = 32, steps: int = 0
) -> Static:
    """Return a static training that encodes ``batch`` documents in a step.

    Args:
        folder: the folder of its models, behind the model's name.
        steps: 0 for the model's.
    """
    steps = steps or model.steps
    queries = batch if negatives == "in-batch" else batch // 2  # each of the others has one more document
    flags = f"--save_steps {max(1, steps // 2)} --logging_steps {max(1, steps // 20)}"
    return Static(
        start, f"{model.name}-{folder}", negatives, queries, rate, steps, warmup=max(1, steps // 10), flags=flags
    )


def later_ranks(ranks: str) -> str:
    return f"--negative_ranks {ranks}"


def margin(share: str) -> str:
    return f"--negative_ranks 1-200 --relative_margin {share}"


# Rows -------------------------------------------------------------------------------------------------------


def recorded(table: str, row: str, trial: Trial) -> Trial:
    """Return the trial with one more step, which measures it and keeps what it found."""
    run = trial.runs["dev"]
    work = next(parent for parent in run.parents if parent.name == "evaluate").parent
    record = work / "measured" / run.parent.relative_to(work / "evaluate") / "measured.json"
    seed = "" if trial.seed is None else f"--seed {trial.seed}"
    step = make_step(str(record), f"python reproduce.py measure {shlex.quote(f'{table}:{row}')}", seed)
    return replace(trial, steps=(*trial.steps, step), record=record)


def make_row(table: str, name: str, trials: Iterable[Trial], values: tuple[float, ...] | None = None) -> Row:
    measures = HELD_OUT_MEASURES if table.endswith(HELD_OUT) else MEASURES
    return Row(table, name, expect(measures, values), {SCRATCH: tuple(recorded(table, name, one) for one in trials)})


class Rows:
    """Makes the rows of a table.

    Args:
        table: the table's name.
        model: the model of all rows.
        data: the collection.
    """

    def __init__(self, table: str, model: Model, data: Data):
        self.table, self.model = table, model
        self.settings: dict[str, str] = read_settings()[model.name]
        self.start = start_of(model, data, self.settings["ranks"], self.settings["adore"])

    def row(self, name: str, *trials: Trial) -> Row:
        return make_row(self.table, name, trials)

    def training(self, folder: str, negatives: str, batch: int = 32, steps: int = 0) -> Static:
        """Return a static training with the chosen learning rate, twice that in large batches."""
        rate = self.settings[negatives] if batch == 32 else f"{2 * float(self.settings[negatives]):g}"
        return static(self.model, self.start, folder, negatives, rate, batch, steps)

    def static(self, name: str, base: Static) -> Row:
        return self.row(name, *(trial_of_static(base, seed) for seed in self.model.seeds))

    def adore(self, name: str, base: Start | Static, folder: str, index: str = "") -> Row:
        folder = f"{self.model.name}-{folder}"
        return self.row(name, *(trial_of_adore(base, seed, folder, index) for seed in self.model.seeds))


def read_settings() -> dict[str, dict[str, str]]:
    """Return the chosen settings of each model."""
    settings: dict[str, dict[str, str]] = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return settings


def claims_table(model: Model, title: str, gpus: Sequence[int]) -> Table:
    """Return the table of the paper's methods, and of two that go beyond it."""
    make = Rows(model.table, model, data_of("gcide", "", gpus))
    start, steps = make.start, model.steps
    in_batch, random, hard, star = (make.training(kind, kind) for kind in ("in-batch", "random", "hard", "star"))
    large = 128
    longer = make.training(f"star-{2 * steps}", "star", steps=2 * steps)
    again = replace(make.training("star-again", "star"), first=star, depth=int(make.settings["ranks"].split("-")[1]))
    later = replace(
        star, folder=f"{model.name}-star-later", mine=mine(model, start.data, later_ranks(make.settings["later"]))
    )
    with_margin = replace(
        star, folder=f"{model.name}-star-margin", mine=mine(model, start.data, margin(make.settings["margin"]))
    )
    rows = (
        make.row("BM25", trial_of_bm25(start)),
        make.row(model.title, trial_of_start(start)),
        make.static("In-Batch Neg", in_batch),
        make.static("Rand Neg", random),
        make.static("Hard only", hard),
        make.static("STAR", star),
        make.adore(f"ADORE ({model.title})", start, "adore"),
        make.adore("ADORE (In-Batch Neg)", in_batch, "adore-in-batch"),
        make.adore("ADORE (Rand Neg)", random, "adore-random"),
        make.adore("ADORE (STAR)", star, "adore-star"),
        make.adore("ADORE (STAR), compressed", star, "adore-star-pq", f"--index_factory {model.index}"),
        make.static("In-Batch Neg, large batch", make.training("in-batch-large", "in-batch", large, steps // 4)),
        make.static("STAR, large batch", make.training("star-large", "star", large, steps // 4)),
        make.static("STAR, later ranks", later),
        make.static("STAR, margin", with_margin),
        make.static("STAR, twice the steps", longer),
        make.static("STAR, second round", again),
    )
    return make_recorded(start, title, rows, claims(model.title))


def claims(start: str) -> tuple[Question, ...]:
    """Return the questions of a table.

    Args:
        start: the row of the model as it is.
    """
    return (
        Question("Is STAR better than In-Batch Neg?", "STAR", "In-Batch Neg"),
        Question("Is STAR better than Rand Neg?", "STAR", "Rand Neg"),
        Question("Is STAR better than hard negatives only?", "STAR", "Hard only"),
        Question(f"Does ADORE improve {start}?", f"ADORE ({start})", start),
        Question("Does ADORE improve In-Batch Neg?", "ADORE (In-Batch Neg)", "In-Batch Neg"),
        Question("Does ADORE improve Rand Neg?", "ADORE (Rand Neg)", "Rand Neg"),
        Question("Does ADORE improve STAR?", "ADORE (STAR)", "STAR"),
        Question("Is ADORE on STAR better than ADORE on In-Batch Neg?", "ADORE (STAR)", "ADORE (In-Batch Neg)"),
        Question(
            "Is ADORE trained against a compressed index as good?",
            "ADORE (STAR), compressed",
            "ADORE (STAR)",
            equal=True,
        ),
        Question(
            "Is STAR better than In-Batch Neg in large batches?", "STAR, large batch", "In-Batch Neg, large batch"
        ),
        Question("Is STAR better without the hardest negatives?", "STAR, later ranks", "STAR"),
        Question("Is STAR better with a margin to the negatives?", "STAR, margin", "STAR"),
        Question("Is a second round of mining better than more steps?", "STAR, second round", "STAR, twice the steps"),
    )


def budget_table(gpus: Sequence[int]) -> Table:
    """Return the learning curves: STAR and In-Batch Neg by the number of steps."""
    name, model = "gcide-budget", MINILM
    make = Rows(name, model, data_of("gcide", "", gpus))
    rows, questions = [make.row(model.title, trial_of_start(make.start))], []
    for steps in (model.steps // 4, model.steps // 2, model.steps, 2 * model.steps):
        folder = "" if steps == model.steps else f"-{steps}"
        for label, kind in (("In-Batch Neg", "in-batch"), ("STAR", "star")):
            rows.append(make.static(f"{label}, {steps} steps", make.training(f"{kind}{folder}", kind, steps=steps)))
        pair = (f"STAR, {steps} steps", f"In-Batch Neg, {steps} steps")
        questions.append(Question(f"Is STAR better than In-Batch Neg after {steps} steps?", *pair))
    return make_recorded(make.start, "A reverse dictionary, MiniLM, by budget", rows, questions)


def size_table(size: int, gpus: Sequence[int]) -> Table:
    """Return STAR and In-Batch Neg in a part of the collection, with the same queries for all sizes."""
    name, model = f"gcide-{size}", MINILM
    make = Rows(name, model, data_of(name, f"--passages {size}", gpus))
    rows = (
        make.row(model.title, trial_of_start(make.start)),
        make.static("In-Batch Neg", make.training("in-batch", "in-batch")),
        make.static("STAR", make.training("star", "star")),
    )
    questions = (Question("Is STAR better than In-Batch Neg?", "STAR", "In-Batch Neg"),)
    return make_recorded(make.start, f"{size:,} passages of a reverse dictionary, MiniLM", rows, questions)


def make_recorded(
    start: Start, title: str, rows: Sequence[Row], questions: Iterable[Question] = (), measures: Measures = MEASURES
) -> Table:
    """Return a table whose trials have committed records."""
    table = make_table(start, title, SOURCE, rows, questions, measures)
    return replace(table, records=RECORDS, needs=WARMUP if table.name.startswith(SMALL.table) else None)


# The choice of settings -------------------------------------------------------------------------------------

HELD_OUT = "-held-out"
Choices = dict[str, dict[str, list[Row]]]  # what is chosen -> value -> its rows, whose mean counts


def choices_of(model: Model, gpus: Sequence[int] = ()) -> Choices:
    """Return the rows that the settings of a model are chosen by."""
    data, usual = data_of(f"gcide{HELD_OUT}", "--held_out", gpus), model.usual_rate
    start = start_of(model, data, USUAL_RANKS, model.adore_rates[0])

    def row(name: str, base: Start | Static, adore: str = "") -> Row:
        if adore:
            folder = "-".join(name.lower().replace("(", "").replace(")", "").split())
            trial = trial_of_adore(base, HELD_OUT_SEED, f"{model.name}-{folder}", modes=("dev",))
        elif isinstance(base, Static):
            trial = trial_of_static(base, HELD_OUT_SEED, ("dev",))
        return make_row(f"{model.table}{HELD_OUT}", name, [trial])

    def training(kind: str, rate: str, selection: str = "") -> list[Row]:
        selection = selection or f"--negative_ranks {USUAL_RANKS}"
        words = [kind, rate, *(selection.split()[1::2] if kind in ("star", "hard") else ())]
        base = static(model, start, "-".join(words), kind, rate)
        return [row(" ".join(words), replace(base, mine=mine(model, data, selection)))]

    def adore(rate: str) -> list[Row]:
        faster = replace(start, adore=replace(start.adore, rate=rate))
        star = static(model, faster, f"star-{usual}-{USUAL_RANKS}", "star", usual)
        star = replace(star, mine=mine(model, data, f"--negative_ranks {USUAL_RANKS}"))
        return [row(f"ADORE {rate}", faster, rate), row(f"ADORE (STAR) {rate}", star, rate)]

    kinds = ("in-batch", "random", "hard", "star")
    return {
        **{kind: {rate: training(kind, rate) for rate in model.rates} for kind in kinds},
        "ranks": {ranks: training("star", usual, f"--negative_ranks {ranks}") for ranks in RANKS},
        "later": {ranks: training("star", usual, later_ranks(ranks)) for ranks in LATER_RANKS},
        "margin": {share: training("star", usual, margin(share)) for share in MARGINS},
        "adore": {rate: adore(rate) for rate in model.adore_rates},
    }


def held_out_table(model: Model, gpus: Sequence[int] = ()) -> Table:
    """Return the rows by which the settings of a model were chosen."""
    rows = [row for values in choices_of(model, gpus).values() for of_value in values.values() for row in of_value]
    start = start_of(model, data_of(f"gcide{HELD_OUT}", "--held_out", gpus), USUAL_RANKS, model.adore_rates[0])
    return make_recorded(start, f"The choice of settings, {model.title}", rows, measures=HELD_OUT_MEASURES)


def gcide_tables(gpus: Sequence[int] = ()) -> list[Table]:
    """Return the tables of data/gcide.

    Args:
        gpus: the GPUs to search on; empty for the CPU.
    """
    return [
        claims_table(MINILM, "A reverse dictionary, all-MiniLM-L6-v2", gpus),
        claims_table(SMALL, "A reverse dictionary, a small model", gpus),
        budget_table(gpus),
        *(size_table(size, gpus) for size in SIZES),
        *(held_out_table(model, gpus) for model in MODELS),
    ]
