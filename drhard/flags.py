"""The flags for encoding and searching, most of which several scripts share. Each is defined once.

This module is light to import, so a mistyped flag is reported before torch is loaded.
"""

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from drhard.dataset import parse_split
from drhard.msmarco import CORPORA
from drhard.numbers import COUNT, LENGTH, MARGIN, NATURAL, SEARCH_GB, Ranks

FLAT = "Flat"  # the value of --index_factory for an exact search
SEARCH_MEMORY_GB = 2.0  # the default of --search_memory_gb


def _count(default: int, help: str) -> dict[str, Any]:
    return {"type": COUNT, "default": default, "help": f"{help} (%(default)s)"}


def _length(default: int, help: str) -> dict[str, Any]:
    return {"type": LENGTH, "default": default, "help": f"maximum tokens per {help} (%(default)s)"}


_GPUS = {"type": NATURAL, "nargs": "+", "default": [], "dest": "gpus", "help": "GPUs to search on (none: the CPU)"}
_BATCH = {"dest": "batch_size"} | _count(32, "batch size per GPU, in sequences")
_HALF = {"action": "store_const", "dest": "precision", "help": "half precision: faster, on a GPU"}

POOLINGS = ("cls", "mean")
POOLING_HELP = "how to pool the hidden states of a plain encoder; folders of sentence-transformers say it themselves"
NORMALIZE_HELP = "give the embeddings of a plain encoder the length 1; needs --pooling"

FLAGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "--data_type": {"choices": CORPORA, "required": True},
        "--data_root": {"type": Path, "default": Path("./data"), "help": "default: ./data"},
        "--preprocess_dir": {"type": Path, "help": "default: {data_root}/{type}/preprocess"},
        "--mode": {
            "type": parse_split,
            "required": True,
            "help": "which queries: train, dev, test, lead or another split",
        },
        "--topk": _count(100, "documents to retrieve for each query"),
        # Encoding
        "--pooling": {"choices": POOLINGS, "help": POOLING_HELP},
        "--normalize": {"action": "store_true", "help": NORMALIZE_HELP},
        "--max_query_length": _length(32, "query"),
        "--max_doc_length": _length(512, "document"),
        "--max_seq_length": _length(64, "query"),
        "--eval_batch_size": _BATCH,
        "--pergpu_eval_batch_size": _BATCH,
        "--no_cuda": {"action": "store_true", "help": "do not use the GPU"},
        "--fp16": _HALF | {"const": "float16"},
        "--bf16": _HALF | {"const": "bfloat16"},
        "--torch_compile": {
            "action": "store_true",
            "help": "compile the model by torch.compile; its first batches take a minute or more longer",
        },
        # Searching. In the namespace, each has its name in SearchSettings.
        "--faiss_gpus": _GPUS,
        "--faiss_gpu_index": _GPUS,
        "--not_faiss_cuda": {
            "action": "store_const",
            "const": [],
            "default": None,
            "dest": "gpus",
            "help": "search on the CPU even if the GPUs have room",
        },
        "--search_memory_gb": {
            "type": SEARCH_GB,
            "default": SEARCH_MEMORY_GB,
            "dest": "memory_gb",
            "help": "memory for one pass of the exact search on the CPU (%(default)g)",
        },
        "--index_factory": {
            "default": FLAT,
            "dest": "factory",
            "help": "a faiss index such as OPQ96,PQ96 (Flat: exact)",
        },
        "--index_path": {"type": Path, "help": "file of a faiss index; built if it does not exist"},
        "--nprobe": {"type": COUNT, "help": "lists of an inverted file (IVF) to search (the index's own; new: 1)"},
        "--ef_search": {"type": COUNT, "help": "width of the search in a graph (HNSW) (the index's own; new: 16)"},
        # Choosing hard negatives among the passages that a search finds
        "--negative_ranks": {
            "type": Ranks.parse,
            "default": None,
            "dest": "negative_ranks",
            "metavar": "FIRST-LAST",
            "help": "hard negatives to keep, by rank, counted from 1 without the relevant passages (1-200)",
        },
        "--relative_margin": {
            "type": MARGIN,
            "default": None,
            "dest": "relative_margin",
            "help": "keep only hard negatives that score lower than each relevant passage of the query, by at least "
            "this share of its score, such as 0.05 (none: keep all)",
        },
    }
)
RETRIEVAL = (
    "--data_type",
    "--data_root",
    "--preprocess_dir",
    "--max_query_length",
    "--max_doc_length",
    "--eval_batch_size",
    "--mode",
    "--topk",
)
ENCODER = ("--pooling", "--normalize")
PRECISION = ("--fp16", "--bf16")  # mutually exclusive
SELECTION = ("--negative_ranks", "--relative_margin")
INDEX = ("--search_memory_gb", "--index_factory", "--index_path", "--nprobe", "--ef_search")


def add_flags(parser: ArgumentParser, *names: str, **different: Mapping[str, Any]) -> None:
    """Add the flags ``names`` of :data:`FLAGS` to ``parser``.

    Args:
        different: a script's own values for a flag, by its name without dashes: ``topk={"default": 200}``.
    """
    half = parser.add_mutually_exclusive_group() if set(PRECISION) & set(names) else parser
    for name in names:
        (half if name in PRECISION else parser).add_argument(name, **{**FLAGS[name], **different.pop(name[2:], {})})
    assert not different, different
