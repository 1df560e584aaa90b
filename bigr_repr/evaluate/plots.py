"""Plots of benchmark results, as PNG or SVG by the file's ending. Knows nothing of how results came about."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bigr_repr.embed._durable import replacing

if TYPE_CHECKING:
    from bigr_repr.evaluate.bench import BenchRow

COLOURS: Final = ("#1f4e8c", "#c0792a", "#5a9367", "#8a4f9e", "#b0413e", "#4f8a8b", "#888888")


def pyplot() -> Any:
    """matplotlib.pyplot without a display. Raises ImportError with the remedy where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with: pip install matplotlib") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
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


def plot_layers(rows: Sequence[BenchRow], path: str | os.PathLike[str]) -> None:
    """Accuracy of probe and neighbours at every block, the best block marked: of one sweep of `bench`."""
    plot_sweeps([row.record() for row in rows], path)


def plot_sweeps(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """As `plot_layers`, of many records: a panel a data set, a colour a representation.

    Representations without blocks are horizontal lines.
    """
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    names = list(dict.fromkeys(record["representation"] for record in records))
    plt = pyplot()
    figure, panes = plt.subplots(1, len(datasets), figsize=(max(5.2, 4.4 * len(datasets)), 3.8), squeeze=False)
    for pane, dataset in zip(panes[0], datasets, strict=True):
        for number, name in enumerate(names):
            rows = [each for each in records if each["dataset"] == dataset and each["representation"] == name]
            _draw(pane, rows, name, COLOURS[number % len(COLOURS)])
        pane.set(title=dataset, xlabel="block", ylabel="top-1 accuracy, %")
        pane.spines[["top", "right"]].set_visible(False)
    handles, labels = panes[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.06 * -(-len(labels) // 4), 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=min(4, len(labels)), fontsize=7, frameon=False)
    save_figure(figure, path)


def _draw(pane: Any, rows: Sequence[Mapping[str, Any]], name: str, colour: str) -> None:
    for key, style in (("linear_probe", "-"), ("knn", ":")):
        scored = [(row["layer"], _top1(row[key])) for row in rows if row[key] is not None]
        label = f"{name}, {'linear probe' if key == 'linear_probe' else 'kNN'}"
        swept = sorted((layer, top1) for layer, top1 in scored if layer is not None)
        if len(swept) > 1:
            pane.plot(*zip(*swept, strict=True), color=colour, linestyle=style, marker="o", markersize=2.5, label=label)
            held = {row["layer"]: row[key].get("held_out_top1") for row in rows if row[key] is not None}
            if key == "linear_probe" and None not in held.values():
                best = max(held, key=lambda layer: held[layer])
                pane.plot(best, dict(swept)[best], color=colour, marker="o", markersize=8, fillstyle="none")
        elif scored:
            pane.axhline(scored[0][1], color=colour, linestyle=style, linewidth=1, label=label)


def _top1(found: Mapping[str, Any]) -> float:
    top1 = found["top1"]
    return float(max(top1.values()) if isinstance(top1, Mapping) else top1)
