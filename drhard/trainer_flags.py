"""The flags of star/train.py: its own, those of transformers' Trainer that work, and those it refuses.

Every field of ``TrainingArguments`` is in ``WORKING`` or in ``REFUSED``. A test fails if a release of transformers adds
a field or parses one differently. This module is light to import, so flags are checked before torch is loaded.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from drhard import processes
from drhard.dataset import parse_split
from drhard.errors import InputError
from drhard.flags import NORMALIZE_HELP, POOLING_HELP, POOLINGS
from drhard.numbers import BETA, COUNT, EPSILON, LENGTH, NATURAL, NORM, RATE, SCALE, SEED, Range
from drhard.strategies import STAR, STRATEGIES

STEPS = Range(0, 2**31 - 1, whole=False, above=True)  # steps between two events; below 1, a share of all steps
WARMUP = Range(0, 2**31 - 1, whole=False)  # below 1, a share of all steps
CLIP = replace(NORM, above=False)  # 0 turns clipping off
PROCESSES = Range(0, 1024)
COUNT_OR_NONE, RANK = replace(COUNT, off=-1), replace(NATURAL, off=-1)
YES, NO = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
SCALE_HELP = "factor of the scores in the loss (1; 20 for a model whose embeddings have the length 1)"
SPLIT = "--eval_split"
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


@dataclass(frozen=True)
class Flag:
    """A flag that works.

    Attributes:
        kind: the type of its value: a :class:`drhard.numbers.Range`, or bool, str or Path.
        default: the value if the flag is not given.
        help: the text for ``--help``.
        outcome: the flag decides the final weights, so a training resumes only with the same value.
        choices: the valid values, if not all are.
        needs: another flag, or torchrun, without which this one does nothing.
        many: the flag takes several values.
        required: the flag must be given.
    """

    kind: Any = str
    default: Any = None
    help: str = ""
    outcome: bool = False
    choices: Collection[str] | None = None
    needs: str = ""
    many: bool = False
    required: bool = False


def _outcome(kind: Any, default: Any, help: str, **more: Any) -> Flag:
    return Flag(kind, default, help, outcome=True, **more)


def parse_eval_split(text: str) -> str:
    """Parse the split of a validation. Raises ArgumentTypeError, which argparse reports."""
    if text == "train":
        raise argparse.ArgumentTypeError("the queries of train are trained on; name another split")
    return parse_split(text)


VALIDATION: Mapping[str, Flag] = {  # of both trainings; see drhard/validation.py
    "eval_split": _outcome(
        parse_eval_split,
        None,
        "measure the model on the queries of this split during the training, and keep the best in the folder best "
        "(none)",
    ),
    "metric": _outcome(str, "RR@10", "the measure, as trec_eval.py names it; the greatest is the best", needs=SPLIT),
    "early_stopping_patience": _outcome(
        COUNT, None, "stop after so many evaluations in a row without a new best (none: never)", needs=SPLIT
    ),
}


WORKING: Mapping[str, Flag] = {
    # Not an outcome by itself: star/train.py records the batch of all processes together.
    "per_device_train_batch_size": Flag(COUNT, 256, "batch size per process (one for each GPU), in queries"),
    "per_device_eval_batch_size": Flag(COUNT, 128, "batch size per GPU for mining, in sequences"),
    "gradient_accumulation_steps": _outcome(COUNT, 1, "batches for one update"),
    "dataloader_drop_last": _outcome(bool, False, "drop a smaller last batch"),
    "train_sampling_strategy": _outcome(str, "random", "order of the queries", choices=("random", "sequential")),
    "num_train_epochs": _outcome(STEPS, 100.0, "epochs"),
    "max_steps": _outcome(COUNT_OR_NONE, -1, "updates, instead of epochs (-1: use the epochs)"),
    "learning_rate": _outcome(RATE, 1e-4, "learning rate at the end of the warm-up"),
    "weight_decay": _outcome(RATE, 0.01, "decay of weights, except biases and LayerNorms inside RoBERTa"),
    "adam_beta1": _outcome(BETA, 0.9, "beta1 of the optimizer"),
    "adam_beta2": _outcome(BETA, 0.999, "beta2 of the optimizer"),
    "adam_epsilon": _outcome(EPSILON, 1e-8, "epsilon of the optimizer"),
    "max_grad_norm": _outcome(CLIP, 1.0, "norm to clip the gradient at; 0 turns clipping off"),
    "lr_scheduler_type": _outcome(str, "linear", "schedule of the learning rate after the warm-up", choices=SCHEDULES),
    "lr_scheduler_kwargs": _outcome(str, None, "settings of the schedule, in JSON"),
    "warmup_steps": _outcome(WARMUP, 1000.0, "updates of the warm-up; below 1, a share of all"),
    "seed": _outcome(SEED, 42, "seed of dropout and of all draws"),
    "data_seed": _outcome(SEED, None, "seed of the order of the queries (none: --seed)"),
    "full_determinism": _outcome(bool, False, "deterministic GPU kernels, slower"),
    "bf16": _outcome(bool, False, "bfloat16 mixed precision, on a GPU"),
    "fp16": _outcome(bool, False, "float16 mixed precision, on a GPU"),
    "tf32": _outcome(bool, None, "TF32 products, on a GPU"),
    "output_dir": Flag(str, "./data/passage/star_train/models", "folder for checkpoints and the model"),
    "do_train": Flag(bool, False, "train; the published commands give it"),
    "resume_from_checkpoint": Flag(str, None, "checkpoint to resume from (none: the newest whole one)"),
    "use_cpu": Flag(bool, False, "do not use the GPU"),
    "save_strategy": Flag(str, "steps", "when to write checkpoints", choices=("no", "steps", "epoch")),
    "save_steps": Flag(STEPS, 1000.0, "updates between two checkpoints; below 1, a share of all"),
    "save_total_limit": Flag(NATURAL, 1, "checkpoints to keep; 0: all"),
    "logging_strategy": Flag(str, "steps", "when to log numbers", choices=("no", "steps", "epoch")),
    "logging_steps": Flag(STEPS, 50.0, "updates between two lines of numbers; below 1, a share of all"),
    "logging_first_step": Flag(bool, False, "log the first update too"),
    "log_level": Flag(str, "passive", "log level of transformers", choices=LOG_LEVELS),
    "log_level_replica": Flag(str, "warning", "log level of transformers in the other processes", choices=LOG_LEVELS),
    "log_on_each_node": Flag(bool, True, "log on each machine"),
    "disable_tqdm": Flag(bool, None, "show no progress bar"),
    "report_to": Flag(
        str, ["tensorboard"], "tensorboard, none, or another of transformers' loggers, such as wandb", many=True
    ),
    "run_name": Flag(str, None, "the name of the run in a logger", needs="--report_to"),
    "gradient_checkpointing": Flag(bool, False, "saves memory, takes a third more time"),
    "activation_checkpointing": Flag(bool, False, "the name of --gradient_checkpointing in transformers 5"),
    "eval_steps": _outcome(
        STEPS, None, "updates between two evaluations (none: after each epoch); below 1, a share of all", needs=SPLIT
    ),
    "torch_empty_cache_steps": Flag(COUNT, None, "updates between two clearings of the GPU's cache"),
    "dataloader_num_workers": Flag(
        PROCESSES, None, "processes that make batches; 0: the training's own (0; on a GPU 2)"
    ),
    "dataloader_pin_memory": Flag(bool, True, "use pinned memory, on a GPU"),
    "dataloader_prefetch_factor": Flag(
        Range(1, 1000), None, "batches that each process makes ahead", needs="--dataloader_num_workers"
    ),
    "dataloader_persistent_workers": Flag(
        bool, False, "keep the processes between epochs", needs="--dataloader_num_workers"
    ),
    "dataloader_multiprocessing_context": Flag(
        str,
        None,
        "how the processes start",
        needs="--dataloader_num_workers",
        choices=("fork", "spawn", "forkserver"),
    ),
    "local_rank": Flag(RANK, -1, "rank of this process; torchrun sets it"),
    "ddp_timeout": Flag(
        Range(1, 10**7), processes.TIMEOUT, "seconds that a process waits for the others", needs="torchrun"
    ),
}

OWN: Mapping[str, Flag] = {  # star/train.py's own
    "logging_dir": Flag(str, "./data/passage/star_train/log", "folder for TensorBoard's files"),
    "overwrite_output_dir": Flag(bool, False, "start over even if there is a model"),
    "no_cuda": Flag(bool, False, "do not use the GPU"),
    "optimizer_str": _outcome(str, "lamb", "the optimizer", choices=("lamb", "adamw")),
    # padding and chunk_size change what dropout draws.
    "padding": _outcome(bool, False, "pad to the maximal lengths, not to the longest in the batch"),
    "chunk_size": _outcome(
        NATURAL,
        0,
        "sequences to encode at a time (0: all at once); saves memory, gives the same gradients, takes a third more "
        "time",
    ),
}

DATA: Mapping[str, Flag] = {  # star/train.py's own too
    "max_query_length": _outcome(LENGTH, None, "maximum tokens per query (published: 24)", required=True),
    "max_doc_length": _outcome(LENGTH, None, "maximum tokens per document (published: 120, doc 512)", required=True),
    "preprocess_dir": Flag(Path, None, "folder that preprocess.py wrote", required=True),
    "init_path": Flag(str, None, "checkpoint to start from: a warm-up model, or roberta-base", required=True),
    "pooling": Flag(str, None, POOLING_HELP, choices=POOLINGS),
    "normalize": Flag(bool, False, NORMALIZE_HELP),
    "negatives": _outcome(
        str,
        STAR.name,
        "; ".join(f"{strategy}: {strategy.help}" for strategy in STRATEGIES.values()),
        choices=STRATEGIES,
    ),
    "hardneg_path": Flag(Path, None, "hard.json (none: the model of --init_path mines one into --output_dir first)"),
    "score_scale": _outcome(SCALE, None, SCALE_HELP),
    "per_query_hard_num": _outcome(COUNT, 1, "hard (or random) negatives drawn for a query in each step"),
}

_EVALUATION = (
    "is not supported: --eval_split measures the model after each epoch, or every --eval_steps, and keeps the best by "
    "--metric"
)
_HUB = "is not supported: training uploads nothing; upload --output_dir with the hf command afterwards"
_LABELS = "is not supported: STAR's loss takes no labels"
_OPTIMIZER = "is not supported: choose the optimizer with --optimizer_str lamb or adamw"
_COMPILE = "is not supported: the batches have many shapes, so torch.compile gains nothing"
_SHARDS = "is not supported: the model fits on one GPU; to use several, start one process for each with torchrun"
_DDP = "is not supported: the processes add up their gradients without DistributedDataParallel, by NCCL or gloo"
_TRACKIO = "is not supported: set trackio's environment variables instead"
_CHECKPOINTING = "is not supported: give --gradient_checkpointing alone"

REFUSED = {
    **dict.fromkeys(
        (
            "eval_strategy",
            "eval_delay",
            "eval_on_start",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "prediction_loss_only",
            "include_for_metrics",
            "batch_eval_metrics",
            "do_eval",
            "do_predict",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "bf16_full_eval",
            "fp16_full_eval",
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        _HUB,
    ),
    **dict.fromkeys(("label_smoothing_factor", "label_names", "average_tokens_across_devices"), _LABELS),
    **dict.fromkeys(("optim", "optim_args", "optim_target_modules"), _OPTIMIZER),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILE),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config"), _SHARDS),
    **dict.fromkeys(("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
    **dict.fromkeys(("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), _CHECKPOINTING),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "is not supported: Liger has no kernels for RoBERTa"),
    **dict.fromkeys(("remove_unused_columns", "length_column_name"), "is not supported: the data have no columns"),
    **dict.fromkeys(
        ("ignore_data_skip", "restore_callback_states_from_checkpoint"),
        "is not supported: a resumed training must give the same weights as an unbroken one",
    ),
    **dict.fromkeys(
        (
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "ddp_backend",
        ),
        _DDP,
    ),
    "use_cache": "is not supported: an encoder generates nothing",
    "neftune_noise_alpha": "is not supported: STAR adds no noise to the embeddings",
    "auto_find_batch_size": "is not supported: the batch decides the negatives; to save memory, give --chunk_size",
    "logging_nan_inf_filter": "is not supported: training stops if the loss is not finite",
    "include_num_input_tokens_seen": "is not supported: training does not count tokens",
    "save_only_model": "is not supported: a checkpoint holds everything that resuming needs",
    "save_on_each_node": "is not supported: the nodes share --output_dir",
    "enable_jit_checkpoint": "is not supported: lower --save_steps, so that little is lost if the training is stopped",
    "dataloader_in_order": "is not supported: the order of the batches decides the outcome",
    "debug": "is not supported",
    "skip_memory_metrics": "is not supported: training does not measure memory",
}

FORMER = {  # flags of earlier releases of transformers, and what replaces them
    "per_gpu_train_batch_size": "is now called --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "is now called --per_device_eval_batch_size",
    "warmup_ratio": "no longer exists: --warmup_steps takes a number below 1 as a share of all steps",
    "evaluation_strategy": _EVALUATION,
    "evaluate_during_training": _EVALUATION,
    "use_legacy_prediction_loop": _EVALUATION,
    "include_inputs_for_metrics": _EVALUATION,
    "group_by_length": "no longer exists: batches of similar lengths would change the negatives",
    "adafactor": _OPTIMIZER,
    **dict.fromkeys(
        ("fp16_opt_level", "fp16_backend", "half_precision_backend"), "no longer exists: give --fp16 alone"
    ),
    **dict.fromkeys(
        ("use_mps_device", "use_ipex", "xpu_backend"), "no longer exists: training uses the available device"
    ),
    **dict.fromkeys(
        ("tpu_num_cores", "tpu_metrics_debug", "mp_parameters", "past_index", "ray_scope"), "no longer exists"
    ),
    **dict.fromkeys(("sharded_ddp", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"), _SHARDS),
    **dict.fromkeys(("dispatch_batches", "split_batches"), _SHARDS),
    **dict.fromkeys(("torchdynamo", "jit_mode_eval"), _COMPILE),
    **dict.fromkeys(("push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"), _HUB),
    "include_tokens_per_second": "no longer exists: training does not count tokens",
    "save_safetensors": "no longer exists: weights are always safetensors",
    "model_parallel": _SHARDS,
}


def add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags that work to ``parser``. Have it parse what :func:`trainer_words` returns."""
    groups = {"data and model": DATA, "training": OWN, "validation": VALIDATION, "transformers' Trainer": WORKING}
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for name, flag in flags.items():
            add_flag(group, name, flag)


