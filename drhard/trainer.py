"""The Trainer of a static training: transformers' own, with the pairwise loss, LAMB or AdamW, and whole checkpoints."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from drhard import processes
from drhard.checkpoints import STATE_FILE, checkpoint_folder, keep_newest
from drhard.encoder import Encoder, embed_groups
from drhard.files import remove_folder, write_whole_folder
from drhard.lamb import Lamb
from drhard.losses import pairwise_loss
from drhard.model_folder import list_model_files, load_encoder, save_encoder
from drhard.provenance import write_seal
from drhard.sampling import TrainingDataset
from drhard.training import Events, LossCheck, check_trained, group_parameters, seed_dropout, warn_of_long_warmup
from drhard.validation import BEST_FOLDER, Validation

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from transformers import (
    IntervalStrategy,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback


class EpochDraws(TrainerCallback):
    """Tells the data set its epoch. The Trainer itself does not if it resumes in the middle of an epoch."""

    def __init__(self, dataset: TrainingDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the epoch of the data set."""
        self.dataset.set_epoch(int(state.epoch or 0))


class DropoutDraws(TrainerCallback):
    """Seeds the random numbers of each update, if several processes share it."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seed torch's random numbers."""
        seed_dropout(args.seed, state.global_step)


class TrainingLines(ProgressCallback):
    """Shows a bar. Prints a line of JSON with the step and its numbers whenever the Trainer logs."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                dynamic_ncols=True,
                disable=args.disable_tqdm,
                unit="step",
                desc="training",
            )

    def close(self) -> None:
        """Close the bar, so that an error message starts on a line of its own."""
        if self.training_bar is not None:
            self.training_bar.close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Print a line of JSON."""
        if state.is_world_process_zero and self.training_bar is not None:
            numbers = {name: float(f"{value:.4g}") for name, value in (logs or {}).items() if name != "total_flos"}
            self.training_bar.write(json.dumps({"step": state.global_step} | numbers))


class EventsCallback(TensorBoardCallback):
    """Writes TensorBoard's events with :class:`drhard.training.Events`, which report a full disk clearly."""

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        """Write the settings."""
        with self.tb_writer.faults():
            super().on_train_begin(*arguments, **options)

    def on_log(self, *arguments: Any, **options: Any) -> None:
        """Write the numbers of a step."""
        with self.tb_writer.faults():
            super().on_log(*arguments, **options)


class Validating(TrainerCallback):
    """Measures the model of a training and keeps the best. Ends the training when its patience is exhausted.

    Args:
        evaluate: returns the measure of the present model.
    """

    def __init__(self, validation: Validation, evaluate: Callable[[], float]):
        self.validation, self.evaluate = validation, evaluate

    def resume(self, state: TrainerState, folder: Path) -> None:
        """Take over the evaluations that a checkpoint knows, in the ``folder`` of the training."""
        name = f"eval_{self.validation.name}"
        self.validation.resume([(entry["step"], entry[name]) for entry in state.log_history if name in entry], folder)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure the last step too."""
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the training when its patience is exhausted."""
        if self.validation.is_exhausted:
            control.should_training_stop = True


