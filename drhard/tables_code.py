"""The tables of data/code, a code search: the paper's claims on a second collection."""

from collections.abc import Sequence
from dataclasses import replace

from drhard.claims import MINILM, Experiment, Rows, claim_rows, claims, held_out_table
from drhard.recipes import Table

MODEL = replace(MINILM, seeds=(42,))  # one, so that a row takes less than an hour on two cores
CODE = Experiment(
    "code",
    "Code search",
    "python data/code/make_code.py --wheels runs/code/wheels",
    (MODEL,),
    bm25="--split_names",
)


def code_tables(gpus: Sequence[int] = ()) -> list[Table]:
    """Return the tables of data/code.

    Args:
        gpus: the GPUs to search on; empty for the CPU.
    """
    make = Rows(CODE, "code", MODEL, CODE.data("", "", gpus))
    return [
        CODE.table(make.start, MODEL.title, claim_rows(make), claims(MODEL.title)),
        held_out_table(CODE, MODEL, gpus),
    ]
