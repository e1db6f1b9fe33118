"""How time and memory of search and preprocessing grow with the collection, up to MS MARCO's 8,841,823 passages.

Random embeddings are written to a file: 27 GB for all of MS MARCO. A separate process searches them for all queries of
MS MARCO's dev set and for the 32 queries of a step of ADORE, in float32 and by int8 codes. The steps by codes fetch the
vectors of the loss from the disk. In the smallest file it also searches for all training queries. The benchmark fails
if a search takes more memory than its budget, not counting libraries, queries and codes, or if it finds other documents
than a plain search in float64. Then preprocess.py tokenizes as many passages, which repeat the sample's. This takes
18 GB more for all of MS MARCO.

    python benchmarks/scaling.py --folder /tmp
    python benchmarks/scaling.py --folder /tmp --rows 10000 100000 --output scaling.json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drhard.code_file import codes_path, open_codes
from drhard.commands import command
from drhard.embeddings import open_embeddings
from drhard.exact import ExactIndex
from drhard.flags import SEARCH_MEMORY_GB
from drhard.index import check_topk
from drhard.provenance import stamp_path
from drhard.tokens import PASSAGES, TokenMemmap
from drhard.vectors import gather_rows

import numpy as np
from measuring import ROOT, arguments, peak_memory_gb, positive, run_apart, save, show, show_machine, time_and_memory_of
from tokenizing import WARMUP, WIDTH, write_collection
from tqdm import tqdm

CHUNK_ROWS = 50_000
WORK = {  # queries, k
    "queries of MS MARCO dev": (6980, 100),
    "queries of MS MARCO dev by int8 codes": (6980, 100),
    "a step of ADORE": (32, 200),
    "a step of ADORE by int8 codes": (32, 200),
    "queries of MS MARCO train": (502_939, 200),  # only where there are few documents: in several passes
}
CODED_STEP = "a step of ADORE by int8 codes"
STEPS = 20
FEW = 10_000
CHECKED = 8  # queries
SHOWN = ("size_gb", "work", "seconds", "gflops", "read_gb_per_s", "disk_gb_per_s", "peak_gb")
BESIDE_GB = 0.2  # threads, and libraries that the work itself loads


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the embeddings are written, then removed")
    parser.add_argument("--rows", type=positive, nargs="+", default=[10_000, 100_000, 1_000_000, 8_841_823])
    parser.add_argument("--dim", type=positive, default=768)
    parser.add_argument("--search_memory_gb", type=float, default=SEARCH_MEMORY_GB)
    parser.add_argument("--search", help=argparse.SUPPRESS)  # in the process of its own
    return parser.parse_args()


def grow(path: Path, rows: int, dim: int) -> None:
    """Append random embeddings until the file has ``rows``."""
    done = path.stat().st_size // (dim * 4) if path.exists() else 0
    with open(path, "ab") as file, tqdm(total=rows, initial=done, unit="doc", unit_scale=True, desc="writing") as bar:
        while done < rows:
            count = min(CHUNK_ROWS, rows - done)
            file.write(np.random.default_rng(done).standard_normal((count, dim), dtype=np.float32))
            done += count
            bar.update(count)


def forget(path: Path) -> None:
    """Drop a file from the system's cache, so that reading it reads the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_gb_per_s(path: Path) -> float:
    """Return how fast the disk reads a file."""
    forget(path)
    size, start = min(path.stat().st_size, 4_000_000_000), time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        block = bytearray(1 << 24)
        while file.tell() < size and file.readinto(block):
            pass
    return size / 1e9 / (time.perf_counter() - start)


def queries_of(work: str, dim: int) -> tuple[np.ndarray, int]:
    count, k = WORK[work]
    return np.random.default_rng(count).standard_normal((count, dim), dtype=np.float32), k


def by_codes(work: str) -> bool:
    return work.endswith("by int8 codes")


def search(path: Path, work: str, dim: int, memory_gb: float) -> None:
    """Search, and print time, memory and the rows found for some queries. Runs in a separate process."""
    documents = open_embeddings(path, dim)
    queries, k = queries_of(work, dim)
    before_gb, cpu, start = peak_memory_gb(), time.process_time(), time.perf_counter()
    codes, rows, beside = None, None, {}
    if by_codes(work):
        codes = open_codes(documents, progress=True)
        beside["coding_seconds"] = time.perf_counter() - start  # or opening them, if an earlier work has made them
        cpu, start = time.process_time(), time.perf_counter()
    index = ExactIndex(documents, progress=work != CODED_STEP, memory_gb=memory_gb, codes=codes)
    if work == CODED_STEP:
        times, rows = train_steps(index, queries, k)
        seconds = statistics.median(times)
        beside["first_seconds"] = times[0]
    else:
        for _, found in index.passes(queries, k):
            rows = found[:CHECKED].copy() if rows is None else rows  # nothing else is kept
        seconds = time.perf_counter() - start
    cores = (time.process_time() - cpu) / (time.perf_counter() - start)
    print(
        json.dumps(
            beside
            | {
                "seconds": seconds,
                "cores": cores,
                "libraries_gb": before_gb - queries.nbytes / 1e9,
                "peak_gb": peak_memory_gb() - queries.nbytes / 1e9,
                "found": rows.tolist(),
            }
        )
    )


