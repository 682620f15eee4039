# shellcheck shell=bash
# What the batch scripts share. They source it with the project's folder in FDTRAIN_HOME.

fail() {
    echo "slurm: error: $*" >&2
    exit 1
}

say() {
    echo "slurm: $(date '+%F %T') job ${SLURM_JOB_ID-}: $*"
}

# The settings, and the environment that has Python, torchrun and ray in it.
prepare() {
    # shellcheck source=slurm/settings.sh
    source "$FDTRAIN_HOME/slurm/settings.sh"
    set +u # the scripts of modules and venvs aren't written for it
    eval "$FDTRAIN_SETUP"
    if [[ -n $FDTRAIN_VENV ]]; then
        [[ $FDTRAIN_VENV == /* ]] || FDTRAIN_VENV=$FDTRAIN_HOME/$FDTRAIN_VENV
        [[ -f $FDTRAIN_VENV/bin/activate ]] ||
            fail "FDTRAIN_VENV: no $FDTRAIN_VENV/bin/activate; run make setup, or set it in slurm/settings.sh"
        # shellcheck source=/dev/null
        source "$FDTRAIN_VENV/bin/activate"
    fi
    set -u
    eval "prefix=($FDTRAIN_COMMAND_PREFIX)"
    export FDTRAIN_COMMAND_PREFIX # launch/torchrun.sh puts it before torchrun
}

# The value of the option $1 among the words that follow, in either spelling; the last one counts, as for the trainer.
option() {
    local name=$1 value=
    shift
    while (($#)); do
        case $1 in
            "$name") value=${2-} ;;
            "$name="*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}
