"""Encode a collection and a split's queries with one encoder and search; mine hard negatives."""

import json
from collections.abc import Sequence
from pathlib import Path

from drhard.embeddings import encode, open_embeddings, write_row_numbers
from drhard.encoder import RobertaDot
from drhard.errors import InputError
from drhard.files import whole
from drhard.qrels import read_relevant_rows
from drhard.runs import without
from drhard.search import check_search, gpus_with_room, open_index
from drhard.tokens import PASSAGES, TokenMemmap, query_name

import numpy as np
import torch

EXTRA = 10  # published: the run beside hard.json holds topk + 10 passages, room for relevant ones among them


def encode_collection(
    model: RobertaDot, tokens: TokenMemmap, folder: Path, batch_size: int, device: torch.device
) -> np.ndarray:
    """Encode ``tokens`` into ``folder/{name}.memmap`` and ``folder/{name}-id.memmap``.

    Returns:
        (rows, dim) float32 memmap. Raises InputError as :func:`drhard.embeddings.encode`.
    """
    path = folder / f"{tokens.name}.memmap"
    dim = encode(model, tokens, path, batch_size, device)
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
) -> np.ndarray:
    """Encode queries and passages into ``folder`` and search the passages.

    Args:
        topk: how many passages for each query.
        gpus: where to search; on the CPU if empty, on all if None and they have room for it.

    Returns:
        (queries, topk) int64 passage rows, best first.

    Raises:
        InputError: as :func:`drhard.embeddings.encode` and :func:`drhard.search.check_search`.
    """
    check_search(topk, len(passages), gpus or ())  # before the long work, not after
    query_embeddings = encode_collection(model, queries, folder, batch_size, device)
    embeddings = encode_collection(model, passages, folder, batch_size, device)
    if gpus is None:
        gpus = gpus_with_room(embeddings.nbytes)
    _, rows = open_index(embeddings, gpus, progress=True).search(query_embeddings, topk)
    return rows


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
) -> tuple[dict[int, list[int]], np.ndarray]:
    """For each query, the ``topk`` best passages that are not judged relevant to it (section 4.1 of the paper).

    Embeddings are left in ``folder``, where they are found again.

    Returns:
        query row -> passage rows, best first; and (queries, topk + 10) the retrieved rows, relevant ones
        among them.
    """
    passages = TokenMemmap(preprocess_folder, PASSAGES, max_doc_length)
    queries = TokenMemmap(preprocess_folder, query_name(mode), max_query_length)
    relevant = read_relevant_rows(preprocess_folder / f"{mode}-qrel.tsv", len(queries), len(passages))
    most = max(map(len, relevant.values()))
    if topk + most > len(passages):
        raise InputError(f"cannot mine {topk} negatives (--topk) from {len(passages)} passages; lower it")
    depth = min(topk + max(EXTRA, most), len(passages))
    ranked = retrieve(model, passages, queries, folder, depth, batch_size, device, gpus)
    hard = {qid: without(row, relevant.get(qid, []), topk) for qid, row in enumerate(ranked)}
    return hard, ranked[:, : topk + EXTRA]


def write_hard_negatives(path: Path, hard: dict[int, list[int]]) -> None:
    """Write ``hard.json``: ``{"qid": [pid, …]}`` in rows."""
    # Query by query: as one string it would take a gigabyte for MS MARCO.
    with whole(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for number, (qid, pids) in enumerate(hard.items()):
            file.write(("{" if number == 0 else ", ") + f'"{qid}": {json.dumps(pids)}')
        file.write("}")
