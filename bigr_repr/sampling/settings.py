"""Sampling settings and their schedules, frozen and validated. Knows nothing of tensors, models or images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigr_repr.config import GeneratorConfig, require
from bigr_repr.options import check_options, documented, option

RANKED_ORDERS = ("entropy", "margin", "reversed")
FIXED_ORDERS = ("random", "raster", "halton")
ORDERS = RANKED_ORDERS + FIXED_ORDERS
MASK_SCHEDULES = ("cosine", "linear")
GUIDANCE_SCHEDULES = ("constant", "linear")
GUMBEL_SCHEDULES = ("constant", "down", "up")
ALIASES = {"guidance_scale": "guidance", "num_inference_steps": "steps"}  # their names in diffusers

_MOST = 1000  # limit of guidance and noise: more only causes overflow


@documented
@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Everything except the seed that determines how codes are drawn. Defaults: the paper's for the L size.

    Raises ValueError on construction for an invalid value.
    """

    steps: int = option(
        20,
        "Number of iterations in which tokens are drawn, at most one per token; enrich runs this many in each of its "
        "four rounds.",
        usual="20; inpaint, outpaint, edit: 25; fast: 16; autoregressive: one per token",
        least=1,
    )
    order: str = option(
        "entropy",
        "Which tokens are drawn first: the most certain by entropy (the paper) or by margin (the released code), the "
        "least certain (reversed), random ones, row by row (raster; autoregressive models always) or evenly spread "
        "ones (halton). The last three are faster, because they need no confidence.",
        usual="entropy; fast: halton",
        choices=ORDERS,
    )
    schedule: str = option(
        "cosine",
        "How fast tokens are drawn: few at first (cosine) or equally many in each iteration (linear).",
        usual="cosine; inpaint, outpaint, edit: linear",
        choices=MASK_SCHEDULES,
    )
    diffusion_steps: int | None = option(
        None,
        "Diffusion steps that draw the bits of the tokens. No effect on a model trained without diffusion.",
        usual="the number that models info shows; fast: 25",
        least=1,
    )
    confidence_steps: int | None = option(
        None,
        "Rank the tokens by a shorter diffusion of this many steps, for orders entropy, margin and reversed; faster, "
        "but not the paper's sampler.",
        usual="rank by the full chain",
        least=1,
    )
    guidance: float | None = option(
        None,
        "Classifier-free guidance scale; 1 or less: off.",
        usual="the model's own (models info) with a class or prompt, else off",
        least=0,
        most=_MOST,
        remedy="1 or less turns guidance off",
    )
    guidance_schedule: str = option(
        "constant",
        "How guidance changes over the iterations: constant, or linear, growing from 1 to the full scale.",
        choices=GUIDANCE_SCHEDULES,
    )
    temperature: float = option(
        1.0,
        "Temperature of the bit probabilities; lower gives less variety.",
        least=1e-9,
        most=1e9,
        remedy="for the most likely bits use deterministic",
    )
    gumbel: float = option(
        0.17,
        "Scale of the random noise in the ranking of the tokens, for orders entropy, margin and reversed; 0: none.",
        least=0,
        most=_MOST,
    )
    gumbel_schedule: str = option(
        "constant",
        "How that noise changes over the iterations: constant, down to 0 or up from 0.",
        choices=GUMBEL_SCHEDULES,
    )
    deterministic: bool = option(False, "Use each bit's more likely value instead of drawing it at random.")

    def __post_init__(self) -> None:
        check_options(self)
        rule = f"order={self.order!r} ranks nothing by confidence; leave it out or choose {', '.join(RANKED_ORDERS)}"
        require(self.confidence_steps is None or self.ranked, "confidence_steps", self.confidence_steps, rule)

    @property
    def ranked(self) -> bool:
        """Whether the order ranks tokens by confidence in their bits."""
        return self.order in RANKED_ORDERS

    def check(self, config: GeneratorConfig, model: str = "this model") -> None:
        """Raise ValueError, naming the model, if this architecture cannot be sampled with these settings."""
        tokens, limit = config.tokens, config.train_timesteps
        if self.steps > tokens:
            raise ValueError(
                f"{self.steps} iterations are more than the {tokens} tokens of {model}'s grid; ask for at most {tokens}"
            )
        in_turn = self.order == "raster" and self.schedule == "linear" and self.steps == tokens
        if config.attention == "causal" and not in_turn:
            raise ValueError(
                f"order={self.order!r}, schedule={self.schedule!r}, {self.steps} iterations: {model} is autoregressive "
                f"and draws tokens one by one; leave these out, or give raster, linear and {tokens}"
            )
        for name in ("diffusion_steps", "confidence_steps"):
            value = getattr(self, name)
            if value is not None and value > limit:
                raise ValueError(f"{name}={value} is more than the {limit} steps that {model} was trained with")

    def resolved(self, config: GeneratorConfig, conditional: bool) -> SamplingSettings:
        """These settings with unset values replaced by the model's. They draw the same images.

        Raises ValueError for guidance without a condition.
        """
        guidance = self.guidance
        if not conditional and guidance is not None and guidance > 1:
            raise ValueError(
                f"guidance={guidance:g} has no class to guide toward; name one, give a text model a prompt, or leave "
                "guidance out"
            )
        if guidance is None:
            guidance = config.sample_guidance if conditional else 1.0
        steps = self.diffusion_steps or config.sample_timesteps
        return dataclasses.replace(self, guidance=guidance, diffusion_steps=steps)

    def guidance_at(self, iteration: int) -> float:
        """Guidance in iteration 1..steps of resolved settings. 1 or less: one pass."""
        if self.guidance is None:
            raise ValueError("guidance=None stands for the model's own; call `resolved` first")
        if self.guidance_schedule == "constant" or self.guidance <= 1:
            return self.guidance
        return 1 + (self.guidance - 1) * iteration / self.steps

    def gumbel_at(self, iteration: int) -> float:
        """Weight of the Gumbel noise in iteration 1..steps."""
        share = iteration / self.steps
        return self.gumbel * {"constant": 1.0, "down": 1 - share, "up": share}[self.gumbel_schedule]

    def masked_after(self, iteration: int, tokens: int) -> int:
        """How many of `tokens` initially masked tokens are still masked after iteration 0..steps."""
        if self.schedule == "linear":
            return tokens * (self.steps - iteration) // self.steps
        return int(tokens * math.cos(math.pi / 2 * iteration / self.steps))

    def with_changes(self, changes: Mapping[str, Any]) -> SamplingSettings:
        """These settings with some fields replaced, by their names or their `ALIASES`.

        Raises TypeError for an unknown field or one given by both names, ValueError for an invalid value.
        """
        given = dict(changes)
        for alias, name in ALIASES.items():
            if alias in given:
                if name in given:
                    raise TypeError(f"{alias} and {name} are the same setting; give one of them")
                given[name] = given.pop(alias)
        return dataclasses.replace(self, **given)


