#!/usr/bin/env bash
# GRPO for Qwen2.5-VL 7B on ReVOS, from an SFT checkpoint, on 4 GPUs.
#
#   MODEL_PATH=… REVOS_ROOT=… SAM2_CHECKPOINT=… OUTPUT=… bash $0 [key=value …]
#
# Relative paths are taken from where it is called. Every setting can be overridden by key=value, the paths too:
# worker.actor.model.model_path=… instead of MODEL_PATH.
# data.train_meta=… trains on a sampled subset; python3 -m verl.config with the same arguments shows what they lead to.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/paths.sh"
resolve_paths "$@"

export PYTHONPATH="${here%/*}${PYTHONPATH:+:$PYTHONPATH}"
export VLLM_ATTENTION_BACKEND=XFORMERS
export MKL_SERVICE_FORCE_INTEL=1
export RAY_memory_monitor_refresh_ms=0

exec "${PYTHON:-python3}" -m verl.trainer.main \
    config="$here"/video_seg_zero_7b_keyframe_sam_sft_mod.yaml \
    worker.actor.kl_loss_coef=5.0e-3 \
    worker.actor.optim.lr=1.0e-6 \
    worker.actor.micro_batch_size_per_device_for_update=1 \
    worker.actor.micro_batch_size_per_device_for_experience=1 \
    worker.rollout.enable_chunked_prefill=false \
    worker.rollout.n=8 \
    trainer.n_gpus_per_node=4 \
    trainer.total_episodes=1 \
    "${PATHS[@]}" \
    "$@"
