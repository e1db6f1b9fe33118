"""Training steps: ADORE's retrieval and loss against the published way, and STAR's batches in small memory.

ADORE is measured from query embeddings to their gradient, without the encoder. The published way searches a faiss flat
index and goes through queries and pairs one by one.

STAR is measured from token ids to the gradient. The model has roberta-base's size and random weights. Passages are as
long as MS MARCO's, cut at the published 120 tokens. Each way runs in a separate process to measure its memory. The
paper's batch of 256 runs once.

    python benchmarks/training.py
    python benchmarks/training.py --documents 100000 --batch 8 --chunk 4 --output training.json
"""

import argparse
import json
import time
from typing import Any

from drhard.adore import Candidates
from drhard.commands import command
from drhard.encoder import embed_groups, model_inputs
from drhard.exact import ExactIndex
from drhard.index import check_topk
from drhard.losses import adore_loss, pairwise_loss
from drhard.roberta_dot import RobertaDot
from drhard.sampling import Grouping

import faiss
import numpy as np
import torch
from measuring import arguments, compare, measure_in_turn, peak_memory_gb, positive, run_apart, save, show, show_machine
from search import blas_of_2021, check_same
from stand_ins import passage_lengths, random_encoder
from torch.nn import functional

QUERIES, TOPK, CUT = 32, 200, 200  # of a step of ADORE
QUERY_LENGTH, LONGEST = 24, 120  # tokens, as star/train.py is published
WAYS = {
    "one": "one matrix of all documents",
    "apart": "positives and hard negatives apart",
    "groups": "grouped by length",
    "chunks": "--chunk_size",
}


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=positive, default=500_000, help="of ADORE")
    parser.add_argument("--batch", type=positive, default=16, help="queries in a step of STAR")
    parser.add_argument("--large_batch", type=positive, default=256, help="with chunks alone; the paper's")
    parser.add_argument("--chunk", type=positive, default=16, help="sequences in a chunk")
    parser.add_argument("--layers", type=positive, default=12)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--step", choices=WAYS, help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args()


# ADORE


def gradient_as_published(
    retrieved: np.ndarray, documents: np.ndarray, vectors: np.ndarray, relevant: list[list[int]]
) -> tuple[float, torch.Tensor]:
    """Return the loss of a batch and its gradient, computed query by query and pair by pair."""
    queries = torch.from_numpy(vectors).requires_grad_()
    total = torch.zeros(())
    for query, rows, wanted in zip(queries, retrieved.tolist(), relevant, strict=True):
        listed = rows if set(rows) & set(wanted) else rows + wanted
        scores = torch.from_numpy(documents[listed]) @ query
        gains = [1 / rank if rank <= CUT else 0.0 for rank in range(1, len(listed) + 1)]
        of_relevant = [place for place, row in enumerate(listed) if row in wanted]
        others = [place for place, row in enumerate(listed) if row not in wanted]
        terms = [
            abs(gains[i] - gains[j]) * functional.softplus(scores[j] - scores[i]) for i in of_relevant for j in others
        ]
        total = total + torch.stack(terms).mean()
    total.backward()
    return total.item(), queries.grad


def gradient_as_ours(
    retrieved: np.ndarray, documents: np.ndarray, vectors: np.ndarray, relevant: list[list[int]]
) -> tuple[float, torch.Tensor]:
    """Return the loss of a batch and its gradient, computed as in adore/train.py."""
    queries = torch.from_numpy(vectors).requires_grad_()
    candidates = Candidates(retrieved, relevant)
    scores = torch.einsum("qd,qcd->qc", queries, torch.from_numpy(documents[candidates.rows]))
    loss = adore_loss(scores, torch.from_numpy(candidates.relevant), torch.from_numpy(candidates.listed), CUT)
    loss.backward()
    return loss.item(), queries.grad


