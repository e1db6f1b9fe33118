"""Each flag of star/train.py and adore/train.py works or is refused in one sentence, before the long work."""

import dataclasses
import typing
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from drhard.adore_settings import AdoreOutput, AdoreSettings
from drhard.errors import InputError
from drhard.numbers import Range
from drhard.trainer_arguments import trainer_arguments
from drhard.trainer_flags import (
    DATA,
    FORMER,
    OWN,
    REFUSED,
    SCHEDULES,
    VALIDATION,
    WORKING,
    add_trainer_flags,
    outcome,
)

import pytest
from helpers import parse_flags
from transformers import HfArgumentParser, TrainingArguments

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
NEEDED = ["--max_query_length", 6, "--max_doc_length", 10, "--preprocess_dir", "pre", "--init_path", "init"]
BEYOND = ["nan", "inf", "-1", "-0.5", "1e30", "9" * 5000]  # of every range


def star(*flags: object) -> tuple[Namespace, TrainingArguments]:
    """The flags of star/train.py as it reads them, and what it makes of them for the Trainer."""
    read = parse_flags("star/train.py", "--do_train", "--no_cuda", *NEEDED, *flags)
    return read, trainer_arguments(read)


def other_value(name: str) -> str:
    """A value that the parser takes and that is not the default."""
    special = {
        "eval_strategy": "steps",
        "hub_strategy": "end",
        "optim": "sgd",
        "include_num_input_tokens_seen": "all",
        "debug": "underflow_overflow",
        "fsdp": "full_shard",
        "include_for_metrics": "inputs",
        "label_names": "labels",
        "liger_kernel_config": "x",
        "optim_target_modules": "all-linear",
        "remove_unused_columns": "True",
        "logging_nan_inf_filter": "True",
    }
    field = FIELDS[name]
    if name in special:
        return special[name]
    kinds = typing.get_args(field.type) or (field.type,)
    if bool in kinds:
        return str(not field.default)
    return "7" if int in kinds or float in kinds else "x"


def test_every_flag_of_trainer_is_decided_on() -> None:
    """A release of transformers with a new flag fails here: decide whether it works, and whether it is recorded."""
    assert set(WORKING) | set(REFUSED) == set(FIELDS)
    assert not set(WORKING) & set(REFUSED)
    assert not (set(FORMER) & set(FIELDS))


