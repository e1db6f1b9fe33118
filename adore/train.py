"""Train the query encoder with ADORE: at each step, the negatives are documents that it retrieves itself.

    python ./adore/train.py --metric_cut 200 --init_path ./data/passage/trained_models/star \\
        --pembed_path ./data/passage/evaluate/star/passages.memmap \\
        --model_save_dir ./data/passage/adore_train/models --log_dir ./data/passage/adore_train/log \\
        --preprocess_dir ./data/passage/preprocess --model_gpu_index 0 --faiss_gpu_index 1 2 3

The search is exact. --index_factory OPQ96,PQ96 (on GPUs OPQ96,IVF1,PQ96) builds a compressed index with faiss and
searches that instead. --index_path names the file of such an index. The loss uses the embeddings themselves.

An interrupted training resumes.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from drhard.collection import Collection
from drhard.errors import command
from drhard.files import require_file, sole_writer
from drhard.flags import INDEX, add_flags
from drhard.hub import find_checkpoint
from drhard.numbers import COUNT, EPSILON, LENGTH, NATURAL, NORM, RATE, SEED

if TYPE_CHECKING:
    from drhard.adore import AdoreSettings


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric_cut", type=COUNT, help="MRR counts ranks beyond this as 0 (none: no cut)")
    parser.add_argument("--init_path", required=True, help="encoder that embedded the documents")
    parser.add_argument("--pembed_path", type=Path, required=True, help="embeddings that star/inference.py wrote")
    parser.add_argument("--model_save_dir", type=Path, required=True, help="folder for epoch-1, epoch-2, …")
    parser.add_argument("--log_dir", type=Path, required=True, help="folder for TensorBoard's files")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    parser.add_argument("--neg_topk", type=COUNT, default=200, help="documents retrieved for a query (200)")
    parser.add_argument("--max_seq_length", type=LENGTH, default=64, help="maximum tokens per query (64)")
    parser.add_argument("--per_gpu_batch_size", type=COUNT, default=32, help="queries in a step (32)")
    parser.add_argument("--gradient_accumulation_steps", type=COUNT, default=1)
    parser.add_argument("--warmup_steps", type=NATURAL, default=2000)
    parser.add_argument("--seed", type=SEED, default=42)
    parser.add_argument("--save_steps", type=COUNT, default=5_000_000, help="steps between additional checkpoints")
    parser.add_argument("--logging_steps", type=COUNT, default=100)
    parser.add_argument("--learning_rate", type=RATE, default=5e-6)
    parser.add_argument("--weight_decay", type=RATE, default=0.01)
    parser.add_argument("--adam_epsilon", type=EPSILON, default=1e-8)
    parser.add_argument("--max_grad_norm", type=NORM, default=1.0)
    parser.add_argument("--num_train_epochs", type=COUNT, default=6)
    parser.add_argument("--model_gpu_index", type=NATURAL, default=0, help="GPU of the model, if there is one (0)")
    add_flags(parser, "--faiss_gpu_index", *INDEX)
    parser.add_argument("--faiss_omp_num_threads", type=COUNT, help="threads on the CPU (all cores)")
    return parser.parse_args()


@command
def main() -> None:
    args = parse_arguments()
    collection = Collection(args.preprocess_dir, args.max_seq_length)
    queries = collection.queries("train")
    require_file(args.pembed_path)
    find_checkpoint(args.init_path)

    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.adore import AdoreInput, AdoreOutput, AdoreTraining
    from drhard.devices import choose_device, limit_threads
    from drhard.embeddings import open_document_embeddings, read_if_it_fits, warn_if_made_by_another
    from drhard.encoder import load_encoder
    from drhard.settings import SearchSettings

    if args.faiss_omp_num_threads is not None:
        limit_threads(args.faiss_omp_num_threads)
    settings = make_settings(args)
    output = AdoreOutput(args.model_save_dir, args.log_dir, args.init_path, args.save_steps, args.logging_steps)
    model = load_encoder(args.init_path)
    device = choose_device(gpu=args.model_gpu_index)
    documents = open_document_embeddings(args.pembed_path, model.output_embedding_size, collection)
    warn_if_made_by_another(args.pembed_path, model)
    relevant = collection.relevant("train", len(documents))
    searching = replace(SearchSettings.from_flags(args), progress=False)
    searching.check(args.neg_topk, *documents.shape)
    if not searching.gpus:
        documents = read_if_it_fits(documents)
    with sole_writer(args.model_save_dir):
        index = searching.open(documents, args.neg_topk)
        data = AdoreInput(queries, relevant, documents, index, searching.outcome())
        training = AdoreTraining.open(model.to(device), data, settings, output)
        if training.finished:
            print(f"{args.model_save_dir} already holds the checkpoints of this training")
            return
        print(
            f"Training on {len(relevant)} queries and {len(documents)} documents, model on {device}, "
            f"search on {'GPUs ' + str(searching.gpus) if searching.gpus else 'the CPU'}"
        )
        training.run()
    print(f"Wrote {args.model_save_dir}/epoch-{args.num_train_epochs}")


def make_settings(args: argparse.Namespace) -> "AdoreSettings":
    from drhard.adore import AdoreSettings

    return AdoreSettings(
        neg_topk=args.neg_topk,
        metric_cut=args.metric_cut,
        batch_size=args.per_gpu_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        adam_epsilon=args.adam_epsilon,
        max_grad_norm=args.max_grad_norm,
        warmup_steps=args.warmup_steps,
        epochs=args.num_train_epochs,
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
