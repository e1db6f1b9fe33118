"""The batches of training: queries, a positive and negatives drawn for each, padded tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from drhard.tokens import TokenMemmap

import numpy as np
import torch
from torch.utils.data import Dataset

STAR, IN_BATCH, RANDOM, HARD = "star", "in-batch", "random", "hard"
NEGATIVES = (STAR, IN_BATCH, RANDOM, HARD)  # where a static training's negatives come from


class Example(NamedTuple):
    """One query row with the document rows drawn for it."""

    query: int
    positive: int
    drawn: tuple[int, ...]  # negatives


class StarDataset(Dataset):
    """Queries that have a relevant document, each with one of these and ``drawn`` negatives.

    Draws are uniform and depend on seed, epoch and query alone, so that a resumed run equals an unbroken one.

    Args:
        relevant: query row -> relevant document rows.
        pool: what the negatives are drawn from: query row -> rows of its hard negatives, for every query of
            ``relevant``, such as :class:`drhard.negatives.HardNegatives`; or the size of the collection, any row of
            which is drawn.
        drawn: negatives for a query.
    """

    def __init__(
        self, relevant: Mapping[int, Sequence[int]], pool: Mapping[int, Sequence[int]] | int, drawn: int, seed: int
    ):
        self.queries = sorted(relevant)
        self.relevant = relevant
        self.pool = pool
        self.drawn = drawn
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
        candidates = range(self.pool) if isinstance(self.pool, int) else self.pool[query]
        chosen = random.choice(len(candidates), self.drawn, replace=len(candidates) < self.drawn)
        positive = self.relevant[query][random.integers(len(self.relevant[query]))]
        return Example(query, positive, tuple(int(candidates[place]) for place in chosen))


def negatives_mask(negatives: str, examples: Sequence[Example], relevant: Mapping[int, Sequence[int]]) -> np.ndarray:
    """Which documents of a batch are negatives of which query (sections 3.2 and 4.1 of the paper).

    The documents are the B positives, then the negatives drawn for each query in turn, n each. A document that
    is judged relevant to a query is never its negative. Of the others,

    - ``star`` takes all, whosever positive or hard negative they are;
    - ``in-batch`` takes all too; with nothing drawn these are the other queries' positives;
    - ``random`` and ``hard`` take those that were drawn for the query itself.

    Returns:
        (B, B + B n) bool.
    """
    rows = np.array([e.positive for e in examples] + [row for e in examples for row in e.drawn])
    mask = np.stack([~np.isin(rows, relevant[example.query]) for example in examples])
    if negatives in (RANDOM, HARD):
        owner = np.repeat(np.arange(len(examples)), [len(example.drawn) for example in examples])
        mask[:, : len(examples)] = False
        mask[:, len(examples) :] &= owner == np.arange(len(examples))[:, None]
    return mask


class StarCollator:
    """Examples to tensors: queries (B, Lq), documents (D, Ld) with positives first, and who is whose negative.

    Args:
        negatives: one of ``NEGATIVES``; see :func:`negatives_mask`.
        padding: pad to the maximal lengths instead of the longest in the batch.
    """

    def __init__(
        self,
        queries: TokenMemmap,
        documents: TokenMemmap,
        relevant: Mapping[int, Sequence[int]],
        negatives: str,
        pad_id: int,
        padding: bool,
    ):
        self.queries = queries
        self.documents = documents
        self.relevant = {query: np.asarray(rows) for query, rows in relevant.items()}
        self.negatives = negatives
        self.pad_id = pad_id
        self.padding = padding

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        drawn = [row for example in examples for row in example.drawn]
        return {
            "query": self._pad(self.queries, [example.query for example in examples]),
            "positive": self._pad(self.documents, [example.positive for example in examples]),
            "drawn": self._pad(self.documents, drawn) if drawn else None,
            "negatives": torch.from_numpy(negatives_mask(self.negatives, examples, self.relevant)),
        }

    def _pad(self, tokens: TokenMemmap, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        ids, mask = tokens.batch(np.array(rows), self.pad_id, tokens.max_length if self.padding else None)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
