"""Train both encoders with STAR: the negatives are static hard negatives and the other documents of the batch.

    python ./star/train.py --do_train --max_query_length 24 --max_doc_length 120 \\
        --preprocess_dir ./data/passage/preprocess --hardneg_path ./data/passage/warmup_retrieve/hard.json \\
        --init_path ./data/passage/warmup --output_dir ./data/passage/star_train/models \\
        --logging_dir ./data/passage/star_train/log --optimizer_str lamb --learning_rate 1e-4 \\
        --gradient_checkpointing --fp16

--negatives trains one of the paper's baselines instead. Its negatives are the other queries' positives (in-batch),
random documents of the collection (random), or the hard negatives alone (hard). The last, with BM25's hard negatives,
is the paper's warm-up.

An interrupted training resumes from its newest complete checkpoint in --output_dir. The other flags are those of
transformers' TrainingArguments. drhard/trainer_flags.py says which work, and why the others are refused.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drhard.collection import Collection
from drhard.errors import InputError, command
from drhard.files import digest_file, sole_writer
from drhard.flags import FLAGS, add_flags
from drhard.hard_json import HARD_FILE, read_hard_negatives, write_hard_negatives
from drhard.hub import find_checkpoint
from drhard.negatives import HardNegatives, keep_queries_with_negatives
from drhard.provenance import digest_relevant, is_unchanged, read_stamp, write_stamp
from drhard.strategies import STRATEGIES, AnyDocument, Pool
from drhard.trainer_flags import DATA, OWN, WORKING, add_trainer_flags, check_needs, outcome, trainer_words

if TYPE_CHECKING:
    from drhard.encoder import RobertaDot
    from drhard.retrieval import Retriever

    from transformers import TrainingArguments

MINED = 200  # hard negatives to mine for each query if none are given; prepare_hardneg.py's default
MINING = ("--search_memory_gb", "--not_faiss_cuda")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="train.py --do_train --max_query_length N --max_doc_length N --preprocess_dir DIR --init_path MODEL ...",
    )
    add_trainer_flags(parser)
    add_flags(parser, *MINING)
    args = parser.parse_args(trainer_words(sys.argv[1:]))
    if not args.do_train:
        raise InputError("nothing to do: give --do_train")
    check_needs(args)
    args.strategy = STRATEGIES[args.negatives]
    if args.hardneg_path is not None and not args.strategy.mined:
        raise InputError(f"--negatives {args.negatives} does not use --hardneg_path; omit one of the two")
    asked = str(args.resume_from_checkpoint or True).lower()
    if asked == "false":
        raise InputError("--resume_from_checkpoint False: give --overwrite_output_dir to start over")
    if asked == "true":  # the default
        args.resume_from_checkpoint = None
    if not (args.strategy.mined and args.hardneg_path is None):
        for flag in MINING:
            if getattr(args, FLAGS[flag]["dest"]) != FLAGS[flag]["default"]:
                raise InputError(f"{flag} is for mining, and this command mines nothing; omit it")
    return args


@command
def main() -> None:
    flags = parse_arguments()
    collection = Collection(flags.preprocess_dir, flags.max_query_length, flags.max_doc_length)
    relevant = collection.relevant("train")
    pool = open_pool(flags, relevant, len(collection.passages))
    find_checkpoint(flags.init_path)
    train(flags, collection, relevant, pool)


def train(flags: argparse.Namespace, collection: Collection, relevant: dict[int, list[int]], pool: Pool | None) -> None:
    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.encoder import check_tokens, load_encoder
    from drhard.provenance import read_sealed_step
    from drhard.retrieval import Retriever
    from drhard.sampling import Collator, TrainingDataset
    from drhard.settings import EncodingSettings, SearchSettings
    from drhard.static import StaticTrainer
    from drhard.trainer_arguments import trainer_arguments
    from drhard.training import Events

    from transformers import set_seed

    args = trainer_arguments(flags)
    set_seed(args.seed)
    model = load_encoder(flags.init_path, fresh_head=True)
    for tokens in (collection.queries("train"), collection.passages):
        check_tokens(model, tokens)
    record = make_record(flags, args, model, collection, relevant)
    output_dir = Path(args.output_dir)
    with sole_writer(output_dir) if args.process_index == 0 else nullcontext():
        start = find_start(flags, record, args.process_index)
        if start == output_dir:
            print(f"{output_dir} already holds the model of this training")
            return
        if pool is None:
            searching = SearchSettings.from_flags(flags, flags.no_cuda)
            retriever = Retriever(model, EncodingSettings(args.per_device_eval_batch_size, args.device), searching)
            pool = mine_pool(args, retriever, collection, relevant, mine=start is None)
        if flags.strategy.mined:
            relevant = keep_queries_with_negatives(relevant, pool)
        drawn = flags.strategy.count_drawn(flags.per_query_hard_num)
        writes_events = "tensorboard" in flags.report_to and args.process_index == 0
        trainer = StaticTrainer(
            model=model,
            args=args,
            train_dataset=TrainingDataset(relevant, pool, drawn, args.seed),
            data_collator=Collator(collection, relevant, flags.strategy, model.config.pad_token_id, flags.padding),
            optimizer_str=flags.optimizer_str,
            tokenizer_from=flags.init_path,
            chunk_size=flags.chunk_size,
            record=record,
            events=Events(flags.logging_dir, read_sealed_step(start) if start else 0) if writes_events else None,
        )
        print(
            f"Training on {len(relevant)} queries and {len(collection.passages)} documents, "
            f"negatives: {flags.strategy}, with {flags.optimizer_str} on {args.device}"
            + (f", resuming from {start}" if start else "")
        )
        trainer.complete(start)
    print(f"Wrote {output_dir}")


def open_pool(flags: argparse.Namespace, relevant: dict[int, list[int]], documents: int) -> Pool | None:
    """Return the pool of negatives: given hard negatives or all documents; None if they must be mined first."""
    if flags.hardneg_path is not None:
        return read_hard_negatives(flags.hardneg_path, relevant, documents)
    return None if flags.strategy.mined else AnyDocument(documents)


def make_record(
    flags: argparse.Namespace,
    args: "TrainingArguments",
    model: "RobertaDot",
    collection: Collection,
    relevant: dict[int, list[int]],
) -> dict[str, Any]:
    """Return what decides the outcome of the training. It resumes only if all of this is the same."""
    from drhard.encoder import digest_config, digest_weights

    return {
        "init_path": digest_weights(model),
        "config": digest_config(model.config),
        "queries": collection.queries("train").digest(),
        "documents": collection.passages.digest(),
        "judgements": digest_relevant(relevant),
        "hard negatives": digest_file(flags.hardneg_path) if flags.hardneg_path else "mined with --init_path",
        **outcome(flags, DATA | OWN),
        **outcome(args, WORKING),
        "train_batch_size": args.train_batch_size,
        "world_size": args.world_size,
    }


def find_start(flags: argparse.Namespace, record: dict[str, Any], process: int) -> Path | None:
    """Return where to start, as :func:`drhard.checkpoints.open_training`. Process 0 decides and tells the others."""
    from drhard.checkpoints import open_training

    from accelerate.utils import broadcast_object_list

    start = None
    if process == 0:
        asked = Path(flags.resume_from_checkpoint) if flags.resume_from_checkpoint else None
        start = open_training(Path(flags.output_dir), record, flags.overwrite_output_dir, asked)
    return broadcast_object_list([start])[0]


def mine_pool(
    args: "TrainingArguments",
    retriever: "Retriever",
    collection: Collection,
    relevant: dict[int, list[int]],
    mine: bool,
) -> HardNegatives:
    """Mine hard negatives with the initial model into --output_dir. A resumed training reads them there instead."""
    from drhard.checkpoints import MINING_FOLDER
    from drhard.mining import mine_hard_negatives

    if mine and args.world_size > 1:
        raise InputError(
            "several processes cannot mine together: run star/prepare_hardneg.py first and give --hardneg_path"
        )
    output_dir = Path(args.output_dir)
    path, documents = output_dir / HARD_FILE, len(collection.passages)
    if not mine and path.exists():
        stamp = read_stamp(path, {"sha256": str})
        if stamp is None or not is_unchanged(path, stamp):
            raise InputError(f"{path}: was changed after this training mined it; delete it to mine again")
        return read_hard_negatives(path, relevant, documents)
    print(f"Mining hard negatives with the initial model on {retriever.encoding.device}")
    folder, count = output_dir / MINING_FOLDER, min(MINED, documents // 2)
    with mine_hard_negatives(retriever, collection, "train", folder, count) as mining:
        write_hard_negatives(path, mining.hard)
        write_stamp(path, {"sha256": digest_file(path)})
        print(f"Wrote {path}")
        return mining.hard


if __name__ == "__main__":
    main()
