"""Suites: many representations on many data sets from one YAML file, resumable. Knows no tables and no pages.

name: representation        # of the reports
root: data                  # where data sets given by name lie
model: bigr-tiny            # what $model stands for below
protocol: logreg            # logreg, mae, mage or dinov2
seeds: 1
k: [20]
datasets:
  - digits
  - {dataset: cifar10, name: CIFAR-10, limit: 8000, test_limit: 4000}
  - {train_on: cifar10, test_on: stl10}
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
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.datasets import ImageSet
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.splits import BenchData, open_data, short_name, transfer, with_features
from bigr_repr.evaluate.probes.protocols import LOGREG, protocol_names
from bigr_repr.evaluate.representations.hidden import ALL_POOLS as POOLS
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.runs import best_layer
from bigr_repr.evaluate.runs.bench import bench
from bigr_repr.evaluate.runs.extraction import BenchSettings
from bigr_repr.system.files import replacing

__all__ = ["Suite", "SuiteData", "SuiteModel", "read_suite", "run_suite"]

ALL: Final = "all"
_ROWS: Final = "rows"
_T = TypeVar("_T")
_Identity = tuple[str, dict[str, Any]]  # a representation's fingerprint and record
# Types of fields as they are written, and what YAML may give for them.
_PLAIN: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "float": (int, float), "int | None": (int, type(None)),
}  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SuiteData:
    """One data set: `dataset`, or `train_on` and `test_on`; sources and limits as in `splits`."""

    dataset: str = ""
    train_on: str = ""
    test_on: str = ""
    name: str = ""
    limit: int | None = None
    test_limit: int | None = None

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.train_on) or bool(self.train_on) != bool(self.test_on):
            raise ValueError(f"{self}: give dataset, or both train_on and test_on")

    @property
    def label(self) -> str:
        """What the reports call it."""
        return self.name or " → ".join(map(short_name, filter(None, (self.dataset, self.train_on, self.test_on))))

    def open(self, root: str, seed: int) -> BenchData:
        """The images of both sides, under the name that the reports use."""
        limits: Any = {"root": root, "limit": self.limit, "test_limit": self.test_limit, "seed": seed}
        found = open_data(self.dataset, **limits) if self.dataset else transfer(self.train_on, self.test_on, **limits)
        return dataclasses.replace(found, name=self.label)


@dataclass(frozen=True, kw_only=True)
class SuiteModel:
    """One representation, a name as in `representations`.

    layers: "all", or a list of block numbers, "mid" and "best", and lists of those that are set side by side; none: the
    representation's own. name: in the reports. codes, pool, mirror, center: as in BenchSettings. optional: left out if
    its weights are not there. features: in the place of a model, {name of a data set: {"train": FILE, "test": FILE}} of
    all its images, in their order; other data sets have no row of it.
    """

    model: str = ""
    name: str = ""
    layers: tuple[int | str | tuple[int | str, ...], ...] | str = ()
    codes: bool = False
    pool: str = "avg"
    mirror: bool = False
    center: bool = False
    optional: bool = False
    features: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) and self.layers != ALL:
            raise ValueError(f"layers={self.layers!r} is neither {ALL!r} nor a list of blocks")
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is unknown; choose one of {', '.join(POOLS)}")
        if bool(self.model) == bool(self.features) or (self.features and not self.name):
            raise ValueError("give model, or features and name")
        for data, files in self.features.items():
            if not isinstance(files, Mapping) or not {"train"} <= files.keys() <= {"train", "test"}:
                raise ValueError(f"features of {data}: give train and test, a file each")

    @property
    def label(self) -> str:
        """What the reports call it."""
        return self.name or self.model + (" bits" if self.codes else "")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is measured, and how. See the module for the file that says so."""

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
        if self.protocol not in protocol_names():
            raise ValueError(f"protocol={self.protocol!r} is unknown; choose one of {', '.join(protocol_names())}")
        if self.seeds < 1 or not self.k or min(self.k) < 1 or not self.temperature > 0:
            raise ValueError(f"seeds={self.seeds}, k={self.k} and temperature={self.temperature} must be above 0")
        if self.name != Path(self.name).name:
            raise ValueError(f"name={self.name!r} is no name for a file, which the reports get")
        for kind, entries in (("models", self.models), ("datasets", self.datasets)):
            labels = [entry.label for entry in entries]
            if twice := {label for label in labels if labels.count(label) > 1}:
                raise ValueError(f"{kind}: {', '.join(sorted(twice))} occurs twice; give each entry a name of its own")

    def limited(self, limit: int | None, test_limit: int | None) -> Suite:
        """The same with at most so many images per side, for a quick run."""
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
    """A suite from its file. model, root: take the place of the file's.

    Raises ValueError naming the file for anything that is not a suite, OSError when it cannot be read.
    """
    import yaml

    file = Path(path)
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} where keys as name, datasets, models are expected")
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


