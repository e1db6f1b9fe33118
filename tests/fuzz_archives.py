"""Mutated archives: each is unpacked whole or ends with one sentence. python tests/fuzz_archives.py COUNT [SEED]"""

import gzip
import io
import random
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from drhard import files
from drhard.archives import unpack, unpack_checkpoint
from drhard.errors import InputError

MEMBERS = {
    "x/config.json": b"{}",
    "x/" + "n" * 120: b"a long name",
    "x/vocab.json": b"{}" * 300,
    "x/pytorch_model.bin": b"\x80\x02weights",
}
PIECES = (b"9" * 20, b"\xff" * 8, b"-1", bytes(512), b"77777777777")


def tar(mode: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name, content in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), {"comment": "ü" * 50}
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def zipped(compression: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    return packed.getvalue()


def mutate(content: bytes, draw: random.Random) -> bytearray:
    """``content`` with one to twenty bytes or pieces changed, taken out or put in."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(len(changed))
        way = draw.randrange(4)
        if way == 0:
            changed[place] = draw.randrange(256)
        elif way == 1:
            del changed[place : place + draw.choice((1, 2, 8, 512))]
        elif way == 2:
            changed[place:place] = draw.choice(PIECES)
        else:
            piece = draw.choice(PIECES)
            changed[place : place + len(piece)] = piece
        changed = changed or bytearray(b"x")
    return changed


def mend_checksums(archive: bytearray) -> None:
    """Give tar's headers right checksums, so that what they say is believed."""
    for start in range(0, len(archive) - 511, 512):
        header = archive[start : start + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(header)


def fuzz(count: int, seed: int, folder: Path) -> tuple[int, int]:
    """Unpack ``count`` mutated archives in ``folder``; how many ended well, and how many with a sentence."""
    draw = random.Random(seed)
    plain = tar("w:")
    originals = [plain, tar("w:gz"), tar("w:bz2"), tar("w:xz"), *map(zipped, (0, 8, 14))]
    path, target = folder / "a.tar.gz", folder / "out"
    unpackings = (lambda: unpack_checkpoint(path, target), lambda: unpack(path, ["x"], lambda *_: None, 10**6))
    well = refused = 0
    for _ in range(count):
        archive = mutate(draw.choice(originals), draw)
        if draw.random() < 0.3:
            archive = mutate(plain, draw)
            mend_checksums(archive)
            archive = archive if draw.random() < 0.5 else bytearray(gzip.compress(archive, 1))
        path.write_bytes(archive)
        target.mkdir()
        for unpacking in unpackings:
            try:
                unpacking()
                well += 1
            except InputError as error:
                assert str(error).isprintable(), error
                refused += 1
        shutil.rmtree(target)
        (folder / "x").unlink(missing_ok=True)
        assert [path.name for path in folder.iterdir()] == ["a.tar.gz"]
    return well, refused


if __name__ == "__main__":
    files.sync = lambda path: None  # thousands of waits for the disk
    with tempfile.TemporaryDirectory() as work:
        counts = fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(work))
        print("unpacked whole: {}, one sentence: {}".format(*counts))
