"""Collect the documents that can be among the k best of each query, from scores that are known to within a width."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence

from drhard.bounds import Bounds, places_of
from drhard.codes import GROUP
from drhard.cores import Map

import numpy as np
import torch

QUERY_BITS = 32  # where the query stands in the whole numbers by which pairs are sorted
AT_A_TIME = 1 << 17  # pairs that are added at a time
SIEVED = 4 + 4 + 4 + 4  # bytes of a pair that is kept: query, position, bounds
FOUND, ADDING = 8 + 4, 96  # of one that a core has found, and more while it is added
SHARPENED = 4  # times as many while its bounds are made narrower

# Returns bounds of the scores of pairs, both (n,) float32, given queries, ascending, and positions, both (n,) int64.
# Where the bounds are equal, they are the score.
Score = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Pairs:
    """Pairs of a query and a document, with bounds of their scores. Several threads may add some at a time.

    They share a few large arrays. Many small ones, kept between the large ones that a search needs for a moment, would
    fragment the memory.

    Args:
        device: where they are.
        room: for so many pairs memory is set aside at once; on a CPU, the system gives it when it is used.

    Attributes:
        count: the number of pairs.
    """

    def __init__(self, device: torch.device, room: int = 0):
        self._lock = threading.Lock()
        self.count = 0
        self._whole = torch.empty(2, room, dtype=torch.int32, device=device)
        self._real = torch.empty(2, room, device=device)

    def add(self, query: torch.Tensor, position: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Add pairs, all (n,): whole numbers below 2^31 the first two, float32 the others."""
        with self._lock:
            part = slice(self.count, self.count + len(query))
            if part.stop > self._whole.shape[1]:
                more = self._whole.new_empty(2, max(part.stop, 2 * self._whole.shape[1]))
                self._whole, before = more, self._whole
                self._whole[:, : self.count] = before[:, : self.count]
                self._real, real = torch.empty_like(more, dtype=torch.float32), self._real
                self._real[:, : self.count] = real[:, : self.count]
            self._whole[0, part], self._whole[1, part] = query, position
            self._real[0, part], self._real[1, part] = lower, upper
            self.count = part.stop

    def all(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, position, lower and upper bound of all pairs. Changes of them are changes here."""
        query, position = self._whole[:, : self.count]
        lower, upper = self._real[:, : self.count]
        return query, position, lower, upper

    def replace(self, query: torch.Tensor, position: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Put other pairs in the place of all."""
        self.count = 0
        self.add(query, position, lower, upper)


class Sieve:
    """Pairs of a query and a document that can be among the query's k best.

    A lower and an upper bound are known of the score of each pair. The k-th greatest lower bound of a query is its
    floor: at least k documents are as good. A document whose upper bound is below the floor is therefore none of the k
    best, whatever its score is. All others are kept.

    The search begins with floors that are guessed. If fewer than k documents reach the guess in the end, it was too
    high, and documents may be missed.

    Several threads may look for documents at a time, and add their pairs. Nothing else is done meanwhile, and so what
    is kept does not depend on which thread is faster.

    Args:
        guess: (Q,) float64: the guessed floors; -inf where there is no guess.
        k: how many documents are wanted.
        room: the number of pairs for which memory is set aside.

    Attributes:
        k: see above.
        floors: (Q,) float64.
    """

    def __init__(self, guess: torch.Tensor, k: int, room: int = 0):
        self.k, self._guess = k, guess
        self.floors = guess
        self._pairs = Pairs(guess.device, room)

    @classmethod
    def join(cls, sieves: "Sequence[Sieve]") -> "Sieve":
        """Return the pairs of several sieves, whose queries follow each other. ``sieves`` are left empty."""
        guess, kept = torch.cat([sieve._guess for sieve in sieves]), sum(sieve.kept for sieve in sieves)
        joined, before = cls(guess, sieves[0].k, kept), 0
        joined.floors = torch.cat([sieve.floors for sieve in sieves])
        for sieve in sieves:
            query, *others = sieve._pairs.all()
            joined._pairs.add(query + before, *others)
            before += len(sieve.floors)
            sieve._pairs = Pairs(guess.device)
        return joined

    def split(self, count: int, on_cores: Map) -> "list[Sieve]":
        """Return sieves of ``count`` nearly equal shares of the queries, in their order, and use this one no more."""
        if count == 1:
            return [self]
        query, *others = self._pairs.all()
        size = math.ceil(len(self.floors) / count)

        def take(first: int) -> "Sieve":
            share = slice(first, first + size)
            places = places_of((query >= share.start).logical_and_(query < share.stop))
            sieve = Sieve(self._guess[share], self.k, len(places))
            sieve.floors = self.floors[share]
            asked, *of_share = _select(places, query, *others)
            sieve._pairs.add(asked - first, *of_share)
            return sieve

        shares = list(on_cores(take, range(0, len(self.floors), size)))
        self._pairs = Pairs(self.floors.device)
        return shares

    @property
    def kept(self) -> int:
        """The number of pairs kept."""
        return self._pairs.count

    def add(self, first: int, places: torch.Tensor, products: torch.Tensor, bounds: Bounds) -> None:
        """Add pairs found in a tile of documents.

        Args:
            first: the position of the first document of the tile.
            places: (n,) int64, where in all products of the tile, flattened, those of the pairs stand.
            products: (n,), those of the pairs.
            bounds: of the tile.
        """
        queries = len(self.floors)
        for place, product in zip(places.split(AT_A_TIME), products.split(AT_A_TIME), strict=True):
            document = place // queries
            query = place - document * queries
            of_group = document // GROUP * queries + query
            self._pairs.add(query, document + first, *bounds.of_pairs(product, of_group))

    def sharpen(self, score: Score, all_pairs: bool) -> None:
        """Make bounds narrower, raise the floors, and drop the pairs that are below.

        Args:
            score: returns narrower bounds.
            all_pairs: score all pairs whose score is not known. Otherwise about k of each query: those that seem best.
        """
        query, position, lower, upper = self._pairs.all()
        some = torch.arange(len(query), device=query.device) if all_pairs else self._choose_best(query, lower, upper)
        self._score(score, some)
        self._raise_floors(*_select(some, query, lower))
        self._keep()

    def _score(self, score: Score, some: torch.Tensor) -> None:
        """Make the bounds of ``some`` pairs, places (n,) int64, narrower, where their score is not known."""
        query, position, lower, upper = self._pairs.all()
        chosen = some.index_select(0, places_of(lower.index_select(0, some) < upper.index_select(0, some)))
        if len(chosen):
            by_row = _argsort(_encode_whole(*_select(chosen, query, position)))
            chosen = chosen.index_select(0, by_row)
            asked, wanted, least, most = _select(chosen, query, position, lower, upper)
            closer = score(asked.long(), wanted.long())
            lower[chosen], upper[chosen] = least.maximum(closer[0]), most.minimum(closer[1])

    def _raise_floors(self, query: torch.Tensor, lower: torch.Tensor) -> None:
        """Raise the floors to the k-th greatest of lower bounds."""
        kth, enough = self._kth(_encode(query, lower))
        self.floors = torch.where(enough, self.floors.maximum(_decode(kth).to(torch.float64)), self.floors)

    def _keep(self) -> None:
        """Keep the pairs that reach the floors."""
        query, position, lower, upper = self._pairs.all()
        alive = places_of(upper >= self.floors.index_select(0, query))
        self._pairs.replace(*_select(alive, query, position, lower, upper))

    def _choose_best(self, query: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Return the places of about k pairs of each query, or all that it has: those between the greatest bounds."""
        keys = _encode(query, lower / 2 + upper / 2)
        kth, enough = self._kth(keys)
        return places_of(keys <= torch.where(enough, kth, torch.iinfo(torch.int64).max).index_select(0, query))

    def _kth(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k-th number of each query (Q,) among what :func:`_encode` gave, and whether it has so many."""
        if len(keys) == 0:
            none = torch.zeros(len(self.floors), dtype=torch.int64, device=keys.device)
            return none, none > 0
        ascending = _sort(keys)
        bounds = torch.arange(len(self.floors) + 1, device=keys.device) << QUERY_BITS
        starts = torch.searchsorted(ascending, bounds)
        return ascending[(starts[:-1] + self.k - 1).clamp_max(len(ascending) - 1)], starts.diff() >= self.k

    def likely(self) -> torch.Tensor:
        """Return the positions (n,) of documents that are probably scored in the end, for any query."""
        query, position, lower, upper = self._pairs.all()
        kth, enough = self._kth(_encode(query, lower / 2 + upper / 2))
        floors = torch.where(enough, _decode(kth), -torch.inf)
        return position[upper >= floors.index_select(0, query)]

    def best(
        self, score: Score, rows: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scores (Q, k) float32 and rows (Q, k) int64 of the best; a tie goes to the smaller row.

        Also returns (Q,) bool: whether the floor was guessed too high. Then scores and rows mean nothing.

        Args:
            score: returns the scores of pairs whose score is not known.
            rows: returns the rows (n,) int64 of positions (n,) int64.
        """
        self._score(score, torch.arange(self.kept, device=self.floors.device))
        self._keep()
        query, position, found, _ = self._pairs.all()
        row = rows(position.long())
        by_row = _argsort(_encode_whole(query, row))
        query, found, row = _select(by_row, query, found, row)
        order = _argsort(_encode(query, found + 0.0), stable=True)  # -0 and 0 are equal
        queries = torch.arange(len(self.floors) + 1, dtype=query.dtype, device=query.device)
        first = torch.searchsorted(query, queries)
        place = first[:-1, None] + torch.arange(self.k, device=query.device)
        if len(order) == 0:
            order, found, row = (of.new_zeros(1) for of in (order, found, row))
        best = order[place.clamp_max(len(order) - 1)]
        missed = (first.diff() < self.k) | (found[best[:, -1]] < self._guess)
        return found[best], row[best], missed


def _select(places: torch.Tensor, *numbers: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield those at ``places`` of each of ``numbers``. This is several times as fast as indexing."""
    return (of.index_select(0, places) for of in numbers)


def _encode(query: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Return whole numbers (n,) int64 that ascend by query, and within a query from the greatest score on.

    Sorting whole numbers is several times as fast as sorting places by two keys.
    """
    bits = score.view(torch.int32)
    ascending = bits ^ (bits >> 31 & 0x7FFFFFFF)  # as the float32 numbers do; the bits of the negative ones descend
    return (query.to(torch.int64) << QUERY_BITS) + 0x7FFFFFFF - ascending


def _encode_whole(query: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Return whole numbers (n,) int64 that ascend by query, and then by ``number`` (n,), 0 to 2^31."""
    return (query.to(torch.int64) << QUERY_BITS) + number


def best_of_pairs(
    scores: torch.Tensor, rows: torch.Tensor, k: int, best: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores and the rows, both (Q, K), of the best documents, up to ``k``; a tie goes to the smaller row.

    Args:
        scores: (Q, B) float32.
        rows: (B,) int64, below 2^31.
        best: what this function returned for other documents.
    """
    keys = _encode_with_row(scores, rows)
    if best is not None:
        keys = torch.cat([_encode_with_row(*best), keys], dim=1)
    keys = keys.topk(min(k, keys.shape[1]), dim=1, largest=False).values  # ascending, and all differ
    return _decode(keys >> 31), keys & 0x7FFFFFFF


def _encode_with_row(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return whole numbers that ascend from the greatest score on, and for equal scores from the smallest row on."""
    none = torch.zeros(1, dtype=torch.int64, device=scores.device)  # without a dimension, the sum would be int32
    return (_encode(none, scores + 0.0) << 31) + rows


def _decode(numbers: torch.Tensor) -> torch.Tensor:
    """Return the scores (n,) float32 of what :func:`_encode` returned."""
    ascending = 0x7FFFFFFF - (numbers & 0xFFFFFFFF)
    return torch.where(ascending < 0, ascending ^ 0x7FFFFFFF, ascending).to(torch.int32).view(torch.float32)


def _sort(numbers: torch.Tensor) -> torch.Tensor:
    """Return whole numbers (n,) in ascending order. NumPy sorts them in a fraction of torch's time on a CPU."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.sort(numbers.numpy()))
    return numbers.sort().values


def _argsort(numbers: torch.Tensor, stable: bool = False) -> torch.Tensor:
    """Return the order (n,) int64 of whole numbers (n,). NumPy sorts in a fraction of torch's time on a CPU."""
    if numbers.device.type == "cpu":
        return torch.from_numpy(np.argsort(numbers.numpy(), kind="stable" if stable else None))
    return numbers.argsort(stable=stable)
