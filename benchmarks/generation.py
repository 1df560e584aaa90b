r"""Benchmarks of generation: the sampler's speed, which order and how many steps draw best, and example pictures.

    python benchmarks/generation.py speed                           # bigr-tiny; 2 minutes on 2 cores
    python benchmarks/generation.py speed --models preset:L-d24 --images 1 --repeats 1 --cold --name L   # 20 minutes
    python benchmarks/generation.py orders data/tinyimagenet-val.parquet --reduced       # 12 minutes
    python benchmarks/generation.py orders data/tinyimagenet-val.parquet --chain 10 --precision bf16 --name 5000 \
        --groups orders presets                              # minutes on a GPU; a night on 2 cores
    python benchmarks/generation.py orders data/tinyimagenet-val.parquet --groups chains --chain-order halton \
        --at 16 --precision bf16 --name chains               # three quarters of an hour on 2 cores with AMX
    python benchmarks/generation.py pictures                        # 2 minutes

speed: seconds per image of the exact sampler and of the fast preset, compared with plain.py on the same network. The
samplers alternate in one process. On a GPU also in bfloat16 and, with --compile, compiled. Expected: at the L size (20
iterations, 100 steps), exact is at least 1.5 times and fast at least 4 times as fast as plain.

orders: Fréchet distance, precision and recall of generated against real images, by order, number of iterations and
chain length; see orders.py. Repeat the command to resume: features of generated images are kept in --cache.

pictures: a page of pictures that the commands make from examples/images; see pictures.py.

Each writes benchmarks/results/generation_<name>.json; orders and pictures also write PNG files.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orders
import pictures
import plain
import record
import torch

import bigr_repr as br
from bigr_repr.sampling import FAST, SamplingSettings, sample_codes
from bigr_repr.sampling.canvas import decode
from bigr_repr.sampling.compiled import compile_for_sampling


class Middle:
    """Uniform draws that are all one half: sampling becomes thresholding, so that two samplers can be compared."""

    def uniform(self, counts: Any, blocks: int, width: int) -> torch.Tensor:
        """See bigr_repr.sampling.noise.Draws."""
        return torch.full((blocks, sum(counts), width), 0.5)


def load(spec: str, device: str) -> br.Pretrained:
    """A model by name, or preset:NAME with the same random weights every time."""
    if not spec.startswith("preset:"):
        return record.load(spec, device=device)
    config = br.preset(spec.removeprefix("preset:"))
    torch.manual_seed(0)
    pre = br.Pretrained(config, br.BinaryAutoencoder(config.tokenizer).eval(), br.BiGR(config.generator).eval())
    for name, weight in pre.generator.named_parameters():
        if "adaLN" in name or "final_layer" in name:  # initialized to zero, which would cut every dependence
            torch.nn.init.normal_(weight, std=0.02)
    return pre.to(device)


def agreement(pre: br.Pretrained, images: int) -> dict[str, Any]:
    """Assert that plain and exact generate the same codes from the same draws, with 4 iterations and 10 steps."""
    labels = torch.arange(images, device=pre.device) % pre.config.generator.classes

    def half(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.full(shape, 0.5, device=pre.device)

    ours = sample_codes(
        pre.generator,
        torch.ones(images, pre.config.generator.tokens, dtype=torch.bool),
        settings=SamplingSettings(steps=4, diffusion_steps=10, gumbel=0, guidance=2.5),
        draws=Middle(),
        condition=pre.generator.transformer.condition_embedding(labels, images).detach(),
    )
    theirs = plain.generate(pre, labels, iterations=4, chain=10, guidance=2.5, gumbel=0, draw=half)
    differing = int((ours != theirs).sum())
    # A logit within rounding error of the threshold may fall on either side, and later steps depend on it.
    assert differing <= 1e-2 * ours.numel(), f"{differing} of {ours.numel()} bits differ"
    return {"differing_bits": differing, "bits": ours.numel()}


def settings_of(options: argparse.Namespace) -> tuple[SamplingSettings, SamplingSettings]:
    """The paper's settings and the fast ones, shortened as the options ask."""
    steps, chain = options.iterations, options.chain
    exact = SamplingSettings() if steps is None else SamplingSettings(steps=steps)
    fast = FAST if steps is None else FAST.with_changes({"steps": min(steps, FAST.steps)})
    if chain is not None:
        exact = exact.with_changes({"diffusion_steps": chain})
        fast = fast.with_changes({"diffusion_steps": min(chain, FAST.diffusion_steps or chain)})
    return exact, fast


