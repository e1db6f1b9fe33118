"""Build a reverse dictionary: a query is WordNet's definition of a word, its relevant passages are GCIDE's entries.

    a shard of pottery    -> Potsherd, n. A piece or fragment of a broken pot. --Job ii. 8.

Writes the collection, queries and judgements under MS MARCO's names, byte for byte the same each time, and checks them
by data/gcide/manifest.json. README.md beside this script says what is dropped, and why.

    apt-get download dict-gcide wordnet-base
    python data/gcide/make_gcide.py --gcide dict-gcide_*.deb --wordnet wordnet-base_*.deb \\
        --output_dir runs/gcide/passage/dataset

Without --gcide and --wordnet it reads the packages as installed. --held_out makes the data that settings are chosen
with: 1,000 training queries take the place of dev, and there is no test. --passages keeps that many passages, and only
as many training queries as fit.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from drhard.commands import command
from drhard.errors import InputError
from drhard.files import digest_file, read_object, write_whole_folder, write_whole_text
from drhard.making import assign_ids, digest
from drhard.msmarco import PASSAGE
from drhard.numbers import COUNT

from dictionaries import FOLDERS, Entry, Synset, digest_sources, open_source, read_entries, read_synsets

MANIFEST = Path(__file__).resolve().parent / "manifest.json"
MIN_WORDS = 3  # of a query; shorter glosses are synonyms
MIN_PASSAGE_WORDS = 5
LONGEST_COPY = 5  # words; a query that shares so many in a row with a relevant passage is dropped
COPIED_SHARE = 0.6  # of a query's words, likewise
SIZES = {"dev": 2000, "test": 1000, "held": 1000}  # queries; all others are for training
MAX_PID, MAX_QID = 9_000_000, 1_200_000  # ids are spread over MS MARCO's range
SMALL_TRAIN = 4000  # training queries that fit into a collection of 10,000 passages
WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        key: the synset's.
        passages: the texts of its relevant passages.
        heads: the headwords of those passages.
    """

    key: str
    text: str
    passages: tuple[str, ...]
    heads: frozenset[str]


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def longest_shared_run(query: list[str], passage: list[str]) -> int:
    """Return the number of words of the longest sequence that both have."""
    places = defaultdict(list)
    for place, word in enumerate(passage):
        places[word].append(place)
    longest, ending = 0, {}
    for word in query:
        ending = {place: ending.get(place - 1, 0) + 1 for place in places[word]}  # the runs that end here, by place
        longest = max(longest, *ending.values(), 0) if ending else longest
    return longest


def is_copied(query: list[str], passage: list[str]) -> bool:
    """Return whether a passage repeats the query, or much of it, word by word."""
    run = longest_shared_run(query, passage)
    return run >= LONGEST_COPY or run >= COPIED_SHARE * len(query)


def collect_passages(entries: Iterable[Entry]) -> tuple[dict[str, Entry], dict[str, list[str]]]:
    """Return the entries that become passages by their texts, each text once, and the texts of each headword."""
    passages: dict[str, Entry] = {}
    seen, of_head = set(), defaultdict(list)
    for entry in entries:
        if len(entry.text.split()) < MIN_PASSAGE_WORDS or entry.text.lower() in seen:
            continue
        seen.add(entry.text.lower())
        passages[entry.text] = entry
        for head in set(entry.heads):
            of_head[head].append(entry.text)
    return passages, of_head


def choose_queries(synsets: list[Synset], passages: dict[str, Entry], of_head: dict[str, list[str]]) -> list[Query]:
    """Return the glosses that become queries, and print how many do not, by reason.

    A gloss needs a word that means nothing else (in its part of speech) and has an entry that defines it. The relevant
    passages are the entries of all such words of the synset.
    """
    meanings = Counter((word, synset.part) for synset in synsets for word in synset.words)
    glosses = Counter(synset.gloss.lower() for synset in synsets)
    queries, dropped = [], Counter[str]()
    for synset in synsets:
        sole = [word for word in synset.words if meanings[word, synset.part] == 1]
        found = dict.fromkeys(
            text
            for word in sole
            for text in of_head.get(word, ())
            if passages[text].part in (synset.part, "") and passages[text].defines
        )
        words = words_of(synset.gloss)
        if not found:
            dropped["no word with one meaning and an entry"] += 1
        elif synset.instance:
            dropped["of one person or place"] += 1
        elif len(words) < MIN_WORDS or glosses[synset.gloss.lower()] > 1:
            dropped["too short, or of several synsets"] += 1
        elif set(synset.words) & {" ".join(words)} or any(set(word.split()) <= set(words) for word in sole):
            dropped["names its own word"] += 1
        elif any(is_copied(words, words_of(text)) for text in found):
            dropped["copied in a passage"] += 1
        else:
            heads = frozenset(head for text in found for head in passages[text].heads)
            queries.append(Query(synset.key, synset.gloss, tuple(found), heads))
    for reason, count in dropped.items():
        print(f"{count:,} glosses dropped: {reason}")
    return queries


