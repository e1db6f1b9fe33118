"""STAR and its baselines: both encoders trained with negatives that are drawn, not retrieved, by the Trainer."""

import json
import shutil
from pathlib import Path
from typing import Any

from drhard.encoder import embed_in_chunks, save_encoder
from drhard.errors import InputError
from drhard.files import read_object, write_json
from drhard.lamb import Lamb
from drhard.losses import pairwise_loss
from drhard.sampling import StarDataset
from drhard.training import check_record, parameter_groups

import torch
from torch.optim import AdamW, Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

RECORD_FILE = "training.json"  # what a training was begun with
MINING_FOLDER = "mining"  # embeddings of a training that mines its own hard negatives


class EpochDraws(TrainerCallback):
    """Tells the data set its epoch; after a resume in the middle of one, Trainer itself does not."""

    def __init__(self, dataset: StarDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the Trainer."""
        self.dataset.set_epoch(int(state.epoch or 0))


class StarTrainer(Trainer):
    """transformers' Trainer with the pairwise loss, the published optimizers and whole checkpoints.

    Args:
        optimizer_str: "lamb" or "adamw".
        tokenizer_from: the checkpoint whose tokenizer files go into the ones written.
        chunk_size: sequences encoded at a time, for large batches in small memory; 0 for all at once.
        arguments: those of Trainer; the data collator is a :class:`drhard.sampling.StarCollator`.
    """

    def __init__(self, *, optimizer_str: str, tokenizer_from: str | Path, chunk_size: int, **arguments: Any):
        super().__init__(**arguments)
        self.add_callback(EpochDraws(self.train_dataset))
        self.optimizer_str = optimizer_str
        self.tokenizer_from = tokenizer_from
        self.chunk_size = chunk_size

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor | tuple[torch.Tensor, None]:
        """The loss of a batch as :class:`drhard.sampling.StarCollator` makes it."""
        # Under DataParallel, Trainer itself does not turn mixed precision on.
        with self.accelerator.autocast():
            queries = self._embed(model, inputs["query"])  # (B, dim)
            # Positives and the negatives drawn apart, so that neither is padded to the other's length.
            documents = [self._embed(model, inputs[part]) for part in ("positive", "drawn") if inputs[part] is not None]
        with torch.autocast(queries.device.type, enabled=False):  # scores are float32 under mixed precision too
            scores = queries.float() @ torch.cat(documents).float().T  # (B, D)
            positive = torch.arange(len(scores), device=scores.device)
            loss = pairwise_loss(scores, positive, inputs["negatives"])
        return (loss, None) if return_outputs else loss

    def _embed(self, model: torch.nn.Module, sequences: dict[str, torch.Tensor]) -> torch.Tensor:
        return (
            embed_in_chunks(model, **sequences, chunk_size=self.chunk_size) if self.chunk_size else model(**sequences)
        )

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Optimizer:
        """LAMB or AdamW; no decay for biases and LayerNorm weights inside RoBERTa."""
        if self.optimizer is None:
            kind = {"lamb": Lamb, "adamw": AdamW}[self.optimizer_str]
            self.optimizer = kind(
                parameter_groups(model or self.model, self.args.weight_decay),
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint folder that ``from_pretrained`` reads."""
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            save_encoder(model, output_dir or self.args.output_dir, self.tokenizer_from)


def open_training(output_dir: Path, settings: dict[str, str], overwrite: bool) -> str | None:
    """Make ``output_dir`` ready for a training, or find where it was stopped. One process of several calls it.

    Args:
        settings: what decides the outcome; kept in ``training.json``.
        overwrite: remove what an earlier training left.

    Returns:
        The last whole checkpoint of this very training, None if there is none yet.

    Raises:
        InputError: a finished model is there, or a training with other settings was begun there.
    """
    record = output_dir / RECORD_FILE
    if overwrite:
        for folder in (*output_dir.glob("checkpoint-*"), output_dir / MINING_FOLDER):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("config.json", "model.safetensors", RECORD_FILE):
            (output_dir / name).unlink(missing_ok=True)
    way_out = "give --overwrite_output_dir to start anew, or name another --output_dir"
    if (output_dir / "config.json").exists():
        raise InputError(f"{output_dir}: there is a finished model already; {way_out}")
    checkpoint = last_checkpoint(output_dir)
    if checkpoint:
        if not record.exists():
            raise InputError(f"{output_dir}: there are checkpoints of another training; {way_out}")
        check_record(output_dir, read_object(record, {}, way_out), settings, way_out)
    write_json(record, settings, indent=1)
    return checkpoint


def last_checkpoint(output_dir: Path) -> str | None:
    """The last whole checkpoint in a folder, None if there is none."""
    steps = []
    for path in output_dir.glob("checkpoint-*/trainer_state.json"):  # Trainer writes it last
        try:
            steps.append(int(json.loads(path.read_text())["global_step"]))
        except (ValueError, KeyError):
            continue  # cut off while it was written
    return str(output_dir / f"checkpoint-{max(steps)}") if steps else None
