"""Hard negatives: documents that a retriever ranks high but nobody judged relevant. Their file is ``hard.json``."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from drhard.errors import InputError, reason_of
from drhard.files import require_file, write_whole_text
from drhard.msmarco import parse_number
from drhard.strategies import AnyDocument, Pool, Strategy

import numpy as np

log = logging.getLogger(__name__)

HARD_FILE = "hard.json"
MINING_FOLDER = "mining"  # embeddings of a training that mines its own hard negatives
EXPECTED = 'expected {"query row": [document row, …], …}'
READ_BYTES = 1 << 24
RESULTS_AT_ONCE = 1 << 21  # 16 MB as int64
BOM = b"\xef\xbb\xbf"  # byte-order mark, which some editors write at the start of a file
BLANKS = b" \t\r\n"  # JSON's
TO_BLANKS = bytes.maketrans(b'":[],\t\r\n', b" " * 8)  # leaves only the numbers
MOST = 2**31
ENTRY = re.compile(rb'\s*"(\d{1,10})"\s*:\s*\[\s*(?:-?\d{1,19}(?:\s*,\s*-?\d{1,19})*\s*)?\]\s*(?:,|$)')


class HardNegatives(Mapping[int, np.ndarray]):
    """Query row -> its hard negatives (n,) int32, best first. One flat array holds them all, at 4 bytes a negative.

    Args:
        queries: (Q,) int64 unique query rows, in the order of the file.
        ends: (Q,) int64, where the negatives of each query end in ``rows``.
        rows: (total,) int32 document rows.
    """

    def __init__(self, queries: np.ndarray, ends: np.ndarray, rows: np.ndarray):
        self._queries, self._ends, self._rows = queries, ends, rows
        self._starts = np.concatenate(([0], ends[:-1]))
        self._order = np.argsort(queries, kind="stable")
        self._sorted = queries[self._order]

    def __getitem__(self, query: int) -> np.ndarray:
        place = int(np.searchsorted(self._sorted, query))
        if place == len(self._sorted) or self._sorted[place] != query:
            raise KeyError(query)
        place = self._order[place]
        return self._rows[self._starts[place] : self._ends[place]]

    def find_empty(self) -> np.ndarray:
        """Return the query rows with an empty list."""
        empty: np.ndarray = self._queries[self._starts == self._ends]
        return empty

    def __iter__(self) -> Iterator[int]:
        return iter(self._queries.tolist())

    def __len__(self) -> int:
        return len(self._queries)


def exclude_relevant(rows: np.ndarray, relevant: Mapping[int, Sequence[int]], topk: int) -> HardNegatives:
    """Return the ``topk`` best documents of each query that are not judged relevant to it (section 4.1 of the paper).

    Args:
        rows: (Q, depth) document rows of query rows 0 to Q - 1, best first; -1 at the end of a shorter list.
        relevant: query row -> relevant document rows.
    """
    queries, depth = rows.shape
    judged = np.fromiter((query << 32 | row for query, of in relevant.items() for row in of), dtype=np.int64)
    judged.sort()
    negatives = np.empty(queries * topk, dtype=np.int32)
    counts = np.empty(queries, dtype=np.int64)
    end, at_once = 0, max(1, RESULTS_AT_ONCE // depth)
    for first in range(0, queries, at_once):
        some = rows[first : first + at_once].astype(np.int64)
        pairs = (np.arange(first, first + len(some)) << 32)[:, None] | np.maximum(some, 0)
        kept = (some >= 0) & ~_among(pairs, judged)
        kept &= np.cumsum(kept, axis=1, dtype=np.int32) <= topk
        counts[first : first + len(some)] = kept.sum(axis=1)
        found = some[kept]
        negatives[end : end + len(found)] = found
        end += len(found)
    return HardNegatives(np.arange(queries), np.cumsum(counts), negatives[:end])


def open_pool(strategy: Strategy, path: Path | None, relevant: Iterable[int], documents: int) -> Pool | None:
    """Return the negatives of a static training: given hard negatives, or all documents. None if they must be mined.

    Args:
        path: ``hard.json``, if it is given.
        relevant: query rows.
        documents: the number of documents.

    Raises:
        InputError: as :func:`read_hard_negatives`.
    """
    if path is not None:
        return read_hard_negatives(path, relevant, documents)
    return None if strategy.mined else AnyDocument(documents)


def keep_queries_with_negatives(relevant: Mapping[int, Sequence[int]], hard: HardNegatives) -> dict[int, Sequence[int]]:
    """Return ``relevant`` without the queries that have no hard negative. Log a warning with their number."""
    lacking = set(hard.find_empty().tolist())
    kept = {query: rows for query, rows in relevant.items() if query not in lacking}
    if len(kept) < len(relevant):
        log.warning("the training leaves out %d queries without a hard negative", len(relevant) - len(kept))
    return kept


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Return a mask of the ``values`` that are in ``ascending``."""
    ascending = ascending[slice(*np.searchsorted(ascending, (values.min(), values.max() + 1)))]
    if not len(ascending):
        return np.zeros(values.shape, dtype=bool)
    places = np.searchsorted(ascending, values)
    found: np.ndarray = ascending[np.minimum(places, len(ascending) - 1)] == values
    return found


