"""The paper's tables, row by row: the commands that make a row, the expected values, and the values measured here.

    python reproduce.py list                                 # the rows
    python reproduce.py show 'passage:ADORE (STAR)'          # a row's commands, ready to paste
    python reproduce.py run sample:STAR                      # run them; a step whose result exists is skipped
    python reproduce.py report                               # expected and measured values
    python reproduce.py report sample --output_dir report    # also as report.md, report.json and report.html

The models of the paper's rows are the published checkpoints; --from scratch trains them instead. For the rows STAR and
ADORE (STAR), --from run fetches the runs that the authors published, and needs no model. The sample's models are
always trained, from the sample's own small model or from all-MiniLM-L6-v2. The commands and the expected values are in
drhard/tables_msmarco.py, drhard/tables_sample.py, drhard/tables_gcide.py and drhard/tables_code.py.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from drhard.commands import command
from drhard.errors import InputError
from drhard.files import write_json, write_whole_text
from drhard.numbers import NATURAL
from drhard.recipes import CHECKPOINT, RUN, SCRATCH, Row, Step, Table, each_once, find_rows
from drhard.tables import all_tables

PROJECT = Path(__file__).resolve().parent
OUT_OF_MEMORY = {code: " (killed: out of memory?)" for code in (137, -signal.SIGKILL)}
INTERRUPTED = (130, -signal.SIGINT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | show | run | measure | report")
    listing = commands.add_parser("list", help="print the names of all rows")
    show = commands.add_parser("show", help="print a row's commands")
    run = commands.add_parser("run", help="run a row's commands, except those whose result exists")
    measure = commands.add_parser("measure", help="keep what a row's runs measure; the last step of some rows")
    measure.add_argument("row", metavar="ROW", help="a row such as gcide:STAR")
    measure.add_argument("--seed", type=NATURAL, help="the seed of the training (none, for a row without seeds)")
    report = commands.add_parser("report", help="print the tables: expected, measured, difference")
    for sub in (show, run):
        sub.add_argument("row", metavar="ROW", help="a row such as sample:STAR, or a table for all its rows")
        sub.add_argument("--from", dest="origin", choices=(CHECKPOINT, SCRATCH, RUN), help="models or run (checkpoint)")
        sub.add_argument("--faiss_gpus", type=NATURAL, nargs="+", default=[], help="GPUs to search on (none: the CPU)")
    run.add_argument("--dry_run", action="store_true", help="only print what would run")
    report.add_argument("tables", metavar="TABLE", nargs="*", help="passage, doc, sample, minilm, gcide, code (all)")
    report.add_argument("--output_dir", type=Path, help="also write report.md, report.json and report.html there")
    for sub in (listing, show, run, measure, report):
        sub.add_argument("--data_root", type=Path, help="the data root of MS MARCO (data)")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    data_root = args.data_root.absolute() if args.data_root else None
    output_dir = args.output_dir.absolute() if args.command == "report" and args.output_dir else None
    os.chdir(PROJECT)  # the commands are relative to it
    tables = all_tables(data_root, getattr(args, "faiss_gpus", ()))
    if args.command == "list":
        list_rows(tables)
    elif args.command == "show":
        for command_line in dict.fromkeys(step.command for step in find_steps(tables, args.row, args.origin)):
            print(command_line)
    elif args.command == "run":
        steps = find_steps(tables, args.row, args.origin)
        require_start(tables[args.row.partition(":")[0]])
        for step in steps:
            run_step(step, args.dry_run)
        if not args.dry_run:
            print(f"\n{args.row} is made; '{report_command(args)}' shows it")
    elif args.command == "measure":
        measure(tables, args.row, args.seed)
    else:
        write_report(tables, args.tables, output_dir)


def list_rows(tables: Mapping[str, Table]) -> None:
    rows = [row for table in tables.values() for row in table.rows.values()]
    width = max(len(row.id) for row in rows)
    for row in rows:
        print(f"{row.id:{width}}  from {' or '.join(row.trials)}")


def find_steps(tables: Mapping[str, Table], wanted: str, origin: str | None) -> list[Step]:
    """Return the steps of a row, or of all rows of a table, in order, each once."""
    return each_once(step for row in find_rows(tables, wanted) for step in steps_of(row, origin))


def steps_of(row: Row, origin: str | None) -> list[Step]:
    origin = origin or next(iter(row.trials))
    if origin not in row.trials:
        raise InputError(f"{row.id} has no published {origin}; omit --from")
    return row.steps(origin)


def require_start(table: Table) -> None:
    """Raise InputError if the rows of a table need what no step makes, and it is missing."""
    if table.needs is not None and not table.needs.path.exists():
        raise InputError(f"{table.needs.path}: is not part of the project; make it first: {table.needs.by}")


def run_step(step: Step, dry_run: bool) -> None:
    """Run one command with this Python, unless its result exists."""
    print(f"\n$ {step.command}", flush=True)
    if step.makes.exists():
        print(f"{step.makes} already exists", flush=True)
        return
    if dry_run:
        return
    code = run_in_shell(step.command)
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        hint = OUT_OF_MEMORY.get(code, "")
        raise InputError(
            f"the command above ended with exit code {code}{hint}; fix the cause and run the same command again"
        )
    if not step.makes.exists():
        raise InputError(f"the command above succeeded but did not write {step.makes}")


def run_in_shell(line: str) -> int:
    """Run a command with this Python's folder first on the path. Return its exit code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(["bash", "-c", line], env=os.environ | {"PATH": path})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the command received it too and is saving its work
            continue


def measure(tables: Mapping[str, Table], wanted: str, seed: int | None) -> None:
    """Measure the training of a row that has this seed, and keep what was found."""
    row, *others = find_rows(tables, wanted)
    trials = [] if others else [trial for trials in row.trials.values() for trial in trials if trial.seed == seed]
    if len(trials) != 1:
        raise InputError(f"{wanted}: has no training, or several, with the seed {seed}; see reproduce.py list")
    from drhard.measured import write_record  # imported here: it loads torch and TensorBoard, which takes seconds

    write_record(tables[row.table], trials[0])
    print(f"Wrote {trials[0].record}")


def report_command(args: argparse.Namespace) -> str:
    """Return the command that reports the row that was just made."""
    root = f" --data_root {shlex.quote(str(args.data_root))}" if args.data_root else ""
    return f"python reproduce.py report {args.row.partition(':')[0]}{root}"


def write_report(tables: Mapping[str, Table], wanted: Iterable[str], output_dir: Path | None) -> None:
    """Print the report of the tables ``wanted``, of all if none is. Write it to ``output_dir`` too if that is given."""
    names = dict.fromkeys([find_rows(tables, name)[0].table for name in wanted] or tables)
    # These load torch, TensorBoard and matplotlib, which take seconds. No other command needs them.
    from drhard.rendering import render_html, render_markdown, render_text
    from drhard.report import make_report

    report = make_report([tables[name] for name in names], with_texts=output_dir is not None)
    print(render_text(report))
    if output_dir is None:
        return
    write_json(output_dir / "report.json", report, indent=1, ensure_ascii=False)
    for name, render in (("report.md", render_markdown), ("report.html", render_html)):
        with write_whole_text(output_dir / name) as file:
            file.write(render(report))
        print(f"Wrote {output_dir / name}")
    print(f"Wrote {output_dir / 'report.json'}")


if __name__ == "__main__":
    main()
