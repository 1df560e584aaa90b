"""BiGR: a transformer and a head combined into a generator of binary codes. Knows nothing of images or files.

Source: BiGR (arXiv 2410.14672), sections 3.2 and 3.4.
"""

# B batch, N tokens, K bits per token, D width, C classes

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from bigr_repr.config import GeneratorConfig
from bigr_repr.models.categorical import CategoricalHead
from bigr_repr.models.transcoder import BernoulliDiffusion
from bigr_repr.models.transformer import Captions, Transformer

_USUAL_BLOCK: Final = 12  # default block for features, if there are as many


def usual_block(layers: int) -> int:
    """The default block for features: 12, or the last of a shallower model."""
    return min(_USUAL_BLOCK, layers - 1)


def masked_count(step: int, steps: int, tokens: int) -> int:
    """How many of `tokens` are masked once `step` of `steps` is done: floor(tokens * cos(pi/2 * step / steps))."""
    return int(tokens * math.cos(math.pi / 2 * step / steps))


def draw_mask(batch: int, tokens: int, *, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Training masks (B, N), bool: one random step of the cosine schedule per batch, so the same count in every
    image."""
    step = int(torch.randint(tokens, (), generator=generator, device=device))
    count = max(1, masked_count(step, tokens, tokens))
    order = torch.rand(batch, tokens, generator=generator, device=device).argsort(dim=1)
    return order < count


class TrainingPass(NamedTuple):
    """The result of a training pass: the scalar `loss`, float32, and `states`, {layer: (B, n, D)}, of the tokens
    read."""

    loss: Tensor
    states: dict[int, Tensor]


Given: TypeAlias = Tensor | Captions  # labels or captions, one per image


def drop_labels(labels: Given, probability: float, no_class: int, *, generator: torch.Generator | None = None) -> Given:
    """Labels (B,), each replaced by `no_class` with this probability, as classifier-free guidance needs in training.

    Captions become null captions.
    """
    old, new = (labels.lengths, 0) if isinstance(labels, Captions) else (labels, no_class)
    dropped = torch.rand(old.shape, generator=generator, device=old.device) < probability
    kept = torch.where(dropped, new, old)
    return Captions(labels.features, kept) if isinstance(labels, Captions) else kept


class BiGR(nn.Module):
    """The generator: reads codes with some tokens masked, and returns hidden states, conditions for sampling, or a
    loss.

    Codes are 0/1 floats (B, N, K), tokens in raster order. Labels are int64 (B,) in 0..C-1, or C for "no class"; None
    means "no class" for all. Text models take `Captions` instead of labels; None means the null caption.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        if config.output_head == "categorical":
            self.categorical = CategoricalHead(config)
        else:
            self.diffusion = BernoulliDiffusion(config)

    @property
    def head(self) -> BernoulliDiffusion | CategoricalHead:
        """The part that predicts a token's bits from the transformer's output."""
        return self.categorical if self.config.output_head == "categorical" else self.diffusion

    def hidden_states(
        self,
        codes: Tensor,
        labels: Given | None = None,
        *,
        layers: Iterable[int] = (-1,),
        masked: Tensor | None = None,
    ) -> dict[int, Tensor]:
        """Hidden states after the given blocks, without final norm: {layer as given: (B, N, D)}.

        Blocks past the deepest requested one do not run. Negative layers count from the end. Raises ValueError for
        layers out of range. This is the representation that the paper probes (section 4.3).
        """
        index = {layer: self.config.layer_index(layer) for layer in layers}
        condition = self.transformer.condition_embedding(labels, codes.shape[0])
        states = self.transformer(codes, condition, masked, layers=index.values())
        return {layer: states[block] for layer, block in index.items()}

    def condition(self, codes: Tensor, labels: Given | None, masked: Tensor | None) -> Tensor:
        """The transcoder's condition for each token: codes (B, N, K), masked (B, N) bool -> (B, N, D)."""
        embedding = self.transformer.condition_embedding(labels, codes.shape[0])
        return self.transformer.condition(codes, embedding, masked)

    def loss(
        self,
        codes: Tensor,
        labels: Given | None = None,
        *,
        generator: torch.Generator | None = None,
        masked: Tensor | None = None,
        class_dropout: float = 0.1,
        diffusion_draws: int = 1,
    ) -> Tensor:
        """Training loss: mean weighted BCE over the bits of masked tokens, a scalar in float32; or the head's own.

        `masked` (B, N) is drawn from the cosine schedule unless given; a causal model reads and learns every token,
        regardless of masks. Labels become "no class" with probability `class_dropout`. `diffusion_draws` noisy versions
        of each masked token share one pass of the transformer.
        """
        device = codes.device
        if masked is None:
            masked = draw_mask(*codes.shape[:2], generator=generator, device=device)
        if labels is not None and class_dropout > 0:
            labels = drop_labels(labels, class_dropout, self.config.classes, generator=generator)
        return self(codes, labels, masked, generator=generator, diffusion_draws=diffusion_draws).loss  # type: ignore[no-any-return]

    def forward(
        self,
        codes: Tensor,
        labels: Given | None,
        masked: Tensor,
        *,
        generator: torch.Generator | None = None,
        diffusion_draws: int = 1,
        read: Tensor | None = None,
        layers: Collection[int] = (),
    ) -> TrainingPass:
        """The loss for given masks and labels: the part that distributed training wraps. See `loss`.

        `read` (n,), int64, in raster order: the pass reads and learns only these positions. `layers` are the blocks
        whose states to return.
        """
        causal, last = self.config.attention == "causal", self.config.layers - 1
        if causal and read is not None:
            raise ValueError("attention='causal' reads all tokens; leave read out")
        targets = torch.ones_like(masked) if causal else masked
        embedding = self.transformer.condition_embedding(labels, codes.shape[0])
        states = self.transformer.states(codes, embedding, None if causal else masked, {last, *layers}, read=read)
        if read is not None:
            codes, targets = codes[:, read], targets[:, read]
        condition = self.transformer.condition_of(states[last], read)[targets]
        loss = self.head.loss(codes[targets], condition, draws=diffusion_draws, generator=generator)
        return TrainingPass(loss, {layer: states[layer][:, -codes.shape[1] :] for layer in layers})