def add_flag(group: argparse._ActionsContainer, name: str, flag: Flag) -> None:
    """Add the ``flag`` called ``name`` to a parser or to a group of one."""
    options: dict[str, Any] = {"help": flag.help, "dest": name, "default": flag.default}
    if flag.kind is bool:
        options |= {"type": _yes, "nargs": "?", "const": True, "metavar": "BOOL"}
    else:
        options |= {"type": flag.kind, "choices": flag.choices, "required": flag.required}
        if flag.many:
            options["nargs"] = "+"
        if flag.choices is None:
            options["metavar"] = "N" if isinstance(flag.kind, Range) else "TEXT"
    if flag.default not in (None, False) and "(" not in flag.help:
        number = isinstance(flag.default, float)
        shown = " ".join(flag.default) if flag.many else f"{flag.default:g}" if number else flag.default
        options["help"] += f" ({shown})"
    group.add_argument(f"--{name}", **options)
    if flag.default is True:
        group.add_argument(f"--no_{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


def _yes(text: str) -> bool:
    if text.lower() in YES + NO:
        return text.lower() in YES
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is neither true nor false")


def trainer_words(words: Sequence[str]) -> list[str]:
    """Return the ``words`` of a command with ``--like-this`` spelt ``--like_this``, as transformers takes both.

    Raises:
        InputError: a word is a flag of Trainer that is not supported or no longer exists.
    """
    spelt = []
    for word in words:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            name = flag[2:].replace("-", "_")
            reason = REFUSED.get(name) or REFUSED.get(name.removeprefix("no_")) or FORMER.get(name)
            if reason:
                raise InputError(f"--{name} {reason}")
            flag = f"--{name}"
        spelt.append(f"{flag}{equals}{value}")
    return spelt


def check_needs(values: argparse.Namespace, flags: Mapping[str, Flag]) -> None:
    """Raise InputError if one of the ``flags`` needs another that is not given."""
    given = {name for name, flag in flags.items() if getattr(values, name) != flag.default}
    present = {f"--{name}" for name in given} | ({"torchrun"} if processes.was_launched() else set())
    for name in sorted(given):
        needed = flags[name].needs
        if needed and needed not in present:
            raise InputError(f"--{name} does nothing without {needed}; omit it")


def outcome(values: Any, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Return the values of the flags that decide the outcome, as JSON types.

    Args:
        values: an object with each flag as an attribute.
    """
    found = {name: getattr(values, name) for name, flag in flags.items() if flag.outcome}
    return {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}
