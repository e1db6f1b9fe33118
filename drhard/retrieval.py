"""Encode a collection and a split's queries with one encoder and search; mine hard negatives, with BM25 too."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from drhard.bm25 import Bm25Index, document_texts, query_texts
from drhard.embeddings import encode, open_embeddings, write_row_numbers
from drhard.encoder import RobertaDot
from drhard.errors import InputError
from drhard.files import whole_text
from drhard.msmarco import Corpus
from drhard.qrels import read_relevant_rows
from drhard.runs import without
from drhard.search import SEARCH_MEMORY_GB, check_search, gpus_with_room, open_index
from drhard.tokens import PASSAGES, TokenMemmap, query_name

import numpy as np
import torch

EXTRA = 10  # published: the run beside hard.json holds topk + 10 passages, room for relevant ones among them


def encode_collection(
    model: RobertaDot, tokens: TokenMemmap, folder: Path, batch_size: int, device: torch.device, dtype: torch.dtype
) -> np.ndarray:
    """Encode ``tokens`` into ``folder/{name}.memmap`` and ``folder/{name}-id.memmap``.

    Returns:
        (rows, dim) float32 memmap. Raises InputError as :func:`drhard.embeddings.encode`.
    """
    path = folder / f"{tokens.name}.memmap"
    dim = encode(model, tokens, path, batch_size, device, dtype)
    write_row_numbers(folder / f"{tokens.name}-id.memmap", len(tokens))
    return open_embeddings(path, dim, len(tokens))


def retrieve(
    model: RobertaDot,
    passages: TokenMemmap,
    queries: TokenMemmap,
    folder: Path,
    topk: int,
    batch_size: int,
    device: torch.device,
    gpus: Sequence[int] | None = (),
    memory_gb: float = SEARCH_MEMORY_GB,
    dtype: torch.dtype = torch.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode queries and passages into ``folder`` and search the passages.

    Args:
        topk: how many passages for each query.
        gpus: where to search; on the CPU if empty, on all if None and they have room for it.
        memory_gb: what the search may take on the CPU.
        dtype: what the model computes in on a GPU.

    Returns:
        (queries, topk) float32 scores, greatest first, and int64 passage rows.

    Raises:
        InputError: as :func:`drhard.embeddings.encode` and :func:`drhard.search.check_search`.
    """
    check_search(topk, len(passages), gpus or (), memory_gb, len(queries))  # before the long work, not after
    query_embeddings = encode_collection(model, queries, folder, batch_size, device, dtype)
    embeddings = encode_collection(model, passages, folder, batch_size, device, dtype)
    if gpus is None:
        gpus = gpus_with_room(embeddings.nbytes)
    return open_index(embeddings, gpus, True, memory_gb).search(query_embeddings, topk)


class Mined(NamedTuple):
    """Hard negatives, and the run that they come from, relevant passages among it."""

    hard: dict[int, list[int]]  # query row -> passage rows, best first
    scores: np.ndarray  # (queries, topk + 10) float32
    rows: np.ndarray  # (queries, topk + 10) int64, -1 where no more was found


def mine_hard_negatives(
    model: RobertaDot,
    preprocess_folder: Path,
    mode: str,
    folder: Path,
    max_query_length: int,
    max_doc_length: int,
    topk: int,
    batch_size: int,
    device: torch.device,
    gpus: Sequence[int] | None = (),
    memory_gb: float = SEARCH_MEMORY_GB,
    dtype: torch.dtype = torch.float32,
) -> Mined:
    """For each query, the ``topk`` best passages that are not judged relevant to it (section 4.1 of the paper).

    Embeddings are left in ``folder``, where they are found again. Raises InputError if there are too few passages.
    """
    passages = TokenMemmap(preprocess_folder, PASSAGES, max_doc_length)
    queries = TokenMemmap(preprocess_folder, query_name(mode), max_query_length)
    relevant = read_relevant_rows(preprocess_folder / f"{mode}-qrel.tsv", len(queries), len(passages))
    return _mine(
        lambda depth: retrieve(model, passages, queries, folder, depth, batch_size, device, gpus, memory_gb, dtype),
        relevant, len(passages), topk,
    )  # fmt: skip


def mine_bm25_negatives(corpus: Corpus, root: Path, mode: str, topk: int, k1: float, b: float) -> Mined:
    """The same with BM25, as the paper's warm-up needs them; fewer than ``topk`` where fewer share a word.

    Args:
        root: the folder with ``dataset/`` and ``preprocess/``.
        k1, b: of :class:`drhard.bm25.Bm25Index`.
    """
    count = len(TokenMemmap(root / "preprocess", PASSAGES, 2))
    queries = query_texts(corpus, root, mode)
    relevant = read_relevant_rows(root / "preprocess" / f"{mode}-qrel.tsv", len(queries), count)
    return _mine(
        lambda depth: Bm25Index(document_texts(corpus, root, count), count, k1, b).search(queries, depth),
        relevant, count, topk,
    )  # fmt: skip


def _mine(
    search: Callable[[int], tuple[np.ndarray, np.ndarray]], relevant: dict[int, list[int]], count: int, topk: int
) -> Mined:
    most = max(map(len, relevant.values()))
    if topk + most > count:
        raise InputError(f"cannot mine {topk} negatives (--topk) from {count} passages; lower it")
    scores, rows = search(min(topk + max(EXTRA, most), count))
    hard = {qid: without(row[row >= 0], relevant.get(qid, []), topk) for qid, row in enumerate(rows)}
    return Mined(hard, scores[:, : topk + EXTRA], rows[:, : topk + EXTRA])


def write_hard_negatives(path: Path, hard: dict[int, list[int]]) -> None:
    """Write ``hard.json``: ``{"qid": [pid, …]}`` in rows."""
    # Query by query: as one string it would take a gigabyte for MS MARCO.
    with whole_text(path) as file:
        for number, (qid, pids) in enumerate(hard.items()):
            file.write(("{" if number == 0 else ", ") + f'"{qid}": {json.dumps(pids)}')
        file.write("}")
