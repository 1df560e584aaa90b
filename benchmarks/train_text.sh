#!/usr/bin/env bash
# Trains a small caption model on synthetic scenes, without any download. Repeat the command to resume.
#
#   benchmarks/train_text.sh OUT
#
# Takes about half an hour on one core with bfloat16 units. The model is OUT/generator/model; measure it with
# python benchmarks/text.py --model OUT/generator/model
set -euo pipefail
out=${1:?folder for the runs}

bigr-repr train tokenizer synthetic-captions:8000 --out "$out/tokenizer" --preset mini --perceptual none --gan-start -1 \
    --no-sample-bits --pixel-loss l2 --optimizer muon --learning-rate 2e-3 --batch-size 16 --steps 3000 --warmup 50 \
    --schedule cosine --ema 0.99 --precision bfloat16 --sample-every 0 --cpu

[ -f "$out/captions/captions.json" ] || bigr-repr train captions synthetic-captions:16000 \
    --tokenizer "$out/tokenizer/tokenizer" --precision bfloat16 --out "$out/captions"

bigr-repr train generator "$out/captions" --tokenizer "$out/tokenizer/tokenizer" --out "$out/generator" --preset mini \
    --name mini-text --optimizer muon --learning-rate 1.5e-3 --batch-size 64 --steps 6500 --warmup 100 --schedule cosine \
    --ema 0.995 --dropout 0 --diffusion-draws 2 --precision bfloat16 --no-compile --sample-every 0 --cpu
