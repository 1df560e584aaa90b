#!/usr/bin/env bash
# Trains the bundled model, bigr-tiny, from its two data sets to a model folder. Every step resumes when run again.
#
#   benchmarks/train_tiny.sh DATA OUT [cpu|gpu]
#
# DATA holds tinyimagenet-train-*.parquet and cifar10-train.parquet: one row an image, columns `image` (encoded bytes)
# and `label`. The "cpu" recipe takes about an hour and a half on 2 cores with bfloat16 matrix units (AMX) and is, but
# for what benchmarks/results/training.json notes, the one behind the bundled weights. "gpu" has not been run to its end:
# on one NVIDIA H200 the tokenizer went through 6 000 images a second in batches of 256, the generator through 12 000 in
# batches of 1024, by which it takes about an hour and a quarter.
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
    *)
        echo "recipe=$recipe is unknown; choose cpu or gpu" >&2
        exit 2
        ;;
esac

[ -f "$out/codes/codes.json" ] || bigr-repr train codes "${images[@]}" "$data/cifar10-train.parquet" \
    --tokenizer "$out/tokenizer/tokenizer" --out "$out/codes" "${codes[@]}"

bigr-repr train generator "$out/codes" --tokenizer "$out/tokenizer/tokenizer" --out "$out/generator" --preset tiny \
    --name bigr-tiny --class-dropout 0.4 --dropout 0 --diffusion-draws 2 --schedule cosine --optimizer muon \
    --learning-rate 1.5e-3 "${generator[@]}"
