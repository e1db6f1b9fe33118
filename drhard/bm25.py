"""Search with BM25, a baseline and the source of a warm-up's negatives. bm25s scores words found as in Lucene."""

from collections.abc import Iterable, Sequence

from drhard.errors import InputError
from drhard.index import check_topk
from drhard.msmarco import Bm25Parameters
from drhard.words import split, split_code, stem

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized, Tokenizer
from tqdm import tqdm


class _TokenLists(Sequence[list[int]]):
    """Lists of token ids in one flat array. As Python lists, MS MARCO's passages would take over 10 GB."""

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

    def __getitem__(self, row: int) -> list[int]:  # type: ignore[override]  # nobody takes slices
        if row >= len(self):
            raise IndexError(row)
        ids: list[int] = self._flat[self._ends[row] : self._ends[row + 1]].tolist()
        return ids


class Bm25Index:
    """A BM25 index with Lucene's formula, without Lucene's 33 stop words.

    Args:
        documents: the texts of the documents in row order.
        count: the number of documents, for the progress bar.

    Raises:
        InputError: k1 is below 0, or b is not within 0 and 1.
    """

    def __init__(self, documents: Iterable[str], count: int, parameters: Bm25Parameters):
        k1, b, split_names = parameters
        if not (k1 >= 0 and 0 <= b <= 1):
            raise InputError(f"BM25 with k1 {k1} and b {b}: expected a k1 of 0 or more and a b from 0 to 1")
        self._words = Tokenizer(
            lower=False, splitter=split_code if split_names else split, stopwords="english", stemmer=stem
        )
        bar = tqdm(documents, total=count, unit="doc", unit_scale=True, desc="BM25: words")
        ids = _TokenLists(self._words.streaming_tokenize(bar))
        self.count = len(ids)
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index(Tokenized(ids, self._words.get_vocab_dict()), leave_progress=True)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents that share a word with a query, best first. The smaller row wins a tie.

        Returns:
            Scores (Q, k) float32 and rows (Q, k) int64; 0 and -1 where fewer than k documents share a word.

        Raises:
            InputError: as :func:`drhard.index.check_topk`.
        """
        check_topk(k, self.count)
        # update_vocab="never" would drop any query word whose exact form is in no document, even if its stem is in the
        # index. allow_empty=True would make a query without words find the documents without words.
        words = self._words.streaming_tokenize(queries, update_vocab=False, allow_empty=False)
        best_scores = np.zeros((len(queries), k), dtype=np.float32)
        best_rows = np.full((len(queries), k), -1, dtype=np.int64)
        for query, ids in enumerate(tqdm(words, total=len(queries), unit="query", desc="BM25: searching")):
            scores = self._index.get_scores_from_ids(np.array(ids, dtype=np.int32))  # (N,)
            rows = np.flatnonzero(scores)  # few documents share a word, so sorting them is cheap
            if len(rows) > k:
                rows = rows[scores[rows] >= np.partition(scores[rows], len(rows) - k)[len(rows) - k]]
            rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
            best_scores[query, : len(rows)], best_rows[query, : len(rows)] = scores[rows], rows
        return best_scores, best_rows
