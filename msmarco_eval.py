"""MRR as MS MARCO's official script prints it.

    python msmarco_eval.py REFERENCE RUN [CUT]      # MRR@CUT, default 10
    python msmarco_eval.py REFERENCE RUN doc        # MRR@100 on official document ids (D123)

REFERENCE is a qrels file and RUN a file of qid, pid and rank: ours in row numbers, or both with official ids.
"""

import argparse

from drhard.errors import InputError, command
from drhard.metrics import mean_reciprocal_rank
from drhard.qrels import read_relevant
from drhard.runs import read_run

DOC_CUT = 100


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("cut", metavar="CUT", nargs="?", default="10", help="a number, or doc")
    args = parser.parse_args()
    if args.cut != "doc" and not (args.cut.isascii() and args.cut.isdigit() and int(args.cut) > 0):
        raise InputError(f"CUT is {args.cut!r}; expected a number from 1, or doc")
    cut, pid_prefix = (DOC_CUT, "D") if args.cut == "doc" else (int(args.cut), "")

    print("Eval Started")
    relevant = read_relevant(args.reference, pid_prefix)
    run = read_run(args.run, pid_prefix)
    print("#####################")
    print(f"MRR @{cut}: {mean_reciprocal_rank(run, relevant, cut)}")
    print(f"QueriesRanked: {len(run)}")
    print("#####################")


if __name__ == "__main__":
    main()
