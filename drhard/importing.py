"""Import a collection: write its texts, queries and judgements in the formats that the other scripts read.

Texts get numbers 0, 1, 2, … in the order of the source. A table beside each file has their official ids: see
:mod:`drhard.names`.
"""

import logging
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from drhard.dataset import COLLECTION, IMPORT_FILE, IMPORT_FORMAT, names_of, read_import, split_files
from drhard.errors import InputError
from drhard.files import write_json, write_whole_file, write_whole_folder, write_whole_text
from drhard.names import NameLookup, Names, find_unfit, is_fit, refuse_name, write_names
from drhard.qrels import NamedJudgement
from drhard.sources import Judgements, Source, Split, TextBlock, Texts

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

LARGEST_SHARE_UNKNOWN = 0.5  # of judgements; above it, the files do not belong together


@dataclass(frozen=True)
class Imported:
    """A collection that was imported.

    Attributes:
        folder: the dataset folder.
        content: ``import.json``.
        new: False if the folder was there already.
    """

    folder: Path
    content: Mapping[str, Any]
    new: bool

    def __str__(self) -> str:
        splits = [
            f"{name} ({split['queries']} queries"
            + (f", {split['judgements']} judgements)" if "judgements" in split else ", not judged)")
            for name, split in self.content["splits"].items()
        ]
        return f"{self.content['passages']} passages; {'; '.join(splits)}"


def import_collection(source: Source, folder: Path, empty_texts: str) -> Imported:
    """Write the dataset folder of a collection, whole. Do nothing if it is there, made from the same source.

    Args:
        source: where the texts come from.
        folder: ``{data_root}/{type}/dataset``.
        empty_texts: what to do with empty texts: "keep" them as rows that no search finds, "skip" them and their
            judgements, or "refuse" them.

    Raises:
        InputError: the folder has another collection, a text or judgement is bad, an id appears twice, another process
            is writing the folder, or the disk is full.
    """
    made_from = source.made_from | {"empty_texts": empty_texts}
    there = read_import(folder)
    if there is not None:
        if there["made_from"] != made_from:
            raise InputError(
                f"{folder}: has another collection, or one imported with other settings; name another --data_root, or "
                "delete the folder and what was made from it"
            )
        return Imported(folder, there, new=False)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()  # so that the folder appears at once
    if folder.exists():
        _refuse_folder(folder)
    with write_whole_folder(folder, last=IMPORT_FILE) as unfinished:
        if folder.exists():
            _refuse_folder(folder)
        content = _write(source, unfinished, empty_texts)
        write_json(unfinished / IMPORT_FILE, content | {"made_from": made_from}, indent=1)
    return Imported(folder, content, new=True)


def _refuse_folder(folder: Path) -> NoReturn:
    """Raise InputError: the folder appeared, or was there without ``import.json``."""
    if (folder / IMPORT_FILE).exists():
        raise InputError(f"{folder}: another process has just written it; run the same command again")
    raise InputError(f"{folder}: exists, and import_collection.py did not write it; name another --data_root")


def _write(source: Source, folder: Path, empty_texts: str) -> dict[str, Any]:
    """Write all files but ``import.json``. Return its content."""
    passages = _write_texts(source.passages, folder / COLLECTION, empty_texts, None)
    splits = {name: _write_split(split, name, folder, empty_texts, passages) for name, split in source.splits.items()}
    return {
        "format": IMPORT_FORMAT,
        "passages": passages.rows,
        "empty_passages": passages.empty,
        "splits": splits,
    }


class _Written(NamedTuple):
    """Texts that were written."""

    rows: int
    empty: int
    skipped: set[str]  # official ids of empty texts
    names: Names
    lookup: NameLookup
    source: str  # what messages call them

    def find(self, name: str) -> int:
        """Return the row of an official id, -1 if it is not there."""
        return self.lookup.find(name, self.names)


def _write_texts(parts: Sequence[Texts], path: Path, empty_texts: str, keep: set[str] | None) -> _Written:
    """Write ``path``, a line ``row <tab> text`` for each text, and the table of official ids beside it.

    Args:
        keep: the ids of the texts to keep; None for all.
    """
    table = path.with_name(names_of(path.name))
    rows = _Rows(empty_texts)
    with write_names(table) as writer, write_whole_file(path) as file:
        for part in parts:
            with tqdm(total=part.size, unit="B", unit_scale=True, desc=f"importing {part.name}", smoothing=0.1) as bar:
                for block in part.read(bar):
                    ids, lines = rows.add(block if keep is None else _choose(block, keep), part)
                    writer.add(ids)
                    try:
                        file.write("".join(lines).encode("utf-8"))
                    except UnicodeEncodeError:
                        _refuse_half(block, part)
                bar.update(part.size - bar.n)
    source = ", ".join(part.name for part in parts)
    if not rows.count:
        raise InputError(f"{source}: " + ("holds no text" if keep is None else _describe_unjudged(keep)))
    names, lookup = Names(table), NameLookup(np.frombuffer(rows.hashes, dtype=np.int64))
    twice = lookup.find_twice(names)
    if twice is not None:
        _refuse_twice(parts, twice)
    _tell_of_empty(source, rows)
    return _Written(rows.count, rows.empty, rows.skipped, names, lookup, source)


def _describe_unjudged(judged: set[str]) -> str:
    """Return the message about queries of which none is in ``judged``."""
    return f"none of its queries is judged, the judgements name {min(judged)!r}; do these files belong together?"


def _choose(block: TextBlock, keep: set[str]) -> TextBlock:
    chosen = [text for text in zip(*block, strict=True) if text[1] in keep]
    return TextBlock(*map(list, zip(*chosen, strict=True))) if chosen else TextBlock([], [], [])


