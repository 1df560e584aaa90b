"""What the transformer is given in addition to an image's bits when features are extracted. Knows no networks."""

# N tokens

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr.checkpoints.classes import class_number, has_classes
from bigr_repr.config import ModelConfig

__all__ = ["NO_CONDITION", "FeatureCondition", "as_condition", "as_plain"]

_NOTHING: Final = "no class, no token masked"  # as written into data sets


@dataclass(frozen=True, kw_only=True)
class FeatureCondition:
    """A class or caption to extract features with, and a share of tokens to hide from the transformer.

    given: a class by number or name; for a text model, a caption; None: neither, as in the paper. masked_share: share
    of tokens in [0, 1), the same ones in every image, drawn with mask_seed; their states are pooled with the others.
    NumPy's numbers become Python's. Raises ValueError for values of another type or out of range.
    """

    given: int | str | None = None
    masked_share: float = 0.0
    mask_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("given", "mask_seed"):
            object.__setattr__(self, name, as_plain(getattr(self, name)))
        if isinstance(self.given, bool) or not isinstance(self.given, int | str | None):
            raise ValueError(f"condition={self.given!r} is neither a class nor a caption")
        if isinstance(self.given, str) and not self.given.strip():
            raise ValueError("condition='' is empty; give a class or a caption, or leave it out")
        if not isinstance(self.masked_share, Real) or not 0 <= self.masked_share < 1:
            raise ValueError(f"masked_share={self.masked_share!r} is outside [0, 1); 0 masks nothing")
        object.__setattr__(self, "masked_share", float(self.masked_share))
        if isinstance(self.mask_seed, bool) or not isinstance(self.mask_seed, int) or self.mask_seed < 0:
            raise ValueError(f"mask_seed={self.mask_seed!r} must be a whole number, at least 0")

    def __bool__(self) -> bool:
        return self.given is not None or self.masked_share > 0

    def of(self, config: ModelConfig) -> FeatureCondition:
        """The condition resolved for a model: a class as its number, a caption stripped of white space.

        Raises ValueError for an unknown class, or for masked tokens in an autoregressive model.
        """
        given, generator = self.given, config.generator
        if given is not None and generator.condition == "text":
            given = str(given).strip()
        elif given is not None:
            if not has_classes(config):
                raise ValueError(f"condition={given!r}: {config.name} was trained without classes; leave it out")
            given = class_number(config, str(given))
        if self.masked_share and generator.attention == "causal":
            raise ValueError(f"masked_share={self.masked_share}: {config.name} predicts tokens in order, unmasked")
        return dataclasses.replace(self, given=given, mask_seed=self.mask_seed if self.masked_share else 0)

    def masked(self, tokens: int) -> NDArray[np.bool_] | None:
        """Which of N tokens are masked, (N,); None if none. A share above 0 masks at least one token, but never all."""
        if not self.masked_share:
            return None
        count = min(max(1, round(self.masked_share * tokens)), tokens - 1)
        places = np.zeros(tokens, np.bool_)
        places[np.random.default_rng(self.mask_seed).permutation(tokens)[:count]] = True
        return places

    @property
    def words(self) -> str:
        """A description for people."""
        told = "no class" if self.given is None else f"condition {self.given!r}"
        return f"{told}, {self.masked_share:.0%} of tokens masked" if self.masked_share else f"{told}, no token masked"

    def record(self) -> str | dict[str, Any]:
        """The record for provenance, ready for JSON; `from_record` reads it."""
        if not self:
            return _NOTHING
        masked = {"masked_share": self.masked_share, "mask_seed": self.mask_seed} if self.masked_share else {}
        return masked if self.given is None else {"given": self.given, **masked}

    @classmethod
    def from_record(cls, record: Any) -> FeatureCondition:
        """The inverse of `record`. Raises ValueError for anything else."""
        if record is None or record == _NOTHING:
            return cls()
        try:
            return cls(**dict(record))
        except (TypeError, ValueError) as error:
            raise ValueError(f"condition {record!r:.60} cannot be read: {error}") from error

    @property
    def tag(self) -> str:
        """A short name for use in keys; "" if empty."""
        if not self:
            return ""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:12]


def as_plain(value: Any) -> Any:
    """NumPy's and other whole numbers as int, for dictionaries and JSON; anything else as it is."""
    try:
        return value if isinstance(value, str | bool) else operator.index(value)
    except TypeError:
        return value


NO_CONDITION: Final = FeatureCondition()


def as_condition(condition: FeatureCondition | int | str | None) -> FeatureCondition:
    """A FeatureCondition from a class or caption. Raises ValueError for anything else."""
    return condition if isinstance(condition, FeatureCondition) else FeatureCondition(given=condition)
