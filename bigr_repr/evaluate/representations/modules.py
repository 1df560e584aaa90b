"""Any torch module as a representation, returned by a user's function. Knows no library, and no data.

`PACKAGE.MODULE.FUNCTION` is called without arguments and returns a module, or a module and a transform from a PIL image
to a tensor (3, H, W); without one, images are resized to 256 pixels, cropped to 224 and normalized as for ImageNet. The
module takes a batch (B, 3, H, W) and returns features (B, D), tokens (B, N, D) or a map (B, C, h, w).
"""

# B batch, N tokens, h w grid, D width

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from bigr_repr.checkpoints.weights import fingerprint
from bigr_repr.evaluate.representations.backbone import Backbone, States, states_of

_MEAN: Final = (0.485, 0.456, 0.406)
_DEVIATION: Final = (0.229, 0.224, 0.225)


class ModuleBackbone(Backbone):
    """The module from the function. If it returns tokens or a map, it has one block, and "pooled" is the mean."""

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            function = _function(name)
            module, transform = _made(name, function())
        super().__init__(module, transform or _usual_transform(), device)
        self.name = f"module:{name}"
        weights = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
        source = inspect.getsourcefile(function)  # other code with the same weights is another representation
        code = Path(source).read_bytes() if source else b""
        self.fingerprint = hashlib.sha256(fingerprint(weights).encode() + code).hexdigest()
        pixels = self._transform(Image.new("RGB", (64, 64)))
        with torch.no_grad():
            found = self._forward(pixels[None].to(device))
        self.layers = 0 if found.ndim == 2 else 1
        self.has_class_token = found.ndim == 3 and states_of(found).token is not None
        self._with_pools()
        self.record = {"model": self.name, "model_sha256": self.fingerprint, "image_size": pixels.shape[-1]}
        self.record |= {"preprocessing": "the function's" if transform else "usual", "blocks": self.layers}
        self.record["crop"] = 1.0 if transform else 224 / 256

    def read(self, x: Tensor, layers: list[int], *, pooled: bool) -> tuple[dict[int, States], Tensor | None]:
        found = self._forward(x)
        if found.ndim == 2:
            return {}, found
        states = states_of(found)
        return dict.fromkeys(layers, states), states.positions.mean(dim=(2, 3)) if pooled else None

    def _forward(self, x: Tensor) -> Tensor:
        found = self.network(x)
        if not isinstance(found, Tensor) or found.ndim not in (2, 3, 4):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.name} gives {shape}; expected a tensor (B, D), (B, N, D) or (B, C, h, w)")
        return found


def _function(name: str) -> Callable[[], Any]:
    """The function with a name, which may be in a file in the current folder."""
    place, _, attribute = name.rpartition(".")
    if not place:
        raise ValueError(f"module:{name} does not name a function; use module:package.function")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as an entry of sys.path
    try:
        found = getattr(importlib.import_module(place), attribute, None)
    except ImportError as error:
        raise ValueError(f"module:{name}: {error}; the current folder and installed packages are searched") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ValueError(f"module:{name}: {place} has no function {attribute}")
    return found  # type: ignore[no-any-return]


def _made(name: str, found: Any) -> tuple[nn.Module, Callable[[Image.Image], Tensor] | None]:
    module, transform = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(module, nn.Module) or not (transform is None or callable(transform)):
        raise ValueError(f"module:{name} gave {type(found).__name__}; expected a torch module, or one and a transform")
    return module, transform


def _usual_transform() -> Callable[[Image.Image], Tensor]:
    from torchvision import transforms

    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
            transforms.ToTensor(), transforms.Normalize(_MEAN, _DEVIATION),
        ]
    )  # fmt: skip
