"""Write the embedded sample: Wikipedia summaries as a retrieval dataset in MS MARCO's own files.

    title        Cinematography
    description  Art of motion picture photography                   -> the query
    extract      Cinematography is the art of motion picture ...     -> its relevant passage

A short description seldom names its article, so finding the extract takes more than matching words.
The passage and the document collection have the same queries; a document is url, title and extract.
Orders, ids and splits come from hashes of titles and queries. The same source therefore gives the same
files, byte for byte, with any version of Python. The script needs only the standard library and this project.

    python data/sample/make_sample.py --source wikipedia_summaries.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from drhard.commands import command
from drhard.files import write_whole_file
from drhard.making import assign_ids, digest

HERE = Path(__file__).resolve().parent

MIN_PASSAGE_CHARACTERS = 40  # shorter extracts do not answer any query
MIN_QUERY_WORDS = 3  # "Natural number" or "Art movement" describe a kind, not an article
SPLIT_SIZES = {"dev": 1000, "test": 500, "lead": 200}  # all other queries are for training
MAX_PID = 9_000_000  # ids are spread over MS MARCO's range, so that they cannot be mistaken for row numbers
MAX_QID = 1_200_000
GRADE = 3  # "perfectly relevant" on TREC's scale of 0 to 3

PASSAGE_FILES = {
    "train": ("queries.train.tsv", "qrels.train.tsv"),
    "dev": ("queries.dev.small.tsv", "qrels.dev.small.tsv"),
    "test": ("msmarco-test2019-queries.tsv", "2019qrels-pass.txt"),
    "lead": ("queries.eval.small.tsv", None),
}
DOC_FILES = {
    "train": ("msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"),
    "dev": ("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
    "test": ("msmarco-test2019-queries.tsv", "2019qrels-docs.txt"),
    "lead": ("docleaderboard-queries.tsv", None),
}


def shorten(text: str) -> str:
    """Replace each run of white space by one blank, since a record is one line of a TSV file."""
    return " ".join(text.split())


def read_articles(source: Path) -> list[dict[str, str]]:
    """Read the usable articles, each with `title`, `description` and `extract` on one line."""
    articles = []
    titles: set[str] = set()
    extracts: set[str] = set()
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            article = {key: shorten(row[key]) for key in ("title", "description", "extract")}
            title, extract = article["title"].lower(), article["extract"].lower()
            if title in ("", "0"):  # the source has "0" for a lost title
                continue
            if len(extract) < MIN_PASSAGE_CHARACTERS or title in titles or extract in extracts:
                continue
            titles.add(title)
            extracts.add(extract)
            articles.append(article)
    return articles


def choose_queries(articles: list[dict[str, str]]) -> dict[str, str]:
    """Return `{query: title}` for the descriptions that are long enough and belong to only one article."""
    count = Counter(article["description"].lower() for article in articles)
    return {
        article["description"]: article["title"]
        for article in articles
        if count[article["description"].lower()] == 1
        and len(article["description"].split()) >= MIN_QUERY_WORDS
        and article["description"].lower() != article["extract"].lower()
    }


def split_queries(queries: Iterable[str]) -> dict[str, list[str]]:
    """Cut the queries, in the order of their hashes, into dev, test, lead and train."""
    ordered = sorted(queries, key=lambda query: digest("split", query))
    splits, start = {}, 0
    for name, size in SPLIT_SIZES.items():
        splits[name] = ordered[start : start + size]
        start += size
    splits["train"] = ordered[start:]
    return splits


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file as a whole, gzipped if its name ends in `.gz`."""
    text = "".join(line + "\n" for line in lines).encode("utf-8")
    if path.suffix == ".gz":
        text = gzip.compress(text, compresslevel=9, mtime=0)  # no time stamp: the same bytes each time
    with write_whole_file(path) as file:
        file.write(text)
    print(f"wrote {path}: {len(text):,} bytes")


def write_queries(
    folder: Path,
    files: dict[str, tuple[str, str | None]],
    splits: dict[str, list[str]],
    qids: dict[str, int],
    docid_of: dict[str, str],
    qrel_separator: str,
) -> None:
    """Write queries and qrels of every split. `docid_of` maps a query to the official id of its document."""
    for split, (query_file, qrel_file) in files.items():
        write_lines(folder / query_file, (f"{qids[query]}\t{query}" for query in splits[split]))
        if qrel_file is None:
            continue
        # In another order than the queries: a reader that pairs the two files line by line must fail.
        judged = sorted(splits[split], key=lambda query: digest("qrel", query))
        if split == "test":  # TREC's form
            lines = [f"{qids[query]} Q0 {docid_of[query]} {GRADE}" for query in judged]
        else:
            lines = [qrel_separator.join((str(qids[query]), "0", docid_of[query], "1")) for query in judged]
        write_lines(folder / qrel_file, lines)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="gzipped JSON lines with title, description and extract",
    )
    parser.add_argument("--output_dir", type=Path, default=HERE, help="default: the folder of this script")
    args = parser.parse_args()

    # 1. Articles, in an order that has nothing to do with the alphabet or with their ids.
    articles = read_articles(args.source)
    articles.sort(key=lambda article: digest("order", article["title"]))
    pids = assign_ids((article["title"] for article in articles), "pid", MAX_PID)

    # 2. Queries and their splits.
    title_of = choose_queries(articles)
    qids = assign_ids(title_of, "qid", MAX_QID)
    splits = split_queries(title_of)

    # 3. Passages: the extract alone, as in MS MARCO.
    folder = args.output_dir / "passage" / "dataset"
    write_lines(
        folder / "collection.tsv.gz",
        (f"{pids[article['title']]}\t{article['extract']}" for article in articles),
    )
    docid_of = {query: str(pids[title]) for query, title in title_of.items()}
    write_queries(folder, PASSAGE_FILES, splits, qids, docid_of, qrel_separator="\t")

    # 4. Documents: url, title and body. MS MARCO's document qrels are separated by blanks.
    folder = args.output_dir / "doc" / "dataset"
    documents = []
    for article in articles:
        title = article["title"]
        url = "https://en.wikipedia.org/wiki/" + quote(title.replace(" ", "_"), safe="/:,()!*;@$'~")
        documents.append(f"D{pids[title]}\t{url}\t{title}\t{article['extract']}")
    write_lines(folder / "msmarco-docs.tsv.gz", documents)
    docid_of = {query: f"D{pids[title]}" for query, title in title_of.items()}
    write_queries(folder, DOC_FILES, splits, qids, docid_of, qrel_separator=" ")

    sizes = ", ".join(f"{len(splits[split]):,} {split}" for split in ("train", "dev", "test", "lead"))
    print(f"{len(articles):,} passages; queries: {sizes}")


if __name__ == "__main__":
    main()
