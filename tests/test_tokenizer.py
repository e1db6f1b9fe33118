"""The tokenizer's laws on a small vocabulary, its files, and where they may be; ids are compared elsewhere."""

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import star_tokenizer
from drhard.errors import InputError
from drhard.tokenizer import RobertaTokenizer, tokenizer_digest

import numpy as np
import pytest
from helpers import TEXTS, save_vocabulary, snapshot, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

SLOW_MACHINE = settings(deadline=None, max_examples=150)
PLAIN = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text.strip() and "<" not in text)
ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
# With special strings, and pieces of them, amid words and white space.
AWKWARD = (
    st.lists(
        st.sampled_from(
            [*RobertaTokenizer.all_special_tokens, "<", "mask>", " ", "\t", "\n", "River", "ends", "Σ", "é"]
        ),
        min_size=1,
        max_size=12,
    )
    .map("".join)
    .filter(str.strip)
)


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizer:
    vocab, merges = vocabulary()
    return RobertaTokenizer(vocab, list(merges), do_lower_case=True)


@pytest.fixture(scope="module")
def compiled() -> ByteLevelBPETokenizer:
    """The same vocabulary in the tokenizers package, as the reference for plain text."""
    vocab, merges = vocabulary()
    return ByteLevelBPETokenizer(vocab, list(merges))


@SLOW_MACHINE
@given(st.lists(AWKWARD, max_size=4), st.booleans(), st.one_of(st.none(), st.integers(2, 9)), st.booleans())
def test_batch_is_one_by_one(
    tokenizer: RobertaTokenizer, texts: list[str], specials: bool, max_length: int | None, truncation: bool
) -> None:
    options = {"add_special_tokens": specials, "max_length": max_length, "truncation": truncation}
    assert tokenizer.encode_batch(texts, **options) == [tokenizer.encode(text, **options) for text in texts]


@SLOW_MACHINE
@given(st.lists(st.one_of(AWKWARD, PLAIN), max_size=5), st.integers(2, 12))
def test_rows_are_one_by_one(tokenizer: RobertaTokenizer, texts: list[str], width: int) -> None:
    rows, lengths = tokenizer.encode_rows(texts, width)
    assert rows.shape == (len(texts), width)
    assert rows.dtype == lengths.dtype == np.int32
    for text, row, length in zip(texts, rows, lengths, strict=True):
        expected = tokenizer.encode(text, max_length=width, truncation=True)
        assert row[:length].tolist() == expected
        assert not row[length:].any()


