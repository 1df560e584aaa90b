"""The binary transcoder: Bernoulli diffusion over the K bits of one token. Knows nothing of images, grids or files.

Parameter names follow the released weights. Source: BiGR (arXiv 2410.14672), section 3.2.
"""

# R rows (tokens of any images), K bits per token, D width of the condition, W width of the denoiser, T diffusion steps

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr_repr.config import GeneratorConfig


def time_features(t: Tensor, width: int = 256, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of t (R,), cosines first: (R, width), float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids, Linear, SiLU, Linear. (R,) -> (R, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(time_features(t).to(dtype))  # type: ignore[no-any-return]


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class DenoiserBlock(nn.Module):
    """x + gate * MLP(LN(x) * (1 + scale) + shift). (R, W) -> (R, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = _modulation(width, 3)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(c).chunk(3, dim=-1)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, h, 1 + scale)))


class FinalLayer(nn.Module):
    """Modulated layer norm and the projection to K logits. (R, W) -> (R, K)."""

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, bits)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.linear(torch.addcmul(shift, h, 1 + scale))  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """Predicts, for each bit, the logit of the objective from a noisy token, its time and its condition."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.transcoder_dim
        self.t_embedder = TimeEmbedding(width)
        self.x_embedder = nn.Linear(config.code_bits, width)
        self.c_embedder = nn.Linear(config.dim, width)
        self.blocks = nn.ModuleList(DenoiserBlock(width) for _ in range(config.transcoder_blocks))
        self.times = config.train_timesteps
        self.final_layer = FinalLayer(width, config.code_bits)
        self._initialize(config.objective)

    def _initialize(self, objective: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for modulated in [*self.blocks, self.final_layer]:
            nn.init.zeros_(modulated.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        if objective == "bce":  # its input is always 0: without a bias, no weight but the last bias had a gradient
            nn.init.normal_(self.x_embedder.bias)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Noisy bits (R, K) of 0/1, times t in 1..T (R,), conditions (R, D) -> logits (R, K).

        With fewer conditions, R / n, each is repeated n times.
        """
        c = self.c_embedder(condition)
        if len(c) != len(x_t):
            c = c.repeat(len(x_t) // len(c), 1)
        # The time embedding receives t - 1 (0..T-1). In training, rows are many more than times.
        if len(t) > self.times:
            c = c + F.embedding(t - 1, self.t_embedder(torch.arange(self.times, device=t.device)))
        else:
            c = c + self.t_embedder(t - 1)
        x = self.x_embedder((2 * x_t - 1).to(c.dtype))
        for block in self.blocks:
            x = block(x, c)
        return self.final_layer(x, c)  # type: ignore[no-any-return]


class BernoulliDiffusion(nn.Module):
    """The Bernoulli noise process, its loss and its reverse step, around a `Denoiser`.

    q(x_t = 1 | x_0) = k_t x_0 + (1 - k_t) / 2 with k_t = 1 - t / T: t = 0 is clean, t = T is a fair coin.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.steps = config.train_timesteps
        self.objective = config.objective
        self.denoiser = Denoiser(config)

    def keep(self, t: Tensor) -> Tensor:
        """k_t = 1 - t / T, float32, same shape as t."""
        return 1.0 - t.float() / self.steps

    def noise_probability(self, x_0: Tensor, t: Tensor) -> Tensor:
        """q(x_t = 1 | x_0): x_0 (R, K) of 0/1 and t (R,) in 0..T -> (R, K)."""
        k = self.keep(t)[:, None]
        return k * x_0.float() + (1 - k) / 2

    def clean_probability(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """P(x_0 = 1) from the denoiser's logits and the noisy bits it saw. (R, K), float32."""
        p = torch.sigmoid(logits.float())
        return x_t * (1 - p) + (1 - x_t) * p if self.objective == "flip" else p

    def step_probability(self, p_0: Tensor, x_t: Tensor, t: int, s: int) -> Tensor:
        """P(x_s = 1 | x_t) for s < t, one reverse step of any length in closed form. (R, K), float32.

        Bayes over the two values of x_s: [k_s p0 + (1 - k_s)/2] * [r x_t + (1 - r)/2] with r = k_t / k_s.
        """
        total = self.steps
        k_s = 1 - s / total
        r = (total - t) / (total - s)
        prior = k_s * p_0 + (1 - k_s) / 2
        likelihood = r * x_t + (1 - r) / 2
        one = prior * likelihood
        zero = (1 - prior) * (1 - likelihood)
        return one / (one + zero)

    def noisy_input(self, x_0: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
        """x_t (R, K), drawn with the given uniforms in [0, 1); with objective "bce" always 0.5, so no bit is seen."""
        if self.objective == "bce":
            return torch.full_like(x_0, 0.5)
        return (uniform < self.noise_probability(x_0, t)).to(x_0.dtype)

    def target(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """The training target of the logits: the flip x_0 XOR x_t, or the clean bits. (R, K)."""
        return (x_0 - x_t).abs() if self.objective == "flip" else x_0

    def loss(
        self, clean: Tensor, condition: Tensor, *, draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean of `loss_per_bit` over this many noisy versions of each row: (R, K), (R, D) -> scalar, float32."""
        clean = clean.repeat(draws, 1)
        t = torch.randint(1, self.steps + 1, (len(clean),), generator=generator, device=clean.device)
        uniform = torch.rand(clean.shape, generator=generator, device=clean.device)
        return self.loss_per_bit(clean, condition, t, uniform).mean()

    def loss_per_bit(self, x_0: Tensor, condition: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
        """Weighted BCE of every bit: x_0 (R, K), condition (R, D), t (R,) in 1..T, uniform (R, K) -> (R, K), float32.

        There may be fewer conditions, as in `Denoiser`. The weight (1-r) target + r (1-target) + 1/K, where r is the
        token's share of ones in the target, balances rare flips.
        """
        t = torch.full_like(t, self.steps) if self.objective == "bce" else t
        x_t = self.noisy_input(x_0, t, uniform)
        target = self.target(x_0, x_t).float()
        loss = F.binary_cross_entropy_with_logits(self.denoiser(x_t, t, condition).float(), target, reduction="none")
        share = target.mean(dim=-1, keepdim=True)
        return loss * ((1 - share) * target + share * (1 - target) + 1 / target.shape[-1])
