"""Make transformers' TrainingArguments from the flags of star/train.py."""

import json
import logging
from argparse import Namespace
from dataclasses import fields

from drhard import processes
from drhard.devices import choose_device
from drhard.errors import InputError, reason_of
from drhard.trainer_flags import WORKING

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import INTEGRATION_TO_CALLBACK

log = logging.getLogger(__name__)

# A batch of 256 queries takes 40 ms of a core to make. By arithmetic, its step takes 54 ms on an H100 in bfloat16:
# 42,000 tokens, 0.51 GFLOP each, 400 TFLOP/s.
GPU_WORKERS = 2
CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")  # names in transformers 5, the newer one first


class OneOfSeveral(TrainingArguments):
    """The arguments of one process. For the Trainer it trains alone, on the batches of all processes together.

    So epochs, steps and the order of the queries are those of one process. :class:`drhard.sampling.Collator` keeps
    this process's part of a batch. Only the first process writes and logs.
    """

    @property
    def process_index(self) -> int:
        """The rank of this process."""
        return processes.rank()

    @property
    def local_process_index(self) -> int:
        """The rank too: no process but the first writes, on no machine."""
        return processes.rank()


def trainer_arguments(flags: Namespace) -> TrainingArguments:
    """Make the arguments of Trainer.

    Args:
        flags: each flag of ``WORKING``, ``no_cuda`` and ``eval_split``.

    Raises:
        InputError: flags contradict each other, or need a package or a GPU that is missing.
    """
    on_gpu = choose_device(flags.use_cpu or flags.no_cuda).type != "cpu"
    values = {name: getattr(flags, name) for name in WORKING if name not in CHECKPOINTING}
    if flags.dataloader_num_workers is None:
        values["dataloader_num_workers"] = GPU_WORKERS if on_gpu else 0
    values |= {
        "per_device_train_batch_size": flags.per_device_train_batch_size * processes.count(),
        "use_cpu": not on_gpu,
        _known_checkpointing(): bool(flags.activation_checkpointing or flags.gradient_checkpointing),
        "dataloader_pin_memory": flags.dataloader_pin_memory and on_gpu,
        # The GPU copies a batch from pinned memory while Python goes on.
        "accelerator_config": {"non_blocking": flags.dataloader_pin_memory and on_gpu},
        "report_to": _loggers(flags.report_to),
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,  # the training stops at the first loss that is not finite
    }
    if flags.eval_split:
        values |= {"eval_strategy": "steps" if flags.eval_steps else "epoch", "eval_on_start": True}
    if flags.fp16 and not on_gpu:
        log.warning("--fp16 needs a GPU; using float32")
        values["fp16"] = False
    if flags.bf16 and not on_gpu:
        raise InputError("--bf16 needs a GPU; omit it")
    try:
        args = OneOfSeveral(**values)
    except json.JSONDecodeError as error:
        raise InputError(f"--lr_scheduler_kwargs: not JSON ({error})") from None
    except (ValueError, TypeError, OSError) as error:  # flags contradict each other
        raise InputError(reason_of(error)) from None
    _check_scheduler(args)
    if args.n_gpu > 1:
        log.warning(
            "uses one of %d GPUs; to use all, start a process for each with torchrun --nproc_per_node %d and divide "
            "--per_device_train_batch_size by %d",
            *[args.n_gpu] * 3,
        )
        args._n_gpu = 1
    return args


def _known_checkpointing() -> str:
    """Return the name that the installed transformers has for --gradient_checkpointing."""
    known = {field.name for field in fields(TrainingArguments)}
    return next(name for name in CHECKPOINTING if name in known)


def _loggers(names: list[str]) -> list[str]:
    """Return the loggers that the Trainer writes to, without TensorBoard. :class:`EventsCallback` writes its events."""
    if names == ["none"]:
        return []
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"--report_to {name}: give none, or some of {', '.join(INTEGRATION_TO_CALLBACK)}")
    others = [name for name in names if name != "tensorboard"]
    for name in others:
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:  # it is not installed
            raise InputError(f"--report_to {name}: {reason_of(error)}") from None
    return others


def _check_scheduler(args: TrainingArguments) -> None:
    """Raise InputError if --lr_scheduler_kwargs does not fit --lr_scheduler_type."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, args.lr_scheduler_kwargs)
    except Exception as error:  # the type depends on the schedule
        raise InputError(
            f"--lr_scheduler_type {args.lr_scheduler_type.value} with --lr_scheduler_kwargs "
            f"{args.lr_scheduler_kwargs}: {reason_of(error)}"
        ) from None
