"""Ways to damage a file: bytes, lines of text, JSON, and the insides of archives and of NumPy's and torch's files."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable

Dice = random.Random
Mutator = Callable[[bytes, Dice], bytes]

# Bytes


def flip_bits(content: bytes, dice: Dice) -> bytes:
    """Flip 1 to 8 bits, half of the time near the start."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 8))):
        changed[_position(content, dice)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def replace_bytes(content: bytes, dice: Dice) -> bytes:
    """Put random or extreme bytes in place of 1 to 16."""
    at, count = _position(content, dice), dice.choice((1, 1, 2, 4, 8, 16))
    new = dice.choice((dice.randbytes(count), bytes(count), b"\xff" * count))
    return content[:at] + new + content[at + count :]


def extreme_integer(content: bytes, dice: Dice) -> bytes:
    """Put an extreme integer of 2, 4 or 8 bytes somewhere."""
    width = dice.choice((2, 4, 4, 8, 8))
    at = _position(content, dice) // width * width
    most = 1 << (8 * width - 1)
    value = dice.choice((0, 1, most - 1, -most, -1, most // 2, dice.randrange(-most, most)))
    return content[:at] + value.to_bytes(width, "little", signed=True) + content[at + width :]


def not_a_number(content: bytes, dice: Dice) -> bytes:
    """Put a NaN, an infinity or a huge float32 somewhere."""
    at = dice.randrange(max(len(content), 1)) // 4 * 4
    value = dice.choice((float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-40))
    return content[:at] + struct.pack("<f", value) + content[at + 4 :]


def truncate(content: bytes, dice: Dice) -> bytes:
    """Cut off the end, or everything."""
    return content[: dice.choice((0, 1, len(content) - 1, len(content) // 2, dice.randrange(len(content) + 1)))]


def duplicate_block(content: bytes, dice: Dice) -> bytes:
    """Repeat a block, or put it elsewhere too."""
    first, last = _block(content, dice)
    at = dice.choice((last, _position(content, dice)))
    return content[:at] + content[first:last] + content[at:]


def delete_block(content: bytes, dice: Dice) -> bytes:
    """Remove a block."""
    first, last = _block(content, dice)
    return content[:first] + content[last:]


def swap_blocks(content: bytes, dice: Dice) -> bytes:
    """Swap two adjacent blocks."""
    first, last = _block(content, dice)
    at = dice.randrange(last, len(content) + 1)
    return content[:first] + content[last:at] + content[first:last] + content[at:]


def append(content: bytes, dice: Dice) -> bytes:
    """Put something behind the end."""
    return content + dice.choice((b"\0", b"\n", dice.randbytes(dice.randint(1, 64)), content[:4096]))


def _position(content: bytes, dice: Dice) -> int:
    return dice.randrange(max(min(len(content), dice.choice((64, 512, 1 << 40))), 1)) if content else 0


def _block(content: bytes, dice: Dice) -> tuple[int, int]:
    first = _position(content, dice)
    return first, min(first + dice.choice((1, 4, 16, 64, 512, 4096)), len(content))


BYTES: tuple[Mutator, ...] = (
    flip_bits,
    flip_bits,
    replace_bytes,
    extreme_integer,
    truncate,
    duplicate_block,
    delete_block,
    swap_blocks,
    append,
)
FLOATS: tuple[Mutator, ...] = (*BYTES, not_a_number, not_a_number)

# Text

NUMBERS = (
    "-1",
    "0",
    "00",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "2147483648",
    "-2147483649",
    "9223372036854775808",
    "9" * 30,
    "1" * 5000,
    "0x10",
    "1.5",
    "１２",
    "1_0",
    "+1",
    "",
    " ",
)
ODD = (
    "\0",
    "\x1b[31m",
    "\x85",
    "\u2028",
    "\r",
    "\x0b",
    "\x1c",
    "\u200b",
    "\ufeff",
    "\u202e",
    "\ud7ff",
    "\U0001f600",
    "\t",
    '"',
    "\\",
    "{",
    "%s",
    "'",
    "\x7f",
)


def in_a_line(change: Callable[[bytes, Dice], bytes]) -> Mutator:
    """Return a mutator that changes one line, but not its end."""

    def mutate(content: bytes, dice: Dice) -> bytes:
        lines = content.split(b"\n")
        at = dice.randrange(max(len(lines) - 1, 1))
        lines[at] = change(lines[at], dice)
        return b"\n".join(lines)

    mutate.__name__ = change.__name__
    return mutate


def lines_of(change: Callable[[list[bytes], Dice], list[bytes]]) -> Mutator:
    """Return a mutator that changes the list of lines."""

    def mutate(content: bytes, dice: Dice) -> bytes:
        return b"".join(change(content.splitlines(keepends=True), dice))

    mutate.__name__ = change.__name__
    return mutate


def _fields(line: bytes, dice: Dice) -> tuple[list[bytes], bytes, int]:
    separator = b"\t" if b"\t" in line else b" "
    fields = line.split(separator)
    return fields, separator, dice.randrange(len(fields))


def other_number(line: bytes, dice: Dice) -> bytes:
    fields, separator, at = _fields(line, dice)
    fields[at] = dice.choice(NUMBERS).encode()
    return separator.join(fields)


def drop_field(line: bytes, dice: Dice) -> bytes:
    fields, separator, at = _fields(line, dice)
    return separator.join(fields[:at] + fields[at + 1 :])


def more_fields(line: bytes, dice: Dice) -> bytes:
    fields, separator, at = _fields(line, dice)
    return separator.join((*fields[:at], dice.choice((b"", b"1", b"x", fields[at])), *fields[at:]))


def swap_fields(line: bytes, dice: Dice) -> bytes:
    fields, separator, _ = _fields(line, dice)
    dice.shuffle(fields)
    return separator.join(fields)


def odd_character(line: bytes, dice: Dice) -> bytes:
    at = dice.randrange(len(line) + 1)
    return line[:at] + dice.choice(ODD).encode("utf-8", "surrogatepass") + line[at:]


def not_utf8(line: bytes, dice: Dice) -> bytes:
    at = dice.randrange(len(line) + 1)
    odd = dice.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x82"))
    return line[:at] + odd + line[at:]


def other_separators(line: bytes, dice: Dice) -> bytes:
    return line.replace(dice.choice((b"\t", b" ")), dice.choice((b" ", b"\t", b"\t\t", b",", b"\xc2\xa0")))


def very_long(line: bytes, dice: Dice) -> bytes:
    return line + dice.choice((b"x", b"9", b" ", b"\xc3\xa9 ", line or b"y")) * 20_000


def blank(line: bytes, dice: Dice) -> bytes:
    return dice.choice((b"", b" ", b"\t", b"\t\t\t", b"\r"))


def swap_lines(lines: list[bytes], dice: Dice) -> list[bytes]:
    if len(lines) > 1:
        one, other = dice.sample(range(len(lines)), 2)
        lines[one], lines[other] = lines[other], lines[one]
    return lines


def repeat_line(lines: list[bytes], dice: Dice) -> list[bytes]:
    return [*lines, dice.choice(lines)] if lines else lines


def drop_lines(lines: list[bytes], dice: Dice) -> list[bytes]:
    at = dice.randrange(max(len(lines), 1))
    return lines[:at] + lines[at + dice.choice((1, 1, 5, len(lines))) :]


def byte_order_mark(content: bytes, dice: Dice) -> bytes:
    return dice.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) + content


def other_line_ends(content: bytes, dice: Dice) -> bytes:
    return content.replace(b"\n", dice.choice((b"\r\n", b"\r", b"\n\n", b"\x85", b"")))


def other_encoding(content: bytes, dice: Dice) -> bytes:
    return content.decode("utf-8", "replace").encode(dice.choice(("utf-16", "utf-32", "utf-8-sig")))


TEXT: tuple[Mutator, ...] = (
    *map(
        in_a_line,
        (
            other_number,
            other_number,
            drop_field,
            more_fields,
            swap_fields,
            odd_character,
            odd_character,
            not_utf8,
            other_separators,
            very_long,
            blank,
        ),
    ),
    *map(lines_of, (swap_lines, repeat_line, drop_lines)),
    byte_order_mark,
    other_line_ends,
    other_encoding,
    truncate,
    flip_bits,
    duplicate_block,
    delete_block,
)

# JSON

VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    1.5,
    -0.0,
    1e308,
    10**30,
    2**31,
    2**63,
    -(2**63),
    "",
    "x",
    "0",
    "NaN",
    "\0",
    [],
    {},
    [[]],
    [1, "x", None],
    {"": 0},
    {"x": {"y": []}},
    "x" * 5000,
    "../../x",
    "/etc/passwd",
    "\u202e",
)


def json_value(content: bytes, dice: Dice) -> bytes:
    """Replace a value anywhere in the document."""

    def change(parent: list | dict, key: int | str) -> None:
        parent[key] = dice.choice(VALUES)

    return _change_json(content, dice, change)


def json_near(content: bytes, dice: Dice) -> bytes:
    """Change a value slightly: to a number next to it, its text, or a list of it."""

    def change(parent: list | dict, key: int | str) -> None:
        value = parent[key]
        ways = [str(value), [value], {"x": value}]
        if isinstance(value, (int, float)):
            ways += [value + 1, value - 1, -value, value * 1000, value + 0.5, float(value), bool(value)]
        if isinstance(value, str):
            ways += [value.upper(), value[:-1], value[::-1], value + "\n", value * 2]
        parent[key] = dice.choice(ways)

    return _change_json(content, dice, change)


def json_without(content: bytes, dice: Dice) -> bytes:
    """Remove a field or an item."""

    def change(parent: list | dict, key: int | str) -> None:
        del parent[key]

    return _change_json(content, dice, change)


def json_renamed(content: bytes, dice: Dice) -> bytes:
    """Rename a field."""

    def change(parent: list | dict, key: int | str) -> None:
        if isinstance(parent, dict):
            parent[dice.choice((key.upper(), f"{key} ", "", "x", "0", "-1", "9" * 30))] = parent.pop(key)

    return _change_json(content, dice, change)


def json_twice(content: bytes, dice: Dice) -> bytes:
    """Name a field twice."""
    text = content.decode("utf-8", "replace")
    try:
        key, value = dice.choice(list(json.loads(text).items()))
    except Exception:
        return content + content
    return text.replace("{", "{" + f"{json.dumps(key)}: {json.dumps(dice.choice((value, 0)))}, ", 1).encode()


def json_whole(content: bytes, dice: Dice) -> bytes:
    """Replace the whole document."""
    return dice.choice(
        (
            b"",
            b"null",
            b"[]",
            b"{}",
            b"3",
            b'"x"',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"NaN",
            b"1" * 5000,
            b"{",
            b"[" + content + b"]",
            content + b"}",
            content + content,
            content + b"\0",
            b"\xef\xbb\xbf" + content,
        )
    )


def json_number(content: bytes, dice: Dice) -> bytes:
    """Write a number in a form on which readers of JSON differ."""
    text = content.decode("utf-8", "replace")
    places = [at for at, character in enumerate(text) if character.isdigit()]
    if not places:
        return content
    at = dice.choice(places)
    new = dice.choice(("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-0", "01", "1.", "0x1", "1e5", "-"))
    return (text[:at] + new + text[at + 1 :]).encode()


def _change_json(content: bytes, dice: Dice, change: Callable[[list | dict, int | str], None]) -> bytes:
    try:
        document = json.loads(content)
    except ValueError:
        return flip_bits(content, dice)
    places: list[tuple[list | dict, int | str]] = []

    def look(value: object) -> None:
        if len(places) > 5000:
            return
        if isinstance(value, dict):
            keys: list = list(value)
        elif isinstance(value, list):
            keys = list(range(len(value)))
        else:
            return
        for key in keys:
            places.append((value, key))
            look(value[key])

    look(document)
    if not places:
        return json_whole(content, dice)
    # Change outer values as often as inner ones, although there are few.
    change(*dice.choice(places if dice.random() < 0.5 else [place for place in places if place[0] is document]))
    return json.dumps(document).encode()


JSON: tuple[Mutator, ...] = (
    json_value,
    json_value,
    json_value,
    json_near,
    json_near,
    json_without,
    json_renamed,
    json_twice,
    json_whole,
    json_number,
    json_number,
    flip_bits,
    replace_bytes,
    truncate,
    duplicate_block,
    delete_block,
    byte_order_mark,
    in_a_line(odd_character),
    in_a_line(not_utf8),
    other_encoding,
)

STRANGER = "stranger"  # a module of code in a model's folder, which nobody may import
_CLASS = f"{STRANGER}.Stranger"
CODE = {
    "auto_map": {"AutoConfig": _CLASS, "AutoModel": _CLASS, "AutoTokenizer": [_CLASS, _CLASS]},
    "trust_remote_code": True,
    "model_args": {"trust_remote_code": True},
    "tokenizer_args": {"trust_remote_code": True},
    **dict.fromkeys(("type", "tokenizer_class", "processor_class", "activation_function", "model_type"), _CLASS),
}


def json_code(content: bytes, dice: Dice) -> bytes:
    """Name code of the folder, as models with code of their own do."""
    document = json.loads(content)
    part = dice.choice(document) if isinstance(document, list) else document
    for field in dice.sample(list(CODE), dice.randint(1, 3)):
        part[field] = CODE[field]
    return json.dumps(document).encode()


MODEL_JSON: tuple[Mutator, ...] = (*JSON, json_code, json_code)

# Inside


def inside_gzip(content: bytes, dice: Dice) -> bytes:
    """Damage the packed content, or pack it in another way."""
    inner = gzip.decompress(content)
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: gzip.compress(dice.choice(TEXT)(inner, dice), mtime=0),
        lambda: gzip.compress(inner, mtime=0)[:-8] + dice.randbytes(8),
        lambda: content + dice.choice((content, b"\0" * 512, b"garbage", gzip.compress(b""))),
        lambda: gzip.compress(content),
        lambda: inner,
        lambda: gzip.compress(b"0" * (dice.choice((1, 8)) << 20)),
    )
    return dice.choice(ways)()


def inside_tar(content: bytes, dice: Dice) -> bytes:
    """Write the archive again, with odd members."""
    made = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as source,
        tarfile.open(fileobj=made, mode=dice.choice(("w:gz", "w:gz", "w:gz", "w", "w:xz", "w:bz2"))) as target,
    ):
        members = source.getmembers()
        odd = dice.randrange(len(members))
        for number, member in enumerate(members):
            data = source.extractfile(member).read()
            if number == odd:
                way = dice.choice(
                    (
                        "symlink",
                        "hardlink",
                        "fifo",
                        "folder",
                        "device",
                        "outside",
                        "absolute",
                        "twice",
                        "missing",
                        "empty",
                        "text",
                        "dot",
                    )
                )
                if way == "missing":
                    continue
                types = {
                    "symlink": tarfile.SYMTYPE,
                    "hardlink": tarfile.LNKTYPE,
                    "fifo": tarfile.FIFOTYPE,
                    "folder": tarfile.DIRTYPE,
                    "device": tarfile.CHRTYPE,
                }
                names = {"outside": f"../../{member.name}", "absolute": f"/{member.name}", "dot": f"./{member.name}"}
                member.type, member.name = types.get(way, member.type), names.get(way, member.name)
                if way in types:
                    member.linkname, data = dice.choice(("/etc/passwd", "../x", member.name, "queries.train.tsv")), b""
                data = {"empty": b"", "text": dice.choice(TEXT)(data[:20_000], dice)}.get(way, data)
                member.size = len(data)
                if way == "twice":
                    target.addfile(member, io.BytesIO(data))
            target.addfile(member, io.BytesIO(data))
    return made.getvalue()


def inside_zip(content: bytes, dice: Dice) -> bytes:
    """Damage a member of a zip archive of torch.save and correct its checksum. Or remove or rename a member."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(made, "w") as target:
        names = source.namelist()
        odd = dice.choice([name for name in names if name.endswith(".pkl")] if dice.random() < 0.5 else names)
        way = dice.choice(("damage", "damage", "damage", "damage", "drop", "rename"))
        for name in names:
            data = source.read(name)
            if name == odd:
                if way == "drop":
                    continue
                if way == "damage":
                    data = dice.choice(PICKLE if name.endswith(".pkl") else FLOATS)(data, dice)
                else:
                    name += "x"
            target.writestr(name, data)
    return made.getvalue()


def inside_npy(content: bytes, dice: Dice) -> bytes:
    """Write another header in front of the numbers of a NumPy file."""
    length = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    ways: tuple[tuple[str, str], ...] = (
        ("'descr': '<i8'", "'descr': '<f8'"),
        ("'descr': '<i8'", "'descr': '|O'"),
        ("'descr': '<i8'", "'descr': '<U1'"),
        ("<i4", "<u8"),
        ("<i4", ">i4"),
        ("<i4", "<f4"),
        ("<i4", "|b1"),
        ("<f4", "<f8"),
        ("<f4", "<f2"),
        ("<f4", "|O"),
        ("<f4", ">f4"),
        ("<i8", ">i8"),
        ("<i8", "<M8[s]"),
        ("False", "True"),
        (",)", ", 1)"),
        ("(", "(-"),
        ("(", "(9"),
        ("(", "(99999999999999"),
        ("'shape'", "'form'"),
        ("{", "{'x': 1, "),
        ("'fortran_order': False, ", ""),
        ("(", "(" * 200),
        ("}", ""),
        (",)", ")"),
        ("'shape': (", "'shape': (("),
    )
    fitting = [(old, new) for old, new in ways if old in header]
    old, new = dice.choice(fitting)
    changed = header.replace(old, new, 1).encode("latin-1")
    if dice.random() < 0.3:
        data = dice.choice(FLOATS)(data, dice)
    return content[:8] + (len(changed) & 0xFFFF).to_bytes(2, "little") + changed + data


def inside_safetensors(content: bytes, dice: Dice) -> bytes:
    """Damage the JSON header of a safetensors file and correct its length. Or damage the numbers."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    if dice.random() < 0.3:
        data = dice.choice(FLOATS)(data, dice)
    else:
        header = dice.choice(JSON)(header, dice)
    return len(header).to_bytes(8, "little") + header + data


def odd_pickle(content: bytes, dice: Dice) -> bytes:
    """Replace opcodes, or the whole pickle by one that is not of a dict of integers."""
    opcodes = b"(.0123FIJKLMNPQRSTUVXabcdefghijklmoprstu}]" + bytes(range(0x80, 0x99))
    whole = (
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62),
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1),
        b"cos\nsystem\n(S'x'\ntR.",
        b"(" * 10_000,
        b"}" + b"q\xff" * 100 + b".",
        b"r\xff\xff\xff\x7f.",
        b"}r\xff\xff\xff\x7f.",
        b"N.",
        b"].",
        b"}.",
        b"(lp0\ng0\na.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR.",
        b"\x80\x63}.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'12345678'\ntR.",
    )
    if dice.random() < 0.4:
        return dice.choice(whole)
    at = dice.choice((_position(content, dice), len(content) - 1))
    return content[:at] + bytes([dice.choice(opcodes)]) + content[at + dice.choice((0, 1)) :]


