"""What an earlier run of preprocess.py made of an imported collection, to which it can append new passages."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drhard.collection import Collection
from drhard.dataset import Place, digest_parts, end_of
from drhard.errors import InputError
from drhard.ids import read_ids
from drhard.names import Names
from drhard.provenance import find_difference
from drhard.tokens import PASSAGES, TokenMemmap, read_meta
from drhard.workers import Rows

import numpy as np

log = logging.getLogger(__name__)

WORDS = {  # why a field of a meta keeps passages from being appended
    "corpus": "they are of another collection",
    "tokenizer": "another tokenizer made them",
    "prompt": "they have another prompt",
    "embedding_size": "they have another --max_seq_length",
    "characters": "they have another --max_doc_character",
    "empty_texts": "they have another --empty_texts",
}


class EarlierTokens(NamedTuple):
    """The tokens of the first passages of a collection."""

    tokens: TokenMemmap
    ids: np.ndarray  # (rows,) int64
    names: Names
    end: Place  # where these passages end in the file of the collection

    def rows(self) -> Rows:
        """Return the rows as a worker returns those that it has written."""
        assert self.tokens.max_token_id is not None
        return Rows(0, self.ids, self.tokens.lengths, self.tokens.max_token_id, [], self.tokens.empty.tolist())

    def left_out(self) -> set[int]:
        """Return the ids of the passages that have no row, since their texts are empty."""
        missing = np.ones(self.end.lines, dtype=bool)
        missing[self.ids] = False
        return set(np.flatnonzero(missing).tolist())


def find_earlier_tokens(
    folder: Path, content: Mapping[str, Any], expected: Mapping[str, Any], splits: Sequence[str]
) -> EarlierTokens | None:
    """Return the tokens in ``folder`` if those of new passages can be appended to them. Otherwise log why they cannot.

    Args:
        folder: a ``preprocess`` folder, to which no other process writes.
        content: ``import.json`` of the collection.
        expected: what the meta of the passages must say.
        splits: the splits of the collection.
    """
    meta_path = folder / f"{PASSAGES}_meta"
    if not meta_path.exists():
        return None
    try:
        meta, _ = read_meta(meta_path)
        counts = range(len(content["parts"]), 0, -1)
        count = next((count for count in counts if digest_parts(content, count) == meta.get("corpus")), 0)
        difference = "corpus" if not count else find_difference(meta, {**expected, "corpus": meta["corpus"]})
        gone = sorted(set(Collection(folder).splits()) - set(splits))
        if difference is None and not gone:
            return _open(folder, end_of(content["parts"][:count]))
        reason = WORDS[difference] if difference else f"there is no split {gone[0]} any more"
    except InputError as error:
        reason = f"they are damaged ({error})"
    log.info("%s: makes all tokens again: %s", folder, reason)
    return None


def _open(folder: Path, end: Place) -> EarlierTokens:
    """Open the earlier tokens. Raises InputError if files are missing or do not belong together."""
    tokens, ids = TokenMemmap.open(folder, PASSAGES), read_ids(Collection(folder).pids_path)
    names = Names(folder / PASSAGES)
    if tokens.max_token_id is None or not len(tokens) == len(ids) == len(names):
        raise InputError(f"{tokens.path}: has {len(tokens)} rows, but there are {len(ids)} and {len(names)} ids")
    if ids.max() >= end.lines:
        raise InputError(f"{tokens.path}: has passages that the collection had not")
    return EarlierTokens(tokens, ids, names, end)
