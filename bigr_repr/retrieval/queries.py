"""Encodes pictures as queries, with the model and settings that made an index. Knows nothing of search."""

# q queries, D features, S side in pixels

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import to_bytes
from bigr_repr.embed.dataset.schema import icc_of
from bigr_repr.features.exported.manifest import TARGETS
from bigr_repr.features.exported.model import ExportedModel, open_model
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.images.inputs import Pictures, read_all, stack
from bigr_repr.retrieval.codes.binarizer import Binarizer
from bigr_repr.retrieval.codes.provenance import BITS, provenance_by, reading_of, require_same_provenance
from bigr_repr.system.devices import as_dtype

__all__ = ["EncodedQueries", "encode_queries", "icc_of", "model_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedQueries:
    """Queries in an index's form.

    codes: uint8 (q, bytes), to compare with the index's. tokens: uint8 (q, bytes), the tokenizer's codes. vectors:
    float32 (q, D), or None if the index has only tokenizer bits. pixels: uint8 (q, S, S, 3), as the model saw them.
    """

    codes: NDArray[np.uint8]
    tokens: NDArray[np.uint8]
    vectors: NDArray[np.float32] | None
    pixels: NDArray[np.uint8]


def model_of(
    provenance: Mapping[str, Any] | None, model: PathLike | Pretrained | ExportedModel | None = None
) -> Pretrained | ExportedModel:
    """The model that made an index's codes: the one named in its provenance, or the given one if it is the same.

    Raises ValueError for an index without provenance or from another model, FileNotFoundError for a missing model.
    """
    if provenance is None:
        raise ValueError(
            "this index does not record which model made its codes, so it cannot be searched with pictures; search "
            "by code or id, or build it from an embedding data set with: bigr-repr index build"
        )
    pre = open_model(provenance["model"] if model is None else model)
    if isinstance(pre, Pretrained) and provenance["precision"].split()[0] in TARGETS:
        raise ValueError(
            f"the index was made by an exported network ({provenance['precision']}): give its folder as model; "
            "bigr-repr embed stores it next to the rows"
        )
    require_same_provenance(provenance, provenance_by(pre, provenance))
    return pre


def encode_queries(
    images: Pictures, pre: Pretrained | ExportedModel, provenance: Mapping[str, Any], binarizer: Binarizer | None
) -> EncodedQueries:
    """Encode pictures (anything that extract_features takes) with the settings of an index.

    provenance, binarizer: the index's.

    Raises ImageError for an unreadable picture, ValueError for another model or non-finite features.
    """
    require_same_provenance(provenance, provenance_by(pre, provenance))
    reading = reading_of(provenance)
    dtype = as_dtype(provenance["precision"]) if isinstance(pre, Pretrained) else None
    extractor = FeatureExtractor(
        pre, reading.layers, reading.pool, mirror=reading.mirror, condition=reading.condition, dtype=dtype
    )
    pixels = list(read_all(images, pre.config.image_size, workers=None, ahead=8, icc=icc_of(provenance)))
    found = extractor(stack(pixels))
    if not bool(found.finite.all()):
        raise ValueError("a query's features are not finite: the model's weights are damaged")
    tokens = to_bytes(found.codes.flatten(1).cpu().numpy())
    vectors = None if reading.layer is None else found.layers[reading.layer].cpu().numpy()
    if provenance["of"] == BITS:
        codes = tokens
    else:
        assert binarizer is not None
        assert vectors is not None
        codes = binarizer.encode(vectors)
    return EncodedQueries(codes=codes, tokens=tokens, vectors=vectors, pixels=np.stack(pixels))
