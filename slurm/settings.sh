# shellcheck shell=bash
# What is your cluster's and your account's: the one place for it. The scripts beside read it; none of it is in them.
# A variable of the environment wins over its line here: FDTRAIN_NODES=2 slurm/submit.sh slurm/train.sbatch ...
# What is left empty isn't told to Slurm, whose own default holds then (or sbatch's variable: SBATCH_ACCOUNT, ...).

FDTRAIN_ACCOUNT=${FDTRAIN_ACCOUNT-}           # whom the hours are charged to (sbatch --account)
FDTRAIN_PARTITION=${FDTRAIN_PARTITION-}       # of the GPU jobs
FDTRAIN_TIME=${FDTRAIN_TIME-}                 # time limit of a job, such as 12:00:00; a training goes on in the next
FDTRAIN_NODES=${FDTRAIN_NODES-1}              # of train.sbatch, train_array.sbatch and sweep.sbatch
FDTRAIN_GPUS=${FDTRAIN_GPUS-1}                # on each node; 0 trains on CPUs

# What a node of a kind has for each GPU, as most clusters have it: a100, l4, or empty; the lines below win over it.
FDTRAIN_PRESET=${FDTRAIN_PRESET-}
case $FDTRAIN_PRESET in
    a100) preset=(a100 12 "$((80 * FDTRAIN_GPUS))G") ;;
    l4) preset=(l4 8 "$((32 * FDTRAIN_GPUS))G") ;;
    "") preset=("" 8 "") ;;
    *) echo "slurm/settings.sh: error: FDTRAIN_PRESET: '$FDTRAIN_PRESET' is none; take a100, l4, or leave it empty" >&2 && exit 1 ;;
esac
FDTRAIN_GPU_TYPE=${FDTRAIN_GPU_TYPE-${preset[0]}} # a100, l4, ... as `sinfo -o %G` has it: --gres=gpu:a100:4; empty: any
FDTRAIN_CPUS_PER_GPU=${FDTRAIN_CPUS_PER_GPU-${preset[1]}} # cores: decoding takes what isn't training
FDTRAIN_CPUS=${FDTRAIN_CPUS-}                 # cores of each node, whatever its GPUs; empty: as many as they call for
FDTRAIN_MEM=${FDTRAIN_MEM-${preset[2]}}       # main memory of each node, such as 240G
FDTRAIN_QOS=${FDTRAIN_QOS-}                   # of all jobs
FDTRAIN_CONSTRAINT=${FDTRAIN_CONSTRAINT-}     # features of the nodes of GPU jobs, such as a100_80g
FDTRAIN_MAIL=${FDTRAIN_MAIL-}                 # who hears by mail that a job ended or failed
FDTRAIN_SIGNAL_SECONDS=${FDTRAIN_SIGNAL_SECONDS-120} # before the time limit, a training saves and stops

FDTRAIN_QUALITIES=${FDTRAIN_QUALITIES-77 60 15 10} # of train_array.sbatch: one task for each

FDTRAIN_CPU_PARTITION=${FDTRAIN_CPU_PARTITION-$FDTRAIN_PARTITION} # of faces.sbatch and pack_array.sbatch
FDTRAIN_PACK_TASKS=${FDTRAIN_PACK_TASKS-8}    # tasks that share out the shards
FDTRAIN_PACK_CPUS=${FDTRAIN_PACK_CPUS-8}      # cores of faces.sbatch and of each task

# How a job finds Python. Lines of the shell, such as FDTRAIN_SETUP='module load python/3.11 cuda/13.0'
FDTRAIN_SETUP=${FDTRAIN_SETUP-}
FDTRAIN_VENV=${FDTRAIN_VENV-.venv}            # its bin/activate is sourced; relative to the project; empty: none

# What stands before torchrun, ray and python on each node, such as a container's start, in the shell's words:
# FDTRAIN_COMMAND_PREFIX='apptainer exec --nv --bind /scratch fdtrain.sif'; then FDTRAIN_VENV= for the container's Python.
FDTRAIN_COMMAND_PREFIX=${FDTRAIN_COMMAND_PREFIX-}

# Several nodes that see more than one network may need to be told which one to take; uncomment what your cluster has.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
