"""How a generator's features improve during training: probe, 20-NN and loss of its checkpoints, against views seen.

    python benchmarks/probe_curve.py runs/codes64 --run runs/aligned --initial bigr-tiny-aligned --seen 563200

CODES is the code data set that the run was trained on; its last classes are CIFAR-10's. The run must have kept its
checkpoints (`train generator --keep 100`). --initial names the model that the run started from, and --seen the number
of views that model had already seen.

Measured as in recipes.py, on images of CIFAR-10's training set, so that monitoring a run does not use the test set that
reports it. A checkpoint's model is the average of the weights, at that moment's learning rate: it gains most at the
end, when the rate falls to zero.

Writes benchmarks/results/probe_curve.json and probe_curve.png. About two minutes per checkpoint on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import record
from recipes import measure
from safetensors.torch import load_file

import bigr_repr as br
from bigr_repr.models.bigr import BiGR
from bigr_repr.train import CodeSet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", type=Path, help="code data set")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, with its checkpoints")
    parser.add_argument("--initial", required=True, help="model that the run started from")
    parser.add_argument("--seen", type=int, required=True, help="number of views that model had seen")
    parser.add_argument("--images", type=int, default=4000, help="images to train probes on; half as many test them")
    options = parser.parse_args()
    codes = CodeSet(options.codes)
    start = br.load(options.initial)
    points = [{"views": options.seen, **measure(start.generator, codes, options.images)}]
    for folder in sorted(options.run.glob("checkpoint-*")):
        run = json.loads((folder / "run.json").read_text())
        model = BiGR(start.config.generator).eval()
        model.load_state_dict(load_file(folder / "ema.safetensors"))
        points.append(
            {"views": options.seen + run["step"] * run["batch_size"], **measure(model, codes, options.images)}
        )
        print({key: value for key, value in points[-1].items() if key != "blocks"}, flush=True)
    record.write("probe_curve", {"initial": options.initial, "points": points})
    draw(points)


def draw(points: list[dict[str, Any]]) -> None:
    """Plot probe and 20-NN, and next to them the loss, against the views seen."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    views = [point["views"] / 1000 for point in points]
    for key, name, color in (("probe", "linear probe", "#1f4e8c"), ("knn20", "20-NN", "#c05621")):
        panes[0].plot(views, [point[key] for point in points], marker="o", color=color, label=name)
    panes[0].set(title="features of CIFAR-10", xlabel="thousand views", ylabel="held-out accuracy, percent")
    panes[0].legend(frameon=False)
    panes[1].plot(views, [point["loss"] for point in points], marker="o", color="#1f4e8c")
    panes[1].set(title="generator", xlabel="thousand views", ylabel="weighted BCE")
    for pane in panes:
        pane.spines[["top", "right"]].set_visible(False)
    figure.savefig(record.RESULTS / "probe_curve.png", dpi=120)


if __name__ == "__main__":
    main()
