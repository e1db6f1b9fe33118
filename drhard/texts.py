"""Read the texts of a collection in the order of their rows in the ``preprocess`` folder."""

from collections.abc import Iterator
from pathlib import Path

from drhard.collection import Collection
from drhard.dataset import list_splits
from drhard.errors import InputError
from drhard.files import read_lines
from drhard.msmarco import Corpus, find_source_file, parse_query
from drhard.tokens import PREPROCESS_AGAIN


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
        raise InputError(f"{dataset / corpus.collection}: no such file; BM25 reads the texts themselves")
    return _passage_texts(path, corpus, collection)


def _passage_texts(path: Path, corpus: Corpus, collection: Collection) -> Iterator[str]:
    pids, count = collection.pids().tolist(), len(collection.passages)
    row = 0
    for number, line in read_lines(path):
        pid, text = corpus.parse(line, f"{path}, line {number}")
        if row < len(pids) and pid == pids[row]:
            row += 1
            yield text.replace("<sep>", " ")
        elif text:  # preprocess.py may skip empty texts
            raise InputError(f"{path}, line {number}: is not the passage preprocessed as row {row}; {PREPROCESS_AGAIN}")
    if not row == len(pids) == count:
        raise InputError(f"{path}: has {row} passages, {count} were preprocessed; {PREPROCESS_AGAIN}")


def read_query_texts(corpus: Corpus, dataset: Path, collection: Collection, mode: str) -> list[str]:
    """Return the texts of a mode's queries in row order. Arguments and errors as in :func:`read_passage_texts`."""
    if mode not in corpus.modes:
        raise InputError(f"{dataset}: has no queries of {mode}; {list_splits(corpus.modes)}")
    name = corpus.modes[mode].queries
    path = find_source_file(dataset, name)
    if path is None:
        raise InputError(f"{dataset / name}: no such file; BM25 reads the texts themselves")
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
