"""The paper's tables, row by row: the command that makes a row, the values to expect, the values measured here.

    python reproduce.py list                                 # the rows
    python reproduce.py show 'passage:ADORE (STAR)'          # a row's commands, ready to paste
    python reproduce.py run sample:STAR                      # make a row; what is made already is skipped
    python reproduce.py report                               # expected beside measured
    python reproduce.py report sample --output_dir report    # also as report.md, report.json and report.html

A row's models are the published checkpoints, or with --from scratch trained here; the sample's are always trained.
The commands and the expected values are in data/tables.yaml.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from drhard.errors import InputError, command
from drhard.files import write_json, write_whole_text
from drhard.numbers import NATURAL
from drhard.recipes import CHECKPOINT, SCRATCH, Row, Step, each_once, find_rows, read_tables
from drhard.rendering import render_html, render_markdown, render_text
from drhard.report import make_report

OUT_OF_MEMORY = {code: " (killed: out of memory?)" for code in (137, -signal.SIGKILL)}
PROJECT = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | show | run | report")
    listing = commands.add_parser("list", help="name all rows")
    show = commands.add_parser("show", help="print the commands that make a row")
    run = commands.add_parser("run", help="make a row, but for what is made already")
    report = commands.add_parser("report", help="the tables: expected, measured, difference")
    for sub in (show, run):
        sub.add_argument("row", metavar="ROW", help="such as sample:STAR; or a table, for all its rows")
        sub.add_argument("--from", dest="origin", choices=(CHECKPOINT, SCRATCH), help="the models (checkpoint)")
        sub.add_argument("--faiss_gpus", type=NATURAL, nargs="+", default=[], help="GPUs to search on (none: the CPU)")
    run.add_argument("--dry_run", action="store_true", help="only say what would run")
    report.add_argument("tables", metavar="TABLE", nargs="*", help="passage, doc, sample (all)")
    report.add_argument("--output_dir", type=Path, help="also write report.md, report.json and report.html there")
    for sub in (listing, show, run, report):
        sub.add_argument("--data_root", type=Path, help="where MS MARCO is or goes (data)")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    data_root = args.data_root.absolute() if args.data_root else None
    output_dir = args.output_dir.absolute() if args.command == "report" and args.output_dir else None
    os.chdir(PROJECT)  # the commands are relative to it
    tables = read_tables(Path("data/tables.yaml"), data_root, getattr(args, "faiss_gpus", ()))
    if args.command == "list":
        for table in tables.values():
            for row in table.rows.values():
                print(f"{row.id:32}  from {' or '.join(row.trials)}")
        return
    if args.command == "report":
        wanted = [find_rows(tables, name)[0].table for name in args.tables] or list(tables)
        report = make_report([tables[name] for name in dict.fromkeys(wanted)])
        print(render_text(report))
        if output_dir:
            write_json(output_dir / "report.json", report, indent=1, ensure_ascii=False)
            for name, render in (("report.md", render_markdown), ("report.html", render_html)):
                with write_whole_text(output_dir / name) as file:
                    file.write(render(report))
                print(f"Wrote {output_dir / name}")
            print(f"Wrote {output_dir / 'report.json'}")
        return

    steps = each_once(step for row in find_rows(tables, args.row) for step in steps_of(row, args.origin))
    if args.command == "show":
        for step in steps:
            print(step.command)
        return
    for step in steps:
        run_step(step, args.dry_run)
    if not args.dry_run:
        report = f"python reproduce.py report {args.row.partition(':')[0]}"
        if args.data_root:
            report += f" --data_root {shlex.quote(str(args.data_root))}"
        print(f"\n{args.row} is made; '{report}' shows it")


def steps_of(row: Row, origin: str | None) -> list[Step]:
    origin = origin or next(iter(row.trials))
    if origin not in row.trials:
        raise InputError(f"{row.id} has no published checkpoint; leave --from out")
    return row.steps(origin)


def run_step(step: Step, dry_run: bool) -> None:
    """Run one command, with this Python, unless what it makes is there."""
    print(f"\n$ {step.command}", flush=True)
    if step.makes.exists():
        print(f"{step.makes} is there already", flush=True)
        return
    if dry_run:
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(["bash", "-c", step.command], env=os.environ | {"PATH": path})
    code = None
    while code is None:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the command has got it too and is putting its work in order
            continue
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        ended = f"exit code {code}{OUT_OF_MEMORY.get(code, '')}"
        raise InputError(f"the command above ended with {ended}; put that right and run this again")
    if not step.makes.exists():
        raise InputError(f"the command above ended well but there is no {step.makes}")


if __name__ == "__main__":
    main()
