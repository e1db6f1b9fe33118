"""nDCG@10, recall, AP and RR of a run, and whether it differs from other runs.

    python trec_eval.py QRELS RUN
    python trec_eval.py -l 2 QRELS RUN                        # TREC DL passages: grade 2 and above is relevant
    python trec_eval.py QRELS RUN --compare RUN_B [RUN_C ...]

QRELS and RUN have the same ids, rows or official ones; RUN is 'qid pid rank' or TREC's 'qid Q0 docid rank score tag'.
Values are means over all judged queries, those that the run lacks included (trec_eval -c). Printed as trec_eval
does: measure, query or all, value. --compare adds paired two-sided tests over the queries, with Holm's correction
over all measures and runs named.
"""

import argparse

from drhard.errors import InputError, command
from drhard.metrics import measure_queries, parse_measures
from drhard.qrels import read_grades
from drhard.runs import read_scored
from drhard.significance import compare, holm

import numpy as np

MEASURES = ("nDCG@10", "R@100", "R@1000", "AP", "RR@10")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qrels", metavar="QRELS")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("-m", "--measures", nargs="+", default=MEASURES, help="names of ir_measures (%(default)s)")
    parser.add_argument(
        "-l", "--level_for_rel", type=int, default=1, metavar="GRADE",
        help="the lowest grade that is relevant to the binary measures; 2 for TREC DL passages (1)",
    )  # fmt: skip
    parser.add_argument("-q", "--per_query", action="store_true", help="also the value of each query")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN_B", help="runs to test RUN against")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    if args.level_for_rel < 1:
        raise InputError(f"--level_for_rel is {args.level_for_rel}; grades that can be relevant begin at 1")
    measures = parse_measures(args.measures, args.level_for_rel)
    judged = read_grades(args.qrels)
    values = measure_queries(measures, read_run(args.run, judged, args.qrels), judged)
    width = max(len("measure"), *map(len, values))
    for name, of_query in values.items():
        if args.per_query:
            for qid, value in of_query.items():
                print(f"{name:{width}}\t{qid}\t{value:.4f}")
        print(f"{name:{width}}\tall\t{np.mean(list(of_query.values())):.4f}")
    if not args.compare:
        return

    rows = []
    for other in args.compare:
        others = measure_queries(measures, read_run(other, judged, args.qrels), judged)
        for name in values:
            a, b = (np.array(list(of_query.values())) for of_query in (values[name], others[name]))
            rows.append((name, other, b.mean(), compare(a, b)))
    t_tests = holm([row[3].t_test for row in rows])
    randomizations = holm([row[3].randomization for row in rows])
    print(f"\n{args.run} against others over {len(judged)} queries; p of paired tests, corrected after Holm\n")
    print(f"{'measure':{width}}  value B  difference  95 % interval    t-test  randomization  run B")
    for (name, other, value, result), t_test, randomization in zip(rows, t_tests, randomizations, strict=True):
        print(
            f"{name:{width}}  {value:7.4f}  {result.difference:+10.4f}  {result.low:+.4f} {result.high:+.4f}  "
            f"{t_test:6.4f}  {randomization:13.4f}  {other}"
        )


def read_run(path: str, judged: dict[str, dict[str, int]], qrels: str) -> dict[str, dict[str, float]]:
    run = read_scored(path)
    if not run.keys() & judged.keys():
        raise InputError(f"{path}: none of its queries is judged in {qrels}; rows and official ids do not mix")
    return run


if __name__ == "__main__":
    main()
