"""The text files of a collection, ``{data_root}/{type}/dataset``: which they are, and which splits there are.

A folder that import_collection.py wrote has ``import.json``, which says so. Any other has MS MARCO's published files.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from drhard.errors import InputError
from drhard.files import check_fields, read_object
from drhard.growth import is_growing, prepared_in
from drhard.msmarco import NOT_TUNED, Corpus, QueryFiles, parse_passage
from drhard.provenance import digest_record

IMPORT_FILE = "import.json"
IMPORT_FORMAT = 1
COLLECTION = "collection.tsv"
EMPTY_TEXTS = ("refuse", "skip", "keep")
_SPLIT = re.compile(r"[^\W_][\w.-]{0,63}")  # it becomes a part of file names
IMPORT_FIELDS = {
    "format": int,
    "made_from": dict,
    "passages": int,
    "empty_passages": int,
    "parts": list,
    "splits": dict,
}
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
        InputError: it is damaged, another version wrote it, or the collection is longer or shorter than it says.
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
    for part in content["parts"]:
        if not isinstance(part, dict):
            raise InputError(f"{path}: a part of the passages is not an object; {_IMPORT_AGAIN}")
        check_fields(f"{path}: a part of the passages", part, {"passages": int, "bytes": int}, _IMPORT_AGAIN)
    if "corpus" in content["made_from"]:
        fields = {"corpus": list, "queries": dict, "qrels": dict, "fields": dict}
        check_fields(f"{path}: made_from", content["made_from"], fields, _IMPORT_AGAIN)
    _check_size(folder, end_of(content["parts"]).bytes)
    return content


def _check_size(folder: Path, size: int) -> None:
    """Raise InputError if the passages are there and have not ``size`` bytes, as while some are appended."""
    path = folder / COLLECTION
    if path.is_file() and path.stat().st_size != size:
        if is_growing(prepared_in(folder)):
            way_out = "passages are being appended, or that was interrupted: run import_collection.py --append again"
        else:
            way_out = _IMPORT_AGAIN
        raise InputError(f"{path}: has {path.stat().st_size} bytes, but {IMPORT_FILE} says {size}; {way_out}")


class Place(NamedTuple):
    """A place in the file of the passages: the number of lines and bytes before it."""

    lines: int
    bytes: int


START = Place(0, 0)


def end_of(parts: Sequence[Mapping[str, int]]) -> Place:
    """Return where ``parts`` end, the first parts of the passages in ``import.json``. Each was a file of its own."""
    return Place(sum(part["passages"] for part in parts), sum(part["bytes"] for part in parts))


def digest_parts(content: Mapping[str, Any], count: int) -> str:
    """Return a digest of what the first ``count`` parts of the passages were made from, as ``import.json`` has it."""
    made_from = {name: value for name, value in content["made_from"].items() if name not in ("queries", "qrels")}
    if "corpus" in made_from:
        made_from["corpus"] = made_from["corpus"][:count]
    return digest_record({**made_from, "parts": content["parts"][:count]})


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
