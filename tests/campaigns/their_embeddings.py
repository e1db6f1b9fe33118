"""Compare what a script made of a sentence-transformers folder with what sentence-transformers makes of the folder.

    python tests/campaigns/their_embeddings.py SCRIPT DATASET

Run it in the working folder of a script of ``scripts_under_test.py`` that has ended. DATASET has the texts. The exit
code is 1 if the results differ.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts_under_test import EMBEDDINGS, MODEL, PREPROCESS, PROJECT

sys.path.append(str(PROJECT / "tests"))
import json

import numpy as np
import torch
from helpers import TEXTS, embed_texts
from sentence_transformers import SentenceTransformer

OUTPUT = Path("out/models")
LENGTHS = {"passages": 8, "dev-query": 6}  # in tokens
PROMPTS = {"passages": "text: ", "dev-query": "is "}  # of the undamaged model, in the tokens of inference


class Refused(Exception):
    """sentence-transformers cannot use a folder."""


class Theirs:
    """A folder as sentence-transformers reads it. Raises Refused if it cannot use the folder."""

    def __init__(self, folder: str | Path):
        with refused():
            self.model = SentenceTransformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
            )

    def encode(self, texts: Sequence[str], task: str = "", length: int | None = None) -> np.ndarray:
        """Embed texts one by one: a damaged config may have them padded on the left, which moves positions."""
        with refused():
            if length:
                self.model.max_seq_length = length
            encode = getattr(self.model, f"encode_{task}" if task else "encode")
            embeddings: np.ndarray = encode(list(texts), prompt="", batch_size=1)
            return embeddings


@contextmanager
def refused() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Refused(f"sentence-transformers refuses the folder: {type(error).__name__}: {error}") from None


def read_texts(name: str) -> list[str]:
    """Return the texts of the passages or of the judged dev queries, in the order of the rows."""
    path = Path(sys.argv[2]) / {"passages": "collection.tsv", "dev-query": "queries.dev.small.tsv"}[name]
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    return [text for id_, text in lines if id_ != "99999"]


def compare_ids() -> None:
    model = Theirs("base").model
    for name, length in LENGTHS.items():
        meta = json.loads(Path(PREPROCESS, f"{name}_meta").read_text())
        rows = np.fromfile(Path(PREPROCESS, f"{name}.memmap"), dtype=meta["type"]).reshape(-1, meta["embedding_size"])
        lengths = np.load(Path(PREPROCESS, f"{name}_length.npy"))
        if meta["prompt"] not in ("", *model.prompts.values()):
            sys.exit(f"{name}: the prompt is {meta['prompt']!r}, theirs are {model.prompts}")
        with refused():
            model.max_seq_length = length
            texts = read_texts(name)
            found = [model.preprocess([text], prompt=meta["prompt"]) for text in texts]
        for text, row, count, theirs in zip(texts, rows, lengths, found, strict=True):
            if row[:count].tolist() != theirs["input_ids"][0].tolist():
                sys.exit(f"{name}: other ids of {text!r}")
            if "token_type_ids" in theirs and theirs["token_type_ids"].any():
                sys.exit(f"{name}: token types that are not 0")


def compare_embeddings() -> None:
    model = Theirs(MODEL)
    for name, length in LENGTHS.items():
        theirs = model.encode([PROMPTS[name] + text for text in read_texts(name)], length=length)
        ours = np.fromfile(Path(EMBEDDINGS, f"{name}.memmap"), dtype=np.float32).reshape(len(theirs), -1)
        compare(name, ours, theirs)


def compare_checkpoint(folder: Path) -> None:
    compare("the trained model", embed_texts(folder, 24), Theirs(folder).encode(TEXTS, length=24))


def compare_export(routed: bool) -> None:
    folders = {"query": "runs/adore/epoch-3" if routed else MODEL, "document": MODEL}
    try:
        theirs = {task: Theirs(folder).encode(TEXTS, task) for task, folder in folders.items()}
    except Refused:  # what was exported is as good as what was given
        return
    exported = Theirs("out/exported")
    for task, embeddings in theirs.items():
        compare(task, exported.encode(TEXTS, task), embeddings)


def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Exit with the greatest difference if the embeddings differ by more than rounding."""
    if ours.shape != theirs.shape:
        sys.exit(f"{name}: {ours.shape} in place of {theirs.shape}")
    if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * max(1, np.abs(theirs).max())):
        sys.exit(f"{name}: other embeddings, by up to {np.abs(ours - theirs).max():.1e}")


COMPARE: dict[str, Callable[[], None]] = {
    "preprocess-sentence": compare_ids,
    "inference-sentence": compare_embeddings,
    "star-train-measured": lambda: compare_checkpoint(OUTPUT),
    "adore-train-measured": lambda: compare_checkpoint(OUTPUT / "epoch-3"),
    "export": lambda: compare_export(routed=False),
    "export-router": lambda: compare_export(routed=True),
}

if __name__ == "__main__":
    try:
        COMPARE[sys.argv[1]]()
    except Refused as error:
        sys.exit(str(error))
