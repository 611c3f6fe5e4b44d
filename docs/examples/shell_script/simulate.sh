#!/bin/bash
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=200M
#SBATCH --time=00:05:00

case=$1
steps=$2
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
echo "solving $case in $steps steps with $OMP_NUM_THREADS threads on $(hostname)"
solve "$case" "$steps" > "$case.result"
echo "done: $(cat "$case.result")"
