#!/usr/bin/env bash
# Trains the bundled model, bigr-tiny, from its two data sets to a model folder. Every step resumes when run again.
#
#   benchmarks/train_tiny.sh DATA OUT [cpu|gpu]
#
# DATA holds tinyimagenet-train-*.parquet and cifar10-train.parquet: one row an image, columns `image` (encoded bytes)
# and `label`. The "cpu" recipe takes two hours on 2 cores and is, but for what benchmarks/results/training.json notes,
# the one behind the bundled weights; "gpu" is sized for about half an hour on one data-centre GPU and not yet measured.
set -euo pipefail
data=${1:?folder of the data sets} out=${2:?folder for the runs} recipe=${3:-cpu}

case $recipe in
    cpu)
        tokenizer=(--steps 2000 --batch-size 32 --crop 32 --learning-rate 1e-3 --warmup 100 --ema 0.999 --cpu)
        generator=(--steps 1150 --batch-size 32 --learning-rate 1e-3 --warmup 100 --ema 0.998 --compile --cpu)
        ;;
    gpu)
        tokenizer=(--steps 40000 --batch-size 256 --learning-rate 1e-3 --warmup 500 --ema 0.9995 --precision bf16 --workers 12)
        generator=(--steps 60000 --batch-size 512 --learning-rate 1e-3 --warmup 1000 --ema 0.9995 --precision bf16 --compile)
        ;;
    *)
        echo "recipe=$recipe is unknown; choose cpu or gpu" >&2
        exit 2
        ;;
esac

bigr-repr train tokenizer "$data"/tinyimagenet-train-*.parquet --out "$out/tokenizer" --preset tiny \
    --perceptual none --gan-start -1 --no-sample-bits --schedule cosine "${tokenizer[@]}"

[ -f "$out/codes/codes.json" ] || bigr-repr train codes "$data"/tinyimagenet-train-*.parquet \
    "$data/cifar10-train.parquet" --tokenizer "$out/tokenizer/tokenizer" --out "$out/codes"

bigr-repr train generator "$out/codes" --tokenizer "$out/tokenizer/tokenizer" --out "$out/generator" --preset tiny \
    --name bigr-tiny --class-dropout 0.3 --dropout 0 --diffusion-draws 2 --schedule cosine "${generator[@]}"