def run_suite(
    suite: Suite,
    out: PathLike,
    settings: BenchSettings,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[dict[str, Any]]:
    """Measure all of it and return the records, data set by data set; what `out` already holds is not measured again.

    A measurement is kept as a file in OUT/rows once it is complete, under a name made of everything that determines it:
    weights, images, layers, protocol and seeds. settings: cache, device and the extraction's; the rest is the suite's.
    """
    settings = dataclasses.replace(
        settings, protocol=suite.protocol, seeds=tuple(range(suite.seed, suite.seed + suite.seeds)), k=suite.k,
        temperature=suite.temperature,
        rates=suite.rates,
        C=suite.C,
        batch=suite.batch,
    )  # fmt: skip
    # What cannot be opened ends the suite now, not after the hours that the rest takes.
    opened = [entry.open(suite.root, suite.seed) for entry in suite.datasets]
    images = any(isinstance(data.train.source, ImageSet) for data in opened)
    identities = _identities(suite) if images else {}
    folder = Path(out) / _ROWS
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    pairs = [(data, model) for data in opened for model in suite.models if _fits(data, model, identities)]
    for done, (data, model) in enumerate(pairs):
        on_progress("suite", done, len(pairs))
        if model.features:
            files = model.features[data.name]
            data = with_features(data, files["train"], files.get("test"))  # noqa: PLW2901
        records += _measured(folder, data, model, _identity_on(data, model, identities), settings, on_progress)
    on_progress("suite", len(pairs), len(pairs))
    return records


def _identities(suite: Suite) -> dict[str, _Identity]:
    """What each model is; an optional one whose weights are not there is left out, with a warning."""
    found: dict[str, _Identity] = {}
    for model in suite.models:
        if not model.model or model.model in found:
            continue
        try:
            representation = open_representation(model.model, device="cpu", seed=suite.seed)
        except FileNotFoundError as error:
            if not model.optional:
                raise
            _log.warning("%s is left out: %s", model.label, error)
            continue
        found[model.model] = representation.fingerprint, representation.record
    return found


def _fits(data: BenchData, model: SuiteModel, identities: Mapping[str, _Identity]) -> bool:
    if model.features:
        return data.name in model.features
    return not isinstance(data.train.source, ImageSet) or model.model in identities


def _identity_on(data: BenchData, model: SuiteModel, identities: Mapping[str, _Identity]) -> _Identity:
    source = data.train.source
    if isinstance(source, ImageSet):
        return identities[model.model]
    return (source.provenance["weights_sha256"] if isinstance(source, EmbeddingSet) else ""), {}


def _measured(
    folder: Path,
    data: BenchData,
    model: SuiteModel,
    identity: _Identity,
    settings: BenchSettings,
    on_progress: Callable[..., None],
) -> list[dict[str, Any]]:
    settings = dataclasses.replace(
        settings, codes=model.codes, pool=model.pool, mirror=model.mirror, center=model.center
    )
    layers = model.layers
    if not isinstance(layers, str) and best_layer.BEST in layers:
        noted = best_layer.noted(
            settings.cache, identity[0], settings.pool_key, model=model.model, train=data.train, dataset=data.name
        )
        layers = tuple(noted["layer"] if layer == best_layer.BEST else layer for layer in layers)
    path = folder / f"{_key(data, model, layers, identity, settings)}.json"
    if not path.exists():
        _log.info("%s on %s", model.label, data.name)
        wanted = None if layers == ALL else layers
        name = model.model or model.name
        rows = bench(name, data, settings, layers=wanted, on_progress=on_progress)
        with replacing(path) as file:
            file.write(json.dumps([row.record() for row in rows], indent=1).encode())
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return [{**record, "dataset": data.name, "representation": model.label} for record in found]


def _key(
    data: BenchData,
    model: SuiteModel,
    layers: tuple[int | str | tuple[int | str, ...], ...] | str,
    identity: _Identity,
    settings: BenchSettings,
) -> str:
    """A hash of all that determines the figures of a model on a data set."""
    sides = [
        [side.fingerprint(), hashlib.sha256(side.rows.tobytes()).hexdigest(), side.labels.tolist()]
        for side in (data.train, data.test)
    ]
    facts = [
        *identity, sides, layers, model.codes, model.pool, model.center,
        settings.protocol, settings.seeds, settings.k, settings.temperature,
        model.mirror, settings.rates, settings.C, settings.batch,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


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
    """Whole numbers from a list, or from a single one."""
    listed: list[Any] = found if isinstance(found, list) else [found]
    if strange := [each for each in listed if not isinstance(each, int) or isinstance(each, bool)]:
        raise ValueError(f"k={strange[0]!r} is no whole number")
    return listed


def _numbers(key: str, found: object) -> list[float]:
    """Numbers from a list, or from a single one."""
    listed: list[Any] = found if isinstance(found, list) else [found]
    if strange := [each for each in listed if not isinstance(each, int | float) or isinstance(each, bool)]:
        raise ValueError(f"{key}={strange[0]!r} is no number")
    return [float(each) for each in listed]


def _entry(kind: type[_T], found: object, plain: str) -> _T:
    """A data set or model from its entry: a mapping, or only its name."""
    if isinstance(found, str):
        return _make(kind, {plain: found})
    if not isinstance(found, dict):
        raise ValueError(f"{found!r} is neither a name nor a mapping")
    if isinstance(found.get("layers"), list):
        layers = (tuple(layer) if isinstance(layer, list) else layer for layer in found["layers"])
        found = {**found, "layers": tuple(layers)}
    return _make(kind, found)


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
            raise ValueError(f"{each.name}={value!r} is no {each.type}")
    return kind(**fields)
