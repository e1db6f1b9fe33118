"""The tokenizers of models: transformers' own for any encoder, the published one for the paper's."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from drhard.errors import InputError, reason_of
from drhard.files import read_object
from drhard.hub import CONFIG_FILE, TOKENIZER_FILES, find_tokenizer, refuse_stand_in
from drhard.sentence_files import MODULES_FILE, NO_PROMPTS, find_transformer, read_length, read_prompts
from drhard.tokenizer import RobertaTokenizer

import numpy as np
import tokenizers
from tokenizers.normalizers import Lowercase, Normalizer
from tokenizers.normalizers import Sequence as NormalizerSequence

SPECIALS = 2  # special tokens of a text: one in front, one behind
LARGEST_ID = 2**22 - 1  # the tokenizers library takes memory for every id up to the largest


class Tokenizer(Protocol):
    """What preprocess.py needs of a tokenizer. It is pickled to the workers.

    Attributes:
        prompts: "query" and "passage" -> the text that preprocess.py puts in front of each.
    """

    prompts: Mapping[str, str]

    def encode_rows(self, texts: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (B, width) int32, padded with 0, and the number of ids of each text (B,) int32.

        Longer texts are cut. Their last id stays that of the end.
        """

    def digest(self) -> str:
        """Return a SHA-256 of what decides the ids of a text."""


