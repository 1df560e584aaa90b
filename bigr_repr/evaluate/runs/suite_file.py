"""Suites in YAML files: many representations on many data sets. Does not know how they are measured.

name: representation        # of the reports
root: data                  # where data sets given by name lie
model: bigr-tiny            # what $model stands for below
protocol: logreg            # logreg, mae, mage or dinov2
seeds: 1
k: [20]
datasets:
  - digits
  - {dataset: cifar10, name: CIFAR-10, limit: 8000, test_limit: 4000}
  - {dataset: birds.parquet, image_column: photo, label_column: species}
  - {train_on: cifar10, test_on: stl10, optional: true}  # left out where it is not at hand
models:
  - pixels
  - {model: $model, layers: all}
  - {model: tokenizer-bits:$model, name: bits}
  - {model: "timm:vit_small_patch16_224.dino", layers: [5, 11, [8, 9, 10, 11]]}  # the last: four side by side
  - {model: efficientnet-lite0, optional: true}  # left out where its weights are not installed
  - {name: clip, features: {digits: {train: clip-train.npy, test: clip-test.npy}}}  # of all images, in their order
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.evaluate.data.splits import BenchData, open_data, short_name, transfer
from bigr_repr.evaluate.probes.protocols import LOGREG
from bigr_repr.evaluate.representations.base import VECTOR_POOLS
from bigr_repr.evaluate.runs.settings import ALL, BenchSettings
from bigr_repr.features.condition import FeatureCondition
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns

__all__ = ["ALL", "Suite", "SuiteData", "SuiteModel", "read_suite"]

_NAMED: Final = ("mid", "best")  # blocks
_MOST_SEEDS: Final = 1000
_NAME_BYTES: Final = 200
_T = TypeVar("_T")
# Types of fields as annotated, and the types that YAML may yield for them.
_PLAIN: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "float": (int, float), "int | None": (int, type(None)),
    "int | str | None": (int, str, type(None)),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SuiteData:
    """One data set: `dataset`, or `train_on` and `test_on`; sources and limits as in `splits`.

    image_column, label_column: of Parquet files. optional: left out if it is missing.
    """

    dataset: str = ""
    train_on: str = ""
    test_on: str = ""
    name: str = ""
    limit: int | None = None
    test_limit: int | None = None
    image_column: str = USUAL_COLUMNS.image
    label_column: str = USUAL_COLUMNS.label
    optional: bool = False

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.train_on) or bool(self.train_on) != bool(self.test_on):
            given = f"dataset={self.dataset!r}, train_on={self.train_on!r}, test_on={self.test_on!r}"
            raise ValueError(f"{given}: give dataset, or both train_on and test_on")

    @property
    def label(self) -> str:
        """Its name in reports."""
        found = self.name or " → ".join(map(short_name, filter(None, (self.dataset, self.train_on, self.test_on))))
        return " ".join(found.split())

    def open(self, root: str, seed: int) -> BenchData:
        """The images of both sides, under the name used in reports."""
        limits: Any = {"root": root, "limit": self.limit, "test_limit": self.test_limit, "seed": seed}
        limits["columns"] = Columns(image=self.image_column, label=self.label_column)
        found = open_data(self.dataset, **limits) if self.dataset else transfer(self.train_on, self.test_on, **limits)
        return dataclasses.replace(found, name=self.label)


@dataclass(frozen=True, kw_only=True)
class SuiteModel:
    """One representation, a name as in `representations`.

    layers: "all", or a list of block numbers, "mid" and "best", and lists of those to be concatenated; empty: the
    representation's default. name: in reports. codes, pool, mirror, center: as in BenchSettings. condition,
    masked_share, mask_seed: of the condition there. optional: left out if its weights are missing. features: instead of
    a model, {name of a data set: {"train": FILE, "test": FILE}} of all its images, in order; other data sets have no
    row for it.
    """

    model: str = ""
    name: str = ""
    layers: tuple[int | str | tuple[int | str, ...], ...] | str = ()
    codes: bool = False
    pool: str = "avg"
    mirror: bool = False
    condition: int | str | None = None
    masked_share: float = 0.0
    mask_seed: int = 0
    center: bool = False
    optional: bool = False
    features: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layers != ALL and not (isinstance(self.layers, tuple) and all(map(_is_layer, self.layers))):
            raise ValueError(f"layers={self.layers!r} is neither {ALL!r}, a block nor a list of blocks")
        if self.pool not in VECTOR_POOLS:
            raise ValueError(f"pool={self.pool!r} is unknown; choose one of {', '.join(VECTOR_POOLS)}")
        _ = self.read_with
        if not isinstance(self.features, Mapping):
            raise ValueError(f"features={self.features!r} must be a mapping, DATA: {{train: FILE, test: FILE}}")
        if bool(self.model) == bool(self.features) or (self.features and not self.name):
            raise ValueError("give model, or features and name")
        for data, files in self.features.items():
            if not isinstance(files, Mapping) or not {"train"} <= files.keys() <= {"train", "test"}:
                raise ValueError(f"features of {data}: give train and test, a file each")

    @property
    def label(self) -> str:
        """Its name in reports."""
        return " ".join((self.name or self.model + (" bits" if self.codes else "")).split())

    @property
    def read_with(self) -> FeatureCondition:
        """The condition. Raises ValueError for values out of range."""
        return FeatureCondition(given=self.condition, masked_share=self.masked_share, mask_seed=self.mask_seed)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to measure, and how. See the module for the file format."""

    name: str
    datasets: tuple[SuiteData, ...]
    models: tuple[SuiteModel, ...]
    root: str = "data"
    model: str = DEFAULT_MODEL
    protocol: str = LOGREG
    seeds: int = 1
    seed: int = 0
    rates: tuple[float, ...] = ()
    C: tuple[float, ...] = ()
    batch: int | None = None
    k: tuple[int, ...] = (20,)
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if not self.datasets or not self.models:
            raise ValueError("a suite needs at least one entry in datasets and one in models")
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise ValueError(f"seeds={self.seeds} must lie in 1..{_MOST_SEEDS}")
        _ = self.settings
        if not _is_file_name(self.name):
            said = f"{self.name[:80]!r} … ({len(self.name)} letters)" if len(self.name) > 80 else repr(self.name)
            wanted = f"at most {_NAME_BYTES} bytes without slash or control character, not beginning with a dot"
            raise ValueError(f"name={said} cannot be a file name, which the reports need: {wanted}")
        for kind, entries in (("models", self.models), ("datasets", self.datasets)):
            labels = [entry.label for entry in entries]
            if twice := {label for label in labels if labels.count(label) > 1}:
                raise ValueError(f"{kind}: {', '.join(sorted(twice))} occurs twice; give each entry a name of its own")
        known = [entry.label for entry in self.datasets]
        for model in self.models:
            if strange := [name for name in model.features if name not in known]:
                raise ValueError(
                    f"features of {model.name}: {strange[0]!r} is none of the data sets, which are {', '.join(known)}"
                )

    @property
    def settings(self) -> BenchSettings:
        """How everything is measured. Raises ValueError for values out of range."""
        return BenchSettings(
            protocol=self.protocol, seeds=tuple(range(self.seed, self.seed + self.seeds)), rates=self.rates, C=self.C,
            batch=self.batch, k=self.k, temperature=self.temperature,
        )  # fmt: skip

    def limited(self, limit: int | None, test_limit: int | None) -> Suite:
        """The same suite with at most this many images per side, for a quick run."""
        return dataclasses.replace(
            self,
            datasets=tuple(
                dataclasses.replace(
                    each, limit=_least(each.limit, limit), test_limit=_least(each.test_limit, test_limit)
                )
                for each in self.datasets
            ),
        )


