"""The tables of data/code, a code search: the paper's claims on a second collection."""

from collections.abc import Sequence

from drhard.claims import MINILM, Experiment, Rows, claim_rows, claims, held_out_table
from drhard.recipes import Table

CODE = Experiment(
    "code",
    "Code search",
    "python data/code/make_code.py --wheels runs/code/wheels",
    (MINILM,),
    bm25="--split_names",
)


def code_tables(gpus: Sequence[int] = ()) -> list[Table]:
    """Return the tables of data/code.

    Args:
        gpus: the GPUs to search on; empty for the CPU.
    """
    make = Rows(CODE, "code", MINILM, CODE.data("", "", gpus))
    return [
        CODE.table(make.start, MINILM.title, claim_rows(make), claims(MINILM.title)),
        held_out_table(CODE, MINILM, gpus),
    ]
