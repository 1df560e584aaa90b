"""The schema of an embedding data set: its columns, and its provenance as written into every file.

Independent of how rows are computed and where they are stored.
"""

# D width, N tokens

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from bigr_repr.codes import BIT_ORDER, code_bytes
from bigr_repr.config import ModelConfig
from bigr_repr.features.condition import NO_CONDITION, FeatureCondition
from bigr_repr.features.pools import vector_shape
from bigr_repr.images.color import ICC
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns
from bigr_repr.system.differences import differences
from bigr_repr.system.records import as_object, parsed
from bigr_repr.system.sums import sealed, unsealed

METADATA_KEY = b"bigr_repr"
TEXTS = ("path", "label", "sha256")  # columns
PLAN_KEY = b"bigr_repr_plan"  # of shards: the id of their rows' list of inputs
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # an encoded picture, as model hubs store it
DTYPES = ("float32", "float16")
DEDUPS = (None, "exact")
# Fields that may differ between shards of one data set: they change rows by no more than rounding.
_WRITER = ("batch_size", "decoder", "package_version")
_ICC_WORDS = {"convert": "converted to sRGB", "ignore": "not applied"}
_SAID = {"dtype": "store_dtype", "precision": "dtype"}  # field names in files -> today's option names


def _decoder() -> dict[str, Any]:
    """The decoder on this machine, as recorded in the provenance."""
    import PIL
    from PIL import features

    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return {"name": "Pillow", "version": PIL.__version__, "jpeg": jpeg}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an image becomes a row.

    layers: block indices, 0-based, not negative, or several concatenated as "4+8". pool, mirror, condition: as in
    FeatureExtractor. store_dtype: of the stored vectors, float32 or float16. dtype: of the network's computation.
    codes, labels, sha256: whether these columns exist. dedup: "exact" for one row per group of byte-identical inputs.
    batch_size: images per batch of the network. icc: "convert" or "ignore", as in bigr_repr.images.decode_image.
    thumbnails: longer side in pixels, 16..1024, of the small pictures in the column `image`; None: no such column.
    parquet: columns of the inputs' Parquet files.
    """

    config: ModelConfig
    weights: str
    layers: tuple[int | str, ...]
    pool: str = "avg"
    mirror: bool = False
    condition: FeatureCondition = NO_CONDITION
    store_dtype: str = "float32"
    dtype: str = "float32"
    codes: bool = False
    labels: bool = False
    sha256: bool = False
    dedup: str | None = None
    batch_size: int = 32
    icc: str = "convert"
    thumbnails: int | None = None
    parquet: Columns = USUAL_COLUMNS

    def __post_init__(self) -> None:
        if self.store_dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ValueError(f"store_dtype={self.store_dtype!r} is unknown; vectors are stored as one of {known}")
        if self.dedup not in DEDUPS:
            raise ValueError(
                f"dedup={self.dedup!r} is unknown; choose None or one of {', '.join(filter(None, DEDUPS))}"
            )
        if self.thumbnails is not None and not 16 <= self.thumbnails <= 1024:
            raise ValueError(f"thumbnails={self.thumbnails} must be in 16..1024, pixels of the longer side")
        if self.icc not in ICC:
            raise ValueError(f"icc={self.icc!r} is unknown; choose one of {', '.join(ICC)}")
        if not self.layers and not self.codes:
            raise ValueError("layers=() and codes=False: nothing to store; name a layer, or set codes=True")

    def shape(self, layer: int | str) -> tuple[int, ...]:
        """The shape of one vector of a layer: (D,) or (N, D)."""
        generator = self.config.generator
        return vector_shape(self.pool, generator.tokens, generator.dim, len(str(layer).split("+")))

    @property
    def columns(self) -> dict[int | str, str]:
        """{layer: name of its column}."""
        if len(self.layers) == 1:
            return {self.layers[0]: "embedding"}
        return {layer: f"embedding_{layer}" for layer in self.layers}

    @property
    def row_bytes(self) -> int:
        """Approximate bytes per row in memory."""
        width = 4 if self.store_dtype == "float32" else 2
        numbers = sum(math.prod(self.shape(layer)) for layer in self.layers)
        return width * numbers + code_bytes(self.config.code_size) + 100

    def provenance(self) -> dict[str, Any]:
        """Everything that is recorded, ready for JSON."""
        from bigr_repr._version import __version__

        generator = self.config.generator
        return {
            "format": 1,
            "package_version": __version__,
            "model": self.config.name,
            "weights_sha256": self.weights,
            "network": {"heads": generator.heads, "rope_base": generator.rope_base, "norm_eps": generator.norm_eps},
            "layers": list(self.layers),
            "pooling": self.pool,
            "shape": list(self.shape(self.layers[0] if self.layers else 0)),
            "dtype": self.store_dtype,
            "precision": self.dtype,
            "condition": self.condition.record(),
            "preprocessing": {
                "image_size": self.config.image_size,
                "orientation": "EXIF applied",
                "colours": f"RGB in [0, 1], 8 bits, transparency over white, ICC profiles {_ICC_WORDS[self.icc]}",
                "resize": "shorter side, by box halvings and antialiased bicubic, then center crop",
            },
            "decoder": _decoder(),
            "n_bits": self.config.code_size if self.codes else None,
            "bits_per_token": generator.code_bits if self.codes else None,
            "bit_order": BIT_ORDER if self.codes else None,
            "labels": "stated by the image's Parquet or tar file, else the name of its folder" if self.labels else None,
            "sha256": "of the encoded image" if self.sha256 else None,
            "dedup": self.dedup,
            "batch_size": self.batch_size,
            **({"mirror": True} if self.mirror else {}),
            **({"thumbnails": f"WebP, longer side {self.thumbnails} px"} if self.thumbnails else {}),
            **({} if self.parquet.image == USUAL_COLUMNS.image else {"image_column": self.parquet.image}),
            **({} if self.parquet.label == USUAL_COLUMNS.label else {"label_column": self.parquet.label}),
        }

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns, with the provenance as schema metadata."""
        fields = [pa.field("path", pa.string(), nullable=False)]
        # "element" is Parquet's own name: reading and rewriting rows then gives the same file
        number = pa.field("element", pa.float32() if self.store_dtype == "float32" else pa.float16(), nullable=False)
        for layer, name in self.columns.items():
            fields.append(pa.field(name, pa.list_(number, math.prod(self.shape(layer))), nullable=False))
        if self.codes:
            fields.append(pa.field("code", pa.binary(code_bytes(self.config.code_size)), nullable=False))
        if self.labels:
            fields.append(pa.field("label", pa.string(), nullable=False))
        if self.sha256:
            fields.append(pa.field("sha256", pa.string(), nullable=False))
        if self.thumbnails:
            fields.append(pa.field("image", IMAGE, nullable=False))
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(sealed(self.provenance()))})


