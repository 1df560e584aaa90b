"""Images per second of a training step, and its fraction of the machine's peak matrix throughput.

    python benchmarks/training_speed.py                                     # tokenizer and generator, about 5 minutes
    python benchmarks/training_speed.py --parts generator --read-share 1 0.5 --batches 64 256 --compile

Data: random codes and images in memory. A step is forward, backward, gradient clipping (generator only) and the
optimizer.

The peak is that of a square matrix product of size 2048 in the same precision, measured before and after in this run;
the better one counts. PyTorch's own counter counts the operations, for the tokens that are read. Images per CPU second
are relative to processor time: the speed that a machine shared with other work would reach if it were free. On a CPU
the fraction is based on these.

Writes benchmarks/results/training_speed.json.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from torch.utils.flop_counter import FlopCounterMode

import bigr_repr as br
from bigr_repr.config import ModelConfig
from bigr_repr.train.generator_task import make_optimizers
from bigr_repr.train.masking import draw_masks, read_positions
from bigr_repr.train.recipe import GeneratorRecipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIDE = 2048
DRAWS = 2


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_peak(dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Operations per second of a square matrix product; on a CPU, per processor second times the number of threads."""
    threads = 1 if device.type == "cuda" else torch.get_num_threads()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    a @ b
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronize(device)
        since = clock()
        a @ b
        synchronize(device)
        best = max(best, threads * 2 * SIDE**3 / (clock() - since))
    return best


Step = Callable[[], None]


def tokenizer_step(config: ModelConfig, batch: int, half: bool, compiled: bool, device: torch.device) -> Step:
    model = br.BinaryAutoencoder(config.tokenizer).to(device).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    side = config.image_size
    images = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    run = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = (run(images)[0].float() - images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def generator_step(
    config: ModelConfig, batch: int, half: bool, compiled: bool, device: torch.device, share: float
) -> Step:
    model, generator = br.BiGR(config.generator).to(device).train(), config.generator
    optimizers = make_optimizers(model, GeneratorRecipe(optimizer="muon"))
    codes = (torch.rand(batch, generator.tokens, generator.code_bits, device=device) > 0.5).float()
    labels = torch.randint(generator.classes, (batch,), device=device)
    if compiled:
        for block in model.transformer.layers:
            block.compile()

    def step() -> None:
        read = read_positions(generator.tokens, share, 0.0, device)
        masked = draw_masks(batch, generator.tokens, masking="half", light_share=0.25, read=read, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(codes, labels, masked, diffusion_draws=DRAWS, read=read).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def measure(step: Step, batch: int, seconds: float, device: torch.device) -> dict[str, float]:
    """Speed and operations of a step. The first two steps, which compile and allocate, do not count."""
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    synchronize(device)
    since, processor, steps = time.perf_counter(), time.process_time(), 0
    while steps < 2 or time.perf_counter() - since < seconds:
        step()
        steps += 1
        synchronize(device)
    wall, busy = time.perf_counter() - since, time.process_time() - processor
    return {
        "images_per_second": round(steps * batch / wall, 1),
        "images_per_cpu_second": round(steps * batch / busy, 1),
        "gflop_per_image": round(counter.get_total_flops() / batch / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--parts", nargs="+", default=["tokenizer", "generator"], choices=["tokenizer", "generator"])
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[64])
    parser.add_argument("--read-share", nargs="+", type=float, default=[1.0, 0.5], help="fraction of tokens read")
    parser.add_argument("--compile", action="store_true", help="also compile; the first steps then take minutes")
    parser.add_argument("--seconds", type=float, default=10.0, help="minimum measuring time of each")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, config = torch.device(options.device), br.preset(options.preset)
    peaks = {name: product_peak(DTYPES[name], device, 2.0) for name in options.precisions}
    rows: list[dict[str, Any]] = []
    every = (options.parts, options.precisions, options.batches, [False, True] if options.compile else [False])
    for part, precision, batch, compiled in itertools.product(*every):
        for share in options.read_share if part == "generator" else [1.0]:
            torch.manual_seed(0)
            torch.compiler.reset()
            half = precision == "bfloat16"
            step = (
                tokenizer_step(config, batch, half, compiled, device)
                if part == "tokenizer"
                else generator_step(config, batch, half, compiled, device, share)
            )
            names = {"part": part, "precision": precision, "batch": batch, "compiled": compiled, "read_share": share}
            rows.append(names | measure(step, batch, options.seconds, device))
    for name, peak in peaks.items():
        peaks[name] = max(peak, product_peak(DTYPES[name], device, 2.0))
    for row in rows:
        threads = torch.get_num_threads()
        rate = row["images_per_second"] if device.type == "cuda" else row["images_per_cpu_second"] * threads
        row["share_of_product_peak"] = round(rate * row["gflop_per_image"] * 1e9 / peaks[row["precision"]], 3)
    peak = {name: round(value / 1e9) for name, value in peaks.items()}
    record.write("training_speed", {"threads": torch.get_num_threads(), "product_peak_gflops": peak, "rows": rows})


if __name__ == "__main__":
    main()