def read_suite(path: PathLike, *, model: str | None = None, root: str | None = None) -> Suite:
    """A suite from its file. model, root: override the file's.

    Raises ValueError naming the file for anything that is not a suite, OSError if it cannot be read.
    """
    import yaml

    file = Path(path)
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}, not a mapping with keys such as name, datasets, models")
        fields = {"name": file.stem, **found} | {k: v for k, v in (("model", model), ("root", root)) if v is not None}
        here = str(fields.get("model", DEFAULT_MODEL))
        fields["datasets"] = tuple(_entry(SuiteData, each, "dataset") for each in _list(fields, "datasets"))
        models = [_entry(SuiteModel, each, "model") for each in _list(fields, "models")]
        fields["models"] = tuple(
            dataclasses.replace(each, model=each.model.replace("$model", here), name=each.name.replace("$model", here))
            for each in models
        )
        if "k" in fields:
            fields["k"] = tuple(_whole(fields["k"]))
        fields |= {key: tuple(_numbers(key, fields[key])) for key in ("rates", "C") if key in fields}
        return _make(Suite, fields)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is not a suite: {' '.join(str(error).split())}") from error


# ---- reading


def _least(one: int | None, other: int | None) -> int | None:
    given = [limit for limit in (one, other) if limit is not None]
    return min(given) if given else None


def _list(fields: Mapping[str, Any], key: str) -> list[Any]:
    found = fields.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{key} must be a list, with at least one entry")
    return found


def _whole(found: object) -> list[int]:
    """Integers from a list, or from a single one."""
    listed: list[Any] = found if isinstance(found, list) else [found]
    if strange := [each for each in listed if not isinstance(each, int) or isinstance(each, bool)]:
        raise ValueError(f"k={strange[0]!r} is not an integer")
    return listed


def _numbers(key: str, found: object) -> list[float]:
    """Numbers from a list, or from a single one."""
    listed: list[Any] = found if isinstance(found, list) else [found]
    if strange := [each for each in listed if not isinstance(each, int | float) or isinstance(each, bool)]:
        raise ValueError(f"{key}={strange[0]!r} is not a number")
    return [float(each) for each in listed]


def _entry(kind: type[_T], found: object, plain: str) -> _T:
    """A data set or model from its entry: a mapping, or only its name."""
    if isinstance(found, str):
        return _make(kind, {plain: found})
    if not isinstance(found, dict):
        raise ValueError(f"{found!r} is neither a name nor a mapping")
    layers = found.get("layers")
    if isinstance(layers, list):
        found = {**found, "layers": tuple(tuple(layer) if isinstance(layer, list) else layer for layer in layers)}
    elif isinstance(layers, int) or layers in _NAMED:
        found = {**found, "layers": (layers,)}
    return _make(kind, found)


def _is_file_name(name: str) -> bool:
    plain = name == Path(name).name and not name.startswith(".") and all(" " <= each != "\x7f" for each in name)
    return bool(name) and plain and len(name.encode(errors="replace")) <= _NAME_BYTES


def _is_layer(found: object) -> bool:
    """Whether this is a block, a number or a name, or several."""
    blocks = found if isinstance(found, tuple) and found else (found,)
    return all(isinstance(block, int | str) and not isinstance(block, bool) for block in blocks)


def _make(kind: type[_T], fields: Mapping[str, Any]) -> _T:
    known = [each.name for each in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if strange := [name for name in fields if name not in known]:
        raise ValueError(f"{', '.join(map(str, strange))} is unknown; known are {', '.join(known)}")
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        wanted = _PLAIN.get(str(each.type))
        if wanted is None or each.name not in fields:
            continue
        value = fields[each.name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise ValueError(f"{each.name}={value!r} is not of type {each.type}")
    return kind(**fields)
