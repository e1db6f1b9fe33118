"""The flags of star/train.py: those of transformers' Trainer that work, its own, and those that are refused.

Every field of ``TrainingArguments`` is in ``WORKING`` or in ``REFUSED``. A test fails when a release of transformers
adds one or changes how one is read. Light to import: flags are checked before torch is loaded.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from drhard.errors import InputError
from drhard.numbers import BETA, COUNT, EPSILON, LENGTH, NATURAL, NORM, RATE, SEED, Range
from drhard.strategies import STAR, STRATEGIES

STEPS = Range(0, 2**31 - 1, whole=False, above=True)  # between two events; below 1 a share of all steps
WARMUP = Range(0, 2**31 - 1, whole=False)  # below 1 a share of all steps too
CLIP = replace(NORM, above=False)  # 0 does not clip
PROCESSES = Range(0, 1024)
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
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


@dataclass(frozen=True)
class Flag:
    """A flag that works.

    Attributes:
        kind: what its text is: a :class:`drhard.numbers.Range` of numbers, or bool, str or Path.
        default: its value where it is not given.
        help: what it is for.
        outcome: it decides the weights at the end, so a training resumes with the same value only.
        choices: the texts that work, if not all of them do.
        needs: another flag, or torchrun, without which this one does nothing.
        many: it takes several values.
        required: it must be given.
    """

    kind: Any = str
    default: Any = None
    help: str = ""
    outcome: bool = False
    choices: Sequence[str] | None = None
    needs: str = ""
    many: bool = False
    required: bool = False


def _outcome(kind: Any, default: Any, help: str, **more: Any) -> Flag:
    return Flag(kind, default, help, outcome=True, **more)


WORKING: Mapping[str, Flag] = {
    # The batch counts with the number of GPUs, see the record of star/train.py.
    "per_device_train_batch_size": Flag(COUNT, 256, "queries in a batch, per GPU"),
    "per_device_eval_batch_size": Flag(COUNT, 128, "sequences in a batch of mining, per GPU"),
    "gradient_accumulation_steps": _outcome(COUNT, 1, "batches for one update"),
    "dataloader_drop_last": _outcome(bool, False, "leave out a smaller last batch"),
    "train_sampling_strategy": _outcome(str, "random", "order of the queries", choices=("random", "sequential")),
    "num_train_epochs": _outcome(STEPS, 100.0, "epochs"),
    "max_steps": _outcome(COUNT, -1, "updates, in place of epochs (-1: epochs count)"),
    "learning_rate": _outcome(RATE, 1e-4, "at the end of the warm-up"),
    "weight_decay": _outcome(RATE, 0.01, "of weights, not of biases and LayerNorms inside RoBERTa"),
    "adam_beta1": _outcome(BETA, 0.9, "of the optimizer"),
    "adam_beta2": _outcome(BETA, 0.999, "of the optimizer"),
    "adam_epsilon": _outcome(EPSILON, 1e-8, "of the optimizer"),
    "max_grad_norm": _outcome(CLIP, 1.0, "to clip the gradient at; 0 does not clip"),
    "lr_scheduler_type": _outcome(str, "linear", "the learning rate after the warm-up", choices=SCHEDULES),
    "lr_scheduler_kwargs": _outcome(str, None, "its settings, in JSON"),
    "warmup_steps": _outcome(WARMUP, 1000.0, "updates of the warm-up; below 1 a share of all"),
    "seed": _outcome(SEED, 42, "of dropout and of all draws"),
    "data_seed": _outcome(SEED, None, "of the order of the queries (none: --seed)"),
    "full_determinism": _outcome(bool, False, "deterministic GPU kernels, slower"),
    "bf16": _outcome(bool, False, "bfloat16 mixed precision, on a GPU"),
    "fp16": _outcome(bool, False, "float16 mixed precision, on a GPU"),
    "tf32": _outcome(bool, None, "TF32 products, on a GPU"),
    "output_dir": Flag(str, "./data/passage/star_train/models", "where checkpoints and the model go"),
    "do_train": Flag(bool, False, "train; the published commands give it"),
    "resume_from_checkpoint": Flag(str, None, "a checkpoint to go on from (none: the newest whole one)"),
    "use_cpu": Flag(bool, False, "leave the GPU alone"),
    "save_strategy": Flag(str, "steps", "when checkpoints are written", choices=("no", "steps", "epoch")),
    "save_steps": Flag(STEPS, 1000.0, "updates between two checkpoints; below 1 a share of all"),
    "save_total_limit": Flag(NATURAL, 1, "checkpoints to keep; 0: all"),
    "logging_strategy": Flag(str, "steps", "when numbers are logged", choices=("no", "steps", "epoch")),
    "logging_steps": Flag(STEPS, 50.0, "updates between two lines of numbers; below 1 a share of all"),
    "logging_first_step": Flag(bool, False, "log the first update too"),
    "log_level": Flag(str, "passive", "of transformers", choices=LOG_LEVELS),
    "log_level_replica": Flag(str, "warning", "of transformers, in the other processes", choices=LOG_LEVELS),
    "log_on_each_node": Flag(bool, True, "log on each machine"),
    "disable_tqdm": Flag(bool, None, "show no bar"),
    "report_to": Flag(
        str, ["tensorboard"], "tensorboard, none, or another of transformers' loggers, such as wandb", many=True
    ),
    "run_name": Flag(str, None, "the name of the run in a logger", needs="--report_to"),
    "gradient_checkpointing": Flag(bool, False, "less memory for a third more time"),
    "activation_checkpointing": Flag(bool, False, "the same: its name in transformers 5"),
    "torch_empty_cache_steps": Flag(COUNT, None, "updates between two clearings of the GPU's cache"),
    "dataloader_num_workers": Flag(PROCESSES, 0, "processes that make batches (0: the training itself)"),
    "dataloader_pin_memory": Flag(bool, True, "pinned memory, on a GPU"),
    "dataloader_prefetch_factor": Flag(
        Range(1, 1000), None, "batches that a process makes ahead", needs="--dataloader_num_workers"
    ),
    "dataloader_persistent_workers": Flag(bool, False, "keep the processes", needs="--dataloader_num_workers"),
    "dataloader_multiprocessing_context": Flag(
        str, None, "how they start", needs="--dataloader_num_workers", choices=("fork", "spawn", "forkserver")
    ),
    "local_rank": Flag(NATURAL, -1, "which of several processes this is; torchrun says so"),
    "ddp_find_unused_parameters": Flag(bool, False, "every parameter has its part in every step", needs="torchrun"),
    "ddp_bucket_cap_mb": Flag(COUNT, None, "of DistributedDataParallel", needs="torchrun"),
    "ddp_broadcast_buffers": Flag(bool, None, "of DistributedDataParallel", needs="torchrun"),
    "ddp_static_graph": Flag(bool, None, "of DistributedDataParallel", needs="torchrun"),
    "ddp_backend": Flag(str, None, "of torch.distributed", needs="torchrun"),
    "ddp_timeout": Flag(Range(1, 10**7), 1800, "seconds, of torch.distributed", needs="torchrun"),
}

OWN: Mapping[str, Flag] = {  # of star/train.py
    "logging_dir": Flag(str, "./data/passage/star_train/log", "where TensorBoard's files go"),
    "overwrite_output_dir": Flag(bool, False, "start anew though there is a model"),
    "no_cuda": Flag(bool, False, "leave the GPU alone"),
    "optimizer_str": _outcome(str, "lamb", "the optimizer", choices=("lamb", "adamw")),
    "padding": _outcome(bool, False, "pad to the maximal lengths, not to the batch's"),
    # The two decide what dropout draws.
    "chunk_size": _outcome(
        NATURAL,
        0,
        "sequences encoded at a time: a large batch in the memory of a small one, with the same gradients, for a "
        "third more time (0: all at once)",
    ),
}

DATA: Mapping[str, Flag] = {  # of star/train.py too
    "max_query_length": _outcome(LENGTH, None, "tokens of a query (published: 24)", required=True),
    "max_doc_length": _outcome(LENGTH, None, "tokens of a document (published: 120, doc 512)", required=True),
    "preprocess_dir": Flag(Path, None, "what preprocess.py wrote", required=True),
    "init_path": Flag(str, None, "the checkpoint to start from: a warm-up model, or roberta-base", required=True),
    "negatives": _outcome(
        str,
        STAR.name,
        "; ".join(f"{strategy}: {strategy.help}" for strategy in STRATEGIES.values()),
        choices=tuple(STRATEGIES),
    ),
    "hardneg_path": Flag(Path, None, "hard.json; without it --init_path mines one into --output_dir first"),
    "per_query_hard_num": _outcome(COUNT, 1, "hard (or random) negatives drawn for a query in each step"),
}

_EVALUATION = "has no use: star/train.py does not evaluate; run star/inference.py and msmarco_eval.py on a checkpoint"
_HUB = "does not work: nothing is uploaded; upload --output_dir with the hf command when the training is finished"
_LABELS = "has no use: STAR's loss takes no labels"
_OPTIMIZER = "does not work: choose the optimizer with --optimizer_str lamb or adamw"
_COMPILE = "does not work: the batches have many shapes, for which torch.compile brings nothing"
_SHARDS = "does not work: this model fits on one GPU; for several, start a process for each with torchrun"
_TRACKIO = "does not work: give trackio's settings in its environment variables"
_CHECKPOINTING = "does not work: give --gradient_checkpointing alone"

REFUSED = {
    **dict.fromkeys(
        (
            "eval_strategy",
            "eval_steps",
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
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "does not work: these kernels have no RoBERTa"),
    **dict.fromkeys(("remove_unused_columns", "length_column_name"), "has no use: the data have no columns"),
    **dict.fromkeys(
        ("ignore_data_skip", "restore_callback_states_from_checkpoint"),
        "does not work: a training that was stopped is resumed as if it had not been",
    ),
    "use_cache": "has no use: an encoder generates nothing",
    "neftune_noise_alpha": "does not work: noise on the embeddings is no part of STAR",
    "auto_find_batch_size": "does not work: the batch decides the negatives; for small memory give --chunk_size",
    "logging_nan_inf_filter": "has no use: a training whose loss is not finite stops",
    "include_num_input_tokens_seen": "does not work: tokens are not counted",
    "save_only_model": "does not work: a checkpoint holds all that resuming needs",
    "save_on_each_node": "does not work: the nodes share --output_dir",
    "enable_jit_checkpoint": "does not work: lower --save_steps, so that little is lost when the training is stopped",
    "dataloader_in_order": "does not work: the order of the batches decides the outcome",
    "debug": "does not work",
    "skip_memory_metrics": "does not work: memory is not measured",
}

FORMER = {  # flags of earlier releases of transformers, and what there is today
    "per_gpu_train_batch_size": "is called --per_device_train_batch_size today",
    "per_gpu_eval_batch_size": "is called --per_device_eval_batch_size today",
    "warmup_ratio": "is gone: --warmup_steps takes a number below 1 as a share of all steps",
    "evaluation_strategy": _EVALUATION,
    "evaluate_during_training": _EVALUATION,
    "use_legacy_prediction_loop": _EVALUATION,
    "include_inputs_for_metrics": _EVALUATION,
    "group_by_length": "is gone: batches of like length would have other negatives",
    "adafactor": _OPTIMIZER,
    **dict.fromkeys(("fp16_opt_level", "fp16_backend", "half_precision_backend"), "is gone: give --fp16 alone"),
    **dict.fromkeys(("use_mps_device", "use_ipex", "xpu_backend"), "is gone: the device at hand is used"),
    **dict.fromkeys(("tpu_num_cores", "tpu_metrics_debug", "mp_parameters", "past_index", "ray_scope"), "is gone"),
    **dict.fromkeys(("sharded_ddp", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"), _SHARDS),
    **dict.fromkeys(("dispatch_batches", "split_batches"), _SHARDS),
    **dict.fromkeys(("torchdynamo", "jit_mode_eval"), _COMPILE),
    **dict.fromkeys(("push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"), _HUB),
    "include_tokens_per_second": "is gone: tokens are not counted",
    "save_safetensors": "is gone: weights are always written as safetensors",
    "model_parallel": _SHARDS,
}


def add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``DATA``, ``OWN`` and ``WORKING`` to ``parser``; :func:`trainer_words` are what it reads."""
    groups = {"what is trained": DATA, "how": OWN, "of transformers' Trainer": WORKING}
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for name, flag in flags.items():
            _add(group, name, flag)


