"""Retrieve with an ADORE model: encode a mode's queries, search given passage embeddings, and write the run.

    python ./adore/inference.py --model_dir ./data/passage/trained_models/adore-star \\
        --output_dir ./data/passage/evaluate/adore-star --preprocess_dir ./data/passage/preprocess \\
        --mode dev --dmemmap_path ./data/passage/evaluate/star/passages.memmap
"""

import argparse
from pathlib import Path

from drhard import processes
from drhard.collection import Collection
from drhard.commands import shared_command
from drhard.files import require_file
from drhard.flags import ENCODER, INDEX, PRECISION, add_flags
from drhard.hub import find_checkpoint
from drhard.results import results_path
from drhard.runs import digest_ids, run_path, write_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", required=True, help="the query encoder")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for {mode}.rank.tsv")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    parser.add_argument("--dmemmap_path", type=Path, required=True, help="embeddings that star/inference.py wrote")
    add_flags(
        parser,
        *ENCODER,
        "--mode",
        "--topk",
        "--max_seq_length",
        "--pergpu_eval_batch_size",
        "--no_cuda",
        "--faiss_gpus",
        *INDEX,
        *PRECISION,
        "--torch_compile",
    )
    return parser.parse_args()


@shared_command
def main() -> None:
    args = parse_arguments()
    run, results = run_path(args.output_dir, args.mode), results_path(args.output_dir, args.mode)
    collection = Collection(args.preprocess_dir, args.max_seq_length)
    queries = collection.queries(args.mode)
    require_file(args.dmemmap_path)
    find_checkpoint(args.model_dir)

    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.embeddings import open_document_embeddings
    from drhard.model_folder import load_encoder
    from drhard.retrieval import search_embeddings
    from drhard.settings import EncodingSettings, SearchSettings

    model = load_encoder(args.model_dir, pooling=args.pooling, normalize=args.normalize)
    encoding, searching = EncodingSettings.from_flags(args), SearchSettings.from_flags(args)
    if args.torch_compile:
        model.speed_up()
    documents = open_document_embeddings(args.dmemmap_path, model.output_embedding_size, collection)
    encoding.check(model, queries)
    left_out = collection.left_out
    searching.check(args.topk, len(documents) - len(left_out), documents.shape[1])
    print(
        f"Retrieving {args.topk} of {len(documents)} passages for {len(queries)} queries, "
        f"{args.model_dir} on {encoding.device}"
    )
    query_path = args.output_dir / f"{args.mode}.qembed.memmap"
    embeddings = encoding.encode(model, queries, query_path)
    with search_embeddings(embeddings, documents, searching, results, args.topk, left_out) as found:
        processes.first_value(lambda: write_run(run, found.scores, found.rows, digest_ids(collection, args.mode)))
    print(f"Wrote {query_path}")
    print(f"Wrote {run}")


if __name__ == "__main__":
    main()
