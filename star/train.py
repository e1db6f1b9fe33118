"""Train both encoders with STAR: static hard negatives, and the other documents of the batch as random ones.

    python ./star/train.py --do_train --max_query_length 24 --max_doc_length 120 \\
        --preprocess_dir ./data/passage/preprocess --hardneg_path ./data/passage/warmup_retrieve/hard.json \\
        --init_path ./data/passage/warmup --output_dir ./data/passage/star_train/models \\
        --logging_dir ./data/passage/star_train/log --optimizer_str lamb --learning_rate 1e-4 \\
        --gradient_checkpointing --fp16

--negatives in-batch, random and hard train the paper's baselines instead: the other queries' positives alone, documents
of the whole collection, and the hard negatives alone, which with BM25's is the paper's warm-up.

A training that was stopped is resumed from its newest whole checkpoint in --output_dir. The other flags are those of
transformers' TrainingArguments; drhard/trainer_flags.py says which work, and why the others are refused.
"""

import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drhard.checkpoints import MINING_FOLDER, open_training
from drhard.collection import Collection
from drhard.devices import choose_device
from drhard.encoder import RobertaDot, check_tokens, digest_config, digest_weights, load_encoder
from drhard.errors import InputError, command
from drhard.files import digest_file, sole_writer
from drhard.flags import add_flags
from drhard.negatives import (
    HARD_FILE,
    HardNegatives,
    keep_queries_with_negatives,
    read_hard_negatives,
    write_hard_negatives,
)
from drhard.provenance import digest_relevant, is_unchanged, read_sealed_step, read_stamp, write_stamp
from drhard.retrieval import Retriever, mine_hard_negatives
from drhard.runs import run_path
from drhard.sampling import Collator, TrainingDataset
from drhard.settings import EncodingSettings, SearchSettings
from drhard.static import StaticTrainer
from drhard.strategies import STAR, STRATEGIES, AnyDocument, Pool, Strategy
from drhard.trainer_flags import DATA, OWN, WORKING, check_flags, check_unknown, outcome
from drhard.training import Events

import torch
from accelerate.utils import broadcast_object_list
from transformers import HfArgumentParser, TrainingArguments, get_scheduler, set_seed
from transformers.integrations import INTEGRATION_TO_CALLBACK

log = logging.getLogger(__name__)

MINED = 200  # hard negatives for a query where none are given, as prepare_hardneg.py mines


@dataclass
class DataArguments:
    max_query_length: int = field(metadata={"help": "tokens of a query (published: 24)"})
    max_doc_length: int = field(metadata={"help": "tokens of a document (published: 120, doc 512)"})
    preprocess_dir: Path = field(metadata={"help": "what preprocess.py wrote"})
    init_path: str = field(metadata={"help": "the checkpoint to start from: a warm-up model, or roberta-base"})
    negatives: str = field(
        default=STAR.name,
        metadata={
            "help": "; ".join(f"{strategy}: {strategy.help}" for strategy in STRATEGIES.values()),
            "choices": tuple(STRATEGIES),
        },
    )
    hardneg_path: Path | None = field(
        default=None, metadata={"help": "hard.json; without it --init_path mines one into --output_dir first"}
    )
    per_query_hard_num: int = field(
        default=1, metadata={"help": "hard (or random) negatives drawn for a query in each step"}
    )

    def __post_init__(self):
        check_flags(self, DATA)
        if self.hardneg_path is not None and not self.strategy.mined:
            raise InputError(f"--negatives {self.negatives} has no use for --hardneg_path; leave one of them out")

    @property
    def strategy(self) -> Strategy:
        """Where the negatives come from."""
        return STRATEGIES[self.negatives]


