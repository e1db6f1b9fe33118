"""Files that appear whole or not at all; pickles that cannot run code."""

import errno
import os
import pickle
import re
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import (
    LOCK_FILE,
    DiskFault,
    claim,
    decode_line,
    disk_faults,
    partial_path,
    read_lines,
    read_object,
    require_file,
    sole_writer,
    write_json,
    write_whole,
    write_whole_file,
    write_whole_folder,
    write_whole_text,
)
from drhard.ids import LARGEST_ID, read_ids, write_ids

import numpy as np
import pytest
from helpers import run_python, run_script, the_error


def test_whole_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with write_whole(target) as path:
        path.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    assert os.listdir(target.parent) == ["file.txt"]


def test_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with write_whole(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_left_over_of_a_killed_run_is_no_obstacle(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    partial_path(target).write_text("a longer text, half written")
    with write_whole(target) as path:
        path.write_text("new")
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    write_json(path, {"a": [1, "é"]})
    assert read_object(path, {}) == {"a": [1, "é"]}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="content.json: not a JSON file"):
        read_object(path, {})
    path.write_bytes(b'"\xff"')
    with pytest.raises(InputError, match="content.json: not a JSON file"):
        read_object(path, {})
    with pytest.raises(InputError, match="none.json: no such file"):
        read_object(tmp_path / "none.json", {})


def test_existing_gives_the_hint(tmp_path: Path) -> None:
    assert require_file(tmp_path) == tmp_path
    with pytest.raises(InputError, match="gone: no such file or folder; make it first"):
        require_file(tmp_path / "gone", "make it first")


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 25_001])
def test_int_dict_is_an_ordinary_pickle(tmp_path: Path, count: int) -> None:
    keys = np.random.default_rng(0).permutation(2**20)[:count]
    if count:
        keys[0] = 2**31 - 1
    path = tmp_path / "pid2offset.pickle"
    write_ids(path, keys)
    expected = {int(key): row for row, key in enumerate(keys)}
    content = pickle.loads(path.read_bytes())  # as the published scripts read it
    assert content == expected
    assert list(content) == list(expected)
    assert read_ids(path).tolist() == keys.tolist()


