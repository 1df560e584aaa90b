"""The sampler: fills the masked tokens of codes, iteration by iteration. Knows nothing of images, files or commands.

Generation, inpainting, interpolation and the rest differ only in the arguments of `sample_codes`: which tokens are
known, and which embedding conditions them. Source: BiGR (arXiv 2410.14672), section 3.3.
"""

# B batch, N tokens, K bits per token, D width, G guidance halves, R rows (masked tokens of any images)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigr_repr.models.bigr import BiGR
from bigr_repr.models.transformer import join_conditions
from bigr_repr.sampling.categorical import CategoricalChain
from bigr_repr.sampling.chain import Chain, make_chain
from bigr_repr.sampling.noise import Draws
from bigr_repr.sampling.orders import choose, fixed_scores, gumbel_noise
from bigr_repr.sampling.settings import SamplingSettings


class Iteration(NamedTuple):
    """The state passed to a callback after each iteration. The tensors are copies, on the model's device.

    iteration: 1..iterations; codes: (B, N, K) of 0/1, float32, zeros where masked; masked: (B, N) bool, tokens still to
    be drawn; images: which images of the whole call these B are, counted from 0.
    """

    iteration: int
    iterations: int
    codes: Tensor
    masked: Tensor
    images: tuple[int, ...]


Callback = Callable[[Iteration], object]


