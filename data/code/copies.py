"""Find functions that are nearly the same: vendored copies, forks, and siblings that differ in a name or two."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from functions import Function

SHINGLE = 4  # words in a row that are compared
COPIED = 0.6  # share of such sequences that two near copies have in common, of all that either has
BANDS, ROWS = 16, 3  # two functions are compared if one of BANDS triples of their smallest hashes is the same
_PRIME = (1 << 31) - 1
_WORD = re.compile(r"\w+")


def drop_near_copies(functions: Iterable[Function]) -> Iterator[Function]:
    """Yield the functions without those that are nearly the same as an earlier one.

    Two functions of which 70 % is the same are compared with a probability of 99.9 %: MinHash, as in Broder, "On the
    resemblance and containment of documents", 1997.
    """
    generator = np.random.RandomState(0)  # its numbers are the same with any version of NumPy
    factors = generator.randint(1, _PRIME, size=(2, BANDS * ROWS)).astype(np.uint64)
    kept: list[np.ndarray] = []  # the shingles of each function that is kept, sorted
    found: dict[bytes, list[int]] = defaultdict(list)  # a band and its hashes -> functions
    for function in functions:
        shingles = shingles_of(function.code)
        hashes = (shingles[:, None] * factors[0] + factors[1]) % _PRIME  # (shingles, BANDS * ROWS), below 2**63
        smallest = hashes.min(axis=0).astype(np.uint32).reshape(BANDS, ROWS)
        keys = [bytes([band]) + row.tobytes() for band, row in enumerate(smallest)]
        candidates = {number for key in keys for number in found.get(key, ())}
        if any(_resemblance(shingles, kept[number]) >= COPIED for number in candidates):
            continue
        for key in keys:
            found[key].append(len(kept))
        kept.append(shingles)
        yield function


def shingles_of(code: str) -> np.ndarray:
    """Return the hashes of all sequences of SHINGLE words, each once, in order; the hash of all words if there are few.

    Returns:
        (sequences,) uint64, below 2**31.
    """
    words = _WORD.findall(code.lower())
    runs = zip(*(words[start:] for start in range(SHINGLE)), strict=False) if len(words) > SHINGLE else [words]
    return np.unique(np.array([zlib.crc32(" ".join(run).encode()) for run in runs], dtype=np.uint64) % _PRIME)


def _resemblance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of two functions' sequences that both have."""
    if min(len(first), len(second)) < COPIED * max(len(first), len(second)):
        return 0
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