@pytest.mark.parametrize(
    "kind, protocol",
    [
        *((int, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        *((kind, protocol) for kind in (np.int32, np.int64) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_pickles_from_elsewhere_are_read(tmp_path: Path, kind: type, protocol: int) -> None:
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(pickle.dumps({kind(7): kind(0), kind(2**31 - 1): kind(1)}, protocol=protocol))
    assert read_ids(path).tolist() == [7, LARGEST_ID]


def test_pickles_of_older_numpy_are_read(tmp_path: Path) -> None:
    """NumPy before 2.0 named the module of its scalars numpy.core."""
    content = pickle.dumps({np.int64(7): np.int64(0)}, protocol=3)
    assert b"numpy._core.multiarray" in content
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_ids(path).tolist() == [7]


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
        read_ids(path)
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
        pickle.dumps({True: 0}),
        pickle.dumps({np.float64(1): 0}),
        pickle.dumps({2**70: 0}),
        pickle.dumps({7: 0, 8: 0}),
        pickle.dumps({7: 0, 8: 2}),
        pickle.dumps({7: 1, 8: 2}),
        pickle.dumps({7: -1, 8: 0}),
        pickle.dumps({-7: 0}),
        pickle.dumps({LARGEST_ID + 1: 0}),
        b"\x80\x03}(J\7\0\0\0J\0\0\0\0J\7\0\0\0J\1\0\0\0u.",
    ],
    ids=[
        "empty",
        "text",
        "cut off",
        "a list",
        "text to int",
        "int to text",
        "int to list",
        "float to int",
        "int to nothing",
        "path to int",
        "true",
        "NumPy's float",
        "70 bits",
        "a row twice",
        "a row left out",
        "rows from 1",
        "a negative row",
        "a negative id",
        "an id beyond int32",
        "an id twice",
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pid2offset\.pickle: not a pickled dict of id -> row") as error:
        read_ids(path)
    assert "\n" not in str(error.value)


def bits_cleared() -> bytes:
    """A pickle whose dtype comes back with cleared flags: NumPy's own machinery takes its 8 bytes for a pointer."""
    content = pickle.dumps({np.int64(7): np.int64(0)}, protocol=3)
    return content.replace(b"X\x02\0\0\0i8", b"X\x02\0\0\0O8")


BOMBS = {
    "a place far away to remember": b"}r\xff\xff\xff\x7f.",
    "bytes of a terabyte": b"\x80\x04\x8e\0\0\0\0\0\1\0\0.",
    "bytes that can change, of a terabyte": b"\x80\x05\x96\0\0\0\0\0\1\0\0.",
    "a text of a terabyte": b"\x80\x04\x8d\0\0\0\0\0\1\0\0.",
    "an integer of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a frame of a terabyte": b"\x80\x04\x95\0\0\0\0\0\1\0\0}.",
    "an object taken for a pointer": bits_cleared(),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_few_bytes_take_no_memory(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "pid2offset.pickle"
    path.write_bytes(BOMBS[bomb])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"pid2offset\.pickle: not a pickled dict of id -> row"):
            read_ids(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_mutated_pickles_give_a_table_or_a_sentence() -> None:
    """FUZZ=100000 tries as many. In a process of its own, whose memory is limited and which may crash."""
    result = run_script("tests/fuzz_ids.py", os.environ.get("FUZZ", "5000"))
    assert result.returncode == 0, result.stderr


def test_missing_pickle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pid2offset\.pickle: no such file.*preprocess\.py"):
        read_ids(tmp_path / "pid2offset.pickle")


def test_text_lines_count_from_one_and_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "lines.tsv"
    # U+0085 and U+2028 end a line for str.splitlines, not in these files.
    path.write_bytes("a\tb\r\nc\u0085d\u2028e\n\nlast".encode())
    assert list(read_lines(path)) == [(1, "a\tb"), (2, "c\u0085d\u2028e"), (3, ""), (4, "last")]


def test_invalid_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.tsv"
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"lines\.tsv, line 2: not UTF-8"):
        list(read_lines(path))
    with pytest.raises(InputError, match="x, line 7: not UTF-8"):
        decode_line(b"\xc3", "x", 7)


def test_text_lines_of_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tsv", tmp_path):  # a folder is no text file
        with pytest.raises(InputError, match=path.name):
            list(read_lines(path))


def test_a_file_has_one_writer_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with write_whole(target) as path:
        path.write_text("first")
        with (
            pytest.raises(InputError, match=r"file\.txt: another process is writing it; wait for it"),
            write_whole(target),
        ):
            pass
        assert path.read_text() == "first"
    assert target.read_text() == "first"
    with write_whole(target) as path:
        path.write_text("second")
    assert target.read_text() == "second"


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "models"
    with sole_writer(folder):
        with pytest.raises(InputError, match="models: another process is writing it"), sole_writer(folder):
            pass
        assert os.listdir(folder) == [LOCK_FILE]
    assert os.listdir(folder) == []
    (folder / LOCK_FILE).touch()  # what a killed process leaves
    with sole_writer(folder):
        pass
    assert os.listdir(folder) == []


def test_what_a_killed_writer_left_of_a_folder_is_removed(tmp_path: Path) -> None:
    """A process was killed after it gave a folder its name, or after it moved an old subfolder out of the way."""
    folder = tmp_path / "model"
    (folder / "1_Pooling.partial").mkdir(parents=True)
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial.lock").touch()
    with write_whole_folder(folder) as unfinished:
        (unfinished / "1_Pooling").mkdir()
    assert sorted(tmp_path.rglob("*")) == [folder, folder / "1_Pooling"]


def test_the_folder_of_another_writer_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    lock = tmp_path / "model.partial.lock"
    with claim(lock, lock), write_whole_folder(tmp_path / "model"):
        pass
    assert lock.exists()


def test_a_folder_that_appears_while_it_is_written_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with write_whole_folder(folder, last="a") as unfinished:
        (unfinished / "a").write_text("new")
        folder.mkdir()
        (folder / "a").write_text("old")
    assert (folder / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


HOLD = """
import sys, time
from drhard.files import claim
from pathlib import Path
with claim(Path(sys.argv[1]), Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_claimed_can_be_claimed_again(tmp_path: Path) -> None:
    path = tmp_path / "file.partial"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(InputError, match="another process is writing it"), claim(path, path):
            pass
        holder.kill()
        holder.wait()
        with claim(path, path):
            pass


def test_many_writers_in_turn_leave_a_whole_file(tmp_path: Path) -> None:
    """Whoever gets the lock writes all; nobody writes into, or removes, what another one has claimed."""
    target = tmp_path / "file.txt"
    refusals = []

    def write(number: int) -> None:
        for _ in range(50):
            try:
                with write_whole(target) as path:
                    path.write_text(str(number) * 1000)
            except InputError:
                refusals.append(number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert len(refusals) < 200
    assert len(set(target.read_text())) == 1
    assert len(target.read_text()) == 1000
    assert os.listdir(tmp_path) == ["file.txt"]


def limited(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code as a script's main where no file may be larger than 100 kB, which stands for a full disk."""
    program = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from pathlib import Path\nfrom drhard.commands import command\nfrom drhard.files import *\n"
        f"@command\ndef main():\n    path = Path(sys.argv[1])\n{textwrap.indent(code, '    ')}\nmain()\n"
    )
    return run_python("-c", program, *arguments)


WRITERS = {
    "text": "with write_whole_text(path) as file: file.write('x' * 1_000_000)",
    "NumPy": "import numpy as np\nwith write_whole_file(path) as file: np.save(file, np.zeros(1_000_000))",
    "NumPy by name": "import numpy as np\nwith write_whole(path) as name: np.zeros(1_000_000).tofile(name)",
    "torch": "import torch\nwith write_whole_file(path) as file: torch.save({'a': torch.zeros(1_000_000)}, file)",
    "torch by name": "import torch\nwith write_whole(path) as name: torch.save({'a': torch.zeros(1_000_000)}, name)",
    "safetensors": "import torch, safetensors.torch as s\n"
    "with write_whole(path) as name: s.save_file({'a': torch.zeros(1_000_000)}, name)",
    "faiss": "import faiss, numpy as np\nindex = faiss.IndexFlatIP(100)\nindex.add(np.zeros((1000, 100), 'float32'))\n"
    "with write_whole_file(path) as file: faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))",
    "JSON": "write_json(path, ['x' * 1_000_000])",
    "the end of a text": "with write_whole_text(path) as file: file.write('x' * 110_000)",
    "a claimed file": "with claim_partial(path) as file: file.write(bytes(1_000_000))",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    result = limited(WRITERS[writer], target)
    assert result.returncode == 2, result.stderr
    sentence = the_error(result.stderr)
    assert sentence.startswith(f"error: {target}: File too large (the disk mounted at /"), sentence
    assert sentence.endswith(" GB free); fix this and run the same command again")
    assert target.read_text() == "old"
    assert set(os.listdir(tmp_path)) <= {"file", "file.partial" if writer == "a claimed file" else "file"}


def no_space(*names: str | bytes | None) -> OSError:
    """The error of a full disk; it names the files ``names``."""
    return OSError(errno.ENOSPC, "No space left on device", *(names if len(names) < 2 else (names[0], None, names[1])))


@pytest.mark.parametrize("write", [write_whole_file, write_whole_text])
def test_an_error_that_does_not_come_from_writing_the_file_stays(tmp_path: Path, write: Callable[..., Any]) -> None:
    for error in (no_space(), OSError(errno.EIO, "Input/output error"), OSError("no reason"), ValueError("no reason")):
        with pytest.raises(type(error)) as raised, write(tmp_path / "file"):
            raise error
        assert raised.value is error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        ((), True),
        (("{}/out/file",), True),
        ((b"{}/out/file.partial",), True),
        (("{}/out/file/inside",), True),
        (("{}/out",), True),
        (("{}/source", "{}/out/file.partial"), True),
        (("{}/out/file.partial", "{}/out/file"), True),
        (("{}/out/other",), False),
        (("{}/out/file2",), False),
        (("/tmp/part",), False),
        (("{}/source", "{}/target"), False),
    ],
)
def test_an_error_that_names_another_file_is_not_taken_for_this_ones(
    tmp_path: Path, names: tuple[str | bytes, ...], ours: bool
) -> None:
    folder = str(tmp_path)
    filled = [
        name.replace("{}", folder) if isinstance(name, str) else name.replace(b"{}", folder.encode()) for name in names
    ]
    with pytest.raises(DiskFault if ours else OSError) as raised, disk_faults(tmp_path / "out" / "file"):
        raise no_space(*filled)
    assert not ours or str(raised.value).startswith(f"{folder}/out/file: No space left on device (the disk mounted at")


def test_a_part_that_was_lost_is_found_before_the_rename(tmp_path: Path) -> None:
    def lose() -> None:
        with write_whole_file(tmp_path / "file") as file:
            file.write(b"1234")
            file.flush()
            os.truncate(partial_path(tmp_path / "file"), 2)

    with pytest.raises(InputError, match="file: the disk lost a part of it"):
        lose()
    assert os.listdir(tmp_path) == []


def test_output_to_a_full_disk_is_one_sentence() -> None:
    code = "from drhard.commands import command\n@command\ndef main():\n    print('x' * 10)\nmain()"
    command = [sys.executable, "-c", code]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert the_error(result.stderr).startswith("error: No space left on device")


def test_output_on_a_terminal_that_knows_ascii_alone() -> None:
    code = "from drhard.commands import command\n@command\ndef main():\n    print('naïve —')\nmain()"
    result = run_python("-c", code, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (0, "na\\xefve \\u2014\n")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"rows": 1, "rows": 2}', "the field 'rows' appears twice"),
        ("[1]", "expected a JSON object, found a list"),
        ("{}", "the field 'rows' is missing"),
        ('{"rows": "1"}', "the field 'rows' is \"1\", expected a whole number"),
        ('{"rows": true}', "the field 'rows' is true, expected a whole number"),
        ('{"rows": 1.5}', "the field 'rows' is 1.5, expected a whole number"),
        ('{"rows": NaN}', "NaN is not a number"),
        ('{"rows": 1e999}', "the field 'rows' is Infinity"),
        ('{"rows": ' + "9" * 5000 + "}", "not a JSON file"),
        ('{"rows": ' + "[" * 100_000 + "}", "nested too deep"),
        ('{"rows": 1', "not a JSON file"),
        ('{"rows": 1, "name": 2}', "the field 'name' is 2, expected a text"),
        ('{"rows": 1, "name": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_an_object_that_is_not_what_it_should_be(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "stamp.json"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(reason)) as raised:
        read_object(path, {"rows": int}, "make it anew", optional={"name": str})
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).endswith("; make it anew")


def test_json_takes_whole_surrogate_pairs(tmp_path: Path) -> None:
    (tmp_path / "pair.json").write_text('{"text": "\\ud83d\\ude00 \\\\ud800"}')
    assert read_object(tmp_path / "pair.json", {"text": str}) == {"text": "\U0001f600 \\ud800"}


def test_json_takes_a_byte_order_mark_and_other_fields(tmp_path: Path) -> None:
    path = tmp_path / "stamp.json"
    path.write_bytes(b'\xef\xbb\xbf{"rows": 1, "more": null}')
    assert read_object(path, {"rows": float}) == {"rows": 1, "more": None}


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "content.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "text.tsv"
    path.write_bytes(b"\xef\xbb\xbf1\ta\n\xef\xbb\xbf2\tb\n")
    assert list(read_lines(path)) == [(1, "1\ta"), (2, "\ufeff2\tb")]
