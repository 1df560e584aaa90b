"""How good the representations are: one linear probe and one kNN for pixels, bits, an untrained network and the model.

    python benchmarks/representation.py --model bigr-tiny \\
        --dataset CIFAR-10 data/cifar10-train.parquet data/cifar10-test.parquet \\
        --dataset Tiny-ImageNet 'data/tinyimagenet-train-*.parquet' data/tinyimagenet-val.parquet

Sources are those of bigr_repr.datasets.open_images: a folder with class folders, Parquet, torchvision:NAME:ROOT.
Every row has the same protocol. Penalty and best layer are chosen on a held-out part of the training set; the test set
is looked at once. "untrained" is the same network with random weights, which reads the trained tokenizer's codes;
"untrained, both" has an untrained tokenizer too.
Writes benchmarks/results/representation.json and representation.png. Expected: on CIFAR-10, the model 15 points above
pixels and above the untrained network. About two hours on 2 cores, minutes when run again on the cached features.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from encoded import Cache, Split, check_against_extractor, hidden_means, pixels_and_codes

import bigr_repr as br
from bigr_repr.codes import from_bytes
from bigr_repr.evaluate.knn import knn
from bigr_repr.evaluate.linear_probe import linear_probe

K = (10, 20, 100, 200)


def untrained(pre: br.Pretrained, seed: int) -> tuple[br.Pretrained, br.Pretrained]:
    """The same configuration with random weights: behind the trained tokenizer, and behind an untrained one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, generator = br.BinaryAutoencoder(pre.config.tokenizer), br.BiGR(pre.config.generator)
    tokenizer.eval()
    generator.eval()
    return (
        br.Pretrained(pre.config, pre.tokenizer, generator),
        br.Pretrained(pre.config, tokenizer, generator),
    )


