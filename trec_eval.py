"""Compute nDCG@10, recall, AP and RR of a run, and test whether it differs from other runs.

    python trec_eval.py QRELS RUN
    python trec_eval.py -l 2 QRELS RUN                        # TREC DL passages: grade 2 and above is relevant
    python trec_eval.py QRELS RUN --compare RUN_B [RUN_C ...]

QRELS and RUN must have the same ids: rows or official ids. A line of RUN is 'qid pid rank' or TREC's 'qid Q0 docid rank
score tag'. Values are means over all judged queries, including those that the run lacks (trec_eval -c). The output has
trec_eval's format: measure, query or all, value. --compare adds paired two-sided tests over the queries, with Holm's
correction over all given measures and runs.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence

from drhard.commands import command
from drhard.metrics import measure_run, parse_measures
from drhard.numbers import COUNT
from drhard.qrels import read_grades

import numpy as np
from ir_measures.measures import Measure

MEASURES = ("nDCG@10", "R@100", "R@1000", "AP", "RR@10")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qrels", metavar="QRELS")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("-m", "--measures", nargs="+", default=MEASURES, help="names of ir_measures (%(default)s)")
    parser.add_argument(
        "-l",
        "--level_for_rel",
        type=COUNT,
        default=1,
        metavar="GRADE",
        help="lowest grade that counts as relevant in the binary measures; 2 for TREC DL passages (1)",
    )
    parser.add_argument("-q", "--per_query", action="store_true", help="also print the value of each query")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN_B", help="runs to test RUN against")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    measures = parse_measures(args.measures, args.level_for_rel)
    judged = read_grades(args.qrels)
    values = measure_and_tell(measures, args.run, judged, args.qrels)
    width = max(len("measure"), *map(len, values))
    for name, of_query in values.items():
        if args.per_query:
            for qid, value in zip(judged, of_query, strict=True):
                print(f"{name:{width}}\t{qid}\t{value:.4f}")
        print(f"{name:{width}}\tall\t{of_query.mean():.4f}")
    if args.compare:
        others = [(path, measure_and_tell(measures, path, judged, args.qrels)) for path in args.compare]
        print(f"\n{args.run} against others over {len(judged)} queries; p of paired tests, corrected after Holm\n")
        print_comparisons(values, others, width)


def measure_and_tell(
    measures: Sequence[Measure], path: str, judged: Mapping[str, Mapping[str, int]], qrels: str
) -> dict[str, np.ndarray]:
    """Return the values of a run's queries, (Q,) for each measure. Report how run and judgements fit on stderr."""
    cuts = {str(measure): measure.params["cutoff"] for measure in measures if "cutoff" in measure.params}
    values, coverage = measure_run(measures, path, qrels, judged, cuts)
    print(coverage, file=sys.stderr)
    return values


def print_comparisons(
    values: Mapping[str, np.ndarray], others: Sequence[tuple[str, Mapping[str, np.ndarray]]], width: int
) -> None:
    from drhard.significance import compare, holm  # imported here: SciPy takes seconds to load

    rows = [
        (name, path, other[name].mean(), compare(values[name], other[name]))
        for path, other in others
        for name in values
    ]
    t_tests = holm([row[3].t_test for row in rows])
    randomizations = holm([row[3].randomization for row in rows])
    print(f"{'measure':{width}}  value B  difference  95 % interval    t-test  randomization  run B")
    for (name, path, value, result), t_test, randomization in zip(rows, t_tests, randomizations, strict=True):
        interval = "—               " if math.isnan(result.low) else f"{result.low:+.4f} {result.high:+.4f}"
        print(
            f"{name:{width}}  {value:7.4f}  {result.difference:+10.4f}  {interval}  "
            f"{t_test:6.4f}  {randomization:13.4f}  {path}"
        )


if __name__ == "__main__":
    main()
