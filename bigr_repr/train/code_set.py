"""Packed code data sets, which the generator trains on: one bit on disk per bit of code. Knows nothing of training.

A folder with `codes.npy` (images, views, bytes; memory-mapped, with the shape in its header), `labels.npy` if there are
labels, and `codes.json` with everything needed to read them. View 0 is the image, view 1 its mirror image, if stored;
random crops of the image follow.
"""

# n images, V views of each, N tokens, K bits per token

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bigr_repr.checkpoints.pretrained import tokenizer_fingerprint
from bigr_repr.codes import BIT_ORDER, code_bytes, from_bytes, grid_to_tokens, to_bytes
from bigr_repr.config import from_fields
from bigr_repr.images.augment import random_resized_crop
from bigr_repr.system.damaged import named_if_damaged
from bigr_repr.system.devices import choose_device, mixed_precision
from bigr_repr.system.files import HashedFile, naming, remove, replacing, reserve, sha256_of
from bigr_repr.system.sums import reading_sealed, sealed
from bigr_repr.system.threads import map_ahead
from bigr_repr.train.caption_set import CaptionStore
from bigr_repr.train.single_writer import only_writer

if TYPE_CHECKING:
    import torch

    from bigr_repr.datasets import ImageSet
    from bigr_repr.models.tokenizer import BinaryAutoencoder

_FORMAT = "bigr-repr codes 1"
_LEAST = 0.4  # minimum share of the image's area in a random crop


@dataclass(frozen=True, kw_only=True)
class CodeHeader:
    """The contents of `codes.json`. `n_bits` = tokens * code_bits; bit k of token n is bit n * code_bits + k.

    `tokenizer` is the tokenizer's path, `tokenizer_sha256` its weights' fingerprint, `images_sha256` that of the
    images: see `images_digest`; None in sets of older versions. The last `crops` views are random crops of the image.
    `sha256`: of the other files, by name; missing in sets of older versions.
    """

    images: int
    views: int
    tokens: int
    code_bits: int
    n_bits: int
    tokenizer: str
    tokenizer_sha256: str | None = None
    images_sha256: str | None = None
    class_names: tuple[str, ...] = ()
    crops: int = 0
    sha256: Mapping[str, str] = field(default_factory=dict)
    bit_order: str = BIT_ORDER
    format: str = _FORMAT

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the packed codes: (images, views, bytes)."""
        return self.images, self.views, code_bytes(self.n_bits)


def _header(record: Mapping[str, Any]) -> CodeHeader:
    if record.get("format") != _FORMAT:
        raise ValueError(f"codes.json says format {record.get('format')!r}; this version reads {_FORMAT!r}")
    return from_fields(CodeHeader, record, "it")


class CodeSet:
    """A packed code data set on disk, memory-mapped; `captions` are those of its images, None if there are none.

    Raises FileNotFoundError for a folder without one, ValueError for a damaged one or another format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        remedy = "make it again with: bigr-repr train codes"
        try:
            with reading_sealed(self.folder / "codes.json", remedy=remedy) as record:
                self.header = _header(record)
                self._open()
        except FileNotFoundError as error:
            remedy = "make one with: bigr-repr train codes"
            message = f"{folder} is not a code data set ({error.filename} is missing); {remedy}"
            raise FileNotFoundError(message) from error
        self.captions = CaptionStore(self.folder) if (self.folder / "captions.json").exists() else None

    def __getstate__(self) -> dict[str, Any]:
        mapped = {"_codes": None} if "_codes" in self.__dict__ else {}
        return {**self.__dict__, **mapped}  # data-loading processes map the file themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_codes" in state:
            self._map()

    def _map(self) -> None:
        """Map the codes. Raises ValueError for a file that the header does not describe."""
        with named_if_damaged("codes.npy"):
            self._codes = np.load(self.folder / "codes.npy", mmap_mode="r", allow_pickle=False)
        self._check("codes.npy", self._codes.dtype == np.uint8, self._codes, self.header.shape)

    def _open(self) -> None:
        """Map the codes, and read the labels. Raises ValueError for a file that the header does not describe."""
        self._map()
        self.labels = None
        if (self.folder / "labels.npy").exists():
            with named_if_damaged("labels.npy"):
                self.labels = np.load(self.folder / "labels.npy", allow_pickle=False).astype(np.int64)
            self._check("labels.npy", True, self.labels, (self.header.images,))
        self._check_sums()

    def _check_sums(self) -> None:
        """Verify the files. Raises ValueError for a damaged one."""
        for name, digest in self.header.sha256.items():
            if sha256_of(self.folder / Path(name).name) != digest:
                raise ValueError(f"{name} is damaged: its SHA-256 is not the one in codes.json")

    @staticmethod
    def _check(file: str, dtype_fits: bool, found: NDArray[Any], shape: tuple[int, ...]) -> None:
        if not dtype_fits or found.shape != shape:
            raise ValueError(f"{file} is {found.dtype} {found.shape}, codes.json says {shape}")

    def __len__(self) -> int:
        return self.header.images

    @property
    def packed(self) -> NDArray[np.uint8]:
        """The stored codes: uint8 (images, views, bytes), memory-mapped."""
        packed: NDArray[np.uint8] = self._codes
        return packed

    @property
    def views(self) -> int:
        """Number of versions of each image: itself and, if stored, its mirror image and random crops."""
        return self.header.views

    def numbers(self, draws: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images that draws (n,) of given epochs (n,) refer to: here the same in every epoch."""
        return draws

    def bits(self, index: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Bits of images `index` (n,), views `view` (n,): bool (n, N, K)."""
        bits = from_bytes(self._codes[index, view], self.header.n_bits)
        return bits.reshape(len(index), self.header.tokens, self.header.code_bits)


def _encode(
    tokenizer: BinaryAutoencoder, pixels: NDArray[np.uint8], place: torch.device, *, half: bool
) -> NDArray[np.uint8]:
    """Packed codes of squares, uint8 (B, S, S, 3) -> (B, bytes)."""
    import torch

    with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16, enabled=half):
        images = torch.from_numpy(pixels).to(place).permute(0, 3, 1, 2).float() / 255
        tokens = grid_to_tokens(tokenizer.encode(images)).bool().cpu().numpy()
    return to_bytes(tokens.reshape(len(pixels), -1))


