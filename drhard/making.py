"""Ids and orders of data sets that are made here, by hashes: the same with any version of Python."""

import hashlib
from collections.abc import Iterable


def digest(salt: str, text: str) -> int:
    """Return a number below 2**64 that depends only on the two strings."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8], "big")


def assign_ids(keys: Iterable[str], salt: str, limit: int) -> dict[str, int]:
    """Give each key an official id below ``limit``: its hash within the range, or the next free number."""
    taken: set[int] = set()
    ids = {}
    for key in sorted(keys):
        number = digest(salt, key) % limit
        while number in taken:
            number = (number + 1) % limit
        taken.add(number)
        ids[key] = number
    return ids
