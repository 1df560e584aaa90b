"""Views of features: 2-D maps, nearest-neighbor strips, confusion matrices, CKA. Knows nothing of files."""

# n rows (images), D features, K classes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from bigr_repr.evaluate.data.labeled import check_lengths, labeled
from bigr_repr.evaluate.probes.knn import nearest
from bigr_repr.images.decode import center_crop
from bigr_repr.images.sheets import contact_sheet

__all__ = ["MAPS", "cka", "cka_matrix", "confusion", "neighbor_strips", "plane"]

MAPS: Final = ("pca", "tsne", "umap")
_RIGHT, _WRONG, _QUERY = (90, 147, 103), (176, 65, 62), (31, 78, 140)
_CAPTION: Final = 14  # pixels below a picture
_K = TypeVar("_K")


def plane(features: ArrayLike, method: str = "pca", *, seed: int = 0) -> NDArray[np.float32]:
    """Features (n, D) as points (n, 2): by PCA, t-SNE or UMAP, after standardizing columns.

    Raises ValueError for an unknown method, fewer than 4 rows or 2 columns, or features that are too large or the same
    for every image; ImportError if UMAP is not installed.
    """
    given = labeled("", features, np.zeros(len(np.asarray(features)), np.int64))
    check_lengths(given)
    x = given.features.astype(np.float32)
    if method not in MAPS:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(MAPS)}")
    if len(x) < 4:
        raise ValueError(f"{len(x)} rows are too few for a map; give at least 4")
    if x.shape[1] < 2:
        raise ValueError("features have 1 column; a map needs at least 2")
    if (x == x[0]).all():
        raise ValueError("features are the same for every image, which makes no map; extract them again")
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    if method == "umap":
        try:
            import umap
        except ImportError as error:
            raise ImportError("method='umap' needs umap-learn; install it with: pip install umap-learn") from error
        return np.asarray(umap.UMAP(random_state=seed, n_jobs=1).fit_transform(x), np.float32)
    from sklearn.decomposition import PCA

    points = PCA(min(50, *x.shape) if method == "tsne" else 2, random_state=seed).fit_transform(x)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(x) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return np.asarray(points, np.float32)


def confusion(labels: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(classes (K,), counts (K, K)): how often images of the row's class were predicted as the column's.

    Raises ValueError for arrays of different length.
    """
    truth, called = np.asarray(labels), np.asarray(predicted)
    if truth.shape != called.shape or truth.ndim != 1:
        raise ValueError(f"labels {truth.shape} and predicted {called.shape} must be one row of equal length")
    classes, places = np.unique(np.concatenate([truth, called]), return_inverse=True)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (places[: len(truth)], places[len(truth) :]), 1)
    return classes, counts


def cka(one: ArrayLike, other: ArrayLike) -> float:
    """Linear centered kernel alignment of two features (n, D) and (n, E) of the same images, in 0..1.

    1: equal up to rotation and scale. Source: Kornblith et al., Similarity of Neural Network Representations Revisited
    (arXiv 1905.00414), equation 5.  Raises ValueError for different numbers of rows, or features without variance.
    """
    return float(cka_matrix({0: one}, {0: other})[0, 0])


def cka_matrix(rows: Mapping[_K, ArrayLike], columns: Mapping[_K, ArrayLike]) -> NDArray[np.float64]:
    """`cka` of all `rows` with all `columns`."""
    left, right = ([_centered(x) for x in side.values()] for side in (rows, columns))
    lengths = {len(x) for x in (*left, *right)}
    if len(lengths) != 1:
        raise ValueError(f"features have {', '.join(map(str, sorted(lengths)))} rows; CKA compares the same images")
    own_left, own_right = ([_cross(x, x) ** 0.5 for x in side] for side in (left, right))
    if not max(*own_left, *own_right) < np.inf:
        raise ValueError("features are too large: products of float32 overflow; scale them down")
    if not min(*own_left, *own_right) > 0:
        raise ValueError("features that are the same for every image cannot be compared")
    return np.array(
        [
            [_cross(x, y) / (norm * other) for y, other in zip(right, own_right, strict=True)]
            for x, norm in zip(left, own_left, strict=True)
        ]
    )


def _centered(features: ArrayLike) -> torch.Tensor:
    x = torch.from_numpy(np.asarray(features).astype(np.float32))
    if x.ndim != 2:
        raise ValueError(f"features have shape {tuple(x.shape)}; expected (n, D)")
    if not bool(x.isfinite().all()):
        raise ValueError("features are not all finite; extract them again in float32")
    return x - x.mean(dim=0)


def _cross(x: torch.Tensor, y: torch.Tensor) -> float:
    """||x^T y||^2, by whichever order of products is smaller."""
    if x.shape[1] * y.shape[1] > len(x) ** 2:
        return float(((x @ x.T) * (y @ y.T)).sum(dtype=torch.float64))
    return float((x.T @ y).square().sum(dtype=torch.float64))


def neighbor_strips(
    queries: NDArray[Any],
    base: NDArray[Any],
    query_labels: Sequence[int] | NDArray[np.int64],
    base_labels: NDArray[np.int64],
    query_image: Callable[[int], Image.Image],
    base_image: Callable[[int], Image.Image],
    *,
    k: int = 8,
    metric: str = "cosine",
    n_bits: int | None = None,
    mean: NDArray[np.float32] | None = None,
    side: int = 64,
    names: Sequence[str] = (),
) -> Image.Image:
    """One strip per query: the query framed blue, then its k nearest, framed green if of the same class, else red.

    queries (q, D), base (m, D): features, metrics as in `knn.nearest`. query_image, base_image: return a row's image.
    names: class names by number, written below the images.
    Raises ValueError as `nearest` does, or for a k outside 1..m.
    """
    if not 1 <= k <= len(base):
        raise ValueError(f"k={k} is outside 1..{len(base)}, the number of images to choose from")
    found = nearest(queries, base, k, metric=metric, n_bits=n_bits, mean=mean).rows
    tiles = []
    for line, neighbors in enumerate(found):
        label = query_labels[line]
        tiles.append(_tile(query_image(line), side, _QUERY, names, int(label)))
        for row in neighbors:
            color = _RIGHT if base_labels[row] == label else _WRONG
            tiles.append(_tile(base_image(int(row)), side, color, names, int(base_labels[row])))
    return contact_sheet(tiles, k + 1, gap=8)


def _tile(image: Image.Image, side: int, color: tuple[int, ...], names: Sequence[str], label: int) -> Image.Image:
    """A framed picture, with its class name below if there is one."""
    tile = Image.new("RGB", (side, side + (_CAPTION if names else 0)), "white")
    tile.paste(color, (0, 0, side, side))
    tile.paste(Image.fromarray(center_crop(image, side - 6)), (3, 3))
    if names:
        draw, font, text = ImageDraw.Draw(tile), ImageFont.load_default(10), names[label]
        while len(text) > 1 and draw.textlength(text, font) > side:
            text = text.removesuffix("…")[:-1] + "…"
        draw.text((0, side + 1), text, "black", font)
    return tile