def _views_of(images: ImageSet, index: int, side: int, mirror: bool, crops: int) -> NDArray[np.uint8]:
    """An image, its mirror image and its random crops, the same at every call: uint8 (V, S, S, 3)."""
    square = images.load_square(index, side)
    found = [square, square[:, ::-1]] if mirror else [square]
    image = images.load(index) if crops else None
    for number in range(crops if image is not None else 0):
        assert image is not None
        part = random_resized_crop(image, side, np.random.default_rng([index, number]), least=_LEAST)
        found.append(np.asarray(part))
    return np.stack(found)


def _batches(images: ImageSet, side: int, batch_size: int, header: CodeHeader) -> Iterator[NDArray[np.uint8]]:
    """All images in batches with their views, uint8 (B, V, S, S, 3)."""
    mirror = header.views - header.crops > 1
    views = map_ahead(
        lambda i: _views_of(images, i, side, mirror, header.crops), range(len(images)), ahead=2 * batch_size
    )
    for _ in range(0, len(images), batch_size):
        yield np.stack(list(islice(views, batch_size)))


def images_digest(images: ImageSet, side: int, on_progress: Callable[[int, int], None] | None = None) -> str:
    """Identifies images and their order by their middle squares, S x S, as encoded: 64 hexadecimal digits.

    Names and times of files do not matter. `on_progress(done, total)` is called after each image.
    Raises ImageError for an unreadable picture.
    """
    digest = hashlib.sha256()
    squares = map_ahead(lambda i: images.load_square(i, side), range(len(images)), ahead=128)
    for done, square in enumerate(squares, 1):
        digest.update(np.ascontiguousarray(square).data)
        if on_progress is not None:
            on_progress(done, len(images))
    return digest.hexdigest()


