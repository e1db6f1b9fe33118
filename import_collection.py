"""Import a collection, so that the other scripts find it: a BEIR folder, a data set of ir_datasets, or your own files.

    python import_collection.py ./scifact --data_root ./mine                  # corpus.jsonl, queries.jsonl, qrels/
    python import_collection.py ir_datasets:beir/scifact/test --data_root ./mine
    python import_collection.py --corpus docs.jsonl --queries train=train.tsv test=test.tsv \\
        --qrels train=train.qrels test=test.qrels --data_root ./mine

Files may be JSONL, TSV, CSV, Parquet or TREC's, gzipped or not; their content shows it. It writes
{data_root}/{type}/dataset, and preprocess.py comes next. Ids may be any texts without white space: runs get them back
by cvt_back.py. Titles go in front of the texts, and line breaks become blanks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from drhard.commands import command
from drhard.dataset import EMPTY_TEXTS, parse_split
from drhard.errors import InputError
from drhard.importing import append_passages, import_collection
from drhard.msmarco import CORPORA
from drhard.sources import IR_DATASETS, FieldNames, Source, read_beir, read_files, read_ir_datasets


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", nargs="*", metavar="SOURCE", help=f"a BEIR folder, or one or more {IR_DATASETS}ID, each a split"
    )
    parser.add_argument("--data_root", type=Path, default=Path("./data"), help="default: ./data")
    parser.add_argument("--data_type", choices=CORPORA, default="passage", help="folder under --data_root (passage)")
    parser.add_argument(
        "--append",
        action="store_true",
        help="add the passages, and new splits, to the collection that was imported there; its row numbers stay",
    )
    files = parser.add_argument_group("your own files")
    files.add_argument("--corpus", type=Path, nargs="+", metavar="FILE", help="passages, in this order")
    files.add_argument(
        "--queries", type=parse_split_file, nargs="+", action="extend", metavar="SPLIT=FILE", help="queries of a split"
    )
    files.add_argument(
        "--qrels",
        type=parse_split_file,
        nargs="+",
        action="extend",
        metavar="SPLIT=FILE",
        help="judgements of a split; its other queries are left out",
    )
    fields = parser.add_argument_group("names of fields, if they are not the usual ones")
    fields.add_argument("--id_field", metavar="NAME", help="id of a passage (_id, id, docid, …)")
    fields.add_argument("--title_field", metavar="NAME", help="title of a passage (title)")
    fields.add_argument("--text_field", metavar="NAME", help="text of a passage (text, contents, body, …)")
    fields.add_argument("--query_id_field", metavar="NAME", help="id of a query (_id, id, qid, …)")
    fields.add_argument("--query_text_field", metavar="NAME", help="text of a query (text, query, title, …)")
    parser.add_argument(
        "--empty_texts",
        choices=EMPTY_TEXTS,
        default="keep",
        help="keep empty texts as rows that no search finds, skip them and their judgements, or refuse them (keep)",
    )
    return parser.parse_args()


def parse_split_file(text: str) -> tuple[str, Path]:
    """Parse SPLIT=FILE. Raises ArgumentTypeError, which argparse reports."""
    split, equals, file = text.partition("=")
    if not (equals and file):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not SPLIT=FILE, such as test=test.tsv")
    return parse_split(split), Path(file)


@command
def main() -> None:
    args = parse_arguments()
    folder = args.data_root / args.data_type / "dataset"
    source = find_source(args)
    print(f"{'Appending' if args.append else 'Importing'} {', '.join(args.source) or ', '.join(map(str, args.corpus))}")
    imported = (append_passages if args.append else import_collection)(source, folder, args.empty_texts)
    print(f"{'Wrote' if imported.new else 'Already there:'} {imported.folder}: {imported}")


def find_source(args: argparse.Namespace) -> Source:
    """Return what to import. Raises InputError if the flags do not name one source."""
    fields = FieldNames(args.id_field, args.title_field, args.text_field, args.query_id_field, args.query_text_field)
    if bool(args.source) == bool(args.corpus):
        raise InputError("give either SOURCE or --corpus")
    if args.corpus:
        if not (args.queries or args.append):
            raise InputError("there are no queries; give --queries SPLIT=FILE")
        return read_files(args.corpus, group(args.queries, "--queries"), only(args.qrels, "--qrels"), fields)
    if args.queries or args.qrels:
        raise InputError("--queries and --qrels belong to --corpus; a BEIR folder and ir_datasets have their own")
    if all(name.startswith(IR_DATASETS) for name in args.source):
        return read_ir_datasets([name.removeprefix(IR_DATASETS) for name in args.source], fields)
    if len(args.source) > 1:
        raise InputError("give one BEIR folder; its splits are its qrels/*.tsv")
    return read_beir(Path(args.source[0]), fields)


def group(given: Sequence[tuple[str, Path]] | None, flag: str) -> dict[str, list[Path]]:
    """Return split -> its files, in their order."""
    files: dict[str, list[Path]] = {}
    for split, path in given or ():
        files.setdefault(split, []).append(path)
    return files


def only(given: Sequence[tuple[str, Path]] | None, flag: str) -> dict[str, Path]:
    """Return split -> its file. Raises InputError if a split has two."""
    files = group(given, flag)
    for split, paths in files.items():
        if len(paths) > 1:
            raise InputError(f"{flag} {split}=… is given twice; join the files")
    return {split: path for split, [path] in files.items()}


if __name__ == "__main__":
    main()
