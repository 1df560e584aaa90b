"""The training and test images of a benchmark: found by name, cut to a limit, matched by class. Knows no models.

A source is a name of `DATASETS`, a folder (of class folders, of `train` and `test` or `val` folders, of Parquet files,
or an embedding data set), a Parquet file or a pattern for several, a prefix of Parquet files (`data/cifar10` for
`data/cifar10-train*.parquet` and `data/cifar10-test*.parquet` or `-val`), or `torchvision:NAME:ROOT`.
"""

from __future__ import annotations

import dataclasses
import glob
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
from bigr_repr.datasets import DigitsSet, FolderSet, ImageSet, TorchvisionSet, open_images
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.labeled import Labeled, shared_classes
from bigr_repr.evaluate.data.stratified import stratified_sample, stratified_split

__all__ = ["DATASETS", "BenchData", "Part", "open_data", "short_name", "transfer"]

# What a data set is called here, and by torchvision; the two others need no torchvision.
DATASETS: Final = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "digits": "",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
    "flowers102": "Flowers102",
    "food101": "Food101",
    "imagenet": "ImageNet",
    "imagenette": "Imagenette",
    "pets": "OxfordIIITPet",
    "places365": "Places365",
    "stl10": "STL10",
    "tiny-imagenet": "",
}
_TINY: Final = ("tiny-imagenet-200", "http://cs231n.stanford.edu/tiny-imagenet-200.zip")
_TEST_NAMES: Final = ("test", "val", "validation")
_TEST_SHARE: Final = 0.2

_log = logging.getLogger(__name__)