class Comparison:
    """Measures one representation after the other on one data set."""

    def __init__(self, dataset: str, train: Split, test: Split, seed: int, device: str | None) -> None:
        self.dataset, self.train, self.test, self.seed, self.device = dataset, train, test, seed, device
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, train: np.ndarray, test: np.ndarray, *, layer: int | None = None, n_bits: int = 0) -> None:
        """Probe and kNN of features (n, D), or of packed codes (n, bytes) of `n_bits`."""
        started = time.perf_counter()
        labels = (self.train.labels, self.test.labels)
        metric = "hamming" if n_bits else "cosine"
        ks = [k for k in K if k <= len(train)]
        neighbours = knn(
            train, labels[0], test, labels[1], k=ks, metric=metric, n_bits=n_bits or None, device=self.device
        )
        if n_bits:
            train, test = from_bytes(train, n_bits), from_bytes(test, n_bits)
        probe = linear_probe(train, labels[0], test, labels[1], seed=self.seed, device=self.device)
        row: dict[str, Any] = {"dataset": self.dataset, "representation": name, "layer": layer}
        row["linear_probe"] = {
            key: round(value, 3) if key.endswith(("top1", "top5")) else value
            for key, value in dataclasses.asdict(probe).items()
        }
        row["knn"] = {
            "top1": {str(k): round(value, 3) for k, value in neighbours.top1.items()},
            "metric": neighbours.metric,
            "temperature": neighbours.temperature,
            "protocol": neighbours.protocol,
        }
        self.rows.append(row)
        at = "" if layer is None else f" layer {layer}"
        print(
            f"{self.dataset} {name}{at}: probe {probe.top1:.2f} (top-5 {probe.top5:.2f}, held-out "
            f"{probe.held_out_top1:.2f}, C={probe.C:g}), kNN {max(neighbours.top1.values()):.2f}, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )

    def chosen(self, name: str, layer: int | None) -> dict[str, Any] | None:
        """The row of a representation at a layer; None: at the one with the best held-out accuracy."""
        rows = [row for row in self.rows if row["representation"] == name and layer in (None, row["layer"])]
        return max(rows, key=lambda row: row["linear_probe"]["held_out_top1"], default=None)


def compare(name: str, splits: tuple[Split, Split], pre: br.Pretrained, cache: Cache, options: Any) -> Comparison:
    """All rows of one data set."""
    found = Comparison(name, *splits, options.seed, options.device)
    plain, both = untrained(pre, options.seed)
    encoded = [pixels_and_codes(cache, s, {"trained": pre, "untrained": both}, options.device) for s in splits]
    found.add("pixels 32x32", *(part["pixels"].reshape(len(part["pixels"]), -1) for part in encoded))
    bits = pre.config.code_size
    found.add("tokenizer bits", *(part["trained"] for part in encoded), n_bits=bits)
    found.add("untrained tokenizer's bits", *(part["untrained"] for part in encoded), n_bits=bits)
    networks = (("bigr", pre, "trained"), ("untrained", plain, "trained"), ("untrained, both", both, "untrained"))
    for label, network, codes in networks:
        means = [
            hidden_means(cache, split, label, network, part[codes], options.layers, options.device)
            for split, part in zip(splits, encoded, strict=True)
        ]
        check_against_extractor(network, splits[1], encoded[1][codes], means[1], options.layers[-1])
        for layer in options.layers:
            found.add(label, *(part[str(layer)] for part in means), layer=layer)
    return found


def summary(comparisons: list[Comparison], fixed: int | None) -> tuple[list[dict[str, Any]], str]:
    """The rows of the README's table, and that table in Markdown."""
    names: list[tuple[str, int | None]]
    names = [("pixels 32x32", None), ("tokenizer bits", None), ("untrained tokenizer's bits", None)]
    for label in ("untrained, both", "untrained", "bigr"):
        names += [(label, fixed), (label, None)] if fixed is not None else [(label, None)]
    rows, lines = [], []
    for label, layer in names:
        cells: list[str] = []
        row: dict[str, Any] = {}
        for comparison in comparisons:
            chosen = comparison.chosen(label, layer)
            assert chosen is not None
            probe, neighbours = chosen["linear_probe"], chosen["knn"]["top1"]
            cells += [f"{probe['top1']:.1f}", f"{probe['top5']:.1f}", f"{neighbours['20']:.1f}"]
            row[comparison.dataset] = {
                "layer": chosen["layer"],
                "linear_probe_top1": probe["top1"],
                "linear_probe_top5": probe["top5"],
                "knn20_top1": neighbours["20"],
            }
        by_layer = label in ("bigr", "untrained", "untrained, both")
        name = label + ((", best layer" if layer is None else f", layer {layer}") if by_layer else "")
        rows.append({"representation": name, **row})
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    head = " | ".join(f"{c.dataset} probe | top-5 | 20-NN" for c in comparisons)
    rule = "|---" * (1 + 3 * len(comparisons)) + "|"
    return rows, "\n".join([f"| representation | {head} |", rule, *lines])


def plot(comparisons: list[Comparison], path: Path) -> None:
    """Accuracy by layer, with the baselines as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panes = plt.subplots(1, len(comparisons), figsize=(4.6 * len(comparisons), 3.4), squeeze=False)
    for pane, comparison in zip(panes[0], comparisons, strict=True):
        for label, colour in (("bigr", "#1f4e8c"), ("untrained", "#c0792a")):
            rows = [row for row in comparison.rows if row["representation"] == label]
            layers = [row["layer"] for row in rows]
            top1 = [row["linear_probe"]["top1"] for row in rows]
            nearest = [max(row["knn"]["top1"].values()) for row in rows]
            pane.plot(layers, top1, color=colour, marker="o", markersize=3, label=f"{label}, linear probe")
            pane.plot(layers, nearest, color=colour, linestyle=":", label=f"{label}, kNN")
        for label, colour in (("pixels 32x32", "#888888"), ("tokenizer bits", "#5a9367")):
            row = comparison.chosen(label, None)
            assert row is not None
            pane.axhline(row["linear_probe"]["top1"], color=colour, linewidth=1, label=f"{label}, linear probe")
        pane.set(title=comparison.dataset, xlabel="block", ylabel="top-1 accuracy, %")
        pane.spines[["top", "right"]].set_visible(False)
    panes[0][-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs=3, action="append", required=True, metavar=("NAME", "TRAIN", "TEST"))
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--layers", type=int, nargs="+", help="blocks to measure; default: all")
    parser.add_argument("--limit", type=int, help="images of each split, a stratified sample; default: all")
    parser.add_argument("--cache", type=Path, default=Path("runs/representation"), help="folder for features")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out split and of the untrained weights")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pre = record.load(options.model)
    generator = pre.config.generator
    options.layers = sorted({generator.layer_index(layer) for layer in options.layers or range(generator.layers)})
    comparisons = []
    for name, train, test in options.dataset:
        splits = (
            Split.open(f"{name} train", train, train=True, limit=options.limit, seed=options.seed),
            Split.open(f"{name} test", test, train=False, limit=options.limit, seed=options.seed),
        )
        comparisons.append(compare(name, splits, pre, Cache(options.cache), options))
    rows, table = summary(comparisons, 12 if 12 in options.layers else None)
    record.write(
        "representation",
        {
            "limit": options.limit,
            "seed": options.seed,
            "untrained": "same configuration, random weights; unless 'both', it reads the trained tokenizer's codes",
            "best_layer": "the one with the best held-out accuracy of the linear probe, for kNN too",
            "summary": rows,
            "table": table.splitlines(),
            "rows": [row for comparison in comparisons for row in comparison.rows],
        },
        pre,
    )
    plot(comparisons, record.RESULTS / "representation.png")
    print(table)


if __name__ == "__main__":
    main()
