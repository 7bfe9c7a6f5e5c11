#!/usr/bin/env bash
# What a GPU has to show, in at most five minutes: the tests that need one, then the costs of a training step.
# From the root of the repository, in an environment in which torch sees the GPU: bash bench/gpu.sh > gpu.txt
# Commit what it prints to docs/results.md, by the GPU's name.
set -uo pipefail
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
timeout 120 "$python" -m pytest -q -m gpu tests/training 2>&1 | tail -n 15
timeout 170 "$python" bench/gpu.py --split