class StaticTrainer(Trainer):
    """transformers' Trainer with the pairwise loss, the published optimizers and whole checkpoints.

    Args:
        optimizer_str: "lamb" or "adamw".
        tokenizer_from: the folder of the checkpoint to copy tokenizer files from into each checkpoint.
        score_scale: the factor of the scores in the loss.
        in_chunks: keep the activations of one group of sequences at a time, for large batches in small memory.
        record: the settings and input that decide the outcome, for the seals of checkpoints.
        events: TensorBoard's events; None to write none.
        validating: measures the model; None to measure nothing.
        arguments: the arguments of Trainer. The data collator must be a :class:`drhard.sampling.Collator`.
    """

    loss = staticmethod(pairwise_loss)  # a derived class may replace it

    def __init__(
        self,
        *,
        optimizer_str: str,
        tokenizer_from: Path,
        score_scale: float,
        in_chunks: bool,
        record: Mapping[str, Any],
        events: Events | None = None,
        validating: Validating | None = None,
        **arguments: Any,
    ):
        # The Trainer asks for a data set if it is to evaluate; evaluate() has its own.
        super().__init__(eval_dataset=arguments["train_dataset"], **arguments)
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)
        self.lines = TrainingLines()
        self.add_callback(self.lines)
        if events is not None:
            self.add_callback(EventsCallback(events))
        self.add_callback(EpochDraws(self.train_dataset))
        self.add_callback(DropoutDraws())
        self.validating = validating
        if validating is not None:
            self.add_callback(validating)
        self.optimizer_str = optimizer_str
        self.tokenizer_from = tokenizer_from
        self.score_scale = score_scale
        self.in_chunks = in_chunks
        self.record = record
        self.loss_check = LossCheck()

    def complete(self, checkpoint: Path | None) -> None:
        """Train to the end, from ``checkpoint`` or from the start, and write the model.

        Raises:
            InputError: a loss or a weight is not finite, or a disk is full.
        """
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE)) if checkpoint else None
        if state and self.validating:
            self.validating.resume(state, Path(self.args.output_dir))
            self.args.eval_on_start = False
        stopped_early = self.validating is not None and self.validating.validation.is_exhausted
        if state and (state.global_step >= state.max_steps or stopped_early):  # the Trainer would take another step
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
        else:
            try:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            finally:
                self.lines.close()
        self.save_model()
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            write_seal(folder, self.state.global_step, self.record, list_model_files(folder))

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Return the loss of a batch that :class:`drhard.sampling.Collator` made.

        Several processes embed a part of the batch each, and gather the embeddings E = (E_0, E_1, ...) of all. Each
        then computes the same loss L(E) of the whole batch. E_r alone depends on what process r computed, so its
        backward pass gives the gradient g_r = dL/dE_r dE_r/dw. The gradient of L is the sum of all g_r by the chain
        rule, not their mean: see :meth:`training_step`.
        """
        negatives = inputs["negatives"]  # (B, D)
        queries = self._embed(model, inputs["query"])  # (b, dim)
        documents = self._embed(model, inputs["document"])  # (d, dim)
        with torch.autocast(queries.device.type, enabled=False):  # scores are float32 under mixed precision too
            queries, documents = _gather_batch(queries.float(), documents.float(), *negatives.shape)
            scores = queries @ documents.T * self.score_scale  # (B, D)
            positive = torch.arange(len(scores), device=scores.device)
            loss = self.loss(scores, positive, negatives)
        self.loss_check.note(loss, self.state.global_step + 1)
        return (loss, None) if return_outputs else loss

    def _embed(self, model: torch.nn.Module, sequences: Mapping[str, Any]) -> torch.Tensor:
        if not sequences["groups"]:  # this process has no part of the batch
            return torch.zeros(0, self.model.output_embedding_size, device=self.args.device, requires_grad=True)
        with self.accelerator.autocast():
            return embed_groups(model, **sequences, recompute=self.in_chunks)

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Add this batch to the gradient. After the last batch of an update, sum the gradients of all processes.

        Each process has accumulated the sum of g_r over the batches of the update, and the Trainer has divided each
        by their number. So one sum over the processes gives the gradient that one process alone would have.
        """
        loss: torch.Tensor = super().training_step(*arguments, **options)
        if self.accelerator.sync_gradients:
            processes.sum_gradients(self.model.parameters())
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the model and keep it if it is the best. The Trainer calls it when an evaluation is due."""
        assert self.validating is not None
        validation, step = self.validating.validation, self.state.global_step
        self.loss_check.check()
        value = self.validating.evaluate()
        if validation.add(step, value) and step > 0 and processes.is_first():
            self._save_encoder(Path(self.args.output_dir) / BEST_FOLDER, validation.notes())
        measured = {f"eval_{validation.name}": value}
        self.log(measured)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, measured)
        return measured

    control: TrainerControl
    optimizer: Optimizer | None

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Optimizer:
        """Return LAMB or AdamW, without decay for biases and for LayerNorm weights inside RoBERTa."""
        if self.optimizer is None:
            kind: Any = {"lamb": Lamb, "adamw": AdamW}[self.optimizer_str]
            self.optimizer = kind(
                group_parameters(cast(Encoder, model or self.model), self.args.weight_decay),
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return cast(Optimizer, self.optimizer)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Return the Trainer's scheduler. Warn if its warm-up is as long as the training."""
        warn_of_long_warmup(self.args.get_warmup_steps(num_training_steps), num_training_steps)
        return cast(LRScheduler, super().create_scheduler(num_training_steps, optimizer))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log numbers, except those that are not finite: mixed precision skips a step whose gradient norm is not.

        Raises:
            InputError: the loss of a step was not finite.
        """
        self.loss_check.check()
        super().log({name: value for name, value in logs.items() if math.isfinite(value)}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint folder for ``from_pretrained``. Raises InputError if a weight is not finite."""
        if self.args.should_save:
            self._save_encoder(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load the weights of a checkpoint. The Trainer itself does not find those of heads, which have own files."""
        weights = load_encoder(resume_from_checkpoint).state_dict()
        self.accelerator.unwrap_model(model or self.model).load_state_dict(weights)

    def _save_encoder(self, folder: Path, notes: Mapping[str, object] | None = None) -> None:
        self.loss_check.check()
        model = self.accelerator.unwrap_model(self.model)
        check_trained(model, self.state.global_step)
        save_encoder(model, folder, self.tokenizer_from, notes)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint. Its folder gets its final name once it is whole, and only then an older one is removed.

        The first of several processes writes it. All have the same weights and optimizer.
        """
        output_dir, step = Path(self.args.output_dir), self.state.global_step
        target = checkpoint_folder(output_dir, step)
        self.store_flos()
        if not processes.is_first():
            return
        if target.is_dir():  # not whole, or the training resumed from an earlier one
            remove_folder(target)
        with write_whole_folder(target) as folder:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / STATE_FILE))
            files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
            write_seal(folder, step, self.record, files)
        keep_newest(output_dir, step, self.args.save_total_limit)


def _gather_batch(
    queries: torch.Tensor, documents: torch.Tensor, batch: int, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the embeddings of a batch, in the order that one process alone would have.

    Args:
        queries: (b, dim) of this process.
        documents: (d, dim) of this process: the positives, then the drawn negatives.
        batch: B, the queries of all processes.
        total: D, the documents of all processes.

    Returns:
        (B, dim) and (D, dim).
    """
    own, sizes, drawn = len(queries), processes.split(batch), total // batch - 1
    positives = processes.gather(documents[:own], sizes)
    negatives = processes.gather(documents[own:], [size * drawn for size in sizes])
    return processes.gather(queries, sizes), torch.cat([positives, negatives])
