"""Each flag of star/train.py and adore/train.py works or is refused in one sentence, before the long work."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

from drhard.errors import InputError
from drhard.trainer_flags import DATA, FORMER, OWN, REFUSED, WORKING, outcome

import pytest
from helpers import load_script
from transformers import TrainingArguments

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
NEEDED = ["--max_query_length", 6, "--max_doc_length", 10, "--preprocess_dir", "pre", "--init_path", "init"]
BEYOND = ["nan", "inf", "-1", "-0.5", "1e30", "9" * 5000]  # of every range


def star(monkeypatch: pytest.MonkeyPatch, *flags: object) -> tuple:
    """The flags of star/train.py as it reads them."""
    words = ["--do_train", "--no_cuda", *NEEDED, *flags]
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, words)])
    return load_script("star/train.py").parse_arguments()[:2]


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


def test_every_flag_of_ours_is_decided_on() -> None:
    module = load_script("star/train.py")
    ours = {field.name for field in dataclasses.fields(module.StaticTrainingArguments) if field.init} - set(FIELDS)
    assert ours == set(OWN)
    assert {field.name for field in dataclasses.fields(module.DataArguments)} == set(DATA)


def test_refused_flags_get_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, reason in REFUSED.items():
        try:
            star(monkeypatch, f"--{name}", other_value(name))
        except InputError as error:
            assert str(error) == f"--{name} {reason}"
        except SystemExit as ended:  # the parser itself has no use for any value
            assert ended.code == 2
            assert f"argument --{name}" in capsys.readouterr().err
        else:
            pytest.fail(f"--{name} is taken and ignored")


@pytest.mark.parametrize("name", FORMER)
def test_flags_of_former_releases_get_a_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for words in ([f"--{name}", "3"], [f"--{name.replace('_', '-')}=3"]):
        with pytest.raises(InputError) as error:
            star(monkeypatch, *words)
        assert str(error.value) == f"--{name} {FORMER[name]}"


def test_a_mistyped_flag_gets_argparses_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        star(monkeypatch, "--lerning_rate", "1e-4")
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: --lerning_rate 1e-4\n")


def out_of_range() -> Iterator[tuple[str, str]]:
    for name, flag in (WORKING | OWN | DATA).items():
        if flag.range:
            yield from ((name, value) for value in BEYOND if (name, value) != ("max_steps", "-1"))  # -1: no such bound
            if flag.range.least > 0 or flag.range.above:
                yield name, "0"


def test_numbers_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in out_of_range():
        try:
            star(monkeypatch, *needs(name), f"--{name}", value)
        except InputError as error:
            assert str(error).startswith(f"--{name} is ")
            assert len(str(error)) < 200
        except SystemExit as ended:
            assert ended.code == 2
            assert f"argument --{name}" in capsys.readouterr().err
        else:
            pytest.fail(f"--{name} {value} is taken")


def needs(name: str) -> list[object]:
    needed = (WORKING | OWN | DATA)[name].needs
    return [needed, 2] if needed.startswith("--") else []


REFUSED_TOGETHER = {
    "--bf16": "--bf16 needs a GPU; leave it out",
    "--save_strategy best": "--save_strategy best does not work; give one of no, steps, epoch",
    "--train_sampling_strategy group_by_length": "--train_sampling_strategy group_by_length does not work; give one of",
    "--report_to nothing": "--report_to nothing: give none, or some of ",
    "--report_to none wandb": "--report_to none: give none, or some of ",
    "--run_name one": "--run_name does nothing without --report_to; leave it out",
    "--dataloader_prefetch_factor 2": "--dataloader_prefetch_factor does nothing without --dataloader_num_workers",
    "--ddp_backend gloo": "--ddp_backend does nothing without torchrun",
    "--resume_from_checkpoint False": "--resume_from_checkpoint False: give --overwrite_output_dir to start anew",
    "--lr_scheduler_type reduce_lr_on_plateau": "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy",
    "--lr_scheduler_type cosine_with_min_lr": "--lr_scheduler_type cosine_with_min_lr with --lr_scheduler_kwargs None",
    '--lr_scheduler_kwargs {"no":1}': "--lr_scheduler_type linear with --lr_scheduler_kwargs {'no': 1}: ",
    "--lr_scheduler_kwargs {": "--lr_scheduler_kwargs: not JSON (",
    "--logging_steps 2.5": "--logging_steps must be an integer if bigger than 1: 2.5",
    "--negatives random --hardneg_path hard.json": "--negatives random has no use for --hardneg_path",
    "--hardneg_path hard.json --search_memory_gb 3": "--search_memory_gb is for mining, and nothing is mined here",
    "--negatives in-batch --not_faiss_cuda": "--not_faiss_cuda is for mining, and nothing is mined here",
}


@pytest.mark.parametrize("flags", REFUSED_TOGETHER)
def test_flags_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError) as error:
        star(monkeypatch, *flags.split())
    assert str(error.value).startswith(REFUSED_TOGETHER[flags])
    assert "\n" not in str(error.value)


def test_flags_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    _, args = star(
        monkeypatch,
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
    assert args.resume_from_checkpoint is None
    assert args.writes_events
    assert args.report_to == []  # Trainer writes none of its own beside ours
    assert not star(monkeypatch, "--report_to", "none")[1].writes_events


def test_what_decides_the_outcome_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
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
    }
    flags = WORKING | OWN
    begun = [outcome(arguments, names) for arguments, names in zip(star(monkeypatch), (DATA, flags), strict=True)]
    for name, flag in (flags | DATA).items():
        if flag.outcome and name not in ("bf16", "fp16"):
            parsed = star(monkeypatch, f"--{name}", *other.get(name, ["3"]))
            found = [outcome(arguments, names) for arguments, names in zip(parsed, (DATA, flags), strict=True)]
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
}


@pytest.mark.parametrize("name", ADORE_NUMBERS)
def test_adores_numbers_out_of_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    parse = load_script("adore/train.py").parse_arguments
    for value in [*BEYOND, ADORE_NUMBERS[name]]:
        monkeypatch.setattr("sys.argv", ["train.py", *ADORE, f"--{name}={value}"])
        with pytest.raises(SystemExit) as ended:
            parse()
        assert ended.value.code == 2
        assert f"argument --{name}: " in capsys.readouterr().err


def test_the_published_flags_of_adore_are_all_numbers_or_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", *ADORE])
    flags = vars(load_script("adore/train.py").parse_arguments())
    numbers = {name for name, value in flags.items() if not isinstance(value, str | Path) and name != "index_path"}
    of_search = {"gpus", "memory_gb", "nprobe", "ef_search"}  # tests/test_settings.py has them
    assert numbers - of_search == set(ADORE_NUMBERS) - {"faiss_gpu_index"}