def write_hard_negatives(path: Path, hard: Mapping[int, np.ndarray]) -> None:
    """Write ``hard.json``: ``{"query row": [document row, …]}`` on one line."""
    with write_whole_text(path) as file:
        file.write("{")
        for number, (query, rows) in enumerate(hard.items()):  # one by one: MS MARCO's file has 800 MB
            file.write(f'{", " if number else ""}"{query}": {rows.tolist()}')
        file.write("}")


def read_hard_negatives(
    path: str | Path, relevant: Iterable[int], documents: int, read_bytes: int = READ_BYTES
) -> HardNegatives:
    """Read ``hard.json``: ``{"query row": [document row, …]}``.

    MS MARCO's file has 800 MB on one line, so it is read in parts of whole entries.

    Args:
        relevant: query rows. Each must be in the file. Its list may be empty: BM25 finds nothing for a query that
            shares no word with any document.
        documents: the number of documents.
        read_bytes: bytes read at a time.

    Raises:
        InputError: the file is not such JSON, lacks a query or names it twice, or names a document beyond the last.
    """
    path = require_file(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; {EXPECTED}")
    none = np.empty(0, dtype=np.int64)
    queries, counts, rows = [none], [none], [none.astype(np.int32)]
    for entries in _entries(path, read_bytes):
        parsed = _parse(entries)
        if parsed is None or (len(parsed.rows) and parsed.rows.max() >= documents):
            _complain(path, entries, documents)
        queries.append(parsed.queries)
        counts.append(parsed.counts)
        rows.append(parsed.rows.astype(np.int32))
    ends = np.cumsum(np.concatenate(counts))
    rows_of_all = np.concatenate(rows)
    del rows
    keys = np.concatenate(queries)
    ascending = np.sort(keys)
    twice = ascending[1:][np.diff(ascending) == 0]
    if len(twice):
        raise InputError(f"{path}: names query {twice[0]} twice")
    hard = HardNegatives(keys, ends, rows_of_all)
    wanted = np.fromiter(relevant, dtype=np.int64)
    lacking = wanted[~np.isin(wanted, keys)]
    if len(lacking):
        raise InputError(
            f"{path}: no hard negative for query {lacking[0]}; was it mined with --mode train on this data?"
        )
    if np.isin(wanted, hard.find_empty()).all():
        raise InputError(f"{path}: no query has a hard negative")
    return hard


def _entries(path: Path, read_bytes: int) -> Iterator[bytes]:
    """Yield the entries of the object in ``path``, without its braces. Each part has the entries that are complete.

    Between two parts, a comma is removed. Raises InputError if a brace or a comma is missing.
    """
    with open(path, "rb") as file:
        text = file.read(read_bytes).removeprefix(BOM).lstrip(BLANKS)
        if not text.startswith(b"{"):
            raise InputError(f"{path}: {EXPECTED}" if text else f"{path}: not a JSON file (it is empty)")
        text = text[1:]
        comma = False  # whether a comma must come before the next entry
        while more := file.read(read_bytes):
            end = text.rfind(b"]") + 1
            if end:
                yield _without_comma(path, text[:end], comma)
                comma = True
            text = text[end:] + more
    text = text.rstrip(BLANKS)
    if not text.endswith(b"}"):
        raise InputError(f"{path}: not a JSON file (it is cut off: the closing brace is missing)")
    text = text[:-1]
    if text.strip(BLANKS):
        yield _without_comma(path, text, comma)


def _without_comma(path: Path, entries: bytes, comma: bool) -> bytes:
    if not comma:
        return entries
    entries = entries.lstrip(BLANKS)
    if not entries.startswith(b","):
        raise InputError(f"{path}: not a JSON file (a comma is missing before {_shown(entries)})")
    return entries[1:]


class _Parsed(NamedTuple):
    queries: np.ndarray  # (Q,) int64
    counts: np.ndarray  # (Q,) int64
    rows: np.ndarray  # (total,) int64


def _parse(entries: bytes) -> _Parsed | None:
    """Parse ``"query row": [document row, …], …`` as strict JSON. Return None for anything else.

    json.loads makes a Python number of each row, which takes a third more time and five times the memory.
    """
    packed = entries.translate(None, BLANKS)
    pieces = packed[1:-1].split(b'],"')  # query":[row,…
    if packed.translate(None, b"0123456789,") != b'"":[]' * len(pieces) or packed[:1] + packed[-1:] != b'"]':
        return None
    if b",," in packed or b"[," in packed or b",]" in packed:
        return None
    if packed.count(b'":[') != len(pieces) or not all(key.isdigit() for key in entries.split(b'"')[1::2]):
        return None
    commas = np.array([piece.count(b",") for piece in pieces])
    counts = np.where([piece.endswith(b"[") for piece in pieces], 0, commas + 1)
    numbers = np.fromstring(entries.translate(TO_BLANKS), dtype=np.int64, sep=" ")
    if len(numbers) != len(pieces) + counts.sum() or numbers.max() >= MOST:  # a blank in a number; too many digits
        return None
    digits = len(packed) - 5 * len(pieces) - commas.sum() - (len(pieces) - 1)
    if digits != len(numbers) + sum(int((numbers >= 10**power).sum()) for power in range(1, 10)):  # zeros in front
        return None
    keys = np.cumsum(counts + 1) - counts - 1  # places of the query rows among the numbers
    return _Parsed(numbers[keys], counts, np.delete(numbers, keys))


def _complain(path: Path, entries: bytes, documents: int) -> NoReturn:
    """Raise an InputError that says what is wrong with ``entries``, and with which query."""
    try:
        pairs = json.loads(b"{" + entries + b"}", object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else reason_of(error)
        query, end = None, 0
        while entry := ENTRY.match(entries, end):
            query, end = entry[1].decode(), entry.end()
        place = f" after query {query}" if query else ""
        raise InputError(f"{path}: not a JSON file{place} ({reason}; next is {_shown(entries[end:])})") from None
    for query, rows in pairs:
        if parse_number(query) is None or str(int(query)) != query:
            raise InputError(f"{path}: {query[:40]!r} is not a query row; {EXPECTED}")
        if not isinstance(rows, list) or not all(type(row) is int for row in rows):
            raise InputError(f"{path}: query {query} has {_shown(json.dumps(rows).encode())}; {EXPECTED}")
        for row in rows:
            if not 0 <= row < documents:
                raise InputError(
                    f"{path}: query {query} names document {_shown(b'%d' % row)}, but there are only {documents}"
                )
    raise InputError(f"{path}: {EXPECTED}; found {_shown(entries)}")


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))
