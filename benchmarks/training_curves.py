"""Draws the training curves of a tokenizer and a generator run, and writes what they took to one JSON record.

    python benchmarks/training_curves.py runs/tokenizer runs/generator

Writes benchmarks/results/training.json and training.png. Expected time: seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import record


def read(run: Path, last_step: int | None) -> list[dict[str, float]]:
    """Logged scalars of a run, up to the checkpoint that was kept."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if last_step is None or line["step"] < last_step]


def smooth(values: list[float], width: int = 9) -> np.ndarray:
    """Running mean over `width` logged values."""
    padded = np.pad(np.asarray(values), width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--tokenizer-steps", type=int, help="step of the checkpoint in use; default: the last")
    parser.add_argument("--generator-steps", type=int)
    parser.add_argument("--tokenizer-batch", type=int, default=32)
    parser.add_argument("--generator-batch", type=int, default=32)
    parser.add_argument("--model", default="bigr-tiny", help="what came of the runs")
    parser.add_argument("--note", default="", help="anything a reader should know of the run")
    arguments = parser.parse_args()
    figure, panes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    found: dict[str, Any] = {"note": arguments.note}
    runs = (
        ("tokenizer", arguments.tokenizer, arguments.tokenizer_steps, arguments.tokenizer_batch, "l1", "L1 of pixels"),
        (
            "generator",
            arguments.generator,
            arguments.generator_steps,
            arguments.generator_batch,
            "loss",
            "weighted BCE",
        ),
    )
    for pane, (name, folder, last, batch, key, label) in zip(panes, runs, strict=True):
        lines = read(folder, last)
        steps = [line["step"] + 1 for line in lines]
        pane.plot(steps, [line[key] for line in lines], color="#b8c4d6", linewidth=1)
        pane.plot(steps, smooth([line[key] for line in lines]), color="#1f4e8c", linewidth=1.8)
        pane.set(title=name, xlabel="step", ylabel=label)
        pane.spines[["top", "right"]].set_visible(False)
        every = steps[1] - steps[0]
        seconds = sum(every * batch / line["images_per_second"] for line in lines)
        found[name] = {
            "steps": steps[-1],
            "images_seen": steps[-1] * batch,
            "hours": round(seconds / 3600, 2),
            f"final_{key}": round(float(smooth([line[key] for line in lines])[-1]), 4),
        }
    record.write("training", found, record.load(arguments.model))
    figure.savefig(record.RESULTS / "training.png", dpi=120)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
