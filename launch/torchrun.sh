#!/usr/bin/env bash
# Calls torchrun with the number of ranks, the threads, the nodes and the rendezvous that this place calls for.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: launch/torchrun.sh [TORCHRUN OPTIONS] -m fdtrain --config FILE ...

Finds out what torchrun must be told here, and becomes torchrun with the words that follow (in a step of Slurm it waits
for torchrun instead, and ends with 143 where Slurm's SIGTERM ended that):

  ranks    one for each GPU of CUDA_VISIBLE_DEVICES, else of nvidia-smi, else that Slurm granted; without GPUs one.
           FDTRAIN_RANKS sets another. GPUs that Slurm granted and nvidia-smi doesn't list are an error.
  threads  OMP_NUM_THREADS = cores / ranks, unless it is set.
  nodes    those of the Slurm job step this runs in (srun --ntasks-per-node=1 launch/torchrun.sh ...), meeting on the
           first of them; elsewhere this host alone.
  port     alone: any free one. On several nodes: derived from the job's id, or FDTRAIN_PORT.

FDTRAIN_COMMAND_PREFIX stands before torchrun: words for the shell, such as `apptainer exec --nv fdtrain.sif`.
FDTRAIN_JOIN_SECONDS (300) is how long the nodes wait for one another; who is missing then is named on each.

Other calls, for scripts:
  launch/torchrun.sh --print-port          a free port of this host, from the job's id on
  launch/torchrun.sh --print-address NODE  under which name or address a Slurm node is reached
  launch/torchrun.sh --help                this text
TEXT
}

fail() {
    echo "launch/torchrun.sh: error: $*" >&2
    exit 1
}

# Another one for each job on a node; below the ports that the kernel gives out by itself (32768 and up), and above
# those of Ray's workers (10002 to 19999), since sweep.sbatch asks here too.
first_port() {
    echo $((20000 + ${SLURM_JOB_ID:-$$} % 12000))
}

# The first port from $1 on, of $2, that nobody listens on.
free_port() {
    python3 - "$1" "$2" <<'PYTHON'
import socket, sys
first, count = map(int, sys.argv[1:])
for port in range(first, first + count):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that died lately is in nobody's way
        try:
            sock.bind(("", port))
        except OSError:
            continue
        print(port)
        break
else:
    sys.exit(1)
PYTHON
}

# A node's name where it can be looked up, else the address that Slurm itself reaches it under.
address_of() {
    local address
    if getent hosts "$1" >/dev/null; then
        echo "$1"
        return
    fi
    address=$(scontrol --oneliner show node "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    [[ -n $address ]] || fail "node $1: neither its name nor Slurm says how to reach it"
    echo "$address"
}

count_gpus() {
    local -a devices
    local granted=${SLURM_GPUS_ON_NODE:-0} count
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
        case ${devices[0]-} in
            "" | -1 | NoDevFiles) echo 0 ;;
            *) echo "${#devices[@]}" ;;
        esac
    elif command -v nvidia-smi >/dev/null; then
        # A login node has the program and no driver, and says so with an exit code.
        count=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU ' || true)
        ((count > 0 || granted == 0)) || [[ -n ${FDTRAIN_RANKS-} ]] ||
            fail "Slurm granted $granted GPUs on $(hostname), and nvidia-smi lists none; have the node looked at," \
                "or train on its CPU by FDTRAIN_RANKS=1 and --engine.device cpu"
        echo "$count"
    else
        echo "$granted"
    fi
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if ! command -v torchrun >/dev/null && [[ -x $root/.venv/bin/torchrun ]]; then
    PATH=$root/.venv/bin:$PATH
fi

case ${1-} in
    -h | --help)
        usage
        exit
        ;;
    --print-port)
        free_port "$(first_port)" 100 || fail "the 100 ports from $(first_port) on are all in use"
        exit
        ;;
    --print-address)
        address_of "${2:?a node}"
        exit
        ;;
    "")
        usage >&2
        exit 2
        ;;
