"""A smooth path between conditions: the ends first, then what lies between, tied to them by bits. Knows no labels."""

# B images of the way, L ends, N tokens, K bits per token, D width

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bigr_repr.sampling.job import Job
from bigr_repr.sampling.noise import SeededDraws

_HELD = 4.0  # logits by which every bit is drawn towards that of an end


def walk(job: Job, condition: Tensor, weights: Tensor) -> Tensor:
    """Codes (B, N, K) on the path between ends: condition (L, D) or (L, P, D), and weights (B, L), a row for each
    image.

    A row of a single 1 gives what `generate` draws of that end. Between, three things keep neighbors alike: noise goes
    with a token's place, so that it is the same in all images; so does the order, Halton's where the settings rank; and
    every bit is drawn towards that of one of the ends, of which bits change one by one as the weights do. Of this
    evidence the model makes what it holds likely. The mix of conditions keeps their length.
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
    """The same with an order that is the same for all images."""
    if not job.settings.ranked:
        return job
    return job.with_changes(settings=dataclasses.replace(job.settings, order="halton", confidence_steps=None))


def _held(ends: Tensor, weights: Tensor, draws: SeededDraws) -> Tensor:
    """For each row of weights (B, L), bits of the ends (L, N, K), each from an end as often as its weight: (B, N, K).

    Each bit switches from one end to the next at a weight of its own, once.
    """
    shares = weights.clamp(min=0).to(ends)
    edges = (shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-9)).cumsum(dim=1)
    places = draws.uniform([ends.shape[1]], 1, ends.shape[2]).to(ends.device)  # (1, N, K)
    which = (places[..., None] >= edges[:, None, None, :-1]).sum(dim=-1)  # (B, N, K)
    held: Tensor = torch.take_along_dim(ends[None], which[:, None], dim=1)[:, 0]
    return held


def _mixed(conditions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums (B, ...) of conditions (L, ...), as long as these are in the mean: sums alone are shorter."""
    weights = weights.to(conditions)
    mixed = (weights @ conditions.flatten(1)).view(-1, *conditions.shape[1:])
    length = weights.abs() @ conditions.norm(dim=-1)
    scaled: Tensor = mixed * (length / mixed.norm(dim=-1).clamp(min=1e-9)).unsqueeze(-1)
    return scaled
