"""Read the two dictionaries: GCIDE's entries, and WordNet's synsets with their glosses.

Both come from Debian packages, dict-gcide and wordnet-base, as files or as installed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from drhard.errors import InputError

GCIDE_FILES = ("gcide.index", "gcide.dict.dz")
WORDNET_FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
FOLDERS = {"gcide": Path("/usr/share/dictd"), "wordnet": Path("/usr/share/wordnet")}  # where Debian installs them
PACKAGES = {"gcide": "dict-gcide", "wordnet": "wordnet-base"}

Opener = Callable[[str], IO[bytes]]


@contextmanager
def open_source(name: str, path: Path) -> Iterator[Opener]:
    """Open the files of a dictionary: in a folder, or in a package of Debian.

    Yields:
        A function that opens a file by its name.

    Raises:
        InputError: ``path`` is neither, or lacks a file.
    """
    if path.is_dir():
        yield lambda file: _open_in_folder(path, file, name)
    elif path.suffix == ".deb" and path.is_file():
        with tarfile.open(fileobj=io.BytesIO(_read_data_archive(path)), mode="r:xz") as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            yield lambda file: _open_in_package(path, file, archive, members)
    else:
        raise InputError(f"{path}: is neither a folder nor a .deb file; {_advice(name)}")


def _advice(name: str) -> str:
    return f"install the package {PACKAGES[name]}, or give its .deb file with --{name}"


def _open_in_folder(folder: Path, file: str, name: str) -> IO[bytes]:
    if not (folder / file).is_file():
        raise InputError(f"{folder / file}: no such file; {_advice(name)}")
    return open(folder / file, "rb")


def _open_in_package(
    package: Path, file: str, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]
) -> IO[bytes]:
    stream = archive.extractfile(members[file]) if file in members else None
    if stream is None:
        raise InputError(f"{package}: has no {file}; give another package")
    return stream


def _read_data_archive(package: Path) -> bytes:
    """Return data.tar.xz of a package. The package is an archive of ``ar``: a header of 60 bytes before each member."""
    with open(package, "rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise InputError(f"{package}: is not a package of Debian; fetch it again")
        while len(header := file.read(60)) == 60:
            size = int(header[48:58])
            if header[:16].strip(b" /") == b"data.tar.xz":
                return file.read(size)
            file.seek(size + size % 2, io.SEEK_CUR)
    raise InputError(f"{package}: has no data.tar.xz; fetch it again")


def digest_sources(open_gcide: Opener, open_wordnet: Opener) -> dict[str, str]:
    """Return the SHA-256 of each file that is read, by its name."""
    digests = {}
    for opener, files in ((open_gcide, GCIDE_FILES), (open_wordnet, WORDNET_FILES.values())):
        for name in files:
            with opener(name) as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


# GCIDE ------------------------------------------------------------------------------------------------------

_DIGITS = {
    character: value
    for value, character in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}
_HEAD = re.compile(
    r"\s*,?\s*([^\\,;()\[\]]{1,60}?)\s*\\[^\\]{1,150}\\(?:\s*\([^()]{1,120}\)(?=\s*[,;.\[]|\s+n\.|\s+[av]\.))?"
)
_PARTS_OF_SPEECH = {
    "v": re.compile(r"\b(?:v\.|imp\.|p\. ?p\.|p\. ?pr\.)"),
    "n": re.compile(r"\b(?:n\.|pl\.)"),
    "a": re.compile(r"\b(?:a\.|adj\.)"),
    "r": re.compile(r"\badv\."),
}
_SOURCE = re.compile(r"\[[^\[\]]*?(?:Webster|PJC|Dict|WordNet|Soule|Century)[^\[\]]*\]|WordNet \d\.\d\]")
_ETYMOLOGY = re.compile(r"\[[^\[\]]{0,1500}\]")
_LETTER = re.compile(r"\[([^\[\]\s]{1,5})\]")  # a letter with an accent, such as [=a], ['e], [ae], [oo^]
_NAMED_LETTERS = {
    "eth": "th",
    "thorn": "th",
    "yogh": "gh",
    "asl": "a",
    "adot": "a",
    "imac": "i",
    "add": "a",
    "udd": "u",
    "aum": "a",
    "oum": "o",
    "uum": "u",
    "root": "",
    "sect": "",
    "deg": "",
}
_REFERENCE = re.compile(
    r"(?:see|same as|of|from|an? (?:var|obs|corrupt|contract)\w*|imp\.|p\. ?p\.|pl\.|\W)", re.IGNORECASE
)


@dataclass(frozen=True)
class Entry:
    """An entry of GCIDE.

    Attributes:
        heads: its headwords, in lower case, without those that it only mentions.
        part: its first part of speech: n, v, a, r, or "" if it gives none.
        text: the first headword, part of speech and definitions, on one line.
        defines: whether it says what the word means, and does not only refer to another entry.
    """

    heads: tuple[str, ...]
    part: str
    text: str
    defines: bool


def read_entries(open_gcide: Opener) -> Iterator[Entry]:
    """Yield the entries in the order of the file, without the paragraphs that come from WordNet."""
    with open_gcide("gcide.index") as file:
        places = {_parse_index_line(line) for line in file if not line.startswith(b"00-")}
    with open_gcide("gcide.dict.dz") as packed, gzip.open(packed) as file:
        for offset, size in sorted(places):
            file.seek(offset)
            entry = parse_entry(file.read(size).decode("utf-8", "replace"))
            if entry is not None:
                yield entry


def _parse_index_line(line: bytes) -> tuple[int, int]:
    """Return offset and size of an entry, in bytes: ``head \\t offset \\t size`` in digits of base 64."""
    _, offset, size = line.decode("utf-8", "replace").rstrip("\n").split("\t")
    return _parse_number(offset), _parse_number(size)


def _parse_number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 64 + _DIGITS[digit]
    return number


def parse_entry(raw: str) -> Entry | None:
    """Parse an entry. Return None if it has no head, or nothing but text from WordNet."""
    heads, rest = _split_heads(raw)
    kept = _without_wordnet(rest)
    if not heads or kept is None:
        return None
    part, definition = _part_of_speech(rest), clean(_without_etymology(kept))
    text = f"{clean(heads[0])}, {definition.lstrip(' ,')}"
    return Entry(tuple(clean(head).lower() for head in heads), part, text, _defines(definition))


def _split_heads(raw: str) -> tuple[list[str], str]:
    """Return the headwords, each followed by its pronunciation, and what follows them."""
    heads, end = [], 0
    while match := _HEAD.match(raw, end):
        heads.append(match[1])
        end = match.end()
    return heads, raw[end:]


def _without_wordnet(text: str) -> str | None:
    """Return the paragraphs that do not come from WordNet, or None if the first one, with the head, does.

    A source such as ``[1913 Webster]`` stands below what comes from it, and that may be several paragraphs.
    """
    kept, start = [], 0
    for source in _SOURCE.finditer(text):
        if "WordNet" not in source[0]:
            kept.append(text[start : source.start()])
        elif start == 0:
            return None
        start = source.end()
    if start == 0 or text[start:].count("\n"):  # otherwise, a remnant of the next entry's head
        kept.append(text[start:])
    return "\n".join(kept)


def _part_of_speech(text: str) -> str:
    """Return the part of speech that the text names first, within its first line; "" if it names none."""
    line = _ETYMOLOGY.sub("", text)[:60]
    found = {part: match.start() for part, names in _PARTS_OF_SPEECH.items() if (match := names.search(line))}
    return min(found, key=found.__getitem__, default="")


def _without_etymology(text: str) -> str:
    """Drop inflections and etymology: what stands in square brackets near the head."""
    text = _LETTER.sub(_plain_letter, text)  # letters with accents are in brackets, too
    while match := re.match(r"[^\[]{0,40}(\[[^\[\]]{5,1500}\])", text):
        text = text[: match.start(1)] + text[match.end(1) :]
    return text


def _plain_letter(match: re.Match[str]) -> str:
    """Return the letter without its accent, or all of the match if it is a label such as ``[R.]``."""
    name = match[1]
    if name in _NAMED_LETTERS:
        return _NAMED_LETTERS[name]
    letters = re.sub(r"[^A-Za-z]", "", name)
    accented = letters != name and not name.endswith(".") or name in ("ae", "oe", "AE", "OE", "th", "ng")
    return letters if accented and len(letters) <= 2 else match[0]


def clean(text: str) -> str:
    """Return a text on one line, without marks of links and of accents."""
    text = _LETTER.sub(_plain_letter, text)
    text = text.replace("{", "").replace("}", "").replace("\\", "")
    text = re.sub(r"(?<=[A-Za-z])[`*\"](?=[A-Za-z])", "", text)
    return re.sub(r"\s+([,.;:)])", r"\1", " ".join(text.split()))


def _defines(definition: str) -> bool:
    """Return whether at least 3 words follow the part of speech, and they do not begin with a reference."""
    body = re.sub(
        r"^(?:[\W\d]|(?:n|v|a|t|i|pl|adv|adj|imp|p|pr|prop|prep|interj|vb|sing|superl|compar)\.)*", "", definition
    )
    body = re.sub(r"^(?:\([^()]*\)|[\W\d])*", "", body)
    return len(body.split()) >= 3 and _REFERENCE.match(body) is None


# WordNet ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Synset:
    """A meaning in WordNet.

    Attributes:
        key: part of speech and offset in the file, such as n03992436.
        part: n, v, a or r.
        words: its words, in lower case.
        gloss: its definition, without examples.
        instance: whether it is one person, place or the like, and not a kind of thing.
    """

    key: str
    part: str
    words: tuple[str, ...]
    gloss: str
    instance: bool


def read_synsets(open_wordnet: Opener) -> Iterator[Synset]:
    """Yield all synsets: ``offset file type count word id word id ... | gloss; "example"``, the count in base 16."""
    for part, name in WORDNET_FILES.items():
        with open_wordnet(name) as file:
            for line in io.TextIOWrapper(file, encoding="ascii"):
                if line.startswith("  "):  # the licence on top
                    continue
                fields, _, gloss = line.partition(" | ")
                offset, _, _, count, *words = fields.split()
                names = [re.sub(r"\((?:a|p|ip)\)$", "", word) for word in words[: 2 * int(count, 16) : 2]]
                lemmas = dict.fromkeys(name.replace("_", " ").lower() for name in names)
                gloss = re.split(r';\s*"', gloss)[0]
                gloss = " ".join(gloss.split()).strip("; ")
                yield Synset(f"{part}{offset}", part, tuple(lemmas), gloss, instance="@i" in words)
