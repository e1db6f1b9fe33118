"""The paper's claims as tables of a data set that is made here: the rows, and the choice of their settings.

A script in ``data`` makes the data set, with held-out training queries in a form of its own. The table NAME-held-out
has the rows that settings are chosen by, and data/choose.py writes them to data/NAME/settings.json.

Within a table, all static trainings encode as many documents, unless a row's name says otherwise.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drhard.questions import does_adore_improve, is_star_better_than
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

DATA = Path(__file__).resolve().parent.parent / "data"
HELD_OUT, HELD_OUT_SEED = "-held-out", 42
Measures = Mapping[str, Measure]
HELD_OUT_MEASURES = {"mrr": Measure("held-out MRR@10", "dev", "RR@10")}
RANKS = ("1-10", "1-30", "1-200", "1-500")  # of hard negatives
USUAL_RANKS = "1-30"  # at which everything else is chosen
LATER_RANKS = ("10-100", "30-200")  # without the hardest, which may be unjudged positives
MARGINS = ("0.05", "0.1", "0.2")


@dataclass(frozen=True)
class Model:
    """A model that the trainings start from, and the values to choose its settings from.

    Attributes:
        name: its name in settings.json, and of its folder.
        title: its name in tables.
        suffix: of the names of its tables.
        place: the command that puts it into a folder, with FOLDER for that.
        config: the file that is there when it is whole, with FOLDER.
        optimizer: ``--optimizer_str`` of star/train.py.
        steps: of a static training with 32 documents each. The warm-up takes a tenth of them.
        rates: learning rates of static trainings.
        usual_rate: the one of them at which everything else is chosen.
        adore_rates: learning rates of ADORE.
        epochs: of ADORE.
        index: a compressed index of its embeddings, as faiss calls it.
        seeds: of each row.
        needs: what no step makes.
    """

    name: str
    title: str
    suffix: str
    place: str
    config: str
    optimizer: str
    steps: int
    rates: tuple[str, ...]
    usual_rate: str
    adore_rates: tuple[str, ...]
    epochs: int
    index: str
    seeds: tuple[int, ...]
    needs: Made | None = None


MINILM = Model(
    name="minilm",
    title="MiniLM",
    suffix="",
    place="python data/sample/minilm.py --output_dir FOLDER",
    config="FOLDER/config.json",
    optimizer="adamw",
    steps=400,
    rates=("2.5e-5", "5e-5", "1e-4", "2e-4"),
    usual_rate="1e-4",
    adore_rates=("2e-5", "5e-5", "1e-4", "2e-4"),
    epochs=1,
    index="OPQ48,PQ48",
    seeds=(42, 43, 44),
)


@dataclass(frozen=True)
class Experiment:
    """A data set that is made here, and what its tables have.

    Attributes:
        name: of its folders in ``data`` and ``runs``, and of its tables.
        title: its name in reports.
        make: the command that makes it, without the flags of its forms.
        models: the models that trainings start from.
        bm25: further flags of BM25's search.
    """

    name: str
    title: str
    make: str
    models: tuple[Model, ...]
    bm25: str = ""

    @property
    def settings(self) -> Path:
        """The file of the chosen settings."""
        return DATA / self.name / "settings.json"

    @property
    def records(self) -> Path:
        """The committed records of its trials."""
        return DATA / self.name / "results" / "records.jsonl.gz"

    def read_settings(self) -> dict[str, dict[str, str]]:
        """Return the chosen settings of each model."""
        settings: dict[str, dict[str, str]] = json.loads(self.settings.read_text(encoding="utf-8"))
        return settings

    def data(self, form: str, flags: str, gpus: Sequence[int]) -> Data:
        """Return a form of the data.

        Args:
            form: what follows the name in the folder under ``runs``.
            flags: flags of the script that makes it.
        """
        root = f"runs/{self.name}{form}"
        folder = f"{root}/passage/dataset"
        step = make_step(folder, f"{self.make} --output_dir {folder}", flags)
        return Data(root, step, gpus=gpus, bm25=self.bm25)

    def table(
        self,
        start: Start,
        title: str,
        rows: Sequence[Row],
        questions: Iterable[Question] = (),
        measures: Measures = MEASURES,
    ) -> Table:
        """Return a table whose trials may have committed records."""
        source = f"nothing; rows that were not run here come from committed records, see data/{self.name}/README.md"
        table = make_table(start, f"{self.title}, {title}", source, rows, questions, measures)
        needs = next(model.needs for model in self.models if model.name == start.folder)
        return replace(table, records=self.records if self.records.exists() else None, needs=needs)


def start_of(model: Model, data: Data, ranks: str, adore_rate: str) -> Start:
    """Return a model as a start.

    Args:
        ranks: the ranks of its hard negatives.
        adore_rate: ADORE's learning rate.
    """
    folder, tokens = f"{data.work}/{model.name}", f"preprocess-{model.name}"
    tokenize = make_step(
        f"{data.work}/{tokens}/passages_meta",
        f"python preprocess.py --data_type passage --data_root {data.root} --model_name_or_path {folder}",
        f"--preprocess_dir {data.work}/{tokens} --max_seq_length 256 --max_query_length 64",
    )
    return Start(
        data,
        model.name,
        tokens,
        make_step(model.config.replace("FOLDER", folder), model.place.replace("FOLDER", folder)),
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
        experiment: what the settings come from.
        table: the table's name.
        model: the model of all rows.
        data: the collection.
    """

    def __init__(self, experiment: Experiment, table: str, model: Model, data: Data):
        self.table, self.model = table, model
        self.settings = experiment.read_settings()[model.name]
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

    def mining(self, folder: str, selection: str) -> Static:
        """Return STAR with other negatives. ``selection`` is flags of star/prepare_hardneg.py."""
        mined = mine(self.model, self.start.data, selection)
        return replace(self.training("star", "star"), folder=f"{self.model.name}-{folder}", mine=mined)


