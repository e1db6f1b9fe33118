"""Compressed indexes: faiss indexes that take less memory than the documents and find nearly the same ones.

faiss is imported inside the functions: see :mod:`drhard.faiss_index`.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drhard.arrays import spread
from drhard.blocks import BLOCK_ROWS, read_blocks
from drhard.errors import InputError
from drhard.faiss_index import FaissIndex
from drhard.files import require_file, write_whole_file
from drhard.flags import FLAT
from drhard.index import NO_ROWS, part_of, restore_rows
from drhard.provenance import (
    check_made_from,
    digest_sample,
    is_unchanged,
    read_stamp,
    stamp_path,
    warn_of_no_stamp,
    write_stamp,
)
from drhard.vectors import check_finite, name_source

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

ON_GPUS = ("IndexFlat", "IndexIVFFlat", "IndexIVFPQ", "IndexIVFScalarQuantizer")  # indexes that faiss has on GPUs
FLAG_OF = {"nprobe": "--nprobe", "efSearch": "--ef_search"}  # by faiss's names
TRAINING_ROWS = 262_144  # 0.8 GB at 768 dimensions


def open_compressed(
    documents: np.ndarray,
    factory: str,
    path: Path | None,
    parameters: Mapping[str, int],
    gpus: Sequence[int] = (),
    progress: bool = False,
    left_out: np.ndarray = NO_ROWS,
) -> FaissIndex:
    """Read a faiss index from a file, or build it.

    Args:
        documents: (N, dim) float32.
        factory: a description for ``faiss.index_factory`` such as ``OPQ96,PQ96``; ``Flat`` to use the file's index.
        path: the file of the index. If it does not exist, the index is built and written there. None to build the
            index for this run only.
        parameters: search parameters by faiss's names: ``nprobe``, ``efSearch``.
        gpus: where to search; on the CPU if empty.
        progress: show a bar over the queries of a search.
        left_out: (n,) int64 rows of documents that the index leaves out, ascending.

    Raises:
        InputError: faiss cannot build the index, the file is damaged or was built from other documents, or the index
            does not have one of the parameters.
    """
    if path is None:
        index = build(documents, factory, left_out=left_out)
    elif path.exists() or factory == FLAT:
        index = _read(require_file(path, "give --index_factory to build it"), documents, factory, left_out)
    else:
        index = _build_at(path, documents, factory, left_out)
    set_parameters(index, parameters, str(path or f"--index_factory {factory}"))
    return FaissIndex(_to_gpus(index, gpus) if gpus else index, progress, left_out=left_out)


def check_factory(factory: str, dim: int, parameters: Mapping[str, int], on_gpus: bool) -> None:
    """Raise InputError, before the long work, if faiss lacks this index for ``dim`` dimensions or on GPUs."""
    import faiss

    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"--index_factory {factory}: faiss has no such index for {dim} dimensions "
            f"({_reason(error)}); for 768 dimensions, OPQ96,PQ96 works"
        ) from None
    set_parameters(index, parameters, f"--index_factory {factory}")
    if on_gpus:
        check_kind(index, factory)


def set_parameters(index: Any, parameters: Mapping[str, int], name: str) -> None:
    """Set search parameters. Raises InputError, naming the index ``name``, if it lacks one of them."""
    import faiss

    for parameter, value in parameters.items():
        try:
            faiss.ParameterSpace().set_index_parameter(index, parameter, value)
        except RuntimeError:
            flag = FLAG_OF[parameter]
            raise InputError(f"{name}: this index does not use {flag}; omit it") from None


def build(
    documents: np.ndarray,
    factory: str,
    training_rows: int = TRAINING_ROWS,
    block_rows: int = BLOCK_ROWS,
    left_out: np.ndarray = NO_ROWS,
) -> Any:
    """Build a faiss index of ``documents``, (N, dim) float32.

    Args:
        training_rows: the most documents to learn the codes from, spread over all.
        block_rows: documents added at a time.
        left_out: (n,) int64 rows of documents that are not added, ascending.

    Raises:
        InputError: faiss cannot build such an index of so many documents, or a number is not finite.
    """
    import faiss

    count, dim = documents.shape
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            rows = restore_rows(spread(count - len(left_out), training_rows), left_out)
            log.info("training an index %s on %d documents", factory, len(rows))
            index.train(np.ascontiguousarray(documents[rows]))
    except RuntimeError as error:
        raise InputError(f"--index_factory {factory} cannot index {count} x {dim}: {_reason(error)}") from None
    with tqdm(total=count, unit="doc", unit_scale=True, desc=f"indexing {factory}") as bar:
        for first, block in read_blocks(documents, block_rows):
            check_finite(block, first, name_source(documents, "the documents"))
            absent = part_of(left_out, first, len(block))
            index.add(np.delete(block, absent, axis=0) if len(absent) else block)
            bar.update(len(block))
    return index


def _reason(error: RuntimeError) -> str:
    """Return faiss's message without the names of its functions and files."""
    return re.sub(r"^Error in .*?\.(cpp|h):\d+: (Error: .*? failed: )?", "", str(error).strip().splitlines()[0])


