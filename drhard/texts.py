"""Read the texts of a collection in the order of their rows in the ``preprocess`` folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from drhard.collection import Collection
from drhard.dataset import START, Place, list_splits
from drhard.errors import InputError
from drhard.files import decode_line, read_lines, read_raw_lines
from drhard.msmarco import Corpus, find_source_file, parse_query
from drhard.tokens import PREPROCESS_AGAIN

import numpy as np

CHUNK = 1 << 16  # ids that are Python's integers at a time: 8.8 million of them take 300 MB


def read_passage_texts(corpus: Corpus, dataset: Path, collection: Collection) -> Iterator[str]:
    """Yield the texts of a collection in row order. The url, title and body of a document are one text.

    Args:
        dataset: the folder of the texts.
        collection: what preprocess.py made of them.

    Raises:
        InputError: the collection is missing; or, as its texts are read, a line is bad, or preprocess.py read another
            collection.
    """
    path = find_source_file(dataset, corpus.collection)
    if path is None:
        raise InputError(f"{dataset / corpus.collection}: no such file; the texts themselves are needed")
    pids = collection.pids()
    if len(pids) != len(collection.passages):
        raise InputError(
            f"{collection.pids_path}: has {len(pids)} passages, {len(collection.passages)} were preprocessed; "
            f"{PREPROCESS_AGAIN}"
        )
    return (passage.text.replace("<sep>", " ") for passage in read_passages(path, corpus, pids))


class Passage(NamedTuple):
    """The line of a passage in the file of the collection."""

    line: bytes
    offset: int  # where the line begins in the file once it is uncompressed, in bytes
    text: str


def read_passages(
    path: Path, corpus: Corpus, pids: np.ndarray, row: int = 0, place: Place = START
) -> Iterator[Passage]:
    """Yield the passages in row order.

    Args:
        path: the file of the collection, gzipped or not.
        pids: (rows,) int64, the official ids of the passages that preprocess.py found in it.
        row: the first row to yield.
        place: where to begin to read: a place between the row before it and its own.

    Raises:
        InputError: as its lines are read: one is bad, or preprocess.py read another collection.
    """
    ids = (pid for start in range(row, len(pids), CHUNK) for pid in pids[start : start + CHUNK].tolist())
    offset, expected = place.bytes, next(ids, None)
    for number, line in enumerate(read_raw_lines(path, start=offset), start=1 + place.lines):
        pid, text = corpus.parse(decode_line(line, path, number), f"{path}, line {number}")
        if pid == expected:
            yield Passage(line, offset, text)
            row, expected = row + 1, next(ids, None)
        elif text:  # preprocess.py may skip empty texts
            raise InputError(f"{path}, line {number}: is not the passage preprocessed as row {row}; {PREPROCESS_AGAIN}")
        offset += len(line)
    if row != len(pids):
        raise InputError(f"{path}: has {row} passages, {len(pids)} were preprocessed; {PREPROCESS_AGAIN}")


def read_query_texts(corpus: Corpus, dataset: Path, collection: Collection, mode: str) -> list[str]:
    """Return the texts of a mode's queries in row order. Arguments and errors as in :func:`read_passage_texts`."""
    if mode not in corpus.modes:
        raise InputError(f"{dataset}: has no queries of {mode}; {list_splits(corpus.modes)}")
    name = corpus.modes[mode].queries
    path = find_source_file(dataset, name)
    if path is None:
        raise InputError(f"{dataset / name}: no such file; the texts themselves are needed")
    qids = collection.qids(mode)
    row_of_qid = {qid: row for row, qid in enumerate(qids.tolist())}
    texts: dict[int, str] = {}
    for number, line in read_lines(path):
        qid, text = parse_query(line, f"{path}, line {number}")
        if qid in row_of_qid:
            texts[row_of_qid[qid]] = text
    if len(texts) != len(row_of_qid):
        raise InputError(
            f"{path}: lacks {len(row_of_qid) - len(texts)} of the preprocessed queries; {PREPROCESS_AGAIN}"
        )
    return [texts[row] for row in range(len(texts))]
