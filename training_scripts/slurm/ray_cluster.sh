# shellcheck shell=bash
# Sourced by the batch scripts: a Ray cluster on the nodes that SLURM allocated, for as long as the job lasts.
#
#   start_ray          starts it and sets RAY_ADDRESS; the last node to join is waited for
#   stop_ray           ends it; also what happens when the script ends for any reason
#
# PYTHON          the interpreter on the nodes (python3); its Ray is the one that is started
# GPUS_PER_NODE   what each node offers to Ray (what SLURM gave: SLURM_GPUS_ON_NODE; 0 without)
# CPUS_PER_NODE   the same for CPUs (SLURM_CPUS_ON_NODE)
# RAY_PORT        of the head node; from the job's number if not given, so that jobs on one node do not meet
# RAY_WAIT        seconds to wait for all nodes (600)
# RAY_FOLDER      for Ray's sockets and logs on each node (/tmp/ray-<job>)

RAY_STEPS=()

start_ray() {
    local nodes head node number job=${SLURM_JOB_ID:?"run this inside an allocation: sbatch, or salloc"}
    local address python=${PYTHON:-python3} cpus=${CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:-1}}
    local gpus=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
    local port=${RAY_PORT:-$((20000 + ${job//[!0-9]/} % 20000))} folder=${RAY_FOLDER:-/tmp/ray-$job}
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    head=${nodes[0]}
    address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
    address=${address%% *} # the first, where a node has several
    export RAY_ADDRESS=$address:$port
    # `ray start` wants a token of whoever joins: one of this job's own, which every step gets with the environment
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -tx1 -N16 /dev/urandom | tr -d ' \n')}
    trap stop_ray EXIT
    trap 'exit 143' TERM INT

    echo "ray: head on $head, $RAY_ADDRESS; ${#nodes[@]} node(s) with $cpus CPU(s) and $gpus GPU(s) each"
    RAY_STEPS=()
    for number in "${!nodes[@]}"; do
        node=${nodes[number]}
        local where=(--address="$RAY_ADDRESS")
        if [[ $number == 0 ]]; then
            where=(--head --node-ip-address="$address" --port="$port" --include-dashboard=false --temp-dir="$folder")
        fi
        srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$cpus" --overlap --export=ALL \
            "$python" -m ray.scripts.scripts start --block --disable-usage-stats \
            --num-cpus="$cpus" --num-gpus="$gpus" "${where[@]}" >"${SLURM_SUBMIT_DIR:-.}/ray-$job-$number.log" 2>&1 &
        RAY_STEPS+=($!)
        [[ $number == 0 ]] && await_nodes "$python" 1
    done
    await_nodes "$python" "${#nodes[@]}"
}

# await_nodes PYTHON COUNT: until so many nodes have joined; the job fails if they do not, or a step ends
await_nodes() {
    local deadline=$((SECONDS + ${RAY_WAIT:-600})) found=0 step
    while ((SECONDS < deadline)); do
        for step in "${RAY_STEPS[@]}"; do
            kill -0 "$step" 2>/dev/null || break 2
        done
        found=$(timeout 60 "$1" -c 'import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' "$RAY_ADDRESS" 2>/dev/null | tail -n 1) || found=0
        ((${found:-0} >= $2)) && return 0
        sleep 1
    done
    echo "error: ${found:-0} of $2 node(s) joined; see ray-$SLURM_JOB_ID-*.log" >&2
    exit 1
}

stop_ray() {
    local step
    trap - EXIT
    for step in "${RAY_STEPS[@]}"; do
        kill "$step" 2>/dev/null || true
    done
    wait "${RAY_STEPS[@]}" 2>/dev/null || true
    RAY_STEPS=()
}
