"""Encoding, searching and training on one GPU, each beside the limit of the card. Without a GPU it runs on the CPU.

The model has roberta-base's size and random weights. Texts are random, as long as MS MARCO's. The limits are measured
in the same run: the rate of a large square product in each precision, and the bandwidth of a copy in memory. The limit
of a part is the time of its matrix products, without padding, at that rate, and of what its optimizer must read and
write, at that bandwidth.

It needs torch, transformers and this project, and neither faiss nor the network.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts encode lamb --output gpu.json
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drhard.adore import AdoreInput, AdoreTraining
from drhard.adore_settings import AdoreOutput, AdoreSettings
from drhard.collection import Collection
from drhard.commands import command
from drhard.devices import choose_device
from drhard.embeddings import encode
from drhard.encoder import Encoder, embed_groups
from drhard.index import check_topk
from drhard.lamb import Lamb
from drhard.losses import pairwise_loss
from drhard.products import has_fast_int8, int8_products
from drhard.sampling import CALL_TOKENS, Collator, Grouping, TrainingDataset
from drhard.shards import FEW_QUERIES, FEWEST_CODED, open_shards
from drhard.strategies import STAR, AnyDocument
from drhard.tokens import PASSAGES, query_name
from drhard.training import group_parameters

import numpy as np
import torch
from measuring import arguments, measure_in_turn, peak_memory_gb, positive, save, show, show_machine
from stand_ins import flops, passage_lengths, random_encoder, write_tokens

QUERY_LENGTH, LONGEST = 24, 120  # tokens, as star/train.py is published
ADORE_QUERIES, TOPK = 32, 200  # of a step of ADORE
DIM = 768  # of embeddings
BLOCK = 1 << 15  # documents that the plain search scores at a time
NEAR = 1e-4  # of the top score; float32 rounds sums of another order
HALF = (torch.bfloat16, torch.float16)


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--passages", type=positive, default=32_768, help="to encode")
    parser.add_argument("--documents", type=positive, default=500_000, help="to search")
    parser.add_argument("--mined", type=positive, default=4096, help="queries of a part of mining")
    parser.add_argument("--batch", type=positive, default=256, help="queries in a step of STAR")
    parser.add_argument("--layers", type=positive, default=12)
    parser.add_argument("--vocabulary", type=positive, default=50_265, help="of the model")
    parser.add_argument("--steps", type=positive, default=10, help="of STAR and ADORE between two waits for the GPU")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--square", type=positive, default=8192, help="rows and columns of the square product")
    return parser.parse_args()


@dataclass(frozen=True)
class Limits:
    """What the device can do at most.

    Attributes:
        rates: FLOP/s of a square product, by precision; of int8 if the device is fast with it, else of float32.
        bandwidth: bytes/s that a copy reads and writes.
    """

    rates: Mapping[torch.dtype, float]
    bandwidth: float

    def seconds(self, work: float, dtype: torch.dtype, moved: float = 0) -> float:
        """Return the least time for ``work`` FLOPs in products and for ``moved`` bytes."""
        return work / self.rates[dtype] + moved / self.bandwidth


@dataclass(frozen=True)
class Bench:
    """The device, the size of the work, and the limits."""

    args: argparse.Namespace
    device: torch.device
    folder: Path
    limits: Limits

    def measure(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Return the median seconds of ``work``, and the peak memory in GB."""
        seconds = time_on(self.device, work, self.args.rounds)
        return seconds, self.peak_gb()

    def peak_gb(self) -> float:
        """Return the peak memory in GB."""
        on_gpu = self.device.type == "cuda"
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if on_gpu else peak_memory_gb()

    def row(self, way: str, work: Callable[[], Any], limit: float | None, unit: str, count: float) -> dict[str, Any]:
        """Measure ``work``, which does ``count`` of a ``unit``. ``limit`` is its least time, None if it has none."""
        seconds, peak = self.measure(work)
        row = {"way": way, "seconds": seconds, "rate": count / seconds, "unit": f"{unit}/s"}
        return row | {"limit_seconds": limit, "of_the_limit": limit and limit / seconds, "peak_gb": peak}


