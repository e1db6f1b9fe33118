#!/usr/bin/env bash
# Run STAR and ADORE on the embedded sample, from text to a table: bash quickstart.sh
# We chose learning rates, steps and epochs on a held-out part of the training queries (data/sample/README.md).
# This script sets up what is missing, runs the real scripts with output in runs/sample, and prints each command first.
# A second call runs only the missing steps. To start over, delete runs/sample.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup.sh

root=runs/sample
data=$root/passage
alone $root
step() { # step FILE COMMAND...: run the command unless FILE exists, which appears only when the results are whole
    local target=$1
    shift
    printf '\n$ %s\n' "$(printf '%q ' "$@")"
    if [ -e "$target" ]; then
        echo "$target already exists"
        return
    fi
    if [ "$1" = python ]; then
        shift
        "$python" "$@"
    else
        "$@"
    fi
}
copy() { # copy SOURCE TARGET: copy a folder; it gets its name only when it is whole
    printf '\n$ cp -R %q %q\n' "$1" "$2"
    if [ -e "$2" ]; then
        echo "$2 already exists"
        return
    fi
    rm -rf "$2.partial"
    cp -R "$1" "$2.partial"
    mv "$2.partial" "$2"
}

# 1. The sample has the format of MS MARCO's files. The starting checkpoint stands in for the published warm-up model.
mkdir -p "$data"
copy data/sample/passage/dataset $data/dataset
copy data/sample/warmup $data/warmup

# 2. Tokenize the texts.
step $data/preprocess/passages_meta \
    python preprocess.py --data_type 1 --data_root $root --model_name_or_path $data/warmup --max_query_length 64

# 3. Retrieve with the warm-up model.
for mode in dev test; do
    step $data/evaluate/warmup/$mode.rank.tsv \
        python star/inference.py --data_type passage --data_root $root --max_doc_length 64 --mode $mode \
        --model_dir $data/warmup --output_dir $data/evaluate/warmup
done

# 4. STAR: mine hard negatives with the warm-up model, then train both encoders.
step $data/warmup_retrieve/hard.json \
    python star/prepare_hardneg.py --data_type passage --data_root $root --max_doc_length 64 --mode train \
    --topk 10
step $data/trained_models/star/config.json \
    python star/train.py --do_train --max_query_length 24 --max_doc_length 64 \
    --preprocess_dir $data/preprocess --hardneg_path $data/warmup_retrieve/hard.json --init_path $data/warmup \
    --output_dir $data/trained_models/star --logging_dir $data/star_train/log \
    --optimizer_str lamb --learning_rate 1e-3 --per_device_train_batch_size 16 --max_steps 1600 --warmup_steps 50 \
    --save_steps 400
for mode in dev test; do
    step $data/evaluate/star/$mode.rank.tsv \
        python star/inference.py --data_type passage --data_root $root --max_doc_length 64 --mode $mode
done

# 5. ADORE: train the query encoder further, with the negatives that it retrieves itself.
step $data/adore_train/models/epoch-5/config.json \
    python adore/train.py --metric_cut 200 --init_path $data/trained_models/star \
    --pembed_path $data/evaluate/star/passages.memmap --preprocess_dir $data/preprocess \
    --model_save_dir $data/adore_train/models --log_dir $data/adore_train/log \
    --learning_rate 5e-5 --warmup_steps 100 --num_train_epochs 5 --logging_steps 50
for mode in dev test; do
    step $data/evaluate/adore-star/$mode.rank.tsv \
        python adore/inference.py --model_dir $data/adore_train/models/epoch-5 --output_dir $data/evaluate/adore-star \
        --preprocess_dir $data/preprocess --mode $mode --dmemmap_path $data/evaluate/star/passages.memmap
done

# 6. Convert the run to official ids, and compute MS MARCO's measure.
step $data/official_runs/adore-star/dev.rank.tsv \
    python cvt_back.py --input_dir $data/evaluate/adore-star --preprocess_dir $data/preprocess \
    --output_dir $data/official_runs/adore-star --mode dev --dataset passage
step /nothing python msmarco_eval.py $data/dataset/qrels.dev.small.tsv $data/official_runs/adore-star/dev.rank.tsv

# 7. Print the table.
step /nothing python data/sample/results.py --data_root $root
