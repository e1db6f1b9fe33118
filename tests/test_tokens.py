"""Token memmaps: rows cut and padded, damaged files refused."""

import json
from contextlib import suppress
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
    ids, _ = TokenMemmap.open(tmp_path, PASSAGES, 8).batch(np.arange(5), PAD)
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
    wider = TokenMemmap.open(write_tokens(tmp_path / "int64", PASSAGES, sequences, 8, "int64"), PASSAGES, 8)
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
    elif what == "lengths beyond number":
        path = folder / "passages_length.npy"
        path.write_bytes(path.read_bytes().replace(b"(5,), }                ", b"(1000000000000000,), } "))
    elif what == "lengths in an archive":
        np.savez(folder / "lengths.npz", np.full(5, 3))
        (folder / "lengths.npz").rename(folder / "passages_length.npy")
    elif what == "lengths a folder":
        (folder / "passages_length.npy").unlink()
        (folder / "passages_length.npy").mkdir()
    elif what == "lengths that are not whole":
        np.save(folder / "passages_length.npy", np.full(5, 3.0))
    elif what == "lengths in a square":
        np.save(folder / "passages_length.npy", np.full((5, 1), 3))
    elif what == "one length more":
        lengths = np.load(folder / "passages_length.npy")
        np.save(folder / "passages_length.npy", lengths + (np.arange(5) == 2))
    elif what == "one length less":
        lengths = np.load(folder / "passages_length.npy")
        np.save(folder / "passages_length.npy", lengths - (np.arange(5) == 2))
    elif what == "tokens of other texts":
        write_tokens(folder / "other", PASSAGES, random_sequences(5, 8, seed=9), 8)
        (folder / "other" / "passages.memmap").rename(folder / "passages.memmap")
    elif what.startswith("meta "):
        meta = {"type": "int32", "total_number": 5, "embedding_size": 8}
        meta |= json.loads(what.removeprefix("meta "))
        (folder / "passages_meta").write_text(json.dumps(meta))
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
        ("lengths beyond number", "passages_length.npy"),
        ("lengths in an archive", "passages_length.npy"),
        ("lengths a folder", "passages_length.npy"),
        ("lengths that are not whole", "passages_length.npy"),
        ("lengths in a square", "passages_length.npy"),
        ("one length more", "passages_length.npy has the lengths of other texts"),
        ("one length less", "passages_length.npy has the lengths of other texts"),
        ("tokens of other texts", "passages_length.npy has the lengths of other texts"),
        ('meta {"type": "float32"}', "passages_meta"),
        ('meta {"type": "object"}', "passages_meta"),
        ('meta {"type": "(2,)i4"}', "passages_meta"),
        ('meta {"type": "i4,i4"}', "passages_meta"),
        ('meta {"type": "S40000000000"}', "passages_meta"),
        ('meta {"type": "bool"}', "passages_meta"),
        ('meta {"type": ""}', "passages_meta"),
        ('meta {"total_number": 1e400}', "passages_meta"),
        ('meta {"total_number": 0}', "passages_meta"),
        ('meta {"total_number": -5, "embedding_size": -8}', "passages_meta"),
        ('meta {"total_number": 1000000000000000000000000}', "passages_meta"),
        ('meta {"total_number": true}', "passages_meta"),
        ('meta {"embedding_size": 0}', "passages_meta"),
        ('meta {"embedding_size": 1, "total_number": 40}', "passages_meta"),
        ('meta {"embedding_size": 8.0}', "passages_meta"),
        ('meta {"tokenizer": 5}', "passages_meta"),
        ('meta {"max_token_id": -1}', "passages_meta"),
        ('meta {"max_token_id": "5"}', "passages_meta"),
        ('meta {"lengths": "of other texts"}', "passages_length.npy has the lengths of other texts"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, what: str, file: str) -> None:
    write_tokens(tmp_path, PASSAGES, random_sequences(5, 8, seed=0), 8)
    TokenMemmap.open(tmp_path, PASSAGES, 8)
    damaged(tmp_path, what)
    with pytest.raises(InputError, match=file.replace(".", r"\.")) as error:
        TokenMemmap.open(tmp_path, PASSAGES, 8)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_length_must_hold_both_ends(tmp_path: Path) -> None:
    write_tokens(tmp_path, PASSAGES, [[0, 5, 2]], 8)
    with pytest.raises(InputError, match="length of 1"):
        TokenMemmap.open(tmp_path, PASSAGES, 1)


def test_mutated_lengths_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever the header says, nothing is taken from memory that the file does not have."""
    write_tokens(tmp_path, PASSAGES, random_sequences(5, 8, seed=0), 8)
    path, random = tmp_path / "passages_length.npy", np.random.default_rng(0)
    whole = path.read_bytes()
    pieces = [b"9" * 20, b"(", b")", b"'", b"{", b"O", b"-", b"\0", b"\n", b"\xff", b"#", b"0x", b"[" * 50]
    for _ in range(500):
        changed = bytearray(whole)
        place = random.integers(len(changed))
        changed[place : place + random.integers(3)] = pieces[random.integers(len(pieces))]
        path.write_bytes(changed)
        with suppress(InputError):
            TokenMemmap.open(tmp_path, PASSAGES, 8)


def test_folders_of_others_say_less(tmp_path: Path) -> None:
    tokens = open_tokens(tmp_path, [[0, 5, 2]], 8)
    assert (tokens.tokenizer, tokens.max_token_id, tokens.vocabulary) == (None, None, None)


def test_an_id_beyond_the_vocabulary_is_found_when_it_is_read(tmp_path: Path) -> None:
    tokens = open_tokens(tmp_path, [[0, 5, 2], [0, 5, 300, 2], [0, 299, 2], [0, 5, 6, 301, 2]], 8, length=3)
    ids, _ = tokens.batch(np.arange(4), PAD)  # nothing is known about the reader
    assert ids.max() == 299
    tokens.vocabulary = 300
    tokens.batch(np.arange(4), PAD)  # what is cut off does not matter
    tokens.vocabulary = 299
    tokens.batch(np.array([3, 0]), PAD)
    with pytest.raises(InputError, match=r"passages\.memmap, row 2: has the token id 299, the model knows 0 to 298"):
        tokens.batch(np.array([3, 2]), PAD)


def test_a_negative_id_is_found_too(tmp_path: Path) -> None:
    tokens = open_tokens(tmp_path, [[0, -5, 2]], 8)
    tokens.vocabulary = 300
    with pytest.raises(InputError, match="row 0: has the token id -5"):
        tokens.batch(np.array([0]), PAD)
