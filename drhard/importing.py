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

from drhard.dataset import COLLECTION, IMPORT_FILE, IMPORT_FORMAT, end_of, names_of, read_import, split_files
from drhard.errors import InputError
from drhard.files import sole_writer, write_json, write_whole_file, write_whole_folder, write_whole_text
from drhard.growth import finish_growth, grow_files, is_growing, prepare_growth, prepared_in
from drhard.names import NameLookup, Names, find_unfit, is_fit, refuse_name, write_names
from drhard.qrels import NamedJudgement, read_named_judgements
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
    if is_growing(prepared_in(folder)):
        with sole_writer(folder):
            finish_growth(prepared_in(folder))
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
        passages = _write_texts(source.passages, unfinished / COLLECTION, empty_texts, None)
        splits = {
            name: _write_split(split, name, unfinished, empty_texts, passages) for name, split in source.splits.items()
        }
        content = _write_import(unfinished, passages, splits, made_from)
    return Imported(folder, content, new=True)


def append_passages(source: Source, folder: Path, empty_texts: str) -> Imported:
    """Append passages, and splits, to a collection that was imported from files.

    Those that it has already are left out; if there are no others, nothing is done. The files are then those that an
    import of all gives. Row numbers stay. Judgements of earlier splits are kept if their passages are there now.

    Args:
        source, folder, empty_texts: as in :func:`import_collection`.

    Raises:
        InputError: as :func:`import_collection`; or the collection was not imported, not from files or with other
            settings, or has a split of the same name with other files.
    """
    if not (folder / IMPORT_FILE).is_file():
        raise InputError(f"{folder}: has no imported collection; import one first, without --append")
    with sole_writer(folder), prepare_growth(prepared_in(folder)) as prepared:
        content = read_import(folder)
        assert content is not None
        made_from = _join(folder, content["made_from"], source.made_from | {"empty_texts": empty_texts})
        if made_from == content["made_from"]:
            return Imported(folder, content, new=False)
        had = content["made_from"]["corpus"]
        parts = [
            part
            for part, described in zip(source.passages, source.made_from["corpus"], strict=True)
            if described not in had
        ]
        passages = _reopen(folder, COLLECTION, content["passages"])._replace(
            empty=content["empty_passages"], parts=content["parts"]
        )
        ends: dict[str, int] = {}
        if parts:
            ends = {COLLECTION: end_of(passages.parts).bytes, passages.names.path.name: passages.names.bytes}
            passages = _write_texts(parts, prepared / COLLECTION, empty_texts, None, passages)
        splits = {name: _judge_again(split, name, folder, passages) for name, split in content["splits"].items()}
        for name, split in source.splits.items():
            if name not in splits:
                splits[name] = _write_split(split, name, prepared, empty_texts, passages)
        content = _write_import(prepared, passages, splits, made_from)
        grow_files(prepared, ends, IMPORT_FILE)
    return Imported(folder, content, new=True)