# Far less work than the paper's settings: an order that needs no confidence, so that only the chosen tokens pass
# through the transcoder, in fewer iterations and a shorter chain. benchmarks/generation.py measures the loss.
FAST = SamplingSettings(steps=16, order="halton", diffusion_steps=25)


def usual_settings(config: GeneratorConfig, usual: SamplingSettings) -> SamplingSettings:
    """Default or preset settings as far as the model supports them.

    Iterations and diffusion steps are limited to the model's. An autoregressive model draws token by token, so that of
    `usual` only the diffusion steps apply.
    """
    longest = usual.diffusion_steps and min(usual.diffusion_steps, config.sample_timesteps)
    if config.attention == "causal":
        return SamplingSettings(order="raster", schedule="linear", steps=config.tokens, diffusion_steps=longest)
    return dataclasses.replace(usual, steps=min(usual.steps, config.tokens), diffusion_steps=longest)


def chain_times(steps: int, train_timesteps: int) -> Sequence[int]:
    """The times t of a chain of `steps`, descending from T: floor(i (T-1) / (steps-1)) + 1.

    The last is 1, except in a single-step chain, which sees only pure noise. The division is exact: for 21 of
    the lengths up to T = 256 (18, 35, 36, 52, ...) the released code's floating-point product falls just below a whole
    number, and one of its times is one less.
    """
    if steps == 1:
        return (train_timesteps,)
    return tuple(i * (train_timesteps - 1) // (steps - 1) + 1 for i in reversed(range(steps)))
