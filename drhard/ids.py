"""Read and write ``pid2offset.pickle`` and ``{mode}-qid2offset.pickle``, pickled dicts of official id -> row.

These files may come from anywhere, so they are not trusted. Python's unpickler reads a file only if its bytes are
proven to be a dict of small integers. A small interpreter reads all others. It knows Python's and NumPy's integers and
nothing else.
"""

import hashlib
import pickle
import pickletools
import re
from array import array
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.files import require_file, write_whole_file
from drhard.msmarco import LARGEST_ID, parse_number

import numpy as np

ENTRY = np.dtype([("k", "S1"), ("key", "<i4"), ("v", "S1"), ("value", "<i4")])  # two BININTs: opcode and int32 each
ENTRIES = 10_000  # in a batch, MARK ... SETITEMS

# Python pickles a dict of ints like this in protocols 2 to 5: the dict, memo entry 0, then MARK, pairs, SETITEMS. An
# int is BININT1, BININT2 or BININT. A single pair has no MARK. Protocol 4 inserts FRAMEs. A "+" after a repetition
# makes it possessive, so the search never backtracks.
_FRAME = rb"(?:\x95.{8})?+"
_INT = rb"(?:K.|M..|J.{4})" + _FRAME
_PLAIN = re.compile(
    rb"\x80[\x02-\x05]"
    + _FRAME
    + rb"}"
    + _FRAME
    + rb"(?:q.|\x94)?+"
    + _FRAME
    + rb"(?:\("
    + _FRAME
    + rb"(?:"
    + _INT
    + _INT
    + rb")*+u"
    + _FRAME
    + rb"|"
    + _INT
    + _INT
    + rb"s"
    + _FRAME
    + rb")*+\.",
    re.DOTALL,
)


def read_ids(path: str | Path) -> np.ndarray:
    """Read the official id of each row from a pickled dict of official id -> row, such as ``pid2offset.pickle``.

    Returns:
        (rows,) int64.

    Raises:
        InputError: the file is missing or is not such a dict, its rows are not 0, 1, 2, … in some order, an id
            appears twice, or an id is not within 0 and :data:`LARGEST_ID`.
    """
    path = require_file(path, "preprocess.py writes it")
    if not path.is_file():
        raise InputError(f"{path}: not a file; run preprocess.py again")
    content = path.read_bytes()
    try:
        return _by_row(*(_own(content) or _plain(content) or _Interpreter().run(content)))
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(f"{path}: not a pickled dict of id -> row ({error}); run preprocess.py again") from None


def write_ids(path: str | Path, ids: np.ndarray) -> None:
    """Pickle ``{ids[row]: row}`` without building the dict: 8.8 million entries would take a gigabyte.

    Args:
        ids: (rows,) int64, distinct, each within int32.
    """
    with write_whole_file(path) as file:
        file.write(b"\x80\x03}")  # protocol 3, empty dict
        for start in range(0, len(ids), ENTRIES):
            part = ids[start : start + ENTRIES]
            entries = np.empty(len(part), dtype=ENTRY)
            entries["k"] = entries["v"] = b"J"
            entries["key"] = part
            entries["value"] = np.arange(start, start + len(part))
            file.write(b"(" + entries.tobytes() + b"u")
        file.write(b".")


