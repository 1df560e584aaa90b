"""The best block of a model on a data set, as a sweep over all blocks found it, remembered in the cache folder.

One file per model and pooling: {fingerprint of the training images: what the sweep found}.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import load
from bigr_repr.evaluate.data.splits import Part
from bigr_repr.evaluate.runs.cache import default_cache
from bigr_repr.system.files import replacing

__all__ = ["recall", "recall_any", "remember"]

BEST: Final = "best"
_log = logging.getLogger(__name__)


def remember(cache: PathLike, model_sha256: str, pool: str, *, train: Part, found: dict[str, Any]) -> None:
    """Note what a sweep found on a training side: plain data with the block as "layer".

    A sweep over fewer of the same images than the one noted changes nothing, which is logged.
    """
    path = _file(cache, model_sha256, pool)
    path.parent.mkdir(parents=True, exist_ok=True)
    known, key = _known(path), train.fingerprint()
    earlier = known.get(key, {}).get("images", 0)
    if earlier > len(train):
        _log.warning(
            "%s: layer='best' stays what a sweep over %d images found; this one had %d", train.name, earlier, len(train)
        )
        return
    known[key] = {"train": train.name, "images": len(train), **found}
    with replacing(path) as file:
        file.write((json.dumps(known, indent=1) + "\n").encode())


def recall(
    layers: Sequence[int | str],
    cache: PathLike,
    model_sha256: str,
    pool: str,
    *,
    train: Part,
    model: str,
    dataset: str,
) -> list[int | str]:
    """`layers` with the block noted for a training side in the place of "best".

    model and dataset: what the caller names them.  Raises ValueError, saying how to find it, if no sweep has.
    """
    if BEST not in layers:
        return list(layers)
    known = _known(_file(cache, model_sha256, pool))
    key = train.fingerprint()
    if key not in known:
        pooling = "" if pool == "avg" else f" --pool {pool}"
        swept = f"; swept so far: {', '.join(each['train'] for each in known.values())}" if known else ""
        raise ValueError(
            f"layer='best' of {model} on {train.name} is not known yet in {os.fspath(cache)}{swept}; "
            f"find it with: bigr-repr bench layers --model {model}{pooling} --dataset {dataset}"
        )
    return [known[key]["layer"] if layer == BEST else layer for layer in layers]


def recall_any(model: PathLike, *, cache: PathLike | None = None) -> int:
    """The block that every sweep of a model over mean features found best, whatever data sets they were over.

    model: a name or folder that load takes. cache: the user's cache folder by default.
    Raises ValueError if there was no sweep, or naming the data sets where they differ; otherwise as load does.
    """
    folder = default_cache() if cache is None else cache
    known = list(_known(_file(folder, load(model).fingerprint, "avg")).values())
    if not known:
        raise ValueError(
            f"layer='best' of {os.fspath(model)} is not known yet in {os.fspath(folder)}; "
            f"find it with: bigr-repr bench layers --model {os.fspath(model)} --dataset DATA"
        )
    layers = {each["layer"] for each in known}
    if len(layers) > 1:
        listed = ", ".join(f"{each['layer']} on {each['train']}" for each in known)
        raise ValueError(f"layer='best' of {os.fspath(model)} depends on the data set: {listed}; name one by number")
    layer: int = layers.pop()
    return layer


def _file(cache: PathLike, model_sha256: str, pool: str) -> Path:
    return Path(cache) / "best-layer" / f"{model_sha256[:32]}-{pool}.json"


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Raises ValueError that names the file if it is damaged."""
    try:
        known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and sweep again") from error
    return known
