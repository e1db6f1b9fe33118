"""Tokenize a collection and its queries into memmaps.

Reads MS MARCO's files in {data_root}/{passage,doc}/dataset (NAME or NAME.gz), or what import_collection.py wrote
there. Writes {data_root}/{passage,doc}/preprocess:

    python preprocess.py --data_type 1      # passages
    python preprocess.py --data_type 0      # documents
"""

import argparse
import os
from pathlib import Path

from drhard import processes
from drhard.commands import shared_command
from drhard.dataset import EMPTY_TEXTS, find_corpus
from drhard.model_tokenizer import open_tokenizer
from drhard.msmarco import CORPORA
from drhard.numbers import COUNT, LENGTH
from drhard.preprocessing import Lengths, preprocess
from drhard.workers import WORKERS

DATA_TYPES = {"0": "doc", "1": "passage"} | {name: name for name in CORPORA}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_type", default="1", choices=DATA_TYPES, help="1 or passage (default), 0 or doc")
    parser.add_argument("--data_root", type=Path, default=Path("./data"), help="default: ./data")
    parser.add_argument(
        "--model_name_or_path",
        default="roberta-base",
        help="model whose tokenizer to use: a folder, a hub name or s3://bucket/prefix (default: roberta-base)",
    )
    parser.add_argument(
        "--own_tokenizer",
        action="store_true",
        help="use the tokenizer of a plain RoBERTa as it is, not as published; for star/train.py --pooling",
    )
    parser.add_argument("--query_prompt", help="text in front of each query (the model's own)")
    parser.add_argument("--passage_prompt", help="text in front of each passage (the model's own)")
    parser.add_argument("--preprocess_dir", type=Path, help="folder to write (default: {data_root}/{type}/preprocess)")
    parser.add_argument("--max_seq_length", type=LENGTH, default=512, help="maximum tokens per document (512)")
    parser.add_argument("--max_query_length", type=LENGTH, default=64, help="maximum tokens per query (64)")
    parser.add_argument(
        "--max_doc_character", type=COUNT, default=10000, help="maximum characters per document (10000)"
    )
    parser.add_argument(
        "--threads",
        type=WORKERS,
        default=max(1, (os.cpu_count() or 1) // processes.count_on_machine()),
        help="number of workers that tokenize (default: all cores); under torchrun, of each process",
    )
    parser.add_argument(
        "--empty_texts",
        choices=EMPTY_TEXTS,
        help="refuse empty texts, skip them and their judgements, or keep them as rows that no search finds (refuse; "
        "for an imported collection, what was chosen then)",
    )
    return parser.parse_args()


@shared_command
def main() -> None:
    args = parse_arguments()
    root = args.data_root / DATA_TYPES[args.data_type]
    corpus = find_corpus(CORPORA[root.name], root / "dataset")
    print(f"Tokenizing {root / 'dataset'} with {args.model_name_or_path}, {args.threads} processes")
    tokenizer = open_tokenizer(args.model_name_or_path, args.own_tokenizer)
    given = {"query": args.query_prompt, "passage": args.passage_prompt}
    tokenizer.prompts = {**tokenizer.prompts, **{side: text for side, text in given.items() if text is not None}}
    lengths = Lengths(args.max_seq_length, args.max_query_length, args.max_doc_character)
    for path in preprocess(corpus, root, tokenizer, lengths, args.threads, args.empty_texts, args.preprocess_dir):
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