def _add(group: argparse._ArgumentGroup, name: str, flag: Flag) -> None:
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
        shown = " ".join(flag.default) if flag.many else f"{flag.default:g}" if flag.kind is not str else flag.default
        options["help"] += f" ({shown})"
    group.add_argument(f"--{name}", **options)
    if flag.default is True:
        group.add_argument(f"--no_{name}", dest=name, action="store_false", help=argparse.SUPPRESS)


def _yes(text: str) -> bool:
    if text.lower() in YES + NO:
        return text.lower() in YES
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is neither true nor false")


def trainer_words(words: Sequence[str]) -> list[str]:
    """The ``words`` of a command with ``--like-this`` spelt ``--like_this``: transformers' commands know both.

    Raises:
        InputError: one is a flag of Trainer that does not work, or that no longer exists.
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


def check_needs(flags: argparse.Namespace) -> None:
    """Raise InputError if one of the ``flags`` does nothing without another that is not given."""
    given = {name for name, flag in WORKING.items() if getattr(flags, name) != flag.default}
    present = {f"--{name}" for name in given} | ({"torchrun"} if "LOCAL_RANK" in os.environ else set())
    for name in sorted(given):
        needed = WORKING[name].needs
        if needed and needed not in present:
            raise InputError(f"--{name} does nothing without {needed}; leave it out")


def outcome(values: Any, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """The values of the flags that decide the outcome, as JSON knows them.

    Args:
        values: has each flag as an attribute.
    """
    found = {name: getattr(values, name) for name, flag in flags.items() if flag.outcome}
    return {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}
