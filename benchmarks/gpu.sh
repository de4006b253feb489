#!/usr/bin/env bash
# Measures what a GPU does with this code, in 12 minutes at most: tests, decoding, training steps and
# the data loader beside them. Run it first on a GPU that is new to you.
#
#   benchmarks/gpu.sh [OUT]             OUT is a new folder; default: results/gpu
#   benchmarks/gpu.sh --dry-run [OUT]   the same steps, small, on a CPU
#
# Every step has a time limit. A step that fails is named, and the others go on. OUT gets the output
# and the figures of each step (NAME.txt, NAME.json) and the tables (table.md). PYTHON names another
# interpreter than that of .venv.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry=false
out=""
for word in "$@"; do
    case $word in
        --dry-run) dry=true ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
        -*) echo "benchmarks/gpu.sh knows --dry-run and a folder, not $word" >&2; exit 2 ;;
        *) out=$word ;;
    esac
done
out=${out:-results/gpu}
python=${PYTHON:-.venv/bin/python}
if ! command -v "$python" >/dev/null; then
    echo "there is no $python; run make install, or name an interpreter: PYTHON=python3 $0" >&2
    exit 2
fi
if ! $dry && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch finds no CUDA device; try the steps without one: benchmarks/gpu.sh --dry-run" >&2
    exit 2
fi
if ! mkdir -p "$(dirname "$out")" || ! mkdir "$out"; then
    echo "$out must be a new folder; name another one" >&2
    exit 2
fi

failed=()
step() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    printf '== %-18s' "$name"
    if timeout "$limit" "$@" >"$out/$name.txt" 2>&1; then
        echo "$((SECONDS - start)) s"
    else
        failed+=("$name")
        echo "failed after $((SECONDS - start)) of $limit s, see $out/$name.txt:"
        tail -n 3 "$out/$name.txt" | cut -c1-160
    fi
}

if $dry; then
    size=(--model tiny --tokens 12 --batch 1 2 --repeat 1 --device cpu)
    compiled=("${size[@]}")
    training=(--size small --batch 1 --repeat 1 --tasks detection --device cpu)
    images=(--images 8 --repeat 1 --img-size 64 --tasks detection)
    half=float32
else
    size=(--model vit_b_640 --tokens 500 --batch 1 64 --repeat 3 --device cuda)
    compiled=(--model vit_b_640 --tokens 200 --batch 1 --repeat 2 --device cuda)
    training=(--size vit-b-640 --batch 32 --repeat 3 --tasks detection multi-task --device cuda)
    images=(--images 40 --repeat 3 --tasks detection)
    half=bfloat16
fi
decode=("$python" benchmarks/decode.py --slow-tokens 0 --no-hf)
train=("$python" benchmarks/train_step.py "${training[@]}")

step tests 150 "$python" -m pytest -m cuda -rs --durations=5 tests
step decode_float32 110 "${decode[@]}" "${size[@]}" --mode static --also plain --json "$out/decode_float32.json"
step decode_half 90 "${decode[@]}" "${size[@]}" --dtype $half --mode static --also plain --json "$out/decode_half.json"
step decode_compiled 100 "${decode[@]}" "${compiled[@]}" --dtype $half --mode compiled --json "$out/decode_compiled.json"
step train_step 90 "${train[@]}" --json "$out/train_step.json"
step train_compiled 120 "${train[@]}" --compile --json "$out/train_compiled.json"
step data 60 "$python" benchmarks/data.py "${images[@]}" --json "$out/data.json"

"$python" benchmarks/gpu_table.py "$out" | tee "$out/table.md"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
