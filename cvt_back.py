"""Turn a run in row numbers into one with official query and passage ids.

    python cvt_back.py --input_dir ./data/passage/evaluate/adore-star --preprocess_dir ./data/passage/preprocess \\
        --output_dir ./data/passage/official_runs/adore-star --mode dev --dataset passage
"""

import argparse
from pathlib import Path

from drhard.errors import InputError, command
from drhard.files import read_int_dict
from drhard.msmarco import CORPORA, MODES
from drhard.runs import convert_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="where {mode}.rank.tsv is")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="where {mode}.rank.tsv goes")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--dataset", choices=CORPORA, required=True)
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    source, target = (folder / f"{args.mode}.rank.tsv" for folder in (args.input_dir, args.output_dir))
    if target.exists():
        raise InputError(f"{target}: there is a run already; delete it or name another --output_dir")
    row_of_qid = read_int_dict(args.preprocess_dir / f"{args.mode}-qid2offset.pickle")
    row_of_pid = read_int_dict(args.preprocess_dir / "pid2offset.pickle")
    print(f"Converting {source}")
    convert_run(source, target, row_of_qid, row_of_pid, CORPORA[args.dataset].pid_prefix)
    print(f"Wrote {target}")


if __name__ == "__main__":
    main()
