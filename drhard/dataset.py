"""The text files of a collection, ``{data_root}/{type}/dataset``: which they are, and which splits there are.

A folder that import_collection.py wrote has ``import.json``, which says so. Any other has MS MARCO's published files.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import check_fields, read_object
from drhard.msmarco import NOT_TUNED, Corpus, QueryFiles, parse_passage

IMPORT_FILE = "import.json"
IMPORT_FORMAT = 1
COLLECTION = "collection.tsv"
EMPTY_TEXTS = ("refuse", "skip", "keep")
_SPLIT = re.compile(r"[^\W_][\w.-]{0,63}")  # it becomes a part of file names
IMPORT_FIELDS = {"format": int, "made_from": dict, "passages": int, "empty_passages": int, "splits": dict}
_IMPORT_AGAIN = "delete the folder and run import_collection.py again"


def parse_split(text: str) -> str:
    """Return the name of a split, such as train or dev. Use it as ``type`` in argparse.

    Raises:
        ArgumentTypeError: it cannot be a part of a file name.
    """
    if _SPLIT.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not the name of a split: letters, digits, '-', '_' and '.', at most 64 in all"
        )
    return text


def split_files(split: str, judged: bool) -> QueryFiles:
    """Return the files of a split of an imported collection."""
    return QueryFiles(f"queries.{split}.tsv", f"qrels.{split}.tsv" if judged else None)


def names_of(file: str) -> str:
    """Return the table of official ids of a text file, without its ending: ``collection`` of ``collection.tsv``."""
    return file.removesuffix(".tsv")


def read_import(folder: Path) -> dict[str, Any] | None:
    """Return ``import.json`` of a dataset folder; None if import_collection.py did not write the folder.

    Raises:
        InputError: it is damaged, or another version wrote it.
    """
    path = folder / IMPORT_FILE
    if not path.exists():
        return None
    content = read_object(path, IMPORT_FIELDS, _IMPORT_AGAIN)
    if content["format"] != IMPORT_FORMAT:
        raise InputError(f"{path}: has the format {content['format']}, not {IMPORT_FORMAT}; {_IMPORT_AGAIN}")
    if content["made_from"].get("empty_texts") not in EMPTY_TEXTS:
        raise InputError(f"{path}: does not say what became of empty texts; {_IMPORT_AGAIN}")
    for name, split in content["splits"].items():
        if _SPLIT.fullmatch(name) is None or not isinstance(split, dict):
            raise InputError(f"{path}: {name[:40]!r} is not a split; {_IMPORT_AGAIN}")
        check_fields(f"{path}: the split {name}", split, {"queries": int}, _IMPORT_AGAIN, {"judgements": int})
    return content


def find_corpus(published: Corpus, folder: Path) -> Corpus:
    """Return the formats and files in a dataset folder.

    Args:
        published: what the folder holds unless import_collection.py wrote it.

    Raises:
        InputError: as :func:`read_import`.
    """
    content = read_import(folder)
    if content is None:
        return published
    return replace(
        published,
        collection=COLLECTION,
        pid_prefix="",
        parse=parse_passage,
        modes={name: split_files(name, "judgements" in split) for name, split in content["splits"].items()},
        bm25=NOT_TUNED,
        names=True,
        empty_texts=content["made_from"]["empty_texts"],
    )


def list_splits(names: Iterable[str]) -> str:
    """Return the end of a message about a split that is missing: which there are."""
    splits = sorted(names)
    if not splits:
        return "there is none"
    return f"there {'is' if len(splits) == 1 else 'are'} {', '.join(splits)}"
