#!/usr/bin/env bash
# The whole ablation on a GPU machine, in one line:
#
#     benchmarks/gpu_sweep.sh [RECIPE] [FOLDER]
#
# Several processes work side by side on one folder, because a small model leaves most of the chip idle; they share the
# cells by locks. Started again, it continues. Afterwards the records are copied to docs/results/ablation.
#
# PROCESSES  processes on the GPU (default 4)
# PYTHON     interpreter that has regtune (default .venv/bin/python, made with `make` where it is missing)
# WHEELS     folder with wheels, for a machine without a package index
# THROUGHPUT 0: don't measure afterwards how many cells an hour holds, one process alone against all side by side
# DRY_RUN    1: list the cells and do nothing
set -euo pipefail
cd "$(dirname "$0")/.."

recipe=${1:-recipes/ablation-minilm-full.yaml}
folder=${2:-runs/$(basename "$recipe" .yaml)}
processes=${PROCESSES:-4}
python=${PYTHON:-.venv/bin/python}

if [[ ! -x $python ]]; then
  python3 -m venv .venv
  if [[ -n ${WHEELS:-} ]]; then
    .venv/bin/python -m pip install --no-index --find-links "$WHEELS" --editable '.[demo]'
  else
    .venv/bin/python -m pip install --constraint constraints.txt --editable '.[demo]'
  fi
  python=.venv/bin/python
fi

if [[ ${DRY_RUN:-0} == 1 ]]; then
  exec "$python" -m regtune sweep "$recipe" --folder "$folder" --dry-run
fi
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "No GPU is visible to torch here.")'

mkdir -p "$folder.logs"
started=$SECONDS
"$python" -m regtune sweep "$recipe" --folder "$folder" --search-only
children=()
for ((number = 1; number <= processes; number++)); do
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} "$python" -m regtune sweep "$recipe" --folder "$folder" \
    >"$folder.logs/process-$number.log" 2>&1 &
  children+=($!)
done
trap 'kill "${children[@]}" 2>/dev/null || true' INT TERM
failed=0
for child in "${children[@]}"; do
  wait "$child" || failed=1
done

cells=$(find "$folder" -mindepth 2 -maxdepth 2 -name run.json | wc -l)
minutes=$(((SECONDS - started) / 60))
echo "$cells cells are finished; this start took $minutes minutes with $processes processes. Logs: $folder.logs"
"$python" -m regtune sweep "$recipe" --folder "$folder" --export docs/results/ablation
if [[ ${THROUGHPUT:-1} == 1 ]]; then
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} "$python" benchmarks/cells_per_hour.py "$recipe" --processes 1 "$processes"
fi
exit $failed