@SLOW_MACHINE
@given(ASCII.filter(str.strip))
def test_decode_gives_plain_text_back(tokenizer: RobertaTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text.rstrip()
    front = "" if text[0].isspace() else " "
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == f"<s>{front}{text.rstrip()}</s>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == front + text.rstrip()


@SLOW_MACHINE
@given(PLAIN)
def test_lower_case_goes_character_by_character(tokenizer: RobertaTokenizer, text: str) -> None:
    lower = "".join(character.lower() for character in text)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == lower.rstrip()


def test_final_sigma_is_an_ordinary_one(tokenizer: RobertaTokenizer) -> None:
    assert "ΟΔΟΣ".lower() == "οδος"
    assert tokenizer.decode(tokenizer.encode("ΟΔΟΣ"), skip_special_tokens=True) == " οδοσ"


@SLOW_MACHINE
@given(
    st.lists(st.sampled_from([*" ".join(TEXTS).split(), "42", "it's", "x-ray", " ", "  ", "\n", "日本", "größe", "?!"]))
)
def test_plain_text_is_encoded_as_by_the_tokenizers_package(
    tokenizer: RobertaTokenizer, compiled: ByteLevelBPETokenizer, words: list[str]
) -> None:
    text = "a " + " ".join(words)
    expected = compiled.encode(" " + text.rstrip()).ids
    assert tokenizer.encode(text) == [tokenizer.bos_token_id, *expected, tokenizer.eos_token_id]


def merged(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The tokens of a word, as published: the pair that stands first in the list is merged, from left to right."""
    parts, ranks = list(word), {pair: rank for rank, pair in enumerate(merges)}
    while known := [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]:
        best, old, parts = min(known, key=ranks.__getitem__), parts, []
        while old:
            count = 2 if tuple(old[:2]) == best else 1
            parts.append("".join(old[:count]))
            old = old[count:]
    return parts


@st.composite
def some_merges(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges of bytes and of what earlier ones make; some make the same token in several ways."""
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(0, 25))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if pair not in merges and len("".join(pair)) < 12:
            merges.append(pair)
            tokens.append("".join(pair))
    return merges


@SLOW_MACHINE
@given(some_merges(), st.lists(st.text("abc", min_size=1, max_size=60), min_size=1, max_size=5))
def test_merges_are_made_in_their_order(merges: list[tuple[str, str]], words: list[str]) -> None:
    tokens = dict.fromkeys([*RobertaTokenizer.all_special_tokens, *"abc", *("".join(pair) for pair in merges)])
    tokenizer = RobertaTokenizer({token: number for number, token in enumerate(tokens)}, merges)
    for word in words:
        assert tokenizer.tokenize(word) == merged(word, merges)


def test_ids_by_hand() -> None:
    letters = [*"Ġ!aeghinrtv"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "th", "the", "Ġthe", "in"]
    vocab = {token: 10 * number for number, token in enumerate(tokens)}  # ids are not ranks
    tokenizer = RobertaTokenizer(vocab, merges, do_lower_case=True)
    # A blank before <mask> goes; those bytes that are merged but have no id of their own are unknown.
    expected = ["<s>", "Ġthe", "Ġ", "th", "in", "g", "<mask>", "Ġthe", "!", "<unk>", "</s>"]
    assert tokenizer.encode("The thing <mask> the!?") == [vocab[token] for token in expected]
    assert tokenizer.encode("the", add_special_tokens=False) == [vocab["the"]]


@SLOW_MACHINE
@given(AWKWARD, st.integers(2, 12))
def test_cut_keeps_both_ends(tokenizer: RobertaTokenizer, text: str, max_length: int) -> None:
    full = tokenizer.encode(text)
    cut = tokenizer.encode(text, max_length=max_length, truncation=True)
    assert cut == (full if len(full) <= max_length else [*full[: max_length - 1], tokenizer.eos_token_id])
    assert tokenizer.encode(text, max_length=max_length) == full  # no cut unless asked for
    inner = tokenizer.encode(text, add_special_tokens=False)
    assert (
        tokenizer.encode(text, add_special_tokens=False, max_length=max_length, truncation=True) == inner[:max_length]
    )


def test_special_strings_become_their_ids(tokenizer: RobertaTokenizer) -> None:
    vocab, _ = vocabulary()
    ids = tokenizer.encode("where is <mask> or </s><pad>")
    assert [token for token in ids[1:-1] if token < 5] == [vocab["<mask>"], vocab["</s>"], vocab["<pad>"]]
    # White space before a special string goes, behind it stays.
    assert tokenizer.decode(ids) == "<s> where is<mask> or</s><pad></s>"
    assert tokenizer.encode("<mask>") == [0, vocab["<mask>"], 2]
    assert "<" in tokenizer.decode(tokenizer.encode("a <MASK > b"))  # lower-cased, but none of the five


def test_special_ids(tokenizer: RobertaTokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.unk_token_id, tokenizer.mask_token_id) == (3, 4)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 2)
    assert len(tokenizer) == len(vocabulary()[0])


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u3000\xa0"])
def test_blank_text_is_refused(tokenizer: RobertaTokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        tokenizer.encode(text)
    assert tokenizer.tokenize(text) == []


@SLOW_MACHINE
@given(AWKWARD)
def test_tokens_and_ids_convert(tokenizer: RobertaTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    tokens = tokenizer.tokenize(text)
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.convert_tokens_to_ids(tokens) == ids
    assert tokenizer.convert_tokens_to_ids(["no such token"]) == [tokenizer.unk_token_id]


def test_case_is_kept_unless_asked_otherwise() -> None:
    vocab, merges = vocabulary()
    tokenizer = RobertaTokenizer(vocab, list(merges))
    assert tokenizer.decode(tokenizer.encode("The RIVER"), skip_special_tokens=True) == " The RIVER"


def same(one: RobertaTokenizer, other: RobertaTokenizer) -> bool:
    texts = [*TEXTS, "An <mask> É Σ river\n ends"]
    return one.encode_batch(texts) == other.encode_batch(texts) and one.vocab == other.vocab


def test_workers_get_an_equal_one(tokenizer: RobertaTokenizer) -> None:
    assert same(pickle.loads(pickle.dumps(tokenizer)), tokenizer)


def test_save_and_load(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    tokenizer.save_pretrained(tmp_path / "new")
    assert set(snapshot(tmp_path / "new")) == {"vocab.json", "merges.txt"}
    loaded = RobertaTokenizer.from_pretrained(tmp_path / "new", do_lower_case=True)
    assert same(loaded, tokenizer)
    assert loaded.merges == tokenizer.merges
    # Others read it too.
    files = [str(tmp_path / "new" / name) for name in ("vocab.json", "merges.txt")]
    assert ByteLevelBPETokenizer.from_file(*files).encode(" the river").ids == tokenizer.encode("the river")[1:-1]


# Files that are not as they should be


def rewrite_vocab(folder: Path, change: Callable[[dict[str, int]], object]) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    change(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))


def append_merge(folder: Path, line: str) -> None:
    with open(folder / "merges.txt", "a", encoding="utf-8") as file:
        file.write(line + "\n")


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda folder: (folder / "vocab.json").unlink(), r"vocab\.json: no such file"),
        (lambda folder: (folder / "merges.txt").unlink(), r"merges\.txt: no such file"),
        (lambda folder: rewrite_vocab(folder, lambda vocab: vocab.pop("<mask>")), "special token <mask> is missing"),
        (lambda folder: rewrite_vocab(folder, lambda vocab: vocab.update(a="1")), r"vocab\.json: the id of 'a' is '1'"),
        (lambda folder: (folder / "vocab.json").write_text("[1, 2]"), r"vocab\.json: expected a JSON object"),
        (lambda folder: (folder / "vocab.json").write_text('{"<s>": 0'), r"vocab\.json: not a JSON file"),
        (lambda folder: (folder / "vocab.json").write_bytes(b'{"\xff": 0}'), r"vocab\.json: not a JSON file"),
        (lambda folder: rewrite_vocab(folder, lambda vocab: vocab.update(new=0)), "have the same id, 0"),
        (lambda folder: rewrite_vocab(folder, lambda vocab: vocab.update(a=-1)), r"the id of 'a' is '-1', expected"),
        (lambda folder: rewrite_vocab(folder, lambda vocab: vocab.update(a=2**31)), "the id of 'a' is '2147483648'"),
        (lambda folder: rewrite_vocab(folder, lambda vocab: vocab.update(a=True)), "the id of 'a' is 'True'"),
        (lambda folder: rewrite_vocab(folder, lambda vocab: vocab.update(a=1.0)), r"the id of 'a' is '1\.0'"),
        (lambda folder: (folder / "vocab.json").write_text('{"a": 7, "a": 8}'), "the field 'a' appears twice"),
        (lambda folder: append_merge(folder, "a\0 b"), r"merges\.txt: 'a\\x00 b' merges a token that is no byte"),
        (lambda folder: append_merge(folder, "a b c"), r"merges\.txt, line \d+: expected two tokens, got 3"),
        (lambda folder: append_merge(folder, "ab"), r"merges\.txt, line \d+: expected two tokens, got 1"),
        (lambda folder: append_merge(folder, "€ a"), r"merges\.txt"),  # no byte is written as a euro sign
        (lambda folder: (folder / "merges.txt").write_bytes(b"#version: 0.2\n\xff a\n"), r"merges\.txt"),
        (lambda folder: append_merge(folder, "qq zz"), r"merges\.txt: 'qq zz' merges a token that is no byte and"),
    ],
    ids=[
        "no vocab",
        "no merges",
        "no <mask>",
        "an id in quotes",
        "a list",
        "cut off",
        "not UTF-8",
        "an id twice",
        "an id below 0",
        "an id beyond int32",
        "an id true",
        "an id 1.0",
        "a token twice",
        "NUL",
        "three tokens",
        "one token",
        "foreign character",
        "merges not UTF-8",
        "never made",
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], object], complaint: str) -> None:
    save_vocabulary(tmp_path)
    RobertaTokenizer.from_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=complaint) as error:
        RobertaTokenizer.from_pretrained(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_digest_tells_vocabularies_apart_but_not_their_spelling(tmp_path: Path, tokenizer: RobertaTokenizer) -> None:
    assert tokenizer_digest(tmp_path) is None
    save_vocabulary(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "two")
    (tmp_path / "two" / "vocab.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "two" / "vocab.json").read_bytes())
    assert (tmp_path / "one" / "vocab.json").read_bytes() != (tmp_path / "two" / "vocab.json").read_bytes()
    assert tokenizer_digest(tmp_path / "one") == tokenizer_digest(tmp_path / "two") == tokenizer.digest()
    vocab, merges = tokenizer.vocab, tokenizer.merges
    others = [RobertaTokenizer(vocab, merges), RobertaTokenizer(vocab, merges[:-1], True)]
    for change in (lambda vocab: vocab.update(a=vocab["b"], b=vocab["a"]), lambda vocab: vocab.update(new=10_000)):
        changed = dict(vocab)
        change(changed)
        others.append(RobertaTokenizer(changed, merges, True))
    assert len({tokenizer.digest(), *(other.digest() for other in others)}) == 5


def test_the_published_name_imports(tokenizer: RobertaTokenizer) -> None:
    assert star_tokenizer.RobertaTokenizer is RobertaTokenizer


def test_a_blank_text_among_others_is_a_row_without_words(tokenizer: RobertaTokenizer) -> None:
    rows, lengths = tokenizer.encode_rows(["", "the river", " \u3000"], 8)
    assert rows[[0, 2]].tolist() == [[0, 2, 0, 0, 0, 0, 0, 0]] * 2
    assert lengths.tolist() == [2, len(tokenizer.encode("the river")), 2]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    save_vocabulary(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"/merges\.txt: no such file; a tokenizer needs vocab\.json and merges\.txt$"):
        RobertaTokenizer.from_pretrained(tmp_path)


# s3://


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a server on this machine shows as an S3 bucket named "models"."""
    folder = tmp_path / "models"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = tmp_path / self.path.partition("?")[0].lstrip("/")
            content = path.read_bytes() if path.is_file() else b""
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield folder
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("prefix", ["", "/deep/er", "/deep/er/"])
def test_bucket_is_read(bucket: Path, tokenizer: RobertaTokenizer, prefix: str) -> None:
    save_vocabulary(bucket / prefix.strip("/"))
    assert same(RobertaTokenizer.from_pretrained(f"s3://models{prefix}", do_lower_case=True), tokenizer)


def test_missing_object_is_refused(bucket: Path) -> None:
    save_vocabulary(bucket)
    (bucket / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"^s3://models/merges\.txt: cannot be read") as error:
        RobertaTokenizer.from_pretrained("s3://models")
    assert "\n" not in str(error.value)
