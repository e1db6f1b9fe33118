"""Exact search by codes: a first pass finds what may be among the best, and this is scored again in float32.

The same code runs on CPUs and GPUs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

from drhard.bounds import count_true, least_score, numbers_at, outwards, places_of, reach
from drhard.codes import GROUP, CodedBlock, Codes
from drhard.cores import Map, on_all_cores
from drhard.floors import Sample
from drhard.index import NO_ROWS, part_of
from drhard.pairs import Vectors
from drhard.products import has_fast_int8
from drhard.rounded import RoundedQueries, norms_of
from drhard.sieve import AT_A_TIME, SHARPENED, SIEVED, Score, Sieve

import numpy as np
import torch

MOST_OF_K, MOST_MORE = 10, 1600  # so many times k pairs, and so many more, may be kept for a query in the mean
CROWDED = 16  # if more than one in so many scores reaches the floor, the documents themselves tell a higher one
TOO_MANY = 0.75  # of the most pairs; if more are kept when they have been sharpened, the search is given up
SHARE, SHARES = 8, 16  # least queries whose pairs a core scores again; most cores, as each looks at all pairs first
FEW, LARGER = 64, 3  # tiles of up to so many queries are so many times larger; each tile takes a millisecond
SMALL = 8  # so many times smaller than others is the first tile of each core
EXPECTED = 0.6  # of all documents seen; those that seem best by then will mostly be scored again
LOOKED_UP = 1 << 20  # positions whose rows are computed at a time
Item = TypeVar("Item")
Result = TypeVar("Result")


def most_kept(k: int) -> int:
    """Return how many pairs may be kept for a query, in the mean."""
    return MOST_OF_K * k + MOST_MORE


def bytes_kept(k: int) -> int:
    """Return how much memory the pairs of a query may take, in the mean. In the end, all are sharpened together."""
    return (1 + SHARPENED) * most_kept(k) * SIEVED


class TooManyKeptError(Exception):
    """The bounds are too wide to pay."""


class QueryGroup:
    """Queries that are multiplied together, and the documents that may be among their best.

    Args:
        queries: (Q, dim) float32.
        k: how many documents are wanted.
        codes: of all documents.
        sample: of them; None: nothing is guessed.
        on_cores: parts of the sample are scored with it.
    """

    def __init__(self, queries: torch.Tensor, k: int, codes: Codes, sample: Sample | None, on_cores: Map = map):
        self.queries, self._codes = queries, codes
        self._rounded = RoundedQueries(queries, codes.mean)
        guess = sample.guess(self._rounded, k, on_cores) if sample is not None else None
        if guess is None:
            guess = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
        self._most = most_kept(k) * len(queries)
        self.sieve = Sieve(guess, k, room=2 * self._most)

    def look_through(self, first: int, block: CodedBlock, absent: np.ndarray) -> int:
        """Find the documents of a tile that may be among the best. Return the number of pairs found.

        Where very many seem to be, the tile alone tells higher floors.

        Args:
            first: the position of the first document.
            absent: places in the tile that are left out, ascending.

        Raises:
            TooManyKeptError: the tile alone has more than may be kept.
        """
        bounds, floors = self._rounded.bounds(block), self.sieve.floors
        products = self._rounded.multiply(block.values)
        if len(absent):
            products[torch.from_numpy(absent).to(products.device)] = least_score(products.dtype)
        mask = reach(products, bounds.least_products(floors, products.dtype))
        count = count_true(mask)
        if count * CROWDED > mask.numel() or count > self._most:
            floors = floors.maximum(bounds.floors(products, self.sieve.k))
            mask = reach(products, bounds.least_products(floors, products.dtype))
            count = count_true(mask)
        if count > self._most:
            raise TooManyKeptError
        places = places_of(mask)
        self.sieve.add(first, places, numbers_at(products, places), bounds)
        return count

    def score(self, query: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bounds (n,) float32 of the scores of pairs, by codes, but with queries that are not rounded.

        See :data:`drhard.sieve.Score`.
        """
        parts = zip(query.split(AT_A_TIME), position.split(AT_A_TIME), strict=True)
        bounds = [outwards(*self._rounded.bound_pairs(self._codes, *part)) for part in parts]
        lower, upper = (torch.cat(parts) for parts in zip(*bounds, strict=True))
        return lower, upper