@dataclass
class StaticTrainingArguments(TrainingArguments):
    """TrainingArguments with the published defaults, and the published flags that it has dropped."""

    output_dir: str = "./data/passage/star_train/models"
    logging_dir: str = field(default="./data/passage/star_train/log", metadata={"help": "where TensorBoard's files go"})
    padding: bool = field(default=False, metadata={"help": "pad to the maximal lengths, not to the batch's"})
    optimizer_str: str = field(default="lamb", metadata={"help": "lamb or adamw", "choices": ["lamb", "adamw"]})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory for a third more time"})
    chunk_size: int = field(
        default=0,
        metadata={
            "help": "sequences encoded at a time: a large batch in the memory of a small one, with the same gradients, "
            "for a third more time (0: all at once)"
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "start anew though there is a model"})
    no_cuda: bool = field(default=False, metadata={"help": "leave the GPU alone"})
    per_device_train_batch_size: int = 256
    per_device_eval_batch_size: int = 128  # of mining
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    num_train_epochs: float = 100.0
    warmup_steps: float = 1000
    logging_steps: float = 50
    save_steps: float = 1000
    save_total_limit: int | None = 1  # one is enough to go on from
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # the trainer stops at the first loss that is not finite
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={
            "help": "tensorboard, none, or what else transformers reports to, such as wandb; several may be given"
        },
    )
    ddp_find_unused_parameters: bool | None = False  # every parameter has its part in every step

    def __post_init__(self):
        check_flags(self, WORKING | OWN)
        self.use_cpu = choose_device(self.use_cpu or self.no_cuda).type == "cpu"
        # Its name in today's transformers.
        self.activation_checkpointing = bool(self.activation_checkpointing or self.gradient_checkpointing)
        without_gpu = self.use_cpu
        if self.fp16 and without_gpu:
            log.warning("--fp16 is left out: it needs a GPU")
            self.fp16 = False
        if self.bf16 and without_gpu:
            raise InputError("--bf16 needs a GPU; leave it out")
        self.dataloader_pin_memory &= not without_gpu
        try:
            super().__post_init__()
        except json.JSONDecodeError as error:
            raise InputError(f"--lr_scheduler_kwargs: not JSON ({error})") from None
        except (ValueError, TypeError, OSError) as error:  # flags that do not go together
            raise InputError(str(error).strip().splitlines()[0]) from None
        self._check_scheduler()
        self._choose_reports()
        self._choose_checkpoint()
        if self.n_gpu > 1 and (self.chunk_size or self.bf16):
            flag = "--chunk_size" if self.chunk_size else "--bf16"
            raise InputError(
                f"{flag} does not work with several GPUs in one process: choose one with CUDA_VISIBLE_DEVICES, or "
                "start a process for each with torchrun"
            )

    def _choose_reports(self) -> None:
        """Keep what Trainer itself reports to; TensorBoard's events are ours, for --logging_dir."""
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise InputError(f"--report_to {name}: give none, or some of {', '.join(INTEGRATION_TO_CALLBACK)}")
        self.writes_events = "tensorboard" in self.report_to and self.process_index == 0
        self.report_to = [name for name in self.report_to if name != "tensorboard"]
        try:
            for name in self.report_to:
                INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:  # it is not installed
            raise InputError(f"--report_to {name}: {str(error).splitlines()[0]}") from None

    def _choose_checkpoint(self) -> None:
        """Let True mean what is done anyway: the newest whole checkpoint is looked for."""
        asked = str(self.resume_from_checkpoint or True)
        if asked.lower() == "false":
            raise InputError("--resume_from_checkpoint False: give --overwrite_output_dir to start anew")
        self.resume_from_checkpoint = None if asked.lower() == "true" else asked

    def _check_scheduler(self) -> None:
        """Raise InputError if --lr_scheduler_kwargs are not those of --lr_scheduler_type."""
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.learning_rate)
        try:
            get_scheduler(self.lr_scheduler_type, optimizer, 1, 10, self.lr_scheduler_kwargs)
        except Exception as error:  # what it raises depends on the schedule
            raise InputError(
                f"--lr_scheduler_type {self.lr_scheduler_type.value} with --lr_scheduler_kwargs "
                f"{self.lr_scheduler_kwargs}: {str(error).splitlines()[0]}"
            ) from None


def parse_arguments() -> tuple[DataArguments, StaticTrainingArguments, SearchSettings]:
    parser = HfArgumentParser((DataArguments, StaticTrainingArguments), description=__doc__.splitlines()[0])
    add_flags(parser, "--search_memory_gb", "--not_faiss_cuda")  # for mining
    _, unknown = parser.parse_known_args()
    if unknown:
        check_unknown(unknown)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    data_args, args, search_flags = parser.parse_args_into_dataclasses(look_for_args_file=False)
    if not args.do_train:
        raise InputError("nothing to do: give --do_train")
    if not (data_args.strategy.mined and data_args.hardneg_path is None):
        for flag in ("--search_memory_gb", "--not_faiss_cuda"):
            if any(word.partition("=")[0] == flag for word in sys.argv[1:]):
                raise InputError(f"{flag} is for mining, and nothing is mined here; leave it out")
    return data_args, args, SearchSettings.from_flags(search_flags, args.no_cuda)


