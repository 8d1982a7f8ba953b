# shellcheck shell=bash
# Sourced by the SFT scripts: `sft` trains a LoRA adapter with LLaMA-Factory and merges it into a full checkpoint.
# shellcheck source-path=SCRIPTDIR source=paths.sh
source "$(dirname "${BASH_SOURCE[0]}")/paths.sh"

# setting KEY ARGUMENT…: prints the value of the last KEY=… among the arguments
setting() {
    local key=$1 argument value=
    shift
    for argument in "$@"; do
        [[ $argument == "$key="* ]] && value=${argument#*=}
    done
    printf '%s\n' "$value"
}

# refuse_spaces ARGUMENT…: exits with 2 at white space: LLaMA-Factory's launcher for several GPUs splits its command there
refuse_spaces() {
    local argument
    for argument in "$@"; do
        if [[ $argument == *[[:space:]]* ]]; then
            echo "error: white space in '$argument': LLaMA-Factory cannot take it; choose a path without" >&2
            exit 2
        fi
    done
}

# drop_unfinished ADAPTER: removes half-written checkpoints of a killed run; their trainer state is written last
drop_unfinished() {
    local checkpoint
    for checkpoint in "$1"/checkpoint-*/; do
        [[ -d $checkpoint && ! -s $checkpoint/trainer_state.json ]] || continue
        echo "removing the unfinished $checkpoint"
        rm -r "$checkpoint"
    done
}

# hold FOLDER: holds its lock until this script and its child processes have ended, on the first of several machines
hold() {
    [[ ${NODE_RANK:-0} == 0 && ${VEASON_NO_LOCKS:-} != 1 ]] && command -v flock >/dev/null || return 0
    mkdir -p "$1" && exec 9>>"$1/.lock" || exit 2
    if ! flock --nonblock 9; then
        echo "error: $1: another run is writing here, or this file system has no locks: wait for it or end it," \
            "or set VEASON_NO_LOCKS=1 and make sure that one run writes at a time" >&2
        exit 2
    fi
}

# sft NAME DTYPE ARGUMENT…: trains with sft_NAME.yaml and merges in DTYPE; arguments override the YAML's keys.
# Writes OUTPUT/adapter (LoRA and checkpoints) and OUTPUT/merged. A finished part is not repeated.
sft() {
    local name=$1 dtype=$2 here model data output python=${PYTHON:-python3}
    shift 2
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    PATHS=() MISSING=()
    take model_name_or_path MODEL_PATH "the folder of the checkpoint to start from, Qwen2.5-VL as published" "$@"
    take dataset_dir SFT_DATA "the folder that training_data_construction.build_sft wrote" "$@"
    take output_dir OUTPUT "the folder to write adapter/ and merged/ to" "$@"
    stop_if_missing
    model=$(setting model_name_or_path "${PATHS[@]}" "$@")
    data=$(setting dataset_dir "${PATHS[@]}" "$@")
    output=$(setting output_dir "${PATHS[@]}" "$@")
    refuse_spaces "${PATHS[@]}" "$@"

    export PYTHONPATH="${here%/*}${PYTHONPATH:+:$PYTHONPATH}"
    python=$(command -v "$python") || { echo "error: no ${PYTHON:-python3}; set PYTHON to the one to use" >&2; exit 2; }
    PATH="$(dirname "$python"):$PATH" # torchrun, which LLaMA-Factory starts by name for several GPUs
    export PATH WANDB_DISABLED=true

    if [[ -e $output/merged && ! -e $output/adapter/train_results.json ]]; then
        echo "error: $output/merged is there, but its adapter is not: remove it, or choose another OUTPUT" >&2
        exit 2
    fi
    hold "$output"
    "$python" -m training_data_construction.sft_run start "$here/sft_$name.yaml" "$output" "${PATHS[@]}" "$@"
    if [[ -e $output/adapter/train_results.json ]]; then
        echo "$output/adapter is trained; remove it to train again"
    else
        drop_unfinished "$output/adapter"
        "$python" -m llamafactory.cli train "$here/sft_$name.yaml" "${PATHS[@]}" "$@" "output_dir=$output/adapter"
    fi
    if [[ -e $output/merged ]]; then
        echo "$output/merged is there; remove it to merge again"
        return
    fi
    "$python" -m training_data_construction.sft_run adapter "$model" "$output/adapter"
    rm -rf "$output/merged.partial"
    "$python" -m llamafactory.cli export --model_name_or_path "$model" --adapter_name_or_path "$output/adapter" \
        --template qwen2_vl --export_dir "$output/merged.partial" --export_device cpu --infer_dtype "$dtype"
    "$python" -m training_data_construction.sft_checkpoint "$model" "$output/merged.partial" "$output/merged" \
        --data "$data"
}
