"""Exact search: our way against the published one, one faiss call, sentence-transformers, and bare matrix products.

The limit is the longer of two times: multiplying at the rate of large square matrices, and reading all documents from
memory.

The published scripts search a faiss flat index 32 queries at a time. faiss of 2021 multiplied such a batch with its
BLAS. faiss 1.15 takes the queries one by one, which is slower on few cores. Both are measured. The embeddings are
random, so no search can gain by skipping some. If sentence-transformers is not installed, the same two torch calls
replace it.

Our search by int8 codes is measured with the codes at hand, and with those that it has to make first. Beside it stand
the multiplication of the codes alone, and what faiss offers with codes of eight bits: its SQ8 index with a refinement
in float32, which may miss documents. The share that it finds is printed.

    python benchmarks/search.py
    python benchmarks/search.py --documents 100000 --rounds 3 --output search.json
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from drhard.codes import keep_codes
from drhard.commands import command
from drhard.cores import on_all_cores
from drhard.exact import ExactIndex
from drhard.index import check_topk
from drhard.products import IN_CACHE, has_fast_int8
from drhard.rounded import RoundedQueries

import faiss
import numpy as np
import torch
from measuring import arguments, compare, measure_with_rate, peak_memory_gb, positive, save, show, show_machine

WORK = (("search of 640 queries", 640, 100), ("ADORE's step of 32 queries", 32, 200))  # queries, k
PUBLISHED, OURS = "published: faiss flat, 32 queries per call", "ours"
CODED = "ours, by int8 codes at hand"
SQ8, REFINED = "faiss SQ8, refined in float32, one call", 4  # times k documents are refined
MATMUL, READING = "torch.matmul, results discarded", "reading"
NEAR = 1e-4  # of the top score; documents with scores this close may be swapped


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=positive, default=500_000)
    parser.add_argument("--dim", type=positive, default=768)
    parser.add_argument("--rounds", type=positive, default=3)
    return parser.parse_args()


def semantic_search(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    """Return the rows that sentence-transformers finds: it takes 100 queries by 500,000 documents, then the top k."""
    try:
        from sentence_transformers.util import dot_score
        from sentence_transformers.util import semantic_search as search
    except ImportError:
        corpus = torch.from_numpy(documents)
        rows = [(part @ corpus.T).topk(k).indices for part in torch.from_numpy(queries).split(100)]
        return torch.cat(rows).numpy()
    found = search(torch.from_numpy(queries), torch.from_numpy(documents), top_k=k, score_function=dot_score)
    return np.array([[hit["corpus_id"] for hit in hits] for hits in found])


@contextmanager
def blas_of_2021() -> Iterator[None]:
    """Make faiss use its BLAS for 20 queries or more, as it did until 2026. faiss 1.15 uses it from 128,000 numbers on.

    Works as a decorator too.
    """
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 20
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def check_same(queries: np.ndarray, documents: np.ndarray, rows: np.ndarray, expected: np.ndarray) -> None:
    """End the benchmark if the rows differ, unless documents with nearly the same score are swapped."""
    scores, wanted = (
        np.einsum("qd,qkd->qk", queries, documents[found], dtype=np.float64) for found in (rows, expected)
    )
    if np.abs(scores - wanted).max() > NEAR * np.abs(wanted).max():
        raise SystemExit("error: the rows found are not those of faiss; a faster wrong answer is no answer")


def make_ways(documents: np.ndarray, indexes: "Indexes", queries: np.ndarray, k: int) -> dict[str, Callable[[], Any]]:
    """Return the methods of searching by name, and one that only reads the documents. Compared ones return rows."""

    flat = indexes.flat

    def published() -> np.ndarray:
        return np.concatenate([flat.search(queries[first : first + 32], k)[1] for first in range(0, len(queries), 32)])

    def numpy_matmul() -> None:
        for first in range(0, len(documents), 4096):
            queries @ documents[first : first + 4096].T

    return {
        PUBLISHED: published,
        "the same with faiss's BLAS, as in 2021": blas_of_2021()(published),
        "faiss flat, one call": lambda: flat.search(queries, k),
        "sentence-transformers' semantic_search": lambda: semantic_search(queries, documents, k),
        OURS: lambda: indexes.ours.search(queries, k)[1],
        CODED: lambda: indexes.coded.search(queries, k)[1],
        "ours, and making the codes": lambda: coded_index(documents).search(queries, k)[1],
        SQ8: lambda: indexes.refined.search(queries, k)[1],
        "multiplying int8, results discarded": lambda: indexes.multiply(queries),
        MATMUL: lambda: torch.from_numpy(queries) @ torch.from_numpy(documents).T,
        "NumPy's matmul in blocks, results discarded": numpy_matmul,
        READING: lambda: torch.from_numpy(documents).sum(),
    }


def coded_index(documents: np.ndarray) -> ExactIndex:
    return ExactIndex(documents, codes=keep_codes(documents, torch.device("cpu")))


class Indexes:
    """The indexes of ``documents`` (N, dim)."""

    def __init__(self, documents: np.ndarray):
        self.flat = faiss.IndexFlatIP(documents.shape[1])
        self.flat.add(documents)
        self.ours = ExactIndex(documents)
        self.codes = keep_codes(documents, torch.device("cpu"))
        self.coded = ExactIndex(documents, codes=self.codes)
        base = faiss.IndexScalarQuantizer(documents.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        self.refined = faiss.IndexRefineFlat(base)
        self.refined.train(documents[:100_000])
        self.refined.add(documents)
        self.refined.k_factor = REFINED

    def multiply(self, queries: np.ndarray) -> None:
        """Multiply the codes with as many whole numbers, some documents at a time on each core."""
        rounded = RoundedQueries(torch.from_numpy(queries), self.codes.mean)
        with on_all_cores() as spread:
            for _ in spread(rounded.multiply, self.codes.values.split(IN_CACHE)):
                pass


def compare_with_limit(seconds: dict[str, list[float]], products: float, work: float) -> list[dict[str, Any]]:
    """Return a row for each method, and for the limit: seconds, rates, and shares of torch's products and of the limit.

    Args:
        products: seconds that multiplying takes at the rate of large square matrices.
        work: floating-point operations of the search.
    """
    reads = statistics.median(seconds.pop(READING))
    rows = compare(seconds, PUBLISHED)
    limit = max(products, reads)
    name = f"limit: only {'multiplying' if products > reads else 'reading'}"
    rows.append({"way": name, "seconds": limit, "times_faster": rows[0]["seconds"] / limit})
    torch_limit = next(row["seconds"] for row in rows if row["way"] == MATMUL)
    for row in rows:
        row |= {
            "gflops": work / row["seconds"] / 1e9,
            "of_torch": torch_limit / row["seconds"],
            "of_limit": limit / row["seconds"],
        }
    return rows


def share_found(rows: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of ``expected`` (Q, k) in ``rows`` (Q, k)."""
    return float(np.mean([np.isin(wanted, found).mean() for found, wanted in zip(rows, expected, strict=True)]))


