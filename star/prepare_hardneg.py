"""Mine static hard negatives: what a retriever ranks high though it is not judged relevant.

The retriever is the warm-up model in {data_root}/{type}/warmup (or --model_dir), and the negatives go into
{data_root}/{type}/warmup_retrieve/hard.json for star/train.py:

    python ./star/prepare_hardneg.py --data_type passage --max_query_length 32 --max_doc_length 256 --mode train

Or it is BM25, which reads the texts in {data_root}/{type}/dataset; the warm-up model is trained with its negatives,
in {data_root}/{type}/bm25_retrieve/hard.json:

    python ./star/prepare_hardneg.py --data_type passage --retriever bm25 --mode train
"""

import argparse
from pathlib import Path

from drhard.devices import encoding_dtype, model_device
from drhard.encoder import load_encoder
from drhard.errors import InputError, command
from drhard.msmarco import CORPORA, PASSAGE
from drhard.retrieval import mine_bm25_negatives, mine_hard_negatives, write_hard_negatives
from drhard.runs import run_ids, write_run
from drhard.search import SEARCH_MEMORY_GB

BM25_TUNED = {"passage": (0.82, 0.68)}  # k1, b for MS MARCO's passages
BM25_DEFAULT = (0.9, 0.4)


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
    parser.add_argument("--retriever", choices=("dense", "bm25"), default="dense", help="what mines them (dense)")
    parser.add_argument("--model_dir", type=Path, help="the dense retriever; default: {data_root}/{type}/warmup")
    parser.add_argument(
        "--output_dir", type=Path, help="default: {data_root}/{type}/warmup_retrieve, or bm25_retrieve for BM25"
    )
    parser.add_argument("--k1", type=float, help="of BM25 (MS MARCO passage, tuned: 0.82; doc: 0.9)")
    parser.add_argument("--b", type=float, help="of BM25 (MS MARCO passage, tuned: 0.68; doc: 0.4)")
    parser.add_argument(
        "--search_memory_gb", type=float, default=SEARCH_MEMORY_GB, help="for the search on the CPU (%(default)g)"
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_const", const="float16", dest="precision", help="faster, on a GPU")
    precision.add_argument("--bf16", action="store_const", const="bfloat16", dest="precision", help="faster, on a GPU")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    root = args.data_root / args.data_type
    if args.retriever == "bm25" and (args.model_dir or args.precision):
        raise InputError("--retriever bm25 has no use for --model_dir, --fp16 and --bf16; leave them out")
    if args.retriever == "dense" and (args.k1 is not None or args.b is not None):
        raise InputError("--k1 and --b are those of --retriever bm25; leave them out")
    if args.retriever == "bm25":
        output_dir = args.output_dir or root / "bm25_retrieve"
        k1, b = BM25_TUNED.get(args.data_type, BM25_DEFAULT)
        k1, b = k1 if args.k1 is None else args.k1, b if args.b is None else args.b
        print(f"Mining {args.topk} hard negatives for each {args.mode} query with BM25, k1 {k1}, b {b}")
        mined = mine_bm25_negatives(CORPORA[args.data_type], root, args.mode, args.topk, k1, b)
    else:
        output_dir = args.output_dir or root / "warmup_retrieve"
        model_dir = args.model_dir or root / "warmup"
        model = load_encoder(model_dir)
        device = model_device(args.no_cuda)
        gpus = [] if args.not_faiss_cuda or args.no_cuda else None
        print(f"Mining {args.topk} hard negatives for each {args.mode} query with {model_dir} on {device}")
        mined = mine_hard_negatives(
            model, root / "preprocess", args.mode, output_dir, args.max_query_length, args.max_doc_length,
            args.topk, args.eval_batch_size, device, gpus, args.search_memory_gb,
            encoding_dtype(args.precision, device),
        )  # fmt: skip
    ids = run_ids(root / "preprocess", args.mode)
    write_run(output_dir / f"{args.mode}.rank.tsv", mined.scores, mined.rows, ids)
    write_hard_negatives(output_dir / "hard.json", mined.hard)
    print(f"Wrote {output_dir / f'{args.mode}.rank.tsv'}")
    print(f"Wrote {output_dir / 'hard.json'}")


if __name__ == "__main__":
    main()
