"""Convert a run in rows to official query and passage ids, in MS MARCO's format or, with --trec, in TREC's.

    python cvt_back.py --input_dir ./data/passage/evaluate/adore-star --preprocess_dir ./data/passage/preprocess \\
        --output_dir ./data/passage/official_runs/adore-star --mode dev --dataset passage

With --hard_negatives it converts mined hard negatives instead, for other libraries:

    python cvt_back.py --hard_negatives --input_dir ./data/passage/warmup_retrieve \\
        --preprocess_dir ./data/passage/preprocess --output_dir ./data/passage/official_runs/warmup \\
        --mode train --dataset passage
"""

import argparse
from pathlib import Path

from drhard.collection import Collection
from drhard.commands import command
from drhard.conversion import convert_hard_negatives, convert_run, hard_negatives_path
from drhard.flags import add_flags
from drhard.hard_json import HARD_FILE
from drhard.msmarco import CORPORA
from drhard.runs import run_path, trec_path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder with {mode}.rank.tsv")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the converted run")
    add_flags(parser, "--mode")
    parser.add_argument("--dataset", choices=CORPORA, required=True)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--trec",
        action="store_true",
        help="write {mode}.trec, 'qid Q0 docid rank score tag', instead of {mode}.rank.tsv",
    )
    form.add_argument(
        "--hard_negatives",
        action="store_true",
        help="convert hard.json to {mode}.hard.jsonl, a line {qid, pos, neg} for each query",
    )
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    collection, prefix = Collection(args.preprocess_dir), CORPORA[args.dataset].pid_prefix
    name = "-".join(args.input_dir.resolve().name.split()) or "run"
    if args.hard_negatives:
        source, target = args.input_dir / HARD_FILE, hard_negatives_path(args.output_dir, args.mode)
        print(f"Converting {source}")
        new = convert_hard_negatives(source, target, collection, args.mode, prefix, name)
    else:
        source = run_path(args.input_dir, args.mode)
        target = (trec_path if args.trec else run_path)(args.output_dir, args.mode)
        print(f"Converting {source}")
        new = convert_run(source, target, collection, args.mode, prefix, name if args.trec else None)
    print(f"Wrote {target}" if new else f"{target} already exists, made from the same run")


if __name__ == "__main__":
    main()
