"""Mine static hard negatives: documents that a retriever ranks high although they are not judged relevant.

By default, the retriever is the warm-up model in {data_root}/{type}/warmup. The negatives are written to
{data_root}/{type}/warmup_retrieve/hard.json, for star/train.py:

    python ./star/prepare_hardneg.py --data_type passage --max_query_length 32 --max_doc_length 256 --mode train

BM25 reads the texts in {data_root}/{type}/dataset. Its negatives train a warm-up model. They are written to
{data_root}/{type}/bm25_retrieve/hard.json:

    python ./star/prepare_hardneg.py --data_type passage --retriever bm25 --mode train
"""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path

from drhard import processes
from drhard.collection import Collection
from drhard.commands import shared_command
from drhard.dataset import find_corpus
from drhard.errors import InputError
from drhard.flags import ENCODER, FLAT, INDEX, PRECISION, RETRIEVAL, SELECTION, add_flags
from drhard.hard_json import HARD_FILE, write_hard_negatives
from drhard.hub import find_checkpoint
from drhard.mining import Mined, mine_bm25_negatives, mine_hard_negatives
from drhard.msmarco import CORPORA, Bm25Parameters
from drhard.negatives import MINED, Selection
from drhard.numbers import FRACTION, RATE
from drhard.runs import digest_ids, run_path, write_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(
        parser,
        *RETRIEVAL,
        *SELECTION,
        *ENCODER,
        "--not_faiss_cuda",
        "--no_cuda",
        *INDEX,
        *PRECISION,
        eval_batch_size={"default": 128},
        mode={"help": "which queries; they must be judged, and star/train.py needs those of train"},
        topk={"default": None, "help": f"negatives for each query; the same as --negative_ranks 1-N ({MINED})"},
    )
    parser.add_argument("--retriever", choices=("dense", "bm25"), default="dense", help="the retriever (dense)")
    parser.add_argument("--model_dir", help="the dense retriever; default: {data_root}/{type}/warmup")
    parser.add_argument(
        "--output_dir", type=Path, help="default: {data_root}/{type}/warmup_retrieve, or bm25_retrieve for BM25"
    )
    parser.add_argument("--k1", type=RATE, help="BM25's k1 (MS MARCO passage, tuned: 0.82; others: 0.9)")
    parser.add_argument("--b", type=FRACTION, help="BM25's b (MS MARCO passage, tuned: 0.68; others: 0.4)")
    parser.add_argument(
        "--split_names", action="store_true", help="BM25 splits names in source code into words: get_value, getValue"
    )
    args = parser.parse_args()
    if args.topk is not None and args.negative_ranks is not None:
        raise InputError("--topk N is the same as --negative_ranks 1-N; omit one of the two")
    args.selection = Selection.from_flags(args, args.topk or MINED)
    return args


@shared_command
def main() -> None:
    args = parse_arguments()
    root = args.data_root / args.data_type
    output_dir = args.output_dir or root / ("bm25_retrieve" if args.retriever == "bm25" else "warmup_retrieve")
    run = run_path(output_dir, args.mode)
    preprocess = args.preprocess_dir or root / "preprocess"
    collection = Collection(preprocess, args.max_query_length, args.max_doc_length)
    mine = with_bm25 if args.retriever == "bm25" else with_encoder

    def write(mined: Mined) -> None:
        write_run(run, mined.scores, mined.rows, digest_ids(collection, args.mode))
        write_hard_negatives(output_dir / HARD_FILE, mined.hard)

    with mine(args, root, collection, output_dir) as mined:
        processes.first_value(lambda: write(mined))
    print(f"Wrote {run}")
    print(f"Wrote {output_dir / HARD_FILE}")


def with_bm25(
    args: argparse.Namespace, root: Path, collection: Collection, output_dir: Path
) -> AbstractContextManager[Mined]:
    if processes.count() > 1:
        raise InputError("--retriever bm25 works in one process; start it with python, without torchrun")
    if args.model_dir or args.precision or args.pooling or args.normalize:
        raise InputError(
            "--retriever bm25 does not use --model_dir, --pooling, --normalize, --fp16 and --bf16; omit them"
        )
    if args.factory != FLAT or args.index_path or args.nprobe or args.ef_search:
        raise InputError(
            "--retriever bm25 does not use --index_factory, --index_path, --nprobe and --ef_search; omit them"
        )
    corpus = find_corpus(CORPORA[args.data_type], root / "dataset")
    k1, b = corpus.bm25.k1 if args.k1 is None else args.k1, corpus.bm25.b if args.b is None else args.b
    print(f"Mining {args.selection} for each {args.mode} query with BM25, k1 {k1}, b {b}")
    parameters = Bm25Parameters(k1, b, args.split_names)
    return mine_bm25_negatives(corpus, root / "dataset", collection, args.mode, output_dir, args.selection, parameters)


def with_encoder(
    args: argparse.Namespace, root: Path, collection: Collection, output_dir: Path
) -> AbstractContextManager[Mined]:
    if args.k1 is not None or args.b is not None or args.split_names:
        raise InputError("--k1, --b and --split_names need --retriever bm25; omit them or add it")
    model_dir = args.model_dir or root / "warmup"
    queries, passages = collection.queries(args.mode), collection.passages
    find_checkpoint(model_dir)

    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.model_folder import load_encoder
    from drhard.retrieval import Retriever
    from drhard.settings import EncodingSettings, SearchSettings

    model = load_encoder(model_dir, pooling=args.pooling, normalize=args.normalize)
    encoding = EncodingSettings.from_flags(args)
    retriever = Retriever(model, encoding, SearchSettings.from_flags(args, args.no_cuda))
    print(
        f"Mining {args.selection} for each of {len(queries)} {args.mode} queries among {len(passages)} "
        f"passages, {model_dir} on {encoding.device}"
    )
    return mine_hard_negatives(retriever, collection, args.mode, output_dir, args.selection)


if __name__ == "__main__":
    main()