def icc_of(provenance: Mapping[str, Any]) -> str:
    """How ICC profiles were treated, from the provenance of a data set or index: "convert" or "ignore"."""
    return "ignore" if _ICC_WORDS["ignore"] in provenance["preprocessing"].get("colours", "") else "convert"


def columns_of(provenance: Mapping[str, Any]) -> Columns:
    """The columns of Parquet files that a data set was made from, from its provenance."""
    usual = USUAL_COLUMNS
    return Columns(image=provenance.get("image_column", usual.image), label=provenance.get("label_column", usual.label))


def read_provenance(schema: pa.Schema, name: str) -> dict[str, Any]:
    """The provenance in a file's schema.

    Raises ValueError if it is missing, of a later format, or damaged.
    """
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{name}: not written by bigr-repr embed (metadata {METADATA_KEY.decode()!r} is missing)")
    try:
        provenance = as_object(parsed(text))
    except ValueError as error:
        raise ValueError(f"{name}: damaged, its provenance cannot be read ({error})") from error
    if provenance.get("format") != 1:
        raise ValueError(f"{name}: format {provenance.get('format')} is newer than this program; upgrade bigr-repr")
    try:
        return unsealed(provenance)
    except ValueError as error:
        raise ValueError(f"{name}: damaged, its provenance has changed since it was written") from error


def check_texts(schema: pa.Schema, name: str) -> None:
    """Raise ValueError for a text column of another type: Parquet footers have no checksum of their own."""
    for column in schema:
        kind = column.type
        if column.name in TEXTS and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f"{name}: damaged, its column {column.name} has type {kind} instead of text")


def incomparable_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields that make rows incomparable, each as "field was …, is …"; empty if they may share a data set."""
    before, after = ({_SAID.get(name, name): value for name, value in each.items()} for each in (old, new))
    if "network" not in before or "network" not in after:  # written by an earlier version
        before.pop("network", None), after.pop("network", None)
    return differences(before, after, ignored=_WRITER)
