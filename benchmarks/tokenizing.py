"""Tokenizing: all of preprocess.py against byte-level BPE in plain Python with a cache of words.

The published project uses the slow tokenizer of transformers 2.x. The plain Python here has the same algorithm. Every
round starts new processes with empty caches. All ids must be equal.

    python benchmarks/tokenizing.py                                          # the sample, repeated and numbered
    python benchmarks/tokenizing.py --text descriptions.txt --model_name_or_path roberta-base

The file for --text has one text on each line.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from drhard.commands import command
from drhard.files import read_lines
from drhard.tokenizer import RobertaTokenizer, byte_characters
from drhard.tokens import PASSAGES, TokenMemmap

import numpy as np
import regex
from measuring import ROOT, arguments, compare, positive, save, show, show_machine, time_and_memory_of
from tqdm import tqdm

SAMPLE = ROOT / "data" / "sample"
WARMUP = SAMPLE / "warmup"  # has a vocabulary
WIDTH = 512  # tokens, preprocess.py's default
LIMIT = "limit: only writing the memmap"
MS_MARCO_BYTES = 3_060_000_000  # of collection.tsv
# GPT-2's: contractions, then letters, digits, other signs (each with one blank in front), white space.
PATTERN = r"""'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def parse_arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--text", type=Path, help="a text on each line (the sample's passages)")
    parser.add_argument("--lines", type=positive, default=400_000, help="of the text; it is repeated if it has fewer")
    parser.add_argument("--model_name_or_path", default=str(WARMUP), help="the checkpoint with the vocabulary")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--plain", nargs=2, type=Path, help=argparse.SUPPRESS)  # the slow way, in a process of its own
    return parser.parse_args()


