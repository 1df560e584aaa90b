"""Finds the images of a benchmark: data sets by name, folders, Parquet files. Knows no rows, labels or limits.

A source is a name of `DATASETS`, a folder (of class folders, of `train` and `test` or `val` folders, of Parquet files,
or an embedding data set), a Parquet file or a pattern for several, a prefix of Parquet files (`data/cifar10` for
`data/cifar10-train*.parquet` and `data/cifar10-test*.parquet` or `-val`), `torchvision:NAME:ROOT`, or features of any
tool as `features:FILE` or `features:FILE?labels=FILE` (see `feature_files`).
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Final

import numpy as np

from bigr_repr.datasets import DigitsSet, FolderSet, ImageSet, TorchvisionSet, open_images
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.feature_files import FeatureSet, open_features
from bigr_repr.evaluate.data.text_lines import text_lines
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns

__all__ = ["DATASETS", "TEST_NAMES", "BenchSource", "find_sides", "short_name"]

# Names of data sets here and in torchvision; the two others need no torchvision.
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
TEST_NAMES: Final = ("test", "val", "validation")

_FEATURES: Final = "features:"

BenchSource = ImageSet | EmbeddingSet | FeatureSet


def find_sides(source: str, root: Path, columns: Columns = USUAL_COLUMNS) -> tuple[BenchSource, BenchSource | None]:
    """The training and test sides of a source; None: it has only one side. columns: of Parquet files.

    Raises FileNotFoundError or ValueError, naming the source, if it is missing or of an unknown kind.
    """
    if source in DATASETS:
        return _named(source, root, columns)
    if source.startswith("torchvision:"):
        sides = open_images(source, train=True), open_images(source, train=False)
        return sides if sides[0].fingerprint() != sides[1].fingerprint() else (sides[0], None)
    if source.startswith(_FEATURES):
        file, _, labels = source.removeprefix(_FEATURES).partition("?labels=")
        return open_features(file, labels or None), None
    return _of_path(source, columns)


def _of_path(source: str, columns: Columns) -> tuple[BenchSource, BenchSource | None]:
    path = Path(source)
    if path.suffix in (".npy", ".npz") and path.is_file():
        raise ValueError(f"{source} holds arrays, not pictures with classes; features are given as features:{source}")
    if path.is_dir():
        return _folder(path, columns)
    if path.is_file() or glob.has_magic(source):
        found = sorted(glob.glob(source))  # noqa: PTH207  (a pattern may be absolute)
        if found:
            return open_images(found, columns=columns), None
    elif files := _prefixed(path, columns):
        return files
    raise FileNotFoundError(
        f"{source!r} is not a file, folder, prefix of Parquet files or name; names are {', '.join(DATASETS)}"
    )


def _named(name: str, root: Path, columns: Columns) -> tuple[ImageSet, ImageSet | None]:
    if name == "digits":
        return DigitsSet(train=True), DigitsSet(train=False)
    for prefix in (name, name.replace("-", "")):
        if files := _prefixed(root / prefix, columns):
            return files
    try:
        if name == "tiny-imagenet":
            return _tiny_imagenet(root)
        train = TorchvisionSet(DATASETS[name], os.fspath(root), train=True)
        return train, TorchvisionSet(DATASETS[name], os.fspath(root), train=False) if train.has_splits else None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; if it is in another folder, pass root=FOLDER") from error


def _prefixed(prefix: Path, columns: Columns) -> tuple[ImageSet, ImageSet] | None:
    """Parquet files PREFIX-train*.parquet and PREFIX-test*.parquet (or -val), if both exist."""
    if not prefix.parent.is_dir():
        return None
    train = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}-train*.parquet"))
    for name in TEST_NAMES:
        test = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}-{name}*.parquet"))
        if train and test:
            return open_images(train, columns=columns), open_images(test, columns=columns)
    return None


def _tiny_imagenet(root: Path) -> tuple[ImageSet, ImageSet]:
    folder = root / _TINY[0]
    if not (folder / "train").is_dir() or not (folder / "val" / "val_annotations.txt").is_file():
        raise FileNotFoundError(f"Tiny-ImageNet is not under {root}: download {_TINY[1]} and unpack it to {folder}")
    train = FolderSet(folder / "train")
    return train, _AnnotatedSet(folder / "val", train.class_names)


class _AnnotatedSet(FolderSet):
    """Tiny-ImageNet's validation images, all in one folder, with their classes in a table next to it."""

    def __init__(self, folder: Path, class_names: tuple[str, ...]) -> None:
        super().__init__(folder / "images")
        classes = dict(line.split("\t")[:2] for line in text_lines(folder / "val_annotations.txt"))
        number = {name: i for i, name in enumerate(class_names)}
        self.class_names = class_names
        self.labels = np.array([number[classes[Path(file).name]] for file in self.files], dtype=np.int64)


def _folder(folder: Path, columns: Columns) -> tuple[BenchSource, BenchSource | None]:
    if (folder / "train").is_dir():
        for name in TEST_NAMES:
            if (folder / name).is_dir():
                return _one_folder(folder / "train", columns), _one_folder(folder / name, columns)
    train = sorted(folder.glob("*train*.parquet"))
    test = [file for name in TEST_NAMES for file in sorted(folder.glob(f"*{name}*.parquet"))]
    if train and test:
        sets = {file.name.split("train")[0] for file in train}
        if len(sets) > 1:
            raise ValueError(
                f"{folder} holds several data sets ({', '.join(sorted(sets))}…); name one, like {train[0]}"
            )
        return open_images(train, columns=columns), open_images(test, columns=columns)
    return _one_folder(folder, columns), None


def _one_folder(folder: Path, columns: Columns) -> BenchSource:
    import pyarrow.parquet as pq

    from bigr_repr.embed.dataset.schema import METADATA_KEY

    first = next(iter(sorted(folder.glob("part-*.parquet"))), None)
    if first is not None and METADATA_KEY in (pq.read_schema(first).metadata or {}):
        return EmbeddingSet(folder)
    return open_images(folder, columns=columns)


def short_name(source: str) -> str:
    """A short name for a source: the last part of a path."""
    if source in DATASETS or source.startswith("torchvision:"):
        return source
    return Path(source.removeprefix(_FEATURES).partition("?labels=")[0]).name or source
