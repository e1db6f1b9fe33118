"""Tokenize a collection and its queries into memmaps.

Reads MS MARCO's files in {data_root}/{passage,doc}/dataset (NAME or NAME.gz) and writes
{data_root}/{passage,doc}/preprocess:

    python preprocess.py --data_type 1      # passages
    python preprocess.py --data_type 0      # documents
"""

import argparse
import os
from pathlib import Path

from drhard.errors import command
from drhard.msmarco import CORPORA
from drhard.numbers import COUNT, LENGTH
from drhard.preprocessing import EMPTY_TEXTS, Lengths, preprocess
from drhard.tokenizer import RobertaTokenizer
from drhard.workers import WORKERS

DATA_TYPES = {"0": "doc", "1": "passage"} | {name: name for name in CORPORA}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_type", default="1", choices=DATA_TYPES, help="1 or passage (default), 0 or doc")
    parser.add_argument("--data_root", type=Path, default=Path("./data"), help="default: ./data")
    parser.add_argument(
        "--model_name_or_path",
        default="roberta-base",
        help="model whose vocabulary to use: a folder, a hub name or s3://bucket/prefix (default: roberta-base)",
    )
    parser.add_argument("--max_seq_length", type=LENGTH, default=512, help="maximum tokens per document (512)")
    parser.add_argument("--max_query_length", type=LENGTH, default=64, help="maximum tokens per query (64)")
    parser.add_argument(
        "--max_doc_character", type=COUNT, default=10000, help="maximum characters per document (10000)"
    )
    parser.add_argument(
        "--threads", type=WORKERS, default=os.cpu_count(), help="number of processes (default: all cores)"
    )
    parser.add_argument(
        "--empty_texts",
        choices=EMPTY_TEXTS,
        default="refuse",
        help="refuse empty texts, skip them and their judgements, or keep them as rows without words (refuse)",
    )
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    corpus = CORPORA[DATA_TYPES[args.data_type]]
    root = args.data_root / corpus.name
    print(f"Tokenizing {root / 'dataset'} with {args.model_name_or_path}, {args.threads} processes")
    tokenizer = RobertaTokenizer.from_pretrained(args.model_name_or_path, do_lower_case=True)
    lengths = Lengths(args.max_seq_length, args.max_query_length, args.max_doc_character)
    for path in preprocess(corpus, root, tokenizer, lengths, args.threads, args.empty_texts):
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
