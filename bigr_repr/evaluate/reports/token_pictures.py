"""Draws tokens of images: states as colors, entropy, attention and similarity. Knows no data sets."""

# n images, N tokens, h w token grid

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import load
from bigr_repr.evaluate.reports.plots import plain_text, pyplot, save_figure
from bigr_repr.features.attention import NearTokens, near_tokens, token_attention
from bigr_repr.features.extractor import blocks_of, layer_name
from bigr_repr.features.tokens import TokenViews, token_pca, token_views
from bigr_repr.images.inputs import read_all
from bigr_repr.system.devices import choose_device

__all__ = ["TokenPicture", "draw_tokens"]

_MOST: Final = 32  # images in a picture
_MARK: Final = "#ff3b30"


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenPicture:
    """What was drawn. token: the one in the first image that others are compared with, in raster order.

    entropy: (n,), float32: mean over an image's tokens, 0 if the tokenizer is certain of every bit. nearest: (k, 2),
    int64: image and token of the most similar ones in other images. attention: (n, N), of that token in each image,
    averaged over the heads of the last layer; the remainder to 1 goes to the condition.
    """

    layers: tuple[int | str, ...]
    token: int
    entropy: NDArray[np.float32]
    nearest: NDArray[np.int64]
    attention: NDArray[np.float32]


def draw_tokens(
    images: Sequence[PathLike],
    path: PathLike,
    *,
    model: PathLike,
    layers: Sequence[int | str] = (12,),
    at: tuple[float, float] = (0.5, 0.5),
    k: int = 8,
    device: str | None = None,
) -> TokenPicture:
    """Draw a row per image: its input, decoded bits, entropy, states as colors, similarity, attention.

    images: paths, as in `extract_features`, at most 32. layers: blocks whose states become colors; similarity and
    attention are of the last one. at: position of their token, as fractions of width and height, in [0, 1).
    Raises ValueError for values out of range, otherwise as `extract_features` does.
    """
    if not layers:
        raise ValueError(f"layers={layers} is empty; name at least one block")
    if any(not 0 <= share < 1 for share in at):
        raise ValueError(f"at={at} must lie in [0, 1): fractions of width and height")
    pre = load(model).to(choose_device(device))
    named = tuple(layer_name(blocks_of(layer, pre.config)) for layer in layers)
    pixels = list(read_all(list(images), pre.config.image_size, workers=None, ahead=8))
    if not 1 <= len(pixels) <= _MOST:
        raise ValueError(f"{len(pixels)} images; a picture of tokens takes 1..{_MOST}")
    views = token_views(pixels, pre, named)
    side = pre.config.generator.grid
    token = int(at[1] * side) * side + int(at[0] * side)
    near = near_tokens(views.states[named[-1]], 0, token, k=k)
    attention = token_attention(views.bits, pre, blocks_of(named[-1], pre.config)[-1], token).mean(axis=1)[:, 1:]
    _draw(np.stack(pixels), views, near, attention, token, path)
    return TokenPicture(
        layers=named, token=token, entropy=views.entropy.mean(axis=1), nearest=near.nearest, attention=attention
    )


@plain_text
def _draw(
    pixels: NDArray[np.uint8], views: TokenViews, near: NearTokens, attention: NDArray[np.float32], token: int,
    path: PathLike,
) -> None:  # fmt: skip
    side = int(views.entropy.shape[1] ** 0.5)
    grids = [values.reshape(len(pixels), side, side) for values in (views.entropy, near.similarity, attention)]
    columns: list[tuple[str, NDArray[Any], dict[str, Any]]] = [
        ("image", pixels, {}), ("decoded bits", views.reconstruction, {}),
        ("entropy of bits", grids[0], {"cmap": "magma", "vmin": 0, "vmax": 1}),
    ]  # fmt: skip
    columns += [(f"layer {layer}", token_pca(states), {}) for layer, states in views.states.items()]
    last = list(views.states)[-1]
    columns.append((f"like the token, {last}", grids[1], {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}))
    columns.append((f"attention, {last}", grids[2], {"cmap": "viridis", "vmin": 0}))
    plt = pyplot()
    size = (1.55 * len(columns), 1.5 * len(pixels) + 0.4)
    figure, panes = plt.subplots(len(pixels), len(columns), figsize=size, squeeze=False, layout="constrained")
    for number, (title, shown, options) in enumerate(columns):
        panes[0, number].set_title(title, fontsize=8)
        for row, pane in enumerate(panes[:, number]):
            pane.imshow(shown[row], interpolation="nearest", **options)
            pane.axis("off")
            height = shown.shape[1]
            if row == 0 and number in (0, len(columns) - 2, len(columns) - 1):
                _mark(plt, pane, token, side, height, _MARK)
            if number == 0:
                for place in near.nearest[near.nearest[:, 0] == row, 1]:
                    _mark(plt, pane, int(place), side, height, "#34c759")
    save_figure(figure, path)


def _mark(plt: Any, pane: Any, token: int, side: int, height: int, color: str) -> None:
    """Draw a frame around a token of a picture with the given height in pixels."""
    step = height / side
    corner = (token % side * step - 0.5, token // side * step - 0.5)
    pane.add_patch(plt.Rectangle(corner, step, step, fill=False, edgecolor=color, linewidth=1.5))
