#!/bin/bash
# asr launch recipes/librispeech --cluster torchrun nodes=2 'hosts=[gpu1,gpu2]' port=29400 seed=3 cluster.work_dir=/home/me/asr cluster.python=/home/me/asr/.venv/bin/python
# Start it with bash on every node:
# ssh gpu1 bash /home/me/asr/runs/launch/node.sh
# ssh gpu2 bash /home/me/asr/runs/launch/node.sh
# It can be started again: it goes on with the run where it stopped.
set -euo pipefail
cd /home/me/asr
export OMP_NUM_THREADS=4
python=/home/me/asr/.venv/bin/python
settings=(
  seed=3
  trainer.devices=8
  trainer.num_nodes=2
  trainer.accelerator=gpu
  run_dir=runs/librispeech/2026-11-25_12-30-00
  resume=true
)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120  # seconds for a step and a checkpoint after SIGTERM
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # each start has a store of its own
"$python" -m torch.distributed.run --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=gpu1:29401 --rdzv-id=librispeech-2026-11-25_12-30-00-29401 --max-restarts=0 -m asr.launch.self_test recipes/librispeech "${settings[@]}"
exec "$python" -m torch.distributed.run --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=gpu1:29400 --rdzv-id=librispeech-2026-11-25_12-30-00-29400 --max-restarts=3 recipes/librispeech/train.py "${settings[@]}"
