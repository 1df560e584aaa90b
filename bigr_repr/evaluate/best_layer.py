"""The best block of a model on a data set, as a sweep over all blocks found it, remembered in the cache folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bigr_repr._durable import replacing

__all__ = ["recall", "remember"]


def remember(cache: str | os.PathLike[str], model_sha256: str, pool: str, *, train: str, found: dict[str, Any]) -> None:
    """Note what a sweep found on training set `train`: plain data with the block as "layer"."""
    path = _file(cache, model_sha256, pool)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _known(path) | {train: found}
    with replacing(path) as file:
        file.write((json.dumps(known, indent=1) + "\n").encode())


def recall(cache: str | os.PathLike[str], model_sha256: str, pool: str, *, train: str, model: str, dataset: str) -> int:
    """The block noted for training set `train`; model and dataset: what the caller names them.

    Raises ValueError, saying how to find it, if no sweep has.
    """
    known = _known(_file(cache, model_sha256, pool))
    if train not in known:
        swept = f"; swept so far: {', '.join(known)}" if known else ""
        raise ValueError(
            f"layer='best' of {model} on {train} is not known yet{swept}; "
            f"find it with: bigr-repr bench layers --model {model} --dataset {dataset}"
        )
    layer: int = known[train]["layer"]
    return layer


def _file(cache: str | os.PathLike[str], model_sha256: str, pool: str) -> Path:
    return Path(cache) / "best" / f"{model_sha256[:32]}-{pool}.json"


def _known(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return known
