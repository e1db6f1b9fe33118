"""Static training: STAR and its baselines. One encoder of queries and passages learns from pools of negatives."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from drhard import processes
from drhard.checkpoints import EVALUATION_FOLDER, MINING_FOLDER, RECORD_FILE, open_training
from drhard.collection import Collection
from drhard.embeddings import remove_embeddings_of_others
from drhard.encoder import Encoder, adopt_prompts, check_tokens
from drhard.errors import InputError
from drhard.files import digest_file, remove_folder, write_json
from drhard.hard_json import HARD_FILE, read_hard_negatives, write_hard_negatives
from drhard.mining import mine_hard_negatives
from drhard.negatives import MINED, HardNegatives, Selection, keep_queries_with_negatives
from drhard.numbers import Ranks
from drhard.provenance import digest_record, find_difference, is_unchanged, read_sealed_step, read_stamp, write_stamp
from drhard.retrieval import Retriever
from drhard.sampling import CALL_TOKENS, Collator, Grouping, TrainingDataset
from drhard.settings import EncodingSettings, SearchSettings
from drhard.strategies import STRATEGIES, Pool
from drhard.trainer import StaticTrainer, Validating
from drhard.trainer_flags import DATA, OWN, VALIDATION, WORKING, outcome
from drhard.training import Events, choose_scale, make_record
from drhard.validation import Validation

import torch
from transformers import TrainingArguments

# Fields of the record that decide which hard negatives are mined.
MINED_FROM = ("init_path", "config", "queries", "documents", "max_query_length", "max_doc_length", "judgements")


@dataclass(frozen=True)
class StaticInput:
    """What a static training learns from."""

    collection: Collection  # the train queries and the passages
    relevant: Mapping[int, Sequence[int]]  # query row -> relevant passage rows
    pool: Pool | None  # the negatives; None: the training mines hard negatives itself
    validation: Validation | None = None


class StaticTraining:
    """A static training. :meth:`open` resumes one that was stopped, :meth:`run` trains to the end.

    Args:
        model: the encoder to train, with its initial weights.
        flags: the flags of star/train.py.
        args: the Trainer's arguments, made from the flags.
        tokenizer_from: the folder of the checkpoint to copy tokenizer files from into each checkpoint.

    Attributes:
        record: the settings and input that decide the outcome. A training resumes only if all of this is the same.
        relevant: query row -> relevant passage rows, of the queries to train on.
        pool: the negatives; None as long as they must be mined.
        start: the checkpoint to start from; None for the model itself.

    Raises:
        InputError: the model cannot read the tokens.
    """

    def __init__(
        self,
        model: Encoder,
        data: StaticInput,
        flags: Namespace,
        args: TrainingArguments,
        tokenizer_from: Path,
    ):
        self.collection = data.collection
        sources = self.collection.queries("train"), self.collection.passages
        for tokens in (*sources, *([data.validation.queries] if data.validation else [])):
            check_tokens(model, tokens)
        adopt_prompts(model, *sources)
        self.model, self.flags, self.args, self.tokenizer_from = model, flags, args, tokenizer_from
        self.strategy = STRATEGIES[flags.negatives]
        self.searching = SearchSettings.from_flags(flags, flags.no_cuda)
        self.selection = Selection.from_flags(flags, self._topk)
        self.output_dir = Path(args.output_dir)
        self.hard_path = self.output_dir / HARD_FILE
        self.record = self._make_record(data.relevant)
        self.relevant, self.pool, self.validation = data.relevant, data.pool, data.validation
        self.start: Path | None = None
        if data.pool is not None:
            self._draw_from(data.pool)

    @classmethod
    def open(
        cls,
        model: Encoder,
        data: StaticInput,
        flags: Namespace,
        args: TrainingArguments,
        tokenizer_from: Path,
    ) -> Self:
        """Open the training in ``--output_dir``. Start from its checkpoint if it was stopped there.

        The caller must be the sole writer of the folder. ``--overwrite_output_dir`` removes an earlier training.

        Raises:
            InputError: as the constructor and :func:`drhard.checkpoints.open_training`; or the processes have
                different input, or do not see the same folder.
        """
        training = cls(model, data, flags, args, tokenizer_from)
        training._resume()
        return training

    @property
    def finished(self) -> bool:
        """Whether ``--output_dir`` holds the model of this training."""
        return self.start == self.output_dir

    def mine(self) -> Pool:
        """Mine hard negatives with the initial model into :attr:`hard_path`, to draw from them.

        Raises:
            InputError: as :func:`drhard.mining.mine_hard_negatives`.
        """
        folder = self.output_dir / MINING_FOLDER
        with mine_hard_negatives(
            self._make_retriever(torch.float32), self.collection, "train", folder, self.selection
        ) as mined:
            processes.first_value(lambda: self._write_mined(mined.hard))
        pool = read_hard_negatives(self.hard_path, self.relevant, len(self.collection.passages))
        self._draw_from(pool)
        return pool

    def _write_mined(self, hard: HardNegatives) -> None:
        write_hard_negatives(self.hard_path, hard)
        write_stamp(self.hard_path, self._mined_from() | {"sha256": digest_file(self.hard_path)})

    def run(self) -> None:
        """Train to the end and write the model. Mine first if that was not done.

        Raises:
            InputError: a loss or a weight is not finite, or a disk is full; or as :meth:`mine`.
        """
        pool = self.mine() if self.pool is None else self.pool
        if processes.is_first():
            write_json(self.output_dir / RECORD_FILE, self.record, indent=1)  # marks the folder as this training's
        flags, args = self.flags, self.args
        drawn = self.strategy.count_drawn(flags.per_query_hard_num)
        done = read_sealed_step(self.start) if self.start else 0
        writes_events = "tensorboard" in flags.report_to and processes.is_first()
        grouping = Grouping(flags.padding, flags.chunk_size, CALL_TOKENS[args.device.type])
        trainer = StaticTrainer(
            model=self.model,
            args=args,
            train_dataset=TrainingDataset(self.relevant, pool, drawn, args.seed),
            data_collator=Collator(
                self.collection, self.relevant, self.strategy, self.model.config.pad_token_id, grouping
            ),
            optimizer_str=flags.optimizer_str,
            tokenizer_from=self.tokenizer_from,
            score_scale=self.record["score_scale"],
            in_chunks=flags.chunk_size > 0,
            record=self.record,
            events=Events(flags.logging_dir, done) if writes_events else None,
            validating=Validating(self.validation, self._evaluate) if self.validation else None,
        )
        trainer.complete(self.start)

    def _make_retriever(self, dtype: torch.dtype) -> Retriever:
        encoding = EncodingSettings(self.args.per_device_eval_batch_size, self.args.device, dtype)
        return Retriever(self.model, encoding, self.searching)

    def _evaluate(self) -> float:
        """Encode the collection with the present model, search it, and return the measure of the validation.

        The model computes in the precision of the training.
        """
        assert self.validation is not None
        split, depth, folder = self.validation.split, self.validation.depth, self.output_dir / EVALUATION_FOLDER
        dtype = torch.float16 if self.args.fp16 else torch.bfloat16 if self.args.bf16 else torch.float32
        validation = self.validation
        processes.first_value(lambda: remove_embeddings_of_others(folder, self.model))
        with self._make_retriever(dtype).retrieve(self.collection, split, folder, depth) as found:
            value = processes.first_value(lambda: validation.measure(found.rows))
        processes.first_value(lambda: remove_folder(folder))
        return value

    def _draw_from(self, pool: Pool) -> None:
        self.pool = pool
        if isinstance(pool, HardNegatives):
            self.relevant = keep_queries_with_negatives(self.relevant, pool)

    # Resuming

    def _make_record(self, relevant: Mapping[int, Sequence[int]]) -> dict[str, Any]:
        return {
            **make_record(self.model, self.collection.queries("train"), relevant, StaticTrainer.loss),
            **outcome(self.flags, {**DATA, **OWN, **VALIDATION}),
            **outcome(self.args, WORKING),
            "score_scale": choose_scale(self.model, self.flags.score_scale),
            "documents": self.collection.passages.digest(),
            "hard negatives": self._name_negatives(),
            "train_batch_size": self.args.train_batch_size,
            "world_size": self.args.world_size,  # 1: the number of processes decides nothing
        }

    def _name_negatives(self) -> str | None:
        """Return where the hard negatives come from, for the record. None if the training has none."""
        if not self.strategy.mined:
            return None
        if self.flags.hardneg_path:
            return digest_file(self.flags.hardneg_path)
        return "mined with --init_path" + (f", {self._chosen}" if self._chosen else "")

    def _resume(self) -> None:
        """Find the checkpoint to start from, and hard negatives that were mined. The first process decides for all."""
        processes.require_same(digest_record(self.record), "models, data or flags")
        processes.require_shared(self.output_dir)
        start = processes.first_value(self._find_start)
        self.start = Path(start) if start else None
        if self.pool is None and not self.finished:
            self._read_mined()

    def _find_start(self) -> str | None:
        asked = Path(self.flags.resume_from_checkpoint) if self.flags.resume_from_checkpoint else None
        start = open_training(self.output_dir, self.record, self.flags.overwrite_output_dir, asked)
        return str(start) if start else None

    def _read_mined(self) -> None:
        """Read the hard negatives that were mined into the folder, if they are those that :meth:`mine` would mine."""
        if not self.hard_path.exists():
            return
        stamp = read_stamp(self.hard_path, {"sha256": str}) or {}
        if find_difference(stamp, self._mined_from()) is None and is_unchanged(self.hard_path, stamp):
            self._draw_from(read_hard_negatives(self.hard_path, self.relevant, len(self.collection.passages)))
        elif self.start is not None:
            raise InputError(f"{self.hard_path}: was changed after this training mined it; delete it to mine again")

    @property
    def _topk(self) -> int:
        return min(MINED, len(self.collection.passages) // 2)

    @property
    def _chosen(self) -> str | None:
        """The ranks and the margin of the hard negatives to mine; None if no flag changes them."""
        return None if self.selection == Selection(Ranks(1, self._topk)) else self.selection.outcome()

    def _mined_from(self) -> dict[str, Any]:
        """Return what decides which hard negatives are mined, for the stamp of ``hard.json``."""
        decides = {name: self.record[name] for name in MINED_FROM}
        return decides | {"topk": self._chosen or self._topk, "index": self.searching.outcome()}
