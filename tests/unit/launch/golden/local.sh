#!/bin/bash
# asr launch recipes/librispeech --cluster local seed=3 cluster.work_dir=/home/me/asr cluster.python=/home/me/asr/.venv/bin/python
# Start it with bash.
# It can be started again: it goes on with the run where it stopped.
set -euo pipefail
cd /home/me/asr
python=/home/me/asr/.venv/bin/python
settings=(
  seed=3
  trainer.devices=1
  trainer.num_nodes=1
  run_dir=runs/librispeech/2026-11-25_12-30-00
  resume=true
)
"$python" -m asr.launch.self_test recipes/librispeech "${settings[@]}"
exec "$python" recipes/librispeech/train.py "${settings[@]}"