@command
def main() -> None:
    args = parse_arguments()
    check_topk(max(k for _, _, k in WORK), args.documents)
    random = np.random.default_rng(0)
    documents = random.standard_normal((args.documents, args.dim), dtype=np.float32)
    indexes = Indexes(documents)
    show_machine()
    print(f"int8 is {'faster' if has_fast_int8(torch.device('cpu')) else 'slower'} than float32 here")
    results = []
    for name, count, k in WORK:
        queries = random.standard_normal((count, args.dim), dtype=np.float32)
        ways = make_ways(documents, indexes, queries, k)
        seconds, rate = measure_with_rate(ways, args.rounds)
        expected = ways[PUBLISHED]()
        for way in (OURS, CODED):
            check_same(queries, documents, ways[way](), expected)
        recall = share_found(ways[SQ8](), expected)
        work = 2 * count * args.documents * args.dim
        rows = compare_with_limit(seconds, work / rate, work)
        show(
            f"{name}, top {k} of {args.documents:,} x {args.dim}; the same documents found, but {recall:.4f} by SQ8",
            ["method", "seconds", "speed-up", "GFLOP/s", "of torch.matmul", "of the limit"],
            [list(row.values()) for row in rows],
        )
        results.append({"work": name, "queries": count, "k": k, "sq8_recall": recall, "ways": rows})
    save(
        args.output,
        {"documents": args.documents, "dim": args.dim, "peak_memory_gb": peak_memory_gb(), "results": results},
    )


if __name__ == "__main__":
    main()
