"""Read documents block by block, so that searching a collection of any size takes bounded memory."""

from collections.abc import Iterator

from drhard.errors import InputError
from drhard.vectors import find_in_file

import numpy as np

BLOCK_ROWS = 8192  # documents read at a time: 25 MB at 768 dimensions
BUFFERS = 3  # blocks in memory: one in use, one waiting, one being read


def read_blocks(documents: np.ndarray, block_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row and the embeddings (B, dim) float32 of each block of ``documents`` (N, dim).

    A memmap, or consecutive rows of one, is read from its file into ``BUFFERS`` arrays in turn. Mapped pages would stay
    in memory and count as the process's. A block is overwritten after ``BUFFERS`` more blocks.

    Raises:
        InputError: the file became shorter.
    """
    count, dim = documents.shape
    place = find_in_file(documents)
    if place is not None:
        name, start = place
        buffers = [np.empty((min(block_rows, count), dim), dtype=documents.dtype) for _ in range(BUFFERS)]
        with open(name, "rb", buffering=0) as file:
            file.seek(start)
            for number, first in enumerate(range(0, count, block_rows)):
                block = buffers[number % BUFFERS][: count - first]
                left = block.data.cast("B")
                while left:
                    try:
                        read = file.readinto(left)
                    except OSError as error:  # say which file: the system does not
                        raise OSError(error.errno, error.strerror, str(name)) from None
                    if not read:
                        raise InputError(f"{name}: became shorter while it was read")
                    left = left[read:]
                yield first, block
    else:
        for first in range(0, count, block_rows):
            yield first, np.require(documents[first : first + block_rows], np.float32, ["C", "W"])  # as torch needs it
