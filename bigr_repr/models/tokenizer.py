"""The binary autoencoder: images to a grid of K-bit tokens and back. Knows nothing of transformers or files.

Module and parameter names follow the released weights. Source: BiGR (arXiv 2410.14672), section 3.1.
"""

# B batch, C channels, H W pixels, h w token grid, K bits per token, E embed_dim

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr_repr.config import TokenizerConfig
from bigr_repr.models import winograd


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _silu(x: Tensor) -> Tensor:
    """SiLU of a tensor without other users, in place unless gradients are needed.

    At 256 pixels, allocating a new feature map takes longer than computing it.
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _add(x: Tensor, residual: Tensor) -> Tensor:
    """x + residual, likewise in place."""
    if torch.is_grad_enabled() or x.dtype != residual.dtype:
        return x + residual
    return x.add_(residual)


class ResBlock(nn.Module):
    """Two normalized 3x3 convolutions around a residual connection. (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # Always present in the released files, but used only if the width changes.
        self.conv_out = nn.Conv2d(in_channels, out_channels, 1)
        self.widens = in_channels != out_channels
        if not self.widens:
            self.conv_out.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv_out(x) if self.widens else x
        if winograd.applies(x, self.conv1):
            h = winograd.norm_silu_conv(self.norm1, self.conv1, x)
            return winograd.norm_silu_conv(self.norm2, self.conv2, h, residual, in_place=True)
        h = self.conv1(_silu(self.norm1(x)))
        h = self.conv2(_silu(self.norm2(h)))
        return _add(h, residual)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H*W, C), scale C**-0.5
        mixed = mixed.squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halves both sides. (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles both sides, nearest neighbor then a convolution. (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class _BlockChain(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _encoder(config: TokenizerConfig) -> _BlockChain:
    widths = [config.base_channels * m for m in config.channel_multipliers]
    groups, side, width = config.norm_groups, config.image_size, config.base_channels
    blocks: list[nn.Module] = [nn.Conv2d(config.in_channels, width, 3, padding=1)]
    for level, level_width in enumerate(widths):
        for _ in range(config.res_blocks):
            blocks.append(ResBlock(width, level_width, groups))
            width = level_width
            if side in config.attention_resolutions:
                blocks.append(AttnBlock(width, groups))
        if level < len(widths) - 1:
            blocks.append(Downsample(width))
            side //= 2
    blocks += [ResBlock(width, width, groups), AttnBlock(width, groups), ResBlock(width, width, groups)]
    blocks += [_norm(width, groups), nn.Conv2d(width, config.embed_dim, 3, padding=1)]
    return _BlockChain(blocks)


def _decoder(config: TokenizerConfig) -> _BlockChain:
    widths = [config.base_channels * m for m in config.channel_multipliers]
    groups, side, width = config.norm_groups, config.grid, widths[-1]
    blocks: list[nn.Module] = [_norm(config.embed_dim, groups)] if config.norm_first else []
    blocks.append(nn.Conv2d(config.embed_dim, width, 3, padding=1))
    blocks += [ResBlock(width, width, groups), AttnBlock(width, groups), ResBlock(width, width, groups)]
    for level, level_width in reversed(list(enumerate(widths))):
        for _ in range(config.res_blocks):
            blocks.append(ResBlock(width, level_width, groups))
            width = level_width
            if side in config.attention_resolutions:
                blocks.append(AttnBlock(width, groups))
        if level > 0:
            blocks.append(Upsample(width))
            side *= 2
    blocks += [_norm(width, groups), nn.Conv2d(width, config.in_channels, 3, padding=1)]
    return _BlockChain(blocks)


class BinaryQuantizer(nn.Module):
    """Features to bit probabilities, and bits back to features."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(config.embed_dim, config.code_bits, 1))
        self.embed = nn.Embedding(config.code_bits, config.embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, E, h, w) -> logits of P(bit = 1), (B, K, h, w)."""
        return self.proj(features)  # type: ignore[no-any-return]

    def features(self, bits: Tensor) -> Tensor:
        """(B, K, h, w) -> (B, E, h, w): sum over k of bit_k * embed[k], as a 1x1 convolution."""
        return F.conv2d(bits, self.embed.weight.t()[:, :, None, None])


class Reconstruction(NamedTuple):
    """The result of a training pass: `images` (B, 3, H, W), `probabilities` and `bits` (B, K, h, w)."""

    images: Tensor
    probabilities: Tensor
    bits: Tensor


class BinaryAutoencoder(nn.Module):
    """Images to bits and back.

    Images are RGB in [0, 1], (B, 3, H, W), with H and W multiples of `config.downsample`; bits are 0/1 floats,
    (B, K, h, w) with h = H / downsample. Source: BiGR, section 3.1; binary latent diffusion (arXiv 2304.04820).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.quantize = BinaryQuantizer(config)
        self.generator = _decoder(config)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, where the adaptive GAN weight compares gradients."""
        weight = self.generator.blocks[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def _check_images(self, images: Tensor) -> None:
        step, channels = self.config.downsample, self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"images has shape {tuple(images.shape)}; expected (B, {channels}, H, W)")
        if images.shape[2] % step or images.shape[3] % step or 0 in images.shape[2:]:
            size = f"{images.shape[2]}x{images.shape[3]}"
            raise ValueError(f"images of {size} pixels: both sides must be multiples of {step}; resize or crop them")
        if not images.is_floating_point():
            raise ValueError(f"images has dtype {images.dtype}; expected floats in [0, 1] (divide uint8 by 255)")

    def bit_logits(self, images: Tensor) -> Tensor:
        """Logits of P(bit = 1). (B, 3, H, W) in [0, 1] -> (B, K, h, w)."""
        self._check_images(images)
        return self.quantize(self.encoder(images))  # type: ignore[no-any-return]

    def bit_probabilities(self, images: Tensor) -> Tensor:
        """P(bit = 1). (B, 3, H, W) in [0, 1] -> (B, K, h, w) in (0, 1). Raises ValueError on another shape or dtype."""
        return torch.sigmoid(self.bit_logits(images))

    def encode(self, images: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Bits of images: 1 where P(bit = 1) > 0.5, or Bernoulli draws with `sample=True`.

        (B, 3, H, W) in [0, 1] -> (B, K, h, w), 0/1 in the dtype of `images`.
        """
        if not sample:
            return (self.bit_probabilities(images) > 0.5).to(images.dtype)
        probabilities = self.bit_probabilities(images).float()
        return torch.bernoulli(probabilities, generator=generator).to(images.dtype)

    def decode(self, bits: Tensor) -> Tensor:
        """Images from bits. (B, K, h, w) of 0/1 -> (B, 3, H, W), nominally in [0, 1] and not clamped."""
        if bits.ndim != 4 or bits.shape[1] != self.config.code_bits:
            raise ValueError(f"bits has shape {tuple(bits.shape)}; expected (B, {self.config.code_bits}, h, w)")
        return self.generator(self.quantize.features(bits))  # type: ignore[no-any-return]

    def forward(
        self, images: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Reconstruction:
        """One training pass with straight-through gradients. See `Reconstruction`."""
        logits = self.bit_logits(images)
        probabilities = torch.sigmoid(logits)
        with torch.no_grad():
            bits = torch.bernoulli(probabilities.float(), generator=generator) if sample else probabilities > 0.5
        bits = bits.to(probabilities.dtype)
        straight_through = bits + (probabilities - probabilities.detach())  # exactly the bits, in any precision
        return Reconstruction(self.decode(straight_through), probabilities, bits)


def without_decoder(tokenizer: BinaryAutoencoder) -> BinaryAutoencoder:
    """A tokenizer that only encodes, around the same weights. The given one keeps its decoder."""
    part = copy.copy(tokenizer)
    part._modules = {name: child for name, child in tokenizer._modules.items() if name != "generator"}
    return part
