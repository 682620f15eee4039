#!/usr/bin/env bash
# What train.sbatch and train_array.sbatch become: one torchrun on each node, and what follows from how the run ended.
#
# The run's status.json says that, never torchrun's exit code, which is 1 for whatever happened:
#   finished  -> exit code 0
#   preempted -> the job is requeued, and goes on from the checkpoint
#   failed    -> exit code 1
# Where Slurm preempts a job with GraceTime, it tells the steps alone (SIGTERM), which may come before the run has a
# status of its own or a step is done: a step that ended by it (143) is requeued as well.
set -euo pipefail
source "$FDTRAIN_HOME/slurm/common.sh"
prepare

run=$(option --run.dir "$@")
[[ -n $run ]] || fail "--run.dir: not given; this script reads the run's status.json there"
status=$run/status.json

# The state, and the steps done, or nothing where there is no status.
read_status() {
    [[ -e $status ]] || return 0
    python3 -c 'import json, sys; s = json.load(open(sys.argv[1])); print(s["state"], s.get("step", "-"), s["time"])' \
        "$status" || fail "$status can't be read; see above"
}

before=$(read_status)
warned=false
cancelled=false
# scancel, a node that goes down, a job with a higher claim: Slurm itself has told the workers, and knows what is next.
trap 'cancelled=true' TERM

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK-} # srun doesn't take over what sbatch was given
[[ -n $SRUN_CPUS_PER_TASK ]] || unset SRUN_CPUS_PER_TASK
if ((SLURM_NNODES > 1)) && [[ -z ${FDTRAIN_PORT-} ]]; then
    # This shell runs on the first node, where the others meet: it can see which port is free.
    FDTRAIN_PORT=$("$FDTRAIN_HOME/launch/torchrun.sh" --print-port)
    export FDTRAIN_PORT
fi
say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST: $run${before:+, which was ${before%% *}}"
# --wait=0: the first node to end waits for the others. A node whose torchrun fails ends the others.
trap '' USR1 # srun starts out with this; it passes USR1 on once its tasks run, and must not die of it before
srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=0 \
    "$FDTRAIN_HOME/launch/torchrun.sh" -m fdtrain "$@" --run.resume auto &
step=$!

# Some time before the limit Slurm sends USR1 to this shell alone (that is the B: of --signal). It goes on by way of
# srun to every process of the step on every node. torchrun ignores it (launch/torchrun.sh says why), the workers have
# a handler. A worker that is still importing torch ignores it as well, hence the repetition below.
pass_on() {
    kill -USR1 "$step" 2>/dev/null || true # it may have ended just now
}
trap 'warned=true; pass_on' USR1

told=false
code=0
while kill -0 "$step" 2>/dev/null && ! $cancelled; do
    if $warned; then
        $told || say "the time is nearly up: the workers are told to save and stop"
        told=true
        pass_on
        sleep 2 &
        wait "$!" || true
    else
        wait "$step" || true # ends with the step, or with a signal for this shell
    fi
done
wait "$step" || code=$?
if $cancelled; then
    say "Slurm has ended the run, and knows what is next; nothing is requeued here"
    exit 143
fi

# Note one more start in a row that came no step further; true once there were three of this job.
third_in_vain() {
    local job='' count=0
    [[ ! -e $run/.starts ]] || read -r job count <"$run/.starts"
    [[ $job == "$SLURM_JOB_ID" ]] || count=0
    mkdir -p "$run"
    echo "$SLURM_JOB_ID $((count + 1))" >"$run/.starts"
    ((count + 1 >= 3))
}

after=$(read_status)
read -r state steps _ <<<"$after"
read -r state_before steps_before _ <<<"$before"
# An old status is that of the run before. Of a finished run it may well be: there was nothing to do.
if ((code == 143)) && [[ $after == "$before" || $state == running ]]; then
    say "Slurm ended the workers (SIGTERM) before they could save"
    state=preempted
elif [[ -z $after ]]; then
    fail "$run: the run ended before it had a status; see above"
elif [[ $after == "$before" ]] && ! [[ $state == finished && $code == 0 ]]; then
    fail "$run: the run ended before it was under way, and is $state as it was; see above"
fi
say "$run is $state after ${steps:-no} steps"
case $state in
    finished)
        exit 0
        ;;
    preempted)
        if [[ $steps != "$steps_before" ]]; then
            rm -f "$run/.starts"
        elif $warned && [[ $state_before == preempted ]]; then
            # Each start would need as long as this one: where an evaluation takes longer than the job may, for one.
            fail "$run: no step further than the start before, so it isn't requeued; give the job more time"
        elif third_in_vain; then # Slurm may need the nodes again and again; something else may be wrong as well
            fail "$run: three starts came no step further, so it isn't requeued; see above, then submit it again"
        fi
        # By its number alone one task of an array would stand for all of them, also those that are done.
        job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
        job=${job:-$SLURM_JOB_ID}
        say "requeued, to go on from the checkpoint"
        scontrol requeue "$job" || fail "job $job can't be requeued; submit it again to go on"
        # Slurm ends this script now. To end by itself would be the end of a job that is to go on.
        sleep 60 &
        wait "$!" || true
        ;;
    failed)
        fail "$run: $(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["reason"])' "$status")"
        ;;
    *)
        fail "$run: the run was killed ($state after $steps steps); the same call goes on from the last checkpoint"
        ;;
esac
