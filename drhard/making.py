"""Make a data set: ids and orders by hashes, splits, files under MS MARCO's names, and digests to check them by.

Everything here is the same with any version of Python.
"""

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from drhard.errors import InputError
from drhard.files import digest_file, write_whole_folder, write_whole_text
from drhard.msmarco import PASSAGE
from drhard.numbers import COUNT

MAX_PID, MAX_QID = 9_000_000, 1_200_000  # ids are spread over MS MARCO's range
SMALL_TRAIN = 4000  # training queries that fit into a collection of 10,000 passages

Splits = dict[str, list["Query"]]


@dataclass(frozen=True)
class Query:
    """A query and its relevant passages.

    Attributes:
        key: its name within the sources; ids and orders depend on it alone.
        passages: the texts of the relevant passages.
        groups: what it must not share with a query of another split, such as headwords or files.
    """

    key: str
    text: str
    passages: tuple[str, ...]
    groups: frozenset[str]


def digest(salt: str, text: str) -> int:
    """Return a number below 2**64 that depends only on the two strings."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8], "big")


def assign_ids(keys: Iterable[str], salt: str, limit: int) -> dict[str, int]:
    """Give each key an official id below ``limit``: its hash within the range, or the next free number."""
    taken: set[int] = set()
    ids = {}
    for key in sorted(keys):
        number = digest(salt, key) % limit
        while number in taken:
            number = (number + 1) % limit
        taken.add(number)
        ids[key] = number
    return ids


def longest_shared_run(query: list[str], passage: list[str]) -> int:
    """Return the number of words of the longest sequence that both have."""
    places = defaultdict(list)
    for place, word in enumerate(passage):
        places[word].append(place)
    longest, ending = 0, dict[int, int]()
    for word in query:
        ending = {place: ending.get(place - 1, 0) + 1 for place in places[word]}  # the runs that end here, by place
        longest = max(longest, *ending.values(), 0) if ending else longest
    return longest


def group_queries(queries: list[Query]) -> list[list[Query]]:
    """Return the queries in parts that share no group, in an order by hash."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for query in queries:
        first, *others = sorted(query.groups)
        for other in others:
            parent[root(other)] = root(first)
    parts = defaultdict(list)
    for query in queries:
        parts[root(min(query.groups))].append(query)
    whole = [sorted(part, key=lambda query: digest("order", query.key)) for part in parts.values()]
    return sorted(whole, key=lambda part: digest("split", part[0].key))


def split_queries(queries: list[Query], sizes: Mapping[str, int]) -> Splits:
    """Fill each split of ``sizes`` with so many queries. No two splits share a group.

    Without a size of "train", all others are for training; else they are left out.
    """
    others: list[Query] = []
    splits: Splits = {name: [] for name in sizes} | ({} if "train" in sizes else {"train": others})
    for part in group_queries(queries):
        fitting = (splits[name] for name, size in sizes.items() if len(splits[name]) + len(part) <= size)
        found = next(fitting, others)
        found += part
    return splits


def restrict(splits: Splits, passages: list[str], size: int) -> tuple[Splits, list[str]]:
    """Keep the first SMALL_TRAIN training queries, and ``size`` passages, with all relevant ones among them."""
    kept = splits | {"train": splits["train"][:SMALL_TRAIN]}
    needed = {text for queries in kept.values() for query in queries for text in query.passages}
    if len(needed) > size:
        raise InputError(f"--passages {size}: the queries need {len(needed)}; give at least so many")
    others = [text for text in passages if text not in needed]
    chosen = needed | set(others[: size - len(needed)])
    return kept, [text for text in passages if text in chosen]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the form of a data set."""
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--held_out", action="store_true", help="make the data that settings are chosen with")
    parser.add_argument("--passages", type=COUNT, help="passages to keep (all)")


def make_dataset(
    args: argparse.Namespace,
    texts: Iterable[str],
    queries: list[Query],
    sizes: Mapping[str, int],
    known: Mapping[str, Mapping[str, str]],
    advice: str,
) -> None:
    """Write a data set in the form that the flags ask for.

    Args:
        args: the flags of :func:`add_flags`.
        texts: the passages, each once.
        sizes: the number of queries in dev, in test, in the part of train that settings are chosen with, "held", and
            in the rest of train; without the last, that is all others.
        known: the SHA-256 of the files by form and name. A form is "whole" or "held-out", and the number of passages
            if that was given. A form that is not there is not checked.
        advice: what to do if a digest differs.
    """
    pids = assign_ids(texts, "pid", MAX_PID)
    passages = sorted(pids, key=lambda text: digest("order", text))
    splits, form = split_queries(queries, sizes), "whole"
    held = splits.pop("held")
    if args.held_out:
        splits, form = {"train": splits["train"], "dev": held}, "held-out"
    else:
        splits["train"] += held
    if args.passages:
        splits, passages = restrict(splits, passages, args.passages)
        form += f", {args.passages} passages"
    with write_whole_folder(args.output_dir) as folder:
        _write_files(folder, splits, passages, pids)
        if form in known:
            check_digests({path.name: digest_file(path) for path in sorted(folder.iterdir())}, known[form], advice)
    print(f"Wrote {args.output_dir}")


def _write_files(folder: Path, splits: Splits, passages: list[str], pids: Mapping[str, int]) -> None:
    qids = assign_ids((query.key for queries in splits.values() for query in queries), "qid", MAX_QID)
    _write_lines(folder / PASSAGE.collection, (f"{pids[text]}\t{text}" for text in passages))
    for mode, queries in splits.items():
        files = PASSAGE.modes[mode]
        _write_lines(folder / files.queries, (f"{qids[query.key]}\t{query.text}" for query in queries))
        assert files.qrels is not None  # of train, dev and test
        _write_lines(folder / files.qrels, _judgement_lines(mode, queries, qids, pids))
    counts = ", ".join(f"{len(queries):,} {mode}" for mode, queries in splits.items())
    print(f"{len(passages):,} passages; queries: {counts}")


def _judgement_lines(
    mode: str, queries: list[Query], qids: Mapping[str, int], pids: Mapping[str, int]
) -> Iterator[str]:
    """Yield the judgements, of test in TREC's form."""
    for query in sorted(queries, key=lambda query: digest("qrel", query.key)):
        for text in query.passages:
            if mode == "test":
                yield f"{qids[query.key]} Q0 {pids[text]} 1"
            else:
                yield f"{qids[query.key]}\t0\t{pids[text]}\t1"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with write_whole_text(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def check_digests(found: Mapping[str, str], known: Mapping[str, str], advice: str) -> None:
    """Compare SHA-256 digests with those of a manifest.

    Raises:
        InputError: one differs. The message ends with ``advice``.
    """
    for name, value in found.items():
        if known.get(name) != value:
            raise InputError(f"{name}: its SHA-256 is {value}, not {known.get(name)} as in manifest.json; {advice}")
