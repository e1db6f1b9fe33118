"""Export a trained retriever for sentence-transformers, and its embeddings for faiss and pyterrier_dr.

    python export.py --query_model ./data/passage/adore_train/models/epoch-6 \\
        --document_model ./data/passage/trained_models/star --output_dir ./data/passage/exported

ADORE trains the query encoder alone, so a retriever is two models. The folder loads as one:
SentenceTransformer(folder).encode_query(...) and .encode_document(...).
"""

import argparse
from pathlib import Path

from drhard.collection import Collection
from drhard.commands import command
from drhard.errors import InputError
from drhard.hub import find_checkpoint
from drhard.msmarco import CORPORA

MEASURES = ("RR@10", "nDCG@10", "R@100")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_argument_group("the models")
    models.add_argument("--query_model", help="the query encoder: a folder or hub name")
    models.add_argument("--document_model", help="the document encoder (default: the query encoder)")
    models.add_argument("--output_dir", type=Path, help="folder for sentence-transformers")
    models.add_argument("--run", type=Path, help="a run of these models, for the model card; needs --qrels")
    models.add_argument("--qrels", type=Path, help="judgements of --run")
    models.add_argument("--push_to_hub", metavar="NAME", help="upload --output_dir to the Hugging Face hub")
    models.add_argument("--private", action="store_true", help="the uploaded model is private")
    vectors = parser.add_argument_group("the embeddings")
    vectors.add_argument("--embeddings", type=Path, help="passages.memmap, as star/inference.py wrote it")
    vectors.add_argument("--faiss", type=Path, metavar="FILE", help="write a flat inner-product index of faiss")
    vectors.add_argument("--flex", type=Path, metavar="DIR", help="write a FlexIndex of pyterrier_dr")
    vectors.add_argument("--preprocess_dir", type=Path, help="folder with the official ids, for --flex")
    vectors.add_argument("--data_type", choices=CORPORA, default="passage", help="whose ids these are (passage)")
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError if flags are missing that others need."""
    needs = [
        ("output_dir", "query_model"),
        ("query_model", "output_dir"),
        ("document_model", "query_model"),
        ("run", "qrels"),
        ("qrels", "run"),
        ("run", "output_dir"),
        ("push_to_hub", "output_dir"),
        ("private", "push_to_hub"),
        ("faiss", "embeddings"),
        ("flex", "embeddings"),
        ("flex", "preprocess_dir"),
    ]
    for flag, needed in needs:
        if getattr(args, flag) and not getattr(args, needed):
            raise InputError(f"--{flag} needs --{needed}")
    if not (args.output_dir or args.faiss or args.flex):
        raise InputError("nothing to do: give --output_dir, --faiss or --flex")


@command
def main() -> None:
    args = parse_arguments()
    if args.output_dir:
        export_models(args)
    if args.faiss or args.flex:
        export_embeddings(args)


def export_models(args: argparse.Namespace) -> None:
    query = find_checkpoint(args.query_model)
    document = find_checkpoint(args.document_model or args.query_model)

    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.exports import export_encoders, upload
    from drhard.model_card import write_card
    from drhard.model_folder import load_encoder, load_encoder_beside

    of_queries = load_encoder(query), query
    of_documents = of_queries if document == query else (load_encoder_beside(of_queries[0], document), document)
    encoders = {"query": of_queries, "document": of_documents}
    measured = [args.run, args.qrels] if args.run else []
    export_encoders(args.output_dir, encoders, write_card(encoders, measure(*measured) if measured else {}, measured))
    print(f"Wrote {args.output_dir}")
    if args.push_to_hub:
        print(f"Uploaded {upload(args.output_dir, args.push_to_hub, args.private)}")


def measure(run: Path, qrels: Path) -> dict[str, float]:
    from drhard.metrics import measure_run, parse_measures
    from drhard.qrels import read_grades

    values, _ = measure_run(parse_measures(MEASURES), run, qrels, read_grades(qrels))
    return {name: float(of_query.mean()) for name, of_query in values.items()}


def export_embeddings(args: argparse.Namespace) -> None:
    from drhard.embeddings import open_embeddings, read_embedding_stamp
    from drhard.exports import export_faiss, export_flex

    stamp = read_embedding_stamp(args.embeddings)
    if stamp is None:
        raise InputError(f"{args.embeddings}: has no stamp beside it, so its dimensions are not known")
    embeddings = open_embeddings(args.embeddings, stamp["dim"], stamp["rows"])
    if args.faiss:
        export_faiss(args.faiss, embeddings)
        print(f"Wrote {args.faiss}")
    if args.flex:
        pids = Collection(args.preprocess_dir).official_pids(CORPORA[args.data_type].pid_prefix)
        export_flex(args.flex, embeddings, args.embeddings, pids)
        print(f"Wrote {args.flex}")


if __name__ == "__main__":
    main()
