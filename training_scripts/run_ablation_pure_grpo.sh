#!/usr/bin/env bash
# Ablation: GRPO from the base model, no SFT before it. BASE_MODEL_PATH takes MODEL_PATH's place; else as the other ones.
exec env MODEL_VARIABLE=BASE_MODEL_PATH bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2_5_${MODEL_SIZE:-3b}_revos_keyframe_sam_sft_mod.sh" "$@"
