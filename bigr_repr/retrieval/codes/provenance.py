"""Provenance of codes: model, layer and everything else that must agree before two codes may be compared.

Knows nothing of images or search. Data set code is imported only when two provenances are compared: it loads slowly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bigr_repr.features.condition import FeatureCondition

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.features.exported.model import ExportedModel

BITS: Final = "tokenizer bits"
FEATURES: Final = "binarised features"  # as written into index folders: do not change the spelling
_SHOWN: Final = "binarized features"
_SHARED: Final = ("model", "weights_sha256", "precision", "preprocessing")
_TYPES: Final[dict[str, Any]] = {
    "of": str, "layer": int | str | None, "pooling": str | None,
    "model": str, "weights_sha256": str, "precision": str, "preprocessing": dict,
}  # fmt: skip
_SEVERAL = re.compile(r"\d+(\+\d+)+")  # concatenated layers, such as "4+8"


class IndexReading(NamedTuple):
    """How features are extracted. layer: one, several as "4+8", or None; the rest as in FeatureExtractor."""

    layer: int | str | None
    pool: str
    mirror: bool
    condition: FeatureCondition

    @property
    def layers(self) -> tuple[int | str, ...]:
        """The layer, if there is one."""
        return () if self.layer is None else (self.layer,)


def provenance_of(recorded: Mapping[str, Any], of: str, layer: int | str | None) -> dict[str, Any]:
    """The provenance of codes made from a data set with the provenance `recorded` (see Recipe.provenance).

    of: BITS or FEATURES. layer: of the features, or of the vectors stored with tokenizer bits; None if there are none.
    """
    shared = {name: recorded[name] for name in _SHARED}
    own: dict[str, Any] = {}
    if layer is not None and recorded.get("mirror"):
        own["mirror"] = True
    if layer is not None and FeatureCondition.from_record(recorded.get("condition")):
        own["condition"] = recorded["condition"]
    return {"of": of, "layer": layer, "pooling": None if layer is None else recorded["pooling"], **own, **shared}


def reading_of(index_provenance: Mapping[str, Any]) -> IndexReading:
    """How the vectors of an index with this provenance were extracted."""
    return IndexReading(
        index_provenance["layer"], index_provenance["pooling"] or "avg", bool(index_provenance.get("mirror")),
        FeatureCondition.from_record(index_provenance.get("condition")),
    )  # fmt: skip


def parse_provenance(provenance: Any) -> dict[str, Any] | None:
    """Check a provenance read from a file, or None.  Raises ValueError unless it has the form of provenance_of."""
    if provenance is None:
        return None
    if not isinstance(provenance, dict):
        raise ValueError(f"origin: {provenance!r:.40} is not an object")
    wrong = [name for name, kind in _TYPES.items() if not _has(provenance, name, kind)]
    layer = provenance.get("layer")
    if isinstance(layer, str) and not _SEVERAL.fullmatch(layer):
        wrong.append("layer")
    if wrong or provenance["of"] not in (BITS, FEATURES):
        raise ValueError(f"origin: {', '.join(wrong) or 'of'} missing or invalid")
    try:
        FeatureCondition.from_record(provenance.get("condition"))
    except ValueError as error:
        raise ValueError(f"origin: {error}") from error
    return dict(provenance)


def _has(provenance: Mapping[str, Any], name: str, kind: Any) -> bool:
    return name in provenance and isinstance(provenance[name], kind) and not isinstance(provenance[name], bool)


def provenance_by(pre: Pretrained | ExportedModel, index_provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of codes that this model would make with the index's settings."""
    from bigr_repr.embed.dataset.schema import Recipe, icc_of
    from bigr_repr.features.exported.model import ExportedModel

    reading = reading_of(index_provenance)
    precision = pre.precision if isinstance(pre, ExportedModel) else index_provenance["precision"]
    recipe = Recipe(
        config=pre.config, weights=pre.fingerprint, layers=reading.layers, pool=reading.pool, mirror=reading.mirror,
        condition=reading.condition, dtype=precision, codes=True, icc=icc_of(index_provenance),
    )  # fmt: skip
    return provenance_of(recipe.provenance(), index_provenance["of"], reading.layer)


def require_same_provenance(index_provenance: Mapping[str, Any], query_provenance: Mapping[str, Any]) -> None:
    """Raise ValueError, naming both sides, unless codes of the two can be compared."""
    if found := differing_fields(index_provenance, query_provenance):
        raise ValueError(f"index and query do not match: {found}; search an index with the model that made it")


def differing_fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What keeps codes of two provenances from being compared, in words; empty if nothing does."""
    from bigr_repr.embed.dataset.schema import incomparable_fields

    return "; ".join(incomparable_fields(one, other)).replace(FEATURES, _SHOWN)


def describe_provenance(provenance: Mapping[str, Any] | None) -> str:
    """A short description of a provenance."""
    if provenance is None:
        return "codes of unknown provenance"
    reading, layer = reading_of(provenance), ""
    if provenance["of"] != BITS:
        pool = "" if reading.pool == "avg" else f" pooled by {reading.pool}"
        layer = f", layer {reading.layer}{pool}{' with mirror images' if reading.mirror else ''}"
        layer += f", read with {reading.condition.words}" if reading.condition else ""
    made_of = _SHOWN if provenance["of"] == FEATURES else provenance["of"]
    return f"{made_of} of {provenance['model']}{layer}"