def write_codes(
    images: ImageSet,
    tokenizer: BinaryAutoencoder,
    out: str | os.PathLike[str],
    *,
    tokenizer_name: str,
    batch_size: int = 64,
    mirror: bool = True,
    crops: int = 0,
    device: torch.device | str | None = "cpu",
    precision: str = "float32",
    on_progress: Callable[[int, int], None] | None = None,
) -> CodeSet:
    """Encode every image, its mirror image and `crops` random crops of it into a new code data set at `out`.

    Bits are deterministic (P > 0.5). `precision`: float32, or bfloat16, which is several times as fast on processors
    that support it, but may change bits with a probability close to one half. `device`: None or "auto" is a GPU if
    there is one. `on_progress(done, total)` is called after each batch. The header is written last, so an interrupted
    run's folder is never read as complete. Raises FileExistsError if `out` holds codes, ValueError for an invalid
    setting, RuntimeError while another process writes to `out`, all before anything is written; ImageError for an
    unreadable picture.
    """
    if batch_size < 1 or crops < 0:
        raise ValueError(f"batch_size={batch_size} must be at least 1, crops={crops} at least 0")
    half = mixed_precision(precision, ("float32", "bfloat16")) == "bf16"
    place, header = choose_device(device), _header_of(images, tokenizer, tokenizer_name, mirror, crops)
    with only_writer(folder := Path(out)):
        if (folder / "codes.json").exists():
            raise FileExistsError(f"{folder} already holds a code data set; choose another folder or remove it")
        _write(images, tokenizer.to(place).eval(), folder, header, batch_size, place, half, on_progress)
    return CodeSet(folder)


def _write(
    images: ImageSet,
    tokenizer: BinaryAutoencoder,
    folder: Path,
    header: CodeHeader,
    batch_size: int,
    place: torch.device,
    half: bool,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    packed = mapped_array(folder / "codes.npy", np.uint8, header.shape)
    digest, stop = hashlib.sha256(), 0
    for pixels in _batches(images, tokenizer.config.image_size, batch_size, header):
        start, stop = stop, stop + len(pixels)
        digest.update(np.ascontiguousarray(pixels[:, 0]).data)  # as in `images_digest`
        for view in range(header.views):
            packed[start:stop, view] = _encode(tokenizer, np.ascontiguousarray(pixels[:, view]), place, half=half)
        if on_progress is not None:
            on_progress(stop, len(images))
    packed.flush()
    _finish(folder, replace(header, images_sha256=digest.hexdigest()), images)


def _header_of(images: ImageSet, tokenizer: BinaryAutoencoder, name: str, mirror: bool, crops: int) -> CodeHeader:
    config = tokenizer.config
    return CodeHeader(
        images=len(images),
        views=(2 if mirror else 1) + crops,
        crops=crops,
        tokens=config.grid**2,
        code_bits=config.code_bits,
        n_bits=config.grid**2 * config.code_bits,
        tokenizer=name,
        tokenizer_sha256=tokenizer_fingerprint(tokenizer),
        class_names=images.class_names,
    )


def _finish(folder: Path, header: CodeHeader, images: ImageSet) -> None:
    """Write labels and header, which makes the folder a code data set."""
    remove(folder / "labels.npy")  # left by an interrupted run
    if images.labels is not None:
        with replacing(folder / "labels.npy") as file:
            np.save(HashedFile(file), images.labels)  # otherwise NumPy does not notice a full disk
    present = [folder / name for name in ("codes.npy", "labels.npy") if (folder / name).exists()]
    header = replace(header, sha256={file.name: sha256_of(file) for file in present})
    with replacing(folder / "codes.json") as file:
        file.write(json.dumps(sealed(asdict(header)), indent=1).encode())


def mapped_array(file: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    """An array in a new .npy file, memory-mapped, still zero.  Raises OSError, leaving no file, on a full disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming(file):
        array = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=shape)
        try:
            with file.open("r+b") as opened:
                reserve(opened, file.stat().st_size)
        except OSError:
            remove(file)
            raise
    return array
