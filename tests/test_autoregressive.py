"""Laws of causal attention: no token knows of later ones, every token is learned, and they are drawn in turn."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from sampling_model import GENERATOR, K, N, tiny_model
from torch import Tensor

from bigr_repr.config import GeneratorConfig, ModelConfig
from bigr_repr.sampling import generate, inpaint
from bigr_repr.sampling.chain import Chain
from bigr_repr.sampling.settings import FAST, SamplingSettings, usual_settings


def _codes(seed: int, rows: int = 2) -> Tensor:
    return torch.randint(2, (rows, N, K), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("place", [0, 5, N - 1])
@pytest.mark.slow
def test_what_a_token_is_drawn_from_depends_on_earlier_tokens_alone(place: int) -> None:
    model = tiny_model(attention="causal").generator
    codes, other = _codes(0), _codes(0)
    other[:, place] = 1 - other[:, place]
    with torch.no_grad():
        first, second = (model.condition(each, torch.tensor([1, 2]), None) for each in (codes, other))
    torch.testing.assert_close(first[:, : place + 1], second[:, : place + 1], rtol=0, atol=0)
    assert place == N - 1 or bool((first[:, place + 1 :] != second[:, place + 1 :]).any())


def test_training_and_inference_attend_alike() -> None:
    """With gradients another attention runs on a CPU."""
    model = tiny_model(attention="causal").generator
    with_gradients = model.condition(_codes(0), None, None)
    with torch.no_grad():
        torch.testing.assert_close(model.condition(_codes(0), None, None), with_gradients.detach())


def test_every_token_is_learned_whatever_is_masked() -> None:
    model, losses = tiny_model(attention="causal", objective="bce").generator, []
    for count in (1, N):
        masked = torch.zeros(2, N, dtype=torch.bool)
        masked[:, :count] = True
        losses.append(model.loss(_codes(0), masked=masked).item())
    assert losses[0] == losses[1]


def test_tokens_are_drawn_one_after_the_other_from_what_precedes() -> None:
    """In one pass over the finished codes every token has the probabilities that it was drawn from."""
    pre = tiny_model(attention="causal", objective="bce")
    seen: list[Tensor] = []
    generate(pre, [1], deterministic=True, guidance=1.0, callback=lambda it: seen.append(it.codes))
    assert len(seen) == N
    finished = seen[-1]
    with torch.no_grad():
        hidden = pre.generator.condition(finished, torch.tensor([1]), None)
        p = Chain(pre.generator.diffusion, 1)(hidden[:, 0:N].flatten(0, 1)[None], lambda n: torch.rand(n, N, K))
    assert torch.equal((p > 0.5).float(), finished[0])


def test_of_the_fast_preset_only_the_shorter_chains_apply() -> None:
    config = tiny_model(attention="causal").config.generator
    assert usual_settings(config, FAST) == SamplingSettings(
        order="raster", schedule="linear", steps=N, diffusion_steps=min(25, config.sample_timesteps)
    )
    pre, seen = tiny_model(attention="causal", objective="bce"), list[Tensor]()
    generate(pre, [1], settings=FAST, guidance=1.0, callback=lambda it: seen.append(it.codes))
    assert len(seen) == N


def test_painting_needs_no_settings_either() -> None:
    pre = tiny_model(attention="causal")
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[2:] = True
    side = pre.config.image_size
    assert inpaint(pre, torch.rand(3, side, side), mask).shape == (1, 3, side, side)


@pytest.mark.parametrize(
    "changes",
    [{"order": "entropy"}, {"steps": 4, "order": "raster", "schedule": "linear"}, {"schedule": "cosine"}],
)
def test_other_orders_are_refused_with_what_to_give(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="autoregressive"):
        generate(tiny_model(attention="causal"), [1], **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="autoregressive"):
        SamplingSettings(steps=N).check(dataclasses.replace(GENERATOR, attention="causal"))


def test_configurations_of_before_are_bidirectional() -> None:
    config = tiny_model().config.to_dict()
    del config["generator"]["attention"]
    assert ModelConfig.from_dict(config).generator.attention == "full"
    with pytest.raises(ValueError, match="full, causal"):
        GeneratorConfig(attention="sliding")
