"""Build a code search: a query is the first sentence of a docstring, its relevant passage is the function.

    Return the shortest path between two nodes    -> networkx.algorithms...: def shortest_path(G, source, target): ...

Writes the collection, queries and judgements under MS MARCO's names, byte for byte the same each time, and checks them
by data/code/manifest.json. README.md beside this script says what is dropped, and why. The functions come from wheels,
which are read and neither installed nor run:

    pip download --no-deps --python-version 3.11 --platform manylinux_2_28_x86_64 \\
        --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \\
        --requirement data/code/wheels.txt --dest runs/code/wheels
    python data/code/make_code.py --wheels runs/code/wheels --output_dir runs/code/passage/dataset

--held_out makes the data that settings are chosen with: 1,000 training queries take the place of dev, and there is no
test. --passages keeps that many passages, and only as many training queries as fit.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from drhard.commands import command
from drhard.errors import InputError
from drhard.files import digest_file, read_object
from drhard.making import Query, add_flags, check_digests, longest_shared_run, make_dataset
from drhard.words import split_code, stem

from copies import drop_near_copies
from functions import Function, read_functions

MANIFEST = Path(__file__).resolve().parent / "manifest.json"
ADVICE = "fetch the wheels of wheels.txt"
MIN_WORDS, MAX_WORDS = 3, 30  # of a query; of the words beside STOP_WORDS, at least MIN_WORDS
LONGEST_COPY = 5  # words; a query that shares so many in a row with its function is dropped
SIZES = {"dev": 2000, "test": 1000, "held": 1000, "train": 19_000}  # queries; the last two are for training
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and any are as at be been but by can each for from given has have if in into is it its may of on or such "
        "that the their then there these this to was when which will with",
    )
)

_PARAGRAPH = re.compile(  # what ends the first one
    r"\n\s*\n|\n\s*(?:[-=~^*]{3,}|[:@]\w|\.\. |[-*] |>>>|(?:Args?|Arguments|Parameters|Params|Returns?|Yields?|Raises"
    r"|Examples?|Notes?|Usage|Attributes|See Also)\b\s*:?\s*(?:\n|$))"
)
_LINK = re.compile(r"(:[a-z:+-]+:)?`([~!.]*)([^`<]*?)(?:\s*<[^>`]*>)?`_{0,2}")
_EPYTEXT = re.compile(r"\b[A-Z]\{([^{}]*)\}")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(\w[^*]*)\*{1,2}(?![\w*])")
_SENTENCE = re.compile(
    r"(.*?(?<!e\.g)(?<!i\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)(?<!\b[A-Z])(?<!\bFig)(?<!\bEq))[.!?](?:\s|$)"
)
_NOT_PROSE = re.compile(r"[^ -}]|[`{}<>|\\=\[\]@#]|https?:|::|->|__|\w\(.|^\W|:$")
_SAYS_NOTHING = re.compile(
    r"(?:see|todo|fixme|xxx|deprecated|alias|same|overrid\w*|overload\w*|inherit\w*|internal|helper|docstring|doc"
    r"|no-?op|not implemented|wrapper|wraps|wrap|called|hook|callback|placeholder|private|legacy|(?:do|does) nothing"
    r"|like|this|these|that|it|auxiliary|utility|convenience|shortcut|shorthand|backwards?|implement\w*|used)\b",
    re.IGNORECASE,
)


def summary_of(docstring: str) -> str:
    """Return the first sentence of a docstring, without markup and without its full stop."""
    text = " ".join(_PARAGRAPH.split(docstring.strip(), maxsplit=1)[0].split())
    text = _LINK.sub(_shown, text.replace("``", "`"))
    text = _EMPHASIS.sub(r"\1", _EPYTEXT.sub(r"\1", text))
    sentence = _SENTENCE.match(text)
    return (sentence[1] if sentence else text).strip(" .!?")


def _shown(link: re.Match[str]) -> str:
    """Return what Sphinx shows of a link; of a name in a module, the name alone."""
    role, mark, target = link.groups()
    return target.rpartition(".")[2] if role or "~" in mark else target


def choose_queries(functions: list[Function], passages: list[str]) -> list[Query]:
    """Return the first sentences that become queries, and print how many do not, by reason.

    Args:
        passages: the texts of the functions.
    """
    summaries = [summary_of(function.docstring) for function in functions]
    keys = [" ".join(map(stem, split_code(summary))) for summary in summaries]
    times = Counter(keys)
    queries, dropped = [], Counter[str]()
    for function, passage, summary, key in zip(functions, passages, summaries, keys, strict=True):
        reason = fault_of(function, summary) or ("of several functions" if times[key] > 1 else "")
        if reason:
            dropped[reason] += 1
        else:
            queries.append(Query(passage, summary, (passage,), frozenset((function.file,))))
    for reason, count in dropped.items():
        print(f"{count:,} functions without a query: {reason}")
    return queries


def fault_of(function: Function, summary: str) -> str:
    """Return why a first sentence is no query; "" if it is one."""
    if not summary:
        return "no docstring"
    if _NOT_PROSE.search(summary):
        return "not plain English"
    words = split_code(summary)
    telling = {stem(word) for word in words if word not in STOP_WORDS}
    if len(telling) < MIN_WORDS or len(words) > MAX_WORDS:
        return "too short or too long"
    if _SAYS_NOTHING.match(summary):
        return "does not say what the function does"
    if telling <= {stem(word) for word in split_code(function.name)}:
        return "says no more than the function's name"
    if longest_shared_run(words, split_code(function.code)) >= min(LONGEST_COPY, len(words)):
        return "copied in the function"
    return ""


def read_wheels(folder: Path, known: dict[str, str]) -> Iterator[Function]:
    """Yield the functions of the manifest's wheels in the order of their names, after a check of their digests."""
    for name in sorted(known):
        wheel = folder / name
        if not wheel.is_file():
            raise InputError(f"{wheel}: no such file; {ADVICE}")
        check_digests({name: digest_file(wheel)}, known, ADVICE)
        yield from read_functions(wheel)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="folder of the wheels")
    add_flags(parser)
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    manifest = read_object(MANIFEST, {"sources": dict, "licences": dict, "data": dict})
    functions = list(drop_near_copies(read_wheels(args.wheels, manifest["sources"])))
    passages = [f"{function.place}: {function.code}" for function in functions]
    queries = choose_queries(functions, passages)
    make_dataset(args, passages, queries, SIZES, manifest["data"], ADVICE)


if __name__ == "__main__":
    main()
