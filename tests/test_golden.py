"""Official weights give official numbers: against tensors that the released code computed, on random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained, load_official

GOLDEN = Path(__file__).parent / "golden"

INPUTS = {
    "tok.image", "codes", "labels", "mask", "transcoder.x_t", "transcoder.t", "posterior.steps", "loss.t",
    "loss.uniform",
    *(f"posterior.{i}.{name}" for i in range(4) for name in ("p0", "x_t")),
}  # fmt: skip
SAMPLED = {"transcoder.probs.cfg2.5", "generate.codes.iters4", "generate.codes.iters8", "generate.interpolated.codes"}
EXACT = {"tok.bits"}


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def model() -> Pretrained:
    return load_official(
        tokenizer=GOLDEN / "binaryae_ema.th", generator=GOLDEN / "bigr.pt", image_size=64, heads=4, name="golden"
    )


def _tokenizer(model: Pretrained, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    image = expected["tok.image"]
    return {
        "tok.bit_probabilities": model.tokenizer.bit_probabilities(image),
        "tok.bits": model.tokenizer.encode(image),
        "tok.decoded": model.tokenizer.decode(expected["tok.bits"]),
    }


def _transformer(model: Pretrained, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    codes, labels, mask = expected["codes"], expected["labels"], expected["mask"]
    found = {}
    for kind, given in (("null", None), ("class", labels)):
        states = model.generator.hidden_states(codes, given, layers=(0, 1, 2))
        found |= {f"features.{kind}.layer{layer}": state for layer, state in states.items()}
    halves = [model.generator.condition(codes, given, mask) for given in (labels, None)]
    return found | {"cond": torch.cat(halves)}


def _schedule(model: Pretrained, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    diffusion = model.generator.diffusion
    t = torch.arange(diffusion.steps + 1)
    half, one = torch.full((1, 1), 0.5), torch.ones(1, 1)
    # From an even prior and a noisy 1, one step gives (1 + beta) / 2.
    steps = [2 * diffusion.step_probability(half, one, int(i), int(i) - 1) - 1 for i in t[1:]]
    return {
        "schedule.k_final": diffusion.keep(t),
        "schedule.b_final": diffusion.noise_probability(torch.zeros(len(t), 1), t)[:, 0],
        "schedule.beta": torch.cat([torch.ones(1), *(step[0] for step in steps)]),
    }


def _transcoder(model: Pretrained, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    diffusion = model.generator.diffusion
    codes, mask, uniform = expected["codes"], expected["mask"], expected["loss.uniform"]
    rows, condition = codes.flatten(0, 1), expected["cond"][: len(codes)].flatten(0, 1)
    found = {
        # The recorded t is what the time features are made of: one less.
        "transcoder.logits": diffusion.denoiser(expected["transcoder.x_t"], expected["transcoder.t"] + 1, condition)
    }
    for i, (t, s) in enumerate(expected["posterior.steps"].tolist()):
        given = expected[f"posterior.{i}.p0"], expected[f"posterior.{i}.x_t"]
        found[f"posterior.{i}.p_s"] = diffusion.step_probability(*given, t, s)
    t = expected["loss.t"]
    loss = diffusion.loss_per_bit(rows, condition, t, uniform).view_as(codes)
    return found | {
        "loss.bce_per_bit": loss,  # recorded with its weights: the same tensor as the next
        "loss.per_bit": loss,
        "loss.masked_mean": loss[mask].mean(),
    }


@pytest.fixture(scope="module")
def found(model: Pretrained, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        parts = [part(model, expected) for part in (_tokenizer, _transformer, _schedule, _transcoder)]
    return {name: tensor for part in parts for name, tensor in part.items()}


def test_every_recorded_tensor_is_compared(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(expected) - INPUTS - SAMPLED == set(found)


NAMES = sorted(set(load_file(GOLDEN / "expected.safetensors")) - INPUTS - SAMPLED)


@pytest.mark.parametrize("name", NAMES)
def test_official_weights_give_official_numbers(
    name: str, found: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    tolerance = 0.0 if name in EXACT else 1e-4
    torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


def test_the_architecture_is_read_from_the_files(model: Pretrained) -> None:
    tokenizer, generator = model.config.tokenizer, model.config.generator
    assert (tokenizer.image_size, tokenizer.channel_multipliers, tokenizer.res_blocks) == (64, (1, 1, 1, 1, 1), 1)
    assert (generator.layers, generator.heads, generator.dim, generator.classes) == (3, 4, 64, 10)
    assert (generator.transcoder_blocks, generator.transcoder_dim, generator.train_timesteps) == (2, 48, 256)
