"""RoBERTa's tokenizer as in transformers 2.x, with which the published models were trained.

Later versions of transformers differ in three ways: white space around special tokens, lower-casing, and the blank
before the first word. Their ids differ, and so do the scores.

A compiled library, fastokens, does the byte-level BPE. It gives the same ids as tiktoken, which we used before, 6 times
as fast. If two merges of a vocabulary make the same token, it gives the ids of the published tokenizer.

    tokenizer = RobertaTokenizer.from_pretrained("roberta-base", do_lower_case=True)
    tokenizer.encode("What is STAR?", add_special_tokens=True, max_length=64, truncation=True)
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from drhard.errors import InputError, shorten
from drhard.files import disk_faults, read_lines, read_object, write_whole_text
from drhard.hub import MERGES_FILE, TOKENIZER_FILES, VOCAB_FILE, find_tokenizer

import fastokens
import numpy as np

LARGEST_TOKEN_ID = 2**31 - 1  # memmaps are int32


def byte_characters() -> list[str]:
    """Return the printable character that stands for each of the 256 bytes in GPT-2's vocabulary files."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    characters = {byte: chr(byte) for byte in printable}
    characters.update({byte: chr(256 + position) for position, byte in enumerate(others)})
    return [characters[byte] for byte in range(256)]


