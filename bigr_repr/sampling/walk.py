"""A smooth path between conditions: first the ends, then the images between, tied to them by bits. Knows no labels."""

# B images of the way, L ends, N tokens, K bits per token, D width

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bigr_repr.sampling.job import Job
from bigr_repr.sampling.noise import SeededDraws

_HELD = 4.0  # logits by which every bit is pulled toward that of an end


def walk(job: Job, condition: Tensor, weights: Tensor) -> Tensor:
    """Codes (B, N, K) on the path between ends: condition (L, D) or (L, P, D), and weights (B, L), a row for each
    image.

    A row with a single 1 gives what `generate` draws for that end. In between, three things keep neighbors similar:
    noise is tied to a token's position, so it is the same in all images; so is the order (Halton's if the settings
    rank); and every bit is pulled toward that of one of the ends, switching one by one as the weights change. The model
    weighs this evidence against its own predictions. The mix of conditions keeps their norm.
    """
    tokens, ends = job.pre.config.generator.tokens, len(condition)
    drawn = job.filled(_all(ends, tokens), condition=condition, numbers=[job.first] * ends)
    pure = (weights == 1).any(dim=1) & ((weights != 0).sum(dim=1) == 1)
    codes = drawn[weights.argmax(dim=1).to(drawn.device)]
    rest = weights[~pure]
    if len(rest):
        prior = _HELD * (2 * _held(drawn, rest, SeededDraws(job.seed + (1 << 64), [job.first])) - 1)
        numbers = [job.first] * len(rest)
        mixed, masked = _mixed(condition.float(), rest), _all(len(rest), tokens)
        codes[(~pure).to(codes.device)] = _in_step(job).filled(
            masked, condition=mixed, prior=prior, numbers=numbers, by_place=True, before=ends
        )
    return codes


def _all(batch: int, tokens: int) -> Tensor:
    return torch.ones(batch, tokens, dtype=torch.bool)


def _in_step(job: Job) -> Job:
    """The same job with an order that is the same for all images."""
    if not job.settings.ranked:
        return job
    return job.with_changes(settings=dataclasses.replace(job.settings, order="halton", confidence_steps=None))


def _held(ends: Tensor, weights: Tensor, draws: SeededDraws) -> Tensor:
    """For each row of weights (B, L), bits of the ends (L, N, K), each end contributing its weight's share: (B, N, K).

    Each bit switches from one end to the next once, at its own weight.
    """
    shares = weights.clamp(min=0).to(ends)
    edges = (shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-9)).cumsum(dim=1)
    places = draws.uniform([ends.shape[1]], 1, ends.shape[2]).to(ends.device)  # (1, N, K)
    which = (places[..., None] >= edges[:, None, None, :-1]).sum(dim=-1)  # (B, N, K)
    held: Tensor = torch.take_along_dim(ends[None], which[:, None], dim=1)[:, 0]
    return held


def _mixed(conditions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums (B, ...) of conditions (L, ...), rescaled to their mean norm, because plain sums are shorter."""
    weights = weights.to(conditions)
    mixed = (weights @ conditions.flatten(1)).view(-1, *conditions.shape[1:])
    length = weights.abs() @ conditions.norm(dim=-1)
    scaled: Tensor = mixed * (length / mixed.norm(dim=-1).clamp(min=1e-9)).unsqueeze(-1)
    return scaled
