#!/usr/bin/env bash
# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
#
# The whole road on a genuine checkpoint, small enough for two CPU cores: convert, compare with the original's outputs,
# fine-tune, generate. `make demo` runs it in the repository root with the environment's programs first on PATH.
# With DEMO_DIR set, everything is left in that folder, which must not exist; otherwise it is temporary.
set -euo pipefail

golden=tests/reference/golden/t5.1.1.tiny
data=tests/data

if [[ -n ${DEMO_DIR:-} ]]; then
    mkdir "$DEMO_DIR"
    dir=$DEMO_DIR
else
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
fi
# The cache of `datasets` goes with the folder, and nothing here asks a model hub.
export HF_DATASETS_CACHE=$dir/cache HF_HUB_OFFLINE=1 TF_CPP_MIN_LOG_LEVEL=3
SECONDS=0

step() { printf '\n==> %s\n' "$1"; }

step "1. Convert a checkpoint that the original Mesh TensorFlow code wrote ($golden)"
t5-experimental convert "$golden" "$dir/t5.1.1.tiny" --vocab "$data/restaurants.model"

step "2. Compare with what the original code computed from it"
python tests/check_golden.py "$dir/t5.1.1.tiny" "$golden/golden.npz"

step "3. Fine-tune it: facts about invented restaurants -> text"
# A model of this size learns best with larger steps than a real one, and without dropout.
accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no training/finetune.py \
    --model_name_or_path "$dir/t5.1.1.tiny" --output_dir "$dir/restaurants" \
    --train_file "$data/restaurants_train.jsonl" --test_file "$data/restaurants_test.jsonl" \
    --max_steps 200 --per_device_train_batch_size 32 --learning_rate 0.01 --dropout_rate 0 \
    --max_source_length 64 --max_target_length 48 --predict_with_generate \
    --save_strategy no --disable_tqdm True --use_cpu

step "4. Load the result with AutoModelForSeq2SeqLM and generate"
python tests/generate_samples.py "$dir/restaurants" "$data/restaurants_test.jsonl"

step "Done in $SECONDS s: converted, equal to the original, fine-tuned, generated"
[[ -z ${DEMO_DIR:-} ]] || echo "Everything is in $dir"
