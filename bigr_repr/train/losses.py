"""Losses of the tokenizer's training: perceptual distance, the patch discriminator and its balance. Pure tensors.

Source: VQGAN (arXiv 2012.09841); differentiable augmentation (arXiv 2006.10738).
"""

# B batch, H W pixels

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr_repr.train.frozen import frozen_maps


class PerceptualDistance(nn.Module):
    """Distance between images in the feature maps of a frozen timm backbone.

    Channels of every map are normalized to unit length at each position, and squared differences averaged, as LPIPS
    does without its learned channel weights. `backbone` is a timm name ("vgg16.tv_in1k", "resnet18.a1_in1k", …),
    `weights` a file of its weights; None: timm's own, downloaded if needed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, *, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        try:
            self.network: Any = frozen_maps(backbone, weights)
        except RuntimeError as error:
            raise ValueError(f"perceptual={backbone!r} cannot be used: {error}; see timm.list_models()") from error
        config: Any = self.network.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Always stays in eval mode."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], twice -> scalar."""
        pairs = zip(*(self.network((x - self.mean) / self.std) for x in (a, b)), strict=True)
        terms = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean() for x, y in pairs]
        return torch.stack(terms).sum()


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches: 4x4 convolutions with BatchNorm. (B, 3, H, W) -> (B, 1, h, w) logits."""

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        inner = width
        for level in range(1, layers + 1):
            outer = width * min(2**level, 8)
            stride = 2 if level < layers else 1
            blocks += [nn.Conv2d(inner, outer, 4, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.LeakyReLU(0.2)]
            inner = outer
        blocks.append(nn.Conv2d(inner, 1, 4, 1, 1))
        self.main = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)  # type: ignore[no-any-return]


def augment(images: Tensor) -> Tensor:
    """Differentiable color changes and shifts (up to 1/8 of the side), drawn per image. (B, 3, H, W) -> same."""
    batch, _, height, width = images.shape
    brightness, saturation, contrast = torch.rand(3, batch, 1, 1, 1, device=images.device)
    x = images + (brightness - 0.5)
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, 2 * saturation)
    x = torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, contrast + 0.5)
    reach_y, reach_x = height // 8, width // 8
    dy = torch.randint(-reach_y, reach_y + 1, (batch, 1, 1), device=images.device)
    dx = torch.randint(-reach_x, reach_x + 1, (batch, 1, 1), device=images.device)
    rows = (torch.arange(height, device=images.device)[None, :, None] + dy + 1).clamp(0, height + 1)
    columns = (torch.arange(width, device=images.device)[None, None, :] + dx + 1).clamp(0, width + 1)
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # zeros beyond the border
    which = torch.arange(batch, device=images.device)[:, None, None]
    return padded[which, rows, columns].permute(0, 3, 1, 2)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator from its logits on real and reconstructed images. -> scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """||grad of reconstruction|| / (||grad of adversarial|| + 1e-4) at the decoder's last layer, clamped to [0, 1]."""
    ours = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    theirs = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    weight: Tensor = (ours.norm() / (theirs.norm() + 1e-4)).clamp(0.0, 1.0).detach()
    return weight
