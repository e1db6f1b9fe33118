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
from collections.abc import Iterable
from pathlib import Path

from drhard.commands import command
from drhard.files import read_object
from drhard.making import Query, add_flags, check_digests, longest_shared_run, make_dataset

from dictionaries import FOLDERS, Entry, Synset, digest_sources, open_source, read_entries, read_synsets

MANIFEST = Path(__file__).resolve().parent / "manifest.json"
MIN_WORDS = 3  # of a query; shorter glosses are synonyms
MIN_PASSAGE_WORDS = 5
LONGEST_COPY = 5  # words; a query that shares so many in a row with a relevant passage is dropped
COPIED_SHARE = 0.6  # of a query's words, likewise
SIZES = {"dev": 2000, "test": 1000, "held": 1000}  # queries; all others are for training
ADVICE = "take dict-gcide 0.48.5+nmu2 and wordnet-base 3.0-37"
WORD = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gcide", type=Path, default=FOLDERS["gcide"], help="folder, or .deb file of dict-gcide")
    parser.add_argument("--wordnet", type=Path, default=FOLDERS["wordnet"], help="folder, or .deb file of wordnet-base")
    add_flags(parser)
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    manifest = read_object(MANIFEST, {"sources": dict, "data": dict})
    with open_source("gcide", args.gcide) as open_gcide, open_source("wordnet", args.wordnet) as open_wordnet:
        check_digests(digest_sources(open_gcide, open_wordnet), manifest["sources"], ADVICE)
        entries, of_head = collect_passages(read_entries(open_gcide))
        queries = choose_queries(list(read_synsets(open_wordnet)), entries, of_head)
    make_dataset(args, entries, queries, SIZES, manifest["data"], ADVICE)


if __name__ == "__main__":
    main()