def time_on(device: torch.device, work: Callable[[], Any], rounds: int) -> float:
    """Return the median seconds of ``work``, after one run that does not count, with all that the GPU has to do."""

    def whole() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    whole()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return statistics.median(measure_in_turn({"": whole}, rounds)[""])


def measure_limits(device: torch.device, square: int, rounds: int) -> Limits:
    """Measure the rates and the bandwidth."""
    rates = {}
    for dtype in (torch.float32, *HALF):
        one = torch.randn(square, square, device=device).to(dtype)
        rates[dtype] = 2 * square**3 / time_on(device, partial(torch.mm, one, one), rounds)
    rates[torch.int8] = rates[torch.float32]
    if has_fast_int8(device):
        ones = torch.ones(square, square, dtype=torch.int8, device=device)
        rates[torch.int8] = 2 * square**3 / time_on(device, partial(int8_products, ones, ones), rounds)
    source = torch.randn(16 * square**2 // 4, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    return Limits(rates, copied / time_on(device, partial(target.copy_, source), rounds))


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def count_weights(model: Encoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Parts


def measure_encoding(bench: Bench) -> list[dict[str, Any]]:
    """Encode passages as star/inference.py does, the writing of the file included."""
    model = random_encoder(bench.args.layers, bench.args.vocabulary).eval().to(bench.device)
    lengths = passage_lengths(np.random.default_rng(0), bench.args.passages, 256)
    write_tokens(bench.folder, PASSAGES, lengths, 256, bench.args.vocabulary)
    tokens = Collection(bench.folder, None, 256).passages
    path = bench.folder / "passages.embeddings"

    def embed(dtype: torch.dtype) -> None:
        path.unlink(missing_ok=True)
        encode(model, tokens, path, 32, bench.device, dtype)

    work, count = flops(model.config, lengths), int(lengths.sum())
    rows = []
    for dtype in (torch.float32, *HALF):
        limit = bench.limits.seconds(work, dtype)
        rows.append(bench.row(f"encoding, {name(dtype)}", partial(embed, dtype), limit, "tokens", count))
    return rows


def make_documents(bench: Bench) -> np.ndarray:
    """Return random embeddings (documents, DIM) float32, made on the device: 27 GB take a processor a minute."""
    documents = np.empty((bench.args.documents, DIM), dtype=np.float32)
    for first in range(0, len(documents), BLOCK):
        block = documents[first : first + BLOCK]
        block[:] = torch.randn(block.shape, device=bench.device).cpu().numpy()
    return documents


def plain_search(documents: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Search in float32 with what torch offers, block by block. Return scores and rows, both (Q, k)."""
    best = [(queries @ block.T).topk(min(k, len(block))) for block in documents.split(BLOCK)]
    rows = torch.cat([found.indices + number * BLOCK for number, found in enumerate(best)], dim=1)
    scores, places = torch.cat([found.values for found in best], dim=1).topk(k)
    return scores, rows.gather(1, places)


def measure_search(bench: Bench) -> list[dict[str, Any]]:
    """Search as mining and ADORE do, and plainly in float32. The limit of both multiplies once, or reads once.

    Ours takes float32 for few queries and documents, else int8 codes; the limit is that of the numbers it takes.
    """
    check_topk(TOPK, bench.args.documents)
    documents = make_documents(bench)
    seconds = -time.perf_counter()
    index = open_shards(documents, [bench.device])
    seconds += time.perf_counter()
    rows = [
        {
            "way": "making the codes",
            "seconds": seconds,
            "rate": len(documents) / seconds,
            "unit": "documents/s",
        }
    ]
    rows[0] |= {"limit_seconds": None, "of_the_limit": None, "peak_gb": bench.peak_gb()}
    on_device = torch.from_numpy(documents).to(bench.device)
    for queries, what in ((ADORE_QUERIES, "a step of ADORE"), (bench.args.mined, "mining")):
        asked = torch.randn(queries, DIM, device=bench.device)
        host = asked.cpu().numpy()
        check_found(index.search(host, TOPK)[0], plain_search(on_device, asked, TOPK)[0].cpu().numpy())
        coded = len(documents) >= FEWEST_CODED or queries > FEW_QUERIES
        ways: dict[str, tuple[torch.dtype, Callable[[], Any]]] = {
            "ours": (torch.int8 if coded else torch.float32, partial(index.search, host, TOPK)),
            "plain": (torch.float32, partial(plain_search, on_device, asked, TOPK)),
        }
        for way, (dtype, search) in ways.items():
            work, read = 2 * queries * len(documents) * DIM, len(documents) * DIM * dtype.itemsize
            limit = max(bench.limits.seconds(work, dtype), bench.limits.seconds(0, dtype, read))
            rows.append(
                bench.row(f"{what}, {queries} queries, {way}, {name(dtype)}", search, limit, "queries", queries)
            )
    return rows


def check_found(scores: np.ndarray, expected: np.ndarray) -> None:
    """End the benchmark if the scores (Q, k) are not those of a search in float32."""
    if np.abs(scores - expected).max() > NEAR * np.abs(expected).max():
        raise SystemExit("error: the documents found are not the best; a faster wrong answer is no answer")


def write_training(bench: Bench, queries: int, passages: int) -> Collection:
    """Write the tokens of a collection to train on."""
    random = np.random.default_rng(1)
    for of, count, longest in ((query_name("train"), queries, QUERY_LENGTH), (PASSAGES, passages, LONGEST)):
        write_tokens(bench.folder, of, passage_lengths(random, count, longest), longest, bench.args.vocabulary)
    return Collection(bench.folder, QUERY_LENGTH, LONGEST)


def measure_star(bench: Bench) -> list[dict[str, Any]]:
    """Take steps of STAR: collate a batch alone; its gradient and an update by LAMB."""
    batch, device = bench.args.batch, bench.device
    collection = write_training(bench, batch, 20 * batch)
    relevant = {row: [row] for row in range(batch)}
    dataset = TrainingDataset(relevant, AnyDocument(20 * batch), 1, seed=0)
    grouping = Grouping(call_tokens=CALL_TOKENS[device.type])
    model = random_encoder(bench.args.layers, bench.args.vocabulary).train().to(device)
    collator = Collator(collection, relevant, STAR, model.config.pad_token_id, grouping)
    optimizer = Lamb(group_parameters(model, 0.01), lr=1e-4)
    examples = [dataset[place] for place in range(batch)]
    inputs = move(collator(examples), device)
    rows = [row for example in examples for row in (example.positive, *example.drawn)]
    lengths = np.concatenate([collection.queries("train").lengths, collection.passages.lengths[rows]])

    def step(dtype: torch.dtype) -> None:
        for _ in range(bench.args.steps):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                queries, documents = (embed_groups(model, **inputs[part]) for part in ("query", "document"))
            scores = queries.float() @ documents.float().T
            pairwise_loss(scores, torch.arange(batch, device=device), inputs["negatives"]).backward()
            optimizer.step()
            optimizer.zero_grad()

    def collate() -> None:
        collator([dataset[place] for place in range(batch)])

    measured = [bench.row("STAR, collating", collate, None, "batches", 1)]
    work, moved = 3 * flops(model.config, lengths), 40 * count_weights(model)
    for dtype in (torch.float32, torch.bfloat16):
        limit = bench.args.steps * bench.limits.seconds(work, dtype, moved)
        measured.append(bench.row(f"STAR, {name(dtype)}", partial(step, dtype), limit, "steps", bench.args.steps))
    return measured


def move(batch: Any, device: torch.device) -> Any:
    """Move what the collator returns to ``device``, as the Trainer does."""
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [move(value, device) for value in batch]
    return batch if batch is None else batch.to(device)


class Found:
    """An index that has already found its documents: what remains of a step of ADORE is measured without a search."""

    def __init__(self, documents: int):
        self.rows = np.random.default_rng(2).integers(0, documents, (ADORE_QUERIES, TOPK))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return zeros for the scores, and the rows."""
        return np.zeros(self.rows.shape, dtype=np.float32), self.rows


def measure_adore(bench: Bench) -> list[dict[str, Any]]:
    """Take steps of ADORE: encode, search, gather the vectors, the loss, the gradient and AdamW.

    The first row is without the search, and gathers vectors in the memory of the computer. The limit of both is that of
    the model.
    """
    count = bench.args.documents
    check_topk(TOPK, count)
    collection = write_training(bench, 10 * ADORE_QUERIES, 1)
    documents = make_documents(bench)
    relevant = {row: [row % count] for row in range(10 * ADORE_QUERIES)}
    settings = AdoreSettings(metric_cut=TOPK, neg_topk=TOPK, per_gpu_batch_size=ADORE_QUERIES, warmup_steps=0)
    model = random_encoder(bench.args.layers, bench.args.vocabulary).to(bench.device)
    output = AdoreOutput(bench.folder / "models", bench.folder / "log", bench.folder)
    queries = np.arange(ADORE_QUERIES)
    work = 3 * flops(model.config, collection.queries("train").lengths[queries])
    limit = bench.args.steps * bench.limits.seconds(work, torch.float32, 28 * count_weights(model))
    rows = []
    for way, index in ((" without the search", Found(count)), ("", open_shards(documents, [bench.device]))):
        data = AdoreInput(collection, relevant, documents, index, "of a benchmark")
        training = AdoreTraining(model, data, settings, output)

        def steps(training: AdoreTraining = training) -> None:
            for _ in range(bench.args.steps):
                training._train_step(queries)

        rows.append(bench.row(f"ADORE{way}, float32", steps, limit, "steps", bench.args.steps))
    return rows


def measure_lamb(bench: Bench) -> list[dict[str, Any]]:
    """Update all weights. It must read weight, gradient and moments, write the moments, and read and write again."""
    model = random_encoder(bench.args.layers, bench.args.vocabulary).to(bench.device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = Lamb(group_parameters(model, 0.01), lr=1e-4)
    limit = bench.limits.seconds(0, torch.float32, 40 * count_weights(model))
    return [bench.row("LAMB", optimizer.step, limit, "steps", 1)]


PARTS: Mapping[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "encode": measure_encoding,
    "search": measure_search,
    "star": measure_star,
    "adore": measure_adore,
    "lamb": measure_lamb,
}


@command
def main() -> None:
    args = parse_arguments()
    device = choose_device()
    show_machine()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    limits = measure_limits(device, args.square, args.rounds)
    rates = {name(dtype): rate for dtype, rate in limits.rates.items()}
    print(f"{gpu or 'no GPU'}, torch {torch.__version__}")
    print(", ".join(f"{precision} {rate / 1e12:.3g} TFLOP/s" for precision, rate in rates.items()), end="")
    print(f", {limits.bandwidth / 1e9:.4g} GB/s")
    rows = []
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            rows += PARTS[part](Bench(args, device, Path(folder), limits))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    show(
        f"{args.layers} layers; {args.passages:,} passages to encode; STAR with {args.batch} queries, "
        f"ADORE with {ADORE_QUERIES}",
        ["work", "seconds", "rate", "", "limit, seconds", "of the limit", "peak memory, GB"],
        [["" if value is None else value for value in row.values()] for row in rows],
    )
    save(args.output, {"gpu": gpu, "rates": rates, "bandwidth": limits.bandwidth, "results": rows})


if __name__ == "__main__":
    main()
