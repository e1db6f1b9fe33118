"""Retrieve with an ADORE model: encode the queries of a split, search given passage embeddings, write the run.

    python ./adore/inference.py --model_dir ./data/passage/trained_models/adore-star \\
        --output_dir ./data/passage/evaluate/adore-star --preprocess_dir ./data/passage/preprocess \\
        --mode dev --dmemmap_path ./data/passage/evaluate/star/passages.memmap
"""

import argparse
from pathlib import Path

from drhard.compressed import FLAT, check_index, choose_index
from drhard.devices import encoding_dtype, model_device
from drhard.embeddings import encode, open_embeddings
from drhard.encoder import load_encoder
from drhard.errors import command
from drhard.msmarco import MODES
from drhard.runs import run_ids, write_run
from drhard.search import SEARCH_MEMORY_GB
from drhard.tokens import TokenMemmap, query_name


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=Path, required=True, help="the query encoder")
    parser.add_argument("--output_dir", type=Path, required=True, help="where {mode}.rank.tsv goes")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, required=True, help="which queries")
    parser.add_argument("--topk", type=int, default=100, help="documents for each query (100)")
    parser.add_argument("--dmemmap_path", type=Path, required=True, help="embeddings that star/inference.py wrote")
    parser.add_argument("--max_seq_length", type=int, default=64, help="tokens of a query (64)")
    parser.add_argument("--pergpu_eval_batch_size", type=int, default=32, help="sequences in a batch, per GPU (32)")
    parser.add_argument("--no_cuda", action="store_true", help="leave the GPU alone")
    parser.add_argument("--faiss_gpus", type=int, nargs="+", default=[], help="GPUs to search on (none: the CPU)")
    parser.add_argument("--index_factory", default=FLAT, help="a faiss index such as OPQ96,PQ96 (Flat: exact)")
    parser.add_argument("--index_path", type=Path, help="a faiss index; built here if it is not there yet")
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
    queries = TokenMemmap(args.preprocess_dir, query_name(args.mode), args.max_seq_length)
    model = load_encoder(args.model_dir)
    device = model_device(args.no_cuda)
    documents = open_embeddings(args.dmemmap_path, model.output_embedding_size)
    print(
        f"Retrieving {args.topk} of {len(documents)} documents for {len(queries)} queries, {args.model_dir} on {device}"
    )
    check_index(
        args.topk, documents, args.index_factory, args.index_path, args.faiss_gpus, args.search_memory_gb, len(queries)
    )

    query_path = args.output_dir / f"{args.mode}.qembed.memmap"
    dtype = encoding_dtype(args.precision, device)
    dim = encode(model, queries, query_path, args.pergpu_eval_batch_size, device, dtype)
    index = choose_index(documents, args.index_factory, args.index_path, args.faiss_gpus, True, args.search_memory_gb)
    scores, rows = index.search(open_embeddings(query_path, dim, len(queries)), args.topk)
    write_run(args.output_dir / f"{args.mode}.rank.tsv", scores, rows, run_ids(args.preprocess_dir, args.mode))
    print(f"Wrote {query_path}")
    print(f"Wrote {args.output_dir / f'{args.mode}.rank.tsv'}")


if __name__ == "__main__":
    main()
