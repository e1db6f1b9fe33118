"""ADORE: train the query encoder with hard negatives that it retrieves itself at every step."""

import json
import logging
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from drhard import processes
from drhard.adore_settings import AdoreOutput, AdoreSettings
from drhard.adore_state import STATE_FILE, WAY_OUT, read_state, write_state
from drhard.checkpoints import RECORD_FILE
from drhard.collection import Collection
from drhard.embeddings import digest_embeddings
from drhard.encoder import Encoder, adopt_prompts, check_tokens, model_inputs
from drhard.errors import InputError
from drhard.files import remove_unfinished, write_json
from drhard.hub import CONFIG_FILE
from drhard.index import Index
from drhard.losses import adore_loss
from drhard.model_folder import save_encoder
from drhard.parts import SharedIndex
from drhard.provenance import check_record, digest_record
from drhard.shards import read_vectors
from drhard.tokens import TokenMemmap
from drhard.training import (
    DIVERGED,
    Events,
    LossCheck,
    check_trained,
    choose_scale,
    group_parameters,
    make_record,
    seed_dropout,
    warn_of_long_warmup,
)
from drhard.validation import BEST_FOLDER, Validation

import numpy as np
import torch
from torch.optim import AdamW
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

log = logging.getLogger(__name__)

LOGGED_CUT = 10  # cut of the MRR and recall in TensorBoard
EMBEDDED_AT_ONCE = 128  # queries of a validation


class Candidates:
    """The retrieved documents of a batch of queries. If none of them is relevant, relevant ones are appended.

    Attributes:
        rows: (Q, C) int64 document rows; 0 where nothing is listed, for instance where ``retrieved`` is -1.
        listed: (Q, C) bool.
        relevant: (Q, C) bool.
    """

    def __init__(self, retrieved: np.ndarray, relevant: Sequence[Sequence[int]]):
        hits = np.stack([np.isin(rows, wanted) for rows, wanted in zip(retrieved, relevant, strict=True)])
        appended = [[] if hit.any() else wanted for hit, wanted in zip(hits, relevant, strict=True)]
        count, topk = retrieved.shape
        width = topk + max(map(len, appended))
        self.rows = np.zeros((count, width), dtype=np.int64)
        self.listed = np.zeros((count, width), dtype=bool)
        self.relevant = np.zeros((count, width), dtype=bool)
        self.rows[:, :topk] = np.maximum(retrieved, 0)
        self.listed[:, :topk], self.relevant[:, :topk] = retrieved >= 0, hits
        for query, wanted in enumerate(appended):
            behind = slice(topk, topk + len(wanted))
            self.rows[query, behind] = wanted
            self.listed[query, behind] = self.relevant[query, behind] = True


