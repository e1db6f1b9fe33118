"""Type a query and read the passages that a trained model finds for it.

    python search.py                                                # type queries, one a line
    python search.py --query "where is the rhine" --json            # one query, as JSON
    python search.py --http 8000                                    # a page in the browser

Reads {data_root}/{type}/preprocess, the texts in {data_root}/{type}/dataset, the model in
{data_root}/{type}/trained_models/star, and its embeddings in {data_root}/{type}/evaluate/star, which star/inference.py
wrote. With ADORE, another model embeds the queries:

    python search.py --query_model ./data/passage/trained_models/adore-star
    python search.py --compare_query_model ./data/passage/trained_models/adore-star     # STAR and ADORE side by side
"""

import argparse
import gc
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from drhard.collection import Collection
from drhard.commands import command
from drhard.dataset import find_corpus
from drhard.errors import InputError, shorten
from drhard.files import decode_line, require_file
from drhard.flags import ENCODER, INDEX, add_flags
from drhard.hub import find_checkpoint
from drhard.ids import Numbers
from drhard.known_queries import KnownQueries
from drhard.msmarco import CORPORA
from drhard.names import OfficialIds
from drhard.numbers import LENGTH, PORT
from drhard.passage_texts import open_passage_texts

import numpy as np

if TYPE_CHECKING:
    from socket import socket

    from drhard.answers import Answer
    from drhard.searcher import PassageSearch

log = logging.getLogger("drhard.search")

