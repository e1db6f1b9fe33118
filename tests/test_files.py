"""Files that appear whole or not at all; pickles that cannot run code."""

import os
import pickle
from pathlib import Path

from drhard.errors import InputError
from drhard.files import (
    decode_line,
    existing,
    partial,
    read_int_dict,
    read_json,
    text_lines,
    whole,
    write_int_dict,
    write_json,
)

import numpy as np
import pytest


def test_whole_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with whole(target) as path:
        path.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    assert os.listdir(target.parent) == ["file.txt"]


def test_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with whole(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_left_over_of_a_killed_run_is_no_obstacle(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    partial(target).write_text("a longer text, half written")
    with whole(target) as path:
        path.write_text("new")
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    write_json(path, {"a": [1, "é"]})
    assert read_json(path) == {"a": [1, "é"]}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="content.json: not a JSON file"):
        read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(InputError, match="content.json: not a JSON file"):
        read_json(path)
    with pytest.raises(InputError, match="none.json: no such file"):
        read_json(tmp_path / "none.json")


def test_existing_gives_the_hint(tmp_path: Path) -> None:
    assert existing(tmp_path) == tmp_path
    with pytest.raises(InputError, match="gone: no such file or folder; make it first"):
        existing(tmp_path / "gone", "make it first")


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 25_001])
def test_int_dict_is_an_ordinary_pickle(tmp_path: Path, count: int) -> None:
    keys = np.random.default_rng(0).permutation(2**20)[:count]
    if count:
        keys[0] = 2**31 - 1
    path = tmp_path / "pid2offset.pickle"
    write_int_dict(path, keys)
    expected = {int(key): row for row, key in enumerate(keys)}
    content = pickle.loads(path.read_bytes())  # as the published scripts read it
    assert content == expected
    assert list(content) == list(expected)
    assert read_int_dict(path) == expected


@pytest.mark.parametrize(
    "kind, protocol",
    [
        *((int, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        *((kind, protocol) for kind in (np.int32, np.int64) for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_pickles_from_elsewhere_are_read(tmp_path: Path, kind: type, protocol: int) -> None:
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(pickle.dumps({kind(7): kind(0), kind(2**31 - 1): kind(1)}, protocol=protocol))
    assert read_int_dict(path) == {7: 0, 2**31 - 1: 1}


def test_pickles_of_older_numpy_are_read(tmp_path: Path) -> None:
    """NumPy before 2.0 named the module of its scalars numpy.core."""
    content = pickle.dumps({np.int64(7): np.int64(0)}, protocol=3)
    assert b"numpy._core.multiarray" in content
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_int_dict(path) == {7: 0}


class Command:
    """Pickled, it is a command that runs when it is read."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_cannot_run_code(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(pickle.dumps({1: Command(f"touch '{trace}'")}, protocol=protocol))
    with pytest.raises(InputError, match=r"pid2offset\.pickle: .*system"):
        read_int_dict(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps({1: 2, 3: 4})[:-4],
        pickle.dumps([1, 2]),
        pickle.dumps({"1": 2}),
        pickle.dumps({1: "2"}),
        pickle.dumps({1: [2]}),
        pickle.dumps({1.5: 2}),
        pickle.dumps({1: None}),
        pickle.dumps({Path("a"): 1}),
    ],
    ids=[
        "empty", "text", "cut off", "a list", "text to int", "int to text", "int to list", "float to int",
        "int to nothing", "path to int",
    ],
)  # fmt: skip
def test_other_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pid2offset\.pickle: not a pickled dict of integers") as error:
        read_int_dict(path)
    assert "\n" not in str(error.value)


def test_missing_pickle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pid2offset\.pickle: no such file.*preprocess\.py"):
        read_int_dict(tmp_path / "pid2offset.pickle")


def test_text_lines_count_from_one_and_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "lines.tsv"
    # U+0085 and U+2028 end a line for str.splitlines, not in these files.
    path.write_bytes("a\tb\r\nc\u0085d\u2028e\n\nlast".encode())
    assert list(text_lines(path)) == [(1, "a\tb"), (2, "c\u0085d\u2028e"), (3, ""), (4, "last")]


def test_invalid_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.tsv"
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"lines\.tsv, line 2: not UTF-8"):
        list(text_lines(path))
    with pytest.raises(InputError, match="x, line 7: not UTF-8"):
        decode_line(b"\xc3", "x", 7)


def test_text_lines_of_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tsv", tmp_path):  # a folder is no text file
        with pytest.raises(InputError, match=path.name):
            list(text_lines(path))
