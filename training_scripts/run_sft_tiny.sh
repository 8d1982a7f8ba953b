#!/usr/bin/env bash
# SFT of the tiny policy on the CPU: the steps of run_sft_qwen2_5_3b.sh in a minute, most of it start-up.
#
#   MODEL_PATH=world/tiny_policy SFT_DATA=… OUTPUT=… bash $0 [key=value …]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/sft.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the model is too small to share: two threads only wait for each other
export CUDA_VISIBLE_DEVICES=                   # or LLaMA-Factory would start a process per GPU
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
sft tiny float32 "$@"
