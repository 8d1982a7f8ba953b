#!/usr/bin/env bash
# GRPO for Qwen2.5-VL 7B on ReVOS, from an SFT checkpoint, on 4 GPUs.
#
#   MODEL_PATH=… REVOS_ROOT=… SAM2_CHECKPOINT=… OUTPUT=… bash $0 [key=value …]
#
# Relative paths are relative to the current folder. Every setting can be overridden by key=value, the paths too:
# worker.actor.model.model_path=… instead of MODEL_PATH.
# data.train_meta=… trains on a sampled subset; python3 -m verl.config with the same arguments shows the configuration.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"
launch 7b 4 "$@"
