"""Which token order, how many iterations and how long a chain give the best images: `generation.py orders`.

All sets have the same size and are generated with the same weights, classes and seed. Each is compared with the same
real images by Fréchet distance, precision and recall (bigr_repr.evaluate), on two kinds of features: the model's own
hidden states at its middle block, and pixels at 8 x 8. Neither kind is comparable with published FIDs. Fréchet
distances fall as the number of images grows, so a set of real images outside the reference goes through the same
comparison and gives the lowest distance that this number of images can reach.

--reduced generates 96 images per set, with fewer iterations and shorter chains, and uses 32 principal components of the
real images' features, because so few images cannot determine a larger covariance. On a CPU each core generates
independently.

--groups, --orders, --iterations, --chain, --at and --chain-order choose a part of the grid; the whole grid would take a
night.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import torch.nn.functional as F
from kept import Cache

import bigr_repr as br
from bigr_repr.checkpoints.classes import class_number
from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.evaluate.metrics.generation import generation_quality
from bigr_repr.images.decode import center_crop
from bigr_repr.sampling import FAST, SamplingSettings
from bigr_repr.sampling.settings import ORDERS
from bigr_repr.system.threads import map_ahead

CHUNK, CHUNK_GPU = 32, 512  # images per cache file
READ = 32  # real images per batch
PIXELS = 8
COLORS = dict(zip(ORDERS, ("#1f4e8c", "#5a9fd4", "#c0392b", "#888888", "#c0a02a", "#5a9367"), strict=True))
MEASURES = {"frechet_distance": "Fréchet distance", "precision": "precision", "recall": "recall"}
GROUPS = ("orders", "chains", "presets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the `orders` subcommand."""
    parser.add_argument("real", nargs="+", help="real images: a folder, Parquet files, torchvision:NAME:ROOT")
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--count", type=int, help="images per set; default: 5000, or 96 with --reduced")
    parser.add_argument("--reference", type=int, help="real images; default: all others, or 2000 with --reduced")
    parser.add_argument("--reduced", action="store_true", help="use the small grid")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS, help="only these parts of the grid")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS, help="only these orders")
    parser.add_argument("--iterations", nargs="+", type=int, help="numbers of iterations, instead of the grid's")
    parser.add_argument("--chain", type=int, help="chain length at which orders are compared")
    parser.add_argument("--at", type=int, help="number of iterations at which chains are compared")
    parser.add_argument("--chain-order", choices=ORDERS, default="entropy", help="order for comparing chains")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="for images and features")
    parser.add_argument("--name", default="", help="suffix of the record: generation_orders_NAME.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/generation"), help="folder for cached features")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """What is compared: every order over iterations at one chain length, and chain lengths at one iteration count."""

    groups: tuple[str, ...] = GROUPS
    orders: tuple[str, ...] = ORDERS
    iterations: tuple[int, ...]
    chain: int
    chains: tuple[int, ...]
    chain_order: str = "entropy"
    at: int
    count: int
    components: int | None

    def settings(self) -> dict[tuple[str, str, int], SamplingSettings]:
        """Sampling settings by (group, name, number)."""
        found = {
            ("orders", order, n): SamplingSettings(order=order, steps=n, diffusion_steps=self.chain)
            for order in self.orders
            for n in self.iterations
        }
        for n in self.chains:
            settings = SamplingSettings(order=self.chain_order, steps=self.at, diffusion_steps=n)
            found["chains", self.chain_order, n] = settings
        presets = {
            "exact": SamplingSettings(),
            "short chain ranks": SamplingSettings(confidence_steps=8),
            "fast": FAST,
        }
        found |= {("presets", name, each.steps): each for name, each in presets.items()}
        return {key: each for key, each in found.items() if key[0] in self.groups}


FULL = Grid(iterations=(4, 8, 16, 32), chain=25, chains=(10, 16, 25, 50, 100), at=20, count=5000, components=None)
REDUCED = Grid(iterations=(4, 8, 16), chain=16, chains=(10, 25, 50, 100), at=8, count=96, components=32)


def grid_of(options: argparse.Namespace) -> Grid:
    """The grid that the options select."""
    grid = REDUCED if options.reduced else FULL
    return dataclasses.replace(
        grid,
        groups=tuple(options.groups),
        orders=tuple(options.orders),
        iterations=tuple(options.iterations or grid.iterations),
        chain=options.chain or grid.chain,
        at=options.at or grid.at,
        chain_order=options.chain_order,
        count=options.count or grid.count,
    )


