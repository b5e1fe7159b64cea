#!/usr/bin/env bash
# What only a machine with a GPU can show, in about ten minutes on one H100 or H200:
#
#   studies/gpu.sh                  # on the machine with the GPU
#   studies/gpu.sh --rehearse       # the same commands on a CPU, each for a moment
#
# OUT is the folder of the results (bench-gpu unless set), PYTHON the interpreter (python unless set).
# A stage that fails is reported, and the next one begins. The results are files that are committed as
# they are: block-steps.jsonl, and results.jsonl with its tables.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
out=${OUT:-bench-gpu}
mkdir -p "$out"
failed=0

stage() {
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "== $name: $*"
  local status=0
  timeout --signal=INT "$limit" "$@" || status=$?
  if [ "$status" -ne 0 ]; then
    failed=1
    echo "== $name failed with status $status"
  fi
  echo "== $name took $((SECONDS - began)) s"
}

if [ "${1:-}" = --rehearse ]; then
  stage "tests" 300 "$python" -m pytest -q -m gpu tests/test_gpu.py
  stage "steps of T blocks" 300 "$python" studies/block_steps.py --blocks 2 --seconds 0.1 \
    --only ours loop stacked --out "$out/block-steps.jsonl"
  stage "memory" 300 "$python" -m noprop reproduce table3 --only mnist,dt,one-hot --scale smoke \
    --seeds 0 --jobs 1 --runs "$out/runs" --out "$out/smoke" --quiet
  exit "$failed"
fi

stage "tests" 90 "$python" -m pytest -q -m gpu tests/test_gpu.py
stage "steps of ten blocks" 120 "$python" studies/block_steps.py --out "$out/block-steps.jsonl"
# Table 3 has the memory of each method: one cell of each, for as long as the counter needs.
stage "memory" 90 "$python" -m noprop reproduce table3 --scale epochs=0.01,images=2560,test=256 \
  --seeds 0 --jobs 1 --runs "$out/runs" --out "$out/table3"
# Full cells, cheapest first. What is not finished in time has checkpoints: the same command resumes.
stage "full cells" 330 "$python" -m noprop reproduce table1 --seeds 0 --jobs 4 --deadline 5m \
  --only mnist-fm,mnist-ct,cifar10-fm,cifar10-ct,mnist-dt,cifar10-dt \
  --runs "$out/runs" --out "$out/table1"
exit "$failed"
