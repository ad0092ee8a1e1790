#!/bin/bash
# A training on several nodes under Slurm, one task per node, which starts a process per GPU:
#
#     sbatch configs/accelerate/slurm.sh configs/flickr8k_smollm2.yaml --dataset my_photos
#     sbatch --nodes 8 configs/accelerate/slurm.sh ...
#
# Ten minutes before its time is over Slurm sends SIGTERM to the processes: the run saves a checkpoint after its step and ends.
# The same command goes on from it.
#SBATCH --job-name=mpclip
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
gpus=${SLURM_GPUS_ON_NODE:-8}
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / gpus))
# $SLURM_NODEID differs between the tasks, so srun's shell puts it in.
export FIRST=$first PROCESSES=$((SLURM_NNODES * gpus))
srun bash -c 'exec accelerate launch --config_file configs/accelerate/several_nodes.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$FIRST" --main_process_port 29500 train_hf.py "$@"' launch "$@"
