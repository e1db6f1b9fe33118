"""Compute MRR and print it as MS MARCO's official script does.

    python msmarco_eval.py REFERENCE RUN [CUT]      # MRR@CUT, default 10
    python msmarco_eval.py REFERENCE RUN doc        # MRR@100 on official document ids (D123)

REFERENCE is a qrels file. RUN is a file of qid, pid and rank. Both have our rows, or both have official ids, which are
numbers or texts.
"""

import argparse
import sys

from drhard.commands import command
from drhard.metrics import Coverage, mean_reciprocal_rank
from drhard.msmarco import DOC, PASSAGE
from drhard.numbers import COUNT
from drhard.qrels import has_names, read_relevant, read_relevant_names
from drhard.runs import read_ranked, read_run

DOC_CUT = 100


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("cut", metavar="CUT", nargs="?", default=10, type=parse_cut, help="a number, or doc")
    args = parser.parse_args()
    cut, pid_prefix = (DOC_CUT, DOC.pid_prefix) if args.cut == DOC.name else (args.cut, PASSAGE.pid_prefix)

    print("Eval Started", flush=True)
    cuts = {f"MRR@{cut}": cut}
    if not pid_prefix and has_names(args.reference):
        names = read_relevant_names(args.reference)
        coverage = Coverage(args.run, args.reference, names, cuts)
        mrr = mean_reciprocal_rank(coverage.count(read_ranked(args.run)), names, cut)
    else:
        relevant = read_relevant(args.reference, pid_prefix)
        coverage = Coverage(args.run, args.reference, relevant, cuts)
        mrr = mean_reciprocal_rank(coverage.count(read_run(args.run, pid_prefix)), relevant, cut)
    coverage.check()
    print(coverage, file=sys.stderr)
    print("#####################")
    print(f"MRR @{cut}: {mrr}")
    print(f"QueriesRanked: {coverage.queries}")
    print("#####################")


def parse_cut(text: str) -> float | str:
    return text if text == DOC.name else COUNT(text)


if __name__ == "__main__":
    main()
