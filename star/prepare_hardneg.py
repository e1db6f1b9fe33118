"""Mine static hard negatives: what the warm-up model ranks high though it is not judged relevant.

Reads {data_root}/{type}/preprocess and {data_root}/{type}/warmup, writes
{data_root}/{type}/warmup_retrieve/hard.json for star/train.py:

    python ./star/prepare_hardneg.py --data_type passage --max_query_length 32 --max_doc_length 256 --mode train
"""

import argparse
from pathlib import Path

from drhard.devices import model_device
from drhard.encoder import load_encoder
from drhard.errors import command
from drhard.msmarco import CORPORA, PASSAGE
from drhard.retrieval import mine_hard_negatives, write_hard_negatives
from drhard.runs import write_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_type", choices=CORPORA, required=True)
    parser.add_argument("--data_root", type=Path, default=Path("./data"), help="default: ./data")
    parser.add_argument("--max_query_length", type=int, default=32, help="tokens of a query (32)")
    parser.add_argument("--max_doc_length", type=int, default=512, help="tokens of a document (512)")
    parser.add_argument("--eval_batch_size", type=int, default=128, help="sequences in a batch, per GPU (128)")
    parser.add_argument(
        "--mode", choices=[mode for mode, split in PASSAGE.splits.items() if split.qrels], required=True,
        help="which queries; star/train.py needs train",
    )  # fmt: skip
    parser.add_argument("--topk", type=int, default=200, help="negatives for each query (200)")
    parser.add_argument("--not_faiss_cuda", action="store_true", help="search on the CPU though the GPUs have room")
    parser.add_argument("--no_cuda", action="store_true", help="leave the GPU alone")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    root = args.data_root / args.data_type
    output_dir = root / "warmup_retrieve"
    model = load_encoder(root / "warmup")
    device = model_device(args.no_cuda)
    gpus = [] if args.not_faiss_cuda or args.no_cuda else None
    print(f"Mining {args.topk} hard negatives for each {args.mode} query with {root / 'warmup'} on {device}")

    hard, ranked = mine_hard_negatives(
        model, root / "preprocess", args.mode, output_dir, args.max_query_length, args.max_doc_length,
        args.topk, args.eval_batch_size, device, gpus,
    )  # fmt: skip
    write_run(output_dir / f"{args.mode}.rank.tsv", ranked)
    write_hard_negatives(output_dir / "hard.json", hard)
    print(f"Wrote {output_dir / f'{args.mode}.rank.tsv'}")
    print(f"Wrote {output_dir / 'hard.json'}")


if __name__ == "__main__":
    main()
