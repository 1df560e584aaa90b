"""A tiny model with random weights, and what the sampling tests share. Knows nothing of the laws they state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.config import GeneratorConfig, ModelConfig, TokenizerConfig
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.sampling import Iteration, SamplingSettings, sample_codes
from bigr_repr.sampling.noise import SeededDraws

GENERATOR = GeneratorConfig(
    layers=2, heads=2, dim=32, transcoder_blocks=1, transcoder_dim=16, classes=5, code_bits=6, grid=4,
    train_timesteps=16, sample_timesteps=6, ffn_multiple_of=16,
)  # fmt: skip
TOKENIZER = TokenizerConfig(
    image_size=16, base_channels=8, channel_multipliers=(1, 1, 1), res_blocks=1, embed_dim=8, code_bits=6,
    attention_resolutions=(4,), norm_groups=4,
)  # fmt: skip
N, K = GENERATOR.tokens, GENERATOR.code_bits


def tiny_model(**changes: Any) -> Pretrained:
    """The same random weights every time, at which every part matters: nothing starts at zero."""
    config = dataclasses.replace(GENERATOR, **changes)
    tokenizer = dataclasses.replace(TOKENIZER, image_size=TOKENIZER.downsample * config.grid)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        encoder, generator = BinaryAutoencoder(tokenizer).eval(), BiGR(config).eval()
        for parameter in [*encoder.parameters(), *generator.parameters()]:
            if parameter.ndim > 1:
                parameter.normal_().mul_(2 * parameter.flatten(1).shape[1] ** -0.5)
    return Pretrained(ModelConfig(name="test", tokenizer=tokenizer, generator=config), encoder, generator)


class Threshold:
    """Draws that turn every Bernoulli draw into a threshold at one half."""

    def uniform(self, counts: Sequence[int], blocks: int, width: int) -> Tensor:
        return torch.full((), 0.5).expand(blocks, sum(counts), width)


class Watch:
    """A callback that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[Iteration] = []

    def __call__(self, at: Iteration) -> None:
        self.seen.append(at)

    @property
    def masked(self) -> list[list[int]]:
        """Masked tokens of each image after each iteration."""
        return [at.masked.sum(dim=1).tolist() for at in self.seen]


def classes(model: BiGR, labels: Sequence[int]) -> Tensor:
    return model.transformer.condition_embedding(torch.tensor(labels), len(labels)).detach()


def all_masked(batch: int, tokens: int = N) -> Tensor:
    return torch.ones(batch, tokens, dtype=torch.bool)


def some_codes(batch: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2, (batch, N, K), generator=torch.Generator().manual_seed(seed)).float()


def some_masks(counts: Sequence[int], seed: int = 0) -> Tensor:
    """Masks with so many tokens each, at random places."""
    ranks = torch.rand(len(counts), N, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return ranks < torch.tensor(counts)[:, None]


def draw(
    pre: Pretrained, labels: Sequence[int] | None, masked: Tensor, images: Sequence[int] | None = None, **options: Any
) -> Tensor:
    """`sample_codes` with the draws of a seed, four iterations unless told."""
    rest = {name: options.pop(name) for name in ("codes", "callback") if name in options}
    seed = options.pop("seed", 0)
    return sample_codes(
        pre.generator,
        masked,
        settings=SamplingSettings(**{"steps": 4, **options}),
        draws=SeededDraws(seed, range(len(masked)) if images is None else images),
        condition=None if labels is None else classes(pre.generator, labels),
        **rest,
    )


def some_images(batch: int = 1, side: int = 16) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


@contextmanager
def counted_rows(pre: Pretrained) -> Iterator[list[int]]:
    """Rows of each of the denoiser's steps inside the block, the guidance halves counted once."""
    rows: list[int] = []
    embedder = pre.generator.diffusion.denoiser.x_embedder
    handle = embedder.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def counted_passes(pre: Pretrained) -> Iterator[list[int]]:
    """Batch size of each of the transformer's passes inside the block."""
    sizes: list[int] = []
    handle = pre.generator.transformer.layers[0].register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    try:
        yield sizes
    finally:
        handle.remove()
