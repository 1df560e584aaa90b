"""Features and bit codes of images of any kind, in one call. Knows nothing of storage, search or evaluation."""

# S side in pixels, N tokens, D width

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import code_bytes, to_bytes
from bigr_repr.features.condition import FeatureCondition, as_plain
from bigr_repr.features.exported.model import ExportedModel, open_model
from bigr_repr.features.extractor import FeatureExtractor, Features, Layer
from bigr_repr.images.inputs import Pictures, read_all, stack
from bigr_repr.system.devices import as_dtype, choose_device

__all__ = ["check_finite", "encode_codes", "extract_features"]

Layers = Iterable[int] | list[Layer] | tuple[Layer, ...]


@overload
def extract_features(
    images: Pictures,
    *,
    model: PathLike | Pretrained | ExportedModel = ...,
    layer: Layer = ...,
    pool: str = ...,
    mirror: bool = ...,
    condition: FeatureCondition | int | str | None = ...,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    dtype: str | torch.dtype | None = ...,
    compile: bool = ...,
    workers: int | None = ...,
) -> NDArray[np.float32]: ...
@overload
def extract_features(
    images: Pictures,
    *,
    model: PathLike | Pretrained | ExportedModel = ...,
    layer: Layers,
    pool: str = ...,
    mirror: bool = ...,
    condition: FeatureCondition | int | str | None = ...,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    dtype: str | torch.dtype | None = ...,
    compile: bool = ...,
    workers: int | None = ...,
) -> dict[Layer, NDArray[np.float32]]: ...
def extract_features(
    images: Pictures,
    *,
    model: PathLike | Pretrained | ExportedModel = DEFAULT_MODEL,
    layer: Layer | Layers = 12,
    pool: str = "avg",
    mirror: bool = False,
    condition: FeatureCondition | int | str | None = None,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool = False,
    workers: int | None = None,
) -> NDArray[np.float32] | dict[Layer, NDArray[np.float32]]:
    """Feature vectors of images, float32 (n, D), or (n, N, D) with pool="none"; one array per layer if a list is given.

    images: a folder, a pattern or a file (rows in the order of bigr_repr.images.find_images), a PIL image, an array
    (H, W, 3) or (n, H, W, 3) as for bigr_repr.images.as_rgb, a tensor (3, H, W) or (n, 3, H, W) of uint8 or floats in
    [0, 1], or a sequence of any of these. Pictures of other sizes are resized and cropped as in center_crop.

    model: a name or folder for load(), a model, or an exported network or its folder. layer: 0-based block, negative
    from the end, "mid", several concatenated as "4+8", or a list of these, for which the result is {layer as given:
    array}. pool: "avg", "max", "avg+max", "grid2" (the means over four quarters, concatenated) or "none"; mirror:
    average over each image and its mirror image, in twice the time; condition: a class or caption to extract features
    with, or masked tokens; all three as in FeatureExtractor. device: None: a GPU if there is one, or where the given
    model is. dtype: of the network's computation ("float32", "bfloat16", "float16"). workers: decoding threads.

    Holds all vectors in memory: for many images use embed_images, which also continues past unreadable pictures.
    Raises ImageError naming the first unreadable picture, FileNotFoundError for missing inputs, ValueError for a layer
    out of range or non-finite vectors.
    """
    given: Any = as_plain(layer)
    several = isinstance(given, Iterable) and not isinstance(given, str)
    layers: list[Layer] = [as_plain(each) for each in given] if several else [given]
    if not layers:
        raise ValueError("layer=[] names no layer; for codes alone use encode_codes")
    extractor = _extractor(model, layers, pool, device, dtype, compile, mirror=mirror, condition=condition)
    arrays = _arrays(_batches(images, extractor, batch_size, workers), extractor, layers)
    return arrays if several else arrays[layers[0]]


def _arrays(
    batches: Iterable[tuple[int, Features]], extractor: FeatureExtractor, layers: list[Layer]
) -> dict[Layer, NDArray[np.float32]]:
    """The vectors of all batches by layer, float32 (n, …). Raises ValueError for non-finite vectors."""
    found: dict[Layer, list[NDArray[np.float32]]] = {
        each: [np.empty((0, *extractor.vector_shape(each)), np.float32)] for each in layers
    }
    for first, features in batches:
        check_finite(features, first, extractor.dtype)
        for each, values in features.layers.items():
            found[each].append(values.cpu().numpy())
    return {each: np.concatenate(rows) for each, rows in found.items()}


def encode_codes(
    images: Pictures,
    *,
    model: PathLike | Pretrained | ExportedModel = DEFAULT_MODEL,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: str | torch.dtype | None = None,
    workers: int | None = None,
) -> NDArray[np.uint8]:
    """Bit codes of images, packed as in bigr_repr.codes: uint8 (n, bytes).

    Arguments and errors as in extract_features. Only the tokenizer runs.
    """
    extractor = _extractor(model, (), "avg", device, dtype, False)
    rows = [np.empty((0, code_bytes(extractor.config.code_size)), np.uint8)]
    for first, features in _batches(images, extractor, batch_size, workers):
        check_finite(features, first, extractor.dtype)
        rows.append(to_bytes(features.codes.flatten(1).cpu().numpy()))
    return np.concatenate(rows)


def _extractor(
    model: PathLike | Pretrained | ExportedModel,
    layers: Iterable[Layer],
    pool: str,
    device: torch.device | str | None,
    dtype: str | torch.dtype | None,
    compile: bool,
    *,
    mirror: bool = False,
    condition: FeatureCondition | int | str | None = None,
) -> FeatureExtractor:
    computed_in = as_dtype(dtype)
    pre = open_model(model)
    moves = isinstance(pre, Pretrained) and (pre is not model or device is not None)
    place = choose_device(device) if moves else device
    return FeatureExtractor(
        pre, layers, pool, mirror=mirror, condition=condition, dtype=computed_in, device=place, compile=compile
    )


def check_finite(features: Features, first: int, dtype: torch.dtype) -> None:
    """Raise ValueError, naming the image, unless all features are finite. first: the number of the first image."""
    good = features.finite
    for values in features.layers.values():
        good = good & values.isfinite().flatten(1).all(1)
    if not bool(good.all()):
        row = first + int((~good).nonzero()[0])
        remedy = (
            "the model's weights are damaged"
            if dtype == torch.float32
            else f"{dtype} has too small a range; use float32"
        )
        raise ValueError(f"image {row}: its features are not finite: {remedy}")


def _batches(
    images: Pictures, extractor: FeatureExtractor, batch_size: int, workers: int | None
) -> Iterator[tuple[int, Features]]:
    """The number of the first image, and the features, of every batch."""
    if not hasattr(batch_size, "__index__") or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number, at least 1")
    side = extractor.config.image_size
    if isinstance(images, Tensor) and images.shape[1:] == (3, side, side):  # used as is, without rounding to bytes
        for first in range(0, len(images), batch_size):
            yield first, extractor(images[first : first + batch_size])
        return
    loaded = read_all(images, side, workers=workers, ahead=2 * batch_size)
    first = 0
    try:
        while batch := list(islice(loaded, batch_size)):
            yield first, extractor(stack(batch))
            first += len(batch)
    finally:
        loaded.close()
