"""The kind of index and its search effort: a frozen, validated configuration. Knows nothing of FAISS."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any, Final

from bigr_repr.retrieval.codes.binarizer import MOST_SEED

__all__ = ["KINDS", "IndexSettings"]

KINDS: Final = {
    "flat": "exact: every code is compared",
    "ivf": "codes in lists by nearest centroid; effort: lists searched",
    "hnsw": "a graph of similar codes; effort: size of the candidate list (efSearch)",
    "hash": "buckets by some of the bits, in one or more tables; effort: bits that may differ",
}
# FAISS's names for the settings.
_ALIASES: Final = {
    "nlist": "lists",
    "M": "links",
    "efConstruction": "build_effort",
    "nprobe": "effort",
    "efSearch": "effort",
}
_LIMITS: Final = {
    "lists": (1, 1 << 22),
    "links": (2, 512),
    "build_effort": (1, 1 << 16),
    "hash_bits": (1, 32),
    "tables": (1, 64),
    "effort": (0, 1 << 22),
    "seed": (0, MOST_SEED),
}


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How an index is built and searched.

    kind: one of KINDS. effort: of a search, in the kind's own unit (FAISS's nprobe, efSearch or nflip); None: the
    smallest, doubling each time, whose recall@10 reaches `target_recall` in the self-check. lists (ivf; FAISS's nlist):
    None: twice the square root of the number of codes, fewer if codes are long. links (hnsw; FAISS's M): per node,
    twice as many on the bottom layer; build_effort (hnsw; FAISS's efConstruction): size of the candidate list during
    the build. hash_bits (hash): length of a table's key, None: about one code per bucket. tables (hash): their number.
    seed: for the clustering and the choice of bits to hash, in 0..2^31 - 1. FAISS's names are accepted too.

    Raises ValueError for an unknown kind, a number out of range, or one setting given under two names.
    """

    kind: str = "flat"
    effort: int | None = None
    target_recall: float = 0.95
    lists: int | None = None
    links: int = 16
    build_effort: int = 80
    hash_bits: int | None = None
    tables: int = 4
    seed: int = 0
    nlist: InitVar[int | None] = None
    M: InitVar[int | None] = None
    efConstruction: InitVar[int | None] = None  # noqa: N815
    nprobe: InitVar[int | None] = None
    efSearch: InitVar[int | None] = None  # noqa: N815

    def __post_init__(self, *aliases: int | None) -> None:
        for (alias, name), value in zip(_ALIASES.items(), aliases, strict=True):
            if value is not None:
                if getattr(self, name) not in (value, type(self).__dataclass_fields__[name].default):
                    raise ValueError(f"{alias}={value} is {name}, which is {getattr(self, name)}; give one of them")
                object.__setattr__(self, name, value)
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            optional = value is None and name in ("lists", "hash_bits", "effort")
            if not optional and not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
                raise ValueError(f"{name}={value!r} must be a whole number in {low}..{high}")
        if not (isinstance(self.target_recall, int | float) and 0 < self.target_recall <= 1):
            raise ValueError(f"target_recall={self.target_recall!r} must be above 0 and at most 1")

    @property
    def exact(self) -> bool:
        """Whether every code is compared."""
        return self.kind == "flat"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> IndexSettings:
        """The inverse of to_dict.  Raises ValueError for unknown fields."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ValueError(f"index settings have unknown fields {unknown}; known are {sorted(known)}")
        seed = data.get("seed", 0)
        if isinstance(seed, int):  # earlier versions took any number
            return cls(**{**data, "seed": seed & MOST_SEED})
        return cls(**data)
