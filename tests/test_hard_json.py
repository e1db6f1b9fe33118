"""hard.json: written, read in parts, refused."""

import json
from pathlib import Path

from drhard.errors import InputError
from drhard.hard_json import read_hard_negatives, write_hard_negatives
from drhard.negatives import HardNegatives

import numpy as np
import pytest

GOOD = {0: [4, 2, 11], 7: [0], 8: [], 3: [10, 9, 123]}


def as_lists(hard: HardNegatives) -> dict[int, list[int]]:
    return {query: rows.tolist() for query, rows in hard.items()}


def write(folder: Path, content: object) -> Path:
    path = folder / "hard.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_published_form_is_written(tmp_path: Path) -> None:
    rows = np.array([7, 8, 6], dtype=np.int32)
    write_hard_negatives(tmp_path / "hard.json", HardNegatives(np.arange(3), np.array([2, 2, 3]), rows))
    assert (tmp_path / "hard.json").read_text() == '{"0": [7, 8], "1": [], "2": [6]}'
    write_hard_negatives(tmp_path / "hard.json", HardNegatives(rows[:0], rows[:0], rows[:0]))
    assert (tmp_path / "hard.json").read_text() == "{}"


@pytest.mark.parametrize("read_bytes", [16, 17, 29, 1000])
@pytest.mark.parametrize("form", [{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" ,\t", "\r\n : ")}])
def test_it_is_read_in_parts_of_any_size(tmp_path: Path, form: dict, read_bytes: int) -> None:
    for before, after in (("", ""), ("\ufeff", ""), (" \n", "\n\n")):
        path = write(tmp_path, before + json.dumps(GOOD, **form) + after)
        hard = read_hard_negatives(path, [0, 7], 200, read_bytes)
        assert as_lists(hard) == GOOD
        assert list(hard) == list(GOOD)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 30, 500)
    rows = random.integers(0, 2**31 - 1, counts.sum(), dtype=np.int32)
    hard = HardNegatives(random.permutation(500), np.cumsum(counts), rows)
    write_hard_negatives(tmp_path / "hard.json", hard)
    assert as_lists(read_hard_negatives(tmp_path / "hard.json", range(500), 2**31 - 1, 4096)) == as_lists(hard)