class PlainBpe:
    """RoBERTa's tokenizer in Python, with the steps and the cache of words of transformers 2.x."""

    def __init__(self, tokenizer: RobertaTokenizer):
        self.ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
        self.ids, self.unknown = tokenizer.vocab, tokenizer.unk_token_id
        self.bytes = byte_characters()
        self.words = regex.compile(PATTERN)
        specials = "|".join(map(regex.escape, tokenizer.all_special_tokens))
        self.specials = regex.compile(f"({specials})")
        self.characters = regex.compile(f"({specials})|(.)", regex.DOTALL)
        self.cache: dict[str, str] = {}

    def bpe(self, word: str) -> str:
        """Return the tokens of a word, joined by blanks. Merge the best pair everywhere until no pair is left."""
        if word in self.cache:
            return self.cache[word]
        parts = list(word)
        while len(parts) > 1:
            rank, pair = min((self.ranks.get(pair, 1 << 30), pair) for pair in zip(parts, parts[1:], strict=False))
            if rank == 1 << 30:
                break
            merged, index = [], 0
            while index < len(parts):
                if tuple(parts[index : index + 2]) == pair:
                    merged.append(parts[index] + parts[index + 1])
                    index += 2
                else:
                    merged.append(parts[index])
                    index += 1
            parts = merged
        self.cache[word] = tokens = " ".join(parts)
        return tokens

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with <s> and </s>. Lower-case all but special tokens, and put a blank in front."""
        text = " " + self.characters.sub(lambda found: found[1] or found[2].lower(), text)
        tokens: list[str] = []
        for number, piece in enumerate(self.specials.split(text)):
            if number % 2:
                tokens.append(piece)
                continue
            for word in self.words.findall(piece.rstrip()):
                tokens.extend(self.bpe("".join(self.bytes[byte] for byte in word.encode())).split(" "))
        ids = [self.ids.get(token, self.unknown) for token in tokens]
        return [0, *ids[: WIDTH - 2], 2]


def plain(collection: Path, target: Path, tokenizer: RobertaTokenizer) -> None:
    """Read the collection line by line and write its rows and lengths. Runs in a separate process."""
    bpe, lengths = PlainBpe(tokenizer), []
    with open(collection, encoding="utf-8") as lines, open(target, "wb") as file:
        for line in tqdm(lines, desc="plain Python", leave=False):
            ids = bpe.encode(line.rstrip("\n").split("\t")[1])
            row = np.zeros(WIDTH, dtype=np.int32)
            row[: len(ids)] = ids
            file.write(row)
            lengths.append(len(ids))
    np.save(target.with_suffix(".npy"), lengths)


def write_collection(path: Path, text: Path | None, lines: int) -> None:
    """Write a collection.tsv of ``lines`` lines. A text that repeats gets a number at its end."""
    source = text or SAMPLE / "passage" / "dataset" / "collection.tsv.gz"
    texts = [" ".join(line.rpartition("\t")[2].split()) for _, line in read_lines(source)]
    texts = [text for text in texts if text]
    with open(path, "w", encoding="utf-8") as file:
        for pid in range(lines):
            turn, place = divmod(pid, len(texts))
            file.write(f"{pid}\t{texts[place]}{f' {turn}' if turn else ''}\n")


def seconds_to_write(target: Path, size: int) -> float:
    """Return the seconds that it takes to write a file of ``size`` bytes."""
    start = time.perf_counter()
    rows = memoryview(np.ones(1 << 19, dtype=np.int32)).cast("B")
    with open(target, "wb", buffering=0) as file:
        for first in range(0, size, len(rows)):
            file.write(rows[: size - first])
    return time.perf_counter() - start


def check_same(ours: Path, theirs: Path) -> int:
    """End the benchmark unless all ids are equal. Return the number of tokens."""
    lengths = np.load(theirs.with_suffix(".npy"))
    expected = np.memmap(theirs, dtype=np.int32, mode="r", shape=(len(lengths), WIDTH))
    tokens = TokenMemmap.open(ours, PASSAGES, WIDTH)
    found = np.memmap(ours / "passages.memmap", dtype=np.int32, mode="r", shape=expected.shape)
    if not (np.array_equal(tokens.lengths, lengths) and np.array_equal(found, expected)):
        raise SystemExit("error: the ids differ; a faster wrong answer is no answer")
    return int(lengths.sum())


@command
def main() -> None:
    args = parse_arguments()
    if args.plain:
        plain(*args.plain, RobertaTokenizer.from_pretrained(args.model_name_or_path, do_lower_case=True))
        return
    show_machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        collection = root / "passage" / "dataset" / "collection.tsv"
        collection.parent.mkdir(parents=True)
        write_collection(collection, args.text, args.lines)
        size = collection.stat().st_size
        model = ["--model_name_or_path", args.model_name_or_path]
        slow = [sys.executable, __file__, "--plain", collection, root / "plain.memmap", *model]
        seconds: dict[str, list[float]] = {}
        memory: dict[str, float] = {}

        def run(way: str, command: list[Any]) -> None:
            took, peak = time_and_memory_of(command)
            seconds.setdefault(way, []).append(took)
            memory[way] = max(peak, memory.get(way, 0.0))

        tokens = 0
        for _ in range(args.rounds):
            run("plain Python, one core", slow)
            for threads in args.threads:
                shutil.rmtree(root / "passage" / "preprocess", ignore_errors=True)
                ours = [sys.executable, ROOT / "preprocess.py", "--data_root", root, "--threads", threads, *model]
                run(f"preprocess.py --threads {threads}", ours)
                tokens = check_same(root / "passage" / "preprocess", root / "plain.memmap")
            memmap = root / "passage" / "preprocess" / "passages.memmap"
            seconds.setdefault(LIMIT, []).append(seconds_to_write(memmap, memmap.stat().st_size))
    rows = compare(seconds, "plain Python, one core")
    for row in rows:
        workers = int(row["way"].rpartition(" ")[2]) if "preprocess" in row["way"] else 1
        row |= {
            "tokens_per_s": tokens / row["seconds"],
            "per_worker": row["times_faster"] / workers,
            "peak_gb": memory.get(row["way"], ""),
            "ms_marco_minutes": row["seconds"] * MS_MARCO_BYTES / size / 60,
        }
    columns = ("way", "seconds", "times_faster", "per_worker", "tokens_per_s", "ms_marco_minutes", "peak_gb")
    show(
        f"{args.lines:,} lines, {size / 1e6:.0f} MB, {tokens / args.lines:.0f} tokens each; all ids equal",
        ["method", "seconds", "speed-up", "per worker", "tokens/s", "collection.tsv, minutes", "memory, GB"],
        [[row[column] for column in columns] for row in rows],
    )
    save(args.output, {"lines": args.lines, "bytes": size, "tokens": tokens, "ways": rows})


if __name__ == "__main__":
    main()
