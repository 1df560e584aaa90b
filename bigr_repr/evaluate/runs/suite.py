"""Runs suites: many representations on many data sets, resumable. Knows no tables and no pages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bigr_repr._typing import PathLike
from bigr_repr.datasets import ImageSet
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.splits import BenchData, with_features
from bigr_repr.evaluate.representations.base import Representation
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.runs import best_layer
from bigr_repr.evaluate.runs.bench import bench, check_k
from bigr_repr.evaluate.runs.extraction import BenchSettings, check_wanted, extract_together
from bigr_repr.evaluate.runs.settings import Layers
from bigr_repr.evaluate.runs.suite_file import ALL, Suite, SuiteData, SuiteModel, read_suite
from bigr_repr.features.condition import FeatureCondition
from bigr_repr.system.files import replacing
from bigr_repr.system.records import as_object, parsed, usable

__all__ = ["Suite", "SuiteData", "SuiteModel", "read_suite", "run_suite"]

_ROWS: Final = "rows"
_MEASUREMENT: Final = 2  # raised where the same settings give other figures; kept rows are then measured again
_Identity = tuple[str, dict[str, Any]]  # a representation's fingerprint and record
_Reading = tuple[str, FeatureCondition]  # a model's name and condition
_Pair = tuple[BenchData, SuiteModel]

_log = logging.getLogger(__name__)


def run_suite(
    suite: Suite,
    out: PathLike,
    settings: BenchSettings,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[dict[str, Any]]:
    """Measure the whole suite and return the records, data set by data set; existing results in `out` are reused.

    A complete measurement is stored in OUT/rows under a hash of everything that determines it: weights, images, layers,
    protocol, seeds and how this version measures. settings: only cache, device and the extraction's are used; the rest
    comes from the suite.
    """
    settings = dataclasses.replace(
        suite.settings, device=settings.device, cache=settings.cache, batch_size=settings.batch_size,
        workers=settings.workers,
    )  # fmt: skip
    pairs, identities = _checked(suite, settings)
    folder = Path(out) / _ROWS
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for done, (data, model) in enumerate(pairs):
        on_progress("suite", done, len(pairs))
        if not done or data is not pairs[done - 1][0]:
            models = [other for its, other in pairs if its is data]
            _extract_ahead(folder, data, models, identities, settings, on_progress)
        given = _given(data, model)
        records += _measured(folder, given, model, _identity_on(given, model, identities), settings, on_progress)
    on_progress("suite", len(pairs), len(pairs))
    return records


def _checked(suite: Suite, settings: BenchSettings) -> tuple[list[_Pair], dict[_Reading, _Identity]]:
    """What to measure, data set by data set, after checking that everything can be opened and has what is wanted of it:
    anything else would end the suite after hours of work.
    """
    opened = _opened(suite)
    for data in opened:
        check_k(settings.k, data.train)
    images = [data for data in opened if isinstance(data.train.source, ImageSet)]
    identities = _identities(suite, images, settings) if images else {}
    pairs = [(data, model) for data in opened for model in suite.models if _fits(data, model, identities)]
    if not pairs:
        names = ", ".join(data.name for data in opened)
        raise FileNotFoundError(f"no model of {suite.name} is available on {names}; get the weights of one, or add one")
    for data, model in pairs:
        if model.features or data not in images:
            _check(_given(data, model), model, settings, None)
    return pairs, identities


def _check(data: BenchData, model: SuiteModel, settings: BenchSettings, opened: Representation | None) -> None:
    layers = None if isinstance(model.layers, str) else model.layers
    try:
        check_wanted(data, _own_settings(model, settings), layers, model=model.model or model.name, opened=opened)
    except ValueError as error:
        raise ValueError(f"{model.label} on {data.name}: {error}") from error


def _given(data: BenchData, model: SuiteModel) -> BenchData:
    """The data as this model takes them: with its features, if it is files of these."""
    if not model.features:
        return data
    files = model.features[data.name]
    return with_features(data, files["train"], files.get("test"))


def _opened(suite: Suite) -> list[BenchData]:
    """The data sets; a missing optional one is left out, with a warning."""
    found = []
    for entry in suite.datasets:
        try:
            found.append(entry.open(suite.root, suite.seed))
        except FileNotFoundError as error:
            if not entry.optional:
                raise
            _log.warning("%s is left out: %s", entry.label, error)
    if not found:
        raise FileNotFoundError(f"none of the data sets of {suite.name} is available under {suite.root}")
    return found


def _identities(suite: Suite, images: Sequence[BenchData], settings: BenchSettings) -> dict[_Reading, _Identity]:
    """Identity of each model, after checking all its lines on the images; an optional one without weights is left out,
    with a warning.
    """
    found: dict[_Reading, _Identity] = {}
    for model in suite.models:
        reading = model.model, model.read_with
        if not model.model or reading in found:
            continue
        try:
            representation = open_representation(model.model, device="cpu", seed=suite.seed, condition=model.read_with)
        except FileNotFoundError as error:
            if not model.optional:
                raise
            _log.warning("%s is left out: %s", model.label, error)
            continue
        found[reading] = representation.fingerprint, representation.record
        for data in images:
            for line in suite.models:
                if (line.model, line.read_with) == reading:
                    _check(data, line, settings, representation)
    return found


def _fits(data: BenchData, model: SuiteModel, identities: Mapping[_Reading, _Identity]) -> bool:
    if model.features:
        return data.name in model.features
    return not isinstance(data.train.source, ImageSet) or (model.model, model.read_with) in identities


def _identity_on(data: BenchData, model: SuiteModel, identities: Mapping[_Reading, _Identity]) -> _Identity:
    source = data.train.source
    if isinstance(source, ImageSet):
        return identities[model.model, model.read_with]
    return (source.provenance["weights_sha256"] if isinstance(source, EmbeddingSet) else ""), {}


def _extract_ahead(
    folder: Path,
    data: BenchData,
    models: Sequence[SuiteModel],
    identities: Mapping[_Reading, _Identity],
    settings: BenchSettings,
    on_progress: Callable[..., None],
) -> None:
    """Extract a data set's features for several lines of one model, in one pass; skips lines already measured."""
    alike: dict[_Reading, list[tuple[BenchSettings, Layers | None]]] = {}
    for model in models:
        if model.features or not isinstance(data.train.source, ImageSet) or best_layer.BEST in model.layers:
            continue
        own = _own_settings(model, settings)
        key = _key(data, model, model.layers, _identity_on(data, model, identities), own)
        if not (folder / f"{key}.json").exists():
            layers = None if isinstance(model.layers, str) else model.layers
            alike.setdefault((model.model, model.read_with), []).append((own, layers))
    for (name, _), readings in alike.items():
        if len(readings) > 1:
            extract_together(name, data, readings, on_progress)


