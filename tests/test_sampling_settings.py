"""Settings are checked when made, schedules and orders do what they say, draws belong to their image."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from tiny_model import tiny_model

import bigr_repr as br
from bigr_repr.config import ModelConfig, preset
from bigr_repr.models.bigr import BiGR, masked_count
from bigr_repr.models.bits import bit_entropy
from bigr_repr.options import options_of
from bigr_repr.painting import Pasting
from bigr_repr.sampling import SamplingSettings
from bigr_repr.sampling.job import Job, Options, given_options
from bigr_repr.sampling.noise import SeededDraws
from bigr_repr.sampling.orders import bit_margin, choose, fixed_scores, gumbel_noise, halton_order
from bigr_repr.sampling.settings import ALIASES, FAST, chain_times


# ---- settings and schedules
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("steps", 0, "steps=0"),
        ("steps", 2.5, "whole number"),
        ("diffusion_steps", 0, "diffusion_steps=0"),
        ("order", "best", "entropy, margin, reversed, random, raster, halton"),
        ("schedule", "step", "cosine, linear"),
        ("guidance", -1, r"0\.\.1000"),
        ("guidance", 1e300, r"0\.\.1000"),
        ("guidance", math.nan, "guidance=nan"),
        ("guidance_schedule", "up", "constant, linear"),
        ("temperature", 0, r"1e-9\.\.1e9"),
        ("temperature", 1e-300, r"1e-9\.\.1e9"),
        ("temperature", math.inf, "temperature=inf"),
        ("gumbel", -0.1, "gumbel=-0.1"),
        ("gumbel", 1e30, r"0\.\.1000"),
        ("gumbel_schedule", "linear", "constant, down, up"),
        ("deterministic", 1, "True or False"),
    ],
)
def test_settings_are_checked_when_made(field: str, value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SamplingSettings(**{field: value})  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    settings = SamplingSettings(steps=np.int64(5), guidance=np.float32(2))  # type: ignore[arg-type]
    pasting = Pasting(window=np.int64(5), follow=np.float32(2), band=np.uint8(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(dataclasses.asdict(settings))) == dataclasses.asdict(
        SamplingSettings(steps=5, guidance=2.0)
    )
    assert json.loads(json.dumps(dataclasses.asdict(pasting))) == dataclasses.asdict(
        Pasting(window=5, follow=2.0, band=3)
    )
    for wrong in (True, np.bool_(1), np.float64(5), "5"):
        with pytest.raises(ValueError, match="window="):
            Pasting(window=wrong)  # type: ignore[arg-type]


def test_confidence_steps_need_an_order_that_ranks() -> None:
    with pytest.raises(ValueError, match="order='raster' ranks nothing"):
        SamplingSettings(order="raster", confidence_steps=4)


def test_keywords_are_the_fields_of_the_settings() -> None:
    fields = {field.name for field in dataclasses.fields(SamplingSettings)}
    others = {"seed", "first", "batch_size", "prompt", "negative", "settings", "callback", *ALIASES}
    assert Options.__annotations__.keys() == fields | others
    hints, ours = get_type_hints(Options), get_type_hints(SamplingSettings)
    for name in [*fields, *ALIASES]:
        assert hints[name] == ours[ALIASES.get(name, name)]


def test_the_names_of_diffusers_are_taken_too() -> None:
    changed = SamplingSettings().with_changes({"guidance_scale": 3.0, "num_inference_steps": 7})
    assert changed == SamplingSettings(guidance=3.0, steps=7)
    with pytest.raises(TypeError, match="guidance_scale and guidance are the same setting"):
        SamplingSettings().with_changes({"guidance_scale": 3.0, "guidance": 3.0})


def test_every_option_says_what_it_is_and_its_default_is_allowed() -> None:
    for kind in (SamplingSettings, Pasting):
        for name, each in options_of(kind).items():
            assert each.help.endswith(".")
            assert f"{name}: {each.help}" in (kind.__doc__ or "")
            assert each.kind in (int, float, str, bool)
            assert bool(each.choices) == (each.kind is str)
    with pytest.raises(ValueError, match=r"max_windows=0 is not allowed: it must be a whole number of at least 1"):
        Pasting(max_windows=0)


def test_what_is_left_open_is_left_to_the_library() -> None:
    assert given_options({"steps": None, "order": "raster", "blend": "none"}) == {"order": "raster"}
    assert given_options({"seed": 0}, fast=True) == {"seed": 0, "settings": FAST}


def test_schedules_start_full_end_empty_and_never_rise() -> None:
    for schedule in ("cosine", "linear"):
        for steps in (1, 3, 20, 64):
            settings = SamplingSettings(steps=steps, schedule=schedule)
            for tokens in (0, 1, 5, 64, 1024):
                counts = [settings.masked_after(i, tokens) for i in range(steps + 1)]
                assert counts[0] == tokens
                assert counts[-1] == 0
                assert counts == sorted(counts, reverse=True)
    assert [SamplingSettings(steps=20).masked_after(i, 256) for i in range(21)] == [
        masked_count(i, 20, 256) for i in range(21)
    ]
    assert [SamplingSettings(steps=4, schedule="linear").masked_after(i, 10) for i in range(5)] == [10, 7, 5, 2, 0]


def test_guidance_and_noise_schedules() -> None:
    linear = SamplingSettings(steps=4, guidance=3.0, guidance_schedule="linear")
    assert [linear.guidance_at(i) for i in (1, 2, 4)] == [1.5, 2.0, 3.0]
    config = dataclasses.replace(preset("tiny").generator, sample_guidance=4.0)
    for conditional, wanted in [(True, 4.0), (False, 1.0)]:
        assert SamplingSettings().resolved(config, conditional).guidance_at(1) == wanted
    assert SamplingSettings(guidance=2.0).resolved(config, True).guidance_at(1) == 2.0
    with pytest.raises(ValueError, match="call `resolved` first"):
        SamplingSettings().guidance_at(1)
    for name, wanted in [("constant", [1, 1, 1]), ("down", [0.75, 0.5, 0]), ("up", [0.25, 0.5, 1])]:
        settings = SamplingSettings(steps=4, gumbel=1.0, gumbel_schedule=name)
        assert [settings.gumbel_at(i) for i in (1, 2, 4)] == wanted


def test_a_model_may_have_guidance_of_its_own() -> None:
    usual = tiny_model()
    assert "sample_guidance" not in usual.config.to_dict()["generator"]  # as files of earlier versions
    described = usual.config.to_dict()
    described["generator"]["sample_guidance"] = 6.0
    config = ModelConfig.from_dict(described)
    assert config.to_dict() == described
    generator = BiGR(config.generator).eval()
    generator.load_state_dict(usual.generator.state_dict())
    own = br.Pretrained(config=config, tokenizer=usual.tokenizer, generator=generator)
    drawn = br.generate(own, [1], steps=4, seed=0)
    assert torch.equal(drawn, br.generate(usual, [1], steps=4, seed=0, guidance=6.0))
    assert not torch.equal(drawn, br.generate(usual, [1], steps=4, seed=0))


def test_chain_times_descend_from_noise_to_the_first_step() -> None:
    assert chain_times(256, 256) == tuple(range(256, 0, -1))
    assert chain_times(1, 256) == (256,)
    wanted = [int(x) + 1 for x in np.linspace(0, 1, 100) * 255][::-1]
    assert list(chain_times(100, 256)) == wanted


# ---- orders
def test_confidence_measures() -> None:
    sure, unsure = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.5, 0.5]]])
    assert bit_entropy(sure).item() == 0
    assert bit_entropy(unsure).item() == pytest.approx(1)
    a, b = torch.tensor([1.0, 0.5]), torch.tensor([0.75, 0.75])
    assert bit_margin(a) == bit_margin(b)
    assert bit_entropy(a) < bit_entropy(b)


def test_gumbel_noise_is_finite_and_has_the_gumbel_mean() -> None:
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    uniform[0] = 0
    noise = gumbel_noise(uniform)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)


def test_choose_takes_the_highest_of_the_masked_only() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    masked = torch.tensor([[False, True, True, True], [True, True, True, False]])
    assert choose(scores, masked, [2, 1]).int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert not choose(scores, masked, [0, 0]).any()
    assert torch.equal(choose(scores, masked, [4, 4]), masked)


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 27, 32])
def test_halton_order_is_a_permutation_that_spreads(grid: int) -> None:
    order = halton_order(grid)
    assert sorted(order) == list(range(grid * grid))
    if grid >= 4:  # the first half has cells in all four quarters, in nearly equal numbers
        half = torch.tensor(order[: grid * grid // 2])
        quarter = 2 * (half // grid >= grid / 2) + (half % grid >= grid / 2)
        counts = torch.bincount(quarter, minlength=4)
        share = torch.tensor([(grid + 1) // 2, grid // 2]).float()
        area = (share[:, None] * share[None, :]).flatten()
        assert (counts - area / 2).abs().max() <= 0.25 * area.max() + 1


def test_fixed_scores_of_a_partial_mask_keep_the_order() -> None:
    scores = fixed_scores("halton", 4, torch.zeros(1, 16))
    assert scores[0].argsort(descending=True).tolist() == list(halton_order(4))


# ---- draws
def test_draws_of_an_image_depend_on_its_own_counts_only() -> None:
    alone, beside = SeededDraws(3, [5]), SeededDraws(3, [2, 5])
    for count in (4, 0, 7):
        assert torch.equal(alone.uniform([count], 3, 2), beside.uniform([6, count], 3, 2)[:, 6:])


def test_images_and_seeds_have_their_own_noise() -> None:
    first = [SeededDraws(seed, [i]).uniform([4], 1, 1).flatten() for seed in range(10) for i in range(50)]
    assert len({tuple(row.tolist()) for row in first}) == 500


@pytest.mark.parametrize(("seed", "images"), [(-1, [0]), (0, [-1]), (True, [0]), (0.5, [0])])
def test_seeds_are_whole_numbers(seed: Any, images: list[int]) -> None:
    with pytest.raises(ValueError, match="whole number"):
        SeededDraws(seed, images)


@pytest.mark.parametrize("settings", [None, FAST])
def test_presets_fit_a_model_of_few_tokens(settings: SamplingSettings | None) -> None:
    pre = tiny_model(side=16)  # 4 tokens
    given: Options = {} if settings is None else {"settings": settings}
    assert Job(pre, SamplingSettings(), given).settings.steps == 4
    asked = Job(pre, SamplingSettings(), {**given, "steps": 5}).settings
    with pytest.raises(ValueError, match="5 iterations are more than the 4 tokens"):
        asked.check(pre.config.generator)
    assert br.generate(pre, labels=[0], diffusion_steps=2, **given).shape == (1, 3, 16, 16)


# By field: least and most that are allowed, and a little beyond.
LIMITS: dict[str, tuple[float, ...]] = {
    "steps": (1, 0),
    "diffusion_steps": (1, 0),
    "confidence_steps": (1, 0),
    "guidance": (0, -0.01, 1000, 1000.1),
    "gumbel": (0, -0.01, 1000, 1000.1),
}


@pytest.mark.parametrize("field", LIMITS)
def test_settings_go_up_to_their_limits(field: str) -> None:
    limits = LIMITS[field]
    for good, bad in zip(limits[::2], limits[1::2], strict=True):
        assert getattr(SamplingSettings(**{field: good}), field) == good  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{field}={bad}"):
            SamplingSettings(**{field: bad})  # type: ignore[arg-type]


def test_a_number_of_frames_is_the_same_on_the_command_line() -> None:
    from bigr_repr_cli.draw.interpolate import command

    usual = inspect.signature(br.interpolate).parameters["frames"].default
    assert inspect.signature(command).parameters["frames"].default == usual
