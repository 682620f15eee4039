#!/usr/bin/env bash
# Submits a script of this folder with what slurm/settings.sh says.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: slurm/submit.sh [--dry-run] [SBATCH OPTIONS] SCRIPT.sbatch ARGUMENTS...

Calls sbatch with account, partition, time, nodes, GPUs, cores, memory, QOS, constraint and mail from
slurm/settings.sh (or the environment, which wins), the options given before SCRIPT (which win over both), and ARGUMENTS
for the script. --dry-run only prints the calls.

  train.sbatch        a training                          ARGUMENTS are those of python -m fdtrain
  train_array.sbatch  one training for each quality       the same
  sweep.sbatch        a command on a Ray cluster          ARGUMENTS are the command
  faces.sbatch        the face stage                      those of python -m datasets_shards faces
  pack_array.sbatch   packing by tasks, then the merging  those of python -m datasets_shards pack
TEXT
}

dry_run=false
options=()
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit
            ;;
        --dry-run) dry_run=true ;;
        *.sbatch) break ;;
        *) options+=("$1") ;;
    esac
    shift
done
if ((!$#)); then
    usage >&2
    exit 2
fi
script=$1
shift
[[ -f $script ]] || { echo "slurm/submit.sh: error: $script: no such file" >&2 && exit 1; }

FDTRAIN_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export FDTRAIN_HOME
# What the environment sets for a job goes with the job; sbatch passes on exported variables.
set -a
# shellcheck source=slurm/settings.sh
source "$FDTRAIN_HOME/slurm/settings.sh"
set +a

flags=()
add() { # flag, setting: nothing where the setting is empty
    [[ -z $2 ]] || flags+=("$1=$2")
}
add --account "$FDTRAIN_ACCOUNT"
add --time "$FDTRAIN_TIME"
add --qos "$FDTRAIN_QOS"
add --mail-user "$FDTRAIN_MAIL"
add --mail-type "${FDTRAIN_MAIL:+END,FAIL}"
case ${script##*/} in
    faces.sbatch | pack_array.sbatch)
        add --partition "$FDTRAIN_CPU_PARTITION"
        add --cpus-per-task "$FDTRAIN_PACK_CPUS"
        ;;
    *)
        add --partition "$FDTRAIN_PARTITION"
        add --nodes "$FDTRAIN_NODES"
        if [[ -z $FDTRAIN_CPUS && ${FDTRAIN_GPUS:-0} != 0 && -n $FDTRAIN_CPUS_PER_GPU ]]; then
            FDTRAIN_CPUS=$((FDTRAIN_CPUS_PER_GPU * FDTRAIN_GPUS))
        fi
        add --cpus-per-task "$FDTRAIN_CPUS"
        add --mem "$FDTRAIN_MEM"
        add --constraint "$FDTRAIN_CONSTRAINT"
        if [[ ${FDTRAIN_GPUS:-0} != 0 ]]; then
            flags+=("--gres=gpu:${FDTRAIN_GPU_TYPE:+$FDTRAIN_GPU_TYPE:}$FDTRAIN_GPUS")
        fi
        ;;
esac
case ${script##*/} in
    train.sbatch | train_array.sbatch | study_array.sbatch | sweep.sbatch) add --signal "${FDTRAIN_SIGNAL_SECONDS:+B:USR1@$FDTRAIN_SIGNAL_SECONDS}" ;;
esac

submit() { # options, script, arguments
    if $dry_run; then
        printf '%q ' sbatch "$@"
        echo
    else
        sbatch "$@"
    fi
}

case ${script##*/} in
    train_array.sbatch)
        read -ra qualities <<<"$FDTRAIN_QUALITIES"
        submit "${flags[@]}" --array="0-$((${#qualities[@]} - 1))" "${options[@]}" "$script" "$@"
        ;;
    pack_array.sbatch)
        array=(--array="0-$((FDTRAIN_PACK_TASKS - 1))" --output="slurm-%x-%A_%a.out")
        merge=(--job-name=merge --kill-on-invalid-dep=yes)
        if $dry_run; then
            submit "${flags[@]}" "${array[@]}" "${options[@]}" "$script" "$@"
            submit "${flags[@]}" "${options[@]}" "${merge[@]}" --dependency=afterok:ARRAY "$script" "$@"
        else
            # With several clusters, sbatch puts the name of one behind the id.
            tasks=$(submit --parsable "${flags[@]}" "${array[@]}" "${options[@]}" "$script" "$@")
            echo "Submitted batch job ${tasks%%;*} (packing)"
            submit "${flags[@]}" "${options[@]}" "${merge[@]}" --dependency="afterok:${tasks%%;*}" "$script" "$@"
        fi
        ;;
    *)
        submit "${flags[@]}" "${options[@]}" "$script" "$@"
        ;;
esac
