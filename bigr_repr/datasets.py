"""Labeled image sets for training and evaluation: folders, Parquet files with image bytes, data sets by name.

One small interface, `ImageSet`; decoding and its errors are `bigr_repr.images`'. Knows nothing of models or tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.captions.sources import parquet_captions, sidecar_captions
from bigr_repr.images.decode import as_rgb, center_crop, decode_image
from bigr_repr.images.find import find_images
from bigr_repr.images.formats import ImageError, image_errors
from bigr_repr.images.parquet import PARQUET, USUAL_COLUMNS, Columns, parquet_parts, read_parquet

IntArray = np.ndarray[Any, np.dtype[np.int64]]


class ImageSet(ABC):
    """Images by number, with a label each where the source has labels.

    `labels` is int64 (n,) or None; `class_names` has one name per label, or none; `class_ids` the WordNet id of each,
    where the source states them. A negative label means that the image has none.
    """

    labels: IntArray | None = None
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def captions(self) -> Sequence[Sequence[str]] | None:
        """The captions of each image, none or several; None where the source has none. Raises ValueError for bad ones.

        They are read when this is first asked for.
        """
        return None

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Image `index` as RGB, 8 bit. Raises ImageError, which names file and row, when it cannot be decoded."""

    def load_square(self, index: int, side: int) -> NDArray[np.uint8]:
        """Image `index` resized and cut to its middle square, to train on: uint8 (side, side, 3).

        Raises ImageError as `load` does, with what to do about it.
        """
        try:
            return center_crop(self.load(index), side)
        except ImageError as error:
            remedy = "replace this picture by one that can be read, then give the same command again"
            raise ImageError(error.kind, f"{error}; {remedy}") from error

    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this set from others, 64 hexadecimal digits: of names, sizes and times of files."""


def _fingerprint(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _stamps(files: Iterable[PathLike]) -> list[list[object]]:
    """Absolute name, size and time of change of each file."""
    stats = ((Path(file).absolute(), Path(file).stat()) for file in files)
    return [[os.fsencode(path).hex(), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


class FolderSet(ImageSet):
    """All images under a folder; if every image lies in a sub-folder, the first-level names are the classes."""

    def __init__(self, folder: PathLike) -> None:
        found = sorted(find_images([os.fspath(folder)]), key=lambda source: source.path)
        self.files = [source.file for source in found]
        parts = [Path(source.path).parts for source in found]
        if all(len(part) > 1 for part in parts):
            self.class_names = tuple(sorted({part[0] for part in parts}))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([number[part[0]] for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        return sidecar_captions(self.files)

    def load(self, index: int) -> Image.Image:
        return decode_image(self.files[index])

    def fingerprint(self) -> str:
        return _fingerprint(["folder", _stamps(self.files)])


class ParquetSet(ImageSet):
    """A Parquet file with a column of encoded images: bytes, or the `{"bytes": …}` structs of the Hugging Face hub.

    Whole numbers in the column of labels are labels, and the schema's metadata states their names: see
    bigr_repr.images.parquet.class_names. Texts are classes in the order of the alphabet. Rows without a label
    (null, or a negative number, as in test sets of the hub) have -1. The encoded bytes are held in memory.

    Raises ImageError for a file that is damaged or has no such columns.
    """

    def __init__(self, file: PathLike, columns: Columns = USUAL_COLUMNS) -> None:
        self._file, self._columns, name = file, columns, os.fspath(file)
        if not Path(file).exists():
            raise FileNotFoundError(f"{name}: no such file")
        self._parts, self.labels, self.class_names, self.class_ids = read_parquet(name, columns)
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        return parquet_captions(self._file, self._columns.caption)

    def load(self, index: int) -> Image.Image:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        content = self._parts[part][index - int(self._starts[part])].as_py()
        return decode_image(content or b"", name=f"{os.fspath(self._file)}#{index}")

    def fingerprint(self) -> str:
        usual = (self._columns.image, self._columns.label) == (USUAL_COLUMNS.image, USUAL_COLUMNS.label)
        named = [] if usual else [self._columns.image, self._columns.label]
        return _fingerprint(["parquet", _stamps([self._file]), *named])


class ArraySet(ImageSet):
    """Generated images as `bigr-repr generate --npz` and ADM's scripts write them: `arr_0`, uint8 (n, H, W, 3).

    They are held in memory, without labels. Raises ValueError for a file that holds something else.
    """

    def __init__(self, file: PathLike) -> None:
        self._file = file
        name = os.fspath(file)
        try:
            with Path(file).open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files if key == "arr_0"}
        except (ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
            raise ValueError(f"{name} is not a whole .npz file ({error}); write it again") from error
        if "arr_0" not in arrays:
            raise ValueError(f"{name} has no array arr_0; images are uint8 (n, H, W, 3) under that name")
        self._images = arrays["arr_0"]
        if self._images.dtype != np.uint8 or self._images.ndim != 4 or self._images.shape[3] != 3:
            found = f"{self._images.dtype} {self._images.shape}"
            raise ValueError(f"{name}: arr_0 is {found}; images are uint8 (n, H, W, 3)")

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        return as_rgb(self._images[index])

    def fingerprint(self) -> str:
        return _fingerprint(["npz", _stamps([self._file])])


class DigitsSet(ImageSet):
    """The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn: the first two thirds, or the rest.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI. Rows are in the order of writers.
    """

    def __init__(self, *, train: bool = True) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        rows = slice(0, 1198) if train else slice(1198, None)
        self._images = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
        self._train = train
        self.labels = digits.target[rows].astype(np.int64)
        self.class_names = tuple(str(name) for name in digits.target_names)

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Image.Image:
        return as_rgb(self._images[index])

    def fingerprint(self) -> str:
        return _fingerprint(["digits", self._train])


_SCENES = 10_000

# Where torchvision calls its splits otherwise than train and test; and arguments it needs for the usual variant.
_SPLITS = {
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "Places365": ("train-standard", "val"),
}
_ARGUMENTS: dict[str, dict[str, Any]] = {"Places365": {"small": True}}


class SceneSet(ImageSet):
    """Pictures of the synthetic world with their captions, made as they are asked for: scenes 0..count-1 of a seed.

    held_out: scenes that show a pair of color and shape which the others never show.
    """

    def __init__(self, count: int, *, seed: int = 0, held_out: bool = False, side: int = 64) -> None:
        from bigr_repr.captions.scenes import make_scene
        from bigr_repr.captions.wording import captions_of

        self._facts = [count, seed, held_out, side]
        self._scenes = [make_scene(seed, number, held_out=held_out) for number in range(count)]
        self._side = side
        self._captions = [captions_of(scene) for scene in self._scenes]

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        return self._captions

    def load(self, index: int) -> Image.Image:
        from bigr_repr.captions.scenes import draw

        return draw(self._scenes[index], self._side)

    def fingerprint(self) -> str:
        return _fingerprint(["synthetic-captions", *self._facts])


def _scene_set(source: str, train: bool) -> SceneSet:
    """The set of "synthetic-captions", "synthetic-captions:COUNT" or "synthetic-captions:COUNT:held-out"."""
    _, count, which = (*source.split(":", 2), "", "")[:3]
    if not (count or "1").isdecimal() or which not in ("", "held-out"):
        raise ValueError(f"{source}: expected synthetic-captions:COUNT or synthetic-captions:COUNT:held-out")
    return SceneSet(int(count or _SCENES), seed=0 if train else 1, held_out=which == "held-out")


class TorchvisionSet(ImageSet):
    """A torchvision data set that is already on disk, by class name and root: CIFAR10, STL10, Flowers102, …"""

    def __init__(self, name: str, root: str, *, train: bool = True) -> None:
        import inspect

        import torchvision.datasets

        factory = getattr(torchvision.datasets, name, None)
        if factory is None:
            raise ValueError(
                f"torchvision has no data set {name!r}; names are those of torchvision.datasets, as CIFAR10"
            )
        takes = inspect.signature(factory).parameters
        arguments = dict(_ARGUMENTS.get(name, {}))
        if "train" in takes:
            arguments["train"] = train
        if "split" in takes:
            arguments["split"] = _SPLITS.get(name, ("train", "test"))[0 if train else 1]
        try:
            self._data = factory(root, **arguments)
        except (RuntimeError, FileNotFoundError) as error:
            how = "from https://image-net.org" if name == "ImageNet" else _download(name, root, arguments)
            raise FileNotFoundError(f"torchvision data set {name} is not under {root}: fetch it there {how}") from error
        self.has_splits = "train" in takes or "split" in takes
        self._name = f"{name}:{root}"
        self._facts = [name, os.path.abspath(root), arguments]  # noqa: PTH100  (the root need not exist for all sets)
        self.labels = self._labels_of(self._data)
        self.class_names = tuple(
            names if isinstance(names, str) else str(names[0]) for names in getattr(self._data, "classes", ())
        )

    @staticmethod
    def _labels_of(data: Any) -> IntArray | None:
        for name in ("targets", "labels", "_labels"):
            if getattr(data, name, None) is not None:
                return np.asarray(getattr(data, name), dtype=np.int64)
        pairs = getattr(data, "_samples", None)
        return None if pairs is None else np.array([label for _, label in pairs], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._data)

    def load(self, index: int) -> Image.Image:
        with image_errors(f"torchvision:{self._name}#{index}"):
            image, _ = self._data[index]
        return as_rgb(image)

    def fingerprint(self) -> str:
        labels = b"" if self.labels is None else self.labels.tobytes()
        return _fingerprint([*self._facts, len(self), hashlib.sha256(labels).hexdigest()])


def _download(name: str, root: str, arguments: dict[str, Any]) -> str:
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f'with: python -c "import torchvision; torchvision.datasets.{name}({root!r}{given}, download=True)"'


def stratified_split(labels: IntArray, share: float, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Row numbers (kept, drawn), sorted: of each class about `share` is drawn, at least one row and never all."""
    order = generator.permutation(len(labels))
    drawn = np.zeros(len(labels), np.bool_)
    for name in np.unique(labels):
        rows = order[labels[order] == name]
        drawn[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


class JoinedSet(ImageSet):
    """Several sets one after the other. Sets with the same class names share labels; other names follow as new labels.

    Labels are dropped unless every part has them.
    """

    def __init__(self, parts: Sequence[ImageSet]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        if all(part.labels is not None for part in parts):
            self._join_labels()

    def _join_labels(self) -> None:
        offsets: dict[tuple[str, ...], int] = {}
        names: list[str] = []
        labels = []
        # Parts without names number the same classes: one numbering for all of them.
        nameless = [part.labels for part in self._parts if part.labels is not None and not part.class_names]
        count = max((int(numbers.max(initial=-1)) for numbers in nameless), default=-1) + 1
        shared = tuple(str(i) for i in range(count))
        for part in self._parts:
            assert part.labels is not None
            own = part.class_names or shared
            if own not in offsets:
                offsets[own] = len(names)
                names.extend(own)
            labels.append(np.where(part.labels < 0, -1, part.labels + offsets[own]))
        self.labels = np.concatenate(labels)
        self.class_names = tuple(names)
        if all(part.class_names == self.class_names for part in self._parts):
            self.class_ids = self._parts[0].class_ids

    def __len__(self) -> int:
        return int(self._starts[-1])

    def load(self, index: int) -> Image.Image:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part].load(index - int(self._starts[part]))

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        found = [part.captions for part in self._parts]
        if all(each is None for each in found):
            return None
        pairs = zip(found, self._parts, strict=True)
        return [captions for own, part in pairs for captions in (own or [()] * len(part))]

    def fingerprint(self) -> str:
        return _fingerprint(["joined", [part.fingerprint() for part in self._parts]])


def _open(source: str, train: bool, columns: Columns) -> list[ImageSet]:
    """The parts of one source."""
    if source.partition(":")[0] == "synthetic-captions":
        return [_scene_set(source, train)]
    if source.startswith("torchvision:"):
        _, name, root = (*source.split(":", 2), "", "")[:3]
        return [TorchvisionSet(name, root or ".", train=train)]
    if Path(source).suffix.lower() in PARQUET and not Path(source).is_dir():
        return [ParquetSet(source, columns)]
    if Path(source).suffix == ".npz":
        return [ArraySet(source)]
    found: list[PathLike] = []
    if Path(source).suffix.lower() in PARQUET:
        found.extend(parquet_parts(Path(source)))
    else:
        found.extend(sorted(file for file in Path(source).glob("[!._]*") if file.suffix.lower() in PARQUET))
    return [ParquetSet(file, columns) for file in found] or [FolderSet(source)]


def open_images(
    sources: PathLike | Sequence[PathLike], *, train: bool = True, columns: Columns = USUAL_COLUMNS
) -> ImageSet:
    """Open one source, or several joined.

    A source is a folder of images, a Parquet file (`*.parquet`, `*.pq`), a folder of Parquet files, an `.npz` of
    images, or `torchvision:NAME:ROOT` (`train` chooses the split there). columns: of Parquet files. Raises
    FileNotFoundError or ValueError naming the source.
    """
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not listed:
        raise ValueError("sources is empty; give a folder, a Parquet file or torchvision:NAME:ROOT")
    parts = [part for item in listed for part in _open(os.fspath(item), train, columns)]
    joined = parts[0] if len(parts) == 1 else JoinedSet(parts)
    if len(joined) == 0:
        raise ValueError(f"{', '.join(os.fspath(item) for item in listed)}: no images found")
    return joined
