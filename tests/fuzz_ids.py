"""Mutated tables of ids: each gives a table or one sentence, in bounded memory. python tests/fuzz_ids.py COUNT"""

import io
import pickle
import random
import resource
import sys
import tempfile
from pathlib import Path

from drhard.errors import InputError
from drhard.ids import LARGEST_ID, read_ids, write_ids

import numpy as np

MEMORY = 200 << 20  # beyond what the process has at its start
HUGE = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f", bytes(4), b"\1")
OPCODES = [bytes([code]) for code in [*b"(.012FIJKLMNPQRSTUVX]abcdeghijlopqrst}uGB)C", *range(128, 153)]]


class _PlainPickler(pickle._Pickler):
    """Python's own pickler, whose output differs from the compiled one's in the places of its frames."""


def originals() -> list[bytes]:
    """Whole tables as they are met: ours, the published project's, NumPy's integers, of all protocols."""
    ids = [7, 0, 300, 70_000, LARGEST_ID, 255]
    plain = {id_: row for row, id_ in enumerate(ids)}
    found = [pickle.dumps(plain, protocol) for protocol in range(6)] + [pickle.dumps({5: 0}, 4), pickle.dumps({}, 3)]
    for kind in (np.int64, np.int32, np.uint32, ">i8"):
        many = {np.dtype(kind).type(id_): np.dtype(kind).type(row) for row, id_ in enumerate(ids)}
        found += [pickle.dumps(many, protocol) for protocol in range(6)]
    small = {np.int8(id_): np.uint8(row) for row, id_ in enumerate((5, 6, 0))}  # bytes that are one object
    found += [pickle.dumps(small, protocol) for protocol in range(6)]
    found += [content.replace(b"cnumpy._core", b"cnumpy.core") for content in found]  # NumPy before 2.0
    buffer = io.BytesIO()
    _PlainPickler(buffer, 4).dump(plain)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ids")
        write_ids(path, np.array(ids))
        return [*found, buffer.getvalue(), path.read_bytes()]


def mutate(content: bytes, draw: random.Random) -> bytes:
    """``content`` with one to four bytes or pieces changed, taken out or put in."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        piece = draw.choice(
            [bytes([draw.randrange(256)]), draw.choice(OPCODES), draw.choice(OPCODES) + draw.choice(HUGE)]
        )
        way = draw.randrange(4)
        if way == 0:
            changed[place : place + len(piece)] = piece
        elif way == 1:
            changed[place:place] = piece
        elif way == 2:
            del changed[place : place + draw.randint(1, 4)]
        else:
            start = draw.randrange(len(changed) + 1)
            changed[place:place] = changed[start : start + draw.randint(1, 40)]
    return bytes(changed)


def check(path: Path, content: bytes) -> bool:
    """Whether ``content`` is read as a table. Fails if it is read as anything else, or ends in another error."""
    path.write_bytes(content)
    try:
        ids = read_ids(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: "), error
        assert "\n" not in str(error), error
        return False
    assert ids.dtype == np.int64
    assert ids.ndim == 1
    assert len(np.unique(ids)) == len(ids)
    assert not len(ids) or (ids.min() >= 0 and ids.max() <= LARGEST_ID)
    return True


def main(count: int) -> None:
    """Try ``count`` mutations with little memory."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    draw, whole, read = random.Random(0), originals(), 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder, "pid2offset.pickle")
        for content in whole:
            assert check(path, content), content
        for _ in range(count):
            content = mutate(draw.choice(whole), draw)
            try:
                read += check(path, content)
            except BaseException:
                print(content, file=sys.stderr)
                raise
    print(f"{count} mutations: {read} are tables, {count - read} are refused")


if __name__ == "__main__":
    main(int(sys.argv[1]))
