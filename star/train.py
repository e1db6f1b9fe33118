"""Train both encoders with STAR: the negatives are static hard negatives and the other documents of the batch.

    python ./star/train.py --do_train --max_query_length 24 --max_doc_length 120 \\
        --preprocess_dir ./data/passage/preprocess --hardneg_path ./data/passage/warmup_retrieve/hard.json \\
        --init_path ./data/passage/warmup --output_dir ./data/passage/star_train/models \\
        --logging_dir ./data/passage/star_train/log --optimizer_str lamb --learning_rate 1e-4 \\
        --gradient_checkpointing --fp16

--negatives trains one of the paper's baselines instead. Its negatives are the other queries' positives (in-batch),
random documents of the collection (random), or the hard negatives alone (hard). The last, with BM25's hard negatives,
is the paper's warm-up.

An interrupted training resumes from its newest whole checkpoint in --output_dir. The other flags are those of
transformers' TrainingArguments. drhard/trainer_flags.py says which work, and why the others are refused.
"""

import argparse
import sys
from contextlib import nullcontext

from drhard import processes
from drhard.collection import Collection
from drhard.commands import shared_command
from drhard.errors import InputError
from drhard.files import sole_writer
from drhard.flags import FLAGS, SELECTION, add_flags
from drhard.hard_json import open_pool
from drhard.hub import find_checkpoint
from drhard.strategies import STRATEGIES
from drhard.trainer_flags import VALIDATION, WORKING, add_trainer_flags, check_needs, trainer_words
from drhard.validation import Validation

MINING = ("--search_memory_gb", "--not_faiss_cuda", *SELECTION)


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
    check_needs(args, WORKING | VALIDATION)
    mined = STRATEGIES[args.negatives].mined
    if args.hardneg_path is not None and not mined:
        raise InputError(f"--negatives {args.negatives} does not use --hardneg_path; omit one of the two")
    asked = str(args.resume_from_checkpoint or True).lower()
    if asked == "false":
        raise InputError("--resume_from_checkpoint False: give --overwrite_output_dir to start over")
    if asked == "true":  # the default
        args.resume_from_checkpoint = None
    if not mined or args.hardneg_path is not None:
        for flag in MINING:
            if getattr(args, FLAGS[flag]["dest"]) != FLAGS[flag]["default"]:
                raise InputError(f"{flag} is for mining, and this command mines nothing; omit it")
    return args


@shared_command
def main() -> None:
    flags = parse_arguments()
    collection = Collection(flags.preprocess_dir, flags.max_query_length, flags.max_doc_length)
    relevant, documents = collection.relevant_found("train"), len(collection.passages)
    left_out = collection.left_out.tolist()
    pool = open_pool(STRATEGIES[flags.negatives], flags.hardneg_path, relevant, documents, left_out)
    validation = Validation.from_flags(flags, collection, documents)
    checkpoint = find_checkpoint(flags.init_path)

    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.model_folder import load_encoder
    from drhard.static import StaticInput, StaticTraining
    from drhard.trainer_arguments import trainer_arguments

    from transformers import set_seed

    args = trainer_arguments(flags)
    processes.join(args.ddp_timeout)
    set_seed(args.seed)
    model = load_encoder(flags.init_path, True, flags.pooling, flags.normalize)
    data = StaticInput(collection, relevant, pool, validation)
    with sole_writer(args.output_dir) if processes.is_first() else nullcontext():
        training = StaticTraining.open(model, data, flags, args, tokenizer_from=checkpoint)
        if training.finished:
            print(f"{flags.output_dir} already holds the model of this training")
            return
        if training.pool is None:
            print(f"Mining hard negatives with the initial model on {args.device}")
            training.mine()
            print(f"Wrote {training.hard_path}")
        print(
            f"Training on {len(training.relevant)} queries and {documents} documents, "
            f"negatives: {flags.negatives}, with {flags.optimizer_str} on {args.device}"
            + (f", resuming from {training.start}" if training.start else "")
        )
        training.run()
    print(f"Wrote {flags.output_dir}")
    if validation is not None:
        print(validation.report(training.output_dir))


if __name__ == "__main__":
    main()
