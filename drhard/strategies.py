"""Negative-sampling strategies of a static training: where negatives come from, and which queries they serve.

Losses and trainers do not depend on them. To add one, make a :class:`Strategy` and name it in :data:`STRATEGIES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np


class Example(NamedTuple):
    """A query row with the document rows drawn for it."""

    query: int
    positive: int
    drawn: tuple[int, ...]  # negatives


class Pool(Protocol):
    """A source of negatives, such as :class:`drhard.negatives.HardNegatives`."""

    def __getitem__(self, query: int, /) -> Sequence[int] | np.ndarray:
        """Return the document rows from which the negatives of a query row are drawn."""


@dataclass(frozen=True)
class AnyDocument:
    """The pool of the whole collection, for every query: all ``count`` rows but those ``left_out``, ascending."""

    count: int
    left_out: Sequence[int] = ()

    def __getitem__(self, query: int) -> range | np.ndarray:
        return self._kept if len(self.left_out) else range(self.count)

    @cached_property
    def _kept(self) -> np.ndarray:
        return np.delete(np.arange(self.count, dtype=np.int32), self.left_out)


@dataclass(frozen=True)
class Strategy:
    """Where the negatives of a static training come from.

    Attributes:
        name: its name for ``--negatives``.
        help: what the negatives are, for ``--help``.
        mined: negatives are drawn from mined hard negatives, not from the collection.
        draws: negatives are drawn for each query.
        in_batch: every document of the batch is a negative, not only those drawn for the query itself.
    """

    name: str
    help: str
    mined: bool
    draws: bool
    in_batch: bool

    def __str__(self) -> str:
        return self.name

    def count_drawn(self, asked: int) -> int:
        """Return how many negatives to draw for a query in each step: ``asked``, or 0 if the strategy draws none."""
        return asked if self.draws else 0

    def mask(self, examples: Sequence[Example], relevant: Mapping[int, Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return which documents of a batch are negatives of which query (sections 3.2 and 4.1 of the paper).

        The documents are the B positives, then n drawn negatives for each query in turn. A document judged relevant
        to a query is never its negative.

        Args:
            relevant: query row -> relevant document rows.

        Returns:
            (B, B + B n) bool.
        """
        rows = np.array([e.positive for e in examples] + [row for e in examples for row in e.drawn])
        mask = np.stack([~np.isin(rows, relevant[example.query]) for example in examples])
        if not self.in_batch:
            owner = np.repeat(np.arange(len(examples)), [len(example.drawn) for example in examples])
            mask[:, : len(examples)] = False
            mask[:, len(examples) :] &= owner == np.arange(len(examples))[:, None]
        return mask


STAR = Strategy("star", "hard negatives and the other documents of the batch", mined=True, draws=True, in_batch=True)
IN_BATCH = Strategy("in-batch", "the other queries' positives", mined=False, draws=False, in_batch=True)
RANDOM = Strategy("random", "documents of the whole collection", mined=False, draws=True, in_batch=False)
HARD = Strategy("hard", "hard negatives alone", mined=True, draws=True, in_batch=False)
STRATEGIES = {strategy.name: strategy for strategy in (STAR, IN_BATCH, RANDOM, HARD)}
