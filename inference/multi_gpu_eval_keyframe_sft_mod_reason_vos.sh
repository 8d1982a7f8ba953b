#!/usr/bin/env bash
# Predict a data set on all GPUs of this machine (or of a Ray cluster): ReasonVOS unless told otherwise.
#
#   MODEL_PATH=… DATA_ROOT=… SAM2_CHECKPOINT=… OUTPUT=… bash $0 [option …]
#
# DATASET   reasonvos (default), revos, mevis, …: what `python3 -m inference.predict --help` lists
# SPLIT     of the data set; its scored one if not given
# GPUS      how many; all that nvidia-smi lists if not given. WORKERS=N runs N workers on CPUs instead
# POLICY    hf (default), or another that --help lists
#
# Further options go to inference.predict and win over the variables: --masks rle, --limit 10, --address HOST:PORT.
# The same command goes on where a stopped one was. Needs SAM2_CHECKPOINT unless --tracker grabcut is given.
set -euo pipefail

# given OPTION ARGUMENT…: whether OPTION or OPTION=… is among the arguments
given() {
    local option=$1 argument
    shift
    for argument in "$@"; do
        [[ $argument == "$option" || $argument == "$option="* ]] && return 0
    done
    return 1
}

# take OPTION VARIABLE MEANING ARGUMENT…: OPTION from the environment, unless an argument gives it
take() {
    local option=$1 variable=$2 meaning=$3
    shift 3
    given "$option" "$@" && return 0
    if [[ -z ${!variable:-} ]]; then
        echo "error: set $variable to $meaning, or give $option …" >&2
        exit 2
    fi
    OPTIONS+=("$option" "${!variable}")
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OPTIONS=(--dataset "${DATASET:-reasonvos}" --policy "${POLICY:-hf}")
take --data-root DATA_ROOT "the folder of the data set" "$@"
take --output OUTPUT "the folder to write the run to" "$@"
[[ -n ${SPLIT:-} ]] && OPTIONS+=(--split "$SPLIT")
if [[ ${POLICY:-hf} == hf ]] && ! given --policy "$@"; then
    take --model MODEL_PATH "the folder of the checkpoint" "$@"
elif [[ -n ${MODEL_PATH:-} ]]; then
    OPTIONS+=(--model "$MODEL_PATH")
fi
if ! given --tracker "$@"; then
    OPTIONS+=(--tracker sam2)
    take --sam2-checkpoint SAM2_CHECKPOINT "SAM2's weights, such as sam2.1_hiera_large.pt" "$@"
fi
if ! given --gpus "$@" && ! given --workers "$@"; then
    if [[ -n ${WORKERS:-} ]]; then
        OPTIONS+=(--workers "$WORKERS")
    else
        gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
        if [[ $gpus == 0 ]]; then
            echo "error: nvidia-smi lists no GPU; set GPUS, or WORKERS=N to run on CPUs" >&2
            exit 2
        fi
        OPTIONS+=(--gpus "$gpus")
    fi
fi

export PYTHONPATH="${here%/*}${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m inference.predict "${OPTIONS[@]}" "$@"
