"""Choose the settings of the reverse dictionary with held-out training queries, and write data/gcide/settings.json.

    python reproduce.py run gcide-held-out           # 32 trainings; each is measured as it ends
    python reproduce.py run gcide-small-held-out
    python data/gcide/choose.py

For each setting, the value with the highest held-out MRR@10 wins. Settings whose rows are not all measured stay.
"""

import argparse

from drhard.commands import command
from drhard.files import write_json
from drhard.measured import find_measured, read_judged
from drhard.recipes import SCRATCH, Row, Table
from drhard.tables_gcide import MODELS, SETTINGS, choices_of, held_out_table, read_settings


@command
def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    settings = read_settings()
    for model in MODELS:
        table = held_out_table(model)
        for setting, values in choices_of(model).items():
            found = {value: mean(table, rows) for value, rows in values.items()}
            shown = ", ".join(f"{value} {'—' if one is None else f'{one:.4f}'}" for value, one in found.items())
            measured = {value: one for value, one in found.items() if one is not None}
            if len(measured) == len(values):
                settings[model.name][setting] = max(measured, key=measured.__getitem__)
            print(f"{model.name} {setting}: {settings[model.name][setting]} of {shown}")
    write_json(SETTINGS, settings, indent=1)
    print(f"Wrote {SETTINGS}")


def mean(table: Table, rows: list[Row]) -> float | None:
    """Return the mean held-out MRR@10 of the rows; None if one was not measured."""
    trials = [find_measured(table, trial, read_judged(table)) for row in rows for trial in row.trials[SCRATCH]]
    values = [trial.mean("mrr") for trial in trials if trial is not None]
    return sum(values) / len(values) if len(values) == len(trials) else None


if __name__ == "__main__":
    main()
