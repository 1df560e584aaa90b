"""A model of random weights that computes in milliseconds, and pictures for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.config import GeneratorConfig, ModelConfig, TokenizerConfig
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder


def tiny_model(
    seed: int = 0,
    *,
    layers: int = 4,
    side: int = 32,
    levels: int = 4,
    name: str = "tiny-random",
    **generator_fields: Any,
) -> Pretrained:
    """16 tokens of 12 bits at 32 px, width 64; every weight random, so that nothing is accidentally the identity.

    levels: sides that the tokenizer works at, each half of the one before.
    """
    tokenizer = TokenizerConfig(
        image_size=side, base_channels=8, channel_multipliers=(1,) * levels, res_blocks=1, embed_dim=8, code_bits=12,
        norm_groups=8,
    )  # fmt: skip
    generator = GeneratorConfig(
        layers=layers, heads=2, dim=64, transcoder_blocks=1, transcoder_dim=32, classes=3, code_bits=12,
        grid=tokenizer.grid, ffn_multiple_of=64, **generator_fields,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    pre = Pretrained(
        ModelConfig(name=name, tokenizer=tokenizer, generator=generator), BinaryAutoencoder(tokenizer), BiGR(generator)
    )
    for module in (pre.tokenizer, pre.generator):
        module.eval()
        for key, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            scale_of_norm = 1.0 if weight.ndim == 1 and key.endswith("weight") else 0.0
            weight.data = noise * weight[0].numel() ** -0.5 if weight.ndim > 1 else noise * 0.1 + scale_of_norm
    return pre


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """Smooth random colors, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_pictures(folder: Path, count: int, *, first: int = 0, suffix: str = ".png") -> list[Path]:
    """Files 00000.png and so on, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}{suffix}" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        picture(number).save(path)
    return paths
