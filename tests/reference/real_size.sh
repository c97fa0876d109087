#!/usr/bin/env bash
# One Adafactor step at real size, by the original and by us: the original trains a released architecture for two steps
# and saves it with its slots; we convert it, take the next step from the slots, and compare the loss after it.
#
#   real_size.sh BUILD_DIR BIN [NAME ...]
#
# BUILD_DIR is that of make_reference.sh, which must have run; BIN has this project's commands; NAME is an architecture,
# by default t5.1.th.base and t5.1.n4w10.base. Each needs 8 GB of memory, 4 GB of disk and some minutes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$1 bin=$2
shift 2
[[ $# -gt 0 ]] || set -- t5.1.th.base t5.1.n4w10.base

status=0
for name in "$@"; do
    folder=$build/real_size/$name
    rm -rf "$folder" && mkdir -p "$folder"
    # Slots are factored from dimension 128 on, as the original's are at this size.
    CUDA_VISIBLE_DEVICES="" TF_CPP_MIN_LOG_LEVEL=3 "$build/venv/bin/python" "$here/mesh_oracle.py" \
        --gin-root "$build/t5-0.9.4/t5/models/gin" --model "$name" --out "$folder/mesh" --vocab 32100 --reserved-ids 100 \
        --alphabet 30000 --batch 2 --input-length 64 --target-length 32 --steps 2 --learning-rate 0.01 \
        --min-dim-size-to-factor 128
    "$bin/t5-experimental" convert "$folder/mesh" "$folder/converted" --with-optimizer
    "$bin/python" "$here/../check_next_step.py" "$folder/converted" "$folder/mesh/golden.npz" 0.01 || status=1
    rm -rf "$folder"
done
exit $status
