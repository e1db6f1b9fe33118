"""A collection as preprocess.py writes it: passages, the queries and judgements of each mode, and official ids."""

from functools import cached_property
from pathlib import Path

from drhard.ids import read_ids
from drhard.qrels import read_relevant_rows
from drhard.tokens import PASSAGES, TokenMemmap, query_name, read_meta

import numpy as np


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
    def has_passages(self) -> bool:
        """Whether the folder holds the tokens of the passages. A search of given embeddings works without them."""
        return (self.folder / f"{PASSAGES}.memmap").exists()

    def queries(self, mode: str) -> TokenMemmap:
        """Return the tokens of a mode's queries. Raises InputError as :meth:`drhard.tokens.TokenMemmap.open`."""
        if mode not in self._queries:
            self._queries[mode] = TokenMemmap.open(self.folder, query_name(mode), self.max_query_length)
        return self._queries[mode]

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
            InputError: as :func:`drhard.qrels.read_relevant_rows`.
        """
        passages = len(self.passages) if passages is None else passages
        queries = len(self.queries(mode)) if queries is None else queries
        return read_relevant_rows(self.qrels_path(mode), queries, passages)

    def pids(self) -> np.ndarray:
        """Return the official id of each passage row, (rows,) int64. Raises as :func:`drhard.ids.read_ids`."""
        return read_ids(self.pids_path)

    def qids(self, mode: str) -> np.ndarray:
        """Return the official id of each query row, (rows,) int64. Raises as :func:`drhard.ids.read_ids`."""
        return read_ids(self.qids_path(mode))

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
