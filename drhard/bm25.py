"""BM25, for the negatives of a warm-up and as a baseline: words as Lucene finds them, scores by bm25s."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from drhard.errors import InputError
from drhard.files import text_lines
from drhard.ids import read_ids
from drhard.index import check_topk
from drhard.msmarco import Corpus, parse_document, parse_passage, parse_query, source_file
from drhard.tokens import PREPROCESS_AGAIN
from drhard.words import split, stem

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized, Tokenizer
from tqdm import tqdm


class _TokenLists(Sequence[list[int]]):
    """Lists of token ids in one flat array: as Python lists MS MARCO's passages would take over 10 GB."""

    def __init__(self, lists: Iterable[list[int]]):
        self._flat = np.empty(1 << 20, dtype=np.int32)
        ends = [0]
        for ids in lists:
            end = ends[-1] + len(ids)
            if end > len(self._flat):
                self._flat = np.concatenate((self._flat, np.empty(max(len(self._flat), len(ids)), dtype=np.int32)))
            self._flat[ends[-1] : end] = ids
            ends.append(end)
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> list[int]:
        if row >= len(self):
            raise IndexError(row)
        return self._flat[self._ends[row] : self._ends[row + 1]].tolist()


class Bm25Index:
    """Documents that can be searched with words: BM25 as Lucene has it, 33 stop words left out.

    Args:
        documents: their texts, in the order of their rows.
        count: how many there are.
        k1, b: saturation of a word's frequency, and how far a document's length counts.

    Raises:
        InputError: k1 is below 0, or b is not within 0 and 1.
    """

    def __init__(self, documents: Iterable[str], count: int, k1: float, b: float):
        if not (k1 >= 0 and 0 <= b <= 1):
            raise InputError(f"BM25 with k1 {k1} and b {b}: expected a k1 of 0 or more and a b from 0 to 1")
        self._words = Tokenizer(lower=False, splitter=split, stopwords="english", stemmer=stem)
        bar = tqdm(documents, total=count, unit="doc", unit_scale=True, desc="BM25: words")
        ids = _TokenLists(self._words.streaming_tokenize(bar))
        self.count = len(ids)
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index(Tokenized(ids, self._words.get_vocab_dict()), leave_progress=True)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents that share a word with a query, best first; ties by the smaller row.

        Returns:
            Scores (Q, k) float32 and rows (Q, k) int64; 0 and -1 where fewer than k documents share a word.

        Raises:
            InputError: as :func:`drhard.index.check_topk`.
        """
        check_topk(k, self.count)
        # Not "never": then a form of a word that no document has would be left out, though its stem is known.
        words = self._words.streaming_tokenize(queries, update_vocab=False, allow_empty=False)
        best_scores = np.zeros((len(queries), k), dtype=np.float32)
        best_rows = np.full((len(queries), k), -1, dtype=np.int64)
        for query, ids in enumerate(tqdm(words, total=len(queries), unit="query", desc="BM25: searching")):
            scores = self._index.get_scores_from_ids(np.array(ids, dtype=np.int32))  # (N,)
            rows = np.flatnonzero(scores)  # those that share a word: few, so that sorting costs little
            if len(rows) > k:
                rows = rows[scores[rows] >= np.partition(scores[rows], len(rows) - k)[len(rows) - k]]
            rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
            best_scores[query, : len(rows)], best_rows[query, : len(rows)] = scores[rows], rows
        return best_scores, best_rows


def document_texts(corpus: Corpus, root: Path, count: int) -> Iterator[str]:
    """The texts of a collection in the order of their rows; url, title and body of a document as one.

    Args:
        root: the folder with ``dataset/`` and ``preprocess/``.
        count: how many were preprocessed.

    Raises:
        InputError: the collection is missing, a line is bad, or it is not the one that was preprocessed.
    """
    path = source_file(root / "dataset", corpus.collection)
    if path is None:
        raise InputError(f"{root / 'dataset' / corpus.collection}: no such file; BM25 reads the texts themselves")
    pids = read_ids(root / "preprocess" / "pid2offset.pickle").tolist()
    parse = parse_document if corpus.name == "doc" else parse_passage
    row = 0
    for number, line in text_lines(path):
        pid, text = parse(line, f"{path}, line {number}")
        if row < len(pids) and pid == pids[row]:
            row += 1
            yield text.replace("<sep>", " ")
        elif text:  # preprocess.py may leave out the empty ones
            raise InputError(f"{path}, line {number}: is not document {row} that was preprocessed; {PREPROCESS_AGAIN}")
    if not row == len(pids) == count:
        raise InputError(f"{path}: has {row} documents, {count} were preprocessed; {PREPROCESS_AGAIN}")


def query_texts(corpus: Corpus, root: Path, mode: str) -> list[str]:
    """The texts of a split's queries in the order of their rows. Arguments and errors as for documents."""
    name = corpus.splits[mode].queries
    path = source_file(root / "dataset", name)
    if path is None:
        raise InputError(f"{root / 'dataset' / name}: no such file; BM25 reads the texts themselves")
    qids = read_ids(root / "preprocess" / f"{mode}-qid2offset.pickle")
    row_of_qid = {qid: row for row, qid in enumerate(qids.tolist())}
    texts: dict[int, str] = {}
    for number, line in text_lines(path):
        qid, text = parse_query(line, f"{path}, line {number}")
        if qid in row_of_qid:
            texts[row_of_qid[qid]] = text
    if len(texts) != len(row_of_qid):
        raise InputError(
            f"{path}: {len(row_of_qid) - len(texts)} preprocessed queries are not in it; run preprocess.py"
        )
    return [texts[row] for row in range(len(texts))]
