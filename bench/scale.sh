#!/usr/bin/env bash
# What several GPUs of one machine have to show, in at most five minutes: a step of one wide dictionary and of a sweep on
# 1, 2, 4 … of them. From the root of the repository, in an environment in which torch sees them: bash bench/scale.sh
# Commit what it prints to docs/results.md, by the GPUs' name. RANKS="1 2" chooses; DEVICE=cpu SMALL=1 tries the script.
set -uo pipefail
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
device=${DEVICE:-cuda}
here=$("$python" -c 'import torch; print(torch.cuda.device_count())')
ranks=${RANKS:-$(for n in 1 2 4 8; do if [ "$n" -le "$here" ]; then echo "$n"; fi; done)}
[ "$device" = cuda ] && nvidia-smi --query-gpu=name --format=csv,noheader | sort | uniq -c
for n in $ranks; do
  timeout 100 "$python" bench/scaling.py --ranks "$n" --device "$device" ${SMALL:+--small} || echo "$n ranks: failed"
done
