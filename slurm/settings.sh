# shellcheck shell=bash
# What is your cluster's and your account's: the one place for it. The scripts beside read it; none of it is in them.
# A variable of the environment wins over its line here: FDTRAIN_NODES=2 slurm/submit.sh slurm/train.sbatch ...
# What is left empty isn't told to Slurm, whose own default holds then (or sbatch's variable: SBATCH_ACCOUNT, ...).

FDTRAIN_ACCOUNT=${FDTRAIN_ACCOUNT-}           # whom the hours are charged to (sbatch --account)
FDTRAIN_PARTITION=${FDTRAIN_PARTITION-}       # of the GPU jobs
FDTRAIN_TIME=${FDTRAIN_TIME-}                 # time limit of a job, such as 12:00:00; a training goes on in the next
FDTRAIN_NODES=${FDTRAIN_NODES-1}              # of train.sbatch, train_array.sbatch and sweep.sbatch
FDTRAIN_GPUS=${FDTRAIN_GPUS-1}                # on each node; 0 trains on CPUs
FDTRAIN_GPU_TYPE=${FDTRAIN_GPU_TYPE-}         # a100, l4, ... as `sinfo -o %G` has it: --gres=gpu:a100:4; empty: any
FDTRAIN_CPUS=${FDTRAIN_CPUS-}                 # cores for the training on each node; decoding takes what isn't training
FDTRAIN_SIGNAL_SECONDS=${FDTRAIN_SIGNAL_SECONDS-120} # before the time limit, a training saves and stops

FDTRAIN_QUALITIES=${FDTRAIN_QUALITIES-77 60 15 10} # of train_array.sbatch: one task for each

FDTRAIN_CPU_PARTITION=${FDTRAIN_CPU_PARTITION-$FDTRAIN_PARTITION} # of faces.sbatch and pack_array.sbatch
FDTRAIN_PACK_TASKS=${FDTRAIN_PACK_TASKS-8}    # tasks that share out the shards
FDTRAIN_PACK_CPUS=${FDTRAIN_PACK_CPUS-8}      # cores of faces.sbatch and of each task

# How a job finds Python. Lines of the shell, such as FDTRAIN_SETUP='module load python/3.11 cuda/13.0'
FDTRAIN_SETUP=${FDTRAIN_SETUP-}
FDTRAIN_VENV=${FDTRAIN_VENV-.venv}            # its bin/activate is sourced; relative to the project; empty: none

# Several nodes that see more than one network may need to be told which one to take; uncomment what your cluster has.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
