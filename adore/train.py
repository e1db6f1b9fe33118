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
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from drhard import processes
from drhard.adore_settings import AdoreOutput, AdoreSettings
from drhard.collection import Collection
from drhard.commands import shared_command
from drhard.files import require_file, sole_writer
from drhard.flags import ENCODER, INDEX, add_flags
from drhard.hub import find_checkpoint
from drhard.numbers import COUNT, NATURAL
from drhard.trainer_flags import add_flag
from drhard.validation import Validation


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init_path", required=True, help="encoder that embedded the documents")
    parser.add_argument("--pembed_path", type=Path, required=True, help="embeddings that star/inference.py wrote")
    parser.add_argument("--model_save_dir", type=Path, required=True, help="folder for epoch-1, epoch-2, …")
    parser.add_argument("--log_dir", type=Path, required=True, help="folder for TensorBoard's files")
    parser.add_argument("--preprocess_dir", type=Path, required=True)
    add_flags(parser, *ENCODER, "--max_seq_length")
    for name, flag in (AdoreSettings.flags() | AdoreOutput.flags()).items():
        add_flag(parser, name, flag)
    parser.add_argument("--model_gpu_index", type=NATURAL, default=0, help="GPU of the model, if there is one (0)")
    add_flags(parser, "--torch_compile", "--faiss_gpu_index", *INDEX)
    parser.add_argument("--faiss_omp_num_threads", type=COUNT, help="threads on the CPU (all cores)")
    return parser.parse_args()


@shared_command
def main() -> None:
    args = parse_arguments()
    collection = Collection(args.preprocess_dir, args.max_seq_length)
    collection.queries("train")  # refuses what is missing or damaged
    require_file(args.pembed_path)
    checkpoint = find_checkpoint(args.init_path)
    settings, output = AdoreSettings.from_flags(args), AdoreOutput.from_flags(args, tokenizer_from=checkpoint)

    # Imported here: torch takes seconds to load, and a wrong command should fail before that.
    from drhard.adore import AdoreInput, AdoreTraining
    from drhard.devices import choose_device, limit_threads, require_compiler
    from drhard.embeddings import open_document_embeddings, read_if_it_fits, warn_if_made_by_another
    from drhard.model_folder import load_encoder
    from drhard.settings import SearchSettings

    if args.faiss_omp_num_threads is not None:
        limit_threads(args.faiss_omp_num_threads)
    model = load_encoder(args.init_path, pooling=args.pooling, normalize=args.normalize)
    device = choose_device(gpu=args.model_gpu_index)
    if args.torch_compile:
        require_compiler(device)
        model.speed_up()
    documents = open_document_embeddings(args.pembed_path, model.output_embedding_size, collection)
    warn_if_made_by_another(args.pembed_path, model)
    relevant = collection.relevant_found("train", len(documents))
    validation = Validation.from_flags(settings, collection, len(documents))
    deepest = max(settings.neg_topk, validation.depth if validation else 0)
    searching = replace(SearchSettings.from_flags(args), progress=False, repeated=True)
    searching.check(deepest, len(documents) - len(collection.left_out), documents.shape[1])
    if processes.count() == 1 and not searching.gpus:  # each of several processes holds a part
        documents = read_if_it_fits(documents)
    with sole_writer(output.model_save_dir) if processes.is_first() else nullcontext():
        index = searching.open(documents, deepest, collection.left_out)
        data = AdoreInput(collection, relevant, documents, index, searching.outcome(), validation)
        training = AdoreTraining.open(model.to(device), data, settings, output)
        if training.finished:
            print(f"{output.model_save_dir} already holds the checkpoints of this training")
            return
        print(
            f"Training on {len(relevant)} queries and {len(documents)} documents, model on {device}, "
            f"search on {'GPUs ' + str(searching.gpus) if searching.gpus else 'the CPU'}"
        )
        training.run()
    print(f"Wrote {training.newest}")
    if validation is not None:
        print(validation.report(output.model_save_dir))


if __name__ == "__main__":
    main()
