"""Export encoders and embeddings for other libraries: sentence-transformers, faiss, pyterrier_dr."""

import os
import shutil
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from drhard.blocks import BLOCK_ROWS, read_blocks
from drhard.encoder import Encoder
from drhard.errors import InputError, reason_of
from drhard.faiss_index import require_faiss
from drhard.files import write_json, write_whole_file, write_whole_folder, write_whole_text
from drhard.hub import CONFIG_FILE
from drhard.model_folder import let_all_read, write_encoder, write_tokenizer
from drhard.names import OfficialIds
from drhard.sentence_files import MODULES_FILE
from drhard.sentence_modules import SentenceModules, write_length, write_parts, write_router

import numpy as np
from tqdm import tqdm

CARD_FILE = "README.md"


def export_encoders(folder: Path, encoders: Mapping[str, tuple[Encoder, Path]], card: str) -> None:
    """Write a folder for sentence-transformers, as a whole.

    With one encoder, ``encode`` embeds queries and documents. With two, a Router gives each its own: ``encode_query``
    and ``encode_document``.

    Args:
        encoders: "query" and "document" -> the encoder and the folder of its tokenizer. Both may be the same object.
        card: the content of ``README.md``.

    Raises:
        InputError: the two embeddings cannot be compared, or the disk is full.
    """
    query, document = encoders["query"][0], encoders["document"][0]
    if query.output_embedding_size != document.output_embedding_size or query.normalized != document.normalized:
        raise InputError(
            f"{folder}: the query model gives {_about(query)} and the document model {_about(document)}; "
            "they do not belong together"
        )
    last = CONFIG_FILE if query is document else MODULES_FILE
    with write_whole_folder(folder, last=last) as unfinished:
        with write_whole_text(unfinished / CARD_FILE) as file:
            file.write(card)
        if query is document:
            write_encoder(query, unfinished, encoders["query"][1])
        else:
            routes = {route: _write_route(unfinished, route, *encoders[route]) for route in encoders}
            write_router(unfinished, routes, _join(query.describe(), document.describe()))
        let_all_read(unfinished)


def _about(encoder: Encoder) -> str:
    return f"{encoder.output_embedding_size} dimensions{' of length 1' if encoder.normalized else ''}"


def _write_route(folder: Path, route: str, encoder: Encoder, source: Path) -> list[str]:
    """Write the modules of one route. Return the names of their folders."""
    first, modules = f"{route}_0_Transformer", encoder.describe()
    encoder.backbone.save_pretrained(folder / first)
    write_tokenizer(encoder, folder / first, source)
    write_length(folder / first, modules)
    return [first, *write_parts(folder, f"{route}_", int(encoder.config.hidden_size), modules)]


def _join(query: SentenceModules, document: SentenceModules) -> SentenceModules:
    """Return the modules of queries with the prompts of both.

    A document encoder that was never trained here does not know its prompt. The query encoder does: it learned from
    its embeddings.
    """
    prompts = {**query.prompts, **document.prompts, "query": query.prompts.get("query", "")}
    return replace(query, prompts=prompts if query.prompts or document.prompts else {})


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to the Hugging Face hub. Return its address.

    Raises:
        InputError: there is no network, no token, or no right to write there.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from STAR and ADORE")
    except Exception as error:  # no network, no token, a bad name: many types
        raise InputError(
            f"{name}: cannot be uploaded ({reason_of(error)}); {folder} is whole, and 'hf auth login' sets a token"
        ) from None
    return str(address)


# Embeddings


def export_faiss(path: Path, embeddings: np.ndarray) -> None:
    """Write a flat inner-product index of faiss, in the memory of one block.

    faiss itself builds an index in memory: 27 GB for MS MARCO. The file of a flat index is a header and the rows.

    Args:
        embeddings: (rows, dim) float32.

    Raises:
        InputError: faiss is missing, or the disk is full.
    """
    require_faiss()
    import faiss

    rows, dim = embeddings.shape
    one = faiss.serialize_index(faiss.IndexFlatIP(dim)).tobytes()
    header, count = one[: -_COUNT.size], _COUNT.pack(rows * dim)
    assert one[-_COUNT.size :] == _COUNT.pack(0), "an empty flat index ends with its number of floats"
    assert header[_ROWS_AT : _ROWS_AT + _COUNT.size] == _COUNT.pack(0)
    header = header[:_ROWS_AT] + _COUNT.pack(rows) + header[_ROWS_AT + _COUNT.size :]
    with write_whole_file(path) as file, tqdm(total=rows, desc=path.name, unit="row") as bar:
        file.write(header + count)
        for _, block in read_blocks(embeddings, BLOCK_ROWS):
            file.write(block.data.cast("B"))
            bar.update(len(block))


_COUNT = struct.Struct("<Q")
_ROWS_AT = 8  # in the header: four letters of the type, then the dimensions, int32


def export_flex(folder: Path, embeddings: np.ndarray, source: Path, pids: OfficialIds) -> None:
    """Write a FlexIndex of pyterrier_dr: ``vecs.f4``, ``docnos.npids``, ``pt_meta.json``.

    ``vecs.f4`` is a hard link to ``source`` where the disk allows one. Otherwise it is a copy.

    Args:
        embeddings: (rows, dim) float32, the content of ``source``.
        pids: the official id of each row.

    Raises:
        InputError: npids is not installed, the ids are of another collection, or the disk is full.
    """
    try:
        from npids import Lookup
    except ImportError:
        raise InputError("--flex needs npids; install it: pip install npids") from None

    if len(pids) != len(embeddings):
        raise InputError(f"{source}: has {len(embeddings)} rows, but the collection has {len(pids)} passages")
    with write_whole_folder(folder, last="pt_meta.json") as unfinished:
        with suppress(OSError):
            os.link(source, unfinished / "vecs.f4")
        if not (unfinished / "vecs.f4").exists():
            shutil.copyfile(source, unfinished / "vecs.f4")
        with Lookup.builder(unfinished / "docnos.npids") as docnos:
            for row in tqdm(range(len(pids)), desc="docnos", unit="id"):
                docnos.add(*pids.take([row]))
        meta = {"type": "dense_index", "format": "flex", "vec_size": embeddings.shape[1], "doc_count": len(embeddings)}
        write_json(unfinished / "pt_meta.json", meta)
