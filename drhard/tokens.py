"""Token memmaps: the ids of all passages, or of the queries of a split, one row each."""

import hashlib
from pathlib import Path

from drhard.errors import InputError
from drhard.files import existing, read_object

import numpy as np

PASSAGES = "passages"
META_FIELDS = {"type": str, "total_number": int, "embedding_size": int}


def query_name(mode: str) -> str:
    """The name of the token memmap of a split's queries."""
    return f"{mode}-query"


class TokenMemmap:
    """``{name}.memmap`` with its ``{name}_meta`` and ``{name}_length.npy``, as preprocess.py writes them.

    Args:
        folder: a ``preprocess`` folder.
        name: ``passages`` or ``{mode}-query``.
        max_length: a longer row keeps its first ``max_length - 1`` tokens and its last, ``</s>``.

    Raises:
        InputError: a file is missing or they do not fit each other.
    """

    def __init__(self, folder: str | Path, name: str, max_length: int):
        if max_length < 2:
            raise InputError(f"a length of {max_length} leaves no room for <s> and </s>")
        path = existing(Path(folder) / f"{name}.memmap", "preprocess.py writes it")
        meta_path = Path(folder) / f"{name}_meta"
        meta = read_object(meta_path, META_FIELDS, "run preprocess.py again")
        try:
            dtype = np.dtype(meta["type"])
        except TypeError:
            raise InputError(f"{meta_path}: {meta['type']!r} is no type of NumPy; run preprocess.py again") from None
        rows, width = meta["total_number"], meta["embedding_size"]
        if rows < 1 or path.stat().st_size != rows * width * dtype.itemsize:
            raise InputError(
                f"{path}: has {path.stat().st_size} bytes where {meta_path.name} speaks of "
                f"{rows} x {width} {dtype}; run preprocess.py again"
            )
        lengths_path = existing(Path(folder) / f"{name}_length.npy", "preprocess.py writes it")
        try:
            lengths = np.load(lengths_path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{lengths_path}: not a NumPy file ({error})") from None
        if lengths.shape != (rows,):
            raise InputError(f"{lengths_path}: holds {lengths.shape} lengths for {rows} rows")
        if lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > width:
            raise InputError(f"{lengths_path}: holds lengths that are not 1 to {width}; run preprocess.py again")
        self.path = path
        self.vocabulary: int | None = None  # ids at or beyond it are refused; check_tokens sets it
        self.name = name
        self.max_length = max_length
        self.lengths: np.ndarray = np.minimum(lengths, max_length)  # (rows,) tokens as they are read
        self._full_lengths = lengths
        self._tokens = np.memmap(path, dtype=dtype, mode="r", shape=(rows, width))

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray, pad_id: int, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and attention mask of ``rows``, both (B, L) int64.

        Args:
            rows: (B,) positions in the memmap, in any order.
            pad_id: what stands behind the tokens (the file itself is padded with 0, which is ``<s>``).
            width: L; the longest of the rows if None.

        Raises:
            InputError: an id is none of the model's that reads them (:func:`drhard.encoder.check_tokens`).
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
        """Tell this source from others: SHA-256 over all lengths and a thousand rows spread over the file."""
        lengths = hashlib.sha256(np.ascontiguousarray(self._full_lengths, dtype=np.int64)).hexdigest()
        return f"{lengths}-{sample_digest(self._tokens)}"


def sample_digest(array: np.ndarray) -> str:
    """SHA-256 over a thousand rows spread over ``array`` (rows, width), to tell large files apart at once.

    Integers of all types give the same.
    """
    sample = np.linspace(0, len(array) - 1, min(len(array), 1000)).astype(np.int64)
    rows = array[sample].astype(np.int64 if array.dtype.kind in "iu" else array.dtype)
    return hashlib.sha256(rows).hexdigest()