esac
eval "torchrun=(${FDTRAIN_COMMAND_PREFIX-} torchrun)"
((${#torchrun[@]} > 1)) || command -v torchrun >/dev/null || fail "no torchrun on PATH; make setup, then source .venv/bin/activate"

gpus=$(count_gpus) || exit
ranks=${FDTRAIN_RANKS:-$((gpus > 0 ? gpus : 1))}
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "FDTRAIN_RANKS: '$ranks' is no number of ranks; give 1 or more"
((gpus == 0 || ranks <= gpus)) ||
    fail "FDTRAIN_RANKS: $ranks ranks, and there are $gpus GPUs here; a rank needs its own"
join_seconds=${FDTRAIN_JOIN_SECONDS:-300}
[[ $join_seconds =~ ^[1-9][0-9]*$ ]] || fail "FDTRAIN_JOIN_SECONDS: '$join_seconds' is no number of seconds"

if [[ -z ${OMP_NUM_THREADS-} ]]; then
    cores=$(nproc)
    # Where Slurm shares a node out without binding, the cores of this job are fewer than those seen.
    granted=${SLURM_CPUS_PER_TASK:-$cores}
    cores=$((granted < cores ? granted : cores))
    export OMP_NUM_THREADS=$((cores > ranks ? cores / ranks : 1))
fi

# How long torchrun waits, after TERM or Ctrl-C, for workers that end their step and save; by itself it is 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}

# USR1 ("the time is nearly up") is for the workers, which set a handler of their own. torchrun would die of it and
# leave them behind. What is ignored stays ignored across exec, so Slurm may send it to every process of a step.
trap '' USR1

nodes=1
# A batch shell has most of these variables too; only a step has a launcher on each of its nodes.
if [[ -n ${SLURM_STEP_NODELIST-} && -n ${SLURM_NODEID-} ]]; then
    nodes=${SLURM_STEP_NUM_NODES:-$SLURM_NNODES}
    tasks=${SLURM_STEP_NUM_TASKS:-$nodes}
    ((tasks == nodes)) ||
        fail "$tasks tasks on $nodes nodes; torchrun starts the ranks itself: srun --ntasks-per-node=1"
elif ((${SLURM_NNODES:-1} > 1)); then
    fail "this is a job of $SLURM_NNODES nodes, and here is one of them:" \
        "srun --ntasks-per-node=1 launch/torchrun.sh ..."
fi

# Becomes torchrun. In a step of Slurm it stays above it: torchrun's exit code after TERM is 1, as after any fault, and
# the batch script has to know that it was Slurm that ended the step. Slurm's TERM reaches torchrun by itself.
become_torchrun() {
    [[ -n ${SLURM_STEP_NODELIST-} ]] || exec "${torchrun[@]}" "$@"
    local told=false code=0
    trap 'told=true' TERM
    "${torchrun[@]}" "$@" || code=$?
    ! $told || ((code == 0)) || code=143
    exit "$code"
}

if ((nodes == 1)); then
    become_torchrun --standalone --nproc-per-node "$ranks" "$@"
fi

head=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
meeting=$(address_of "$head")
port=${FDTRAIN_PORT:-$(first_port)}
run_id=$SLURM_JOB_ID-${SLURM_STEP_ID:-0}-${SLURM_RESTART_COUNT:-0}
echo "node $SLURMD_NODENAME ($((SLURM_NODEID + 1)) of $nodes): $ranks ranks on ${gpus} GPUs," \
    "$OMP_NUM_THREADS threads each; meeting at $meeting:$port as $run_id"
# So that a node that never comes is named: torchrun knows those alone that came.
call=(python3 "$root/launch/roll_call.py" --job "$run_id" --port "$port" --seconds "$join_seconds"
    --node "$SLURMD_NODENAME")
if ((SLURM_NODEID == 0)); then
    is_host=true
    mapfile -t names < <(scontrol show hostnames "$SLURM_STEP_NODELIST")
    "${call[@]}" --expect "${names[@]}" || exit
else
    is_host=false
    "${call[@]}" --at "$meeting" || exit
fi
become_torchrun --nnodes "$nodes" --nproc-per-node "$ranks" --rdzv-backend c10d --rdzv-endpoint "$meeting:$port" \
    --rdzv-id "$run_id" --rdzv-conf "is_host=$is_host,join_timeout=$join_seconds,read_timeout=$((join_seconds > 60 ? join_seconds : 60))" \
    --local-addr "$(address_of "$SLURMD_NODENAME")" "$@"