def test_flags_are_read_as_trainer_reads_them() -> None:
    """Values of the same types, and, where we have no other, of the same defaults."""
    ours = {"per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "weight_decay", "save_steps"}
    ours |= {"num_train_epochs", "warmup_steps", "logging_steps", "save_total_limit", "output_dir", "report_to"}
    ours |= {
        "dataloader_num_workers",
        "gradient_checkpointing",
        "activation_checkpointing",
        "ddp_find_unused_parameters",
    }
    parser = HfArgumentParser(TrainingArguments)
    theirs = {action.dest: action for action in parser._actions}
    for name, flag in WORKING.items():
        of_a_number = {int: isinstance(flag.kind, Range) and flag.kind.whole, float: isinstance(flag.kind, Range)}
        kind = theirs[name].type
        assert of_a_number.get(kind, not isinstance(flag.kind, Range)), name
        assert (flag.kind is bool) == (bool in (typing.get_args(FIELDS[name].type) or (FIELDS[name].type,))), name
        assert set(flag.choices or ()) <= set(theirs[name].choices or flag.choices or ()), name
        default = FIELDS[name].default
        if name not in ours:
            assert flag.default == getattr(default, "value", default), name
    assert set(theirs["lr_scheduler_type"].choices) - set(SCHEDULES) == {"reduce_lr_on_plateau", "greedy"}


def test_a_switch_takes_yes_and_no(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_trainer_flags(parser)
    words = [str(word) for word in NEEDED]
    for given, value in {
        "--bf16": True,
        "--bf16=yes": True,
        "--bf16=False": False,
        "--no_log_on_each_node": False,
    }.items():
        read = parser.parse_args([*words, given])
        assert getattr(read, given.partition("=")[0].removeprefix("--no_").removeprefix("--")) is value
    with pytest.raises(SystemExit):
        parser.parse_args([*words, "--bf16=maybe"])
    assert "'maybe' is neither true nor false" in capsys.readouterr().err


def test_refused_flags_get_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for name, reason in REFUSED.items():
        try:
            star(f"--{name}", other_value(name))
        except InputError as error:
            assert str(error) == f"--{name} {reason}"
        except SystemExit as ended:  # the parser itself has no use for any value
            assert ended.code == 2
            assert f"argument --{name}" in capsys.readouterr().err
        else:
            pytest.fail(f"--{name} is taken and ignored")


@pytest.mark.parametrize("name", FORMER)
def test_flags_of_former_releases_get_a_sentence(name: str) -> None:
    for words in ([f"--{name}", "3"], [f"--{name.replace('_', '-')}=3"]):
        with pytest.raises(InputError) as error:
            star(*words)
        assert str(error.value) == f"--{name} {FORMER[name]}"


def test_a_mistyped_flag_gets_argparses_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        star("--lerning_rate", "1e-4")
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: --lerning_rate 1e-4\n")


def out_of_range() -> Iterator[tuple[str, str]]:
    for name, flag in (WORKING | OWN | DATA).items():
        if isinstance(flag.kind, Range):
            yield from ((name, value) for value in BEYOND if value != f"{flag.kind.off}")
            if flag.kind.least > 0 or flag.kind.above:
                yield name, "0"


def test_defaults_may_be_given() -> None:
    for name, flag in (WORKING | OWN | DATA).items():
        if flag.default is not None and not flag.needs and name not in ("do_train", "report_to"):
            read = parse_flags("star/train.py", "--do_train", *NEEDED, f"--{name}", str(flag.default))
            assert getattr(read, name) == flag.default, name


def test_numbers_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in out_of_range():
        try:
            star(*needs(name), f"--{name}", value)
        except InputError as error:
            assert str(error).startswith(f"--{name} is ")
            assert len(str(error)) < 200
        except SystemExit as ended:
            assert ended.code == 2
            assert f"argument --{name}" in capsys.readouterr().err
        else:
            pytest.fail(f"--{name} {value} is taken")


def needs(name: str) -> list[object]:
    needed = (WORKING | OWN | DATA | VALIDATION)[name].needs
    value = {"--eval_split": "dev", "--report_to": "none"}.get(needed, 2)
    return [needed, value] if needed.startswith("--") else []


REFUSED_TOGETHER = {
    "--bf16": "--bf16 needs a GPU; omit it",
    "--save_strategy best": "argument --save_strategy: invalid choice: 'best'",
    "--train_sampling_strategy group_by_length": "argument --train_sampling_strategy: invalid choice",
    "--report_to nothing": "--report_to nothing: give none, or some of ",
    "--report_to none wandb": "--report_to none: give none, or some of ",
    "--run_name one": "--run_name does nothing without --report_to; omit it",
    "--dataloader_prefetch_factor 2": "--dataloader_prefetch_factor does nothing without --dataloader_num_workers",
    "--ddp_timeout 60": "--ddp_timeout does nothing without torchrun",
    "--resume_from_checkpoint False": "--resume_from_checkpoint False: give --overwrite_output_dir to start over",
    "--lr_scheduler_type reduce_lr_on_plateau": "argument --lr_scheduler_type: invalid choice",
    "--lr_scheduler_type cosine_with_min_lr": "--lr_scheduler_type cosine_with_min_lr with --lr_scheduler_kwargs None",
    '--lr_scheduler_kwargs {"no":1}': "--lr_scheduler_type linear with --lr_scheduler_kwargs {'no': 1}: ",
    "--lr_scheduler_kwargs {": "--lr_scheduler_kwargs: not JSON (",
    "--logging_steps 2.5": "--logging_steps must be an integer if bigger than 1: 2.5",
    "--negatives random --hardneg_path hard.json": "--negatives random does not use --hardneg_path",
    "--hardneg_path hard.json --search_memory_gb 3": "--search_memory_gb is for mining, and this command mines nothing",
    "--negatives in-batch --not_faiss_cuda": "--not_faiss_cuda is for mining, and this command mines nothing",
    "--hardneg_path hard.json --negative_ranks 2-9": "--negative_ranks is for mining, and this command mines nothing",
    "--negatives random --relative_margin 0": "--relative_margin is for mining, and this command mines nothing",
    "--negative_ranks 10": "argument --negative_ranks: '10' is not a range of ranks such as 10-200, counted from 1",
    "--relative_margin 1": "argument --relative_margin: '1' is not a number from 0 to 0.999999",
}


@pytest.mark.parametrize("flags", REFUSED_TOGETHER)
def test_flags_that_do_not_go_together(capsys: pytest.CaptureFixture[str], flags: str) -> None:
    with pytest.raises((InputError, SystemExit)) as ended:
        star(*flags.split())
    sentence = str(ended.value)
    if isinstance(ended.value, SystemExit):
        sentence = capsys.readouterr().err.splitlines()[-1].removeprefix("train.py: error: ")
    assert sentence.startswith(REFUSED_TOGETHER[flags])
    assert "\n" not in sentence


def test_flags_that_work() -> None:
    read, args = star(
        "--lr_scheduler_type",
        "polynomial",
        "--lr_scheduler_kwargs",
        '{"power":2}',
        "--warmup_steps",
        0.1,
        "--resume_from_checkpoint",
        "True",
        "--report_to",
        "tensorboard",
        "--dataloader_num_workers",
        2,
        "--dataloader_prefetch_factor",
        4,
        "--max_grad_norm",
        0,
        "--save_total_limit",
        0,
    )
    assert args.lr_scheduler_kwargs == {"power": 2}
    assert read.resume_from_checkpoint is None
    assert args.report_to == []  # Trainer writes none of its own beside ours
    assert star("--report_to", "none")[1].report_to == []


def test_what_decides_the_outcome_is_recorded() -> None:
    other = {
        "dataloader_drop_last": ["True"],
        "train_sampling_strategy": ["sequential"],
        "optimizer_str": ["adamw"],
        "lr_scheduler_type": ["cosine"],
        "lr_scheduler_kwargs": ["{}"],
        "full_determinism": ["True"],
        "padding": ["True"],
        "negatives": ["random"],
        "tf32": ["False"],
        "adam_beta1": ["0.8"],
        "adam_beta2": ["0.8"],
        "adam_epsilon": ["0.1"],
        "eval_split": ["dev"],
        "metric": ["RR@3"],
    }

    def outcomes(*given: object) -> list[dict[str, object]]:
        tables = (DATA | OWN | VALIDATION, WORKING)
        return [outcome(values, flags) for values, flags in zip(star(*given), tables, strict=True)]

    for name, flag in (DATA | OWN | VALIDATION | WORKING).items():
        if flag.outcome and name not in ("bf16", "fp16"):
            begun = outcomes(*needs(name))
            found = outcomes(*needs(name), f"--{name}", *other.get(name, ["3"]))
            changed = [key for one, two in zip(begun, found, strict=True) for key in one if one[key] != two[key]]
            assert changed == [name]


ADORE = ["--init_path", "i", "--pembed_path", "p", "--model_save_dir", "m", "--log_dir", "l", "--preprocess_dir", "d"]
ADORE_NUMBERS = {
    "metric_cut": 0,
    "neg_topk": 0,
    "max_seq_length": 1,
    "per_gpu_batch_size": 0,
    "gradient_accumulation_steps": 0,
    "warmup_steps": -1,
    "seed": -1,
    "save_steps": 0,
    "logging_steps": 0,
    "learning_rate": -1,
    "weight_decay": -1,
    "adam_epsilon": 0,
    "max_grad_norm": 0,
    "num_train_epochs": 0,
    "model_gpu_index": -1,
    "faiss_gpu_index": -1,
    "faiss_omp_num_threads": 0,
    "eval_steps": 0,
    "early_stopping_patience": 0,
}


@pytest.mark.parametrize("name", ADORE_NUMBERS)
def test_adores_numbers_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    for value in [*BEYOND, ADORE_NUMBERS[name]]:
        with pytest.raises(SystemExit) as ended:
            parse_flags("adore/train.py", *ADORE, f"--{name}={value}")
        assert ended.value.code == 2
        assert f"argument --{name}: " in capsys.readouterr().err


PLACES = ("index_path", "pooling", "normalize", "score_scale", "eval_split", "torch_compile")  # and ours


def test_the_published_flags_of_adore_are_all_numbers_or_places() -> None:
    flags = vars(parse_flags("adore/train.py", *ADORE))
    numbers = {name for name, value in flags.items() if not isinstance(value, str | Path) and name not in PLACES}
    of_search = {"gpus", "memory_gb", "nprobe", "ef_search"}  # tests/test_settings.py has them
    assert numbers - of_search == set(ADORE_NUMBERS) - {"faiss_gpu_index"}


ADORE_DEFAULTS = {  # published, but for --metric_cut
    "metric_cut": None,
    "neg_topk": 200,
    "per_gpu_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-6,
    "weight_decay": 0.01,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "warmup_steps": 2000,
    "num_train_epochs": 6,
    "seed": 42,
    "score_scale": None,
}


NO_VALIDATION = {"eval_split": None, "metric": "RR@10", "eval_steps": None, "early_stopping_patience": None}


def test_adores_settings_are_its_flags() -> None:
    left_out = AdoreSettings.from_flags(parse_flags("adore/train.py", *ADORE))
    assert vars(left_out) == vars(AdoreSettings()) == ADORE_DEFAULTS | NO_VALIDATION
    given = [f"--{name}={number}" for number, name in enumerate(ADORE_DEFAULTS, start=3) if name != "adam_epsilon"]
    settings = AdoreSettings.from_flags(parse_flags("adore/train.py", *ADORE, "--adam_epsilon=0.5", *given))
    numbers = dict(zip(ADORE_DEFAULTS, range(3, 15), strict=True))
    assert vars(settings) == numbers | {"adam_epsilon": 0.5} | NO_VALIDATION
    output = AdoreOutput.from_flags(
        parse_flags("adore/train.py", *ADORE, "--save_steps=7"), tokenizer_from=Path("here")
    )
    assert output == AdoreOutput(Path("m"), Path("l"), Path("here"), save_steps=7, logging_steps=100)


def test_adores_settings_check_their_numbers() -> None:
    for name in ADORE_DEFAULTS:
        with pytest.raises(InputError, match=f"^{name} is -1, expected a"):
            AdoreSettings(**{name: -1})
    with pytest.raises(InputError, match="^save_steps is 0, expected a whole number from 1 to "):
        AdoreOutput(Path("m"), Path("l"), Path(), save_steps=0)
