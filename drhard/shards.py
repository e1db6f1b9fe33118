"""Exact search on GPUs: each holds the codes of a part of the documents, and the documents themselves if there is room.

Everything here runs on CPUs too, which tests use.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from drhard.blocks import BLOCK_ROWS, read_blocks
from drhard.coded import CodedSearch, bytes_kept
from drhard.codes import GROUP, keep_codes
from drhard.devices import explain_no_gpu, require_gpu, to_device
from drhard.errors import InputError
from drhard.floors import SAMPLED
from drhard.index import NO_ROWS, check_queries, check_topk, join_passes, part_of
from drhard.pairs import DeviceVectors, HostVectors, Vectors
from drhard.products import in_whole_float32
from drhard.sieve import best_of_pairs
from drhard.vectors import gather_rows

import numpy as np
import psutil
import torch
from tqdm import tqdm

log = logging.getLogger(__name__)

SCRATCH = 3_000_000_000  # bytes that a search needs on a GPU beside the codes
SIEVES = 1_000_000_000  # bytes of the documents that may be among the best, of all queries searched together
QUERY_ROWS = 1024  # most queries multiplied with a tile at a time
TILE_SCORES = 1 << 27  # 512 MB of products keep a GPU busy while Python launches the next kernels
DENSE_SCORES = 1 << 24  # scored at a time in float32; choosing the best of them takes 600 MB
# Fewer documents than this are searched for few queries in float32, if there is room for them. An H100 searches 500,000
# for 32 queries in 4.3 ms in float32 and in 11.5 ms by codes, for 4,096 queries in 394 and 235 ms.
FEWEST_CODED, FEW_QUERIES = 2_000_000, 128
CODE_BYTES = 2 + 3 * 8 / GROUP  # of a document, beside one for each dimension


class ShardedIndex:
    """Exact search of documents that lie on several devices.

    Args:
        shards: in the order of their rows.
        progress: show a bar over the queries of :meth:`passes`.

    Attributes:
        found: the number of documents that a search can find.
    """

    def __init__(self, shards: "Sequence[Shard]", progress: bool = False):
        self.shards, self.progress = shards, progress
        self.found = sum(shard.found for shard in shards)
        self._threads = ThreadPoolExecutor(len(shards))  # kept: a new thread is slow in its first products on a GPU

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`drhard.index.Index.search`."""
        return join_passes(self.passes(queries, k), len(queries), k)

    def passes(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.index.Index.passes`. The results are merged in memory, a few thousand queries at a time."""
        check_topk(k, self.found)
        yield from self.find(queries, k)

    def find(self, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :meth:`drhard.parts.Part.find`."""
        check_queries(queries, self.shards[0].dim)
        together = max(1, SIEVES // (bytes_kept(k) + 5 * self.shards[0].dim))  # a query and its codes
        with tqdm(total=len(queries), unit="query", desc="searching", disable=not self.progress) as bar:
            for first in range(0, len(queries), together):
                part = np.array(queries[first : first + together], np.float32)
                with in_whole_float32():
                    found = list(self._threads.map(lambda shard, part=part: shard.search(part, k), self.shards))
                scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
                order = np.lexsort((rows, -scores), axis=1)[:, :k]
                bar.update(len(part))
                yield np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def gather(self, rows: np.ndarray, device: torch.device) -> torch.Tensor | None:
        """Return the documents of ``rows``, of their shape and dim, on ``device``; None if a shard has only codes."""
        gathered = torch.empty(rows.size, self.shards[0].dim, device=device)
        wanted = rows.reshape(-1)
        for shard in self.shards:
            if shard.copy is None:
                return None
            places = np.flatnonzero((wanted >= shard.first_row) & (wanted < shard.first_row + len(shard.copy)))
            found = shard.copy[to_device(wanted[places] - shard.first_row, shard.copy.device)].to(device)
            if len(places) == len(wanted):
                gathered = found
            else:
                gathered[to_device(places, device)] = found
        return gathered.view(*rows.shape, -1)


class Shard:
    """Documents on a device.

    Args:
        documents: (N, dim) float32, a part of all documents.
        first_row: the row of the first of them.
        device: where they are searched.
        room: bytes that are free on the device.
        left_out: (n,) int64 rows of all documents that are not found.
        progress: show a bar while they are rounded to codes.

    Attributes:
        dim: their dimensions.
        found: the number of documents that a search can find.
        first_row: the row of its first document.
        copy: (N, dim) float32 on the device, None if they have no room there.

    Raises:
        InputError: a document is not finite.
    """

    def __init__(
        self,
        documents: np.ndarray,
        first_row: int,
        device: torch.device,
        room: int,
        left_out: np.ndarray = NO_ROWS,
        progress: bool = False,
    ):
        self._documents, self.first_row, self._device = documents, first_row, device
        count, self.dim = documents.shape
        absent = part_of(left_out, first_row, count)
        self.found = count - len(absent)
        self._absent = absent
        self.copy: torch.Tensor | None = None
        if documents.nbytes + bytes_of_codes(count, self.dim) + SCRATCH <= room:
            self.copy = torch.empty(count, self.dim, device=device)
        codes = keep_codes(documents, device, progress, self.copy)
        vectors: Vectors = HostVectors(documents) if self.copy is None else DeviceVectors(self.copy)
        self._coded = CodedSearch(codes, vectors, QUERY_ROWS, TILE_SCORES, absent)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (Q, K) float32 and rows (Q, K) int64 of the best K documents, up to ``k``."""
        k = min(k, self.found)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        asked = torch.from_numpy(queries).to(self._device)
        few = self.copy is not None and len(self.copy) < FEWEST_CODED and len(queries) <= FEW_QUERIES
        found = None if few else self._coded.search(asked, k)
        if found is None:
            found = self._search_all(asked, k)
        scores, rows = (part.cpu().numpy() for part in found)
        return scores, rows + self.first_row

    @torch.no_grad()
    def _search_all(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Score all documents in float32. Return what :meth:`CodedSearch.search` does."""
        best = best_of_pairs(queries.new_empty(len(queries), 0), queries.new_empty(0, dtype=torch.int64), k)
        for first, block in self._blocks(max(1, DENSE_SCORES // len(queries))):
            scores, rows = queries @ block.T, torch.arange(first, first + len(block), device=queries.device)
            absent = part_of(self._absent, first, len(block))
            if len(absent):
                present = to_device(np.delete(np.arange(len(block)), absent), queries.device)
                scores, rows = scores[:, present], rows[present]
            best = best_of_pairs(scores, rows, k, best)
        return best

    def _blocks(self, most: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the first row and the documents, on the device, of up to ``most`` at a time."""
        if self.copy is not None:
            yield from zip(range(0, len(self.copy), most), self.copy.split(most), strict=True)
            return
        for first, block in read_blocks(self._documents, min(most, BLOCK_ROWS)):
            yield first, torch.from_numpy(block).to(self._device)


def read_vectors(index: object, documents: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return ``documents[rows]``, of the shape of ``rows`` and dim, on ``device``: from GPUs if ``index`` has them.

    Args:
        index: of ``documents`` (N, dim).
        rows: int64, of any shape.
    """
    found = index.gather(rows, device) if isinstance(index, ShardedIndex) else None
    return to_device(gather_rows(documents, rows), device) if found is None else found


def bytes_of_codes(count: int, dim: int) -> int:
    """Return the size of the codes of ``count`` documents, and of the sample of them."""
    return int(count * (dim + dim / SAMPLED + CODE_BYTES))


def open_shards(
    documents: np.ndarray, devices: Sequence[torch.device], progress: bool = False, left_out: np.ndarray = NO_ROWS
) -> ShardedIndex:
    """Split ``documents`` (N, dim) float32 into nearly equal parts, one for each device.

    Args:
        progress: show bars, of opening as well.
        left_out: (n,) int64 rows that are not found, ascending.

    Raises:
        InputError: a device lacks the memory for its part, or a document is not finite.
    """
    devices = devices[: len(documents)]
    bounds = np.linspace(0, len(documents), len(devices) + 1).astype(np.int64).tolist()
    shards = []
    for number, device in enumerate(devices):
        first, last = bounds[number], bounds[number + 1]
        room, needed = free_bytes(device), bytes_of_codes(last - first, documents.shape[1])
        if room < needed + SCRATCH:
            raise InputError(
                f"{device} has {room / 1e9:.1f} GB free, and the codes of its {last - first} embeddings need "
                f"{(needed + SCRATCH) / 1e9:.1f} GB; name more GPUs, or search on the CPU"
            )
        shards.append(Shard(documents[first:last], first, device, room, left_out, progress))
    return ShardedIndex(shards, progress)


def free_bytes(device: torch.device) -> int:
    """Return how much memory is free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_gpus(gpus: Sequence[int]) -> None:
    """Raise InputError if torch cannot use ``gpus``."""
    require_gpu()
    for gpu in gpus:
        if not 0 <= gpu < torch.cuda.device_count():
            raise InputError(f"GPU {gpu} does not exist; torch sees {torch.cuda.device_count()}")


def find_gpus_with_room(count: int, dim: int) -> list[int]:
    """Return all GPUs if together they can hold the codes of ``count`` documents of ``dim`` dimensions, else none."""
    if not torch.cuda.is_available() or explain_no_gpu():
        return []
    torch.cuda.empty_cache()  # what encoding has left
    gpus = list(range(torch.cuda.device_count()))
    needed = bytes_of_codes(count, dim) / len(gpus) + SCRATCH
    if min(free_bytes(torch.device("cuda", gpu)) for gpu in gpus) < needed:
        log.warning("the GPUs together cannot hold the codes of %d embeddings; searching on the CPU", count)
        return []
    return gpus