def group_by_article(queries: list[Query]) -> list[list[Query]]:
    """Return the queries in groups that share no headword, in an order by hash."""
    parent: dict[str, str] = {}

    def root(head: str) -> str:
        while parent.setdefault(head, head) != head:
            parent[head] = parent[parent[head]]
            head = parent[head]
        return head

    for query in queries:
        first, *others = sorted(query.heads)
        for other in others:
            parent[root(other)] = root(first)
    groups = defaultdict(list)
    for query in queries:
        groups[root(min(query.heads))].append(query)
    whole = [sorted(group, key=lambda query: digest("order", query.key)) for group in groups.values()]
    return sorted(whole, key=lambda group: digest("split", group[0].key))


def split_queries(queries: list[Query]) -> dict[str, list[Query]]:
    """Fill each split with groups. No headword of a split's relevant passages is in another split."""
    splits: dict[str, list[Query]] = {name: [] for name in (*SIZES, "train")}
    for group in group_by_article(queries):
        fitting = (name for name, size in SIZES.items() if len(splits[name]) + len(group) <= size)
        splits[next(fitting, "train")] += group
    return splits


def restrict(
    splits: dict[str, list[Query]], passages: list[str], size: int
) -> tuple[dict[str, list[Query]], list[str]]:
    """Keep the first SMALL_TRAIN training queries, and ``size`` passages, with all relevant ones among them."""
    kept = splits | {"train": splits["train"][:SMALL_TRAIN]}
    needed = {text for queries in kept.values() for query in queries for text in query.passages}
    if len(needed) > size:
        raise InputError(f"--passages {size}: the queries need {len(needed)}; give at least so many")
    others = [text for text in passages if text not in needed]
    chosen = needed | set(others[: size - len(needed)])
    return kept, [text for text in passages if text in chosen]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with write_whole_text(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def judgement_lines(mode: str, queries: list[Query], qids: Mapping[str, int], pids: Mapping[str, int]) -> Iterator[str]:
    """Yield the judgements, of test in TREC's form."""
    for query in sorted(queries, key=lambda query: digest("qrel", query.key)):
        for text in query.passages:
            if mode == "test":
                yield f"{qids[query.key]} Q0 {pids[text]} 1"
            else:
                yield f"{qids[query.key]}\t0\t{pids[text]}\t1"


def write_dataset(folder: Path, splits: dict[str, list[Query]], passages: list[str], pids: Mapping[str, int]) -> None:
    qids = assign_ids((query.key for queries in splits.values() for query in queries), "qid", MAX_QID)
    write_lines(folder / PASSAGE.collection, (f"{pids[text]}\t{text}" for text in passages))
    for mode, queries in splits.items():
        files = PASSAGE.modes[mode]
        write_lines(folder / files.queries, (f"{qids[query.key]}\t{query.text}" for query in queries))
        assert files.qrels is not None  # of train, dev and test
        write_lines(folder / files.qrels, judgement_lines(mode, queries, qids, pids))
    sizes = ", ".join(f"{len(queries):,} {mode}" for mode, queries in splits.items())
    print(f"{len(passages):,} passages; queries: {sizes}")


def check(found: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Compare SHA-256 digests with those of the manifest. Raises InputError if one differs."""
    for name, value in found.items():
        if known.get(name) != value:
            raise InputError(
                f"{name}: its SHA-256 is {value}, not {known.get(name)} as in {MANIFEST.name}; take dict-gcide "
                "0.48.5+nmu2 and wordnet-base 3.0-37"
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gcide", type=Path, default=FOLDERS["gcide"], help="folder, or .deb file of dict-gcide")
    parser.add_argument("--wordnet", type=Path, default=FOLDERS["wordnet"], help="folder, or .deb file of wordnet-base")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--held_out", action="store_true", help="make the data that settings are chosen with")
    parser.add_argument("--passages", type=COUNT, help="passages to keep (all)")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    manifest = read_object(MANIFEST, {"sources": dict, "data": dict})
    with open_source("gcide", args.gcide) as open_gcide, open_source("wordnet", args.wordnet) as open_wordnet:
        check(digest_sources(open_gcide, open_wordnet), manifest["sources"])
        entries, of_head = collect_passages(read_entries(open_gcide))
        queries = choose_queries(list(read_synsets(open_wordnet)), entries, of_head)
    pids = assign_ids(entries, "pid", MAX_PID)
    passages = sorted(entries, key=lambda text: digest("order", text))
    splits, name = split_queries(queries), "whole"
    held = splits.pop("held")
    if args.held_out:
        splits, name = {"train": splits["train"], "dev": held}, "held-out"
    else:
        splits["train"] += held
    if args.passages:
        splits, passages = restrict(splits, passages, args.passages)
        name += f", {args.passages} passages"
    with write_whole_folder(args.output_dir) as folder:
        write_dataset(folder, splits, passages, pids)
        if name in manifest["data"]:
            check({path.name: digest_file(path) for path in folder.iterdir()}, manifest["data"][name])
    print(f"Wrote {args.output_dir}")


if __name__ == "__main__":
    main()