class Numbers:
    """Official ids that are numbers. See :class:`drhard.names.OfficialIds`.

    Args:
        ids: (rows,) int64.
        prefix: what stands in front of each number, such as "D".
    """

    def __init__(self, ids: np.ndarray, prefix: str = ""):
        self.ids, self.prefix = ids, prefix

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of ``rows``, with their prefix."""
        return [f"{self.prefix}{number}" for number in self.ids[list(rows)].tolist()]

    def find(self, name: str) -> int:
        """See :meth:`drhard.names.OfficialIds.find`."""
        number = parse_number(name.removeprefix(self.prefix)) if name.startswith(self.prefix) else None
        rows: np.ndarray = np.flatnonzero(self.ids == number)
        return int(rows[0]) if len(rows) else -1  # no row has None

    def digest(self) -> str:
        """Return the SHA-256 of the numbers."""
        return hashlib.sha256(np.ascontiguousarray(self.ids, dtype="<i8").data).hexdigest()


Pairs = tuple[np.ndarray, np.ndarray]  # ids and rows, both (entries,) int64


def _by_row(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    count = len(ids)
    if count and not (rows.min() >= 0 and rows.max() < count):
        raise ValueError(f"{count} rows are not 0 to {count - 1}")
    table = np.full(count, -1, dtype=np.int64)
    table[rows] = ids
    if count and not (ids.min() >= 0 and ids.max() <= LARGEST_ID):
        wrong = ids[(ids < 0) | (ids > LARGEST_ID)][0]
        raise ValueError(f"the id {wrong} is not from 0 to {LARGEST_ID}")
    if (table < 0).any():
        raise ValueError("a row appears twice")
    ordered = table if (table[1:] > table[:-1]).all() else np.sort(table)  # MS MARCO's are in order: no need to sort
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise ValueError(f"the id {ordered[twice[0]]} appears twice")
    return table


def _own(content: bytes) -> Pairs | None:
    """Parse a file that :func:`write_ids` wrote, by its layout. Return None for any other."""
    if not content.startswith(b"\x80\x03}"):
        return None
    ids, rows = [], []
    size = 1 + ENTRIES * ENTRY.itemsize + 1
    end = len(content) - 1
    for start in range(3, end, size):
        body = memoryview(content)[start : min(start + size, end)]
        if len(body) % ENTRY.itemsize != 2 or (body[0], body[-1]) != (ord("("), ord("u")):
            return None
        entries = np.frombuffer(body[1:-1], dtype=ENTRY)
        if (entries["k"] != b"J").any() or (entries["v"] != b"J").any():
            return None
        ids.append(entries["key"])
        rows.append(entries["value"])
    if content[end:] != b"." or not ids:
        return None
    return np.concatenate(ids).astype(np.int64), np.concatenate(rows).astype(np.int64)


def _plain(content: bytes) -> Pairs | None:
    """Unpickle a file that matches ``_PLAIN``. Return None for any other."""
    if _PLAIN.fullmatch(content) is None:
        return None
    try:
        pairs: dict[int, int] = pickle.loads(content)
    except (pickle.UnpicklingError, EOFError) as error:  # a FRAME longer than the file
        raise ValueError(str(error)) from None
    return np.fromiter(pairs.keys(), np.int64, len(pairs)), np.fromiter(pairs.values(), np.int64, len(pairs))


class _Integers:
    """An integer dtype of NumPy, such as ``i8`` or ``u4``, and its byte order, which BUILD sets."""

    def __init__(self, name: object):
        if not isinstance(name, str) or re.fullmatch("[iu][1248]", name) is None:
            raise ValueError(f"it holds NumPy's {str(name)[:20]!r}")
        self.signed, self.size, self.order = name[0] == "i", int(name[1]), "<"

    def number(self, data: object) -> int:
        if not isinstance(data, bytes) or len(data) != self.size:
            raise ValueError(f"an integer does not have its {self.size} bytes")
        return int.from_bytes(data, "big" if self.order == ">" else "little", signed=self.signed)

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 8 or state[2:] != (None, None, None, -1, -1, 0):
            raise ValueError("it holds a NumPy type that is not a plain integer")
        if state[1] not in ("<", ">", "|"):
            raise ValueError("it holds integers of unknown byte order")
        self.order = state[1]


_MARK, _DICT, _DTYPE, _SCALAR, _ENCODE, _FORGOTTEN = (object() for _ in range(6))
_NAMES = {
    "numpy dtype": _DTYPE,
    "numpy.core.multiarray scalar": _SCALAR,  # NumPy before 2.0
    "numpy._core.multiarray scalar": _SCALAR,
    "_codecs encode": _ENCODE,  # bytes, in protocols before 3
}
_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"}
_VALUES = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "SHORT_BINBYTES",
    "BINBYTES",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "EMPTY_TUPLE",
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_STACK = 100_000  # the most values on the stack; Python's pickler sets a thousand pairs at a time


class _Interpreter:
    """An interpreter for the opcodes of a pickled dict of integers. It calls nothing the file names.

    The size of the file bounds its memory. NumPy's integers are read from their bytes. Any other content raises
    ValueError, IndexError, KeyError or OverflowError.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self.ids, self.rows = array("q"), array("q")

    def run(self, content: bytes) -> Pairs:
        """Return the ids and rows of the pickle."""
        for opcode, argument, _ in pickletools.genops(BytesIO(content)):
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
            if len(self.stack) > _STACK:
                raise ValueError("too many values at once")
        if self.stack != [_DICT]:
            raise ValueError("it is not a dict")
        return np.array(self.ids, dtype=np.int64), np.array(self.rows, dtype=np.int64)

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _NUMBERS:
            stack.append(argument if isinstance(argument, bool) else _whole(argument))  # INT also encodes bools
        elif name == "MEMOIZE":
            self._put(len(self.memo))
        elif name in _PUTS:
            self._put(argument)
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            self._tuple(_TUPLES[name])
        elif name in _VALUES:
            stack.append(() if name == "EMPTY_TUPLE" else argument)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            self._tuple(self._since_mark())
        elif name == "SETITEM":
            self._set(2)
        elif name == "SETITEMS":
            self._set(self._since_mark())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            place = argument if name == "GLOBAL" else " ".join(map(str, (stack.pop(-2), stack.pop())))
            if place not in _NAMES:
                raise ValueError(f"it holds {place[:80]!r}")
            stack.append(_NAMES[place])
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Integers):
                raise ValueError("it holds more than integers")
            stack[-1].build(state)
        elif name in ("EMPTY_DICT", "DICT"):
            if name == "DICT" and stack.pop() is not _MARK:
                raise ValueError("it holds more than integers")
            stack.append(_DICT)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it holds more than integers ({name})")

    def _put(self, place: int) -> None:
        if place > len(self.memo) + 1:  # Python counts from 0 or 1; a distant place would cost that much memory
            raise ValueError("its memo is out of order")
        # Nothing refers to a tuple again. The arguments of each scalar would take gigabytes, so they are dropped.
        value = _FORGOTTEN if isinstance(self.stack[-1], tuple) else self.stack[-1]
        self.memo[place : place + 1] = [value] if place <= len(self.memo) else [_FORGOTTEN, value]

    def _since_mark(self) -> int:
        """Remove the last mark, and return how many values follow it."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        del self.stack[place]
        return len(self.stack) - place

    def _tuple(self, count: int) -> None:
        if count > 8:  # the state of a dtype
            raise ValueError("it holds more than integers")
        values = tuple(self._pop(count))
        if any(isinstance(value, tuple) for value in values):
            raise ValueError("it holds more than integers")
        self.stack.append(values)

    def _pop(self, count: int) -> list[Any]:
        values = [self.stack.pop() for _ in range(count)]
        return values[::-1]

    def _set(self, count: int) -> None:
        values = self._pop(count)
        if self.stack[-1] is not _DICT or count % 2:
            raise ValueError("it sets items of something that is not a dict")
        if any(type(value) is not int for value in values):
            raise ValueError("a key or value is not an integer")
        self.ids.extend(values[::2])
        self.rows.extend(values[1::2])


def _whole(number: int) -> int:
    if number.bit_length() > 63:
        raise ValueError("a key or value is not a 64-bit integer")
    return number


def _call(function: object, arguments: object) -> object:
    """Return what one of :data:`_NAMES` returns for ``arguments``."""
    if isinstance(arguments, tuple) and len(arguments) in (2, 3):
        if function is _DTYPE:
            return _Integers(arguments[0])
        first, second = arguments[:2]
        if function is _SCALAR and isinstance(first, _Integers):
            return _whole(first.number(second))
        if function is _ENCODE and isinstance(first, str) and second == "latin1":
            return first.encode("latin-1")
    raise ValueError("it holds more than integers")