def sample_codes(
    model: BiGR,
    masked: Tensor,
    *,
    settings: SamplingSettings,
    draws: Draws,
    codes: Tensor | None = None,
    condition: Tensor | None = None,
    negative: Tensor | None = None,
    prior: Tensor | None = None,
    by_place: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Fill the masked tokens of a batch: (B, N, K) of 0/1, float32, on the model's device.

    masked: (B, N) bool, True for tokens to draw. The schedule counts only these tokens, per image, and tokens that are
    not masked never change.  codes: (B, N, K) of 0/1; optional if every token is masked.  condition: embeddings from
    `Transformer.condition_embedding`, mixed or not; None: "no class".  negative: an embedding for all images that
    guidance steers away from; None: "no class".  prior: (B, N, K) logits of other evidence about the bits of masked
    tokens; see `Chain`.  draws: the source of all randomness; see `Draws`.
    by_place: also draw numbers for known tokens, so that those of a token depend only on its position and the
    iteration, not on which others are still masked.

    An image's codes depend on its own mask, codes, condition and draws; the rest of the batch can affect them only
    through rounding in batched products. An iteration that unmasks nothing costs nothing.

    Raises ValueError for a misshapen argument, settings that the model does not support, guidance without a condition
    or a model in training mode; RuntimeError if the network's outputs are not finite.
    """
    settings.check(model.config)
    settings = settings.resolved(model.config, condition is not None)
    codes, masked = _check(model, codes, masked, condition)
    with torch.inference_mode():
        run = _SamplerRun(model, settings, draws, condition, codes, masked, prior, negative, by_place=by_place)
        for iteration in range(1, settings.steps + 1):
            run.advance(iteration)
            if callback is not None:
                report = run.codes.clone(), run.masked.clone()
                callback(Iteration(iteration, settings.steps, *report, tuple(range(len(masked)))))
    return run.codes.clone()  # outside inference mode: an ordinary tensor


def _check(model: BiGR, codes: Tensor | None, masked: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    """Copies of codes and mask on the model's device, or ValueError."""
    if model.training:
        raise ValueError("the generator is in training mode, where dropout is active; call generator.eval() first")
    tokens, bits, width = model.config.tokens, model.config.code_bits, model.config.dim
    if masked.ndim != 2 or masked.shape[1] != tokens or masked.dtype != torch.bool:
        raise ValueError(f"masked is {tuple(masked.shape)} of {masked.dtype}; expected (B, {tokens}) of torch.bool")
    batch = masked.shape[0]
    if codes is None:
        if not masked.all():
            raise ValueError("masked leaves some tokens known, but no codes are given; give codes (B, N, K)")
        codes = torch.zeros(batch, tokens, bits)
    if codes.shape != (batch, tokens, bits):
        raise ValueError(f"codes has shape {tuple(codes.shape)}; expected ({batch}, {tokens}, {bits})")
    if condition is not None:
        rows = "" if model.config.condition == "class" else ", P"
        if condition.ndim != 2 + bool(rows) or (len(condition), condition.shape[-1]) != (batch, width):
            raise ValueError(f"condition has shape {tuple(condition.shape)}; expected ({batch}{rows}, {width})")
    device = model.transformer.mask_tok.device
    masked = masked.to(device, copy=True)
    return codes.to(device, torch.float32).masked_fill(masked[:, :, None], 0), masked


class _SamplerRun:
    """One call of `sample_codes`: its state and what does not change between iterations."""

    def __init__(
        self,
        model: BiGR,
        settings: SamplingSettings,
        draws: Draws,
        condition: Tensor | None,
        codes: Tensor,
        masked: Tensor,
        prior: Tensor | None = None,
        negative: Tensor | None = None,
        *,
        by_place: bool = False,
    ) -> None:
        if prior is not None and prior.shape != codes.shape:
            raise ValueError(f"prior has shape {tuple(prior.shape)}; expected {tuple(codes.shape)}")
        self.by_place = by_place
        self.model, self.settings, self.draws = model, settings, draws
        self.codes, self.masked = codes, masked
        self.prior = None if prior is None else prior.to(codes)
        null = model.transformer.condition_embedding(None, len(masked))
        self.null = null if negative is None else negative.to(null).expand(len(masked), *negative.shape[1:])
        self.condition = null if condition is None else condition.to(null)
        self.start = masked.sum(dim=1).tolist()
        self.chain = make_chain(model, settings.diffusion_steps or model.config.sample_timesteps)
        short = settings.confidence_steps
        self.ranking_chain = self.chain if short is None else make_chain(model, short)
        self.scores: Tensor | None = None
        if not settings.ranked:
            everywhere = torch.ones_like(masked)
            uniform = self._uniform(everywhere, [masked.shape[1]] * len(masked), 1, 1).view(masked.shape)
            self.scores = fixed_scores(settings.order, model.config.grid, uniform)

    def _uniform(self, where: Tensor, counts: Sequence[int], blocks: int, width: int) -> Tensor:
        """Uniform numbers for the tokens `where` (B, N), `counts` per image: (blocks, R, width)."""
        if self.by_place:
            every = self.draws.uniform([where.shape[1]] * len(where), blocks, width)
            return every[:, where.flatten().cpu()].to(self.codes.device, non_blocking=True)
        return self.draws.uniform(counts, blocks, width).to(self.codes.device, non_blocking=True)

    def advance(self, iteration: int) -> None:
        """Unmask the scheduled number of tokens in each image."""
        settings = self.settings
        before, after = ([settings.masked_after(i, m) for m in self.start] for i in (iteration - 1, iteration))
        release = [b - a for b, a in zip(before, after, strict=True)]
        if not any(release):
            return
        # Images that unmask nothing now skip the chain: their state would not change.
        waits = [b if r else 0 for b, r in zip(before, release, strict=True)]
        taking_part = torch.tensor(release, device=self.masked.device)[:, None] > 0
        waiting = self.masked & taking_part
        guidance = settings.guidance_at(iteration)
        hidden = self._hidden(guidance > 1)
        predicted: Tensor | None = None
        if waits == release:
            chosen = waiting  # all that is left: nothing to rank
        elif self.scores is not None:
            chosen = choose(self.scores, waiting, release)
        else:
            ranked = self._predicted(self.ranking_chain, hidden, waiting, waits, guidance)
            chosen = choose(self._rank(ranked, waiting, waits, iteration), waiting, release)
            if self.ranking_chain is self.chain:
                predicted = ranked[chosen[waiting]]
        if predicted is None:
            predicted = self._predicted(self.chain, hidden, chosen, release, guidance)
        self.codes[chosen] = self.chain.bits(
            predicted, lambda width: self._uniform(chosen, release, 1, width)[0], deterministic=settings.deterministic
        )
        self.masked &= ~chosen

    def _hidden(self, guided: bool) -> Tensor:
        """The transcoder's inputs, with class and, if guided, without, in one pass: (G, B, N, D)."""
        if not guided:
            return self.model.transformer.condition(self.codes, self.condition, self.masked)[None]
        both = join_conditions(self.condition, self.null)
        hidden = self.model.transformer.condition(self.codes.repeat(2, 1, 1), both, self.masked.repeat(2, 1))
        return hidden.view(2, *self.codes.shape[:2], -1)

    def _predicted(
        self,
        chain: Chain | CategoricalChain,
        hidden: Tensor,
        where: Tensor,
        counts: Sequence[int],
        guidance: float,
    ) -> Tensor:
        """The chain's predictions for the tokens `where` (B, N), `counts` per image: (R, K) or (R, 2^K)."""
        bits = self.codes.shape[2]
        found = chain(
            hidden[:, where],
            lambda blocks: self._uniform(where, counts, blocks, bits),
            guidance=guidance,
            temperature=self.settings.temperature,
            prior=None if self.prior is None else self.prior[where],
        )
        if not bool(found.isfinite().all()):
            kind = str(hidden.dtype).removeprefix("torch.")
            remedy = "choose bfloat16 or float32" if hidden.dtype == torch.float16 else "are the weights damaged?"
            raise RuntimeError(f"the network's outputs are not finite in {kind}; {remedy}")
        return found

    def _rank(self, predicted: Tensor, waiting: Tensor, counts: Sequence[int], iteration: int) -> Tensor:
        """Scores of the waiting tokens, the rest lowest: (B, N)."""
        scores = self.chain.confidence(self.settings.order, predicted)
        weight = self.settings.gumbel_at(iteration)
        if weight > 0:
            scores = scores + weight * gumbel_noise(self._uniform(waiting, counts, 1, 1).view(-1))
        table = torch.full(waiting.shape, -torch.inf, device=scores.device)
        table[waiting] = scores
        return table
