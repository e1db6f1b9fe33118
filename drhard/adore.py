"""ADORE: the query encoder trained with the hard negatives that its own retrieval brings up at every step."""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drhard.encoder import RobertaDot, check_tokens, save_encoder, weights_digest
from drhard.errors import InputError
from drhard.files import whole_file
from drhard.losses import adore_loss
from drhard.search import Index
from drhard.tokens import TokenMemmap, sample_digest
from drhard.training import check_record, parameter_groups

import numpy as np
import torch
from torch.optim import AdamW
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

log = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
STATE_SECONDS = 600  # between two writings of the state, so that little is lost when a machine goes down
LOGGED_CUT = 10  # of the MRR and recall that TensorBoard shows


@dataclass(frozen=True)
class AdoreSettings:
    """What decides the outcome of a training; a training can be resumed with the very same only."""

    neg_topk: int = 200  # documents retrieved for a query at each step
    metric_cut: int | None = None  # rank beyond which the metric counts nothing; None: no cut
    batch_size: int = 32  # queries
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-6
    weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    warmup_steps: int = 2000
    epochs: int = 6
    seed: int = 42
    index: str = "Flat"  # what is searched: a faiss factory string, or the SHA-256 of an index file

    def __post_init__(self):
        if self.seed < 0 or self.max_grad_norm <= 0:
            raise InputError(f"seed {self.seed}, max_grad_norm {self.max_grad_norm}: expected 0 or more, more than 0")
        for name in ("neg_topk", "batch_size", "gradient_accumulation_steps", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.metric_cut is not None and self.metric_cut < 1:
            raise InputError(f"metric_cut is {self.metric_cut}; it must be at least 1, or left out for no cut")


class Candidates:
    """The retrieved documents of a batch of queries, with the relevant ones behind where none was retrieved.

    Attributes:
        rows: (Q, C) int64 document rows; 0 where not listed, as where ``retrieved`` is -1.
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


def retrieval_quality(retrieved: np.ndarray, relevant: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return MRR@10 and recall@10, the means over a batch, of ``retrieved`` (Q, k)."""
    reciprocal, recall = 0.0, 0.0
    for rows, wanted in zip(retrieved[:, :LOGGED_CUT], relevant, strict=True):
        places = np.flatnonzero(np.isin(rows, wanted))
        reciprocal += 1 / (places[0] + 1) if len(places) else 0.0
        recall += len(places) / len(wanted)
    return reciprocal / len(retrieved), recall / len(retrieved)


class StopRequest:
    """While entered, Ctrl-C and SIGTERM are noted in ``noted``, so that no step is cut in two; a second one is not."""

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


class AdoreTraining:
    """A training from its start, or from where it was stopped, to its end.

    Args:
        model: the query encoder; the documents were embedded by one with the same weights.
        relevant: query row -> relevant document rows; the queries to train on.
        documents: (N, dim) float32 embeddings.
        index: over ``documents``, whose own vectors the loss takes though the index may be compressed.
        save_dir: gets ``epoch-N`` after each epoch, and the state of the training while it goes on.
        save_steps: also write ``checkpoint-STEP`` that often.
        tokenizer_from: the checkpoint whose tokenizer files go into the ones written.

    Raises:
        InputError: the state in ``save_dir`` is that of a training with other settings.
    """

    def __init__(
        self,
        model: RobertaDot,
        queries: TokenMemmap,
        relevant: Mapping[int, Sequence[int]],
        documents: np.ndarray,
        index: Index,
        settings: AdoreSettings,
        save_dir: Path,
        log_dir: Path,
        logging_steps: int,
        save_steps: int,
        tokenizer_from: str | Path,
        device: torch.device,
    ):
        self.model = model.to(device).train()
        self.queries, self.relevant = queries, relevant
        self.documents, self.index = documents, index
        self.settings, self.device = settings, device
        self.save_dir, self.log_dir, self.tokenizer_from = save_dir, log_dir, tokenizer_from
        if min(logging_steps, save_steps) < 1:
            raise InputError(f"logging_steps {logging_steps}, save_steps {save_steps}: expected at least 1")
        self.logging_steps, self.save_steps = logging_steps, save_steps

        check_tokens(model, queries)
        self.query_rows = np.array(sorted(relevant))
        self.init_digest = weights_digest(model)
        self.steps_per_epoch = -(-len(self.query_rows) // settings.batch_size)
        self.total_steps = self.steps_per_epoch * settings.epochs
        self.optimizer = AdamW(
            parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, eps=settings.adam_epsilon
        )
        self.scheduler = get_linear_schedule_with_warmup(
            self.optimizer, settings.warmup_steps, self.total_steps // settings.gradient_accumulation_steps
        )
        self.step = 0  # batches done
        self._epoch_order: tuple[int, np.ndarray] = -1, self.query_rows  # the epoch that is under way, its order
        torch.manual_seed(settings.seed)
        if not self._resume():
            self._save_state()  # from here on the folder is known to be this training's

    def run(self) -> None:
        """Train to the end."""
        writer = SummaryWriter(str(self.log_dir), purge_step=self.step + 1 if self.step else 0)
        seen: list[dict[str, float]] = []
        saved_at = time.monotonic()
        with writer, StopRequest() as stop:
            with tqdm(total=self.total_steps, initial=self.step, desc="training", unit="step") as bar:
                while self.step < self.total_steps:
                    seen.append(self._train_step(self._batch_rows(self.step)))
                    self.step += 1
                    bar.update()
                    if self.step % self.logging_steps == 0:
                        means = {name: float(np.mean([values[name] for values in seen])) for name in seen[0]}
                        seen.clear()
                        for name, value in means.items():
                            writer.add_scalar(f"train/{name}", value, self.step)
                        bar.set_postfix({name: f"{means[name]:.4g}" for name in ("loss", "mrr_10")})
                    if self.step % self.save_steps == 0:
                        self._save(f"checkpoint-{self.step}")
                    if self.step % self.steps_per_epoch == 0:
                        self._save(f"epoch-{self.step // self.steps_per_epoch}")
                    if self._between_updates() and (stop.noted or time.monotonic() - saved_at > STATE_SECONDS):
                        self._save_state()
                        saved_at = time.monotonic()
                        if stop.noted:
                            raise KeyboardInterrupt
            self._save_state()

    def _train_step(self, rows: np.ndarray) -> dict[str, float]:
        settings = self.settings
        relevant = [self.relevant[row] for row in rows.tolist()]
        ids, mask = self.queries.batch(rows, self.model.config.pad_token_id)
        queries = self.model(torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device))

        searched = queries.detach().float().cpu()
        if not searched.isfinite().all():
            raise InputError(f"the query vectors are not finite any more at step {self.step}; lower --learning_rate")
        _, retrieved = self.index.search(searched.numpy(), settings.neg_topk)
        candidates = Candidates(retrieved, relevant)
        vectors = torch.from_numpy(self.documents[candidates.rows]).to(self.device)  # (Q, C, dim)
        scores = torch.einsum("qd,qcd->qc", queries, vectors)
        loss = adore_loss(
            scores,
            torch.from_numpy(candidates.relevant).to(self.device),
            torch.from_numpy(candidates.listed).to(self.device),
            settings.metric_cut,
        )
        loss = loss / settings.batch_size  # published: the nominal size for a smaller, last batch too
        (loss / settings.gradient_accumulation_steps).backward()

        rate = self.scheduler.get_last_lr()[0]
        if (self.step + 1) % settings.gradient_accumulation_steps == 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        mrr, recall = retrieval_quality(retrieved, relevant)
        return {"loss": loss.item(), "mrr_10": mrr, "recall_10": recall, "lr": rate}

    def _batch_rows(self, step: int) -> np.ndarray:
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._epoch_order[0] != epoch:
            shuffled = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.query_rows))
            self._epoch_order = epoch, shuffled
        order = self._epoch_order[1]
        size = self.settings.batch_size
        return self.query_rows[order[batch * size : (batch + 1) * size]]

    def _between_updates(self) -> bool:
        return self.step % self.settings.gradient_accumulation_steps == 0

    def _save(self, name: str) -> None:
        save_encoder(self.model, self.save_dir / name, self.tokenizer_from)

    # Resuming

    def _record(self) -> dict[str, Any]:
        return asdict(self.settings) | {
            "init_path": self.init_digest,
            "queries": len(self.query_rows),
            "query texts": self.queries.digest(),
            "max_seq_length": self.queries.max_length,
            "documents": len(self.documents),
            "document vectors": sample_digest(self.documents),
        }

    def _save_state(self) -> None:
        state = {
            "record": self._record(),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        with whole_file(self.save_dir / STATE_FILE) as file:
            torch.save(state, file)

    def _resume(self) -> bool:
        """Go back to where a training was stopped; False if there is none."""
        path = self.save_dir / STATE_FILE
        if not path.exists():
            if any(self.save_dir.glob("epoch-*")):
                raise InputError(
                    f"{self.save_dir}: there are checkpoints of another training; name another --model_save_dir"
                )
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            check_record(self.save_dir, state["record"], self._record(), "name another --model_save_dir, or delete it")
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        except InputError:
            raise
        except Exception as error:  # what torch raises depends on the damage
            raise InputError(
                f"{path}: damaged ({type(error).__name__}); delete it to start anew, or name another --model_save_dir"
            ) from None
        log.info("going on after step %d of %d (%s)", self.step, self.total_steps, path)
        return True
