"""Image sets by name: the digits of scikit-learn, and the data sets of torchvision."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
from PIL import Image

from bigr_repr.datasets.image_set import ImageSet, IntArray, fingerprint_of
from bigr_repr.images.decode import as_rgb
from bigr_repr.images.formats import image_errors

# Data sets whose splits torchvision names other than train and test, and arguments for the usual variant.
_SPLITS = {
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "Places365": ("train-standard", "val"),
}
_ARGUMENTS: dict[str, dict[str, Any]] = {"Places365": {"small": True}}


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
        return fingerprint_of(["digits", self._train])


class TorchvisionSet(ImageSet):
    """A torchvision data set that is already on disk, by class name and root: CIFAR10, STL10, Flowers102, …"""

    def __init__(self, name: str, root: str, *, train: bool = True) -> None:
        import inspect

        import torchvision.datasets

        factory = getattr(torchvision.datasets, name, None)
        if factory is None:
            raise ValueError(
                f"torchvision has no data set {name!r}; names are those of torchvision.datasets, such as CIFAR10"
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
        return fingerprint_of([*self._facts, len(self), hashlib.sha256(labels).hexdigest()])


def _download(name: str, root: str, arguments: dict[str, Any]) -> str:
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f'with: python -c "import torchvision; torchvision.datasets.{name}({root!r}{given}, download=True)"'
