#!/bin/bash
#SBATCH --nodes=4 --ntasks-per-node=1 --gres=gpu:8 --time=12:00:00
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
# A run on Slurm, one task per node; the first is the head. In the folder of the virtual environment, which nodes share:
#
#   ray get-auth-token --generate      # once; the nodes read it in the home folder
#   sbatch slurm.sh my-run.yaml        # it requeues itself, and resumes
#
# Change the numbers of nodes and GPUs, and the time, in the lines above.

source .venv/bin/activate
export RAFT_GRACE=60 RAY_AUTH_MODE=token RAY_worker_niceness=0
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port 6379 --block &
until ray status --address "$head:6379" > /dev/null 2>&1; do sleep 5; done
others=$((SLURM_NNODES - 1))
if [ $others -gt 0 ]; then
  srun --nodes=$others --ntasks=$others --exclude="$head" ray start --address "$head:6379" --block &
fi
trap 'kill -USR1 $raft' USR1
trap 'kill -TERM $raft' TERM
raft run "$@" launch.kind=ray launch.address="$head:6379" &
raft=$!
wait $raft; status=$?
while kill -0 $raft 2> /dev/null; do wait $raft; status=$?; done  # a trapped signal ends `wait` before its time
if [ $status -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
