"""Loads models by name, once per process. Knows nothing of frameworks."""

from __future__ import annotations

import functools

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.features.exported.model import ExportedModel, open_model

AnyModel = PathLike | Pretrained | ExportedModel


def opened(model: AnyModel) -> Pretrained | ExportedModel:
    """The model itself, or the one with that name or folder."""
    return model if isinstance(model, Pretrained | ExportedModel) else _by_name(str(model))


@functools.lru_cache(maxsize=2)
def _by_name(name: str) -> Pretrained | ExportedModel:
    return open_model(name)