DataSource = ImageSet | EmbeddingSet
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The training or the test side: `rows` of a source, with labels (n,) int64.

    `name` is what messages call it; `record` says in plain data what it is and which rows were drawn, for reports.
    """

    name: str
    source: DataSource
    rows: Labels
    labels: Labels
    class_names: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """What tells the source from others, whichever of its rows are taken: of names, sizes and times of files."""
        if isinstance(self.source, ImageSet):
            return self.source.fingerprint()
        files = [file.absolute() if isinstance(file, Path) else file for file in self.source.files]
        stats = [(file, file.stat()) for file in files]
        stamps = [(os.fspath(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return hashlib.sha256(repr(stamps).encode()).hexdigest()

    def taking(self, places: Labels, note: dict[str, Any]) -> Part:
        """Some of the rows, in the order given, with a note for the record."""
        return dataclasses.replace(
            self, rows=self.rows[places], labels=self.labels[places], record={**self.record, **note}
        )

    def limited(self, limit: int | None, seed: int) -> Part:
        """At most `limit` rows, drawn from every class in proportion. Raises ValueError for fewer rows than classes."""
        count = len(np.unique(self.labels))
        if limit is None or limit >= len(self):
            return self
        if limit < count:
            raise ValueError(f"{self.name}: limit={limit} images for {count} classes; allow at least one of each class")
        rows = stratified_sample(self.labels, limit, np.random.default_rng(seed))
        return self.taking(rows, {"images": limit, "of": len(self), "drawn": f"stratified, seed {seed}"})


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchData:
    """What a benchmark trains on and tests on; labels of both sides mean the same classes."""

    name: str
    train: Part
    test: Part


def open_data(
    dataset: str, *, root: PathLike = "data", limit: int | None = None, test_limit: int | None = None,
    seed: int = 0,
) -> BenchData:  # fmt: skip
    """Both sides of one data set; of a source without a test side, a stratified fifth is held back for the test.

    root: where data sets named as in `DATASETS` lie, as torchvision's loaders or as Parquet files. limit, test_limit:
    images of each side, drawn from each class in proportion with `seed`.
    Raises FileNotFoundError that says what to fetch and where to, or ValueError for a source that cannot be used.
    """
    train, test = _sides(dataset, Path(root))
    name = short_name(dataset)
    if test is None:
        whole = _part(name, train)
        kept, held = stratified_split(whole.labels, _TEST_SHARE, np.random.default_rng(seed))
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
    test_limit: int | None = None, seed: int = 0,
) -> BenchData:  # fmt: skip
    """Train on one source and test on another: the training side of the first, the test side of the second.

    Classes are matched by name where both name them, else by number; images of classes that the other side lacks are
    left out, which is logged and recorded. Otherwise as `open_data`.
    """
    train, _ = _sides(train_on, Path(root))
    first, test = _sides(test_on, Path(root))
    name = f"{short_name(train_on)} → {short_name(test_on)}"
    sides = _part(f"{short_name(train_on)} train", train), _part(f"{short_name(test_on)} test", test or first)
    return _limited(name, _shared_classes(*sides), limit, test_limit, seed)


# ---- sources


def _sides(source: str, root: Path) -> tuple[DataSource, DataSource | None]:
    """The training and the test side of a source; None: it has one side only."""
    if source == "digits":
        return DigitsSet(train=True), DigitsSet(train=False)
    if source in DATASETS:
        return _named(source, root)
    if source.startswith("torchvision:"):
        sides = open_images(source, train=True), open_images(source, train=False)
        return sides if sides[0].fingerprint() != sides[1].fingerprint() else (sides[0], None)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.is_file() or glob.has_magic(source):
        found = sorted(glob.glob(source))  # noqa: PTH207  (a pattern may be absolute)
        if found:
            return open_images(found), None
    elif files := _prefixed(path):
        return files
    raise FileNotFoundError(
        f"{source!r} is no file, folder or prefix of Parquet files, nor a name; names are {', '.join(DATASETS)}"
    )


def _named(name: str, root: Path) -> tuple[ImageSet, ImageSet | None]:
    for prefix in (name, name.replace("-", "")):
        if files := _prefixed(root / prefix):
            return files
    if name == "tiny-imagenet":
        return _tiny_imagenet(root)
    train = TorchvisionSet(DATASETS[name], os.fspath(root), train=True)
    return train, TorchvisionSet(DATASETS[name], os.fspath(root), train=False) if train.has_splits else None


def _prefixed(prefix: Path) -> tuple[ImageSet, ImageSet] | None:
    """Parquet files PREFIX-train*.parquet and PREFIX-test*.parquet (or -val), if both are there."""
    if not prefix.parent.is_dir():
        return None
    train = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}-train*.parquet"))
    for name in _TEST_NAMES:
        test = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}-{name}*.parquet"))
        if train and test:
            return open_images(train), open_images(test)
    return None


def _tiny_imagenet(root: Path) -> tuple[ImageSet, ImageSet]:
    folder = root / _TINY[0]
    if not (folder / "train").is_dir() or not (folder / "val" / "val_annotations.txt").is_file():
        raise FileNotFoundError(f"Tiny-ImageNet is not under {root}: fetch {_TINY[1]} and unpack it to {folder}")
    train = FolderSet(folder / "train")
    return train, _AnnotatedSet(folder / "val", train.class_names)


class _AnnotatedSet(FolderSet):
    """Tiny-ImageNet's validation images, all in one folder, with their classes in a table beside it."""

    def __init__(self, folder: Path, class_names: tuple[str, ...]) -> None:
        super().__init__(folder / "images")
        lines = (folder / "val_annotations.txt").read_text().splitlines()
        classes = dict(line.split("\t")[:2] for line in lines)
        number = {name: i for i, name in enumerate(class_names)}
        self.class_names = class_names
        self.labels = np.array([number[classes[Path(file).name]] for file in self.files], dtype=np.int64)


def _folder(folder: Path) -> tuple[DataSource, DataSource | None]:
    if (folder / "train").is_dir():
        for name in _TEST_NAMES:
            if (folder / name).is_dir():
                return _one_folder(folder / "train"), _one_folder(folder / name)
    train = sorted(folder.glob("*train*.parquet"))
    test = [file for name in _TEST_NAMES for file in sorted(folder.glob(f"*{name}*.parquet"))]
    if train and test:
        sets = {file.name.split("train")[0] for file in train}
        if len(sets) > 1:
            raise ValueError(f"{folder} holds several data sets ({', '.join(sorted(sets))}…); name one, as {train[0]}")
        return open_images(train), open_images(test)
    return _one_folder(folder), None


def _one_folder(folder: Path) -> DataSource:
    import pyarrow.parquet as pq

    from bigr_repr.embed.dataset.schema import METADATA_KEY

    first = next(iter(sorted(folder.glob("part-*.parquet"))), None)
    if first is not None and METADATA_KEY in (pq.read_schema(first).metadata or {}):
        return EmbeddingSet(folder)
    return open_images(folder)


