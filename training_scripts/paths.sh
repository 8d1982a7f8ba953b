# shellcheck shell=bash
# Sourced by the run scripts: turns MODEL_PATH, REVOS_ROOT, SAM2_CHECKPOINT and OUTPUT into settings, in the array PATHS.
# Paths that are missing or do not exist are collected in MISSING and reported together.

# given KEY ARGUMENT…: succeeds if KEY=… is among the arguments
given() {
    local key=$1 argument
    shift
    for argument in "$@"; do
        [[ $argument == "$key="* ]] && return 0
    done
    return 1
}

# take KEY VARIABLE MEANING ARGUMENT…: takes KEY from the environment, unless an argument gives it
take() {
    local key=$1 variable=$2 meaning=$3
    shift 3
    given "$key" "$@" && return 0
    local value=${!variable:-}
    if [[ -z $value ]]; then
        MISSING+=("set $variable to $meaning, or give $key=…")
    elif [[ $variable != OUTPUT && ! -e $value ]]; then
        MISSING+=("$variable=$value does not exist: set it to $meaning, or give $key=…")
    fi
    PATHS+=("$key=$value")
}

# stop_if_missing: exits with 2 and a line for each path that `take` did not find
stop_if_missing() {
    ((${#MISSING[@]} == 0)) && return 0
    printf 'error: %s\n' "${MISSING[@]}" >&2
    exit 2
}

# needs_sam2 ARGUMENT…: fails if the consistency term is off or has another tracker; the last of equal keys counts
needs_sam2() {
    local argument weight=1 tracker=sam2
    for argument in "$@"; do
        case $argument in
            worker.reward.weights.consistency=*) weight=${argument#*=} ;;
            worker.reward.tracker=*) tracker=${argument#*=} ;;
        esac
    done
    [[ ! $weight =~ ^0+(\.0*)?$ && $tracker == sam2 ]]
}

# resolve_paths ARGUMENT…: fills PATHS; MODEL_VARIABLE names the variable of the model's folder (MODEL_PATH)
resolve_paths() {
    PATHS=() MISSING=()
    take worker.actor.model.model_path "${MODEL_VARIABLE:-MODEL_PATH}" "the folder of the checkpoint to start from" "$@"
    take data.train_files REVOS_ROOT "the root of ReVOS (the folder of meta_expressions_train_.json)" "$@"
    if needs_sam2 "$@"; then
        take worker.reward.sam2_checkpoint SAM2_CHECKPOINT "SAM2's weights, such as sam2.1_hiera_large.pt" "$@"
    fi
    take trainer.save_checkpoint_path OUTPUT "the folder to write checkpoints, metrics and rollouts to" "$@"
    stop_if_missing
}

# launch SIZE GPUS ARGUMENT…: trains the 3b or 7b policy as the paper does; later arguments override earlier ones.
# CHECK_ONLY=1: checks that all settings are given and valid, and trains nothing.
launch() {
    local size=$1 gpus=$2 here module=verl.trainer.main
    shift 2
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    resolve_paths "$@"

    export PYTHONPATH="${here%/*}${PYTHONPATH:+:$PYTHONPATH}"
    export VLLM_ATTENTION_BACKEND=XFORMERS
    export MKL_SERVICE_FORCE_INTEL=1
    export RAY_memory_monitor_refresh_ms=0

    if [[ -n ${CHECK_ONLY:-} ]]; then
        module=verl.config
    fi
    exec "${PYTHON:-python3}" -m "$module" \
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
