"""Plots of benchmark results, as PNG or SVG by the file's suffix. Knows nothing of how results were measured."""

from __future__ import annotations

import functools
import io
import logging
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from bigr_repr._typing import PathLike
from bigr_repr.system.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bigr_repr.evaluate.runs.bench import BenchRow

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_NAMED: Final = 200  # maximum number of classes named
_LINES: Final = 30  # per column of a legend
_LETTERS: Final = 40  # maximum of a name in a legend
_SIDE: Final = 5.3  # inches, of a map
COLORS: Final = ("#1f4e8c", "#c0792a", "#5a9367", "#8a4f9e", "#b0413e", "#4f8a8b", "#888888")


def pyplot() -> Any:
    """matplotlib.pyplot without a display."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plain_text(plot: Callable[_P, None]) -> Callable[_P, None]:
    """The same function, in whose plots a `$` is one and does not begin a formula: names may hold any character.

    Logs one warning for all characters that the font lacks, instead of matplotlib's for each.
    """

    @functools.wraps(plot)
    def plotted(*args: _P.args, **named: _P.kwargs) -> None:
        import matplotlib as mpl

        with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            plot(*args, **named)
        glyphs = [each for each in found if str(each.message).startswith("Glyph ")]
        lost = dict.fromkeys(chr(int(str(each.message).split()[1])) for each in glyphs)
        if lost:
            _log.warning("plots show boxes in place of %s, which their font lacks", " ".join(lost))
        for each in (each for each in found if each not in glyphs):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)

    return plotted


def save_figure(figure: Any, path: PathLike) -> None:
    """Write a figure atomically, and close it. Raises ValueError for a suffix other than .png and .svg."""
    target = Path(path)
    kind = target.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise ValueError(f"{target}: plots are .png or .svg files; use one of these suffixes")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120)
    pyplot().close(figure)
    with replacing(target) as file:
        file.write(buffer.getvalue())


def plot_layers(rows: Sequence[BenchRow], path: PathLike) -> None:
    """Accuracy of probe and neighbors at every block in one sweep of `bench`, with the best block marked."""
    plot_sweeps([row.record() for row in rows], path)


@plain_text
def plot_sweeps(records: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """Like `plot_layers`, for many records: a panel per data set, a color per representation, 95 % bands.

    Representations without blocks are horizontal lines.
    """
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    names = list(dict.fromkeys(record["representation"] for record in records))
    plt = pyplot()
    figure, panes = plt.subplots(1, len(datasets), squeeze=False, layout="constrained")
    figure.set_figwidth(max(5.2, 4.4 * len(datasets)))
    handles: dict[str, Any] = {}
    for pane, dataset in zip(panes[0], datasets, strict=True):
        for number, name in enumerate(names):
            rows = [each for each in records if each["dataset"] == dataset and each["representation"] == name]
            _draw(pane, rows, name, COLORS[number % len(COLORS)])
        pane.set(title=dataset, xlabel="block", ylabel="top-1 accuracy, %")
        pane.spines[["top", "right"]].set_visible(False)
        pane.xaxis.get_major_locator().set_params(integer=True)
        handles |= {text: handle for handle, text in zip(*pane.get_legend_handles_labels(), strict=True)}
    handles |= _key(plt)
    widest = 0.8 + 0.055 * max(map(len, handles))  # inches per entry
    columns = max(1, min(4, len(handles), int(figure.get_figwidth() / widest)))
    figure.set_figheight(3.2 + 0.16 * -(-len(handles) // columns))
    place: Any = "outside lower center"
    figure.legend(handles.values(), handles.keys(), loc=place, ncols=columns, fontsize=7, frameon=False)
    save_figure(figure, path)


def _key(plt: Any) -> dict[str, Any]:
    """Legend entries for the marks of a sweep."""
    circle = plt.Line2D([], [], color="#444444", marker="o", markersize=8, fillstyle="none", linestyle="")
    return {"chosen on held-out images": circle, "95 %": plt.Rectangle((0, 0), 1, 1, color="#444444", alpha=0.15)}


def _draw(pane: Any, rows: Sequence[Mapping[str, Any]], name: str, color: str) -> None:
    for key, style in (("linear_probe", "-"), ("knn", ":")):
        scored = [(row["layer"], _top1(row[key]), _interval(row[key])) for row in rows if row[key] is not None]
        label = f"{name}, {'linear probe' if key == 'linear_probe' else _neighbors(rows)}"
        swept = sorted((each for each in scored if each[0] is not None), key=lambda each: each[0])
        if len(swept) > 1:
            layers, values, intervals = zip(*swept, strict=True)
            pane.plot(layers, values, color=color, linestyle=style, marker="o", markersize=2.5, label=label)
            pane.fill_between(layers, *zip(*intervals, strict=True), color=color, alpha=0.15, linewidth=0)
            held = {row["layer"]: row[key].get("held_out_top1") for row in rows if row[key] is not None}
            if key == "linear_probe" and None not in held.values():
                best = max(held, key=lambda layer: held[layer])
                pane.plot(best, values[layers.index(best)], color=color, marker="o", markersize=8, fillstyle="none")
        elif scored:
            pane.axhline(scored[0][1], color=color, linestyle=style, linewidth=1, label=label)


def _interval(found: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval of `_top1`."""
    interval = found["interval"]
    low, high = interval[min(interval, key=int)] if isinstance(interval, Mapping) else interval
    return float(low), float(high)