def short_name(source: str) -> str:
    """A source's name for people: of a path the last part."""
    return source if source in DATASETS or source.startswith("torchvision:") else Path(source).name or source


# ---- sides


def _part(name: str, source: DataSource) -> Part:
    if isinstance(source, EmbeddingSet):
        labels, class_names = _embedding_labels(source)
    else:
        labels, class_names = source.labels, source.class_names
    if labels is None:
        raise ValueError(f"{name}: there are no labels; use class folders, or a Parquet file with a column label")
    if len(labels) == 0:
        raise ValueError(f"{name}: no images found")
    if len(labels) < len(class_names):
        raise ValueError(f"{name}: {len(labels)} images for {len(class_names)} classes; a probe needs more of them")
    if class_names and (labels.min() < 0 or labels.max() >= len(class_names)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{name}: label {wrong} is outside 0..{len(class_names) - 1}, the classes that it names")
    record = {"source": name, "images": len(labels), "classes": len(np.unique(labels))}
    return Part(
        name=name, source=source, rows=np.arange(len(labels)), labels=labels, class_names=class_names, record=record
    )


def _embedding_labels(source: EmbeddingSet) -> tuple[Labels | None, tuple[str, ...]]:
    if "label" not in source.schema.names:
        return None, ()
    names = [name for batch in source.label_batches() for name in batch]
    classes, labels = np.unique(np.array(names), return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, classes))


def _limited(name: str, sides: tuple[Part, Part], limit: int | None, test_limit: int | None, seed: int) -> BenchData:
    train, test = sides[0].limited(limit, seed), sides[1].limited(test_limit, seed)
    # Before hours of extraction, not after.
    classes = shared_classes(*(Labeled(side.name, side.labels[:, None], side.labels) for side in (train, test)))
    if len(untested := np.setdiff1d(classes, test.labels)):
        names = [train.class_names[label] if train.class_names else str(label) for label in untested]
        _log.warning("%s has no images of %d classes: %s", test.name, len(untested), _some(names))
    return BenchData(name=name, train=train, test=test)


def _same_classes(train: Part, test: Part) -> tuple[Part, Part]:
    """Two sides of one data set, the test labels renumbered if that side names its classes in another way."""
    ours, theirs = _plain(train.class_names), _plain(test.class_names)
    if not ours or not theirs or ours == theirs:
        return train, test
    if strange := [name for name in theirs if name not in ours]:
        raise ValueError(
            f"{test.name} has {len(strange)} classes that {train.name} lacks ({_some(strange)}); add images of them "
            "there, or leave these test images out"
        )
    return train, _renumbered(test, train.class_names, ours, theirs)


def _shared_classes(train: Part, test: Part) -> tuple[Part, Part]:
    """Sides of two data sets, with the training side's class numbers; only the classes that both name are kept."""
    ours, theirs = _plain(train.class_names), _plain(test.class_names)
    if not ours or not theirs or ours == theirs:
        return train, test
    shared = [name for name in ours if name in theirs]
    if len(shared) < 2:
        raise ValueError(
            f"{train.name} and {test.name} share {len(shared)} of their class names ({_some(ours)}; {_some(theirs)}); "
            "a probe needs at least 2"
        )
    test = _renumbered(test, train.class_names, ours, theirs)
    return _restricted(train, shared, ours), _restricted(test, shared, ours)


def _renumbered(part: Part, class_names: tuple[str, ...], new: Sequence[str], old: Sequence[str]) -> Part:
    number = {name: i for i, name in enumerate(new)}
    translate = np.array([number.get(name, -1) for name in old])
    return dataclasses.replace(part, labels=translate[part.labels], class_names=class_names)


def _restricted(part: Part, shared: Sequence[str], names: Sequence[str]) -> Part:
    wanted = [i for i, name in enumerate(names) if name in shared]
    places = np.flatnonzero(np.isin(part.labels, wanted))
    if len(places) == len(part):
        return part
    note = f"{len(part) - len(places)} images of classes that the other side lacks are left out"
    _log.warning("%s: %s", part.name, note)
    return part.taking(places, {"images": len(places), "classes": len(wanted), "left_out": note})


def _plain(names: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