PICKLE: tuple[Mutator, ...] = (*BYTES, odd_pickle, odd_pickle, odd_pickle)


HTTP_STATUS = (
    b"HTTP/1.1 abc OK",
    b"HTTP/9.9 200 OK",
    b"200",
    b"",
    b"HTTP/1.1 206 Partial",
    b"HTTP/1.1 416 No",
    b"HTTP/1.1 999 x",
    b"HTTP/1.1 302 Found",
    b"HTTP/1.1 503 Busy",
    b"HTTP/1.1 404 \xff\xfe",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 204 No",
    b"HTTP/1.1 -1 x",
    b"ICY 200 OK",
)
HTTP_HEADERS = (
    b"Content-Length: abc",
    b"Content-Length: -5",
    b"Content-Length: " + b"9" * 30,
    b"Content-Length:",
    b"Location: http://[",
    b"Location: file:///etc/passwd",
    b"Location: /\x00",
    b"Location: ftp://x",
    b"Location: http://127.0.0.1:1/\xff",
    b"Transfer-Encoding: chunked",
    b"Content-Range: bytes 5-2/1",
    b"Content-Range: bytes */x",
    b"Content-Range: bytes 0-9/" + b"9" * 5000,
    b"Content-Encoding: gzip",
    b"X" * 70_000,
    b"no colon",
    b": empty",
)


