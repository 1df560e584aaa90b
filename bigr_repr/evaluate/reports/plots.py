"""Plots of benchmark results, as PNG or SVG by the file's ending. Knows nothing of how results came about."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bigr_repr._typing import PathLike
from bigr_repr.system.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bigr_repr.evaluate.runs.bench import BenchRow

COLORS: Final = ("#1f4e8c", "#c0792a", "#5a9367", "#8a4f9e", "#b0413e", "#4f8a8b", "#888888")


def pyplot() -> Any:
    """matplotlib.pyplot without a display."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: PathLike) -> None:
    """Write a figure whole or not at all, and close it. Raises ValueError for an ending other than .png and .svg."""
    target = Path(path)
    kind = target.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise ValueError(f"{target}: plots are .png or .svg files; give such an ending")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120)
    pyplot().close(figure)
    with replacing(target) as file:
        file.write(buffer.getvalue())


def plot_layers(rows: Sequence[BenchRow], path: PathLike) -> None:
    """Accuracy of probe and neighbors at every block, the best block marked: of one sweep of `bench`."""
    plot_sweeps([row.record() for row in rows], path)


def plot_sweeps(records: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """As `plot_layers`, of many records: a panel a data set, a color a representation.

    Representations without blocks are horizontal lines.
    """
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    names = list(dict.fromkeys(record["representation"] for record in records))
    plt = pyplot()
    figure, panes = plt.subplots(1, len(datasets), figsize=(max(5.2, 4.4 * len(datasets)), 3.8), squeeze=False)
    for pane, dataset in zip(panes[0], datasets, strict=True):
        for number, name in enumerate(names):
            rows = [each for each in records if each["dataset"] == dataset and each["representation"] == name]
            _draw(pane, rows, name, COLORS[number % len(COLORS)])
        pane.set(title=dataset, xlabel="block", ylabel="top-1 accuracy, %")
        pane.spines[["top", "right"]].set_visible(False)
        pane.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = panes[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.06 * -(-len(labels) // 4), 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=min(4, len(labels)), fontsize=7, frameon=False)
    save_figure(figure, path)


def _draw(pane: Any, rows: Sequence[Mapping[str, Any]], name: str, color: str) -> None:
    for key, style in (("linear_probe", "-"), ("knn", ":")):
        scored = [(row["layer"], _top1(row[key])) for row in rows if row[key] is not None]
        label = f"{name}, {'linear probe' if key == 'linear_probe' else _neighbors(rows)}"
        swept = sorted((layer, top1) for layer, top1 in scored if layer is not None)
        if len(swept) > 1:
            pane.plot(*zip(*swept, strict=True), color=color, linestyle=style, marker="o", markersize=2.5, label=label)
            held = {row["layer"]: row[key].get("held_out_top1") for row in rows if row[key] is not None}
            if key == "linear_probe" and None not in held.values():
                best = max(held, key=lambda layer: held[layer])
                pane.plot(best, dict(swept)[best], color=color, marker="o", markersize=8, fillstyle="none")
        elif scored:
            pane.axhline(scored[0][1], color=color, linestyle=style, linewidth=1, label=label)


def _top1(found: Mapping[str, Any]) -> float:
    """Of several numbers of neighbors that of the smallest: the best one would be chosen on the test images."""
    top1 = found["top1"]
    return float(top1[min(top1, key=int)] if isinstance(top1, Mapping) else top1)


def _neighbors(rows: Sequence[Mapping[str, Any]]) -> str:
    numbers = {min(row["knn"]["top1"], key=int) for row in rows if row["knn"] is not None}
    return f"{'/'.join(sorted(numbers, key=int))}-NN"


def plot_bars(records: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """Linear-probe accuracy with its interval: a panel a data set, a bar a representation."""
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    names = list(dict.fromkeys(record["representation"] for record in records))
    plt = pyplot()
    height = 1.2 + 0.32 * len(names)
    figure, panes = plt.subplots(
        1, len(datasets), figsize=(3 + 3 * len(datasets), height), squeeze=False, sharey=True, layout="constrained"
    )
    for pane, dataset in zip(panes[0], datasets, strict=True):
        found = {each["representation"]: each["linear_probe"] for each in records if each["dataset"] == dataset}
        top1 = [found[name]["top1"] for name in names]
        low = [found[name]["top1"] - found[name]["interval"][0] for name in names]
        high = [found[name]["interval"][1] - found[name]["top1"] for name in names]
        colors = [COLORS[number % len(COLORS)] for number in range(len(names))]
        pane.barh(names, top1, xerr=[low, high], color=colors, height=0.7, error_kw={"linewidth": 1})
        for place, value in enumerate(top1):
            pane.text(value + high[place], place, f"  {value:.1f}", va="center", fontsize=8)
        widest = max(value + above for value, above in zip(top1, high, strict=True))
        pane.set(title=dataset, xlabel="top-1 accuracy, %", xlim=(0, 1.2 * widest))
        pane.spines[["top", "right"]].set_visible(False)
    panes[0][0].invert_yaxis()
    save_figure(figure, path)


def plot_map(points: NDArray[Any], labels: NDArray[Any], names: Sequence[str], title: str, path: PathLike) -> None:
    """Points (n, 2) colored by class; up to 20 classes are named beside it."""
    import numpy as np

    plt = pyplot()
    figure, pane = plt.subplots(figsize=(6.4, 5), layout="constrained")
    classes = np.unique(labels)
    colors = plt.get_cmap("tab20" if len(classes) > 10 else "tab10")
    for number, label in enumerate(classes):
        rows = labels == label
        named = names[label] if label < len(names) else str(label)
        pane.scatter(*points[rows].T, s=6, color=colors(number % colors.N), label=named, alpha=0.8, linewidths=0)
    if len(classes) <= 20:
        pane.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    pane.set(title=title, xticks=[], yticks=[])
    save_figure(figure, path)


def plot_matrix(
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    path: PathLike,
    *,
    title: str,
    labels: tuple[str, str],
    most: float,
) -> None:
    """A matrix as colors from 0 to `most`, with numbers in the cells of a small one. labels: of the rows, columns."""
    plt = pyplot()
    side = max(4.0, min(14.0, 0.32 * max(values.shape) + 2))
    figure, pane = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = pane.imshow(values, vmin=0, vmax=most, cmap="viridis")
    if max(values.shape) <= 40:
        pane.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        pane.set_yticks(range(len(rows)), rows, fontsize=7)
    if max(values.shape) <= 16:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = f"{value:.2f}" if most <= 1 else f"{value:.0f}"
                pane.text(j, i, text, ha="center", va="center", fontsize=6, color="w" if value < 0.6 * most else "k")
    pane.set(title=title, ylabel=labels[0], xlabel=labels[1])
    figure.colorbar(image, shrink=0.8)
    save_figure(figure, path)
