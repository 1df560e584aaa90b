"""Alignment with a frozen network: its features of the training images, and the heads that predict them.

A generator that also learns to predict another network's features gets discriminative features sooner. Only training
uses the other network; the trained model contains none of it. Source: REPA (arXiv 2410.06940).
"""

# B batch, N tokens, n of them read, F channels of the network's map, G of its last map, D width of the generator

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bigr_repr.config import from_fields
from bigr_repr.datasets import ImageSet
from bigr_repr.system.damaged import named_if_damaged
from bigr_repr.system.devices import choose_device
from bigr_repr.system.files import replacing
from bigr_repr.system.sums import reading_sealed, sealed
from bigr_repr.system.threads import map_ahead
from bigr_repr.train.code_set import CodeSet, mapped_array
from bigr_repr.train.frozen import float_fingerprint, frozen_maps
from bigr_repr.train.single_writer import only_writer

_PREFIX = "timm:"
_HEADER: Final = "features.json"
_ARRAYS: Final = ("features.npy", "pooled.npy")
_REMEDY: Final = "make them with: bigr-repr train codes --align timm:NAME"
_HIDDEN = 256
_FOR_STATISTICS = 512


@dataclass(frozen=True, kw_only=True)
class FeatureHeader:
    """The contents of `features.json`, for `features.npy` (images, views, N, F) and `pooled.npy` (images, views, G).

    `network` is as given, `side` the size of its input pictures; `mean` and `std` (F) and `pooled_mean` and
    `pooled_std` (G) are over a part of the images.
    """

    network: str
    weights_sha256: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pooled_mean: tuple[float, ...]
    pooled_std: tuple[float, ...]
    format: str = "bigr-repr features 1"


class FrozenNetwork:
    """A timm network: one block's feature map, with one position per token, and the average of its last map.

    spec: "timm:NAME", or "timm:NAME:BLOCK" with one of timm's `features_only` blocks; by default the second to last.
    weights: a file from timm or from any code with the same tensors in the same order; None: timm's own, downloaded if
    needed. grid: tokens in each direction.
    Raises ValueError for an unsuitable network, block or weights, FileNotFoundError for a missing file.
    """

    def __init__(self, spec: str, *, grid: int, weights: str | os.PathLike[str] | None = None) -> None:
        import timm

        name, _, block = spec.removeprefix(_PREFIX).partition(":")
        if not spec.startswith(_PREFIX) or not timm.is_model(name.split(".")[0]):
            raise ValueError(f"align={spec!r} is unknown; give timm:NAME or timm:NAME:BLOCK; see timm.list_models()")
        network = frozen_maps(name, weights)
        strides = [int(stride) for stride in network.feature_info.reduction()]
        index = len(strides) - 2 if not block else int(block) if block.isdecimal() else -1
        if not 0 <= index < len(strides):
            raise ValueError(f"align={spec!r}: block {block!r} is outside 0..{len(strides) - 1}, what {name} has")
        self.name, self.side, self._block = f"{_PREFIX}{name}:{index}", grid * strides[index], index
        config: Any = network.pretrained_cfg
        self._mean, self._std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self._network = network
        self._check(spec, grid * grid, int(network.feature_info.channels()[index]))
        self.fingerprint = float_fingerprint(network)

    def _check(self, spec: str, tokens: int, channels: int) -> None:
        """Raise ValueError unless the network has a map with one position per token."""
        remedy = "choose a network that reads pictures of any size, such as a convolutional one"
        try:
            found, _ = self.features(np.zeros((1, self.side, self.side, 3), np.uint8), torch.device("cpu"))
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:  # as networks of one fixed size do
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"align={spec!r} cannot read pictures of {self.side} x {self.side} pixels ({reason}); {remedy}"
            ) from error
        if found.shape != (1, tokens, channels):
            raise ValueError(
                f"align={spec!r}: its map of {self.side} x {self.side} pixels is {tuple(found.shape[1:])} where "
                f"{(tokens, channels)} (tokens, channels) is needed; {remedy}"
            )

    @torch.inference_mode()
    def features(self, pixels: NDArray[np.uint8], place: torch.device) -> tuple[Tensor, Tensor]:
        """Features of squares, uint8 (B, S, S, 3) of any side: float32 (B, N, F) in raster order, and (B, G)."""
        network = self._network.to(place)
        images = torch.from_numpy(pixels).to(place).permute(0, 3, 1, 2).float() / 255
        images = F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        images = (images - self._mean.to(place)) / self._std.to(place)
        maps = network(images.contiguous(memory_format=torch.channels_last))
        return maps[self._block].flatten(2).transpose(1, 2).float().cpu(), maps[-1].mean((2, 3)).float().cpu()