def http_head(content: bytes, dice: Dice) -> bytes:
    """Damage the head of an HTTP answer."""
    head, blank_line, body = content.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    ways: tuple[Callable[[], None], ...] = (
        lambda: lines.__setitem__(0, dice.choice(HTTP_STATUS)),
        lambda: lines.insert(1, dice.choice(HTTP_HEADERS)),
        lambda: lines.extend([b"X-Many: 1"] * 200),
        lambda: lines.pop(),
        lambda: lines.__setitem__(-1, dice.choice(BYTES)(lines[-1] + b" ", dice)),
    )
    for _ in range(dice.choice((1, 1, 2, 3))):
        if lines:
            dice.choice(ways)()
    return b"\r\n".join(lines) + blank_line + dice.choice((body, body, body[: len(body) // 2], body + b"x", b""))


GZIP: tuple[Mutator, ...] = (*BYTES, inside_gzip, inside_gzip, inside_gzip, inside_gzip)
TAR: tuple[Mutator, ...] = (*BYTES, inside_tar, inside_tar, inside_tar, inside_tar, inside_gzip)
ZIP: tuple[Mutator, ...] = (*FLOATS, *[inside_zip] * 10)
NPY: tuple[Mutator, ...] = (*FLOATS, *[inside_npy] * 8)
SAFETENSORS: tuple[Mutator, ...] = (*FLOATS, *[inside_safetensors] * 8)
HTTP: tuple[Mutator, ...] = (*[http_head] * 6, *BYTES)


def mutate(content: bytes, mutators: tuple[Mutator, ...], dice: Dice) -> tuple[bytes, str]:
    """Damage ``content`` by one to three of ``mutators``. Return it, and the names of those used."""
    names = []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        mutator = dice.choice(mutators)
        try:
            content = mutator(content, dice)
        except Exception:  # after an earlier mutator, this one no longer understands the content
            mutator = flip_bits
            content = mutator(content or b"x", dice)
        names.append(mutator.__name__)
    return content, " ".join(names)
