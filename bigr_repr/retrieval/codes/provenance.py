"""Where codes come from: model, layer and all else that must agree before two codes may be compared.

Knows nothing of images or of search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed.dataset.schema import Recipe, differences

BITS: Final = "tokenizer bits"
FEATURES: Final = "binarised features"  # as written into index folders: not to be respelled
_SHARED: Final = ("model", "weights_sha256", "precision", "preprocessing")
_TYPES: Final[dict[str, Any]] = {
    "of": str, "layer": int | None, "pooling": str | None,
    "model": str, "weights_sha256": str, "precision": str, "preprocessing": dict,
}  # fmt: skip


def origin_of(provenance: Mapping[str, Any], of: str, layer: int | None) -> dict[str, Any]:
    """The origin of codes made of a data set with this provenance (as Recipe.provenance records it).

    of: BITS or FEATURES. layer: of the features, or of the vectors beside tokenizer bits; None: there are none.
    """
    shared = {name: provenance[name] for name in _SHARED}
    return {"of": of, "layer": layer, "pooling": None if layer is None else provenance["pooling"], **shared}


def checked_origin(origin: Any) -> dict[str, Any] | None:
    """An origin that was read from a file, or None for none.  Raises ValueError unless it is as origin_of makes it."""
    if origin is None:
        return None
    wrong = [name for name, kind in _TYPES.items() if not (isinstance(origin, dict) and _has(origin, name, kind))]
    if wrong or origin["of"] not in (BITS, FEATURES):
        raise ValueError(f"origin: {', '.join(wrong) or 'of'} missing, or not what it should be")
    return dict(origin)


def _has(origin: Mapping[str, Any], name: str, kind: Any) -> bool:
    return name in origin and isinstance(origin[name], kind) and not isinstance(origin[name], bool)


def origin_by(pre: Pretrained, index_origin: Mapping[str, Any]) -> dict[str, Any]:
    """The origin that codes made by a model as the index's were would have."""
    layer = index_origin["layer"]
    recipe = Recipe(
        config=pre.config, weights=pre.fingerprint, layers=() if layer is None else (layer,),
        pool=index_origin["pooling"] or "avg", dtype=index_origin["precision"], codes=True,
    )  # fmt: skip
    return origin_of(recipe.provenance(), index_origin["of"], layer)


def check_origin(index_origin: Mapping[str, Any], query_origin: Mapping[str, Any]) -> None:
    """Raises ValueError that says both sides unless codes of the two may be compared."""
    if found := differences(index_origin, query_origin):
        raise ValueError(
            f"the index and the query are of different origin: {'; '.join(found)}; search an index with the model "
            "that made it"
        )


def describe_origin(origin: Mapping[str, Any] | None) -> str:
    """An origin in a few words."""
    if origin is None:
        return "codes of unstated origin"
    layer = "" if origin["of"] == BITS else f", layer {origin['layer']}"
    return f"{origin['of']} of {origin['model']}{layer}"
