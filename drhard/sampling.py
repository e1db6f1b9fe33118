"""Training batches: queries, a positive and drawn negatives for each, as tensors grouped by length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drhard import processes
from drhard.collection import Collection
from drhard.encoder import model_inputs
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


CALL_TOKENS = {"cpu": 64, "cuda": 8192}  # see Grouping.call_tokens


@dataclass(frozen=True)
class Grouping:
    """How the sequences of a batch are grouped by length. Each group is encoded in one call, padded to its longest.

    Attributes:
        padding: pad to the maximum length instead, in one group.
        chunk_size: sequences in a group; 0: as many as give the least work.
        call_tokens: the work of a further call, in tokens: what a GPU could encode while Python launches its kernels,
            or what a CPU loses to smaller products. An H100 in bfloat16 takes 127 ms for a step of 256 queries with
            8,192, 173 ms with 2,048, and 147 ms in one call for queries and one for documents.
    """

    padding: bool = False
    chunk_size: int = 0
    call_tokens: int = CALL_TOKENS["cpu"]

    def split(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Return the groups of sequences of ``lengths`` (B,), longest first, as positions in the batch."""
        order = np.argsort(-lengths, kind="stable")
        if self.chunk_size:
            starts = list(range(self.chunk_size, len(lengths), self.chunk_size))
        else:
            starts = [] if self.padding else self._cheapest_starts(lengths[order])
        return np.split(order, starts)

    def _cheapest_starts(self, lengths: np.ndarray) -> list[int]:
        """Return where to cut descending ``lengths``, so that padded tokens and calls together are the least work."""
        cuts = np.flatnonzero(np.diff(lengths, prepend=0, append=0))  # 0, where the length changes, and the end
        least, came_from = np.zeros(len(cuts)), np.zeros(len(cuts), dtype=int)
        for end in range(1, len(cuts)):
            work = least[:end] + lengths[cuts[:end]] * (cuts[end] - cuts[:end]) + self.call_tokens
            came_from[end] = work.argmin()
            least[end] = work.min()
        starts, end = [], came_from[-1]
        while end > 0:
            starts.append(int(cuts[end]))
            end = came_from[end]
        return starts[::-1]


class Collator:
    """Turns examples into tensors: queries, documents, and a mask of negatives (B, D).

    Queries and documents are arguments of :func:`drhard.encoder.embed_groups`. The D documents are the positives, one
    for each query, and then the drawn negatives. If several processes share the batch, queries and documents are those
    of this one, perhaps none. The mask is that of the whole batch in any case.

    Args:
        strategy: decides which documents are negatives of which query.
    """

    def __init__(
        self,
        collection: Collection,
        relevant: Mapping[int, Sequence[int]],
        strategy: Strategy,
        pad_id: int,
        grouping: Grouping,
    ):
        self.queries, self.documents = collection.queries("train"), collection.passages
        self.relevant = {query: np.asarray(rows) for query, rows in relevant.items()}
        self.strategy = strategy
        self.pad_id = pad_id
        self.grouping = grouping

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        own = examples[processes.own_part(len(examples))]
        queries = [example.query for example in own]
        documents = [example.positive for example in own] + [row for example in own for row in example.drawn]
        return {
            "query": self._group(self.queries, np.array(queries, dtype=np.int64)),
            "document": self._group(self.documents, np.array(documents, dtype=np.int64)),
            "negatives": torch.from_numpy(self.strategy.mask(examples, self.relevant)),
        }

    def _group(self, tokens: TokenMemmap, rows: np.ndarray) -> dict[str, Any]:
        groups = self.grouping.split(tokens.lengths[rows]) if len(rows) else [rows]
        places = np.argsort(np.concatenate(groups))
        return {
            "groups": [self._pad(tokens, rows[group]) for group in groups if len(group)],
            "places": torch.from_numpy(places),
        }

    def _pad(self, tokens: TokenMemmap, rows: np.ndarray) -> dict[str, torch.Tensor | None]:
        width = tokens.max_length if self.grouping.padding else None
        ids, mask = model_inputs(*tokens.batch(rows, self.pad_id, width), torch.device("cpu"))
        return {"input_ids": ids, "attention_mask": mask}