def measure_retrieval(retrieved: np.ndarray, relevant: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return MRR@10 and recall@10 of ``retrieved`` (Q, k), as means over the batch."""
    reciprocal, recall = 0.0, 0.0
    for rows, wanted in zip(retrieved[:, :LOGGED_CUT], relevant, strict=True):
        places = np.flatnonzero(np.isin(rows, wanted))
        reciprocal += 1 / (places[0] + 1) if len(places) else 0.0
        recall += len(places) / len(wanted)
    return reciprocal / len(retrieved), recall / len(retrieved)


class StopRequest:
    """While entered, a first Ctrl-C or SIGTERM only sets ``noted``, so that a step can end. A second one interrupts."""

    def __enter__(self) -> "StopRequest":
        self.noted = False
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, *_: Any) -> None:
        self.noted = True
        self.__exit__()

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class Means:
    """Means of named numbers over the steps since the last :meth:`take`. Numbers on a GPU stay there until then."""

    def __init__(self) -> None:
        self._seen: list[dict[str, float | torch.Tensor]] = []

    def add(self, values: dict[str, float | torch.Tensor]) -> None:
        """Add the numbers of a step."""
        self._seen.append(values)

    def take(self) -> dict[str, float]:
        """Return the means, and start over."""
        seen, self._seen = self._seen, []
        found = {name: [values[name] for values in seen] for name in seen[0]}
        return {name: _mean(values) for name, values in found.items()}


def _mean(values: Sequence[float | torch.Tensor]) -> float:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    read = torch.stack(tensors).tolist() if tensors else []  # all at once
    return float(np.mean([value for value in values if not isinstance(value, torch.Tensor)] + read))


@dataclass(frozen=True)
class AdoreInput:
    """What an ADORE training learns from.

    Attributes:
        collection: the train queries.
        relevant: query row -> relevant document rows. These are the queries to train on.
        documents: (N, dim) float32 embeddings.
        index: an index of the documents. It may be compressed; the loss uses the exact vectors.
        index_outcome: what decides which documents the index finds, as :meth:`SearchSettings.outcome` says it.
        validation: measures the model; None to measure nothing.
    """

    collection: Collection
    relevant: Mapping[int, Sequence[int]]
    documents: np.ndarray
    index: Index
    index_outcome: str
    validation: Validation | None = None

    @property
    def queries(self) -> TokenMemmap:
        """The tokens of the train queries."""
        return self.collection.queries("train")

    def vectors(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """Return the documents (q, C, dim) of this process's queries on ``device``: from GPUs if these hold them.

        Args:
            rows: (Q, C) int64, of the queries of all processes.
        """
        if isinstance(self.index, SharedIndex):
            return self.index.fetch(rows, device)
        return read_vectors(self.index, self.documents, rows[processes.own_part(len(rows))], device)


class AdoreTraining:
    """An ADORE training. :meth:`open` resumes one that was stopped, :meth:`run` trains to the end.

    Args:
        model: the query encoder, on its device. An encoder with the same weights embedded the documents.

    Attributes:
        record: the settings and input that decide the outcome. A training resumes only if all of this is the same.
        step: the number of batches done.

    Raises:
        InputError: sequences are too long for the model, or the settings give no update.
    """

    loss = staticmethod(adore_loss)  # a derived class may replace it

    def __init__(self, model: Encoder, data: AdoreInput, settings: AdoreSettings, output: AdoreOutput):
        for queries in (data.queries, *([data.validation.queries] if data.validation else [])):
            check_tokens(model, queries)
        adopt_prompts(model, data.queries, *([data.collection.passages] if data.collection.has_passages else []))
        self.model, self.device = model.train(), model.device
        self.score_scale = choose_scale(model, settings.score_scale)
        # From here on, a batch is that of all processes together, for the record too.
        batch_size = settings.per_gpu_batch_size * processes.count()
        settings = replace(settings, score_scale=self.score_scale, per_gpu_batch_size=batch_size)
        self.data, self.settings, self.output = data, settings, output
        self.record = self._make_record()
        self.state_path = output.model_save_dir / STATE_FILE
        self.query_rows = np.array(sorted(data.relevant))
        self.steps_per_epoch = -(-len(self.query_rows) // settings.per_gpu_batch_size)
        self.total_steps = self.steps_per_epoch * settings.num_train_epochs
        updates = self.total_steps // settings.gradient_accumulation_steps
        if updates == 0:
            raise InputError(
                f"--gradient_accumulation_steps is {settings.gradient_accumulation_steps}, but the training has only "
                f"{self.total_steps} batches and would never update; lower it"
            )
        self.optimizer = AdamW(
            group_parameters(model, settings.weight_decay), lr=settings.learning_rate, eps=settings.adam_epsilon
        )
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, settings.warmup_steps, updates)
        self.step = 0
        self.loss_check = LossCheck()
        self._epoch_order: tuple[int, np.ndarray] = -1, self.query_rows  # the present epoch and its order
        warn_of_long_warmup(settings.warmup_steps, updates)

    @classmethod
    def open(cls, model: Encoder, data: AdoreInput, settings: AdoreSettings, output: AdoreOutput) -> Self:
        """Open the training in ``output.model_save_dir``. Load its state if it was stopped there.

        The caller must be the sole writer of the folder; of several processes, the first must be.

        Raises:
            InputError: as the constructor; the state in the folder is damaged, or belongs to a training with other
                settings; or the processes have different input, or do not see the same folder.
        """
        training = cls(model, data, settings, output)
        training._resume()
        return training

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the last checkpoint exists. Several processes must ask together."""
        return processes.first_value(lambda: self._ended and (self.newest / CONFIG_FILE).exists())

    @property
    def _ended(self) -> bool:
        validation = self.data.validation
        return self.step == self.total_steps or (validation is not None and validation.is_exhausted)

    @property
    def newest(self) -> Path:
        """The folder of the newest checkpoint: of the last epoch, or of the step at which the training stopped."""
        epochs, steps = divmod(self.step, self.steps_per_epoch)
        return self._checkpoint(self.step) if steps else self._epoch(epochs)

    def run(self) -> None:
        """Train to the end. The caller must be the sole writer of the folder.

        Raises:
            InputError: a loss or a weight is not finite, or a disk is full.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
        """
        if self.step == 0:
            torch.manual_seed(self.settings.seed)
            self._save_state()  # marks the folder as this training's
            if processes.is_first():
                write_json(self.output.model_save_dir / RECORD_FILE, self.record, indent=1)
        means = Means()
        saved_at = time.monotonic()
        with self._events() as events, StopRequest() as stop, self._bar() as bar:
            self._measure_if_due(events)
            while not self._ended:
                means.add(self._train_step(self._batch_rows(self.step)))
                self.step += 1
                bar.update()
                if self.step % self.output.logging_steps == 0:
                    self.loss_check.check()
                    values = means.take()
                    values["loss"] = sum(processes.gather_numbers(values["loss"]))
                    if events is not None:
                        events.add({f"train/{name}": value for name, value in values.items()}, self.step)
                    bar.set_postfix({name: f"{values[name]:.4g}" for name in ("loss", "mrr_10")})
                self._save_what_is_due()
                self._measure_if_due(events)
                if self._between_updates():
                    stopped = any(processes.gather_numbers(int(stop.noted)))  # all stop after the same step
                    if stopped or time.monotonic() - saved_at > self.output.state_seconds:
                        self._save_state()
                        saved_at = time.monotonic()
                    if stopped:
                        raise KeyboardInterrupt
        if not self.finished:  # it stopped within an epoch, or somebody moved the last checkpoint away
            self._save(self.newest)
        self._save_state()

    def _events(self) -> AbstractContextManager[Events | None]:
        return Events(self.output.log_dir, self.step) if processes.is_first() else nullcontext()

    def _bar(self) -> "tqdm[Any]":
        return tqdm(total=self.total_steps, initial=self.step, desc="training", unit="step")

    def _train_step(self, rows: np.ndarray) -> dict[str, float | torch.Tensor]:
        """Take a step. Python waits for a GPU only once, for the query vectors that the search needs.

        Each process embeds some of the queries and computes their part of the loss. It is a sum over queries, so its
        gradient is the sum of the gradients of all processes.
        """
        data, settings = self.data, self.settings
        relevant, own = [data.relevant[row] for row in rows.tolist()], processes.own_part(len(rows))
        queries = self._embed_with_dropout(rows[own])

        searched = processes.gather(queries.detach().float().cpu(), processes.split(len(rows)))
        if not searched.isfinite().all():
            self.loss_check.check()
            raise InputError(f"step {self.step + 1}: the query vectors are not finite; {DIVERGED}")
        _, retrieved = data.index.search(searched.numpy(), settings.neg_topk)
        candidates = Candidates(retrieved, relevant)
        vectors = data.vectors(candidates.rows, self.device)
        scores = torch.einsum("qd,qcd->qc", queries, vectors) * self.score_scale
        loss = self.loss(
            scores,
            torch.from_numpy(candidates.relevant[own]),
            torch.from_numpy(candidates.listed[own]),
            settings.metric_cut,
        )
        loss = loss / settings.per_gpu_batch_size  # published: the nominal size, even if the last batch is smaller
        self.loss_check.note(loss, self.step + 1)
        (loss / settings.gradient_accumulation_steps).backward()

        rate = self.scheduler.get_last_lr()[0]
        if (self.step + 1) % settings.gradient_accumulation_steps == 0:
            processes.sum_gradients(self.model.parameters())
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        mrr, recall = measure_retrieval(retrieved, relevant)
        return {"loss": loss.detach(), "mrr_10": mrr, "recall_10": recall, "lr": rate}

    def _embed_with_dropout(self, rows: np.ndarray) -> torch.Tensor:
        """Return the embeddings (q, dim) of queries of this process, perhaps of none."""
        seed_dropout(self.settings.seed, self.step)
        if len(rows) == 0:
            return torch.zeros(0, self.model.output_embedding_size, device=self.device, requires_grad=True)
        ids, mask = self.data.queries.batch(rows, self.model.config.pad_token_id)
        embeddings: torch.Tensor = self.model(*model_inputs(ids, mask, self.device))
        return embeddings

    def _batch_rows(self, step: int) -> np.ndarray:
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._epoch_order[0] != epoch:
            shuffled = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.query_rows))
            self._epoch_order = epoch, shuffled
        order = self._epoch_order[1]
        size = self.settings.per_gpu_batch_size
        rows: np.ndarray = self.query_rows[order[batch * size : (batch + 1) * size]]
        return rows

    def _between_updates(self) -> bool:
        return self.step % self.settings.gradient_accumulation_steps == 0

    def _save_what_is_due(self) -> None:
        if self.step % self.output.save_steps == 0:
            self._save(self._checkpoint(self.step))
        if self.step % self.steps_per_epoch == 0:
            self._save(self._epoch(self.step // self.steps_per_epoch))

    def _save(self, folder: Path, notes: Mapping[str, object] | None = None) -> None:
        if not processes.is_first():
            return
        self._check_trained()
        save_encoder(self.model, folder, self.output.tokenizer_from, notes)

    def _measure_if_due(self, events: Events | None) -> None:
        """Measure the model before the first step, after each epoch or so many steps, and after the last step."""
        validation, every = self.data.validation, self.settings.eval_steps or self.steps_per_epoch
        if validation is None or (self.step % every and self.step < self.total_steps):
            return
        if validation.evaluations and validation.evaluations[-1].step == self.step:  # before the training was stopped
            return
        self.loss_check.check()
        _, found = self.data.index.search(self._embed(validation.queries), validation.depth)
        value = validation.measure(found)
        if validation.add(self.step, value) and self.step > 0:
            self._save(self.output.model_save_dir / BEST_FOLDER, validation.notes())
        if events is not None:
            events.add({f"eval/{validation.name}": value}, self.step)
        tqdm.write(json.dumps({"step": self.step, f"eval_{validation.name}": float(f"{value:.4g}")}))

    def _embed(self, tokens: TokenMemmap) -> np.ndarray:
        """Return the embeddings of all rows, (rows, dim) float32, without dropout."""
        embeddings = np.empty((len(tokens), self.model.output_embedding_size), dtype=np.float32)
        self.model.eval()
        with torch.inference_mode():
            for rows in np.array_split(np.argsort(tokens.lengths, kind="stable"), -(-len(tokens) // EMBEDDED_AT_ONCE)):
                ids, mask = tokens.batch(rows, self.model.config.pad_token_id)
                found = self.model(*model_inputs(ids, mask, self.device))
                embeddings[rows] = found.float().cpu().numpy()
        self.model.train()
        return embeddings

    def _checkpoint(self, step: int) -> Path:
        return self.output.model_save_dir / f"checkpoint-{step}"

    def _epoch(self, number: int) -> Path:
        return self.output.model_save_dir / f"epoch-{number}"

    # Resuming

    def _make_record(self) -> dict[str, Any]:
        data = self.data
        return {
            **make_record(self.model, data.queries, data.relevant, self.loss),
            **asdict(self.settings),
            "max_seq_length": data.queries.max_length,
            "document vectors": digest_embeddings(data.documents),
            "index": data.index_outcome,
        }

    def _check_trained(self) -> None:
        self.loss_check.check()
        check_trained(self.model, self.step)

    def _save_state(self) -> None:
        if not processes.is_first():
            return
        self._check_trained()
        state = {
            "record": self.record,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "evaluations": list(map(list, self.data.validation.evaluations)) if self.data.validation else [],
        }
        write_state(self.state_path, state)

    def _resume(self) -> None:
        """Load the state of a training that was stopped in the folder, if there is one."""
        folder = self.output.model_save_dir
        processes.require_same(digest_record(self.record), "models, data or flags")
        processes.require_shared(folder)
        if processes.first_value(self._has_state):
            self._load_state()
        processes.wait_for_all()  # the first process may write the state from now on

    def _has_state(self) -> bool:
        """Return whether a training was stopped in the folder. Remove what it left half-written."""
        folder = self.output.model_save_dir
        for pattern in ("epoch-*", "checkpoint-*"):
            remove_unfinished(folder, pattern)
        if not self.state_path.exists():
            if any(any(folder.glob(pattern)) for pattern in ("epoch-*", "checkpoint-*", BEST_FOLDER)):
                raise InputError(f"{folder}: has checkpoints of another training; {WAY_OUT}")
            return False
        return True

    def _load_state(self) -> None:
        folder = self.output.model_save_dir
        state = read_state(self.state_path)
        check_record(folder, state["record"], self.record, WAY_OUT)
        self.step = state["step"]
        if self.data.validation is not None:
            self.data.validation.resume(state["evaluations"], folder)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        log.info("resuming after step %d of %d (%s)", self.step, self.total_steps, self.state_path)
