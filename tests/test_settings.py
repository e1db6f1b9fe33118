"""Flags and the settings made from them: one place for each default, numbers that make no sense refused at once."""

from argparse import ArgumentParser, Namespace

from drhard.errors import InputError
from drhard.flags import FLAGS, FLAT, INDEX, SEARCH_MEMORY_GB, add_flags
from drhard.negatives import Selection
from drhard.numbers import Ranks
from drhard.settings import EncodingSettings, SearchSettings

import pytest
import torch
from helpers import parse_flags

PASSAGE = ["--data_type", "passage", "--mode", "dev"]
ADORE = ["--model_dir", "m", "--output_dir", "o", "--preprocess_dir", "p", "--mode", "dev", "--dmemmap_path", "d"]
LENGTHS = ["--max_query_length", "--max_doc_length"]
SCRIPTS = {
    "star/inference.py": (PASSAGE, [*LENGTHS, "--eval_batch_size", "--faiss_gpus"]),
    "star/prepare_hardneg.py": (PASSAGE, [*LENGTHS, "--eval_batch_size", "--k1", "--b", "--relative_margin"]),
    "adore/inference.py": (ADORE, ["--max_seq_length", "--pergpu_eval_batch_size", "--faiss_gpus"]),
}
SEARCHED = ["--topk", "--search_memory_gb", "--nprobe", "--ef_search"]


def parse(script: str, *flags: str) -> Namespace:
    return parse_flags(script, *SCRIPTS[script][0], *flags)


@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_without_sense_are_refused_with_the_flags(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in SCRIPTS[script][1] + SEARCHED:
        for value in ("-1", "nan", "1" + "0" * 30, "inf", "x", "1" * 5000, *([] if flag in MAY_BE_0 else ["0"])):
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                parse(script, f"{flag}={value}")
            assert ended.value.code == 2
            message = capsys.readouterr().err.splitlines()[-1]
            assert f"argument {flag}: " in message and " is not a" in message and "number from" in message


MAY_BE_0 = ("--faiss_gpus", "--k1", "--b", "--relative_margin")


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_left_out_is_what_the_settings_have(script: str) -> None:
    flags = parse(script)
    searching = SearchSettings.from_flags(flags)
    gpus = None if script == "star/prepare_hardneg.py" else []
    assert searching == SearchSettings(gpus=gpus, progress=True)
    assert (searching.factory, searching.memory_gb) == (FLAT, SEARCH_MEMORY_GB)
    encoding = EncodingSettings.from_flags(parse(script, "--no_cuda"))
    batch_size = 128 if script == "star/prepare_hardneg.py" else 32
    assert encoding == EncodingSettings(batch_size, torch.device("cpu"), torch.float32)
    if script == "star/prepare_hardneg.py":
        assert flags.selection == Selection(Ranks(1, 200))
    else:
        assert flags.topk == 100


def test_every_flag_ends_in_the_settings() -> None:
    flags = parse(
        "star/inference.py",
        "--faiss_gpus",
        "0",
        "2",
        "--search_memory_gb",
        "3.5",
        "--index_factory",
        "IVF64,Flat",
        "--index_path",
        "an.index",
        "--nprobe",
        "8",
        "--ef_search",
        "64",
        "--eval_batch_size",
        "7",
        "--no_cuda",
    )
    assert SearchSettings.from_flags(flags) == SearchSettings(
        [0, 2], 3.5, "IVF64,Flat", flags.index_path, nprobe=8, ef_search=64, progress=True
    )
    assert EncodingSettings.from_flags(flags).batch_size == 7


def test_mining_searches_on_the_cpu_where_it_is_asked_to() -> None:
    for more, no_cuda in ((["--not_faiss_cuda"], False), (["--no_cuda"], True)):
        searching = SearchSettings.from_flags(parse("star/prepare_hardneg.py", *more), no_cuda)
        assert searching.gpus is not None and not searching.gpus


def test_what_is_mined_is_in_the_selection(capsys: pytest.CaptureFixture[str]) -> None:
    for more, selection in (
        (["--topk", "7"], Selection(Ranks(1, 7))),
        (["--negative_ranks", "10-50"], Selection(Ranks(10, 50))),
        (["--relative_margin", "0"], Selection(Ranks(1, 200), 0)),
        (["--topk", "7", "--relative_margin", "0.05"], Selection(Ranks(1, 7), 0.05)),
    ):
        assert parse("star/prepare_hardneg.py", *more).selection == selection
    for topk in ("200", "7"):
        with pytest.raises(InputError, match="^--topk N is the same as --negative_ranks 1-N; omit one of the two$"):
            parse("star/prepare_hardneg.py", "--topk", topk, "--negative_ranks", "10-50")
    for ranks in ("10", "0-5", "9-3", "a-b"):
        with pytest.raises(SystemExit) as ended:
            parse("star/prepare_hardneg.py", "--negative_ranks", ranks)
        assert ended.value.code == 2
        message = f"error: argument --negative_ranks: '{ranks}' is not a range of ranks such as 10-200, counted from 1"
        assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_half_precision_is_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("star/inference.py", "--fp16", "--bf16")
    assert "not allowed with argument" in capsys.readouterr().err


def test_star_training_has_the_flags_of_its_mining() -> None:
    words = "--do_train --max_query_length 6 --max_doc_length 10 --preprocess_dir pre --init_path init"
    flags = parse_flags("star/train.py", *words.split(), "--search_memory_gb", 4, "--not_faiss_cuda")
    assert SearchSettings.from_flags(flags) == SearchSettings(gpus=[], memory_gb=4.0, progress=True)


def test_a_flag_that_is_not_added_cannot_differ() -> None:
    with pytest.raises(AssertionError):
        add_flags(ArgumentParser(), "--topk", mode={"help": "none"})
    assert set(INDEX) <= set(FLAGS)
