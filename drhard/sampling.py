"""Training batches: queries, a positive and drawn negatives for each, as padded tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

from drhard.collection import Collection
from drhard.strategies import Example, Pool, Strategy
from drhard.tokens import TokenMemmap

import numpy as np
import torch
from torch.utils.data import Dataset


class TrainingDataset(Dataset[Example]):
    """Queries, each with one of its relevant documents and ``drawn`` negatives.

    Draws are uniform. They depend only on seed, epoch and query, so a resumed run equals an unbroken one.

    Args:
        relevant: query row -> relevant document rows.
        pool: the documents to draw negatives from, for every query of ``relevant``.
        drawn: negatives for each query.
    """

    def __init__(self, relevant: Mapping[int, Sequence[int]], pool: Pool, drawn: int, seed: int):
        self.queries = sorted(relevant)
        self.relevant = relevant
        self.pool = pool
        self.drawn = drawn
        self.seed = seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # worker processes see it change

    @property
    def epoch(self) -> int:
        """The epoch of the draws, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw other documents from now on. The Trainer calls it at the start of each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> Example:
        query = self.queries[index]
        random = np.random.default_rng((self.seed, self.epoch, query))
        candidates = self.pool[query]
        chosen = random.choice(len(candidates), self.drawn, replace=len(candidates) < self.drawn)
        positive = self.relevant[query][int(random.integers(len(self.relevant[query])))]
        return Example(query, positive, tuple(int(candidates[place]) for place in chosen))


class Collator:
    """Turns examples into tensors: queries (B, Lq), positives and drawn negatives (D, Ld), and a mask of negatives.

    Args:
        strategy: decides which documents are negatives of which query.
        padding: pad to the maximum lengths instead of the longest sequence of the batch.
    """

    def __init__(
        self,
        collection: Collection,
        relevant: Mapping[int, Sequence[int]],
        strategy: Strategy,
        pad_id: int,
        padding: bool,
    ):
        self.queries, self.documents = collection.queries("train"), collection.passages
        self.relevant = {query: np.asarray(rows) for query, rows in relevant.items()}
        self.strategy = strategy
        self.pad_id = pad_id
        self.padding = padding

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        drawn = [row for example in examples for row in example.drawn]
        return {
            "query": self._pad(self.queries, [example.query for example in examples]),
            "positive": self._pad(self.documents, [example.positive for example in examples]),
            "drawn": self._pad(self.documents, drawn) if drawn else None,
            "negatives": torch.from_numpy(self.strategy.mask(examples, self.relevant)),
        }

    def _pad(self, tokens: TokenMemmap, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        ids, mask = tokens.batch(np.array(rows), self.pad_id, tokens.max_length if self.padding else None)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
