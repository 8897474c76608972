#!/bin/bash
# A SLURM job with one task per GPU; before its time is up it saves, and goes on where it was when it is scheduled again.
#   python -m pipelines list scripts slurm > job.sh
#   sbatch job.sh quickstart --name flowers
#SBATCH --job-name=pipelines
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@180
# USR1@180: all tasks are told three minutes before the time is up. They end with 138 behind a checkpoint.

export WANDB_MODE="${WANDB_MODE:-offline}"
trap ':' USR1  # where the whole job is signalled, this shell too: wait for the tasks

# --wait: where one task has ended, the others have two minutes to write their last files.
srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  python -m pipelines fit --config "$1" --config overlays/slurm \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.num_nodes "$SLURM_NNODES" \
  --data.num_workers "$((SLURM_CPUS_PER_TASK - 1))" "${@:2}" --resume auto
status=$?

# SLURM itself requeues a job that is preempted or whose node fails; here the time was up.
if [ "$status" -eq 138 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
