# shellcheck shell=bash
# Sourced by the run scripts: turns MODEL_PATH, REVOS_ROOT, SAM2_CHECKPOINT and OUTPUT into settings, in the array PATHS.

# given KEY ARGUMENT…: whether KEY=… is among the arguments
given() {
    local key=$1 argument
    shift
    for argument in "$@"; do
        [[ $argument == "$key="* ]] && return 0
    done
    return 1
}

# take KEY VARIABLE MEANING ARGUMENT…: KEY from the environment, unless an argument gives it
take() {
    local key=$1 variable=$2 meaning=$3
    shift 3
    given "$key" "$@" && return 0
    local value=${!variable:-}
    if [[ -z $value ]]; then
        echo "error: set $variable to $meaning, or give $key=…" >&2
        exit 2
    fi
    if [[ $variable != OUTPUT && ! -e $value ]]; then
        echo "error: $variable=$value does not exist: set it to $meaning, or give $key=…" >&2
        exit 2
    fi
    PATHS+=("$key=$value")
}

# needs_sam2 ARGUMENT…: false where the consistency term is off or another tracker serves it
needs_sam2() {
    local argument
    for argument in "$@"; do
        case $argument in
            worker.reward.weights.consistency=0 | worker.reward.weights.consistency=0.0) return 1 ;;
            worker.reward.tracker=sam2) ;;
            worker.reward.tracker=*) return 1 ;;
        esac
    done
    return 0
}

resolve_paths() {
    PATHS=()
    take worker.actor.model.model_path MODEL_PATH "the folder of the checkpoint to start from" "$@"
    take data.train_files REVOS_ROOT "the root of ReVOS (the folder of meta_expressions_train_.json)" "$@"
    if needs_sam2 "$@"; then
        take worker.reward.sam2_checkpoint SAM2_CHECKPOINT "SAM2's weights, such as sam2.1_hiera_large.pt" "$@"
    fi
    take trainer.save_checkpoint_path OUTPUT "the folder to write checkpoints, metrics and rollouts to" "$@"
}

# launch SIZE GPUS ARGUMENT…: train the 3b or 7b policy as the paper does; later arguments override earlier ones
launch() {
    local size=$1 gpus=$2 here
    shift 2
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    resolve_paths "$@"

    export PYTHONPATH="${here%/*}${PYTHONPATH:+:$PYTHONPATH}"
    export VLLM_ATTENTION_BACKEND=XFORMERS
    export MKL_SERVICE_FORCE_INTEL=1
    export RAY_memory_monitor_refresh_ms=0

    exec "${PYTHON:-python3}" -m verl.trainer.main \
        config="$here/video_seg_zero_${size}_keyframe_sam_sft_mod.yaml" \
        worker.actor.kl_loss_coef=5.0e-3 \
        worker.actor.optim.lr=1.0e-6 \
        worker.actor.micro_batch_size_per_device_for_update=1 \
        worker.actor.micro_batch_size_per_device_for_experience=1 \
        worker.rollout.enable_chunked_prefill=false \
        worker.rollout.n=8 \
        trainer.n_gpus_per_node="$gpus" \
        trainer.total_episodes=1 \
        "${PATHS[@]}" \
        "$@"
}