BAD: dict[str, tuple[object, str]] = {
    "mined for other queries": ({"1": [2]}, "no hard negative for query 0; was it mined with --mode train"),
    "no negative": ({"0": []}, "no query has a hard negative"),
    "a document beyond": ({"0": [5]}, "query 0 names document '5', but there are only 5"),
    "a negative number": ({"0": [1], "3": [-1]}, "query 3 names document '-1', but there are only 5"),
    "beyond int64": ({"0": [10**25]}, "query 0 names document '10000.*but there are only 5"),
    "a list": ([[1, 2]], "expected {"),
    "a number for a list": ({"0": 3}, "query 0 has '3'; expected {"),
    "null": ({"0": [1], "2": [None]}, r"query 2 has '\[null\]'; expected {"),
    "true": ({"0": [True]}, r"query 0 has '\[true\]'; expected {"),
    "a list in a list": ({"0": [[1]]}, r"query 0 has '\[\[1\]\]'; expected {"),
    "an object": ({"0": [{"1": 2}]}, "query 0 has .*; expected {"),
    "a word for a query": ({"zero": [1]}, "'zero' is not a query row; expected {"),
    "a float for a query": ({"0.0": [1]}, "'0.0' is not a query row; expected {"),
    "a great query": ({"0": [1], str(2**31): [1]}, "'2147483648' is not a query row; expected {"),
    "a text for a list": ({"0": "123"}, "query 0 has .*; expected {"),
    "texts in a list": ({"0": ["1"]}, "query 0 has .*; expected {"),
    "a float": ({"0": [1.0]}, r"query 0 has '\[1.0\]'; expected {"),
    "an exponent": ('{"0": [1e0]}', "query 0 has .*; expected {"),
    "cut off in a list": ('{"0": [1], "2": [1, 2', "not a JSON file .*cut off"),
    "cut off behind a list": ('{"0": [1], "2": [1, 2]', "not a JSON file .*cut off"),
    "nothing": ("", "not a JSON file .*empty"),
    "blanks": (" \n", "not a JSON file .*empty"),
    "a query twice": ('{"0": [1], "2": [1], "0": [2]}', "names query 0 twice"),
    "a query twice, spelled otherwise": ('{"0": [1], "00": [2]}', "'00' is not a query row"),
    "a number of 5,000 digits": (f'{{"0": [1], "2": [{"1" * 5000}]}}', "not a JSON file after query 0"),
    "a zero in front": ('{"0": [01]}', "not a JSON file"),
    "a blank in a number": ('{"0": [1 2]}', "not a JSON file"),
    "a blank in a number, a comma too many": ('{"0": [1 2,,3]}', "not a JSON file"),
    "a blank in a query": ('{"0 1": [1]}', "'0 1' is not a query row"),
    "a comma at the end of a list": ('{"0": [1,]}', "not a JSON file"),
    "a comma at the end": ('{"0": [1],}', "not a JSON file"),
    "no comma": ('{"0": [1] "1": [1]}', "not a JSON file"),
    "two commas": ('{"0": [1],, "1": [1]}', "not a JSON file"),
    "two colons": ('{"0":: [1]}', "not a JSON file"),
    "two objects": ('{"0": [1]}{"1": [1]}', "not a JSON file"),
    "a number behind a list": ('{"0": [1]2, "1": [1]}', "not a JSON file"),
    "a number in front of a query": ('{2"0": [1]}', "not a JSON file"),
    "an empty query": ('{"": [1]}', "'' is not a query row"),
    "too deep": ('{"0": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deep"),
    "other bytes": (b'{"0": [1], "\xff": [1]}', "not a JSON file"),
    "UTF-16": ('{"0": [1]}'.encode("utf-16"), "expected {"),
}


@pytest.mark.parametrize("read_bytes", [16, 1 << 20])
@pytest.mark.parametrize("case", BAD)
def test_what_is_not_hard_json_is_refused(tmp_path: Path, case: str, read_bytes: int) -> None:
    content, complaint = BAD[case]
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=complaint if read_bytes > 16 else None) as error:
        read_hard_negatives(path, [0], 5, read_bytes)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 250


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hard.json: no such file"):
        read_hard_negatives(tmp_path / "hard.json", [0], 5)
    with pytest.raises(InputError, match="is a folder"):
        read_hard_negatives(tmp_path, [0], 5)


def strictly(content: bytes) -> dict[int, list[int]] | None:
    """What json.loads makes of ``content``; None if that is not what it should be."""
    if b"-" in content:  # -0 too
        return None
    try:
        pairs = json.loads(content.decode("utf-8-sig"), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple) or len({query for query, _ in pairs}) < len(pairs):
        return None
    for query, rows in pairs:
        if not (query.isascii() and query.isdigit() and str(int(query)) == query and int(query) < 2**31):
            return None
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < 200 for row in rows):
            return None
    return {int(query): rows for query, rows in pairs}


def test_mutated_files_are_read_as_json_has_them_or_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    good = json.dumps(GOOD).encode()
    alphabet = np.frombuffer(b'0123456789-.e,:[]{}" \ntru', dtype=np.uint8)
    accepted = 0
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(random.integers(1, 4)):
            place, what = random.integers(len(content)), int(random.choice(alphabet))
            change = random.integers(3)
            if change == 0:
                content[place] = what
            elif change == 1:
                content.insert(place, what)
            else:
                del content[place]
        path = write(tmp_path, bytes(content))
        expected = strictly(bytes(content))
        try:
            found = as_lists(read_hard_negatives(path, [0], 200, int(random.integers(8, 80))))
        except InputError:
            assert expected is None or not expected.get(0), bytes(content)
            continue
        assert found == expected, bytes(content)
        accepted += 1
    assert accepted > 100
