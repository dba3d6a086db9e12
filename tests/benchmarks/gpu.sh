#!/bin/sh
# Measure what RESULTS.md lacks, on one H100; planned for 25 minutes, not yet run on one:  tests/benchmarks/gpu.sh OUT
# Each step leaves OUT/STEP.json and OUT/STEP.log. A step with a result is skipped, so the same command continues.
# SHAPE=tiny runs every step on a CPU, with figures that mean nothing.
# shellcheck disable=SC2086 # options are split at spaces
set -eu
out=${1:?usage: [SHAPE=olmo-1b|tiny] [PYTHON=python] tests/benchmarks/gpu.sh OUT}
shape=${SHAPE:-olmo-1b}
python=${PYTHON:-python}
large=olmo-7b
prompts=24
limit=128
lowmem='{"weights": "bfloat16", "optim": "adamw_torch_8bit", "gradient_checkpointing": true}'
sizes=
if [ "$shape" = tiny ]; then
    large=tiny prompts=3 limit=2 sizes="--batch_size 8 --steps 1 --dtype bfloat16"
    lowmem='{"gradient_checkpointing": true}' # without torchao, which may not be installed
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")"
failed=
start=$(date +%s)

step() { # NAME SCRIPT OPTIONS...
    name=$1
    shift
    if [ -e "$out/$name.json" ]; then
        echo "$name: has a result"
        return
    fi
    if "$python" "$@" --json "$out/$name.partial" >"$out/$name.log" 2>&1; then
        mv "$out/$name.partial" "$out/$name.json"
        echo "$name: done, $(($(date +%s) - start)) s since the start"
    elif grep -qi "out of memory\|OutOfMemoryError" "$out/$name.log"; then
        echo '{"fits": false}' >"$out/$name.json"
        echo "$name: does not fit into memory"
    else
        echo "$name: FAILED, see $out/$name.log"
        tail -n 3 "$out/$name.log"
        failed="$failed $name"
    fi
}

for tuning in full lora; do
    step "10-$tuning" training.py --shape "$shape" --tunings $tuning --ways padded packed $sizes
done
step 20-masters training.py --shape "$shape" --tunings full --ways packed --run_options '{"weights": "masters"}' $sizes
step 21-compile training.py --shape "$shape" --methods gd --tunings full --ways packed --run_options '{"torch_compile": true}' $sizes
step 40-whole gpu.py whole --shape "$shape" --limit $limit
step 50-scoring scoring.py --shape "$shape" --prompts $prompts --rounds 1
step 60-7b-lora training.py --shape $large --tunings lora --methods gd npo --ways packed $sizes
step 60-7b-full training.py --shape $large --tunings full --methods gd --ways packed --run_options "$lowmem" $sizes
"$python" gpu.py table --shape "$shape" --folder "$out" | tee "$out/table.md"
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
