"""Train both encoders with STAR: static hard negatives, and the other documents of the batch as random ones.

    python ./star/train.py --do_train --max_query_length 24 --max_doc_length 120 \\
        --preprocess_dir ./data/passage/preprocess --hardneg_path ./data/passage/warmup_retrieve/hard.json \\
        --init_path ./data/passage/warmup --output_dir ./data/passage/star_train/models \\
        --logging_dir ./data/passage/star_train/log --optimizer_str lamb --learning_rate 1e-4 \\
        --gradient_checkpointing --fp16

--negatives in-batch, random and hard train the paper's baselines instead: the other queries' positives alone, documents
of the whole collection, and the hard negatives alone, which with BM25's is the paper's warm-up.

A training that was stopped goes on from its last checkpoint in --output_dir. All flags of transformers'
TrainingArguments are taken.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from drhard.encoder import check_tokens, load_encoder, weights_digest
from drhard.errors import InputError, command
from drhard.files import file_digest
from drhard.qrels import read_relevant_rows
from drhard.retrieval import mine_hard_negatives, write_hard_negatives
from drhard.sampling import HARD, IN_BATCH, NEGATIVES, STAR, StarCollator, StarDataset, read_hard_negatives
from drhard.star import MINING_FOLDER, StarTrainer, last_checkpoint, open_training
from drhard.tokens import PASSAGES, TokenMemmap, query_name

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

log = logging.getLogger(__name__)

MINED = 200  # hard negatives for a query where none are given, as prepare_hardneg.py mines


@dataclass
class DataArguments:
    max_query_length: int = field(metadata={"help": "tokens of a query (published: 24)"})
    max_doc_length: int = field(metadata={"help": "tokens of a document (published: 120, doc 512)"})
    preprocess_dir: Path = field(metadata={"help": "what preprocess.py wrote"})
    init_path: str = field(metadata={"help": "the checkpoint to start from: a warm-up model, or roberta-base"})
    negatives: str = field(
        default=STAR,
        metadata={
            "help": "star: hard negatives and the other documents of the batch; in-batch: the other queries' "
            "positives; random: documents of the whole collection; hard: hard negatives alone",
            "choices": NEGATIVES,
        },
    )
    hardneg_path: Path | None = field(
        default=None, metadata={"help": "hard.json; without it --init_path mines one into --output_dir first"}
    )
    per_query_hard_num: int = field(
        default=1, metadata={"help": "hard (or random) negatives drawn for a query in each step"}
    )


@dataclass
class StarTrainingArguments(TrainingArguments):
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
    ddp_find_unused_parameters: bool | None = False  # every parameter has its part in every step

    def __post_init__(self):
        self.use_cpu = self.use_cpu or self.no_cuda
        # Its name in today's transformers.
        self.activation_checkpointing = bool(self.activation_checkpointing or self.gradient_checkpointing)
        if self.fp16 and (self.use_cpu or not torch.cuda.is_available()):
            log.warning("--fp16 is left out: it needs a GPU")
            self.fp16 = False
        self.dataloader_pin_memory &= torch.cuda.is_available() and not self.use_cpu
        self.report_to = "none"  # TensorBoard is written to --logging_dir, by a callback of ours
        super().__post_init__()


@command
def main() -> None:
    parser = HfArgumentParser((DataArguments, StarTrainingArguments), description=__doc__.splitlines()[0])
    data_args, args = parser.parse_args_into_dataclasses()
    if not args.do_train:
        raise InputError("nothing to do: give --do_train")
    set_seed(args.seed)
    output_dir = Path(args.output_dir)

    model = load_encoder(data_args.init_path, fresh_head=True)
    queries = TokenMemmap(data_args.preprocess_dir, query_name("train"), data_args.max_query_length)
    documents = TokenMemmap(data_args.preprocess_dir, PASSAGES, data_args.max_doc_length)
    relevant = read_relevant_rows(data_args.preprocess_dir / "train-qrel.tsv", len(queries), len(documents))
    for tokens in (queries, documents):
        check_tokens(model, tokens)
    mined = data_args.negatives in (STAR, HARD)
    if data_args.hardneg_path is not None:
        if not mined:
            raise InputError(f"--negatives {data_args.negatives} has no use for --hardneg_path; leave one of them out")
        pool = read_hard_negatives(data_args.hardneg_path, relevant, len(documents))
    else:
        pool = len(documents)
    if data_args.per_query_hard_num < 1:
        raise InputError(f"--per_query_hard_num is {data_args.per_query_hard_num}; it must be at least 1")
    if args.chunk_size < 0:
        raise InputError(f"--chunk_size is {args.chunk_size}; it must be at least 1, or 0 for the whole batch at once")
    if args.n_gpu > 1 and (args.chunk_size or args.bf16):
        flag = "--chunk_size" if args.chunk_size else "--bf16"
        raise InputError(
            f"{flag} does not work with several GPUs in one process: choose one with CUDA_VISIBLE_DEVICES, or start "
            "a process for each with torchrun"
        )
    settings = outcome_settings(data_args, args, weights_digest(model))
    if data_args.hardneg_path is not None:
        settings["hard negatives"] = file_digest(data_args.hardneg_path)
    with args.main_process_first(local=False, desc="looking for a checkpoint"):
        if args.process_index == 0:
            checkpoint = open_training(output_dir, settings, args.overwrite_output_dir)
        else:
            checkpoint = last_checkpoint(output_dir)
    checkpoint = args.resume_from_checkpoint or checkpoint
    if mined and data_args.hardneg_path is None:
        hardneg_path = output_dir / "hard.json"
        if checkpoint is None or not hardneg_path.exists():
            if args.world_size > 1:
                raise InputError(
                    "several processes cannot mine together: run star/prepare_hardneg.py first and give --hardneg_path"
                )
            print(f"Mining hard negatives with {data_args.init_path} on {args.device}")
            pool = mine_hard_negatives(
                model, data_args.preprocess_dir, "train", output_dir / MINING_FOLDER,
                data_args.max_query_length, data_args.max_doc_length, topk=min(MINED, len(documents) // 2),
                batch_size=args.per_device_eval_batch_size, device=args.device,
                gpus=[] if args.no_cuda else None,
            ).hard  # fmt: skip
            write_hard_negatives(hardneg_path, pool)
            print(f"Wrote {hardneg_path}")
        else:
            pool = read_hard_negatives(hardneg_path, relevant, len(documents))

    if mined:
        without = [query for query in relevant if not pool[query]]
        if without:
            log.warning("queries without a hard negative are left out of the training: %d", len(without))
            relevant = {query: rows for query, rows in relevant.items() if pool[query]}
    drawn = 0 if data_args.negatives == IN_BATCH else data_args.per_query_hard_num
    done = (
        int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else -1
    )  # steps; what TensorBoard has beyond goes
    writer = SummaryWriter(args.logging_dir, purge_step=done + 1) if args.process_index == 0 else None
    trainer = StarTrainer(
        model=model,
        args=args,
        train_dataset=StarDataset(relevant, pool, drawn, args.seed),
        data_collator=StarCollator(
            queries, documents, relevant, data_args.negatives, model.config.pad_token_id, args.padding
        ),
        callbacks=[TensorBoardCallback(writer)] if writer else [],
        optimizer_str=args.optimizer_str,
        tokenizer_from=data_args.init_path,
        chunk_size=args.chunk_size,
    )
    print(
        f"Training on {len(relevant)} queries and {len(documents)} documents, negatives: {data_args.negatives}, "
        f"with {args.optimizer_str} on {args.device}" + (f", from {checkpoint} on" if checkpoint else "")
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    print(f"Wrote {output_dir}")


def outcome_settings(data_args: DataArguments, args: StarTrainingArguments, init_digest: str) -> dict[str, str]:
    """What decides the outcome of a training; it can be gone on with under the very same only."""
    names = (
        "max_query_length", "max_doc_length", "preprocess_dir", "negatives", "per_query_hard_num",
        "optimizer_str", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
        "max_grad_norm", "num_train_epochs", "max_steps", "warmup_steps", "lr_scheduler_type", "seed",
        "train_batch_size", "world_size", "gradient_accumulation_steps", "fp16", "bf16",
    )  # fmt: skip
    values = vars(data_args) | vars(args) | {"train_batch_size": args.train_batch_size, "world_size": args.world_size}
    return {"init_path": init_digest} | {name: str(values[name]) for name in names}


if __name__ == "__main__":
    main()