def _top1(found: Mapping[str, Any]) -> float:
    """The accuracy for the smallest number of neighbors: taking the best would be tuning on the test images."""
    top1 = found["top1"]
    return float(top1[min(top1, key=int)] if isinstance(top1, Mapping) else top1)


def _neighbors(rows: Sequence[Mapping[str, Any]]) -> str:
    numbers = {min(row["knn"]["top1"], key=int) for row in rows if row["knn"] is not None}
    return f"{'/'.join(sorted(numbers, key=int))}-NN"


@plain_text
def plot_bars(records: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """Linear-probe accuracy with its interval: a panel per data set, a bar per representation."""
    datasets = list(dict.fromkeys(record["dataset"] for record in records))
    names = list(dict.fromkeys(record["representation"] for record in records))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    plt = pyplot()
    figure, panes = plt.subplots(
        1, len(datasets), figsize=(3 + 3 * len(datasets), 1.2 + 0.32 * len(names)), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for pane, dataset in zip(panes[0], datasets, strict=True):
        found = {each["representation"]: each["linear_probe"] for each in records if each["dataset"] == dataset}
        top1 = {name: probe["top1"] for name, probe in found.items()}
        low = [probe["top1"] - probe["interval"][0] for probe in found.values()]
        high = [probe["interval"][1] - probe["top1"] for probe in found.values()]
        places = [names.index(name) for name in found]
        bars = [colors[name] for name in found]
        pane.barh(places, top1.values(), xerr=[low, high], color=bars, height=0.7, error_kw={"linewidth": 1})
        for place, value, above in zip(places, top1.values(), high, strict=True):
            pane.text(value + above, place, f"  {value:.1f}", va="center", fontsize=8)
        widest = max(value + above for value, above in zip(top1.values(), high, strict=True))
        pane.set(title=dataset, xlabel="top-1 accuracy, %", xlim=(0, 1.2 * widest))
        pane.spines[["top", "right"]].set_visible(False)
    panes[0][0].set_yticks(range(len(names)), names)
    panes[0][0].invert_yaxis()
    save_figure(figure, path)


@plain_text
def plot_map(points: NDArray[Any], labels: NDArray[Any], names: Sequence[str], title: str, path: PathLike) -> None:
    """Points (n, 2), a color per class; the legend names up to 200 classes, as wide as their names need."""
    import numpy as np

    plt = pyplot()
    classes = np.unique(labels)
    columns = -(-len(classes) // _LINES) if len(classes) <= _NAMED else 0
    figure, pane = plt.subplots(figsize=(_SIDE, 5), layout="constrained")
    for color, label in zip(class_colors(len(classes)), classes, strict=True):
        rows = labels == label
        named = _shorten(names[label] if label < len(names) else str(label))
        pane.scatter(*points[rows].T, s=6, color=color, label=named, alpha=0.8, linewidths=0)
    if columns:
        legend = pane.legend(
            fontsize=7 if columns == 1 else 5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5),
            markerscale=2, ncols=columns,
        )  # fmt: skip
        figure.set_figwidth(_SIDE + legend.get_window_extent().width / figure.dpi)
    pane.set(title=textwrap.fill(title, 60), xticks=[], yticks=[])
    save_figure(figure, path)


def _shorten(name: str) -> str:
    """A name of at most 40 letters, with "…" in place of the rest."""
    return name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"


def class_colors(count: int) -> list[tuple[float, float, float]]:
    """Distinct colors for `count` classes: matplotlib's for up to ten, otherwise hues at three lightnesses."""
    import colorsys

    if count <= 10:
        return [tuple(color) for color in pyplot().get_cmap("tab10").colors[:count]]
    shades = ((0.40, 0.9), (0.62, 0.65), (0.25, 0.75))
    hues = -(-count // len(shades))
    return [colorsys.hls_to_rgb((i // len(shades)) / hues, *shades[i % len(shades)]) for i in range(count)]


@plain_text
def plot_matrix(
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    path: PathLike,
    *,
    title: str,
    labels: tuple[str, str],
    span: tuple[float, float],
) -> None:
    """A matrix as colors over `span`, with named rows and columns, and numbers in the cells if it is small.

    labels: titles of rows and columns.
    """
    plt = pyplot()
    size, (least, most) = max(values.shape), span
    side = max(4.0, 0.32 * size + 2) if size <= 40 else min(30.0, 0.11 * size + 8)
    figure, pane = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = pane.imshow(values, vmin=least, vmax=most, cmap="viridis")
    if size <= _NAMED:
        font = 7 if size <= 40 else 5
        pane.set_xticks(range(len(columns)), columns, rotation=90, fontsize=font)
        pane.set_yticks(range(len(rows)), rows, fontsize=font)
    if size <= 16:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = f"{value:.2f}" if most <= 1 else f"{value:.0f}"
                color = "w" if value < least + 0.6 * (most - least) else "k"
                pane.text(j, i, text, ha="center", va="center", fontsize=6, color=color)
    pane.set(title=textwrap.fill(title, int(11 * side)), ylabel=labels[0], xlabel=labels[1])
    figure.colorbar(image, shrink=0.8)
    save_figure(figure, path)