class CodedSearch:
    """Search by codes.

    Args:
        codes: the documents as codes; their device is where the first pass runs.
        vectors: the same documents in float32.
        query_rows: most queries multiplied with a tile at a time.
        tile_scores: scores that a tile of documents gives, for many queries. A CPU has a tile for each core at a time.
        left_out: (n,) int64 rows that are not found.
    """

    def __init__(
        self, codes: Codes, vectors: Vectors, query_rows: int, tile_scores: int, left_out: np.ndarray = NO_ROWS
    ):
        self._codes, self._vectors = codes, vectors
        self._query_rows, self._tile_scores = query_rows, tile_scores
        self._on_cpu = codes.mean.device.type == "cpu"
        self._at_hand = vectors.device == codes.mean.device
        self._absent = _find_positions(codes, left_out)
        self._sample = Sample(codes, self._absent)
        dim = codes.values.shape[1]
        documents = norms_of(codes.mean[None]) + (codes.norm + codes.lost).max()
        self._greatest = max(float(documents), 127 * math.sqrt(dim))  # the norm of a document or of codes
        has_fast_int8(codes.mean.device)  # is measured now, not in several threads

    @torch.no_grad()
    def search(
        self, queries: torch.Tensor, k: int, progress: Callable[[int], object] = lambda done: None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return scores (Q, k) float32 and rows (Q, k) int64; None if the bounds are too wide to pay, or queries huge.

        Args:
            queries: (Q, dim) float32, on the device of the codes.
            k: at most the number of documents that are not left out.
            progress: is called with the number of documents, tile by tile.
        """
        if float(norms_of(queries).max()) * self._greatest > torch.finfo(torch.float32).max:
            return None  # sums could overflow
        try:
            scores, rows, missed = self._search(queries, k, self._sample, progress)
            if len(missed):
                *found, still = self._search(queries[missed], k)
                assert len(still) == 0  # nothing was guessed
                scores[missed], rows[missed] = found
        except TooManyKeptError:
            return None
        return scores, rows

    def _search(
        self,
        queries: torch.Tensor,
        k: int,
        sample: Sample | None = None,
        progress: Callable[[int], object] = lambda done: None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what :meth:`search` does, and the queries whose floor was guessed too high, (n,) int64.

        Args:
            sample: floors are guessed from it; None: they are not.

        Raises:
            TooManyKeptError: what is kept says so.
        """
        size = math.ceil(len(queries) / math.ceil(len(queries) / self._query_rows))  # nearly equal groups
        several = self._on_cpu and len(self._codes.values) * len(queries) > self._tile_scores
        with on_all_cores() if several else nullcontext(map) as spread:
            parts = queries.split(size)
            cores_of_one = spread if len(parts) == 1 else map
            groups = _in_turn(spread, parts, lambda part: QueryGroup(part, k, self._codes, sample, cores_of_one))
            most = most_kept(k) * len(queries)
            self._look_through(groups, most, spread, progress)
            return self._score_again(groups, most, spread, torch.get_num_threads() if several else 1)

    def _look_through(
        self, groups: list[QueryGroup], most: int, spread: Map, progress: Callable[[int], object]
    ) -> None:
        """Let each group look through all documents, in rounds.

        A round ends once there are more than ``most`` pairs, and at a time to have documents read ahead. Then the pairs
        that seem best are scored more closely. This raises the floors.
        """
        count, seen = len(self._codes.values), 0
        ahead_at = count if self._at_hand else min(count, math.ceil(count * EXPECTED / GROUP) * GROUP)
        for end in (ahead_at, count):
            while seen < end:
                for documents in self._round(groups, seen, end, most, spread):
                    seen += documents
                    progress(documents)
                if seen == count:
                    return
                ahead = seen == end < count and not self._vectors.is_read_whole(_kept(groups))
                self._sharpen(
                    groups, spread, all_pairs=not self._at_hand and (ahead or _kept(groups) > TOO_MANY * most)
                )
                if _kept(groups) > TOO_MANY * most:
                    raise TooManyKeptError
                if ahead:
                    likely = torch.cat([group.sieve.likely() for group in groups])
                    self._vectors.expect(self._codes.rows(likely.long()))

    def _round(self, groups: list[QueryGroup], seen: int, end: int, most: int, spread: Map) -> Iterator[int]:
        """Let each group look through documents from position ``seen`` to ``end``. Yield their number, tile by tile.

        Each core has tiles of its own. No further one is begun if more than ``most`` pairs are likely then.
        """
        pairs, begun, done, greatest = _kept(groups), 0, 0, 0

        def tiles() -> Iterator[range]:
            nonlocal begun
            for tile in self._tiles(seen, end, groups):
                if pairs + (begun - done) * greatest > most:
                    return
                begun += 1
                yield tile

        @torch.no_grad()
        def look(tile: range) -> tuple[int, int]:
            absent = part_of(self._absent, tile.start, len(tile))
            block = self._codes.part(tile.start, tile.stop)
            return len(tile), sum(group.look_through(tile.start, block, absent) for group in groups)

        for documents, found in spread(look, tiles()):
            pairs, done, greatest = pairs + found, done + 1, max(greatest, found)
            yield documents

    def _tiles(self, seen: int, end: int, groups: list[QueryGroup]) -> Iterator[range]:
        """Yield the positions of tiles of nearly equal size, as many for each core.

        The first of each core is smaller. They show soon if too many documents are found.
        """
        cores = torch.get_num_threads() if self._on_cpu else 1
        all_queries = sum(len(group.queries) for group in groups)
        small = max(GROUP, self._tile_scores // SMALL // all_queries // GROUP * GROUP)
        larger = LARGER if self._on_cpu and len(groups[0].queries) <= FEW else 1
        large = max(GROUP, larger * self._tile_scores // len(groups[0].queries))
        first_end = min(end, seen + cores * small)
        for start, stop, most in (seen, first_end, small), (first_end, end, large):
            tiles = math.ceil((stop - start) / most / cores) * cores
            step = math.ceil((stop - start) / max(1, tiles) / GROUP) * GROUP
            for at in range(start, stop, step or 1):
                yield range(at, min(at + step, stop))

    def _sharpen(self, groups: list[QueryGroup], spread: Map, all_pairs: bool) -> None:
        """Score what seems best, or all: in float32 if the documents are at hand, else by codes."""

        def sharpen(group: QueryGroup) -> None:
            group.sieve.sharpen(self._exact(group.queries) if self._at_hand else group.score, all_pairs)

        _in_turn(spread, groups, sharpen)

    def _exact(self, queries: torch.Tensor) -> Score:
        """Return what scores pairs in float32."""

        def score(query: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = self._vectors.score(queries, query, self._codes.rows(position))
            return scores, scores

        return score

    def _score_again(
        self, groups: list[QueryGroup], most: int, spread: Map, cores: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Score in float32 what can be among the best. Return what :meth:`_search` does.

        Raises:
            TooManyKeptError: these are more than ``most`` pairs.
        """
        if self._at_hand:  # cores that would be idle have a share of the queries of a group
            count = max(1, min(cores // len(groups), len(groups[0].queries) // SHARE, SHARES))
            sieves = [sieve for group in groups for sieve in group.sieve.split(count, spread)]
        else:  # a document that several groups have kept is read once
            self._sharpen(groups, spread, all_pairs=True)
            sieves = [Sieve.join([group.sieve for group in groups])]
        queries = torch.cat([group.queries for group in groups]).split([len(sieve.floors) for sieve in sieves])
        shares = [(sieve, self._exact(asked)) for sieve, asked in zip(sieves, queries, strict=True)]
        if not self._vectors.is_read_whole(sum(sieve.kept for sieve in sieves)):
            _in_turn(spread, shares, lambda share: share[0].sharpen(share[1], all_pairs=False))
        if sum(sieve.kept for sieve in sieves) > most:
            raise TooManyKeptError
        best = _in_turn(spread, shares, lambda share: share[0].best(share[1], self._codes.rows))
        scores, rows, missed = zip(*best, strict=True)
        return torch.cat(scores), torch.cat(rows), torch.cat(missed).nonzero()[:, 0]


def _kept(groups: list[QueryGroup]) -> int:
    return sum(group.sieve.kept for group in groups)


def _in_turn(spread: Map, items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Work on each item, on several at a time if there are several. One alone has all cores."""
    if len(items) == 1:
        return [work(items[0])]
    return list(spread(torch.no_grad()(work), items))  # no_grad is a setting of each thread


def _find_positions(codes: Codes, rows: np.ndarray) -> np.ndarray:
    """Return the positions (n,) int64 of documents, given their ``rows`` (n,) int64; both ascend."""
    if len(rows) == 0:
        return NO_ROWS
    wanted = torch.from_numpy(rows).to(codes.places.device)
    every = torch.arange(len(codes.places), device=wanted.device).split(LOOKED_UP)
    return torch.cat([some[torch.isin(codes.rows(some), wanted)] for some in every]).cpu().numpy()