def claim_rows(make: Rows) -> tuple[Row, ...]:
    """Return the rows of the paper's claims, and STAR without the hardest negatives."""
    start, title = make.start, make.model.title
    in_batch, random, star = (make.training(kind, kind) for kind in ("in-batch", "random", "star"))
    return (
        make.row("BM25", trial_of_bm25(start)),
        make.row(title, trial_of_start(start)),
        make.static("In-Batch Neg", in_batch),
        make.static("Rand Neg", random),
        make.static("STAR", star),
        make.static("STAR, later ranks", make.mining("star-later", later_ranks(make.settings["later"]))),
        make.adore(f"ADORE ({title})", start, "adore"),
        make.adore("ADORE (In-Batch Neg)", in_batch, "adore-in-batch"),
        make.adore("ADORE (STAR)", star, "adore-star"),
    )


def claims(start: str) -> tuple[Question, ...]:
    """Return the questions about :func:`claim_rows`.

    Args:
        start: the row of the model as it is.
    """
    return (
        is_star_better_than("In-Batch Neg"),
        is_star_better_than("Rand Neg"),
        Question("Is STAR better without the hardest negatives?", "STAR, later ranks", "STAR"),
        does_adore_improve(start),
        does_adore_improve("In-Batch Neg"),
        does_adore_improve("STAR"),
        Question("Is ADORE on STAR better than ADORE on In-Batch Neg?", "ADORE (STAR)", "ADORE (In-Batch Neg)"),
    )


# The choice of settings -------------------------------------------------------------------------------------

Choices = dict[str, dict[str, list[Row]]]  # what is chosen -> value -> its rows, whose mean counts


def choices_of(experiment: Experiment, model: Model, gpus: Sequence[int] = ()) -> Choices:
    """Return the rows that the settings of a model are chosen by."""
    data, usual = experiment.data(HELD_OUT, "--held_out", gpus), model.usual_rate
    start = start_of(model, data, USUAL_RANKS, model.adore_rates[0])

    def row(name: str, base: Start | Static, adore: str = "") -> Row:
        if adore:
            folder = "-".join(name.lower().replace("(", "").replace(")", "").split())
            trial = trial_of_adore(base, HELD_OUT_SEED, f"{model.name}-{folder}", modes=("dev",))
        elif isinstance(base, Static):
            trial = trial_of_static(base, HELD_OUT_SEED, ("dev",))
        return make_row(f"{experiment.name}{model.suffix}{HELD_OUT}", name, [trial])

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
    choices = {
        **{kind: {rate: training(kind, rate) for rate in model.rates} for kind in kinds},
        "ranks": {ranks: training("star", usual, f"--negative_ranks {ranks}") for ranks in RANKS},
        "later": {ranks: training("star", usual, later_ranks(ranks)) for ranks in LATER_RANKS},
        "margin": {share: training("star", usual, margin(share)) for share in MARGINS},
        "adore": {rate: adore(rate) for rate in model.adore_rates},
    }
    return {name: choices[name] for name in experiment.read_settings()[model.name]}


def held_out_table(experiment: Experiment, model: Model, gpus: Sequence[int] = ()) -> Table:
    """Return the rows by which the settings of a model were chosen."""
    choices = choices_of(experiment, model, gpus)
    rows = [row for values in choices.values() for of_value in values.values() for row in of_value]
    start = start_of(model, experiment.data(HELD_OUT, "--held_out", gpus), USUAL_RANKS, model.adore_rates[0])
    return experiment.table(start, f"the choice of settings, {model.title}", rows, measures=HELD_OUT_MEASURES)
