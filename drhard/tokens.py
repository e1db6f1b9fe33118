"""Read token memmaps: the token ids of all passages, or of a mode's queries, one row for each text."""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from drhard.arrays import read_array, spread
from drhard.errors import InputError
from drhard.files import read_object, require_file
from drhard.numbers import COUNT, LENGTH, NATURAL
from drhard.provenance import digest_sample

import numpy as np

PASSAGES = "passages"
PREPROCESS_AGAIN = "run preprocess.py again"
META_FIELDS = {"type": str, "total_number": int, "embedding_size": int}  # published
# Ours; others lack them.
OWN_META_FIELDS = {
    "tokenizer": str,
    "max_token_id": int,
    "lengths": str,
    "prompt": str,
    "empty": int,
    "corpus": str,
    "characters": int,
    "empty_texts": str,
}
_INTEGERS = re.compile(r"[<>|=]?[iu][1248]|u?int(8|16|32|64)")
SAMPLE = 200  # rows to check against their lengths


def query_name(mode: str) -> str:
    """Return the name of the token memmap of a mode's queries."""
    return f"{mode}-query"


class TokenMemmap:
    """``{name}.memmap`` with its ``{name}_meta`` and ``{name}_length.npy``, as preprocess.py writes them.

    Use :meth:`open` to open one.

    Args:
        path: the path of the memmap.
        tokens: (rows, width) integers, padded with 0.
        lengths: (rows,), the number of tokens in each row.
        max_length: a longer row keeps its first ``max_length - 1`` tokens and its last, ``</s>``.
        meta: the content of ``{name}_meta``.

    Attributes:
        name: ``passages`` or ``{mode}-query``.
        lengths: (rows,), the number of tokens read from each row.
        tokenizer: the :meth:`drhard.tokenizer.RobertaTokenizer.digest` of its tokenizer; None if the meta lacks it.
        max_token_id: the largest id; None if the meta lacks it.
        prompt: the text that stands in front of each text; None if the meta lacks it.
        empty: (n,) int64 rows of empty texts, ascending.
        vocabulary: the number of ids that the model knows. Once it is set, each batch is checked.
    """

    def __init__(self, path: Path, tokens: np.ndarray, lengths: np.ndarray, max_length: int, meta: Mapping[str, Any]):
        self.path, self.name = path, path.name.removesuffix(".memmap")
        self.max_length = max_length
        self.tokenizer: str | None = meta.get("tokenizer")
        self.max_token_id: int | None = meta.get("max_token_id")
        self.prompt: str | None = meta.get("prompt")
        self.empty: np.ndarray = np.empty(0, dtype=np.int64)
        self.vocabulary: int | None = None
        self.lengths: np.ndarray = np.minimum(lengths, max_length)
        self._full_lengths = lengths
        self._tokens = tokens

    @classmethod
    def open(cls, folder: str | Path, name: str, max_length: int | None = None) -> "TokenMemmap":
        """Open the three files of a token memmap.

        Args:
            folder: a ``preprocess`` folder.
            name: ``passages`` or ``{mode}-query``.
            max_length: the number of tokens at which rows are cut; None: no cut.

        Raises:
            InputError: a file is missing, or the files do not belong together.
        """
        if max_length is not None and max_length < 2:
            raise InputError(f"a length of {max_length} leaves no room for <s> and </s>")
        path = require_file(Path(folder) / f"{name}.memmap", "preprocess.py writes it")
        meta, dtype = read_meta(Path(folder) / f"{name}_meta")
        rows, width = meta["total_number"], meta["embedding_size"]
        if path.stat().st_size != rows * width * dtype.itemsize:
            raise InputError(
                f"{path}: has {path.stat().st_size} bytes, but {name}_meta says {rows} x {width} {dtype}; "
                f"{PREPROCESS_AGAIN}"
            )
        lengths = _read_lengths(Path(folder) / f"{name}_length.npy", rows, width)
        memmap = np.memmap(path, dtype=dtype, mode="r", shape=(rows, width))
        tokens = cls(path, memmap, lengths, width if max_length is None else max_length, meta)
        if not tokens._ends_fit() or ("lengths" in meta and meta["lengths"] != tokens._lengths_digest):
            raise InputError(f"{path}: {name}_length.npy has the lengths of other texts; {PREPROCESS_AGAIN}")
        if meta.get("empty"):
            tokens.empty = _read_empty(empty_path(Path(folder), name), meta["empty"], rows)
        return tokens

    @cached_property
    def _lengths_digest(self) -> str:
        return digest_lengths(self._full_lengths)

    def _ends_fit(self) -> bool:
        """Return whether sampled rows end where their lengths say: with a token, followed by the padding, 0."""
        rows = spread(len(self), SAMPLE)
        lengths, tokens = self._full_lengths[rows], self._tokens[rows]
        behind = np.arange(tokens.shape[1]) >= lengths[:, None]
        return tokens[np.arange(len(rows)), lengths - 1].all() and not tokens[behind].any()

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray, pad_id: int, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and attention mask of ``rows``, both (B, L) int64.

        Args:
            rows: (B,) positions in the memmap, in any order.
            pad_id: the padding id. The file itself is padded with 0, which is ``<s>``.
            width: L; by default the length of the longest row.

        Raises:
            InputError: an id is not within :attr:`vocabulary`.
        """
        lengths = self.lengths[rows]
        full_lengths = self._full_lengths[rows]
        width = width or int(lengths.max())
        tokens = self._tokens[rows, :width].astype(np.int64)
        if tokens.shape[1] < width:
            tokens = np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
        mask = np.arange(width) < lengths[:, None]
        tokens[~mask] = pad_id
        cut = np.flatnonzero(full_lengths > lengths)
        tokens[cut, lengths[cut] - 1] = self._tokens[rows[cut], full_lengths[cut] - 1]
        if self.vocabulary is not None and not (tokens.min() >= 0 and tokens.max() < self.vocabulary):
            wrong = np.argwhere((tokens < 0) | (tokens >= self.vocabulary))[0]
            raise InputError(
                f"{self.path}, row {rows[wrong[0]]}: has the token id {tokens[tuple(wrong)]}, the model knows 0 to "
                f"{self.vocabulary - 1}; run preprocess.py with the model's own vocabulary"
            )
        return tokens, mask.astype(np.int64)

    def digest(self) -> str:
        """Return a digest that tells this file from others: SHA-256 of all lengths and of a thousand rows."""
        return f"{self._lengths_digest}-{digest_sample(self._tokens)}"

    def digest_first(self, rows: int) -> str:
        """Return what :meth:`digest` returns for a file with the first ``rows`` rows alone."""
        return f"{digest_lengths(self._full_lengths[:rows])}-{digest_sample(self._tokens[:rows])}"


def read_meta(path: Path) -> tuple[dict[str, Any], np.dtype]:
    """Read ``{name}_meta``. Return its content and the type it names. Raises InputError if it is damaged."""
    meta = read_object(path, META_FIELDS, PREPROCESS_AGAIN, OWN_META_FIELDS)
    if _INTEGERS.fullmatch(meta["type"]) is None:
        raise InputError(f"{path}: {meta['type'][:40]!r} is not an integer type of NumPy; {PREPROCESS_AGAIN}")
    COUNT.check(f"{path}: total_number", meta["total_number"])
    LENGTH.check(f"{path}: embedding_size", meta["embedding_size"])
    NATURAL.check(f"{path}: max_token_id", meta.get("max_token_id", 0))
    return meta, np.dtype(meta["type"])


def _read_lengths(path: Path, rows: int, width: int) -> np.ndarray:
    """Read the token count of each row, (rows,)."""
    lengths = read_array(path, PREPROCESS_AGAIN)
    if lengths.shape != (rows,):
        raise InputError(f"{path}: holds {lengths.shape} lengths for {rows} rows; {PREPROCESS_AGAIN}")
    if lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > width:
        raise InputError(f"{path}: holds lengths that are not 1 to {width}; {PREPROCESS_AGAIN}")
    return np.array(lengths)


def empty_path(folder: Path, name: str) -> Path:
    """Return the file of the rows of empty texts, ``{name}_empty.npy``. It exists only if there are any."""
    return folder / f"{name}_empty.npy"


def _read_empty(path: Path, count: int, rows: int) -> np.ndarray:
    """Read the rows of empty texts, (count,) int64 ascending."""
    empty = np.array(read_array(path, PREPROCESS_AGAIN))
    if empty.shape != (count,) or empty.dtype != np.int64 or (np.diff(empty) <= 0).any():
        raise InputError(f"{path}: expected {count} rows in ascending order; {PREPROCESS_AGAIN}")
    if empty[0] < 0 or empty[-1] >= rows:
        raise InputError(f"{path}: names rows that do not exist; {PREPROCESS_AGAIN}")
    return empty


def digest_lengths(lengths: np.ndarray) -> str:
    """Return the SHA-256 of the token counts (rows,). It does not depend on their integer type."""
    return hashlib.sha256(np.ascontiguousarray(lengths, dtype=np.int64).data).hexdigest()