class RobertaTokenizer:
    """Byte-level BPE that behaves as RobertaTokenizer of transformers 2.x.

    The special strings ``<s> <pad> </s> <unk> <mask>`` in a text become their ids.

    Args:
        vocab: token -> id, as in ``vocab.json``.
        merges: pairs of tokens in the order of ``merges.txt``.
        do_lower_case: lower-case the text character by character, so that a final sigma becomes σ (published: always
            True).

    Raises:
        InputError: the vocabulary lacks a special token, or a merge has a token that is no byte and no earlier merge.
    """

    bos_token = cls_token = "<s>"
    pad_token = "<pad>"
    eos_token = sep_token = "</s>"
    unk_token = "<unk>"
    mask_token = "<mask>"
    all_special_tokens = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], do_lower_case: bool = False):
        missing = [token for token in self.all_special_tokens if token not in vocab]
        if missing:
            raise InputError(f"{VOCAB_FILE}: the special token {missing[0]} is missing")
        self.vocab = vocab
        self.merges = merges
        self.do_lower_case = do_lower_case
        self.bos_token_id = self.cls_token_id = vocab[self.bos_token]
        self.pad_token_id = vocab[self.pad_token]
        self.eos_token_id = self.sep_token_id = vocab[self.eos_token]
        self.unk_token_id = vocab[self.unk_token]
        self.mask_token_id = vocab[self.mask_token]

        self._byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        # The BPE numbers tokens in the order in which merges make them. A table maps these numbers to vocab.json's ids.
        self._made = dict.fromkeys(self._byte_of)
        for left, right in merges:
            if left not in self._made or right not in self._made:
                pair = f"{left[:20]} {right[:20]}"
                raise InputError(f"{MERGES_FILE}: {pair!r} merges a token that is no byte and no earlier merge")
            self._made[left + right] = None
        self._id_of_number = np.array([vocab.get(token, self.unk_token_id) for token in self._made], dtype=np.int32)
        self._tokens = {id_: token for token, id_ in vocab.items()}
        self._special = re.compile("(" + "|".join(map(re.escape, self.all_special_tokens)) + ")")

    @cached_property  # half of the start-up time; preprocess.py leaves it to its workers
    def _bpe(self) -> fastokens.Tokenizer:
        return _byte_level_bpe({token: number for number, token in enumerate(self._made)}, self.merges)

    def __reduce__(self) -> tuple[Any, ...]:
        return RobertaTokenizer, (self.vocab, self.merges, self.do_lower_case)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, do_lower_case: bool = False) -> "RobertaTokenizer":
        """Read ``vocab.json`` and ``merges.txt``.

        Args:
            name_or_path: a folder, a name on the Hugging Face hub, or ``s3://bucket/prefix``.

        Raises:
            InputError: a file is missing or damaged.
        """
        with tempfile.TemporaryDirectory() as downloads:
            vocab_path, merges_path = _find_files(str(name_or_path), Path(downloads))
            vocab = _read_vocab(vocab_path, f"{name_or_path}/{VOCAB_FILE}")
            merges = _read_merges(merges_path, f"{name_or_path}/{MERGES_FILE}")
        try:
            return cls(vocab, merges, do_lower_case=do_lower_case)
        except InputError as error:
            raise InputError(f"{name_or_path}/{error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``vocab.json`` and ``merges.txt`` into ``folder``."""
        with write_whole_text(Path(folder) / VOCAB_FILE) as file:
            json.dump(self.vocab, file, ensure_ascii=False)
        with write_whole_text(Path(folder) / MERGES_FILE) as file:
            lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
            file.write("\n".join(lines) + "\n")

    def digest(self) -> str:
        """Return the SHA-256 of what decides the ids of a text: vocabulary, merges and lower-casing."""
        vocab = sorted(self.vocab.items(), key=lambda item: item[1])
        return hashlib.sha256(json.dumps([vocab, self.merges, self.do_lower_case]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.vocab)

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        truncation: bool = False,
    ) -> list[int]:
        """Turn a text into ids.

        Args:
            text: not blank.
            add_special_tokens: put ``<s>`` in front and ``</s>`` behind, and a blank before the first word
                unless the text starts with white space (2.x tied the two together).
            max_length: with ``truncation``, the largest number of ids, including ``<s>`` and ``</s>``, which are kept.
            truncation: cut at ``max_length``.

        Raises:
            ValueError: the text is empty or blank (an IndexError in transformers 2.x).
        """
        if not text or text.isspace():
            raise ValueError("the text is empty")
        text = self._prepare(text, blank=add_special_tokens)
        ids = self._encode_with_specials(text) if self._has_specials(text) else self._encode_plain(text.rstrip())
        cut = max_length if truncation else None
        if not add_special_tokens:
            return ids[:cut]
        if cut is not None:
            ids = ids[: max(cut - 2, 0)]
        return [self.bos_token_id, *ids, self.eos_token_id]

    def encode_batch(self, texts: Iterable[str], **options: Any) -> list[list[int]]:
        """Call :meth:`encode` for each text, with the same options."""
        return [self.encode(text, **options) for text in texts]

    def encode_rows(self, texts: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray]:
        """Do as ``encode(text, max_length=width, truncation=True)`` for a batch of texts, faster.

        An empty or blank text gives ``<s> </s>``.

        Returns:
            The ids (B, width) int32, padded with 0, and the number of ids of each text (B,) int32.
        """
        inside = width - 2
        plain: list[str] = []
        with_specials: dict[int, list[int]] = {}  # place -> ids; few texts have special strings
        for place, text in enumerate(texts):
            text = self._prepare(text) if text and not text.isspace() else ""
            if self._has_specials(text):
                with_specials[place] = self._encode_with_specials(text)[:inside]
                text = ""
            plain.append(text.rstrip())
        numbers, offsets = self._bpe.encode_batch_flat(plain)
        starts = np.frombuffer(offsets, dtype=np.uint64).astype(np.int64)  # (B + 1,), where each text's tokens start
        flat = self._id_of_number[np.frombuffer(numbers, dtype=np.uint32)]
        counts = np.minimum(np.diff(starts), inside)
        rows = np.zeros((len(texts), width), dtype=np.int32)
        for row, start, count in zip(rows, starts.tolist(), counts.tolist(), strict=False):
            row[1 : 1 + count] = flat[start : start + count]
        for place, ids in with_specials.items():
            rows[place, 1 : 1 + len(ids)] = ids
            counts[place] = len(ids)
        rows[:, 0] = self.bos_token_id
        rows[np.arange(len(texts)), counts + 1] = self.eos_token_id
        return rows, (counts + 2).astype(np.int32)

    def tokenize(self, text: str, add_prefix_space: bool = False) -> list[str]:
        """Return the tokens as spelled in ``vocab.json``, without ``<s>`` and ``</s>``."""
        if add_prefix_space and text and not text[0].isspace():
            text = " " + text
        if not text or text.isspace():
            return []
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of the ids. Bytes that are not UTF-8 are replaced."""
        pieces: list[bytes] = []
        for id_ in ids:
            token = self._tokens.get(int(id_), self.unk_token)
            if token in self.all_special_tokens:
                pieces.append(b"" if skip_special_tokens else token.encode())
            else:
                pieces.append(bytes(self._byte_of[character] for character in token))
        return b"".join(pieces).decode("utf-8", errors="replace")

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the token of each id."""
        return [self._tokens[int(id_)] for id_ in ids]

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each token; the id of ``<unk>`` for an unknown token."""
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    def _prepare(self, text: str, blank: bool = True) -> str:
        """Return ``text``, which is not blank, in lower case and with a blank in front."""
        if self.do_lower_case:
            # str.lower has one rule that looks beyond a single character: a sigma at the end of a word.
            # Special tokens are in lower case already.
            text = text.replace("Σ", "σ").lower()
        return " " + text if blank and not text[0].isspace() else text

    def _has_specials(self, text: str) -> bool:
        return "<" in text and self._special.search(text) is not None

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._id_of_number[self._bpe.encode_ordinary(text).ids].tolist()
        return ids

    def _encode_with_specials(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._special.split(text):
            if piece in self.all_special_tokens:
                ids.append(self.vocab[piece])
            elif piece := piece.rstrip():  # 2.x strips white space before a special token and keeps it after one
                ids.extend(self._encode_plain(piece))
        return ids


def _byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> fastokens.Tokenizer:
    """Build GPT-2's byte-level BPE. fastokens takes it in the format of ``tokenizer.json``."""
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}  # GPT-2's pattern
    return fastokens.Tokenizer.from_json_str(json.dumps({"version": "1.0", "pre_tokenizer": split, "model": model}))


