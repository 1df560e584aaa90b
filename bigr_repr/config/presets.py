"""Architectures by name."""

from __future__ import annotations

import dataclasses
import re

from bigr_repr.config.architecture import GeneratorConfig, ModelConfig, TokenizerConfig

_TINY_TOKENIZER = TokenizerConfig(
    image_size=64,
    base_channels=16,
    channel_multipliers=(1, 2, 4, 8),
    res_blocks=1,
    embed_dim=64,
    attention_resolutions=(8,),
    norm_groups=4,
)

# 16 tokens of 16 pixels each: for simple pictures, in minutes on a CPU.
_MINI_TOKENIZER = TokenizerConfig(
    image_size=64,
    base_channels=8,
    channel_multipliers=(1, 2, 4, 8, 8),
    res_blocks=1,
    embed_dim=64,
    code_bits=32,
    attention_resolutions=(4,),
    norm_groups=4,
)

# Architectures by name; a new size is one more entry. L, XL, XXL and L-512: BiGR (arXiv 2410.14672), table 7.
_PRESETS: dict[str, tuple[TokenizerConfig, GeneratorConfig]] = {
    "mini": (
        _MINI_TOKENIZER,
        GeneratorConfig(
            layers=8,
            heads=4,
            dim=128,
            transcoder_blocks=2,
            transcoder_dim=128,
            grid=4,
            code_bits=32,
            classes=10,
            ffn_multiple_of=64,
        ),
    ),
    "tiny": (
        _TINY_TOKENIZER,
        GeneratorConfig(
            layers=16,
            heads=3,
            dim=192,
            transcoder_blocks=3,
            transcoder_dim=192,
            grid=8,
            classes=200,
            ffn_multiple_of=64,
        ),
    ),
    "L": (TokenizerConfig(), GeneratorConfig()),
    "XL": (TokenizerConfig(), GeneratorConfig(layers=36, heads=20, dim=1280, transcoder_blocks=6, transcoder_dim=1280)),
    "XXL": (
        TokenizerConfig(),
        GeneratorConfig(layers=48, heads=24, dim=1536, transcoder_blocks=8, transcoder_dim=1536),
    ),
    "L-512": (TokenizerConfig(image_size=512), GeneratorConfig(transcoder_blocks=6, transcoder_dim=1280, grid=32)),
}


def preset_names() -> tuple[str, ...]:
    """Names that `preset` takes; each also with a code width, as in "L-d24"."""
    return tuple(_PRESETS)


def preset(name: str, *, code_bits: int | None = None, classes: int | None = None) -> ModelConfig:
    """A named architecture, optionally with K in the name ("L-d16", "XXL-d32", "L-512-d32").

    Raises ValueError for an unknown name. Released code widths: 24 and 32; the paper also trains 16 and 20.
    """
    match = re.fullmatch(r"(?:bigr-)?(?P<size>.+?)(?:-d(?P<bits>\d+))?", name)
    if match is None or match["size"] not in _PRESETS:
        raise ValueError(f"preset={name!r} is unknown; choose one of {', '.join(_PRESETS)}, with or without -d<bits>")
    tokenizer, generator = _PRESETS[match["size"]]
    bits = code_bits or (int(match["bits"]) if match["bits"] else generator.code_bits)
    return ModelConfig(
        name=f"bigr-{match['size']}-d{bits}",
        tokenizer=dataclasses.replace(tokenizer, code_bits=bits),
        generator=dataclasses.replace(generator, code_bits=bits, classes=classes or generator.classes),
    )
