#!/bin/bash
# A SLURM job in which torchrun starts the ranks of each node, and all of them again when one dies.
#   python -m pipelines list scripts torchrun > job.sh
#   sbatch job.sh quickstart --name flowers
#SBATCH --job-name=pipelines
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=96
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
# B: only this shell is told three minutes before the time is up; torchrun passes on SIGTERM, but dies of SIGUSR1.

export WANDB_MODE="${WANDB_MODE:-offline}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
ranks="${RANKS_PER_NODE:-8}"  # GPUs of a node
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
is_over=

time_is_over() {
  is_over=yes
  kill -TERM "$job"  # srun passes it on to each torchrun, and torchrun to its ranks, which save
}
trap time_is_over USR1

srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$ranks" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:${RDZV_PORT:-29400}" \
  -m pipelines fit --config "$1" --config overlays/slurm \
  --trainer.devices "$ranks" --trainer.num_nodes "$SLURM_NNODES" \
  --data.num_workers "$((SLURM_CPUS_PER_TASK / ranks - 1))" "${@:2}" --resume auto &
job=$!
wait "$job"
status=$?
if [ -n "$is_over" ]; then  # the signal has ended the first wait
  wait "$job"
  status=$?
  [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
