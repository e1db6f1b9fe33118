"""Which flags of transformers' Trainer star/train.py takes, and why it refuses the others.

Every field of ``TrainingArguments`` is in ``WORKING`` or in ``REFUSED``; a test fails when a release of transformers
brings a new one. A refused flag may be given with its default, which does nothing.
"""

import dataclasses
import os
from dataclasses import replace
from enum import Enum
from typing import Any

from drhard.errors import InputError
from drhard.numbers import BETA, COUNT, EPSILON, LENGTH, NATURAL, NORM, RATE, SEED, Range

STEPS = Range(0, 2**31 - 1, whole=False, above=True)  # between two events; below 1 a share of all steps
WARMUP = Range(0, 2**31 - 1, whole=False)  # below 1 a share of all steps too
CLIP = replace(NORM, above=False)  # 0 does not clip
PROCESSES = Range(0, 1024)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag that works.

    Attributes:
        outcome: it decides the weights at the end, so a training is resumed with the same value only.
        range: the numbers that make sense; None for what is no number.
        only: the values that work, if not all of them do.
        needs: another flag, or torchrun, without which this one does nothing.
    """

    outcome: bool = False
    range: Range | None = None
    only: tuple[str, ...] = ()
    needs: str = ""


OUTCOME = Flag(outcome=True)

WORKING = {
    # The batch counts with the number of GPUs, see ``outcome``.
    "per_device_train_batch_size": Flag(range=COUNT),
    "per_device_eval_batch_size": Flag(range=COUNT),  # mining's
    "gradient_accumulation_steps": Flag(True, COUNT),
    "dataloader_drop_last": OUTCOME,
    "train_sampling_strategy": Flag(True, only=("random", "sequential")),
    "num_train_epochs": Flag(True, STEPS),
    "max_steps": Flag(True, COUNT),
    "learning_rate": Flag(True, RATE),
    "weight_decay": Flag(True, RATE),
    "adam_beta1": Flag(True, BETA),
    "adam_beta2": Flag(True, BETA),
    "adam_epsilon": Flag(True, EPSILON),
    "max_grad_norm": Flag(True, CLIP),
    "lr_scheduler_type": OUTCOME,
    "lr_scheduler_kwargs": OUTCOME,
    "warmup_steps": Flag(True, WARMUP),
    "seed": Flag(True, SEED),
    "data_seed": Flag(True, SEED),
    "full_determinism": OUTCOME,
    "bf16": OUTCOME,
    "fp16": OUTCOME,
    "tf32": OUTCOME,
    "output_dir": Flag(),
    "do_train": Flag(),
    "resume_from_checkpoint": Flag(),
    "use_cpu": Flag(),
    "save_strategy": Flag(only=("no", "steps", "epoch")),
    "save_steps": Flag(range=STEPS),
    "save_total_limit": Flag(range=NATURAL),
    "logging_strategy": Flag(),
    "logging_steps": Flag(range=STEPS),
    "logging_first_step": Flag(),
    "log_level": Flag(),
    "log_level_replica": Flag(),
    "log_on_each_node": Flag(),
    "disable_tqdm": Flag(),
    "report_to": Flag(),
    "run_name": Flag(needs="--report_to"),
    "gradient_checkpointing": Flag(),
    "activation_checkpointing": Flag(),
    "torch_empty_cache_steps": Flag(range=COUNT),
    "dataloader_num_workers": Flag(range=PROCESSES),
    "dataloader_pin_memory": Flag(),
    "dataloader_prefetch_factor": Flag(range=Range(1, 1000), needs="--dataloader_num_workers"),
    "dataloader_persistent_workers": Flag(needs="--dataloader_num_workers"),
    "dataloader_multiprocessing_context": Flag(needs="--dataloader_num_workers"),
    "local_rank": Flag(),  # which of several processes this is; torchrun says so
    "ddp_find_unused_parameters": Flag(needs="torchrun"),
    "ddp_bucket_cap_mb": Flag(range=COUNT, needs="torchrun"),
    "ddp_broadcast_buffers": Flag(needs="torchrun"),
    "ddp_static_graph": Flag(needs="torchrun"),
    "ddp_backend": Flag(needs="torchrun"),
    "ddp_timeout": Flag(range=Range(1, 10**7), needs="torchrun"),
}

OWN = {  # of star/train.py
    "logging_dir": Flag(),
    "overwrite_output_dir": Flag(),
    "no_cuda": Flag(),
    "optimizer_str": OUTCOME,
    "padding": OUTCOME,
    "chunk_size": Flag(True, NATURAL),  # the two decide what dropout draws
}

DATA = {  # of star/train.py too
    "max_query_length": Flag(True, LENGTH),
    "max_doc_length": Flag(True, LENGTH),
    "negatives": OUTCOME,
    "per_query_hard_num": Flag(True, COUNT),
    "preprocess_dir": Flag(),
    "init_path": Flag(),
    "hardneg_path": Flag(),
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


def check_flags(arguments: Any, flags: dict[str, Flag]) -> None:
    """Raise InputError for the first flag that does not work, or whose value makes no sense.

    Args:
        arguments: a dataclass whose fields are flags, before anything was derived from them.
        flags: those that work.
    """
    given = {
        field.name
        for field in dataclasses.fields(arguments)
        if field.init and not _is_default(field, getattr(arguments, field.name))
    }
    present = {f"--{name}" for name in given} | ({"torchrun"} if "LOCAL_RANK" in os.environ else set())
    for name in sorted(given & REFUSED.keys()):
        raise InputError(f"--{name} {REFUSED[name]}")
    for name, flag in flags.items():
        value = getattr(arguments, name)
        if flag.range and value is not None and name in given:
            flag.range.check(f"--{name}", value)
        if flag.only and value not in flag.only:
            raise InputError(f"--{name} {value} does not work; give one of {', '.join(flag.only)}")
        if flag.needs and name in given and flag.needs not in present:
            raise InputError(f"--{name} does nothing without {flag.needs}; leave it out")


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    # Where a field takes texts and other types, transformers' parser may make None or False of the default.
    return value is None or value == default or (value is False and default == "no")


def check_unknown(words: list[str]) -> None:
    """Raise InputError if ``words``, which no flag has taken, begin with a flag of an earlier transformers."""
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name in FORMER:
            raise InputError(f"--{name} {FORMER[name]}")


def outcome(arguments: Any, flags: dict[str, Flag]) -> dict[str, Any]:
    """The values of the flags that decide the outcome, as JSON knows them."""
    values = {name: getattr(arguments, name) for name, flag in flags.items() if flag.outcome}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
