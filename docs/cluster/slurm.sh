#!/bin/bash
# One run on two machines of four GPUs: sbatch docs/cluster/slurm.sh
# /shared is a file system that both machines see; adapt what is marked.
#SBATCH --job-name=simclr
#SBATCH --nodes=2                       # adapt
#SBATCH --ntasks-per-node=1             # one launcher on each machine; it starts a process for each GPU
#SBATCH --gpus-per-node=4               # adapt
#SBATCH --cpus-per-task=32              # adapt
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60                # the run saves and ends a minute before the time is up
#SBATCH --output=%x-%j.log

set -euo pipefail
out=/shared/runs/cifar10                # adapt
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# --rdzv-id names this launch: after a restart, only its own run is gone on with.
# Submitted a second time, the job goes on where the first one ended.
resume=$([ -d "$out/checkpoints" ] && echo --resume || true)
export SIMCLR_ENGINE_CACHE=/shared/cache OMP_NUM_THREADS=8

srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=4 --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" \
  -m simclr_engine pretrain --recipe cifar10 --batch-size 2048 --out "$out" $resume
