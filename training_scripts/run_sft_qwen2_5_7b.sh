#!/usr/bin/env bash
# SFT of Qwen2.5-VL 7B on chain-of-thought data, with LLaMA-Factory, on all GPUs that are visible.
#
#   MODEL_PATH=… SFT_DATA=… OUTPUT=… bash $0 [key=value …]
#
# MODEL_PATH: Qwen2.5-VL as published. SFT_DATA: output of training_data_construction.build_sft. The checkpoint for
# GRPO is OUTPUT/merged. Relative paths are relative to the current folder. Every key of sft_qwen2_5_7b.yaml can be
# overridden by key=value, the paths too: model_name_or_path=…, dataset_dir=…, output_dir=…. The same command
# resumes a stopped run. One process per GPU; NPROC_PER_NODE, NNODES, NODE_RANK and MASTER_ADDR are LLaMA-Factory's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/sft.sh"
sft qwen2_5_7b bfloat16 "$@"
