"""Keeping the best: the k greatest scores of each query while documents stream past."""

import numpy as np

# An entry that waits to be merged. The query has 16 bits: NumPy sorts these by radix, 9 times as fast as 32 bits.
# So a TopK holds at most 65,536 queries.
ADDED = np.dtype([("query", np.uint16), ("score", np.float32), ("row", np.int64)], align=True)
ADDED_TIMES = 3  # waiting entries, in units of Q k: see the invariant of TopK


class TopK:
    """The k best documents of each query among those added so far, once they are merged.

    Of what is added, only scores above a query's k-th best at the last merge wait for the next merge. The first merge
    happens once every query has k of them. After that, a merge happens when any query has 2 k waiting, which on average
    takes twice as many documents as all before.

    Invariant: at most 3 Q k entries wait. Between two calls of :meth:`add` every query has fewer than 2 k waiting, so
    there are fewer than 2 Q k, and entries are added at most Q k at a time, each time followed by this check.

    Args:
        scores: (Q, k) float32, which is written: greatest first, -inf where there is none yet.
        rows: (Q, k) int64, which is written: ascending among equal scores, -1 where there is none yet.
    """

    def __init__(self, scores: np.ndarray, rows: np.ndarray):
        self.scores, self.rows = scores, rows
        scores.fill(-np.inf)
        rows.fill(-1)
        # Added and not merged yet, in an array that stays: many small ones between the tiles would tear the memory up.
        self._added = np.empty(ADDED_TIMES * scores.size, dtype=ADDED)
        self._counts = np.zeros(len(scores), dtype=np.int64)  # of each query in what was added

    def add(self, scores: np.ndarray, first_row: int) -> None:
        """Add the ``scores`` (B, Q) of documents ``first_row ... first_row + B - 1``, all after those added before."""
        k = self.scores.shape[1]
        hits = self._hits(scores)
        for start in range(0, len(hits), self.scores.size):  # once, unless very many tie
            some = hits[start : start + self.scores.size]
            row, query = np.divmod(some, scores.shape[1])
            added = self._added[self._counts.sum() :][: len(some)]
            added["query"], added["score"], added["row"] = query, scores.reshape(-1)[some], row + first_row
            self._counts += np.bincount(query, minlength=len(self._counts))
            if self._counts.max() >= 2 * k:
                self.merge()
        if self._counts.min() >= k and np.isneginf(self.scores[:, -1]).any():
            self.merge()  # at once, for a first bound

    def _hits(self, scores: np.ndarray) -> np.ndarray:
        """Where in ``scores`` (B, Q), flattened, are those that can be among the best; ascending."""
        k = self.scores.shape[1]
        least = self.scores[:, -1]  # a tie with it goes to the earlier row, which is there already
        if not np.isneginf(least).any():
            hits = np.flatnonzero(scores > least)
            if len(hits) <= self.scores.size:
                return hits
        # The first tile, or documents that get better and better: its own k best can matter, and what ties with them.
        if len(scores) > k:
            own = np.partition(np.ascontiguousarray(scores.T), -k, axis=1)[:, -k]
            least = np.fmax(least, np.nextafter(own, -np.float32(np.inf)))
        return np.flatnonzero(scores > least)

    def merge(self) -> None:
        """Bring what was added into ``scores`` and ``rows``."""
        k = self.scores.shape[1]
        queries = np.flatnonzero(self._counts)  # (T,) those that have anything new
        if len(queries) == 0:
            return
        added = self._added[: self._counts.sum()]
        added = added[np.argsort(added["query"], kind="stable")]  # by query, and rows ascend in each
        counts = self._counts[queries]
        line = np.repeat(np.arange(len(queries)), counts)
        place = k + np.arange(len(added)) - np.repeat(np.cumsum(counts) - counts, counts)
        scores = np.full((len(queries), k + counts.max()), -np.inf, dtype=np.float32)
        rows = np.full(scores.shape, -1, dtype=np.int64)
        scores[:, :k], rows[:, :k] = self.scores[queries], self.rows[queries]
        scores[line, place], rows[line, place] = added["score"], added["row"]
        # Rows ascend from the best to the added and within both, so a stable sort leaves ties in ascending rows.
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        self.scores[queries] = np.take_along_axis(scores, kept, 1)
        self.rows[queries] = np.take_along_axis(rows, kept, 1)
        self._counts[:] = 0
