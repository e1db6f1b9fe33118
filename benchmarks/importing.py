"""Importing: import_collection.py on synthetic passages, beside reading the same files.

Reading is done twice: the lines alone, and the lines with their JSON parsed, which each reader of JSONL has to do. All
take turns. The import runs in a process of its own, whose peak memory is measured.

    python benchmarks/importing.py --passages 10000000 --folder /tmp    # 10 minutes, 9 GB of disk
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drhard.commands import command
from drhard.files import write_whole_text
from drhard.importing import import_collection
from drhard.sources import FieldNames, read_beir

import numpy as np
from measuring import arguments, peak_memory_gb, positive, run_apart, save, show, show_machine
from tqdm import tqdm

WORDS = 20_000
TEXT_WORDS = (20, 90)  # of a passage: 55 on average, as MS MARCO's
DIFFERENT = 10_000  # texts
QUERIES, JUDGED = 10_000, 20_000
WAYS = ("lines", "JSON", "import")


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--passages", type=positive, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="for the files; removed at the end (the system's)")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args()


def write_source(folder: Path, passages: int) -> None:
    """Write a BEIR folder with string ids, titles and some line breaks."""
    random = np.random.default_rng(0)
    texts = list(make_texts(random))
    (folder / "qrels").mkdir(parents=True)
    with write_whole_text(folder / "corpus.jsonl") as file:
        for number in tqdm(range(passages), desc="passages", unit="passage", unit_scale=True):
            text = texts[number % DIFFERENT]
            file.write(f'{{"_id": "doc_{number:08d}", "title": {text[:20]}", "text": {text}, "metadata": {{}}}}\n')
    with write_whole_text(folder / "queries.jsonl") as file:
        file.writelines(
            f'{{"_id": "q{number}", "text": {texts[number % DIFFERENT][:40]}"}}\n' for number in range(QUERIES)
        )
    with write_whole_text(folder / "qrels" / "test.tsv") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for row, passage in enumerate(random.integers(0, passages, JUDGED).tolist()):
            file.write(f"q{row % QUERIES}\tdoc_{passage:08d}\t{1 + passage % 2}\n")


def make_texts(random: np.random.Generator) -> Iterator[str]:
    """Yield texts as JSON spells them. They begin with a word of 20 letters, so that a part of it is a title."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzäé"))
    words = ["".join(random.choice(letters, length)) for length in random.integers(2, 10, WORDS)]
    for number in range(DIFFERENT):
        drawn = [words[word] for word in (random.zipf(1.3, random.integers(*TEXT_WORDS)) % WORDS).tolist()]
        if number % 10 == 0:
            drawn[len(drawn) // 2] += "\n"
        yield json.dumps(" ".join(["b" * 20, *drawn]), ensure_ascii=False)


def run_way(way: str, folder: Path) -> None:
    """Do the work of ``way``."""
    corpus = folder / "beir" / "corpus.jsonl"
    if way == "import":
        import_collection(read_beir(folder / "beir", FieldNames()), folder / "imported" / "dataset", "keep")
        return
    with open(corpus, encoding="utf-8") as file:
        for line in file:
            if way == "JSON":
                json.loads(line)


def measure_way(way: str, folder: Path) -> None:
    """Do the work of ``way``, and print its seconds, CPU seconds and memory."""
    start, cpu = time.perf_counter(), time.process_time()
    run_way(way, folder)
    result = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps(result | {"memory_gb": peak_memory_gb()}))


def measure(passages: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Return medians over the rounds, by way."""
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            shutil.rmtree(folder / "imported", ignore_errors=True)
            seen[way].append(run_apart(__file__, "--way", way, "--folder", folder))
    rows = []
    for way, of_rounds in seen.items():
        times = [one["cpu"] / base["cpu"] for one, base in zip(of_rounds, seen["JSON"], strict=True)]
        row = {name: statistics.median(one[name] for one in of_rounds) for name in of_rounds[0]}
        rows.append({"way": way, **row, "of_reading": statistics.median(times)})
    size = (folder / "beir" / "corpus.jsonl").stat().st_size
    content = json.loads((folder / "imported" / "dataset" / "import.json").read_text())
    assert content["passages"] == passages, "passages were lost"
    return {"passages": passages, "bytes": size, "ways": rows}


@command
def main() -> None:
    args = parse_arguments()
    if args.way:
        measure_way(args.way, args.folder)
        return
    show_machine()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="importing-") as name:
        folder = Path(name)
        write_source(folder / "beir", args.passages)
        results = measure(args.passages, folder, args.rounds)
    names = {"lines": "reading the lines", "JSON": "reading the lines and their JSON", "import": "import_collection.py"}
    show(
        f"Importing {args.passages} passages, {results['bytes'] / 1e9:.2f} GB of JSONL:",
        ["method", "seconds", "CPU seconds", "of reading JSON", "memory (GB)"],
        [
            [names[way["way"]], *(way[of] for of in ("seconds", "cpu", "of_reading", "memory_gb"))]
            for way in results["ways"]
        ],
    )
    save(args.output, results)


if __name__ == "__main__":
    main()
