"""Token memmaps: rows cut and padded, damaged files refused."""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from drhard.collection import Collection
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


def test_without_a_length_nothing_is_cut(tmp_path: Path) -> None:
    sequences = random_sequences(30, 12, seed=0)
    passages = Collection(write_tokens(tmp_path, PASSAGES, sequences, 12)).passages
    ids, mask = passages.batch(np.arange(30), PAD)
    assert [row[row_mask == 1].tolist() for row, row_mask in zip(ids, mask, strict=True)] == sequences
    assert passages.max_length == 12


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


META, MEMMAP, LENGTHS = "passages_meta", "passages.memmap", "passages_length.npy"
OTHER_TEXTS = f"{LENGTHS} has the lengths of other texts"
Damage = Callable[[Path], object]


def lengths(*values: object, dtype: type | None = None) -> Damage:
    """Other lengths in their file."""
    return lambda folder: np.save(folder / LENGTHS, np.array(values, dtype=dtype))


def change_a_length(by: int) -> Damage:
    return lambda folder: np.save(folder / LENGTHS, np.load(folder / LENGTHS) + by * (np.arange(5) == 2))


def meta(**values: object) -> Damage:
    """Other values in the meta."""
    usual = {"type": "int32", "total_number": 5, "embedding_size": 8}
    return lambda folder: (folder / META).write_text(json.dumps(usual | values))


def put_an_archive(folder: Path) -> None:
    np.savez(folder / "lengths.npz", np.full(5, 3))
    (folder / "lengths.npz").rename(folder / LENGTHS)


def put_a_folder(folder: Path) -> None:
    (folder / LENGTHS).unlink()
    (folder / LENGTHS).mkdir()


def put_other_tokens(folder: Path) -> None:
    write_tokens(folder / "other", PASSAGES, random_sequences(5, 8, seed=9), 8)
    (folder / "other" / MEMMAP).rename(folder / MEMMAP)


def name_a_length_beyond_number(folder: Path) -> None:
    content = (folder / LENGTHS).read_bytes()
    (folder / LENGTHS).write_bytes(content.replace(b"(5,), }                ", b"(1000000000000000,), } "))


DAMAGES: dict[str, tuple[Damage, str]] = {  # what is done to the files, and what the sentence names
    "short": (lambda folder: (folder / MEMMAP).write_bytes(b"\0" * 7), MEMMAP),
    "no memmap": (lambda folder: (folder / MEMMAP).unlink(), MEMMAP),
    "no meta": (lambda folder: (folder / META).unlink(), META),
    "meta not JSON": (lambda folder: (folder / META).write_text("{'type'"), META),
    "meta a list": (lambda folder: (folder / META).write_text("[]"), META),
    "meta without type": (
        lambda folder: (folder / META).write_text('{"total_number": 5, "embedding_size": 8}'),
        META,
    ),
    "an unknown type": (meta(type="int33"), META),
    "floats": (meta(type="float32"), META),
    "objects": (meta(type="object"), META),
    "pairs": (meta(type="(2,)i4"), META),
    "records": (meta(type="i4,i4"), META),
    "long strings": (meta(type="S40000000000"), META),
    "booleans": (meta(type="bool"), META),
    "type empty": (meta(type=""), META),
    "infinitely many": (meta(total_number=float("inf")), META),
    "none": (meta(total_number=0), META),
    "less than none": (meta(total_number=-5, embedding_size=-8), META),
    "too many": (meta(total_number=10**24), META),
    "number a boolean": (meta(total_number=True), META),
    "no width": (meta(embedding_size=0), META),
    "another shape": (meta(embedding_size=1, total_number=40), META),
    "width a float": (meta(embedding_size=8.0), META),
    "tokenizer a number": (meta(tokenizer=5), META),
    "a negative id": (meta(max_token_id=-1), META),
    "an id as text": (meta(max_token_id="5"), META),
    "no lengths": (lambda folder: (folder / LENGTHS).unlink(), LENGTHS),
    "lengths of other rows": (lengths(3, 3, 3, 3), LENGTHS),
    "lengths cut off": (lambda folder: os.truncate(folder / LENGTHS, (folder / LENGTHS).stat().st_size - 9), LENGTHS),
    "lengths empty": (lambda folder: (folder / LENGTHS).write_bytes(b""), LENGTHS),
    "lengths beyond the width": (lengths(3, 3, 9, 3, 3), LENGTHS),
    "a length of zero": (lengths(3, 3, 0, 3, 3), LENGTHS),
    "lengths pickled": (lengths({}, [], None, 1, 2, dtype=object), LENGTHS),
    "lengths beyond number": (name_a_length_beyond_number, LENGTHS),
    "lengths in an archive": (put_an_archive, LENGTHS),
    "lengths a folder": (put_a_folder, LENGTHS),
    "lengths that are not whole": (lengths(3.0, 3.0, 3.0, 3.0, 3.0), LENGTHS),
    "lengths in a square": (lengths([3], [3], [3], [3], [3]), LENGTHS),
    "one length more": (change_a_length(1), OTHER_TEXTS),
    "one length less": (change_a_length(-1), OTHER_TEXTS),
    "tokens of other texts": (put_other_tokens, OTHER_TEXTS),
    "lengths of other texts, says the meta": (meta(lengths="of other texts"), OTHER_TEXTS),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_files_are_refused(tmp_path: Path, what: str) -> None:
    damage, named = DAMAGES[what]
    write_tokens(tmp_path, PASSAGES, random_sequences(5, 8, seed=0), 8)
    TokenMemmap.open(tmp_path, PASSAGES, 8)
    damage(tmp_path)
    with pytest.raises(InputError, match=re.escape(named)) as error:
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
