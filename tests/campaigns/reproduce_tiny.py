"""Run reproduce.py with one small table. The other scripts of a world wrote its runs and models."""

from pathlib import Path

import reproduce
from drhard.recipes import SCRATCH, Measure, Question, Row, Table, Trial, make_step

from processes import PROJECT

CONVERT = f"python {PROJECT}/cvt_back.py --input_dir run --preprocess_dir data/passage/preprocess"
CONVERTED = make_step("made/dev.rank.tsv", f"{CONVERT} --output_dir made --mode dev --dataset passage")
TREC = make_step("made/dev.trec", f"{CONVERT} --output_dir made --mode dev --dataset passage --trec")


def make_row(name: str, run: str, model: str | None, **expected: float) -> Row:
    trial = Trial(None, (CONVERTED, TREC), model and Path(model), {"dev": Path(run)}, Path("runs/log"))
    return Row("tiny", name, expected, {SCRATCH: (trial,)}, {"dev": Path("runs/preprocess/dev-qrel.tsv")})


def all_tables(*_: object) -> dict[str, Table]:
    rows = (
        make_row("one", "runs/evaluate/dev.rank.tsv", "runs/model", mrr=0.1, ndcg10=0.1),
        make_row("other", "runs/other/dev.rank.tsv", None),
        make_row("made", "made/dev.rank.tsv", None),
    )
    table = Table(
        name="tiny",
        title="A tiny table",
        source="of the campaigns",
        measures={"mrr": Measure("dev MRR@10", "dev", "RR@10"), "ndcg10": Measure("dev nDCG@10", "dev", "nDCG@10")},
        ok=0.0005,
        close=0.01,
        rows={row.name: row for row in rows},
        questions=(Question("Is one better than the other?", "one", "other"),),
        gains=("one", "other"),
    )
    return {"tiny": table}


if __name__ == "__main__":
    reproduce.PROJECT = Path.cwd()
    reproduce.all_tables = all_tables
    reproduce.main()