def write_features(
    images: ImageSet,
    codes: CodeSet,
    network: FrozenNetwork,
    *,
    batch_size: int = 64,
    device: torch.device | str | None = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> FeatureHeader:
    """Store a network's features of every image and view next to the codes of the same images, in float16.

    The header is written last. `on_progress(done, total)` is called after each batch. Raises ValueError if the numbers
    of images and codes differ, ImageError for an unreadable picture, RuntimeError while another process writes to the
    folder.
    """
    if len(images) != len(codes):
        raise ValueError(
            f"there are {len(images)} images, but {len(codes)} codes in {codes.folder}; give the encoded images"
        )
    if codes.header.crops:
        raise ValueError(f"{codes.folder} has random crops of its images, whose features are not stored; use crops=0")
    with only_writer(codes.folder):
        return _write(images, codes, network, batch_size, choose_device(device), on_progress)


def _write(
    images: ImageSet,
    codes: CodeSet,
    network: FrozenNetwork,
    batch_size: int,
    place: torch.device,
    on_progress: Callable[[int, int], None] | None,
) -> FeatureHeader:
    count = len(images)
    squares = map_ahead(lambda i: images.load_square(i, network.side), range(count), ahead=2 * batch_size)
    arrays: list[Any] = []  # NumPy's memory maps
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        pixels = np.stack(list(islice(squares, stop - start)))
        for view in range(codes.views):
            seen = np.ascontiguousarray(pixels[:, :, ::-1]) if view else pixels
            for number, part in enumerate(network.features(seen, place)):
                if len(arrays) <= number:
                    shape = (count, codes.views, *part.shape[1:])
                    file = codes.folder / _ARRAYS[number]
                    arrays.append(mapped_array(file, np.float16, shape))
                arrays[number][start:stop, view] = part.numpy()
        if on_progress is not None:
            on_progress(stop, count)
    header = _header_of(network, arrays)
    with replacing(codes.folder / _HEADER) as opened:
        opened.write(json.dumps(sealed(asdict(header)), indent=1).encode())
    return header


def _header_of(network: FrozenNetwork, arrays: Sequence[Any]) -> FeatureHeader:
    """The header of a network's maps and pooled features, with the mean and deviation of each of their columns."""
    statistics: list[tuple[float, ...]] = []
    for array in arrays:
        array.flush()
        chosen = np.sort(np.random.default_rng(0).permutation(len(array))[:_FOR_STATISTICS])
        rows = array[chosen].astype(np.float64).reshape(-1, array.shape[-1])
        statistics += [tuple(rows.mean(0).tolist()), tuple((rows.std(0) + 1e-3).tolist())]
    mean, std, pooled_mean, pooled_std = statistics
    return FeatureHeader(
        network=network.name, weights_sha256=network.fingerprint, side=network.side, mean=mean, std=std,
        pooled_mean=pooled_mean, pooled_std=pooled_std,
    )  # fmt: skip


class AlignmentFeatures:
    """Features of a code set, memory-mapped.

    Raises FileNotFoundError if there are none, ValueError if they are damaged or of other codes, with the remedy.
    """

    def __init__(self, codes: CodeSet) -> None:
        try:
            with reading_sealed(codes.folder / _HEADER, remedy=_REMEDY) as record:
                self.header = from_fields(FeatureHeader, record, "it")
                shapes = (codes.header.tokens, len(self.header.mean)), (len(self.header.pooled_mean),)
            self._folder = codes.folder
            self._map()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{codes.folder} has no features of another network; {_REMEDY}") from error
        for array, shape in zip(self._arrays, shapes, strict=True):
            if array.shape != (len(codes), codes.views, *shape):
                raise ValueError(f"{codes.folder}: features {array.shape} do not match its codes; {_REMEDY}")

    def __getstate__(self) -> dict[str, Any]:
        return {"header": self.header, "_folder": self._folder}  # data-loading processes map the files themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def _map(self) -> None:
        self._arrays = []
        for name in _ARRAYS:
            with named_if_damaged(self._folder / name, _REMEDY):
                self._arrays.append(np.load(self._folder / name, mmap_mode="r", allow_pickle=False))

    def rows(self, index: NDArray[Any], view: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Features of images `index` (n,), views `view` (n,): float32 (n, N, F) and (n, G), not yet standardized."""
        tokens, pooled = (torch.from_numpy(array[index, view].astype(np.float32)) for array in self._arrays)
        return tokens, pooled


class AlignmentHeads(nn.Module):
    """Predicts the network's map from each token's state, and its pooled features from their mean. Training only."""

    mean: Tensor
    std: Tensor
    pooled_mean: Tensor
    pooled_std: Tensor

    def __init__(self, dim: int, header: FeatureHeader) -> None:
        super().__init__()
        for name in ("mean", "std", "pooled_mean", "pooled_std"):
            self.register_buffer(name, torch.tensor(getattr(header, name)), persistent=False)
        self.tokens = nn.Sequential(
            nn.Linear(dim, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU(),
            nn.Linear(_HIDDEN, len(header.mean)),
        )  # fmt: skip
        self.pooled = nn.Linear(dim, len(header.pooled_mean))

    def forward(self, token_states: Tensor, pooled_states: Tensor, features: Tensor, pooled: Tensor) -> Tensor:
        """States (B, n, D) twice, features (B, n, F), pooled (B, G) -> (2,): 1 - cosine, of tokens and pooled."""
        found = self.tokens(token_states).float(), self.pooled(pooled_states.mean(1)).float()
        wanted = (features - self.mean) / self.std, (pooled - self.pooled_mean) / self.pooled_std
        return torch.stack([1 - F.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(found, wanted, strict=True)])
