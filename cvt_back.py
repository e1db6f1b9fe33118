"""Turn a run in row numbers into one with official query and passage ids, MS MARCO's or with --trec TREC's.

    python cvt_back.py --input_dir ./data/passage/evaluate/adore-star --preprocess_dir ./data/passage/preprocess \\
        --output_dir ./data/passage/official_runs/adore-star --mode dev --dataset passage
"""

import argparse
from pathlib import Path

from drhard.errors import command
from drhard.msmarco import CORPORA, MODES
from drhard.runs import convert_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="where {mode}.rank.tsv is")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="where {mode}.rank.tsv goes")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--dataset", choices=CORPORA, required=True)
    parser.add_argument(
        "--trec",
        action="store_true",
        help="write {mode}.trec, 'qid Q0 docid rank score tag', in place of {mode}.rank.tsv",
    )
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    source = args.input_dir / f"{args.mode}.rank.tsv"
    target = args.output_dir / (f"{args.mode}.trec" if args.trec else f"{args.mode}.rank.tsv")
    print(f"Converting {source}")
    tag = "-".join(args.input_dir.resolve().name.split()) or "run" if args.trec else None
    if convert_run(source, target, args.preprocess_dir, args.mode, CORPORA[args.dataset].pid_prefix, tag):
        print(f"Wrote {target}")
    else:
        print(f"{target} is there already, made from the same run")


if __name__ == "__main__":
    main()
