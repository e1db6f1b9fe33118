"""A collection as preprocess.py writes it: passages, the queries and judgements of each mode, and official ids."""

import logging
from functools import cached_property
from pathlib import Path

from drhard.dataset import list_splits
from drhard.errors import InputError
from drhard.ids import Numbers, read_ids
from drhard.names import Names, OfficialIds, names_path
from drhard.qrels import read_relevant_rows
from drhard.tokens import PASSAGES, TokenMemmap, query_name, read_meta

import numpy as np

log = logging.getLogger(__name__)


class Collection:
    """A ``preprocess`` folder. Each file is opened on first use, and its errors are raised then.

    Args:
        folder: the folder that preprocess.py wrote.
        max_query_length, max_doc_length: the number of tokens at which queries and passages are cut; None: no cut.
    """

    def __init__(self, folder: Path, max_query_length: int | None = None, max_doc_length: int | None = None):
        self.folder = folder
        self.max_query_length, self.max_doc_length = max_query_length, max_doc_length
        self._queries: dict[str, TokenMemmap] = {}

    @cached_property
    def passages(self) -> TokenMemmap:
        """The tokens of all passages. Raises InputError as :meth:`drhard.tokens.TokenMemmap.open`."""
        return TokenMemmap.open(self.folder, PASSAGES, self.max_doc_length)

    @property
    def left_out(self) -> np.ndarray:
        """The passage rows that no search finds, since their texts are empty: (n,) int64, ascending."""
        return self.passages.empty if self.has_passages else np.empty(0, dtype=np.int64)

    def count_found(self) -> int:
        """Return the number of passages that a search can find."""
        return len(self.passages) - len(self.left_out)

    @property
    def has_passages(self) -> bool:
        """Whether the folder holds the tokens of the passages. A search of given embeddings works without them."""
        return (self.folder / f"{PASSAGES}.memmap").exists()

    def queries(self, mode: str) -> TokenMemmap:
        """Return the tokens of a mode's queries.

        Raises InputError as :meth:`drhard.tokens.TokenMemmap.open`; if the mode is missing, it lists those that exist.
        """
        if mode not in self._queries:
            splits = self.splits()
            if splits and mode not in splits:
                path = self.folder / f"{query_name(mode)}.memmap"
                raise InputError(f"{path}: no such file; of the splits, {list_splits(splits)}")
            self._queries[mode] = TokenMemmap.open(self.folder, query_name(mode), self.max_query_length)
        return self._queries[mode]

    def splits(self) -> list[str]:
        """Return the modes whose queries the folder holds, sorted."""
        suffix = f"{query_name('')}.memmap"
        return sorted(path.name.removesuffix(suffix) for path in self.folder.glob(f"*{suffix}"))

    def find_query_prompt(self) -> str:
        """Return the text in front of each query, as the first meta of queries has it; empty if none names it.

        Raises:
            InputError: a meta is damaged.
        """
        metas = (read_meta(path)[0] for path in sorted(self.folder.glob(f"{query_name('*')}_meta")))
        return next((str(meta["prompt"]) for meta in metas if "prompt" in meta), "")

    def relevant(self, mode: str, passages: int | None = None, queries: int | None = None) -> dict[int, list[int]]:
        """Return query row -> relevant passage rows, in the order of the qrels.

        Args:
            passages, queries: their numbers. Give them if the folder may lack the tokens.

        Raises:
            InputError: as :func:`drhard.qrels.read_relevant_rows`; if the mode has no judgements, it lists those that
                have.
        """
        if not self.qrels_path(mode).exists():
            judged = [split for split in self.splits() if self.qrels_path(split).exists()]
            if judged:
                raise InputError(f"{self.qrels_path(mode)}: no such file; of the judged splits, {list_splits(judged)}")
        passages = len(self.passages) if passages is None else passages
        queries = len(self.queries(mode)) if queries is None else queries
        return read_relevant_rows(self.qrels_path(mode), queries, passages)

    def relevant_found(
        self, mode: str, passages: int | None = None, queries: int | None = None
    ) -> dict[int, list[int]]:
        """Return what :meth:`relevant` does, without passages that no search finds, to train with and to mine.

        Queries without any other relevant passage are left out, with a warning.

        Raises:
            InputError: as :meth:`relevant`; or no query is left.
        """
        relevant = self.relevant(mode, passages, queries)
        if not len(self.left_out):
            return relevant
        absent = set(self.left_out.tolist())
        found = {query: [row for row in rows if row not in absent] for query, rows in relevant.items()}
        kept = {query: rows for query, rows in found.items() if rows}
        if not kept:
            raise InputError(f"{self.qrels_path(mode)}: judges only empty texts relevant")
        if len(kept) < len(relevant):
            log.warning(
                "%s: left out %d of %d queries, to which only empty texts are relevant",
                self.qrels_path(mode),
                len(relevant) - len(kept),
                len(relevant),
            )
        return kept

    def pids(self) -> np.ndarray:
        """Return the official id of each passage row, (rows,) int64. Raises as :func:`drhard.ids.read_ids`."""
        return read_ids(self.pids_path)

    def qids(self, mode: str) -> np.ndarray:
        """Return the official id of each query row, (rows,) int64. Raises as :func:`drhard.ids.read_ids`."""
        return read_ids(self.qids_path(mode))

    def official_pids(self, prefix: str = "") -> OfficialIds:
        """Return the official ids of the passage rows, as runs spell them.

        Args:
            prefix: the prefix of numeric ids, "D" for MS MARCO doc. Ids that are texts have none.

        Raises:
            InputError: as :func:`drhard.ids.read_ids` or :class:`drhard.names.Names`.
        """
        return self._official(PASSAGES, self.pids_path, prefix)

    def official_qids(self, mode: str) -> OfficialIds:
        """Return the official ids of a mode's query rows.

        Raises:
            InputError: as :meth:`official_pids`; if there is no such mode, it lists those that there are.
        """
        splits = self.splits()
        if splits and mode not in splits and not self.qids_path(mode).exists():
            raise InputError(f"{self.folder}: has no queries of {mode}; {list_splits(splits)}")
        return self._official(query_name(mode), self.qids_path(mode), "")

    def _official(self, name: str, path: Path, prefix: str) -> OfficialIds:
        base = self.folder / name
        return Names(base) if names_path(base).exists() else Numbers(read_ids(path), prefix)

    def has_ids(self, mode: str) -> bool:
        """Return whether both files of official ids exist."""
        return self.pids_path.exists() and self.qids_path(mode).exists()

    @property
    def pids_path(self) -> Path:
        """The file of the official ids of passages."""
        return self.folder / "pid2offset.pickle"

    def qids_path(self, mode: str) -> Path:
        """Return the file of the official ids of a mode's queries."""
        return self.folder / f"{mode}-qid2offset.pickle"

    def qrels_path(self, mode: str) -> Path:
        """Return the file of a mode's judgements, in rows."""
        return self.folder / f"{mode}-qrel.tsv"
