"""Keep the k greatest scores of each query while documents stream past."""

import numpy as np

# An entry that waits for the next merge. The query has 16 bits, which NumPy sorts by radix, 9 times as fast as 32 bits.
# A TopK therefore holds at most 65,536 queries.
ADDED = np.dtype([("query", np.uint16), ("score", np.float32), ("row", np.int64)], align=True)
ADDED_TIMES = 3  # most waiting entries, in units of Q k: see the invariant of TopK


class TopK:
    """The k best documents of each query among those that were added and merged.

    A score waits for the next merge only if it is above the query's k-th best score at the last merge. The first
    merge happens when every query has k waiting entries, or one has 2 k. Each later one happens when any query has
    2 k. If the documents come in random order, each merge covers about twice as many documents as all earlier ones
    together.

    Invariant: at most 3 Q k entries wait. Between two calls of :meth:`add`, every query has fewer than 2 k waiting,
    which is fewer than 2 Q k in all. At most Q k entries are added before the next check.

    Args:
        scores: (Q, k) float32, overwritten: greatest first, -inf for a missing entry.
        rows: (Q, k) int64, overwritten: ascending among equal scores, -1 for a missing entry.
    """

    def __init__(self, scores: np.ndarray, rows: np.ndarray):
        self.scores, self.rows = scores, rows
        scores.fill(-np.inf)
        rows.fill(-1)
        # The waiting entries, in one array for all merges: many small arrays between the tiles would fragment memory.
        self._added = np.empty(ADDED_TIMES * scores.size, dtype=ADDED)
        self._counts = np.zeros(len(scores), dtype=np.int64)  # waiting entries of each query

    def add(self, scores: np.ndarray, first_row: int) -> None:
        """Add the ``scores`` (B, Q) of documents ``first_row ... first_row + B - 1``. Rows ascend from call to call."""
        k = self.scores.shape[1]
        hits = self._hits(scores)
        for start in range(0, len(hits), self.scores.size):  # once, unless very many scores tie
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
        """Return the places in ``scores`` (B, Q), flattened, that can be among the best, ascending."""
        k = self.scores.shape[1]
        least = self.scores[:, -1]  # a tie goes to the earlier row, which was added before
        if not np.isneginf(least).any():
            hits = np.flatnonzero(scores > least)
            if len(hits) <= self.scores.size:
                return hits
        # The first tile, or documents that get better and better: keep the tile's own k best and their ties.
        if len(scores) > k:
            own = np.partition(np.ascontiguousarray(scores.T), -k, axis=1)[:, -k]
            least = np.fmax(least, np.nextafter(own, -np.float32(np.inf)))
        return np.flatnonzero(scores > least)

    def merge(self) -> None:
        """Merge the waiting entries into ``scores`` and ``rows``."""
        k = self.scores.shape[1]
        queries = np.flatnonzero(self._counts)  # (T,) those with waiting entries
        if len(queries) == 0:
            return
        added = self._added[: self._counts.sum()]
        added = added[np.argsort(added["query"], kind="stable")]  # rows ascend within each query
        counts = self._counts[queries]
        line = np.repeat(np.arange(len(queries)), counts)
        place = k + np.arange(len(added)) - np.repeat(np.cumsum(counts) - counts, counts)
        scores = np.full((len(queries), k + counts.max()), -np.inf, dtype=np.float32)
        rows = np.full(scores.shape, -1, dtype=np.int64)
        scores[:, :k], rows[:, :k] = self.scores[queries], self.rows[queries]
        scores[line, place], rows[line, place] = added["score"], added["row"]
        # Rows of added entries come after those of the best, and rows ascend within both. So a stable sort keeps ties
        # in the order of their rows.
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        self.scores[queries] = np.take_along_axis(scores, kept, 1)
        self.rows[queries] = np.take_along_axis(rows, kept, 1)
        self._counts[:] = 0
