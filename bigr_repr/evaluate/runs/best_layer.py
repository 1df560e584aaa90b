"""The best block of a model on a data set, as found by a sweep over all blocks and stored in the cache folder.

One file per model and pooling: {fingerprint of the training images and selected rows: the sweep's result}.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import load
from bigr_repr.evaluate.data.splits import Part
from bigr_repr.evaluate.runs.cache import default_cache
from bigr_repr.system.files import replacing
from bigr_repr.system.records import as_object, reading_record

__all__ = ["noted", "recall", "recall_any", "remember"]

BEST: Final = "best"


def remember(cache: PathLike, model_sha256: str, pool: str, *, train: Part, found: dict[str, Any]) -> None:
    """Store a sweep's result on a training side: plain data with the block as "layer"."""
    path = _file(cache, model_sha256, pool)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _known(path)
    known[_key(train)] = {"train": train.name, "images": len(train), **found}
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
    """`layers` with "best" replaced by the block stored for exactly these training images.

    model and dataset: the caller's names for them.  Raises ValueError with the remedy if there was no sweep.
    """
    if BEST not in layers:
        return list(layers)
    layer = noted(cache, model_sha256, pool, train=train, model=model, dataset=dataset)["layer"]
    return [layer if each == BEST else each for each in layers]


def noted(cache: PathLike, model_sha256: str, pool: str, *, train: Part, model: str, dataset: str) -> dict[str, Any]:
    """The result of the sweep over a training side, as passed to `remember`. Raises ValueError as `recall` does."""
    known = _known(_file(cache, model_sha256, pool))
    key = _key(train)
    if key not in known:
        method, *others = pool.split(".")  # as BenchSettings.pool_key joins them
        reading = ("" if method == "avg" else f" --pool {method}") + (" --mirror" if "mirror" in others else "")
        same = "--limit, --seed, --cache and condition" if set(others) - {"mirror"} else "--limit, --seed and --cache"
        swept = f"; swept so far: {', '.join(map(_words, known.values()))}" if known else ""
        raise ValueError(
            f"layer='best' of {model} on these {len(train)} images of {train.name} is not known yet in "
            f"{os.fspath(cache)}{swept}; "
            f"find it on the same data set ({dataset}), with the same {same}: "
            f"bigr-repr bench layers --model {model}{reading}"
        )
    return known[key]


def recall_any(model: PathLike, *, cache: PathLike | None = None) -> int:
    """The block that was best in every sweep of a model over mean features, on any data sets.

    model: a name or folder that load takes. cache: the user's cache folder by default.
    Raises ValueError if there was no sweep, or, naming the data sets, if they differ; otherwise as load does.
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
        raise ValueError(f"layer='best' of {os.fspath(model)} depends on the data set: {listed}; choose one by number")
    layer: int = layers.pop()
    return layer


def _key(train: Part) -> str:
    rows = hashlib.sha256(train.rows.astype("<i8").tobytes()).hexdigest()
    return f"{train.fingerprint()[:32]}-{rows[:32]}"


def _words(each: dict[str, Any]) -> str:
    return f"{each['train']} ({each['images']} images: {each['layer']})"


def _file(cache: PathLike, model_sha256: str, pool: str) -> Path:
    return Path(cache) / "best-layer" / f"{model_sha256[:32]}-{pool}.json"


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Raises ValueError that names the file if it is damaged."""
    if not path.exists():
        return {}
    with reading_record(path, remedy="remove it and sweep again") as known:
        for sweep in known.values():
            layer, images, train = (as_object(sweep)[name] for name in ("layer", "images", "train"))
            if not (isinstance(layer, int) and isinstance(images, int) and isinstance(train, str)):
                raise ValueError(f"layer={layer!r}, images={images!r}, train={train!r} does not describe a sweep")
        return known
