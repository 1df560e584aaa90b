"""How to sample: one frozen, checked set of settings and its schedules. Knows nothing of tensors, models or images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from bigr_repr.config import GeneratorConfig, is_count, require

RANKED_ORDERS = ("entropy", "margin", "reversed")
FIXED_ORDERS = ("random", "raster", "halton")
ORDERS = RANKED_ORDERS + FIXED_ORDERS
MASK_SCHEDULES = ("cosine", "linear")
GUIDANCE_SCHEDULES = ("constant", "linear")
GUMBEL_SCHEDULES = ("constant", "down", "up")
DEFAULT_GUIDANCE = 2.5


class SettingsKeywords(TypedDict, total=False):
    """The fields of `SamplingSettings` as keywords of the functions that sample."""

    steps: int
    order: str
    schedule: str
    diffusion_steps: int | None
    confidence_steps: int | None
    guidance: float | None
    guidance_schedule: str
    temperature: float
    gumbel: float
    gumbel_schedule: str
    deterministic: bool


_MOST = 1000  # of guidance and noise: more changes nothing but what overflows


def _is_within(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Everything that decides how codes are drawn, but for the seed.

    steps               iterations; each unmasks a share of the tokens. At most the number of tokens of the canvas.
    order               which tokens come first: "entropy" (the most certain, by binary entropy; the paper), "margin"
                        (the most certain, by |2p - 1|; the released code), "reversed" (the least certain, by entropy),
                        "random", "raster" (row by row) or "halton" (evenly spread; a low-discrepancy sequence).
                        The last three need no confidence, so only the tokens chosen pass through the transcoder.
    schedule            how many tokens are still masked after each iteration: "cosine" or "linear".
    diffusion_steps     steps of the transcoder's chain; None: as many as the model states. Has no effect on a model
                        trained without diffusion (objective "bce").
    confidence_steps    if given, a chain of this many steps ranks the tokens, and the full chain runs for the chosen
                        ones only. Faster, and no longer the paper's sampler. For the first three orders only.
    guidance            classifier-free guidance, 0 or more; 1 or less is one conditional pass. None: 2.5 where there
                        is a class to guide towards, else no guidance. At most 1000.
    guidance_schedule   "constant", or "linear": 1 + (guidance - 1) i / n in iteration i of n.
    temperature         divides the logits of the bits; 1e-9 to 1e9.
    gumbel              Gumbel noise added to the confidence of each token, 0 for none, at most 1000. The first three
                        orders only.
    gumbel_schedule     the noise in iteration i of n: "constant", "down" (times 1 - i / n) or "up" (times i / n).
    deterministic       take the chosen tokens' bits by threshold at 0.5 instead of drawing them.

    Raises ValueError when made with a value that is not allowed. Defaults: the paper's for the L size.
    """

    steps: int = 20
    order: str = "entropy"
    schedule: str = "cosine"
    diffusion_steps: int | None = None
    confidence_steps: int | None = None
    guidance: float | None = None
    guidance_schedule: str = "constant"
    temperature: float = 1.0
    gumbel: float = 0.17
    gumbel_schedule: str = "constant"
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "diffusion_steps", "confidence_steps"):
            value = getattr(self, name)
            optional = name != "steps" and value is None
            require(optional or is_count(value), name, value, "it must be a whole number of at least 1")
        choices = {
            "order": ORDERS,
            "schedule": MASK_SCHEDULES,
            "guidance_schedule": GUIDANCE_SCHEDULES,
            "gumbel_schedule": GUMBEL_SCHEDULES,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed, name, value, f"choose one of {', '.join(allowed)}")
        guided = self.guidance is None or _is_within(self.guidance, 0, _MOST)
        require(guided, "guidance", self.guidance, f"it must be a number in 0..{_MOST} (1 or less: no guidance)")
        require(_is_within(self.gumbel, 0, _MOST), "gumbel", self.gumbel, f"it must be a number in 0..{_MOST}")
        require(
            _is_within(self.temperature, 1e-9, 1e9),
            "temperature",
            self.temperature,
            "it must be a number in 1e-9..1e9; for the likeliest bits choose deterministic",
        )
        require(isinstance(self.deterministic, bool), "deterministic", self.deterministic, "it must be True or False")
        rule = f"order={self.order!r} ranks nothing by confidence; leave it out or choose {', '.join(RANKED_ORDERS)}"
        require(self.confidence_steps is None or self.ranked, "confidence_steps", self.confidence_steps, rule)

    @property
    def ranked(self) -> bool:
        """Whether the order ranks tokens by the confidence in their bits."""
        return self.order in RANKED_ORDERS

    def check(self, config: GeneratorConfig, model: str = "this model") -> None:
        """Raise ValueError, naming the model, when one of this architecture cannot be sampled with these settings."""
        tokens, limit = config.tokens, config.train_timesteps
        if self.steps > tokens:
            raise ValueError(
                f"{self.steps} iterations are more than the {tokens} tokens of {model}'s grid; ask for at most {tokens}"
            )
        in_turn = self.order == "raster" and self.schedule == "linear" and self.steps == tokens
        if config.attention == "causal" and not in_turn:
            raise ValueError(
                f"order={self.order!r}, schedule={self.schedule!r}, {self.steps} iterations: {model} is autoregressive "
                f"and draws one token after the other; leave these out, or give raster, linear and {tokens}"
            )
        for name in ("diffusion_steps", "confidence_steps"):
            value = getattr(self, name)
            if value is not None and value > limit:
                raise ValueError(f"{name}={value} is more than the {limit} steps that {model} was trained with")

    def guidance_at(self, iteration: int, conditional: bool) -> float:
        """Guidance in iteration 1..steps. 1 or less: one pass. Raises ValueError for guidance without a condition."""
        guidance = self.guidance
        if not conditional:
            if guidance is not None and guidance > 1:
                raise ValueError(
                    f"guidance={guidance:g} has no class to guide towards; name a class or leave guidance out"
                )
            return 1.0
        top = DEFAULT_GUIDANCE if guidance is None else guidance
        return top if self.guidance_schedule == "constant" else 1 + (top - 1) * iteration / self.steps

    def resolved(self, config: GeneratorConfig, conditional: bool) -> SamplingSettings:
        """These settings with the values that a model uses where they leave one open. They draw the same images."""
        return dataclasses.replace(
            self,
            guidance=self.guidance if self.guidance is not None else DEFAULT_GUIDANCE if conditional else 1.0,
            diffusion_steps=self.diffusion_steps or config.sample_timesteps,
        )

    def gumbel_at(self, iteration: int) -> float:
        """Weight of the Gumbel noise in iteration 1..steps."""
        share = iteration / self.steps
        return self.gumbel * {"constant": 1.0, "down": 1 - share, "up": share}[self.gumbel_schedule]

    def masked_after(self, iteration: int, tokens: int) -> int:
        """How many of `tokens` that were masked at the start are still masked after iteration 0..steps."""
        if self.schedule == "linear":
            return tokens * (self.steps - iteration) // self.steps
        return int(tokens * math.cos(math.pi / 2 * iteration / self.steps))

    def with_changes(self, changes: Mapping[str, Any]) -> SamplingSettings:
        """These settings with some fields replaced. Raises TypeError for a field that does not exist."""
        return dataclasses.replace(self, **changes)


# Far less work than the paper's settings: an order that needs no confidence, so that only the tokens chosen pass
# through the transcoder, in fewer iterations and a shorter chain. benchmarks/generation.py measures what it costs.
FAST = SamplingSettings(steps=16, order="halton", diffusion_steps=25)


def usual_settings(config: GeneratorConfig, usual: SamplingSettings) -> SamplingSettings:
    """What a model is sampled with unless told otherwise: `usual`, but token after token if it is autoregressive."""
    if config.attention == "causal":
        return SamplingSettings(order="raster", schedule="linear", steps=config.tokens)
    return usual


def chain_times(steps: int, train_timesteps: int) -> Sequence[int]:
    """The times t at which a chain of `steps` looks, descending from T: floor(i (T-1) / (steps-1)) + 1.

    The last is 1, but for a chain of a single step, which looks once at pure noise. The division is exact: for 21 of
    the lengths up to T = 256 (18, 35, 36, 52, ...) the released code's floating-point product falls just below a whole
    number, and one of its times is one less.
    """
    if steps == 1:
        return (train_timesteps,)
    return tuple(i * (train_timesteps - 1) // (steps - 1) + 1 for i in reversed(range(steps)))
