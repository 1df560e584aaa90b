"""Selects a benchmark's training and test rows: limited, matched by class, labeled ones only. Knows no models.

Sources are as in `sources`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.datasets import ImageSet, stratified_split
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.class_matching import Aliases, Classes, match_classes, read_aliases
from bigr_repr.evaluate.data.feature_files import FeatureSet, joined_classes, open_features
from bigr_repr.evaluate.data.labeled import Labeled, shared_classes
from bigr_repr.evaluate.data.sources import DATASETS, BenchSource, find_sides, short_name
from bigr_repr.evaluate.data.stratified import stratified_sample
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns

__all__ = ["DATASETS", "BenchData", "Part", "open_data", "short_name", "transfer", "with_features"]

_TEST_SHARE: Final = 0.2

_log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The training or test side: `rows` of a source, with labels (n,) int64.

    `name` is used in messages; `record` describes it and the drawn rows in plain data, for reports; `images`: those
    that a source of features stands for, if known.
    """

    name: str
    source: BenchSource
    rows: Rows
    labels: Labels
    images: ImageSet | None = None
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """Identifies the source, whatever rows are selected: a hash of its files' names, sizes and times."""
        if not isinstance(self.source, EmbeddingSet):
            return self.source.fingerprint()
        files = [file.absolute() if isinstance(file, Path) else file for file in self.source.files]
        stats = [(file, file.stat()) for file in files]
        stamps = [(os.fspath(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return hashlib.sha256(repr(stamps).encode()).hexdigest()

    def taking(self, places: Rows, note: dict[str, Any]) -> Part:
        """A selection of the rows, in the order given, with a note for the record."""
        return dataclasses.replace(
            self, rows=self.rows[places], labels=self.labels[places], record={**self.record, **note}
        )

    def limited(self, limit: int | None, seed: int, option: str = "limit") -> Part:
        """At most `limit` rows, a stratified sample. Raises ValueError naming `option` for fewer rows than classes."""
        count = len(np.unique(self.labels))
        if limit is None or limit >= len(self):
            return self
        if limit < count:
            raise ValueError(f"{self.name}: {option}={limit} images for {count} classes; allow at least one per class")
        rows = stratified_sample(self.labels, limit, np.random.default_rng(seed))
        return self.taking(rows, {"images": limit, "of": len(self), "drawn": f"stratified, seed {seed}"})


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchData:
    """A benchmark's training and test sides; labels mean the same classes on both."""

    name: str
    train: Part
    test: Part


def open_data(
    dataset: str, *, root: PathLike = "data", limit: int | None = None, test_limit: int | None = None,
    seed: int = 0, columns: Columns = USUAL_COLUMNS,
) -> BenchData:  # fmt: skip
    """Both sides of one data set; if a source has no test side, a stratified fifth is held back for testing.

    root: folder of the data sets in `DATASETS`, in torchvision's layout or as Parquet files. limit, test_limit:
    images per side, a stratified sample drawn with `seed`. columns: of Parquet files.
    Raises FileNotFoundError that says what to download and where to, or ValueError for an unusable source.
    """
    train, test = _comparable(find_sides(dataset, Path(root), columns))
    name = short_name(dataset)
    if test is None:
        whole = _part(name, train)
        kept, held = stratified_split(whole.labels, _TEST_SHARE, np.random.default_rng(seed))
        if not len(held):
            raise ValueError(
                f"{name}: {len(kept)} images, one of each class, are too few to hold any back for testing; add images, "
                "or give a data set with a test side"
            )
        note = f"stratified fifth held back, seed {seed}"
        parts = (
            whole.taking(kept, {"images": len(kept), "split": note}),
            whole.taking(held, {"images": len(held), "split": note}),
        )
        sides = dataclasses.replace(parts[0], name=f"{name} train"), dataclasses.replace(parts[1], name=f"{name} test")
    else:
        sides = _part(f"{name} train", train), _part(f"{name} test", test)
    return _limited(name, _same_classes(*sides), limit, test_limit, seed)


def transfer(
    train_on: str, test_on: str, *, root: PathLike = "data", limit: int | None = None,
    test_limit: int | None = None, seed: int = 0, aliases: PathLike | None = None,
    columns: Columns = USUAL_COLUMNS,
) -> BenchData:  # fmt: skip
    """Train on one source and test on another: the training side of the first, the test side of the second.

    Classes are matched by name if both have names (see `class_matching`), otherwise by number; images of classes that
    the other side lacks are left out, which is logged and recorded. aliases: a file of equivalent names, instead
    of the package's. Otherwise as `open_data`.
    """
    train, _ = find_sides(train_on, Path(root), columns)
    first, test = find_sides(test_on, Path(root), columns)
    train, test = _comparable((train, test or first))
    assert test is not None
    name = f"{short_name(train_on)} → {short_name(test_on)}"
    sides = _part(f"{short_name(train_on)} train", train), _part(f"{short_name(test_on)} test", test)
    return _limited(name, _shared_classes(*sides, read_aliases(aliases)), limit, test_limit, seed)


def with_features(data: BenchData, train: PathLike, test: PathLike | None = None) -> BenchData:
    """The same rows and labels, with features from files instead of images; `Part.images` keeps these.

    train, test: features (see `feature_files`) of all images of each side's source, in its order; test: None if both
    sides come from one source. Raises ValueError if the number of rows differs.
    """
    if test is None and data.train.source is not data.test.source:
        raise ValueError(f"{data.name} has a test side of its own; pass features of its images too")
    files = open_features(train), None if test is None else open_features(test)
    return BenchData(
        name=data.name, train=_with_file(data.train, files[0]), test=_with_file(data.test, files[1] or files[0])
    )


def _with_file(part: Part, file: FeatureSet) -> Part:
    count = part.source.rows if isinstance(part.source, EmbeddingSet) else len(part.source)
    if len(file) != count:
        raise ValueError(
            f"{file.files[0]} holds {len(file)} rows; {part.name} has {count} images; one row per image is needed"
        )
    images = part.source if isinstance(part.source, ImageSet) else part.images
    return dataclasses.replace(part, source=file, images=images)


# ---- sides


def _comparable(sides: tuple[BenchSource, BenchSource | None]) -> tuple[BenchSource, BenchSource | None]:
    """Give two files of features whose labels are names a common numbering."""
    train, test = sides
    if isinstance(train, FeatureSet) and isinstance(test, FeatureSet):
        train, test = joined_classes([train, test])
    return train, test


def _part(name: str, source: BenchSource) -> Part:
    if isinstance(source, EmbeddingSet):
        labels, class_names = _embedding_labels(source)
    else:
        labels, class_names = source.labels, source.class_names
    if labels is None:
        if isinstance(source, FeatureSet) and source.why_unlabeled:
            raise ValueError(f"{name}: there are no labels: {source.why_unlabeled}")
        raise ValueError(f"{name}: there are no labels; use class folders, or a Parquet file with a column label")
    rows = np.flatnonzero(labels >= 0)
    if len(rows) == 0:
        raise ValueError(f"{name}: no images found" if len(labels) == 0 else f"{name}: no image has a label")
    record: dict[str, Any] = {"source": name, "images": len(rows), "classes": len(np.unique(labels[rows]))}
    if len(rows) < len(labels):
        record["unlabeled"] = len(labels) - len(rows)
        _log.warning("%s: %d of %d images have no label and are left out", name, record["unlabeled"], len(labels))
    if len(rows) < len(class_names):
        raise ValueError(f"{name}: {len(rows)} images for {len(class_names)} classes; a probe needs more of them")
    if class_names and labels.max() >= len(class_names):
        raise ValueError(f"{name}: label {labels.max()} is outside 0..{len(class_names) - 1}, its named classes")
    ids = source.class_ids if isinstance(source, ImageSet) else ()
    return Part(
        name=name, source=source, rows=rows, labels=labels[rows], class_names=class_names, class_ids=ids, record=record
    )


def _embedding_labels(source: EmbeddingSet) -> tuple[Labels | None, tuple[str, ...]]:
    if "label" not in source.schema.names:
        return None, ()
    names = [name for batch in source.label_batches() for name in batch]
    classes, labels = np.unique(np.array(names), return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, classes))


def _limited(name: str, sides: tuple[Part, Part], limit: int | None, test_limit: int | None, seed: int) -> BenchData:
    train, test = sides[0].limited(limit, seed), sides[1].limited(test_limit, seed, "test_limit")
    # Before hours of extraction, not after.
    classes = shared_classes(*(Labeled(side.name, side.labels[:, None], side.labels) for side in (train, test)))
    if len(untested := np.setdiff1d(classes, test.labels)):
        names = [train.class_names[label] if train.class_names else str(label) for label in untested]
        _log.warning("%s has no images of %d classes: %s", test.name, len(untested), _some(names))
    return BenchData(name=name, train=train, test=test)


def _same_classes(train: Part, test: Part) -> tuple[Part, Part]:
    """Two sides of one data set, with the test labels renumbered if that side numbers its classes differently."""
    ours, theirs = _plain(train.class_names), _plain(test.class_names)
    if not ours or not theirs or ours == theirs:
        return train, test
    if strange := [name for name in theirs if name not in ours]:
        raise ValueError(
            f"{test.name} has {len(strange)} classes that {train.name} lacks ({_some(strange)}); add images of them "
            "there, or leave these test images out"
        )
    return train, _renumbered(test, [ours.index(name) for name in theirs], train.class_names)


def _shared_classes(train: Part, test: Part, aliases: Aliases) -> tuple[Part, Part]:
    """Sides of two data sets with the numbers and names of their common classes; other images are left out."""
    ours, theirs = (Classes(names=part.class_names, ids=part.class_ids) for part in (train, test))
    if not ours.names or not theirs.names or _plain(ours.names) == _plain(theirs.names):
        return train, test
    left, right, names = match_classes(ours, theirs, aliases)
    if len(names) < 2:
        raise ValueError(
            f"{train.name} and {test.name} share {len(names)} of their class names ({_some(ours.names)}; "
            f"{_some(theirs.names)}); a probe needs at least 2: list equivalent names in an alias file"
        )
    return _renumbered(train, left, names), _renumbered(test, right, names)


def _renumbered(part: Part, numbers: Sequence[int], names: tuple[str, ...]) -> Part:
    """The part with new class numbers and names, without the rows whose class has the number -1."""
    labels = np.array(numbers)[part.labels]
    part = dataclasses.replace(part, labels=labels, class_names=names, class_ids=())
    places = np.flatnonzero(labels >= 0)
    if len(places) == len(part):
        return part
    if not len(places):
        raise ValueError(f"{part.name}: none of its {len(part)} images has a class that the other side has; add images")
    note = f"{len(part) - len(places)} images of classes that the other side lacks are left out"
    _log.warning("%s: %s", part.name, note)
    return part.taking(places, {"images": len(places), "classes": len(np.unique(labels[places])), "left_out": note})


def _plain(names: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