def _join(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the collection in ``folder`` is made from once ``new`` is appended.

    Raises:
        InputError: ``new`` cannot be appended.
    """
    if "corpus" not in old or "corpus" not in new:
        raise InputError(
            f"{folder}: only files can be appended, and only to a collection imported from files; import all documents "
            "into another --data_root"
        )
    if new["empty_texts"] != old["empty_texts"]:
        raise InputError(f"{folder}: was imported with --empty_texts {old['empty_texts']}; give it again")
    if new["fields"] != old["fields"]:
        flags = " ".join(f"--{name}_field {value}" for name, value in old["fields"].items())
        raise InputError(f"{folder}: was imported with {flags or 'the usual names of fields'}; give the same")
    for split, files in new["queries"].items():
        if split in old["queries"] and (
            files != old["queries"][split] or new["qrels"].get(split) != old["qrels"].get(split)
        ):
            raise InputError(f"{folder}: has a split {split} made from other files; give the new one another name")
    return {
        **old,
        "corpus": old["corpus"] + [described for described in new["corpus"] if described not in old["corpus"]],
        "queries": old["queries"] | new["queries"],
        "qrels": old["qrels"] | new["qrels"],
    }


def _refuse_folder(folder: Path) -> NoReturn:
    """Raise InputError: the folder appeared, or was there without ``import.json``."""
    if (folder / IMPORT_FILE).exists():
        raise InputError(f"{folder}: another process has just written it; run the same command again")
    raise InputError(f"{folder}: exists, and import_collection.py did not write it; name another --data_root")


def _write_import(
    folder: Path, passages: "_Written", splits: Mapping[str, Any], made_from: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``import.json``. Return its content."""
    content = {
        "format": IMPORT_FORMAT,
        "passages": passages.rows,
        "empty_passages": passages.empty,
        "parts": passages.parts,
        "splits": splits,
        "made_from": made_from,
    }
    write_json(folder / IMPORT_FILE, content, indent=1)
    return content


class _Written(NamedTuple):
    """Texts that were written."""

    rows: int
    empty: int
    parts: list[dict[str, int]]  # the passages and bytes of each file
    skipped: set[str]  # official ids of empty texts
    names: Names
    lookup: NameLookup
    source: str  # what messages call them

    def find(self, name: str) -> int:
        """Return the row of an official id, -1 if it is not there."""
        return self.lookup.find(name, self.names)

    def behind(self, before: "_Written") -> "_Written":
        """Return these texts, which continue those ``before``, together with them."""
        return self._replace(
            empty=before.empty + self.empty, parts=before.parts + self.parts, source=f"{before.source}, {self.source}"
        )


def _reopen(folder: Path, file: str, rows: int) -> _Written:
    """Return texts that an earlier import wrote. Raises InputError if the table of their ids is damaged."""
    names = Names(folder / names_of(file))
    if len(names) != rows:
        raise InputError(f"{names.path}: has {len(names)} ids, but {IMPORT_FILE} says {rows}; import again")
    return _Written(rows, 0, [], set(), names, NameLookup.of(names), str(folder / file))


def _write_texts(
    parts: Sequence[Texts], path: Path, empty_texts: str, keep: set[str] | None, before: _Written | None = None
) -> _Written:
    """Write ``path``, a line ``row <tab> text`` for each text, and the table of official ids beside it.

    Args:
        keep: the ids of the texts to keep; None for all.
        before: the texts that these continue. ``path`` and the table get only what comes behind those.
    """
    table = path.with_name(names_of(path.name))
    rows = _Rows(empty_texts, before)
    first, sizes = rows.count, []
    with write_names(table, before and before.names) as writer, write_whole_file(path) as file:
        for part in parts:
            count, place = rows.count, file.tell()
            with tqdm(total=part.size, unit="B", unit_scale=True, desc=f"importing {part.name}", smoothing=0.1) as bar:
                for block in part.read(bar):
                    ids, lines = rows.add(block if keep is None else _choose(block, keep), part)
                    writer.add(ids)
                    try:
                        file.write("".join(lines).encode("utf-8"))
                    except UnicodeEncodeError:
                        _refuse_half(block, part)
                bar.update(part.size - bar.n)
            sizes.append({"passages": rows.count - count, "bytes": file.tell() - place})
    source = ", ".join(part.name for part in parts)
    if rows.count == first:
        raise InputError(f"{source}: " + ("holds no text" if keep is None else _describe_unjudged(keep)))
    _tell_of_empty(source, rows)
    names, lookup = Names(table, before and before.names), NameLookup(np.frombuffer(rows.hashes, dtype=np.int64))
    twice = lookup.find_twice(names)
    if twice is not None:
        _refuse_twice(parts, twice, before)
    written = _Written(rows.count, rows.empty, sizes, rows.skipped, names, lookup, source)
    return written if before is None else written.behind(before)


def _describe_unjudged(judged: set[str]) -> str:
    """Return the message about queries of which none is in ``judged``."""
    return f"none of its queries is judged, the judgements name {min(judged)!r}; do these files belong together?"


def _choose(block: TextBlock, keep: set[str]) -> TextBlock:
    return _block([text for text in zip(*block, strict=True) if text[1] in keep])


def _block(texts: list[tuple[int, str, str]]) -> TextBlock:
    return TextBlock(*map(list, zip(*texts, strict=True))) if texts else TextBlock([], [], [])


def _refuse_half(block: TextBlock, part: Texts) -> NoReturn:
    """Raise InputError for the first text with half of a surrogate pair, as JSON can have it."""
    number, half = next(
        (number, found[0])
        for number, text in zip(block.numbers, block.texts, strict=True)
        if (found := re.search("[\ud800-\udfff]", text))
    )
    raise InputError(f"{part.where(number)}: the text has {half!r}, half of a character")


class _Rows:
    """The rows of a file while it is written, behind those of ``before``."""

    def __init__(self, empty_texts: str, before: _Written | None):
        self._empty_texts = empty_texts
        self.count, self.empty = 0, 0
        self.skipped: set[str] = set()
        self.hashes = array("q")
        if before is not None:
            self.count = before.rows
            self.hashes.frombytes(before.lookup.hashes.tobytes())

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
        return _block([text for text in zip(*block, strict=True) if text[2]])


def _tell_of_empty(source: str, rows: _Rows) -> None:
    if rows.empty:
        log.warning("%s: %s %d empty texts", source, "skipped" if rows.skipped else "kept", rows.empty)


def _refuse_twice(parts: Sequence[Texts], name: str, before: _Written | None) -> None:
    """Raise InputError: two texts have the id ``name``. It reads the texts again, to say where."""
    row = -1 if before is None else before.find(name)
    places = [] if before is None or row < 0 else [f"row {row} of {before.source}"]
    places += [
        part.where(number)
        for part in parts
        for block in part.read()
        for number, id_ in zip(block.numbers, block.ids, strict=True)
        if id_ == name
    ]
    if before is not None and len(places) < 2:
        raise InputError(f"{before.names.path}: is damaged, it has the id {name!r} twice; import again")
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
    written = _write_qrels(folder / files.qrels, judged, queries, passages)
    _tell_of_left_out(split.judgements, len(judged), written)
    _write_official_qrels(folder / f"{name}.qrels", judged, split.judgements)
    return {
        "queries": queries.rows,
        "empty_queries": queries.empty,
        "judgements": written.kept,
        "left_out": len(judged) - written.kept,
    }


def _judge_again(split: dict[str, Any], name: str, folder: Path, passages: _Written) -> dict[str, Any]:
    """Write the judgements of an earlier split again if some were left out: their passages may be there now.

    Args:
        split: what ``import.json`` says of it.
        folder: the collection.

    Returns:
        What ``import.json`` says of it now.
    """
    if not split.get("left_out"):
        return split
    files = split_files(name, judged=True)
    assert files.qrels is not None
    queries = _reopen(folder, files.queries, split["queries"])
    judged = list(read_named_judgements(folder / f"{name}.qrels"))
    kept = _write_qrels(prepared_in(folder) / files.qrels, judged, queries, passages).kept
    if kept > split["judgements"]:
        log.info("%s: %d judgements more name passages that are there", name, kept - split["judgements"])
    return {**split, "judgements": kept, "left_out": len(judged) - kept}


class _Judged(NamedTuple):
    """Judgements that were written."""

    kept: int
    of_empty: int  # left out: their texts are empty and were skipped
    unknown: list[tuple[int, str]]  # left out: the number of the judgement, and what it names


def _write_qrels(path: Path, judged: Sequence[NamedJudgement], queries: _Written, passages: _Written) -> _Judged:
    """Write the judgements in numbers. Leave out those of texts that are not there."""
    unknown: list[tuple[int, str]] = []
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
    return _Judged(kept, of_empty, unknown)


def _tell_of_left_out(source: Judgements, count: int, written: _Judged) -> None:
    """Warn of judgements that were left out, of ``count``. Raises InputError if most name texts that are not there."""
    if written.of_empty:
        log.warning("%s: left out %d judgements of empty texts", source.name, written.of_empty)
    unknown = written.unknown
    if unknown:
        first = f"{len(unknown)} of {count} judgements name texts that are not there; the first, " + (
            f"{source.where(unknown[0][0]).rpartition(', ')[2]}: the {unknown[0][1]}"
        )
        if len(unknown) > LARGEST_SHARE_UNKNOWN * count:
            raise InputError(f"{source.name}: {first}; do these files belong together?")
        log.warning("%s: left out what cannot be found: %s", source.name, first)


def _write_official_qrels(path: Path, judged: Sequence[NamedJudgement], source: Judgements) -> None:
    """Write all judgements with official ids, in TREC's four columns."""
    with write_whole_text(path) as file:
        for number, qid, docid, grade in judged:
            for name in (qid, docid):
                if not is_fit(name):
                    refuse_name(name, source.where(number))
            file.write(f"{qid} 0 {docid} {grade}\n")