class Extractors:
    """Extracts both kinds of features. names: their names in the results."""

    def __init__(self, pre: br.Pretrained, device: str) -> None:
        self._extractor = br.FeatureExtractor(pre, ("mid",), device=device)
        layer = pre.config.generator.layer_index("mid")
        self.names = (f"{pre.config.name} block {layer}, mean of tokens", f"pixels {PIXELS}x{PIXELS}, box-averaged")

    def __call__(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """uint8 (B, 3, S, S) -> float32 (B, D) of each kind."""
        hidden = self._extractor(images).layers["mid"].float().cpu().numpy()
        pixels = F.adaptive_avg_pool2d(images.float() / 255, PIXELS).flatten(1).cpu().numpy()
        return {"hidden": hidden, "pixels": pixels}


def real_features(images: ImageSet, rows: np.ndarray, side: int, extract: Extractors) -> dict[str, np.ndarray]:
    """Features of the given rows of real images, by kind."""
    found: list[dict[str, np.ndarray]] = []
    stream = map_ahead(lambda row: center_crop(images.load(int(row)), side), rows, ahead=4 * READ)
    while batch := list(islice(stream, READ)):
        found.append(extract(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)))
    return {kind: np.concatenate([part[kind] for part in found]) for kind in found[0]}


def classes_of(images: ImageSet, config: br.ModelConfig) -> list[int]:
    """The model's classes whose names the real images share, or all classes if there are none."""
    found = []
    for name in images.class_names:
        try:
            found.append(class_number(config, name.rpartition(":")[2]))
        except ValueError:
            continue
    return sorted(set(found)) or list(range(config.generator.classes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawer:
    """Generates sets of images in chunks, and caches their features and times."""

    pre: br.Pretrained
    classes: list[int]
    cache: Cache
    extract: Extractors
    seed: int

    def features(self, settings: SamplingSettings, count: int) -> tuple[dict[str, np.ndarray], float]:
        """Features of `count` images, and seconds per image."""
        parts = [self.chunk(settings, *chunk) for chunk in chunks(count, self.pre.device.type)]
        joined = {kind: np.concatenate([part[kind] for part in parts]) for kind in ("hidden", "pixels")}
        return joined, float(sum(part["seconds"] for part in parts)) / count

    def chunk(self, settings: SamplingSettings, first: int, size: int) -> Any:
        facts = [
            "generated images",
            self.pre.fingerprint,
            str(settings),
            str(self.classes),
            f"{self.seed} {first} {size}",
            str(next(self.pre.generator.parameters()).dtype),
        ]

        def compute() -> dict[str, np.ndarray]:
            started = time.perf_counter()
            labels = [self.classes[number % len(self.classes)] for number in range(first, first + size)]
            images = br.generate(self.pre, labels, settings=settings, seed=self.seed, first=first, batch_size=size)
            seconds = np.array(time.perf_counter() - started)
            return self.extract((images * 255).round().to(torch.uint8)) | {"seconds": seconds}

        return dict(self.cache.get(facts, compute))


def chunks(count: int, device: str) -> list[tuple[int, int]]:
    """(first, size) of each chunk of a set."""
    size = CHUNK if device == "cpu" else CHUNK_GPU
    return [(first, min(size, count - first)) for first in range(0, count, size)]


def draw_on_all_cores(grid: Grid, count: int, options: argparse.Namespace, classes: list[int]) -> None:
    """Fill the cache with all sets, one process per core: small products gain more from processes than threads."""
    context = multiprocessing.get_context("spawn")
    work = [(settings, *chunk) for settings in grid.settings().values() for chunk in chunks(count, "cpu")]
    with context.Pool(torch.get_num_threads(), _begin, (options, classes)) as pool:
        for done, _ in enumerate(pool.imap_unordered(_draw, work), 1):
            print(f"\r{done}/{len(work)} parts drawn", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _begin(options: argparse.Namespace, classes: list[int]) -> None:
    torch.set_num_threads(1)
    _OWN.append(open_drawer(options, classes))


def _draw(part: tuple[SamplingSettings, int, int]) -> None:
    _OWN[0].chunk(*part)


_OWN: list[Drawer] = []  # the drawer of a worker process


def open_drawer(options: argparse.Namespace, classes: list[int]) -> Drawer:
    """A drawer with the given options."""
    pre = record.load(options.model, device=options.device)
    if options.precision == "bf16":
        pre = pre.to(dtype=torch.bfloat16)
    extract = Extractors(pre, options.device)
    return Drawer(pre=pre, classes=classes, cache=Cache(options.cache), extract=extract, seed=options.seed)


def components(reference: np.ndarray, count: int | None) -> Any:
    """A function that projects onto the reference's first principal components, or the identity if count is None."""
    if count is None:
        return lambda features: features
    mean = reference.mean(axis=0)
    axes = np.linalg.svd(reference - mean, full_matrices=False)[2][:count].T
    return lambda features: (features - mean) @ axes


def run(options: argparse.Namespace) -> None:
    """Run the `orders` subcommand."""
    grid = grid_of(options)
    count = grid.count
    images = open_images(options.real, train=False)
    shuffled = np.random.default_rng(options.seed).permutation(len(images))
    wanted = options.reference or (2000 if options.reduced else len(images))
    held_out, reference = shuffled[:count], shuffled[count : count + wanted]
    if len(reference) < count:
        raise SystemExit(f"{len(images)} real images are too few for sets of {count}; give more, or a smaller --count")
    config = record.load(options.model).config
    drawer = open_drawer(options, classes_of(images, config))
    if options.device == "cpu":
        draw_on_all_cores(grid, count, options, drawer.classes)
    pre, extract = drawer.pre, drawer.extract
    side, rows = pre.config.image_size, []
    real = real_features(images, reference, side, extract)
    projections = {kind: components(real[kind], grid.components) for kind in real}

    def compare(group: str, name: str, number: int, features: dict[str, np.ndarray]) -> dict[str, Any]:
        row: dict[str, Any] = {"group": group, "name": name, "number": number}
        for kind, label in zip(("hidden", "pixels"), extract.names, strict=True):
            project = projections[kind]
            full = label if grid.components is None else f"{label}, first {grid.components} principal components"
            found = generation_quality(
                project(real[kind]), project(features[kind]), extractor=full, device=options.device
            )
            row[kind] = {k: round(getattr(found, k), 4) for k in ("frechet_distance", "precision", "recall")}
            row[kind]["protocol"] = found.protocol
        print(f"{group} {name} {number}: {row['hidden']['frechet_distance']:.3f} hidden, "
              f"{row['pixels']['frechet_distance']:.4f} pixels", flush=True)  # fmt: skip
        return row

    rows.append(compare("real", "real", 0, real_features(images, held_out, side, extract)))
    for (group, name, number), settings in grid.settings().items():
        features, seconds = drawer.features(settings, count)
        row = compare(group, name, number, features)
        rows.append(row | {"seconds_an_image": round(seconds, 3), "settings": dataclasses.asdict(settings)})
    results = {
        "grid": dataclasses.asdict(grid), "images_a_set": count, "reference_images": len(reference),
        "classes": len(drawer.classes), "guidance": 2.5, "seed": options.seed,
        "precision": options.precision, "first": verdict(rows, grid), "rows": rows,
    }  # fmt: skip
    name = "generation_orders" + ("_" + options.name if options.name else "")
    plot(rows, grid, extract.names, record.RESULTS / f"{name}.png")
    record.write(name, results, pre)


def verdict(rows: list[dict[str, Any]], grid: Grid) -> dict[str, Any]:
    """Whether confident or uncertain tokens should come first, by kind of features, from wins over iterations."""
    found: dict[str, Any] = {}
    if "orders" not in grid.groups or not {"entropy", "reversed"} <= set(grid.orders):
        return found
    for kind in ("hidden", "pixels"):
        by = {(r["name"], r["number"]): r[kind]["frechet_distance"] for r in rows if r["group"] == "orders"}
        numbers = sorted({number for _, number in by})
        wins = sum(by["entropy", n] < by["reversed", n] for n in numbers)
        found[kind] = {
            "confident_first_is_nearer_at": [n for n in numbers if by["entropy", n] < by["reversed", n]],
            "uncertain_first_is_nearer_at": [n for n in numbers if by["entropy", n] >= by["reversed", n]],
            "winner": "confident first"
            if 2 * wins > len(numbers)
            else "uncertain first"
            if 2 * wins < len(numbers)
            else "none",
            "nearest_order_at": {n: min(grid.orders, key=lambda order, n=n: by[order, n]) for n in numbers},
        }
    return found


def plot(rows: list[dict[str, Any]], grid: Grid, labels: tuple[str, ...], path: Path) -> None:
    """Plot each measure against iterations, for every order, and against chain length. One row per kind of features."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = [("orders", measure) for measure in MEASURES if "orders" in grid.groups]
    if "chains" in grid.groups:
        columns += [("chains", measure) for measure in MEASURES if not columns or measure == "frechet_distance"]
    if not columns:
        return
    axes = {
        "orders": (f"iterations (chain of {grid.chain})", grid.iterations),
        "chains": (f"steps of the chain ({grid.at} iterations)", grid.chains),
    }
    figure, panes = plt.subplots(2, len(columns), figsize=(3.8 * len(columns), 6.4), squeeze=False)
    for pane_row, kind, label in zip(panes, ("hidden", "pixels"), labels, strict=True):
        pane_row[0].set_ylabel(label, fontsize=8)
        for pane, (group, measure) in zip(pane_row, columns, strict=True):
            drawn = [row for row in rows if row["group"] == group]
            for order in dict.fromkeys(row["name"] for row in drawn):
                own = [row for row in drawn if row["name"] == order]
                numbers, values = [row["number"] for row in own], [row[kind][measure] for row in own]
                pane.plot(numbers, values, marker="o", markersize=3, color=COLORS[order], label=order)
            pane.axhline(rows[0][kind][measure], color="black", linewidth=0.8, linestyle=":", label="real images")
            title, ticks = axes[group]
            pane.set(title=MEASURES[measure], xlabel=title, xscale="log")
            pane.set_xticks(ticks, [str(n) for n in ticks], minor=False)
            pane.minorticks_off()
            pane.spines[["top", "right"]].set_visible(False)
    figure.legend(*panes[0][0].get_legend_handles_labels(), loc="lower center", ncols=7, frameon=False)
    figure.suptitle(f"{grid.count} images per set", fontsize=9)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
