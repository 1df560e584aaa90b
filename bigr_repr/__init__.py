"""Image representations from a generator: features, bit codes, search and edits from one BiGR model.

Everything public is named here and loaded on first use: importing the package loads neither torch nor faiss.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigr_repr.checkpoints import Pretrained, load, load_official, save
    from bigr_repr.config import GeneratorConfig, ModelConfig, TokenizerConfig, preset
    from bigr_repr.embed import embed_images, read_embeddings
    from bigr_repr.extractor import FeatureExtractor, Features
    from bigr_repr.features import encode_codes, extract_features
    from bigr_repr.images import ImageError
    from bigr_repr.models.bigr import BiGR
    from bigr_repr.models.tokenizer import BinaryAutoencoder
    from bigr_repr.retrieval import HammingIndex, Neighbors
    from bigr_repr.sampling import (
        Pasting,
        SamplingSettings,
        edit,
        edit_photo,
        enrich,
        enrich_photo,
        generate,
        inpaint,
        inpaint_photo,
        interpolate,
        outpaint,
        outpaint_photo,
    )

__version__ = "0.1.0"

_HOMES = {
    "BiGR": "models.bigr",
    "BinaryAutoencoder": "models.tokenizer",
    "FeatureExtractor": "extractor",
    "Features": "extractor",
    "GeneratorConfig": "config",
    "HammingIndex": "retrieval",
    "ImageError": "images",
    "ModelConfig": "config",
    "Neighbors": "retrieval",
    "Pasting": "sampling",
    "Pretrained": "checkpoints",
    "SamplingSettings": "sampling",
    "TokenizerConfig": "config",
    "edit": "sampling",
    "edit_photo": "sampling",
    "embed_images": "embed",
    "encode_codes": "features",
    "enrich": "sampling",
    "enrich_photo": "sampling",
    "extract_features": "features",
    "generate": "sampling",
    "inpaint": "sampling",
    "inpaint_photo": "sampling",
    "interpolate": "sampling",
    "load": "checkpoints",
    "load_official": "checkpoints",
    "outpaint": "sampling",
    "outpaint_photo": "sampling",
    "preset": "config",
    "read_embeddings": "embed",
    "save": "checkpoints",
}

__all__ = [
    "BiGR",
    "BinaryAutoencoder",
    "FeatureExtractor",
    "Features",
    "GeneratorConfig",
    "HammingIndex",
    "ImageError",
    "ModelConfig",
    "Neighbors",
    "Pasting",
    "Pretrained",
    "SamplingSettings",
    "TokenizerConfig",
    "edit",
    "edit_photo",
    "embed_images",
    "encode_codes",
    "enrich",
    "enrich_photo",
    "extract_features",
    "generate",
    "inpaint",
    "inpaint_photo",
    "interpolate",
    "load",
    "load_official",
    "outpaint",
    "outpaint_photo",
    "preset",
    "read_embeddings",
    "save",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bigr_repr' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"bigr_repr.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
