"""Tokenizers of models: the ids of transformers, in rows; the published tokenizer as transformers reads it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.model_tokenizer import ModelTokenizer, define_published, is_published, load_tokenizer
from drhard.tokenizer import RobertaTokenizer

import numpy as np
import pytest
import tokenizers
from helpers import TEXTS, save_plain, save_tiny, save_vocabulary, vocabulary, word_pieces
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

Change = Callable[[Any], None]  # of the content of a file
PUBLISHED = RobertaTokenizer(vocabulary()[0], list(vocabulary()[1]), do_lower_case=True)


@pytest.mark.parametrize("width", [4, 9, 40])
def test_rows_are_the_ids_of_transformers(tmp_path: Path, width: int) -> None:
    word_pieces(60).save_pretrained(tmp_path)
    texts = [*TEXTS, "", "  ", "The  RHINE\tis unknownword"]
    rows, lengths = ModelTokenizer.from_pretrained(tmp_path).encode_rows(texts, width)
    expected = AutoTokenizer.from_pretrained(tmp_path)(texts, truncation=True, max_length=width)["input_ids"]
    assert [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)] == expected
    assert rows.dtype == lengths.dtype == np.int32
    assert not rows[np.arange(width) >= lengths[:, None]].any()


def test_workers_get_the_same_tokenizer(tmp_path: Path) -> None:
    word_pieces(60).save_pretrained(tmp_path)
    tokenizer = ModelTokenizer.from_pretrained(tmp_path)
    tokenizer.encode_rows(TEXTS, 5)
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode_rows(TEXTS, 9)[0], tokenizer.encode_rows(TEXTS, 9)[0])
    assert copy.digest() == tokenizer.digest() == ModelTokenizer.from_pretrained(tmp_path).digest()


def test_digest_tells_another_vocabulary(tmp_path: Path) -> None:
    for size in (30, 31):
        word_pieces(size).save_pretrained(tmp_path / str(size))
    assert len({ModelTokenizer.from_pretrained(tmp_path / str(size)).digest() for size in (30, 31)}) == 2


def test_texts_are_lower_cased_if_sentence_transformers_does(tmp_path: Path) -> None:
    cased = word_pieces(60)
    cased.backend_tokenizer.normalizer = None
    cased.save_pretrained(tmp_path)
    plain = ModelTokenizer.from_pretrained(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 40, "do_lower_case": true}')
    lowering = ModelTokenizer.from_pretrained(tmp_path)
    assert plain.encode_rows(["THE"], 3)[0].tolist() == [[2, 0, 3]]
    np.testing.assert_array_equal(lowering.encode_rows(["THE"], 3)[0], plain.encode_rows(["the"], 3)[0])


def test_a_tokenizer_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    bare = word_pieces(60)
    bare.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A [SEP]", None, [("[SEP]", 3)])
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="bare: its tokenizer adds 1 special tokens to a text, expected 2"):
        ModelTokenizer.from_pretrained(tmp_path / "bare")
    word_pieces(60).save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="damaged: its tokenizer cannot be used"):
        ModelTokenizer.from_pretrained(tmp_path / "damaged")


def ends(*names: str) -> Change:
    return lambda content: content["post_processor"].update(
        single=[{"Sequence" if name == "A" else "SpecialToken": {"id": name, "type_id": 0}} for name in names]
    )


def change(*path: str | int, to: object) -> Change:
    def apply(content: Any) -> None:
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = to

    return apply


DAMAGED: dict[str, tuple[str, Change, str]] = {
    "both ends in front": ("tokenizer", ends("[CLS]", "[SEP]", "A"), "does not put one special token in front"),
    "types": ("tokenizer", change("post_processor", "single", 1, "Sequence", "type_id", to=1), "a type other than 0"),
    "an id for a table of 4 GB": ("tokenizer", change("model", "vocab", "rhine", to=2**31), "the token id 2147483648"),
    "cut in front": ("tokenizer_config", change("truncation_side", to="left"), "cuts the start of long texts"),
    "also in its definition": (
        "tokenizer",
        change("truncation", to={"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}),
        "cuts the start of long texts",
    ),
    "a length of a word": ("tokenizer_config", change("model_max_length", to="long"), "'model_max_length' is"),
    "no length": ("tokenizer_config", change("model_max_length", to=0), "model_max_length is 0, expected a whole"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_tokenizer_is_one_sentence(tmp_path: Path, case: str) -> None:
    name, damage, complaint = DAMAGED[case]
    word_pieces(60).save_pretrained(tmp_path)
    path = tmp_path / f"{name}.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=complaint) as raised:
        ModelTokenizer.from_pretrained(tmp_path)
    assert str(raised.value).startswith(str(tmp_path))


def test_a_tokenizer_that_fails_on_a_text_is_one_sentence(tmp_path: Path) -> None:
    pieces = word_pieces(60)
    content = json.loads(pieces.backend_tokenizer.to_str())
    content["model"]["unk_token"] = "missing"
    content["model"]["vocab"]["a"] = 40
    tokenizer = pickle.loads(pickle.dumps(ModelTokenizer(json.dumps(content), name="folder")))  # as in a worker
    with pytest.raises(InputError, match="folder: its tokenizer cannot be used .WordLevel error: Missing .UNK. token"):
        tokenizer.encode_rows(["rhine", "unknown"], 9)


def test_a_panic_of_the_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    class Panicking:
        def encode_batch_fast(self, _: object) -> None:
            raise PanicException("index out of bounds")

        def enable_truncation(self, _: int) -> None:
            pass

    tokenizer = ModelTokenizer(word_pieces(60).backend_tokenizer.to_str(), name="folder")
    monkeypatch.setattr(tokenizer, "_tokenizer", Panicking())
    with pytest.raises(InputError, match="folder: its tokenizer cannot be used .index out of bounds"):
        tokenizer.encode_rows(["a"], 9)


def test_which_tokenizer_a_folder_has(tmp_path: Path) -> None:
    published = save_vocabulary(save_tiny(tmp_path / "published"))
    assert is_published(published) and is_published(published, own_tokenizer=True)
    assert isinstance(load_tokenizer(published), RobertaTokenizer)
    assert load_tokenizer(save_tiny(tmp_path / "none")) is None
    assert isinstance(load_tokenizer(save_vocabulary(tmp_path / "vocabulary")), RobertaTokenizer)
    plain = save_plain(tmp_path / "plain", "roberta")
    assert load_tokenizer(plain) is None  # it has no vocab.json: nothing to start a RobertaDot from
    assert isinstance(load_tokenizer(plain, own_tokenizer=True), ModelTokenizer)
    assert isinstance(load_tokenizer(save_plain(tmp_path / "bert", "bert")), ModelTokenizer)


@pytest.fixture(scope="module")
def as_transformers(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(define_published(PUBLISHED))


# Σ at the end of a word, letters that other rules lower-case otherwise, white space of many kinds
PARTS = st.sampled_from([*"aebrΣσςİßÀ  \t\n 0.,'-é漢字👍🏽<>/s", "<s>", "</s>", "<mask>", "<unk>", "<pad>", " the"])


ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])  # letters newer than Python's tables have no lower case there


@given(st.lists(PARTS, max_size=12).map("".join) | st.text(ASSIGNED, max_size=20))
def test_transformers_gives_the_published_ids(as_transformers: tokenizers.Tokenizer, text: str) -> None:
    if text and not text.isspace() and (text[0] == " " or not text[0].isspace()):  # the exception docs/parity.md names
        assert as_transformers.encode(text).ids == PUBLISHED.encode(text)


def test_special_tokens_in_texts(as_transformers: tokenizers.Tokenizer) -> None:
    for text in ("the <mask> rhine", "the</s>", "<s>", "a<pad>b <unk>"):
        assert as_transformers.encode(text).ids == PUBLISHED.encode(text), text