def _refuse_half(block: TextBlock, part: Texts) -> NoReturn:
    """Raise InputError for the first text with half of a surrogate pair, as JSON can have it."""
    number, half = next(
        (number, found[0])
        for number, text in zip(block.numbers, block.texts, strict=True)
        if (found := re.search("[\ud800-\udfff]", text))
    )
    raise InputError(f"{part.where(number)}: the text has {half!r}, half of a character")


class _Rows:
    """The rows of a file while it is written."""

    def __init__(self, empty_texts: str):
        self._empty_texts = empty_texts
        self.count, self.empty = 0, 0
        self.skipped: set[str] = set()
        self.hashes = array("q")

    def add(self, block: TextBlock, part: Texts) -> tuple[Sequence[str], list[str]]:
        """Return the ids and the lines of the next rows. Raises InputError for a bad id or an empty text."""
        unfit = find_unfit(block.ids)
        if unfit is not None:
            refuse_name(block.ids[unfit], part.where(block.numbers[unfit]))
        if "" in block.texts:
            block = self._without_empty(block, part)
        self.hashes.extend(map(hash, block.ids))
        lines = [f"{row}\t{text}\n" for row, text in enumerate(block.texts, start=self.count)]
        self.count += len(lines)
        return block.ids, lines

    def _without_empty(self, block: TextBlock, part: Texts) -> TextBlock:
        """Count the empty texts, and leave them out if they are skipped. Raises InputError if they are refused."""
        empty = [place for place, text in enumerate(block.texts) if not text]
        if self._empty_texts == "refuse":
            raise InputError(
                f"{part.where(block.numbers[empty[0]])}: the text is empty; give --empty_texts skip to leave such "
                "texts out, or keep to make rows that no search finds"
            )
        self.empty += len(empty)
        if self._empty_texts == "keep":
            return block
        self.skipped.update(block.ids[place] for place in empty)
        return _choose(block, set(block.ids) - self.skipped)


def _tell_of_empty(source: str, rows: _Rows) -> None:
    if rows.empty:
        log.warning("%s: %s %d empty texts", source, "skipped" if rows.skipped else "kept", rows.empty)


def _refuse_twice(parts: Sequence[Texts], name: str) -> None:
    """Raise InputError: two texts have the id ``name``. It reads the texts again, to say where."""
    places = [
        part.where(number)
        for part in parts
        for block in part.read()
        for number, id_ in zip(block.numbers, block.ids, strict=True)
        if id_ == name
    ]
    raise InputError(f"{places[1]}: the id {name!r} is already used in {places[0]}; give each text its own id")


def _write_split(split: Split, name: str, folder: Path, empty_texts: str, passages: _Written) -> dict[str, Any]:
    """Write the queries and the judgements of a split. Return what ``import.json`` says of it."""
    files = split_files(name, split.judgements is not None)
    if split.judgements is None:
        queries = _write_texts(split.queries, folder / files.queries, empty_texts, None)
        return {"queries": queries.rows, "empty_queries": queries.empty}
    judged = list(split.judgements.read())
    if not judged:
        raise InputError(f"{split.judgements.name}: holds no judgement")
    queries = _write_texts(split.queries, folder / files.queries, empty_texts, {qid for _, qid, _, _ in judged})
    assert files.qrels is not None
    kept = _write_qrels(folder / files.qrels, split.judgements, judged, queries, passages)
    _write_official_qrels(folder / f"{name}.qrels", judged, split.judgements)
    return {
        "queries": queries.rows,
        "empty_queries": queries.empty,
        "judgements": kept,
        "left_out": len(judged) - kept,
    }


def _write_qrels(
    path: Path, source: Judgements, judged: Sequence[NamedJudgement], queries: _Written, passages: _Written
) -> int:
    """Write the judgements in numbers. Leave out those of texts that are not there. Return how many were written.

    Raises:
        InputError: most of them name texts that are not there.
    """
    unknown: list[tuple[int, str]] = []  # number of the judgement, what it names
    kept, of_empty = 0, 0
    query_rows: dict[str, int] = {}
    with write_whole_text(path) as file:
        for number, qid, docid, grade in judged:
            if qid not in query_rows:
                query_rows[qid] = queries.find(qid)
            query, passage = query_rows[qid], passages.find(docid)
            if query >= 0 and passage >= 0:
                file.write(f"{query}\t0\t{passage}\t{grade}\n")
                kept += 1
            elif qid in queries.skipped or docid in passages.skipped:
                of_empty += 1
            else:
                what, of = ("query", queries) if query < 0 else ("document", passages)
                unknown.append((number, f"{what} {qid if query < 0 else docid} is not in {of.source}"))
    if of_empty:
        log.warning("%s: left out %d judgements of empty texts", source.name, of_empty)
    if unknown:
        first = f"{len(unknown)} of {len(judged)} judgements name texts that are not there; the first, " + (
            f"{source.where(unknown[0][0]).rpartition(', ')[2]}: the {unknown[0][1]}"
        )
        if len(unknown) > LARGEST_SHARE_UNKNOWN * len(judged):
            raise InputError(f"{source.name}: {first}; do these files belong together?")
        log.warning("%s: left out what cannot be found: %s", source.name, first)
    return kept


def _write_official_qrels(path: Path, judged: Sequence[NamedJudgement], source: Judgements) -> None:
    """Write all judgements with official ids, in TREC's four columns."""
    with write_whole_text(path) as file:
        for number, qid, docid, grade in judged:
            for name in (qid, docid):
                if not is_fit(name):
                    refuse_name(name, source.where(number))
            file.write(f"{qid} 0 {docid} {grade}\n")
