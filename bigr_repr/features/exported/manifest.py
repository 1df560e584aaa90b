"""The contents of an exported network's export.json. Knows nothing of tensors or runtimes."""

# B batch, S side in pixels, N tokens, D width

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bigr_repr.checkpoints.catalog import EXPORT_FILE
from bigr_repr.codes import BIT_ORDER, code_bytes
from bigr_repr.config import ModelConfig
from bigr_repr.features.pools import vector_shape
from bigr_repr.system.files import sha256_of
from bigr_repr.system.records import reading_record
from bigr_repr.system.sums import reading_sealed, sealed

__all__ = [
    "GRAPH_FILES",
    "MANIFEST_FILE",
    "PRECISIONS",
    "TARGETS",
    "Manifest",
    "exported_files",
    "is_exported",
    "read_manifest",
]

MANIFEST_FILE: Final = EXPORT_FILE
GRAPH_FILES: Final = {"onnx": "model.onnx", "openvino": "model.xml", "torch": "model.pt2"}
TARGETS: Final = tuple(GRAPH_FILES)
PRECISIONS: Final = ("float32", "bfloat16", "int8")
_FORMAT: Final = 1
_REMEDY: Final = "export again with a matching bigr-repr"
_DIGITS: Final = 64  # of a SHA-256
_PREPROCESSING: Final = {
    "orientation": "EXIF applied",
    "colors": "RGB, transparency over white, ICC profiles converted to sRGB",
    "resize": "shorter side to S, by box halvings and antialiased bicubic, then center crop",
    "range": "[0, 1], bytes divided by 255, not normalized",
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An exported network: what it computes, from which model, and in which files.

    weights: the model's fingerprint. layers: as from layer_name. to: one of TARGETS. precision, tokenizer: number types
    of the transformer and the tokenizer, from PRECISIONS. files: {name: SHA-256}. versions: of the software that wrote
    them. calibration: number of images that int8 ranges were measured on.
    """

    config: ModelConfig
    weights: str
    layers: tuple[int | str, ...]
    pool: str
    to: str
    precision: str = "float32"
    tokenizer: str = "float32"
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    calibration: int = 0

    @property
    def label(self) -> str:
        """The precision as recorded in provenance: rows with different labels do not mix."""
        parts = dict.fromkeys((self.precision, self.tokenizer))
        return "float32" if tuple(parts) == ("float32",) else f"{self.to} {' with '.join(parts)}"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order: one per layer, then the code."""
        several = len(self.layers) > 1
        return (*(f"features_{layer}".replace("+", "_") if several else "features" for layer in self.layers), "code")

    def shape(self, layer: int | str) -> tuple[int, ...]:
        """The shape of an image's features of a layer: (D,), or (N, D) with pool="none"."""
        generator = self.config.generator
        return vector_shape(self.pool, generator.tokens, generator.dim, len(str(layer).split("+")))

    def record(self) -> dict[str, Any]:
        """Everything as plain data, including what others need to feed the graph and read its outputs."""
        side, bits = self.config.image_size, self.config.code_size
        features = {
            name: {"layer": layer, "dtype": "float32", "shape": ["batch", *self.shape(layer)]}
            for name, layer in zip(self.outputs, self.layers, strict=False)
        }
        code = {"dtype": "uint8", "shape": ["batch", code_bytes(bits)], "bits": bits, "order": BIT_ORDER}
        plain = dataclasses.asdict(self)
        return {
            "format": _FORMAT,
            "model": self.config.name,
            **{name: plain[name] for name in ("to", "precision", "tokenizer", "layers", "pool", "weights")},
            "inputs": {"images": {"dtype": "float32", "shape": ["batch", 3, side, side], "range": [0, 1]}},
            "outputs": {**features, "code": code},
            "preprocessing": _PREPROCESSING,
            **{name: plain[name] for name in ("calibration", "versions", "files", "config")},
        }

    def text(self) -> str:
        """`record` as JSON, with a digest of its content."""
        return json.dumps(sealed(self.record()), indent=2, ensure_ascii=False) + "\n"


def is_exported(folder: object) -> bool:
    """Whether a name refers to a folder to open as an exported network: one with an export.json, usable or not."""
    named = isinstance(folder, Path) or (isinstance(folder, str) and folder != "")  # "" would be the current folder
    return named and (Path(str(folder)).expanduser() / MANIFEST_FILE).is_file()


def exported_files(folder: Path) -> frozenset[str]:
    """Names of the files that an exported network consists of, intact or not; empty for a folder of anything else."""
    try:
        with reading_record(folder / MANIFEST_FILE, remedy=_REMEDY) as record:
            files, weights = dict(record["files"]), str(record["weights"])
            ours = record["format"] == _FORMAT and len(weights) == _DIGITS and GRAPH_FILES[record["to"]] in files
    except (OSError, ValueError):
        return frozenset()
    return frozenset((MANIFEST_FILE, *files)) if ours else frozenset()


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's export.json, and verify its own digest and its files' checksums.

    Raises FileNotFoundError if it or a file that it lists is missing, ValueError, naming the file, if it is unusable or
    has changed, or if the graph is damaged. Files of older versions have no digest.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not an exported network, it has no {MANIFEST_FILE}")
    with reading_sealed(path, remedy=_REMEDY) as record:
        manifest = _manifest(record)
    for name, checksum in manifest.files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but listed in {MANIFEST_FILE}; export again, or copy it there")
        if sha256_of(file) != checksum:
            raise ValueError(
                f"{file}: damaged or replaced, its SHA-256 is not the one in {MANIFEST_FILE}; export again"
            )
    return manifest


def _manifest(record: Mapping[str, Any]) -> Manifest:
    """The manifest that a record states. Raises ValueError, or as a wrong form happens to, if it states none."""
    if record["format"] != _FORMAT:
        raise ValueError(f"format={record['format']!r} is unknown, this version reads {_FORMAT}")
    named = {each.name: record[each.name] for each in dataclasses.fields(Manifest)}
    made = Manifest(**named | {"config": ModelConfig.from_dict(named["config"]), "layers": tuple(named["layers"])})
    for name, value, known in (
        ("to", made.to, TARGETS),
        ("precision", made.precision, PRECISIONS),
        ("tokenizer", made.tokenizer, PRECISIONS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
    if not isinstance(made.files, dict):
        raise ValueError(f"files is a {type(made.files).__name__} where an object of names and checksums is expected")
    if GRAPH_FILES[made.to] not in made.files:
        listed = ", ".join(made.files) or "none"
        raise ValueError(f"to={made.to!r} needs {GRAPH_FILES[made.to]}, but files lists {listed}")
    return made
