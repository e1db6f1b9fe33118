"""Convert a run in rows to official query and passage ids, in MS MARCO's format or, with --trec, in TREC's.

    python cvt_back.py --input_dir ./data/passage/evaluate/adore-star --preprocess_dir ./data/passage/preprocess \\
        --output_dir ./data/passage/official_runs/adore-star --mode dev --dataset passage
"""

import argparse
from pathlib import Path

from drhard.collection import Collection
from drhard.errors import command
from drhard.msmarco import CORPORA, MODES
from drhard.runs import convert_run, run_path, trec_path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder with {mode}.rank.tsv")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the converted run")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--dataset", choices=CORPORA, required=True)
    parser.add_argument(
        "--trec",
        action="store_true",
        help="write {mode}.trec, 'qid Q0 docid rank score tag', instead of {mode}.rank.tsv",
    )
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    source = run_path(args.input_dir, args.mode)
    target = (trec_path if args.trec else run_path)(args.output_dir, args.mode)
    print(f"Converting {source}")
    tag = "-".join(args.input_dir.resolve().name.split()) or "run" if args.trec else None
    collection, prefix = Collection(args.preprocess_dir), CORPORA[args.dataset].pid_prefix
    if convert_run(source, target, collection, args.mode, prefix, tag):
        print(f"Wrote {target}")
    else:
        print(f"{target} already exists, made from the same run")


if __name__ == "__main__":
    main()