@command
def main() -> None:
    data_args, args, searching = parse_arguments()
    set_seed(args.seed)
    model = load_encoder(data_args.init_path, fresh_head=True)
    collection = open_collection(data_args, model)
    relevant = collection.relevant("train")
    pool = open_pool(data_args, relevant, len(collection.passages))
    record = make_record(data_args, args, model, collection, relevant)
    output_dir = Path(args.output_dir)
    with sole_writer(output_dir) if args.process_index == 0 else nullcontext():
        start = find_start(args, record)
        if start == output_dir:
            print(f"{output_dir} holds the model of this very training already")
            return
        if pool is None:
            retriever = Retriever(model, EncodingSettings(args.per_device_eval_batch_size, args.device), searching)
            pool = mine_pool(args, retriever, collection, relevant, mine=start is None)
        if data_args.strategy.mined:
            relevant = keep_queries_with_negatives(relevant, pool)
        trainer = StaticTrainer(
            model=model,
            args=args,
            train_dataset=TrainingDataset(
                relevant, pool, data_args.strategy.count_drawn(data_args.per_query_hard_num), args.seed
            ),
            data_collator=Collator(collection, relevant, data_args.strategy, model.config.pad_token_id, args.padding),
            optimizer_str=args.optimizer_str,
            tokenizer_from=data_args.init_path,
            chunk_size=args.chunk_size,
            record=record,
            events=Events(args.logging_dir, read_sealed_step(start) if start else 0) if args.writes_events else None,
        )
        print(
            f"Training on {len(relevant)} queries and {len(collection.passages)} documents, "
            f"negatives: {data_args.strategy}, with {args.optimizer_str} on {args.device}"
            + (f", from {start} on" if start else "")
        )
        trainer.complete(start)
    print(f"Wrote {output_dir}")


def open_collection(data_args: DataArguments, model: RobertaDot) -> Collection:
    """Open the collection, and see to it that each of its sequences fits the model."""
    collection = Collection(data_args.preprocess_dir, data_args.max_query_length, data_args.max_doc_length)
    for tokens in (collection.queries("train"), collection.passages):
        check_tokens(model, tokens)
    return collection


def open_pool(data_args: DataArguments, relevant: dict[int, list[int]], documents: int) -> Pool | None:
    """What negatives are drawn from: lists of hard negatives, all documents, or None for what is to be mined."""
    if data_args.hardneg_path is not None:
        return read_hard_negatives(data_args.hardneg_path, relevant, documents)
    return None if data_args.strategy.mined else AnyDocument(documents)


def make_record(
    data_args: DataArguments,
    args: StaticTrainingArguments,
    model: RobertaDot,
    collection: Collection,
    relevant: dict[int, list[int]],
) -> dict[str, Any]:
    """What decides the outcome: a training is resumed with the very same only."""
    return {
        "init_path": digest_weights(model),
        "config": digest_config(model.config),
        "queries": collection.queries("train").digest(),
        "documents": collection.passages.digest(),
        "judgements": digest_relevant(relevant),
        "hard negatives": digest_file(data_args.hardneg_path) if data_args.hardneg_path else "mined with --init_path",
        **outcome(data_args, DATA),
        **outcome(args, WORKING | OWN),
        "train_batch_size": args.train_batch_size,
        "world_size": args.world_size,
    }


def find_start(args: StaticTrainingArguments, record: dict[str, Any]) -> Path | None:
    """As :func:`drhard.checkpoints.open_training`: where to go on. One process of several looks, all of them get it."""
    start = None
    if args.process_index == 0:
        asked = Path(args.resume_from_checkpoint) if args.resume_from_checkpoint else None
        start = open_training(Path(args.output_dir), record, args.overwrite_output_dir, asked)
    return broadcast_object_list([start])[0]


def mine_pool(
    args: StaticTrainingArguments,
    retriever: Retriever,
    collection: Collection,
    relevant: dict[int, list[int]],
    mine: bool,
) -> HardNegatives:
    """Hard negatives of the model at the start: mined into --output_dir, or read there where a training is resumed."""
    if mine and args.world_size > 1:
        raise InputError(
            "several processes cannot mine together: run star/prepare_hardneg.py first and give --hardneg_path"
        )
    output_dir = Path(args.output_dir)
    path, documents = output_dir / HARD_FILE, len(collection.passages)
    if not mine and path.exists():
        stamp = read_stamp(path, {"sha256": str})
        if stamp is None or not is_unchanged(path, stamp):
            raise InputError(f"{path}: is not what this training mined; delete it, and it is mined again")
        return read_hard_negatives(path, relevant, documents)
    print(f"Mining hard negatives with the model at the start on {retriever.encoding.device}")
    run = run_path(output_dir / MINING_FOLDER, "train")
    with mine_hard_negatives(retriever, collection, "train", run, min(MINED, documents // 2)) as mining:
        write_hard_negatives(path, mining.hard)
        write_stamp(path, {"sha256": digest_file(path)})
        print(f"Wrote {path}")
        return mining.hard


if __name__ == "__main__":
    main()
