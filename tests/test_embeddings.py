"""Embedding files: rows where they belong, stamps that tell what a file was made from, runs that go on."""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import drhard.embeddings
from drhard.collection import Collection
from drhard.embeddings import (
    count_tokens,
    encode,
    open_document_embeddings,
    open_embeddings,
    read_if_it_fits,
    warn_if_made_by_another,
    write_row_numbers,
)
from drhard.encoder import check_tokens
from drhard.errors import InputError
from drhard.files import partial_path
from drhard.roberta_dot import RobertaDot
from drhard.tokens import TokenMemmap
from drhard.vectors import check_finite

import numpy as np
import pytest
import torch
from helpers import (
    call_script,
    no_larger_files_than,
    open_tokens,
    random_sequences,
    save_tiny,
    snapshot,
    tiny_model,
    write_collection,
)
from safetensors.numpy import load_file

CPU = torch.device("cpu")
LENGTH = 7


@pytest.fixture
def tokens(tmp_path: Path) -> TokenMemmap:
    return open_tokens(tmp_path / "preprocess", random_sequences(23, 12, seed=0), 12, LENGTH)


def one_by_one(model: RobertaDot, sequences: list[list[int]], length: int) -> np.ndarray:
    """The embeddings, each sequence cut by hand and without any padding."""
    rows = []
    for sequence in sequences:
        cut = sequence if len(sequence) <= length else [*sequence[: length - 1], sequence[-1]]
        with torch.no_grad():
            rows.append(model(torch.tensor([cut]), torch.ones(1, len(cut), dtype=torch.int64))[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_rows_stand_where_they_belong(tmp_path: Path, tokens: TokenMemmap, batch_size: int) -> None:
    model = tiny_model(seed=1, dropout=0.5).train()  # dropout is off in encoding whatever the model's mode was
    path = tmp_path / "out" / "passages.memmap"
    assert encode(model, tokens, path, batch_size, CPU) == 16
    expected = one_by_one(model.eval(), random_sequences(23, 12, seed=0), LENGTH)
    found = open_embeddings(path, 16, 23)
    assert found.dtype == np.float32
    assert path.stat().st_size == 23 * 16 * 4
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len({row.tobytes() for row in found}) == 23
    assert set(os.listdir(path.parent)) == {"passages.memmap", "passages.memmap.json"}


def test_stamp_says_what_the_file_was_made_from(tmp_path: Path, tokens: TokenMemmap) -> None:
    encode(tiny_model(), tokens, tmp_path / "passages.memmap", 8, CPU)
    stamp = json.loads((tmp_path / "passages.memmap.json").read_text())
    assert {name: stamp[name] for name in ("length", "rows", "dim", "dtype")} == {
        "length": LENGTH,
        "rows": 23,
        "dim": 16,
        "dtype": "float32",
    }
    assert stamp["model"] and stamp["tokens"]


def test_file_that_fits_is_used_again(tmp_path: Path, tokens: TokenMemmap) -> None:
    path = tmp_path / "passages.memmap"
    encode(tiny_model(), tokens, path, 8, CPU)
    marked = bytes(path.stat().st_size)  # not what the model gives: it would show if the file were written anew
    path.write_bytes(marked)
    assert encode(tiny_model(), tokens, path, 3, CPU) == 16
    assert path.read_bytes() == marked


@pytest.mark.parametrize("other", ["weights", "texts", "length", "fewer rows", "dim"])
def test_file_made_from_something_else_is_refused(tmp_path: Path, tokens: TokenMemmap, other: str) -> None:
    path = tmp_path / "passages.memmap"
    encode(tiny_model(), tokens, path, 8, CPU)
    before = snapshot(tmp_path)
    model, sequences, length = tiny_model(), random_sequences(23, 12, seed=0), LENGTH
    if other == "weights":
        with torch.no_grad():
            model.embeddingHead.bias[0] += 1
    elif other == "texts":
        sequences[11][1] = 299 if sequences[11][1] != 299 else 298
    elif other == "length":
        length = LENGTH + 1
    elif other == "fewer rows":
        sequences.pop()
    else:
        model = tiny_model(output_embedding_size=8)
    changed = open_tokens(tmp_path / "changed", sequences, 12, length)
    with pytest.raises(InputError) as error:
        encode(model, changed, path, 8, CPU)
    assert str(path) in str(error.value)
    if other in ("weights", "texts", "length"):
        assert other in str(error.value)
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not any(name.endswith(".partial") for name in after)


def test_a_full_disk_is_one_sentence_and_encoding_resumes(
    tmp_path: Path, tokens: TokenMemmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drhard.embeddings, "WINDOW", 5)
    path = tmp_path / "passages.memmap"
    with no_larger_files_than(16 * 64), pytest.raises(InputError, match=r"passages\.memmap: File too large .the disk"):
        encode(tiny_model(), tokens, path, 8, CPU)
    assert partial_path(path).stat().st_size >= 15 * 64
    encoded = []
    embed = drhard.embeddings._embed
    monkeypatch.setattr(drhard.embeddings, "_embed", lambda *given: encoded.extend(given[1]) or embed(*given))
    encode(tiny_model(), tokens, path, 8, CPU)
    assert encoded == [15, 20]
    np.testing.assert_allclose(
        open_embeddings(path, 16, 23), one_by_one(tiny_model(), random_sequences(23, 12, seed=0), LENGTH), atol=1e-5
    )


def test_an_error_of_the_encoder_is_not_that_of_the_disk(
    tmp_path: Path, tokens: TokenMemmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(TokenMemmap, "batch", broken)
    with pytest.raises(OSError, match="^.Errno 5. Input/output error$"):
        encode(tiny_model(), tokens, tmp_path / "passages.memmap", 8, CPU)


def test_precision_is_part_of_what_a_file_was_made_from(tmp_path: Path, tokens: TokenMemmap) -> None:
    path = tmp_path / "passages.memmap"
    encode(tiny_model(), tokens, path, 8, CPU)
    stamp_path = tmp_path / "passages.memmap.json"
    stamp = json.loads(stamp_path.read_text())
    assert stamp.pop("precision") == "float32"
    stamp_path.write_text(json.dumps(stamp))  # as they were when there was no other
    encode(tiny_model(), tokens, path, 8, CPU)
    stamp_path.write_text(json.dumps(stamp | {"precision": "bfloat16"}))
    with pytest.raises(InputError, match="was made with --bf16"):
        encode(tiny_model(), tokens, path, 8, CPU)


def test_batches_hold_every_row_once_and_no_more_tokens_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = open_tokens(tmp_path, [*random_sequences(13, 12, seed=0), *[[0, 9, 2]] * 10], 12, LENGTH)
    monkeypatch.setattr(drhard.embeddings, "WINDOW", 10)
    batches = list(drhard.embeddings._batches(tokens, [10, 20], batch_size=4, pad_id=1, device=CPU))
    assert sorted(batch.start + int(row) for batch in batches for row in batch.rows) == list(range(10, 23))
    assert [batch.start for batch in batches if batch.first_of_window] == [10, 20]
    assert [batch.start for batch in batches if batch.last_of_window] == [10, 20]
    assert all(batch.ids.numel() <= 4 * LENGTH for batch in batches)
    assert max(len(batch.rows) for batch in batches) > 4  # of short sequences it takes more
    assert sum(batch.tokens for batch in batches) == tokens.lengths[10:].sum()
    monkeypatch.setattr(drhard.embeddings, "CPU_TOKENS", 1)
    assert len(list(drhard.embeddings._batches(tokens, [0, 10, 20], batch_size=2, pad_id=1, device=CPU))) == 23


def test_batches_fill_a_gpu_or_the_caches_of_a_cpu() -> None:
    gpu = torch.device("cuda")
    assert count_tokens(32, 512, gpu) == count_tokens(32, 24, gpu) == 16_384
    assert count_tokens(4, 24, gpu) == 4 * 512  # a smaller batch takes less memory
    assert count_tokens(128, 1024, gpu) == 128 * 1024
    assert count_tokens(32, 512, CPU) == 1536
    assert count_tokens(32, 24, CPU) == 768


def test_unstamped_file_is_trusted_with_a_warning(
    tmp_path: Path, tokens: TokenMemmap, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "passages.memmap"
    content = np.arange(23 * 16, dtype=np.float32)
    content.tofile(path)
    assert encode(tiny_model(), tokens, path, 8, CPU) == 16
    assert path.read_bytes() == content.tobytes()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(path) in warnings[0]


@pytest.mark.parametrize("size", [0, 1, 22 * 64, 24 * 64, 23 * 64 - 4])
def test_unstamped_file_of_another_size_is_refused(tmp_path: Path, tokens: TokenMemmap, size: int) -> None:
    path = tmp_path / "passages.memmap"
    path.write_bytes(bytes(size))
    with pytest.raises(InputError, match=rf"passages\.memmap: has {size} bytes"):
        encode(tiny_model(), tokens, path, 8, CPU)
    assert path.stat().st_size == size


def test_damaged_stamp_is_refused(tmp_path: Path, tokens: TokenMemmap) -> None:
    path = tmp_path / "passages.memmap"
    encode(tiny_model(), tokens, path, 8, CPU)
    for content in ('{"model": "', "[]"):
        (tmp_path / "passages.memmap.json").write_text(content)
        with pytest.raises(InputError, match=r"passages\.memmap"):
            encode(tiny_model(), tokens, path, 8, CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, tokens: TokenMemmap, value: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.norm.bias[2] = value
    with pytest.raises(InputError, match=r"passages\.memmap: .*not finite"):
        encode(model, tokens, tmp_path / "out" / "passages.memmap", 8, CPU)
    assert not (tmp_path / "out" / "passages.memmap").exists()
    assert not (tmp_path / "out" / "passages.memmap.partial").exists()  # nothing in it is worth going on with


def test_sequences_longer_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    longest = 32  # 34 positions, of which RoBERTa leaves those up to the pad id unused
    for length in (longest, longest + 1):
        sequences = [[0, *[9] * (length - 2), 2]]
        tokens = open_tokens(tmp_path / str(length), sequences, 40)
        path = tmp_path / str(length) / "out.memmap"
        if length == longest:
            encode(tiny_model(), tokens, path, 8, CPU)
        else:
            with pytest.raises(InputError, match="33 tokens, the model takes at most 32"):
                encode(tiny_model(), tokens, path, 8, CPU)
            assert not path.exists()


# Tokens of another model


def test_tokens_beyond_the_vocabulary_are_refused_before_the_work(tmp_path: Path, tokens: TokenMemmap) -> None:
    tokens.max_token_id = 300  # as the meta says
    with pytest.raises(InputError, match=r"passages\.memmap: has token ids up to 300, the model knows 0 to 299"):
        check_tokens(tiny_model(), tokens)
    tokens.max_token_id = 299
    check_tokens(tiny_model(), tokens)


@pytest.mark.parametrize("id_", [300, 50_264, -1])
def test_token_beyond_the_vocabulary_is_told_where_the_meta_does_not(tmp_path: Path, id_: int) -> None:
    sequences = random_sequences(23, 12, seed=0)
    sequences[17][1] = id_
    path = tmp_path / "out" / "passages.memmap"
    with pytest.raises(InputError, match=rf"passages\.memmap, row 17: has the token id {id_}, the model"):
        encode(tiny_model(), open_tokens(tmp_path, sequences, 12, LENGTH), path, 8, CPU)
    assert not os.listdir(path.parent)


def test_tokens_of_another_vocabulary_are_refused(tmp_path: Path, tokens: TokenMemmap) -> None:
    model = tiny_model()
    for of_tokens, of_model in (("a", "a"), (None, "a"), ("a", None), (None, None)):
        tokens.tokenizer, model.tokenizer_digest = of_tokens, of_model
        check_tokens(model, tokens)
    tokens.tokenizer, model.tokenizer_digest = "a", "b"
    with pytest.raises(InputError, match=r"passages\.memmap: was made with a vocabulary other than the model's"):
        encode(model, tokens, tmp_path / "out.memmap", 8, CPU)


# Going on after a kill: more rows than are written at once

MANY = 20_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> TokenMemmap:
    return open_tokens(tmp_path_factory.mktemp("many"), random_sequences(MANY, 4, seed=3), 4)


@pytest.fixture(scope="module")
def unbroken(many: TokenMemmap, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("unbroken") / "passages.memmap"
    encode(tiny_model(), many, path, 512, CPU)
    return path.read_bytes()


def test_rows_of_all_parts_stand_where_they_belong(unbroken: bytes) -> None:
    rows = [0, 1, 8191, 8192, 8193, 12_345, 16_383, 16_384, MANY - 1]
    sequences = random_sequences(MANY, 4, seed=3)
    expected = one_by_one(tiny_model(), [sequences[row] for row in rows], 4)
    found = np.frombuffer(unbroken, dtype=np.float32).reshape(MANY, 16)[rows]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def encoded_until(model: RobertaDot, limit: int) -> list[int]:
    """Count the rows that pass through the model; stop the run after ``limit`` of them."""
    counted: list[int] = []

    def count(_: torch.nn.Module, __: tuple, output: torch.Tensor) -> None:
        counted.append(len(output))
        if sum(counted) > limit:
            raise KeyboardInterrupt

    model.register_forward_hook(count)
    return counted


def no_damage(_: Path) -> None:
    pass


def half_a_row_more(unfinished: Path) -> None:
    with open(unfinished, "ab") as file:
        file.write(b"\1" * (3 * 64 + 7))


def half_a_row_less(unfinished: Path) -> None:
    os.truncate(unfinished, unfinished.stat().st_size - 7)


@pytest.mark.parametrize("damage", [no_damage, half_a_row_more, half_a_row_less])
def test_stopped_run_is_gone_on_with(
    tmp_path: Path, many: TokenMemmap, unbroken: bytes, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "passages.memmap"
    model = tiny_model()
    encoded_until(model, 18_000)
    with pytest.raises(KeyboardInterrupt):
        encode(model, many, path, 512, CPU)
    assert not path.exists()
    with pytest.raises(InputError, match="run the same command again"):
        open_embeddings(path, 16)
    damage(tmp_path / "passages.memmap.partial")
    model = tiny_model()
    counted = encoded_until(model, MANY)
    encode(model, many, path, 512, CPU)
    assert sum(counted) < MANY * 0.7  # it went on
    assert path.read_bytes() == unbroken
    assert set(os.listdir(tmp_path)) == {"passages.memmap", "passages.memmap.json"}


def test_unfinished_file_of_another_model_is_refused(tmp_path: Path, many: TokenMemmap, unbroken: bytes) -> None:
    path = tmp_path / "passages.memmap"
    other = tiny_model(seed=9)
    encoded_until(other, 18_000)
    with pytest.raises(KeyboardInterrupt):
        encode(other, many, path, 512, CPU)
    unfinished = path.with_name("passages.memmap.partial")
    hours_of_work = unfinished.read_bytes()
    with pytest.raises(InputError, match=r"passages\.memmap\.partial: was made with other weights"):
        encode(tiny_model(), many, path, 512, CPU)
    assert unfinished.read_bytes() == hours_of_work
    unfinished.unlink()  # as the sentence says
    encode(tiny_model(), many, path, 512, CPU)
    assert path.read_bytes() == unbroken


def test_two_processes_do_not_write_the_same_file(tmp_path: Path, many: TokenMemmap) -> None:
    path = tmp_path / "passages.memmap"
    encoded_until(model := tiny_model(), 18_000)
    with pytest.raises(KeyboardInterrupt):
        encode(model, many, path, 512, CPU)
    with open(path.with_name("passages.memmap.partial"), "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing it"):
            encode(tiny_model(), many, path, 512, CPU)


# Opening


def test_open_embeddings_knows_its_size(tmp_path: Path) -> None:
    path = tmp_path / "passages.memmap"
    np.arange(12, dtype=np.float32).tofile(path)
    assert open_embeddings(path, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert open_embeddings(path, 4, 3).shape == (3, 4)
    for dim, rows in ((5, None), (4, 4), (6, 3)):
        with pytest.raises(InputError, match=r"passages\.memmap: has 48 bytes"):
            open_embeddings(path, dim, rows)
    with pytest.raises(InputError, match="none: no such file"):
        open_embeddings(tmp_path / "none", 4)
    with pytest.raises((ValueError, TypeError)):
        open_embeddings(path, 4)[0, 0] = 1  # read-only


def test_embeddings_cut_by_whole_rows_are_told_from_their_stamp(tmp_path: Path, tokens: TokenMemmap) -> None:
    path = tmp_path / "passages.memmap"
    encode(tiny_model(), tokens, path, 8, CPU)
    assert len(open_embeddings(path, 16)) == 23
    os.truncate(path, 20 * 64)
    with pytest.raises(InputError, match=r"holds 20 embeddings of 16 float32, but .*\.json says 23 of 16"):
        open_embeddings(path, 16)
    os.truncate(path, 23 * 64)
    with pytest.raises(InputError, match=r"holds 46 embeddings of 8 .* says 23 of 16 float32; .*another model made it"):
        open_embeddings(path, 8)


@pytest.mark.parametrize(
    "change",
    [{"rows": "23"}, {"rows": True}, {"dim": None}, {"model": 5}, {"tokens": []}, {"dtype": 4}, {"precision": 16}],
)
def test_stamp_of_other_types_is_refused(tmp_path: Path, tokens: TokenMemmap, change: dict[str, object]) -> None:
    path, stamp_path = tmp_path / "passages.memmap", tmp_path / "passages.memmap.json"
    encode(tiny_model(), tokens, path, 8, CPU)
    stamp_path.write_text(json.dumps(json.loads(stamp_path.read_text()) | change))
    with pytest.raises(InputError, match=rf"passages\.memmap\.json: the field '{next(iter(change))}' is "):
        open_embeddings(path, 16)
    stamp_path.unlink()
    stamp_path.mkdir()
    with pytest.raises(InputError, match=r"passages\.memmap\.json: is a folder"):
        open_embeddings(path, 16)


def test_documents_of_another_collection_are_refused(
    tmp_path: Path, tokens: TokenMemmap, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "passages.memmap"
    encode(tiny_model(), tokens, path, 8, CPU)
    assert len(open_document_embeddings(path, 16, Collection(tmp_path / "preprocess"))) == 23
    assert len(open_document_embeddings(path, 16, Collection(tmp_path / "queries alone"))) == 23
    more, other = random_sequences(24, 12, seed=0), random_sequences(23, 12, seed=1)
    for name, sequences in (("more", more), ("other", other)):
        open_tokens(tmp_path / name, sequences, 12)
    with pytest.raises(InputError, match=r"holds 23 embeddings, but there are 24 passages in .*more/passages\.memmap"):
        open_document_embeddings(path, 16, Collection(tmp_path / "more"))
    with pytest.raises(InputError, match=r"was made from other texts than those in .*other/passages\.memmap"):
        open_document_embeddings(path, 16, Collection(tmp_path / "other"))
    assert not caplog.messages
    (tmp_path / "passages.memmap.json").unlink()  # from elsewhere
    assert len(open_document_embeddings(path, 16, Collection(tmp_path / "other"))) == 23
    assert "has no stamp" in caplog.text
    with pytest.raises(InputError, match="holds 23 embeddings, but there are 24 passages"):
        open_document_embeddings(path, 16, Collection(tmp_path / "more"))


def test_vectors_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 16), dtype=np.float32) * 1e30  # the squares overflow
    check_finite(vectors)
    for value in (np.nan, np.inf, -np.inf):
        bad = vectors.copy()
        bad[17, 3] = value
        bad.tofile(tmp_path / "bad.memmap")
        with pytest.raises(InputError, match=r"bad\.memmap: row 17 has numbers that are not finite"):
            check_finite(open_embeddings(tmp_path / "bad.memmap", 16))
        with pytest.raises(InputError, match="the documents: row 107 "):
            check_finite(bad[10:], 100, "the documents")


def test_copy_in_memory_is_equal(tmp_path: Path) -> None:
    path = tmp_path / "passages.memmap"
    np.arange(12, dtype=np.float32).tofile(path)
    documents = open_embeddings(path, 4)
    np.testing.assert_array_equal(read_if_it_fits(documents), documents)


def test_row_numbers(tmp_path: Path) -> None:
    write_row_numbers(tmp_path / "passages-id.memmap", 5)
    assert np.fromfile(tmp_path / "passages-id.memmap", dtype=np.int32).tolist() == [0, 1, 2, 3, 4]


def test_embeddings_of_another_model_are_told(
    tmp_path: Path, many: TokenMemmap, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "passages.memmap"
    encode(tiny_model(seed=1), many, path, 512, CPU)
    warn_if_made_by_another(path, tiny_model(seed=1))
    assert not caplog.messages
    warn_if_made_by_another(path, tiny_model(seed=2))
    assert "was not made by the model" in caplog.text


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The models that are compiled: by a backend that calls torch as before, since the true one takes minutes."""
    found: list[torch.nn.Module] = []
    compile_by = torch.compile

    def compile_fast(self: torch.nn.Module, **options: object) -> None:
        assert options == {"dynamic": True}
        found.append(self)
        self._compiled_call_impl = compile_by(self._call_impl, backend="eager", dynamic=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_fast)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_gives_the_same_embeddings(
    tmp_path: Path, tokens: TokenMemmap, dtype: torch.dtype, compiled: list[torch.nn.Module]
) -> None:
    """In batches of several shapes, with and without padding."""
    plain, fast = tiny_model(), tiny_model()
    fast.speed_up()
    embeddings = []
    for name, model in (("plain", plain), ("fast", fast)):
        encode(model, tokens, tmp_path / name, 4, CPU, dtype)
        embeddings.append(np.fromfile(tmp_path / name, dtype=np.float32))
    np.testing.assert_allclose(*embeddings, rtol=1e-4, atol=1e-5)
    assert len(compiled) == (1 if dtype == torch.float32 else 2)  # the copy in half precision too


def test_scripts_compile_the_model(tmp_path: Path, compiled: list[torch.nn.Module]) -> None:
    """Embeddings and trained weights are those without --torch_compile."""
    model = save_tiny(tmp_path / "model")
    preprocess = write_collection(tmp_path / "passage" / "preprocess")
    for name, more in (("plain", []), ("compiled", ["--torch_compile"])):
        folder = tmp_path / name
        star = ["--data_root", tmp_path, "--data_type", "passage", "--model_dir", model, "--output_dir", folder]
        call_script("star/inference.py", *star, "--mode", "train", "--topk", 5, "--no_cuda", *more)
        adore = ["--init_path", model, "--pembed_path", folder / "passages.memmap", "--preprocess_dir", preprocess]
        adore += ["--model_save_dir", folder / "adore", "--log_dir", folder / "log", "--neg_topk", 5]
        call_script("adore/train.py", *adore, "--num_train_epochs", 1, *more)
        adore = ["--model_dir", folder / "adore" / "epoch-1", "--output_dir", folder / "run", "--mode", "train"]
        adore += ["--preprocess_dir", preprocess, "--dmemmap_path", folder / "passages.memmap", "--topk", 5]
        call_script("adore/inference.py", *adore, "--no_cuda", *more)
        assert len(compiled) == 3 * len(more)
    for path in (Path("passages.memmap"), Path("run") / "train.qembed.memmap"):
        plain, same = (np.fromfile(tmp_path / name / path, dtype=np.float32) for name in ("plain", "compiled"))
        np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-5)
    plain, same = (load_file(tmp_path / name / "adore/epoch-1/model.safetensors") for name in ("plain", "compiled"))
    for name in plain:
        np.testing.assert_allclose(same[name], plain[name], rtol=1e-4, atol=1e-5)
