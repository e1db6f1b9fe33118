"""The batches of training: queries, a positive and hard negatives for each, padded tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drhard.errors import InputError
from drhard.files import read_json
from drhard.msmarco import parse_number
from drhard.tokens import TokenMemmap

import numpy as np
import torch
from torch.utils.data import Dataset


class Example(NamedTuple):
    """One query row with the document rows drawn for it."""

    query: int
    positive: int
    hard: tuple[int, ...]


class StarDataset(Dataset):
    """Queries that have a relevant document, each with one of these and ``hard_num`` of its hard negatives.

    Draws are uniform and depend on seed, epoch and query alone, so that a resumed run equals an unbroken one.

    Args:
        relevant: query row -> relevant document rows.
        hard: query row -> rows of hard negatives; must have every query of ``relevant``.
    """

    def __init__(
        self, relevant: Mapping[int, Sequence[int]], hard: Mapping[int, Sequence[int]], hard_num: int, seed: int
    ):
        self.queries = sorted(relevant)
        self.relevant = relevant
        self.hard = hard
        self.hard_num = hard_num
        self.seed = seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # worker processes see it change

    @property
    def epoch(self) -> int:
        """Of the draws, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; the Trainer calls it at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> Example:
        query = self.queries[index]
        random = np.random.default_rng((self.seed, self.epoch, query))
        candidates = self.hard[query]
        chosen = random.choice(len(candidates), self.hard_num, replace=len(candidates) < self.hard_num)
        positive = self.relevant[query][random.integers(len(self.relevant[query]))]
        return Example(query, positive, tuple(candidates[place] for place in chosen))


def read_hard_negatives(
    path: str | Path, relevant: Mapping[int, Sequence[int]], documents: int
) -> dict[int, list[int]]:
    """Read ``hard.json``, ``{"qid": [pid, …]}`` in rows.

    Args:
        relevant: query row -> relevant rows; each of these queries needs negatives.
        documents: how many there are.

    Raises:
        InputError: the file is no such file, lacks a query, or names a document that is not there.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        parse_number(qid) is not None and isinstance(pids, list) and all(type(pid) is int for pid in pids)
        for qid, pids in content.items()
    ):
        raise InputError(f'{path}: expected {{"qid": [pid, …], …}} with row numbers')
    hard = {int(qid): pids for qid, pids in content.items()}
    for qid in relevant:
        if not hard.get(qid):
            raise InputError(f"{path}: no hard negative for query {qid}; was it mined with --mode train on this data?")
    for qid, pids in hard.items():
        if pids and not (min(pids) >= 0 and max(pids) < documents):
            raise InputError(f"{path}: query {qid} names a document beyond the {documents} there are")
    return hard


class StarCollator:
    """Examples to tensors: queries (B, Lq), documents (D, Ld) with positives first, and who is whose negative.

    Args:
        padding: pad to the maximal lengths instead of the longest in the batch.
    """

    def __init__(
        self,
        queries: TokenMemmap,
        documents: TokenMemmap,
        relevant: Mapping[int, Sequence[int]],
        pad_id: int,
        padding: bool,
    ):
        self.queries = queries
        self.documents = documents
        self.relevant = {query: np.asarray(rows) for query, rows in relevant.items()}
        self.pad_id = pad_id
        self.padding = padding

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        query_rows = np.array([example.query for example in examples])
        positives = [example.positive for example in examples]
        hard = [row for example in examples for row in example.hard]
        rows = np.array(positives + hard)  # (D,)
        negatives = np.stack([~np.isin(rows, self.relevant[query]) for query in query_rows])  # (B, D)
        return {
            "query": self._pad(self.queries, query_rows),
            "positive": self._pad(self.documents, np.array(positives)),
            "hard": self._pad(self.documents, np.array(hard)) if hard else None,
            "negatives": torch.from_numpy(negatives),
        }

    def _pad(self, tokens: TokenMemmap, rows: np.ndarray) -> dict[str, torch.Tensor]:
        ids, mask = tokens.batch(rows, self.pad_id, tokens.max_length if self.padding else None)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