def samplers(pre: br.Pretrained, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The functions to time, by name. Each generates `images` images, from labels to pixels."""
    images, kinds, (exact, fast) = options.images, options.kinds, settings_of(options)
    labels = torch.arange(images, device=pre.device) % pre.config.generator.classes
    chain = exact.diffusion_steps or pre.config.generator.sample_timesteps

    def theirs() -> object:
        codes = plain.generate(
            pre, labels, iterations=exact.steps, chain=chain, guidance=2.5, gumbel=exact.gumbel,
            draw=lambda shape: torch.rand(shape, device=pre.device),
        )  # fmt: skip
        with torch.no_grad():
            return decode(pre, codes)

    def ours(settings: SamplingSettings) -> Callable[[], object]:
        return lambda: br.generate(pre, labels.tolist(), settings=settings, batch_size=images)

    every = {
        "plain": theirs,
        "exact": ours(exact),
        "short chain ranks": ours(exact.with_changes({"confidence_steps": 8})),
        "chain of 25": ours(exact.with_changes({"diffusion_steps": 25})),
        "chain of 16": ours(exact.with_changes({"diffusion_steps": 16})),
        "Halton order": ours(exact.with_changes({"order": "halton"})),
        "fast": ours(fast),
    }
    return {name: run for name, run in every.items() if name in kinds or "all" in kinds}


def timed(runs: dict[str, Callable[[], object]], images: int, repeats: int, warm: bool) -> dict[str, Any]:
    """Median seconds per image of each sampler, measured alternately, and its speed relative to plain."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + warm):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warm:
                seconds[name].append((time.perf_counter() - started) / images)
        print(f"round {repeat + 1}: " + ", ".join(f"{n} {s[-1]:.3f} s" for n, s in seconds.items() if s), flush=True)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    found = {}
    for name, value in middle.items():
        ratios = [p / s for p, s in zip(seconds.get("plain", []), seconds[name], strict=False)]
        found[name] = {
            "seconds_an_image": round(value, 4),
            "times_as_fast_as_plain": round(statistics.median(ratios), 2) if ratios else None,
            "of_rounds": [round(ratio, 2) for ratio in ratios],
        }
    return found


def speed(options: argparse.Namespace) -> None:
    """The `speed` subcommand."""
    measured: dict[str, Any] = {}
    for spec in options.models:
        pre = load(spec, options.device)
        print(f"{spec} on {options.device}", flush=True)
        runs, (exact, fast) = samplers(pre, options), settings_of(options)
        found: dict[str, Any] = {
            "weights": "random" if spec.startswith("preset:") else pre.fingerprint,
            "images_together": options.images,
            "iterations": exact.steps,
            "diffusion_steps": exact.diffusion_steps or pre.config.generator.sample_timesteps,
            "fast": dataclasses.asdict(fast),
            "same_codes": agreement(pre, min(options.images, 2)),
            "float32": timed(runs, options.images, options.repeats, not options.cold),
        }
        if options.device.startswith("cuda"):
            low = load(spec, options.device).to(dtype=torch.bfloat16)
            runs = {name: run for name, run in samplers(low, options).items() if name != "plain"}
            found["bfloat16"] = timed(runs, options.images, options.repeats, True)
            if options.compile:
                compile_for_sampling(low)  # compiles in place, so `runs` uses it
                found["bfloat16_compiled"] = timed(runs, options.images, options.repeats, True)
        measured[pre.config.name] = found
    results = {"repeats": options.repeats, "models": measured}
    record.write("generation_speed" + ("_" + options.name if options.name else ""), results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("speed")
    part.add_argument("--models", nargs="+", default=["bigr-tiny"])
    part.add_argument("--images", type=int, default=4, help="images generated in one batch")
    part.add_argument("--repeats", type=int, default=5)
    part.add_argument("--kinds", nargs="+", default=["plain", "exact", "fast"], help='samplers to measure, or "all"')
    part.add_argument("--iterations", type=int, help="fewer iterations than the paper's 20, for a quick look")
    part.add_argument("--chain", type=int, help="fewer diffusion steps than the model's, for a quick look")
    part.add_argument("--cold", action="store_true", help="count the first round too, without warm-up; for long runs")
    part.add_argument("--compile", action="store_true", help="also compile, on a GPU; compiling takes minutes")
    part.add_argument("--name", default="", help="suffix of the record: generation_speed_NAME.json")
    part.set_defaults(run=speed)
    part = commands.add_parser("orders")
    orders.add_arguments(part)
    part.set_defaults(run=orders.run)
    part = commands.add_parser("pictures")
    part.add_argument("--model", default="bigr-tiny-aligned")
    part.add_argument("--out", type=Path, default=record.RESULTS / "generation")
    part.set_defaults(run=pictures.run)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
