"""Retrieve with a STAR model: encode the passages and the queries of a split, search, write the run.

Reads {data_root}/{type}/preprocess and {data_root}/{type}/trained_models/star, writes
{data_root}/{type}/evaluate/star/{mode}.rank.tsv:

    python ./star/inference.py --data_type passage --max_doc_length 256 --mode dev
"""

import argparse
from pathlib import Path

from drhard.devices import encoding_dtype, model_device
from drhard.encoder import load_encoder
from drhard.errors import command
from drhard.msmarco import CORPORA, MODES
from drhard.retrieval import retrieve
from drhard.runs import run_ids, write_run
from drhard.search import SEARCH_MEMORY_GB
from drhard.tokens import PASSAGES, TokenMemmap, query_name


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_type", choices=CORPORA, required=True)
    parser.add_argument("--data_root", type=Path, default=Path("./data"), help="default: ./data")
    parser.add_argument("--max_query_length", type=int, default=32, help="tokens of a query (32)")
    parser.add_argument("--max_doc_length", type=int, default=512, help="tokens of a document (512)")
    parser.add_argument("--eval_batch_size", type=int, default=32, help="sequences in a batch, per GPU (32)")
    parser.add_argument("--mode", choices=MODES, required=True, help="which queries")
    parser.add_argument("--topk", type=int, default=100, help="documents for each query (100)")
    parser.add_argument("--no_cuda", action="store_true", help="leave the GPU alone")
    parser.add_argument("--faiss_gpus", type=int, nargs="+", default=[], help="GPUs to search on (none: the CPU)")
    parser.add_argument("--model_dir", type=Path, help="default: {data_root}/{type}/trained_models/star")
    parser.add_argument("--output_dir", type=Path, help="default: {data_root}/{type}/evaluate/star")
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
    model_dir = args.model_dir or root / "trained_models" / "star"
    output_dir = args.output_dir or root / "evaluate" / "star"
    passages = TokenMemmap(root / "preprocess", PASSAGES, args.max_doc_length)
    queries = TokenMemmap(root / "preprocess", query_name(args.mode), args.max_query_length)
    model = load_encoder(model_dir)
    device = model_device(args.no_cuda)
    print(f"Retrieving {args.topk} of {len(passages)} passages for {len(queries)} queries, {model_dir} on {device}")

    scores, rows = retrieve(
        model,
        passages,
        queries,
        output_dir,
        args.topk,
        args.eval_batch_size,
        device,
        args.faiss_gpus,
        args.search_memory_gb,
        encoding_dtype(args.precision, device),
    )
    write_run(output_dir / f"{args.mode}.rank.tsv", scores, rows, run_ids(root / "preprocess", args.mode))
    print(f"Wrote {output_dir / f'{args.mode}.rank.tsv'}")


if __name__ == "__main__":
    main()
