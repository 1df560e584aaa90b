"""A text model of random weights that computes in milliseconds."""

from __future__ import annotations

import dataclasses

import torch
from tiny_model import tiny_model

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.checkpoints.text_encoders import WordEncoder
from bigr_repr.models.bigr import BiGR


def text_model(seed: int = 0, *, attention: str = "full") -> Pretrained:
    """`tiny_model` with captions of at most 12 words; every weight random."""
    base = tiny_model(seed)
    encoder = WordEncoder()
    generator = dataclasses.replace(
        base.config.generator, condition="text", classes=1, caption_dim=encoder.width, caption_tokens=12,
        attention=attention,
    )  # fmt: skip
    config = dataclasses.replace(
        base.config, name="tiny-text", generator=generator, text_encoder=encoder.name,
        text_encoder_sha256=encoder.fingerprint,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    model = BiGR(generator).eval()
    for key, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        scale_of_norm = 1.0 if weight.ndim == 1 and key.endswith("weight") else 0.0
        weight.data = noise * weight[0].numel() ** -0.5 if weight.ndim > 1 else noise * 0.1 + scale_of_norm
    return Pretrained(config, base.tokenizer, model)