def train_steps(index: ExactIndex, queries: np.ndarray, k: int) -> tuple[list[float], np.ndarray]:
    """Search and fetch the vectors of the loss, as ADORE does, for changing queries. Return the time of each step.

    Also return the rows found for ``queries``.
    """
    times = []
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        start = time.perf_counter()
        _, rows = index.search(random.standard_normal(queries.shape, dtype=np.float32), k)
        gather_rows(index.documents, rows)
        times.append(time.perf_counter() - start)
    return times, index.search(queries, k)[1][:CHECKED]


def plain_search(path: Path, queries: np.ndarray, k: int) -> np.ndarray:
    """Score all documents in float64. Return the scores (Q, k) of the best, greatest first."""
    documents = open_embeddings(path, queries.shape[1])
    best = np.full((len(queries), k), -np.inf)
    for first in tqdm(range(0, len(documents), CHUNK_ROWS), desc="checking", leave=False):
        scores = queries.astype(np.float64) @ documents[first : first + CHUNK_ROWS].astype(np.float64).T
        best = np.sort(np.concatenate((best, scores), axis=1), axis=1)[:, -k:]
    return best[:, ::-1]


def measure(path: Path, work: str, dim: int, memory_gb: float) -> dict[str, Any]:
    """Search in a separate process. Check the documents found and the memory used."""
    forget(path)
    flags = ("--folder", path.parent, "--search", work, "--dim", dim, "--search_memory_gb", memory_gb)
    result = run_apart(__file__, *flags)
    queries, k = queries_of(work, dim)
    found = open_embeddings(path, dim)[np.array(result.pop("found"))].astype(np.float64)  # (CHECKED, k, dim)
    scores = np.einsum("qd,qkd->qk", queries[:CHECKED], found)
    expected = plain_search(path, queries[:CHECKED], k)
    if np.abs(scores - expected).max() > 1e-5 * np.abs(expected).max():
        raise SystemExit("error: the documents found are not the best; a faster wrong answer is no answer")
    taken = result["peak_gb"] - result["libraries_gb"]  # importing torch's CUDA build alone takes 0.7 GB
    codes_gb = codes_path(path).stat().st_size / 1e9 if by_codes(work) else 0  # mapped, so they count
    if taken > memory_gb + codes_gb + BESIDE_GB:
        raise SystemExit(f"error: the search took {taken:.2f} GB where {memory_gb + codes_gb:.2f} GB were allowed")
    return result


def measure_preprocessing(folder: Path, rows: int) -> dict[str, Any]:
    """Tokenize ``rows`` passages in a temporary folder, and measure it."""
    with tempfile.TemporaryDirectory(dir=folder) as root:
        collection = Path(root) / "passage" / "dataset" / "collection.tsv"
        collection.parent.mkdir(parents=True)
        write_collection(collection, None, rows)
        command = [sys.executable, ROOT / "preprocess.py", "--data_root", root, "--model_name_or_path", WARMUP]
        seconds, peak = time_and_memory_of(command)
        tokens = int(TokenMemmap.open(Path(root) / "passage" / "preprocess", PASSAGES, WIDTH).lengths.sum())
        size_gb = collection.stat().st_size / 1e9
    return {
        "rows": rows,
        "size_gb": size_gb,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "peak_gb": peak,
    }


@command
def main() -> None:
    args = parse_arguments()
    path = args.folder.resolve() / "scaling.memmap"
    if args.search:
        return search(path, args.search, args.dim, args.search_memory_gb)
    check_topk(max(k for _, k in WORK.values()), min(args.rows))
    path.unlink(missing_ok=True)
    show_machine()
    results: list[dict[str, Any]] = []
    try:
        for rows in sorted(args.rows):
            grow(path, rows, args.dim)
            disk = disk_gb_per_s(path)
            for work, (queries, _) in WORK.items():
                if queries > FEW < rows:
                    continue
                result = measure(path, work, args.dim, args.search_memory_gb)
                gflops = 2e-9 * queries * rows * args.dim / result["seconds"]
                size_gb = path.stat().st_size / 1e9
                results.append(
                    {"rows": rows, "size_gb": size_gb, "work": work, "disk_gb_per_s": disk, "gflops": gflops}
                    | {"read_gb_per_s": size_gb / result["seconds"]}
                    | result
                )
    finally:
        for name in (path, codes_path(path), stamp_path(codes_path(path))):
            name.unlink(missing_ok=True)
    show(
        f"search from disk within {args.search_memory_gb:g} GB, {args.dim} dimensions; the best documents found",
        ["documents", "GB", "work", "seconds", "GFLOP/s", "GB/s read", "GB/s of the disk", "peak memory, GB"],
        [[f"{row['rows']:,}", *(row[key] for key in SHOWN)] for row in results],
    )
    save(args.output, {"dim": args.dim, "memory_gb": args.search_memory_gb, "search": results})
    preprocessing = [measure_preprocessing(path.parent, rows) for rows in sorted(args.rows)]
    show(
        "preprocess.py, the sample's passages repeated",
        ["passages", "GB", "seconds", "tokens/s", "peak memory of all processes, GB"],
        [[f"{row['rows']:,}", *list(row.values())[1:]] for row in preprocessing],
    )
    save(
        args.output,
        {"dim": args.dim, "memory_gb": args.search_memory_gb, "search": results, "preprocessing": preprocessing},
    )
    return None


if __name__ == "__main__":
    main()
