"""The tables that reproduce.py knows.

To add a row:

1. Add it, with its expected values, to :mod:`drhard.tables_msmarco`, :mod:`drhard.tables_sample`,
   :mod:`drhard.tables_gcide` or :mod:`drhard.tables_code`. If it needs a new command, write a function for its step.
2. Read its commands: ``python reproduce.py show TABLE:ROW``.
3. Run them: ``python reproduce.py run TABLE:ROW``. ``python reproduce.py report TABLE`` prints the measured values.
"""

from collections.abc import Sequence
from pathlib import Path

from drhard.recipes import Table
from drhard.tables_code import code_tables
from drhard.tables_gcide import gcide_tables
from drhard.tables_msmarco import DOC_TASK, PASSAGE_TASK, msmarco_table
from drhard.tables_sample import minilm_table, sample_table


def all_tables(data_root: Path | None = None, faiss_gpus: Sequence[int] = ()) -> dict[str, Table]:
    """Return all tables by their names.

    Args:
        data_root: the data root of MS MARCO (default: ``data``).
        faiss_gpus: the GPUs that the commands search on, except the sample's; empty for the CPU.
    """
    root = data_root or Path("data")
    paper = [msmarco_table(task, root, faiss_gpus) for task in (PASSAGE_TASK, DOC_TASK)]
    tables = (*paper, sample_table(), minilm_table(), *gcide_tables(faiss_gpus), *code_tables(faiss_gpus))
    return {table.name: table for table in tables}
