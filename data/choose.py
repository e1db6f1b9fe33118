"""Choose the settings of a data set that is made here with its held-out training queries.

    python reproduce.py run gcide-held-out           # 32 trainings; each is measured as it ends
    python reproduce.py run gcide-small-held-out
    python data/choose.py gcide

Writes data/gcide/settings.json. For each setting, the value with the highest held-out MRR@10 wins. Settings whose rows
are not all measured stay. The code search, data/code, works likewise.
"""

import argparse

from drhard.claims import Experiment, choices_of, held_out_table
from drhard.commands import command
from drhard.files import write_json
from drhard.measured import Judged, find_measured, read_judged
from drhard.recipes import SCRATCH, Row, Table
from drhard.tables_code import CODE
from drhard.tables_gcide import GCIDE

EXPERIMENTS = {experiment.name: experiment for experiment in (GCIDE, CODE)}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=EXPERIMENTS, help="the data set")
    choose(EXPERIMENTS[parser.parse_args().name])


def choose(experiment: Experiment) -> None:
    """Write the settings of a data set that were measured best."""
    settings = experiment.read_settings()
    for model in experiment.models:
        table = held_out_table(experiment, model)
        judged = read_judged(table)
        for setting, values in choices_of(experiment, model).items():
            found = {value: mean(table, judged, rows) for value, rows in values.items()}
            shown = ", ".join(f"{value} {'—' if one is None else f'{one:.4f}'}" for value, one in found.items())
            measured = {value: one for value, one in found.items() if one is not None}
            if len(measured) == len(values):
                settings[model.name][setting] = max(measured, key=measured.__getitem__)
            print(f"{model.name} {setting}: {settings[model.name][setting]} of {shown}")
    write_json(experiment.settings, settings, indent=1)
    print(f"Wrote {experiment.settings}")


def mean(table: Table, judged: Judged, rows: list[Row]) -> float | None:
    """Return the mean held-out MRR@10 of the rows; None if one was not measured."""
    trials = [find_measured(table, trial, judged) for row in rows for trial in row.trials[SCRATCH]]
    values = [trial.mean("mrr") for trial in trials if trial is not None]
    return sum(values) / len(values) if len(values) == len(trials) else None


if __name__ == "__main__":
    main()