def tokenizer_digest(folder: str | Path) -> str | None:
    """Return the :meth:`RobertaTokenizer.digest` of a checkpoint's tokenizer, lower-casing as preprocess.py does.

    Returns:
        None if ``folder`` lacks ``vocab.json`` or ``merges.txt``.

    Raises:
        InputError: one of the two is damaged.
    """
    if not all(Path(folder, name).is_file() for name in TOKENIZER_FILES):
        return None
    return RobertaTokenizer.from_pretrained(folder, do_lower_case=True).digest()


def _read_vocab(path: Path, name: str) -> dict[str, int]:
    vocab = read_object(path, {}, name=name)
    tokens: dict[int, str] = {}
    for token, id_ in vocab.items():
        if type(id_) is not int or not 0 <= id_ <= LARGEST_TOKEN_ID:
            raise InputError(
                f"{name}: the id of {token[:40]!r} is {str(id_)[:40]!r}, expected a whole number from 0 to "
                f"{LARGEST_TOKEN_ID}"
            )
        if id_ in tokens:
            raise InputError(f"{name}: {tokens[id_][:40]!r} and {token[:40]!r} have the same id, {id_}")
        tokens[id_] = token
    return vocab


def _read_merges(path: Path, name: str) -> list[tuple[str, str]]:
    merges = []
    for number, line in read_lines(path, name):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split()
        if len(pair) != 2:
            raise InputError(f"{name}, line {number}: expected two tokens, got {len(pair)}")
        merges.append((pair[0], pair[1]))
    return merges


def _find_files(name_or_path: str, downloads: Path) -> tuple[Path, Path]:
    """Return the paths of a tokenizer's two files. Files from S3 are downloaded into ``downloads``."""
    if name_or_path.startswith("s3://"):
        bucket, _, prefix = name_or_path.removeprefix("s3://").partition("/")
        for name in TOKENIZER_FILES:
            _fetch_s3(bucket, "/".join(filter(None, (prefix.strip("/"), name))), downloads / name)
        return downloads / VOCAB_FILE, downloads / MERGES_FILE
    folder = find_tokenizer(name_or_path)
    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            raise InputError(f"{name_or_path}/{name}: no such file; a tokenizer needs {' and '.join(TOKENIZER_FILES)}")
    return folder / VOCAB_FILE, folder / MERGES_FILE


def _fetch_s3(bucket: str, key: str, target: Path) -> None:
    import boto3

    try:
        with disk_faults(target), open(target, "wb") as file:
            boto3.client("s3").download_fileobj(bucket, key, file)
    except InputError:
        raise
    except Exception as error:  # boto3, botocore, s3transfer and urllib3 have no common base class
        raise InputError(f"s3://{bucket}/{key}: cannot be read: {shorten(error)}") from None
