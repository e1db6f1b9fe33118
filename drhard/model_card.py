"""The model card of an exported model: what it is, what it was made from, what it scores, with digests."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from drhard.checkpoints import RECORD_FILE
from drhard.encoder import Encoder
from drhard.files import digest_file, read_object
from drhard.pretrained import find_weights_files
from drhard.validation import BEST_FOLDER

_OF_A_TRAINING = re.compile(rf"(epoch|checkpoint)-\d+|{BEST_FOLDER}")
_FRONT = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- dense-retrieval
- STAR
- ADORE
---
"""


def write_card(
    encoders: Mapping[str, tuple[Encoder, Path]], scores: Mapping[str, float], measured: Sequence[Path]
) -> str:
    """Return the model card, in Markdown.

    Args:
        encoders: "query" and "document" -> the encoder and its folder.
        scores: name of a measure -> value.
        measured: the files behind the scores: run and judgements.
    """
    query, document = encoders["query"], encoders["document"]
    sides = encoders if query[0] is not document[0] else {"": query}
    parts = [_FRONT, "# A dense retriever\n", _usage(len(sides) == 2), _what_it_is(sides)]
    for side, (_, folder) in sides.items():
        settings = _find_record(folder)
        if settings is not None:
            content = {name: value for name, value in read_object(settings, {}).items() if value is not None}
            title = f"Training of the {side} encoder" if side else "Training"
            parts.append(f"## {title}\n\n{_table(('setting', 'value'), content.items())}")
    if scores:
        values = _table(("measure", "value"), ((name, f"{value:.4f}") for name, value in scores.items()))
        files = _table(("measured from", "SHA-256"), ((path.name, digest_file(path)) for path in measured))
        parts.append(f"## Results\n\n{values}\n{files}")
    return "\n".join(parts)


def _find_record(folder: Path) -> Path | None:
    """Return the record of the training that wrote ``folder``: there, or in the folder of the training above it."""
    folders = [folder, folder.parent] if _OF_A_TRAINING.fullmatch(folder.name) else [folder]
    return next((path for path in (place / RECORD_FILE for place in folders) if path.is_file()), None)


def _usage(routed: bool) -> str:
    calls = ("encode_query", "encode_document") if routed else ("encode", "encode")
    return f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path or name of this model")
queries = model.{calls[0]}(["what is a hard negative?"])
documents = model.{calls[1]}(["A hard negative is a document that a model ranks high although it is not relevant."])
scores = model.similarity(queries, documents)
```
"""


def _what_it_is(encoders: Mapping[str, tuple[Encoder, Path]]) -> str:
    rows = []
    for side, (encoder, folder) in encoders.items():
        similarity = "cosine" if encoder.normalized else "inner product"
        sizes = f"{encoder.config.model_type}, {encoder.output_embedding_size} dimensions, {similarity}"
        digests = ", ".join(digest_file(path) for path in find_weights_files(folder))
        rows.append((side or "both", sizes, encoder.longest_sequence, digests))
    head = ("encoder", "what", "most tokens", "SHA-256 of the weights")
    note = (
        "Trained with STAR or ADORE ([Zhan et al., SIGIR 2021](https://arxiv.org/abs/2104.08051)). "
        "The score of a document is the similarity of its embedding and the query's.\n"
    )
    return f"{note}\n{_table(head, rows)}"


def _table(head: Sequence[str], rows: object) -> str:
    lines = [head, ["---"] * len(head), *rows]  # type: ignore[misc]
    return "".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |\n" for line in lines)
