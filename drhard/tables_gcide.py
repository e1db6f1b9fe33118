"""The tables of data/gcide, a reverse dictionary: the paper's claims where they can be told apart.

There are two models: all-MiniLM-L6-v2, and a small one that was pre-trained on this collection.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from drhard.claims import MINILM, Experiment, Model, Rows, claim_rows, claims, held_out_table, margin
from drhard.questions import (
    BETTER_THAN_HARD,
    COMPRESSED_AS_GOOD,
    IN_LARGE_BATCHES,
    does_adore_improve,
    is_star_better_than,
)
from drhard.recipes import Made, Point, Question, Table
from drhard.trainings import trial_of_start

SIZES = (10_000, 30_000, 111_672)  # passages; the last is all
SMALL = Model(
    name="warmup",
    title="Warm-up",
    suffix="-small",
    place="rm -rf FOLDER.partial && cp -R data/gcide/warmup FOLDER.partial && mv FOLDER.partial FOLDER",
    config="FOLDER",
    optimizer="lamb",
    steps=800,
    rates=("2.5e-4", "5e-4", "1e-3", "2e-3"),
    usual_rate="1e-3",
    adore_rates=("2e-5", "5e-5", "1e-4", "2e-4"),
    epochs=2,
    index="OPQ16,PQ16",
    seeds=(42, 43, 44, 45, 46),
    needs=Made(
        Path("data/gcide/warmup"),
        "python data/gcide/make_gcide.py --output_dir runs/gcide/passage/dataset; "
        "python data/sample/minilm.py --output_dir runs/gcide/passage/minilm; "
        "python data/sample/pretrain.py --gcide runs/gcide/passage/dataset --teacher runs/gcide/passage/minilm "
        "--work_dir runs/pretrain-gcide --output_dir data/gcide/warmup",
    ),
)
FURTHER = (  # questions about rows that only this data set has
    BETTER_THAN_HARD,
    does_adore_improve("Rand Neg"),
    COMPRESSED_AS_GOOD,
    IN_LARGE_BATCHES,
    Question("Is STAR better with a margin to the negatives?", "STAR, margin", "STAR"),
    Question("Is a second round of mining better than more steps?", "STAR, second round", "STAR, twice the steps"),
)
GCIDE = Experiment("gcide", "A reverse dictionary", "python data/gcide/make_gcide.py", (MINILM, SMALL))


def claims_table(model: Model, gpus: Sequence[int]) -> Table:
    """Return the table of the paper's claims, and of rows that go beyond them."""
    make, steps, large = Rows(GCIDE, f"gcide{model.suffix}", model, GCIDE.data("", "", gpus)), model.steps, 128
    random, hard, star = (make.training(kind, kind) for kind in ("random", "hard", "star"))
    again = replace(make.training("star-again", "star"), first=star, depth=int(make.settings["ranks"].split("-")[1]))
    rows = (
        *claim_rows(make),
        make.static("Hard only", hard),
        make.adore("ADORE (Rand Neg)", random, "adore-random"),
        make.adore("ADORE (STAR), compressed", star, "adore-star-pq", f"--index_factory {model.index}"),
        make.static("In-Batch Neg, large batch", make.training("in-batch-large", "in-batch", large, steps // 4)),
        make.static("STAR, large batch", make.training("star-large", "star", large, steps // 4)),
        make.static("STAR, margin", make.mining("star-margin", margin(make.settings["margin"]))),
        make.static("STAR, twice the steps", make.training(f"star-{2 * steps}", "star", steps=2 * steps)),
        make.static("STAR, second round", again),
    )
    return GCIDE.table(make.start, model.title, rows, (*claims(model.title), *FURTHER))


def budget_table(gpus: Sequence[int]) -> Table:
    """Return the learning curves: STAR and In-Batch Neg by the number of steps."""
    name, model = "gcide-budget", MINILM
    make = Rows(GCIDE, name, model, GCIDE.data("", "", gpus))
    rows, questions = [make.row(model.title, trial_of_start(make.start))], []
    for steps in (model.steps // 4, model.steps // 2, model.steps, 2 * model.steps):
        folder = "" if steps == model.steps else f"-{steps}"
        for label, kind in (("In-Batch Neg", "in-batch"), ("STAR", "star")):
            rows.append(make.static(f"{label}, {steps} steps", make.training(f"{kind}{folder}", kind, steps=steps)))
        pair = (f"STAR, {steps} steps", f"In-Batch Neg, {steps} steps")
        asked = f"Is STAR better than In-Batch Neg after {steps} steps?"
        questions.append(Question(asked, *pair, point=Point("steps of the training", steps)))
    return GCIDE.table(make.start, "MiniLM, by budget", rows, questions)


def size_table(size: int, gpus: Sequence[int]) -> Table:
    """Return STAR and In-Batch Neg in a part of the collection, with the same queries for all sizes."""
    name, model = f"gcide-{size}", MINILM
    make = Rows(GCIDE, name, model, GCIDE.data(f"-{size}", f"--passages {size}", gpus))
    rows = (
        make.row(model.title, trial_of_start(make.start)),
        make.static("In-Batch Neg", make.training("in-batch", "in-batch")),
        make.static("STAR", make.training("star", "star")),
    )
    point = Point("passages of the dictionary", size)
    return GCIDE.table(make.start, f"MiniLM, {size:,} passages", rows, [is_star_better_than("In-Batch Neg", point)])


def gcide_tables(gpus: Sequence[int] = ()) -> list[Table]:
    """Return the tables of data/gcide.

    Args:
        gpus: the GPUs to search on; empty for the CPU.
    """
    return [
        *(claims_table(model, gpus) for model in GCIDE.models),
        budget_table(gpus),
        *(size_table(size, gpus) for size in SIZES),
        *(held_out_table(GCIDE, model, gpus) for model in GCIDE.models),
    ]