def measure_adore(count: int, rounds: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    documents = random.standard_normal((count, 768), dtype=np.float32)
    vectors = random.standard_normal((QUERIES, 768), dtype=np.float32) / 28  # scores of about 1
    flat, index = faiss.IndexFlatIP(768), ExactIndex(documents)
    flat.add(documents)
    near = flat.search(vectors, TOPK)[1]
    # One relevant document each: retrieved by half of the queries, at some rank.
    relevant = [[int(near[query, query]) if query % 2 else (query * 97) % count] for query in range(QUERIES)]
    found: dict[str, tuple[np.ndarray, tuple[float, torch.Tensor]]] = {}  # rows; the loss and its gradient

    def published() -> None:
        rows = flat.search(vectors, TOPK)[1]
        found["published"] = rows, gradient_as_published(rows, documents, vectors, relevant)

    def ours() -> None:
        rows = index.search(vectors, TOPK)[1]
        found["ours"] = rows, gradient_as_ours(rows, documents, vectors, relevant)

    name = "published: faiss flat, then query by query, pair by pair"
    ways = {name: published, "the same with faiss's BLAS, as in 2021": blas_of_2021()(published), "ours": ours}
    rows = compare(measure_in_turn(ways, rounds), name)
    retrieved, gradient = found["ours"]
    check_same(vectors, documents, retrieved, found["published"][0])
    # Documents with nearly the same score may be swapped, which changes the gradient. So both use the same list here.
    same = gradient_as_published(retrieved, documents, vectors, relevant)
    torch.testing.assert_close(gradient, same, rtol=1e-4, atol=1e-6)
    return rows


# STAR


def embed(model: RobertaDot, texts: list[np.ndarray], groups: list[np.ndarray], recompute: bool) -> torch.Tensor:
    """Embed ``texts`` group by group, each padded to its longest."""
    inputs = []
    for group in groups:
        lengths = np.array([len(texts[place]) for place in group])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.ones(mask.shape, dtype=np.int64)
        ids[mask] = np.concatenate([texts[place] for place in group])
        inputs.append(model_inputs(ids, mask.astype(np.int64), torch.device("cpu")))
    named = [{"input_ids": ids, "attention_mask": mask} for ids, mask in inputs]
    return embed_groups(model, named, torch.from_numpy(np.concatenate(groups).argsort()), recompute)


def split(texts: list[np.ndarray], way: str, chunk: int) -> list[np.ndarray]:
    """Return the groups of ``texts`` in which a way encodes them."""
    if way in ("one", "apart"):
        return np.split(np.arange(len(texts)), 2 if way == "apart" else 1)
    grouping = Grouping(chunk_size=chunk if way == "chunks" else 0)
    return grouping.split(np.array([len(text) for text in texts]))


def star_gradient(model: RobertaDot, way: str, batch: int, chunk: int) -> float:
    """Compute the gradient of one batch. All methods get the same batch and weights.

    Returns:
        The share of padding in the tokens of the documents.
    """
    random = np.random.default_rng(0)
    lengths = [passage_lengths(random, batch * count, longest) for count, longest in ((1, QUERY_LENGTH), (2, LONGEST))]
    query, document = ([random.integers(3, model.config.vocab_size, length) for length in of] for of in lengths)
    groups = split(document, way, chunk)
    queries = embed(model, query, split(query, "one" if way == "apart" else way, chunk), way == "chunks")
    documents = embed(model, document, groups, way == "chunks")
    negatives = ~torch.eye(batch, 2 * batch, dtype=torch.bool)
    pairwise_loss(queries @ documents.T, torch.arange(batch), negatives).backward()
    return 1 - lengths[1].sum() / sum(len(group) * lengths[1][group].max() for group in groups)


def print_step(args: argparse.Namespace) -> None:
    """Run a step in a separate process. Print its time and memory, and how much its gradient differs from way "one".

    The gradients are those of a small model.
    """
    model = random_encoder(args.layers).train()
    start = time.perf_counter()
    padding = star_gradient(model, args.step, args.batch, args.chunk)
    result = {"seconds": time.perf_counter() - start, "padding": float(padding), "peak_gb": peak_memory_gb()}
    # Where different padding does not show as rounding.
    model = random_encoder(2, vocabulary=1000, width=128).train().double()
    small: dict[str, torch.Tensor] = {}
    for way in ("one", args.step):
        model.zero_grad()
        star_gradient(model, way, 5, 2)  # chunks of 2, 2 and 1
        small[way] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    result["difference"] = float((small["one"] - small[args.step]).norm() / small["one"].norm())
    print(json.dumps(result))


def measure_step(args: argparse.Namespace, way: str, batch: int) -> dict[str, Any]:
    """Run a step in a separate process, and check its gradient."""
    flags = ("--step", way, "--batch", batch, "--chunk", args.chunk, "--layers", args.layers)
    result = run_apart(__file__, *flags)
    if result["difference"] > 1e-6:
        raise SystemExit(f"error: the gradients differ by {result['difference']:g}")
    return result


def measure_star(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way, and one for the large batch, which runs once."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            found[way].append(measure_step(args, way, args.batch))
    rows = compare({way: [result["seconds"] for result in results] for way, results in found.items()}, "one")
    for row in rows:
        row |= {key: max(result[key] for result in found[row["way"]]) for key in ("padding", "peak_gb", "difference")}
        row |= {"way": WAYS[row["way"]], "queries": args.batch}
    large = measure_step(args, "chunks", args.large_batch)
    return [*rows, large | {"way": WAYS["chunks"], "queries": args.large_batch}]


@command
def main() -> None:
    args = parse_arguments()
    if args.step:
        return print_step(args)
    check_topk(TOPK, args.documents)
    show_machine()
    adore = measure_adore(args.documents, args.rounds)
    show(
        f"a step of ADORE without the encoder: {QUERIES} queries, top {TOPK} of {args.documents:,}; the same gradient",
        ["method", "seconds", "speed-up"],
        [[row["way"], row["seconds"], row["times_faster"]] for row in adore],
    )
    star = measure_star(args)
    show(
        f"a step of STAR, {args.layers} layers, chunks of {args.chunk}; the same gradient",
        ["method", "queries", "seconds", "padding", "peak memory, GB", "gradient differs by"],
        [[row[key] for key in ("way", "queries", "seconds", "padding", "peak_gb", "difference")] for row in star],
    )
    return save(args.output, {"adore": adore, "star": star})


if __name__ == "__main__":
    main()