def _build_at(path: Path, documents: np.ndarray, factory: str, left_out: np.ndarray) -> Any:
    """Build an index and write it to ``path``. Building takes long, so the file is claimed first."""
    import faiss

    with write_whole_file(path) as file:
        index = build(documents, factory, left_out=left_out)
        digest = hashlib.sha256()

        def write(data: bytes) -> int:
            digest.update(data)
            return file.write(data)

        writer: Any = faiss  # its stubs lack this class
        faiss.write_index(index, writer.PyCallbackIOWriter(write))
        write_stamp(path, _stamp(documents, factory, left_out) | {"sha256": digest.hexdigest()})
    log.info("wrote %s", path)
    return index


def _read(path: Path, documents: np.ndarray, factory: str, left_out: np.ndarray) -> Any:
    import faiss

    expected = _stamp(documents, factory, left_out)
    found = read_stamp(path, dict.fromkeys(expected, str), {"sha256": str})
    if found is not None and not is_unchanged(path, found):
        raise InputError(
            f"{path}: is damaged, or not the file that {stamp_path(path).name} was written for; delete both to build "
            "it again, or name another file"
        )
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError):
        raise InputError(f"{path}: faiss cannot read an index in it") from None
    count, dim = len(documents) - len(left_out), documents.shape[1]
    if (index.ntotal, index.d) != (count, dim):
        raise InputError(
            f"{path}: holds {index.ntotal} documents of {index.d} dimensions, the embeddings are {count} x {dim}"
            + (f" without {len(left_out)} empty texts" if len(left_out) else "")
            + "; delete it to build it again, or name another file"
        )
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"{path}: searches by distance; build an index of inner products")
    if found is None:
        warn_of_no_stamp(path)
        return index
    words = {"vectors": "was built from other embeddings"}
    vectors = {"vectors": expected["vectors"]}
    check_made_from(path, found, vectors, words, "delete it to build it again, or name another file")
    if factory != FLAT:
        words = {"factory": f"is an index {found['factory']}, not {factory}"}
        check_made_from(path, found, {"factory": factory}, words, "name another file")
    return index


def _stamp(documents: np.ndarray, factory: str, left_out: np.ndarray) -> dict[str, str]:
    vectors = digest_sample(documents)
    if len(left_out):
        vectors = f"{vectors}-{hashlib.sha256(left_out.tobytes()).hexdigest()}"
    return {"factory": factory, "vectors": vectors}


def check_kind(index: Any, name: str) -> str:
    """Return the kind of an index, without its pre-transform. Raises InputError if faiss does not have it on GPUs."""
    import faiss

    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    kind = type(inner).__name__.removesuffix("IP")
    if kind not in ON_GPUS:
        raise InputError(
            f"{name}: faiss does not have this index ({kind}) on GPUs; use one such as OPQ96,IVF1,PQ96, "
            "or search on the CPU"
        )
    return kind


def _to_gpus(index: Any, gpus: Sequence[int]) -> Any:
    """Copy the index to GPUs, an equal part to each."""
    import faiss

    kind = check_kind(index, "this index")
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    options.useFloat16 = kind == "IndexIVFPQ"  # look-up tables for codes of 96 bytes do not fit in float32
    try:
        return faiss.index_cpu_to_gpus_list(index, co=options, gpus=list(gpus))
    except RuntimeError as error:
        raise InputError(f"faiss cannot put this index on a GPU: {_reason(error)}; search on the CPU") from None
