"""Token memmaps: rows cut and padded, damaged files refused."""

import json
from pathlib import Path

from drhard.errors import InputError
from drhard.tokens import PASSAGES, TokenMemmap, query_name

import numpy as np
import pytest
from helpers import open_tokens, random_sequences, write_tokens

PAD = 1


def plain_row(sequence: list[int], length: int) -> list[int]:
    """A sequence longer than L keeps its first L-1 tokens and its last."""
    return sequence if len(sequence) <= length else [*sequence[: length - 1], sequence[-1]]


@pytest.mark.parametrize("length", [2, 3, 7, 12, 20])
@pytest.mark.parametrize("width", [None, 12, 25])
def test_rows_are_cut_and_padded(tmp_path: Path, length: int, width: int | None) -> None:
    sequences = random_sequences(30, 12, seed=length)
    tokens = open_tokens(tmp_path, sequences, 12, length)
    rows = np.array([5, 0, 29, 5, 17])
    ids, mask = tokens.batch(rows, PAD, width and max(width, length))
    cut = [plain_row(sequences[row], length) for row in rows]
    assert ids.dtype == mask.dtype == np.int64
    assert ids.shape[1] == (max(width, length) if width else max(map(len, cut)))
    for sequence, row_ids, row_mask in zip(cut, ids.tolist(), mask.tolist(), strict=True):
        assert row_ids == sequence + [PAD] * (len(row_ids) - len(sequence))
        assert row_mask == [1] * len(sequence) + [0] * (len(row_ids) - len(sequence))
    assert tokens.lengths.tolist() == [min(len(sequence), length) for sequence in sequences]
    assert len(tokens) == 30


def test_a_token_0_in_a_row_is_no_padding(tmp_path: Path) -> None:
    """<s> is 0, as the padding of the file is; the lengths tell them apart."""
    tokens = open_tokens(tmp_path, [[0, 0, 2], [0, 9, 9, 9, 2]], 6)
    ids, mask = tokens.batch(np.array([0, 1]), PAD)
    assert ids.tolist() == [[0, 0, 2, 1, 1], [0, 9, 9, 9, 2]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int64"])
def test_meta_names_the_type(tmp_path: Path, dtype: str) -> None:
    sequences = random_sequences(5, 8, seed=0)
    write_tokens(tmp_path, PASSAGES, sequences, 8, dtype)
    ids, _ = TokenMemmap(tmp_path, PASSAGES, 8).batch(np.arange(5), PAD)
    assert [row[: len(sequence)].tolist() for row, sequence in zip(ids, sequences, strict=True)] == sequences


def test_digest_tells_texts_apart_but_not_types(tmp_path: Path) -> None:
    sequences = random_sequences(40, 8, seed=0)
    other = [list(sequence) for sequence in sequences]
    other[39][1] += 1
    shorter = [*sequences[:39], [*sequences[39][:-1]]]
    digests = [
        open_tokens(tmp_path / str(number), rows, 8).digest() for number, rows in enumerate((sequences, other, shorter))
    ]
    assert len(set(digests)) == 3
    wider = TokenMemmap(write_tokens(tmp_path / "int64", PASSAGES, sequences, 8, "int64"), PASSAGES, 8)
    assert wider.digest() == digests[0]


def test_name_of_queries() -> None:
    assert query_name("dev") == "dev-query"


def damaged(folder: Path, what: str) -> None:
    if what == "short":
        (folder / "passages.memmap").write_bytes(b"\0" * 7)
    elif what == "no memmap":
        (folder / "passages.memmap").unlink()
    elif what == "no meta":
        (folder / "passages_meta").unlink()
    elif what == "meta not JSON":
        (folder / "passages_meta").write_text("{'type'")
    elif what == "meta a list":
        (folder / "passages_meta").write_text("[]")
    elif what == "meta without type":
        (folder / "passages_meta").write_text(json.dumps({"total_number": 5, "embedding_size": 8}))
    elif what == "meta with an unknown type":
        (folder / "passages_meta").write_text(json.dumps({"type": "int33", "total_number": 5, "embedding_size": 8}))
    elif what == "no lengths":
        (folder / "passages_length.npy").unlink()
    elif what == "lengths of other rows":
        np.save(folder / "passages_length.npy", np.full(4, 3))
    elif what == "lengths cut off":
        path = folder / "passages_length.npy"
        path.write_bytes(path.read_bytes()[:-9])
    elif what == "lengths empty":
        (folder / "passages_length.npy").write_bytes(b"")
    elif what == "lengths beyond the width":
        np.save(folder / "passages_length.npy", np.array([3, 3, 9, 3, 3]))
    elif what == "a length of zero":
        np.save(folder / "passages_length.npy", np.array([3, 3, 0, 3, 3]))
    elif what == "lengths pickled":
        np.save(folder / "passages_length.npy", np.array([{}, [], None, 1, 2], dtype=object))
    else:
        raise ValueError(what)


@pytest.mark.parametrize(
    "what, file",
    [
        ("short", "passages.memmap"),
        ("no memmap", "passages.memmap"),
        ("no meta", "passages_meta"),
        ("meta not JSON", "passages_meta"),
        ("meta a list", "passages_meta"),
        ("meta without type", "passages_meta"),
        ("meta with an unknown type", "passages_meta"),
        ("no lengths", "passages_length.npy"),
        ("lengths of other rows", "passages_length.npy"),
        ("lengths cut off", "passages_length.npy"),
        ("lengths empty", "passages_length.npy"),
        ("lengths beyond the width", "passages_length.npy"),
        ("a length of zero", "passages_length.npy"),
        ("lengths pickled", "passages_length.npy"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, what: str, file: str) -> None:
    write_tokens(tmp_path, PASSAGES, random_sequences(5, 8, seed=0), 8)
    TokenMemmap(tmp_path, PASSAGES, 8)
    damaged(tmp_path, what)
    with pytest.raises(InputError, match=file.replace(".", r"\.")) as error:
        TokenMemmap(tmp_path, PASSAGES, 8)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_length_must_hold_both_ends(tmp_path: Path) -> None:
    write_tokens(tmp_path, PASSAGES, [[0, 5, 2]], 8)
    with pytest.raises(InputError, match="length of 1"):
        TokenMemmap(tmp_path, PASSAGES, 1)
