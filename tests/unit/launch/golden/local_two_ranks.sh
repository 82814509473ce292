#!/bin/bash
# asr launch recipes/librispeech --cluster local ranks_per_node=2 cpus_per_rank=2 max_restarts=1 cluster.work_dir=/home/me/asr cluster.python=/home/me/asr/.venv/bin/python
# Start it with bash.
# It can be started again: it goes on with the run where it stopped.
set -euo pipefail
cd /home/me/asr
export OMP_NUM_THREADS=1
python=/home/me/asr/.venv/bin/python
settings=(
  trainer.devices=2
  trainer.num_nodes=1
  run_dir=runs/librispeech/2026-11-25_12-30-00
  resume=true
)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120  # seconds for a step and a checkpoint after SIGTERM
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # each start has a store of its own
"$python" -m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=0 -m asr.launch.self_test recipes/librispeech "${settings[@]}"
exec "$python" -m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=1 recipes/librispeech/train.py "${settings[@]}"
