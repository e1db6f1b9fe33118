"""Run all campaigns against the scripts in turn: kills, pairs, full disks, mutated inputs.

    python tests/campaigns --output campaigns.json

Each campaign also runs alone: kills.py, pairs.py, disks.py, mutations.py. The exit code is 1 if there are findings.
"""

import argparse
from pathlib import Path

from campaign import REAL, Campaigner, end
from disks import NAMES as WRITERS
from disks import disks
from kills import kills
from mutations import TARGETS, mutations
from pairs import NAMES as TWO
from pairs import pairs
from scripts_under_test import SCRIPTS, SMALL, Size


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/campaigns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, count in (("kills", 500), ("pairs", 200), ("disks", 200), ("mutations", 20_000)):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="COUNT", help=f"cases ({count}); 0: none")
    parser.add_argument("--seed", type=int, default=0, help="random seed; decides every case (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (%(default)s)")
    parser.add_argument("--output", type=Path, help="write the figures to FILE-kills.json and so on")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, metavar="SCRIPT", help=", ".join(SCRIPTS))
    parser.add_argument("--small", action="store_true", help="use 120 passages instead of 20,000")
    parser.add_argument("--real", type=float, default=REAL, help="share of cases without forks (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    scripts = args.only or list(SCRIPTS)
    outcomes = []
    with Campaigner(args.output, args.jobs, args.seed, real=args.real) as campaigner:
        world = campaigner.world(SMALL if args.small else Size())
        for name, make, subjects in (
            ("kills", kills, scripts),
            ("pairs", pairs, [name for name, two in TWO.items() if set(two) & SCRIPTS.keys() <= set(scripts)]),
            ("disks", disks, [name for name in WRITERS if name in scripts]),
            ("mutations", mutations, [name for name, target in TARGETS.items() if target.script in scripts]),
        ):
            count = getattr(args, name)
            if count and subjects:
                campaign = make(campaigner.world(SMALL) if name == "mutations" else world, subjects)
                outcomes += campaigner.run(name, campaign, count)
    end(outcomes)


if __name__ == "__main__":
    main()