class ModelTokenizer:
    """The tokenizer that transformers loads for a model, run by the tokenizers library.

    Args:
        definition: the content of ``tokenizer.json``.
        prompts: see :class:`Tokenizer`.
        name: what to call it in errors: the folder of the model.

    Raises:
        InputError: it does not put one special token in front of a text and one behind, or gives a token a type.
    """

    def __init__(self, definition: str, prompts: Mapping[str, str] = NO_PROMPTS, name: str = "tokenizer.json"):
        self._definition, self.prompts, self._name = definition, prompts, name
        with _library_errors(name):
            self._tokenizer = tokenizers.Tokenizer.from_str(definition)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            empty, text = self._tokenizer.encode_batch(["", "a"])
        self._width = 0
        added = len(empty.ids)
        if added != SPECIALS:
            raise InputError(f"{name}: its tokenizer adds {added} special tokens to a text, expected {SPECIALS}")
        ends = [1, *[0] * (len(text.ids) - SPECIALS), 1]
        if text.special_tokens_mask != ends:
            raise InputError(f"{name}: its tokenizer does not put one special token in front of a text and one behind")
        if any(text.type_ids):
            raise InputError(f"{name}: its tokenizer gives tokens a type other than 0; this cannot be used")

    def __reduce__(self) -> tuple[type["ModelTokenizer"], tuple[str, dict[str, str], str]]:
        return ModelTokenizer, (self._definition, dict(self.prompts), self._name)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ModelTokenizer":
        """Load the tokenizer of a checkpoint as transformers and sentence-transformers do.

        Raises:
            InputError: the folder has no tokenizer, or one that needs code of its own.
        """
        from transformers import AutoTokenizer

        with _library_errors(folder):
            loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            backend = loaded.backend_tokenizer
            largest = max(backend.get_vocab().values(), default=0)
        if largest > LARGEST_ID:
            raise InputError(f"{folder}: its tokenizer has the token id {largest}; at most {LARGEST_ID} can be used")
        if loaded.truncation_side != "right":
            raise InputError(f"{folder}: its tokenizer cuts the start of long texts; only their end can be cut")
        if read_length(folder)[1] and not _has_lowercase(backend.normalizer):
            backend.normalizer = NormalizerSequence([Lowercase(), *filter(None, [backend.normalizer])])
        return cls(backend.to_str(), name=str(folder))

    def digest(self) -> str:
        """Return the SHA-256 of the definition."""
        content = json.loads(self._definition)
        content |= {"truncation": None, "padding": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode_rows(self, texts: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Tokenizer.encode_rows`. An empty text gives the two special tokens."""
        if width != self._width:
            self._tokenizer.enable_truncation(width)
            self._width = width
        rows = np.zeros((len(texts), width), dtype=np.int32)
        lengths = np.zeros(len(texts), dtype=np.int32)
        with _library_errors(self._name):
            encodings = self._tokenizer.encode_batch_fast(list(texts))
        for place, encoding in enumerate(encodings):
            ids = encoding.ids
            rows[place, : len(ids)] = ids
            lengths[place] = len(ids)
        return rows, lengths


def is_published(folder: Path, own_tokenizer: bool = False) -> bool:
    """Return whether a checkpoint is one of the paper's kind: a RobertaDot, or RoBERTa from which one starts.

    Args:
        own_tokenizer: a plain RoBERTa is another kind: it is pooled, and its own tokenizer is used.
    """
    if not (folder / CONFIG_FILE).is_file():
        return not (folder / MODULES_FILE).exists()
    refuse_stand_in(folder / CONFIG_FILE)
    config = read_object(folder / CONFIG_FILE, {}, optional={"model_type": str, "architectures": (list, type(None))})
    names = config.get("architectures") or []
    if config.get("model_type", "roberta") != "roberta":
        return False
    if any(str(name).startswith("RobertaDot") for name in names):
        return True
    return not (own_tokenizer or (folder / MODULES_FILE).exists())


def load_tokenizer(folder: Path, own_tokenizer: bool = False) -> Tokenizer | None:
    """Load the tokenizer beside the weights of a checkpoint; None if there is none.

    Raises:
        InputError: its files are damaged, or it cannot be used.
    """
    if is_published(folder, own_tokenizer):
        if not all((folder / name).is_file() for name in TOKENIZER_FILES):
            return None
        return RobertaTokenizer.from_pretrained(folder, do_lower_case=True)
    place = find_transformer(folder)
    if not any(place.glob("tokenizer*")) and not any(place.glob("*vocab*")):
        return None
    return ModelTokenizer.from_pretrained(place)


def open_tokenizer(name_or_path: str, own_tokenizer: bool = False) -> Tokenizer:
    """Return the tokenizer of a model, with its prompts.

    Args:
        name_or_path: a folder, a name on the Hugging Face hub, or, for the published tokenizer, ``s3://bucket/prefix``.
        own_tokenizer: use the tokenizer of a plain RoBERTa as it is, not as published.

    Raises:
        InputError: there is no such model, it has no tokenizer, or the tokenizer cannot be used.
    """
    if name_or_path.startswith("s3://"):
        return RobertaTokenizer.from_pretrained(name_or_path, do_lower_case=True)
    folder = find_tokenizer(name_or_path)
    if is_published(folder, own_tokenizer):  # its errors name the missing file
        return RobertaTokenizer.from_pretrained(name_or_path, do_lower_case=True)
    tokenizer = load_tokenizer(folder, own_tokenizer)
    if tokenizer is None:
        raise InputError(f"{folder}: has no tokenizer")
    tokenizer.prompts = read_prompts(folder) or NO_PROMPTS
    return tokenizer


@contextmanager
def _library_errors(name: object) -> Iterator[None]:
    """Turn an error of the tokenizers library or of transformers into an InputError. They are of many types.

    A panic of the library is no Exception.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{name}: its tokenizer cannot be used ({reason_of(error)})") from None


def _has_lowercase(normalizer: Normalizer | None) -> bool:
    if isinstance(normalizer, NormalizerSequence):
        return any(_has_lowercase(part) for part in normalizer)  # type: ignore[attr-defined]
    return isinstance(normalizer, Lowercase)


# The published tokenizer in the format of the tokenizers library


def define_published(tokenizer: RobertaTokenizer) -> str:
    """Return ``tokenizer.json`` for the published tokenizer.

    Ids are equal, but for texts that begin with white space other than a blank: 2.x puts no blank in front of them.
    """
    specials = [
        {
            "id": id_,
            "content": token,
            "single_word": False,
            "lstrip": True,  # 2.x strips white space in front of a special token
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for id_, token in sorted((tokenizer.vocab[token], token) for token in tokenizer.all_special_tokens)
    ]
    lower = [{"type": "Replace", "pattern": {"String": "Σ"}, "content": "σ"}, {"type": "Lowercase"}]
    # Python's white space: the file separators are part of it, for the Strip of the tokenizers library they are not.
    strip = {"type": "Replace", "pattern": {"Regex": r"[\s\x1c-\x1f]+\z"}, "content": ""}
    blank = {"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": False}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ends = {"sep": ["</s>", tokenizer.sep_token_id], "cls": ["<s>", tokenizer.cls_token_id]}
    model = {"type": "BPE", "unk_token": tokenizer.unk_token, "vocab": tokenizer.vocab, "merges": tokenizer.merges}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": {"type": "Sequence", "normalizers": [*(lower if tokenizer.do_lower_case else []), strip]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [blank, split]},
        "post_processor": {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False} | ends,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False)
