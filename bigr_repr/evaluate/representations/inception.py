"""The Inception network of the FID, with weights from a file. Knows no data.

The file is torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or pytorch-fid's of the same name with `pt_`:
TensorFlow's network of 2015. It differs from torchvision's in pooling: means exclude the border, and the last block
uses the maximum. Images of any shape are resized to 299 pixels as in TensorFlow 1.
Source: Heusel et al., arXiv 1706.08500.
"""

# B batch, H W picture, D width

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr_repr.checkpoints.state_files import state_dict
from bigr_repr.checkpoints.weights import fingerprint
from bigr_repr.evaluate.representations.backbone import Backbone, States
from bigr_repr.evaluate.representations.weight_files import checkpoint_file

__all__ = ["FidInception"]

_SIDE: Final = 299
_CLASSES: Final = 1008
_FILE: Final = "weights-inception-2015-12-05-6726825d.pth"


class FidInception(Backbone):
    """Its 2,048 features before the classifier, of which the Fréchet distance is the FID."""

    def __init__(self, file: str, device: torch.device) -> None:
        if not file:
            raise ValueError(f"inception: needs a file of weights, such as inception:{_FILE} of torch-fidelity")
        network = _network()
        stored = state_dict(checkpoint_file(file))
        wanted = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
        if lost := sorted(wanted - stored.keys()):
            raise ValueError(f"{file} is not the FID's Inception: it lacks {len(lost)} tensors, such as {lost[0]}")
        try:
            network.load_state_dict({key: stored[key] for key in wanted}, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{file} is not the FID's Inception: {str(error).splitlines()[-1].strip()}") from error
        network.fc = torch.nn.Identity()
        super().__init__(network, _prepared, device)
        self.name = f"inception:{Path(file).name}"
        self.fingerprint = fingerprint({k: v for k, v in network.state_dict().items() if v.is_floating_point()})
        self.record = {"model": self.name, "model_sha256": self.fingerprint, "image_size": _SIDE}
        self.record |= {"preprocessing": "whole image, bilinear as in TensorFlow 1", "fid": True}
        self.training, self.labels_seen = "ImageNet", True

    def read(self, x: Tensor, layers: list[int], *, pooled: bool) -> tuple[dict[int, States], Tensor | None]:
        return {}, self.network(x)


def _network() -> Any:
    from torchvision.models import inception

    def with_pool(block: Any, pool: Callable[[Tensor], Tensor]) -> Any:
        """Replace the pooling in the block's last branch."""

        def _forward(self: Any, x: Tensor) -> list[Tensor]:
            branches: list[Tensor] = block._forward(self, x)
            branches[-1] = self.branch_pool(pool(x))
            return branches

        return type(f"Pooled{block.__name__}", (block,), {"_forward": _forward})

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def largest(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)

    first, last = with_pool(inception.InceptionE, mean), with_pool(inception.InceptionE, largest)
    return inception.Inception3(
        _CLASSES, aux_logits=False, init_weights=False,
        inception_blocks=[
            inception.BasicConv2d, with_pool(inception.InceptionA, mean), inception.InceptionB,
            with_pool(inception.InceptionC, mean), inception.InceptionD,
            lambda channels: (first if channels == 1280 else last)(channels), inception.InceptionAux,
        ],
    )  # fmt: skip


def _prepared(image: Image.Image) -> Tensor:
    """An RGB picture -> (3, 299, 299), about -1..1."""
    pixels = np.asarray(image, np.float32)
    rows = _along(pixels, 0)
    return torch.from_numpy((np.ascontiguousarray(_along(rows, 1).transpose(2, 0, 1)) - 128) / 128)


def _along(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Resize to 299 along an axis: linear between pixels whose corners, not centers, are at integers."""
    count = values.shape[axis]
    places = np.arange(_SIDE, dtype=np.float32) * np.float32(count / _SIDE)
    low = places.astype(np.int64)
    share = (places - low).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    below, above = values.take(low, axis), values.take(np.minimum(low + 1, count - 1), axis)
    found: NDArray[np.float32] = below + (above - below) * share
    return found
