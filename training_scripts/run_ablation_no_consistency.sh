#!/usr/bin/env bash
# Ablation: without the consistency reward, and so without SAM2. Paths and further key=value arguments as for the 3B run; MODEL_SIZE=7b takes the 7B one.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2_5_${MODEL_SIZE:-3b}_revos_keyframe_sam_sft_mod.sh" worker.reward.weights.consistency=0 "$@"
