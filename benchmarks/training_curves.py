"""Plots the training curves of tokenizer and generator runs, and records their steps, images and time.

    python benchmarks/training_curves.py --tokenizer runs/tokenizer --generator runs/generator

List a run that continues from another's weights after that run. FOLDER@STEPS counts a run only up to the checkpoint
that was used. Writes benchmarks/results/training.json and training.png. Takes seconds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record

LOSSES = {"l1": "L1 of pixels", "l2": "squared error of pixels", "loss": "weighted BCE"}
ALIGNMENT = ("align", "align_pooled")


@dataclass(frozen=True)
class Stage:
    """What a run logged, up to the checkpoint that was used, and its batch size."""

    lines: list[dict[str, float]]
    batch: int

    @classmethod
    def read(cls, text: str) -> Stage:
        folder, _, last = text.partition("@")
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        kept = [line for line in lines if not last or line["step"] < int(last)]
        newest = sorted(Path(folder).glob("checkpoint-*"))[-1]
        return cls(kept, json.loads((newest / "run.json").read_text())["batch_size"])

    @property
    def steps(self) -> int:
        return int(self.lines[-1]["step"]) + 1

    @property
    def hours(self) -> float:
        every = self.lines[1]["step"] - self.lines[0]["step"]
        return sum(every * self.batch / line["images_per_second"] for line in self.lines) / 3600


def smooth(values: list[float], width: int = 9) -> np.ndarray:
    """Running mean over `width` logged values."""
    padded = np.pad(np.asarray(values), width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def draw(pane: Any, name: str, stages: list[Stage]) -> dict[str, Any]:
    """Plot the curve of consecutive stages. Returns their steps, images, hours and final loss."""
    key = next(key for key in LOSSES if key in stages[-1].lines[0])
    before = 0
    for stage in stages:
        steps = [before + line["step"] + 1 for line in stage.lines]
        values = [line[key] for line in stage.lines]
        pane.plot(steps, values, color="#b8c4d6", linewidth=1)
        pane.plot(steps, smooth(values), color="#1f4e8c", linewidth=1.8)
        before += stage.steps
    last = stages[-1].lines
    pane.set(title=name, xlabel="step", ylabel=LOSSES[key])
    pane.spines[["top", "right"]].set_visible(False)
    return {
        "steps": [stage.steps for stage in stages],
        "images_seen": sum(stage.steps * stage.batch for stage in stages),
        "hours": round(sum(stage.hours for stage in stages), 2),
        **{
            f"final_{term}": round(float(smooth([line[term] for line in last])[-1]), 5)
            for term in (key, *ALIGNMENT)
            if term in last[0]
        },
    }


def main() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", nargs="+", required=True, metavar="RUN", help="folders of its runs, in order")
    parser.add_argument("--generator", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--model", default="bigr-tiny", help="the resulting model")
    parser.add_argument("--initial", default="", help="the model that the runs started from")
    parser.add_argument("--networks", default="", help="other networks that the training used")
    parser.add_argument("--note", default="", help="anything else a reader should know about the runs")
    options = parser.parse_args()
    figure, panes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    found: dict[str, Any] = {name: getattr(options, name) for name in ("initial", "networks", "note")}
    for pane, name in zip(panes, ("tokenizer", "generator"), strict=True):
        found[name] = draw(pane, name, [Stage.read(run) for run in getattr(options, name)])
    record.write("training", found, record.load(options.model))
    figure.savefig(record.RESULTS / "training.png", dpi=120)


if __name__ == "__main__":
    main()
