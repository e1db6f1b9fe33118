"""Retrieve with a STAR model: encode all passages and a mode's queries, search, and write the run.

Reads {data_root}/{type}/preprocess and {data_root}/{type}/trained_models/star. Writes
{data_root}/{type}/evaluate/star/{mode}.rank.tsv:

    python ./star/inference.py --data_type passage --max_doc_length 256 --mode dev
"""

import argparse
from pathlib import Path

from drhard import processes
from drhard.collection import Collection
from drhard.commands import shared_command
from drhard.flags import ENCODER, INDEX, PRECISION, RETRIEVAL, add_flags
from drhard.hub import find_checkpoint
from drhard.runs import digest_ids, run_path, write_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(
        parser,
        *RETRIEVAL,
        *ENCODER,
        "--no_cuda",
        "--faiss_gpus",
        *INDEX,
        *PRECISION,
        "--torch_compile",
    )
    parser.add_argument("--model_dir", help="default: {data_root}/{type}/trained_models/star")
    parser.add_argument("--output_dir", type=Path, help="default: {data_root}/{type}/evaluate/star")
    return parser.parse_args()


@shared_command
def main() -> None:
    args = parse_arguments()
    root = args.data_root / args.data_type
    model_dir = args.model_dir or root / "trained_models" / "star"
    output_dir = args.output_dir or root / "evaluate" / "star"
    run = run_path(output_dir, args.mode)
    collection = Collection(args.preprocess_dir or root / "preprocess", args.max_query_length, args.max_doc_length)
    passages, queries = collection.passages, collection.queries(args.mode)
    find_checkpoint(model_dir)

    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.model_folder import load_encoder
    from drhard.retrieval import Retriever
    from drhard.settings import EncodingSettings, SearchSettings

    model = load_encoder(model_dir, pooling=args.pooling, normalize=args.normalize)
    retriever = Retriever(model, EncodingSettings.from_flags(args), SearchSettings.from_flags(args))
    if args.torch_compile:
        model.speed_up()
    print(
        f"Retrieving {args.topk} of {len(passages)} passages for {len(queries)} queries, "
        f"{model_dir} on {retriever.encoding.device}"
    )
    with retriever.retrieve(collection, args.mode, output_dir, args.topk) as found:
        processes.first_value(lambda: write_run(run, found.scores, found.rows, digest_ids(collection, args.mode)))
    print(f"Wrote {run}")


if __name__ == "__main__":
    main()