SERVER = ("starlette", "uvicorn")  # what --http needs
STAR_QUERY, ADORE_QUERY = 32, 64  # tokens of a query in star/inference.py and adore/inference.py


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(
        parser,
        "--data_type",
        "--data_root",
        "--preprocess_dir",
        "--topk",
        "--mode",
        data_type={"required": False, "default": "passage", "help": "default: passage"},
        topk={"default": 10},
        mode={"required": False, "help": "look for the query among these alone (all with judgements)"},
    )
    models = parser.add_argument_group("the models")
    models.add_argument("--model_dir", help="default: {data_root}/{type}/trained_models/star")
    models.add_argument("--query_model", help="the encoder of queries, such as ADORE's (--model_dir)")
    models.add_argument("--embeddings", type=Path, help="default: {data_root}/{type}/evaluate/star/passages.memmap")
    models.add_argument("--compare_query_model", help="show beside it what another encoder of queries finds")
    models.add_argument("--compare_model_dir", help="the model that made --compare_embeddings (--model_dir)")
    models.add_argument("--compare_embeddings", type=Path, help="passages.memmap of another model (--embeddings)")
    models.add_argument(
        "--max_query_length",
        type=LENGTH,
        help=f"maximum tokens per query ({STAR_QUERY}, as star/inference.py; with --query_model or "
        f"--compare_query_model {ADORE_QUERY}, as adore/inference.py)",
    )
    add_flags(parser, *ENCODER, "--no_cuda", "--faiss_gpus", *INDEX)
    queries = parser.add_argument_group("the queries")
    queries.add_argument("--query", help="one query, instead of typing")
    queries.add_argument("--qid", help="the query of --mode with this official id, instead of typing")
    queries.add_argument("--json", action="store_true", help="print one JSON object for each query, and nothing else")
    queries.add_argument("--http", type=PORT, metavar="PORT", help="serve a page at this port of 127.0.0.1 (0: any)")
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Raise InputError if flags exclude one another, lack one that they need, or need packages that are missing."""
    given = [name for name in ("query", "qid", "http") if getattr(args, name) is not None]
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]} exclude each other")
    if args.qid is not None and args.mode is None:
        raise InputError("--qid needs --mode")
    if args.compare_model_dir and not args.compare_embeddings:
        raise InputError("--compare_model_dir needs --compare_embeddings")
    if args.query is not None and not args.query.strip():
        raise InputError("--query is empty")
    if args.http is not None:
        if args.json:
            raise InputError("--http and --json exclude each other; the server answers /search.json?query=TEXT too")
        missing = [name for name in SERVER if find_spec(name) is None]
        if missing:
            raise InputError(f"--http needs {' and '.join(missing)}: pip install {' '.join(missing)}")


@command
def main() -> None:
    args = parse_arguments()
    root = args.data_root / args.data_type
    dataset = root / "dataset"
    corpus = find_corpus(CORPORA[args.data_type], dataset)
    collection = Collection(args.preprocess_dir or root / "preprocess")
    known = KnownQueries(corpus, dataset, collection, args.mode)
    require_file(collection.pids_path, "preprocess.py writes it")
    retrievers = choose_models(args, root)
    for models in retrievers:
        require_file(models["embeddings"], "star/inference.py writes it")
        for name in (models["documents"], models["queries"]):
            find_checkpoint(name)
    listener = open_port(args.http)
    reader = ThreadPoolExecutor(1)
    reading = reader.submit(read_ids, collection, corpus.pid_prefix)  # while torch is imported

    with garbage_kept():
        # Imported here: torch takes seconds to load, and a wrong command should fail before that.
        from drhard.code_file import codes_path
        from drhard.devices import choose_device
        from drhard.searcher import Models, Passages, PassageSearch, open_searchers
        from drhard.settings import SearchSettings

        of = [Models(**models, pooling=args.pooling, normalize=args.normalize) for models in retrievers]
        adore = args.query_model or args.compare_query_model
        length = args.max_query_length or (ADORE_QUERY if adore else STAR_QUERY)
        device = choose_device(args.no_cuda)
        # Making int8 codes of large embeddings pays if more than one query is asked.
        coded = all(codes_path(Path(models["embeddings"])).exists() for models in retrievers)
        many = args.query is None and args.qid is None
        searching = replace(SearchSettings.from_flags(args), repeated=many or coded)
        pids, official = reading.result()
        searchers = open_searchers(of, collection, length, device, searching, args.topk)
    texts = open_passage_texts(corpus, dataset, collection.folder, pids)
    if texts is None:
        log.warning("%s: no such file; ids and scores are shown without texts", dataset / corpus.collection)
    passages = Passages(official, texts)
    search = PassageSearch(searchers, passages, known, args.topk)
    if listener is not None:
        serve_page(search, listener)
        return
    if not args.json:
        print(f"Searching {len(passages)} passages, {' and '.join(search.names)} on {device}")
    for answer in answers(search, args):
        show(answer, args.json)


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Do not look for garbage in the block.

    What torch and transformers make as they are imported stays. Looking through it again and again takes half a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def read_ids(collection: Collection, prefix: str) -> tuple[np.ndarray, OfficialIds]:
    """Open the tokens of the passages, if there are any. Return the number, (rows,) int64, and official id of each."""
    if collection.has_passages:
        collection.passages.digest()  # which the collection then keeps
    official = collection.official_pids(prefix)
    return (official.ids if isinstance(official, Numbers) else collection.pids()), official


def choose_models(args: argparse.Namespace, root: Path) -> list[dict[str, str | Path]]:
    """Return the models and embeddings of one retriever, or of two to compare."""
    documents = args.model_dir or str(root / "trained_models" / "star")
    embeddings = args.embeddings or root / "evaluate" / "star" / "passages.memmap"
    first = {"documents": documents, "queries": args.query_model or documents, "embeddings": embeddings}
    if not (args.compare_query_model or args.compare_embeddings):
        return [first]
    documents = args.compare_model_dir or documents
    second = {
        "documents": documents,
        "queries": args.compare_query_model or documents,
        "embeddings": args.compare_embeddings or embeddings,
    }
    return [first, second]


def answers(search: "PassageSearch", args: argparse.Namespace) -> "Iterator[Answer]":
    """Yield the answer to the query of the flags, or to each query that is typed or piped."""
    if args.qid is not None:
        yield search.ask_known(args.mode, args.qid)
    elif args.query is not None:
        yield search.ask(args.query)
    elif sys.stdin.isatty():
        for line in typed_lines("" if args.json else "query> "):
            try:
                yield search.ask(line)
            except InputError as error:  # the next query may be better
                print(f"error: {shorten(error)}", file=sys.stderr)
    else:
        yield from map(search.ask, piped_lines())


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input that are not blank. Raises InputError for one that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        text = decode_line(line, "standard input", number)
        if text.strip():
            yield text


def typed_lines(prompt: str) -> Iterator[str]:
    """Yield the lines that are typed, with history, until an empty one or Ctrl-D."""
    with suppress(ModuleNotFoundError):  # Python without it has no history
        import_module("readline")
    try:
        while (line := input(prompt)).strip():
            yield line
    except EOFError:
        print(end="\n" if prompt else "")
    except KeyboardInterrupt:
        print()  # so that what follows does not stand behind a half-typed query
        raise


def show(answer: "Answer", as_json: bool) -> None:
    """Print an answer."""
    if as_json:
        print(json.dumps(answer.as_json()), flush=True)
        return
    from drhard.answers import render_text

    print(render_text(answer, min(shutil.get_terminal_size().columns, 120)), end="\n\n", flush=True)


def open_port(port: int | None) -> "socket | None":
    if port is None:
        return None
    from drhard.search_app import listen

    return listen(port)


def serve_page(search: "PassageSearch", listener: "socket") -> None:
    """Serve the page until Ctrl-C."""
    from drhard.search_app import serve

    print(f"Open http://127.0.0.1:{listener.getsockname()[1]}/ in a browser; Ctrl-C ends", flush=True)
    with suppress(KeyboardInterrupt):
        serve(search, listener)


if __name__ == "__main__":
    main()