def _own_settings(model: SuiteModel, settings: BenchSettings) -> BenchSettings:
    return dataclasses.replace(
        settings, codes=model.codes, pool=model.pool, mirror=model.mirror, condition=model.read_with,
        center=model.center,
    )  # fmt: skip


def _measured(
    folder: Path,
    data: BenchData,
    model: SuiteModel,
    identity: _Identity,
    settings: BenchSettings,
    on_progress: Callable[..., None],
) -> list[dict[str, Any]]:
    settings, layers = _own_settings(model, settings), model.layers
    if not isinstance(layers, str) and best_layer.BEST in layers:
        noted = best_layer.noted(
            settings.cache, identity[0], settings.pool_key, model=model.model, train=data.train, dataset=data.name
        )
        layers = tuple(noted["layer"] if layer == best_layer.BEST else layer for layer in layers)
    path = folder / f"{_key(data, model, layers, identity, settings)}.json"
    found = _stored(path)
    if found is None:
        _log.info("%s on %s", model.label, data.name)
        wanted = None if layers == ALL else layers
        name = model.model or model.name
        rows = bench(name, data, settings, layers=wanted, on_progress=on_progress)
        text = json.dumps([row.record() for row in rows], indent=1)
        with replacing(path) as file:
            file.write(text.encode())
        found = json.loads(text)
    return [{**record, "dataset": data.name, "representation": model.label} for record in found]


def _stored(path: Path) -> list[dict[str, Any]] | None:
    """The records of a file; None if there is none or it is damaged: it is removed, with a warning."""
    if not path.exists():
        return None
    try:
        with usable(path, "it is measured again"):
            records = parsed(path.read_bytes())
            if not isinstance(records, list) or not records:
                raise ValueError("it holds no rows of a measurement")
            return [as_object(record) for record in records]
    except ValueError as error:
        _log.warning("%s", error)
        path.unlink()
        return None


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
        _MEASUREMENT, *identity, sides, layers, model.codes, model.pool, model.center,
        settings.protocol, settings.seeds, settings.k, settings.temperature,
        model.mirror, settings.rates, settings.C, settings.batch,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
