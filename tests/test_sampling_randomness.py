"""Laws of what chance decides and what it does not: noise, chains, seeds, orders, defaults; and of half a file."""

from __future__ import annotations

import dataclasses
import errno
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampling_model import (
    GENERATOR,
    K,
    N,
    Threshold,
    Watch,
    all_masked,
    classes,
    counted_passes,
    some_codes,
    some_images,
    some_masks,
    tiny_model,
)
from torch import Tensor

from bigr_repr import enrich, enrich_photo, inpaint_photo
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.models.bits import bit_entropy
from bigr_repr.models.transcoder import BernoulliDiffusion
from bigr_repr.painting import series
from bigr_repr.painting.call import Painted
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.pictures import write_gif, write_npz, write_png
from bigr_repr.painting.series import generate_files
from bigr_repr.sampling import SamplingSettings, generate, interpolate, noise, sample_codes
from bigr_repr.sampling.applications import PAINTING, block_rounds
from bigr_repr.sampling.chain import Chain
from bigr_repr.sampling.noise import SeededDraws
from bigr_repr.sampling.orders import choose, halton_order
from bigr_repr.sampling.settings import FAST, chain_times

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return tiny_model()


class Recorded:
    """Draws from one generator, kept as they were given."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.given: list[Tensor] = []

    def uniform(self, counts: Sequence[int], blocks: int, width: int) -> Tensor:
        self.given.append(torch.rand(blocks, sum(counts), width, generator=self.generator))
        return self.given[-1]


def known_probabilities(monkeypatch: pytest.MonkeyPatch, pre: Pretrained, table: Tensor) -> None:
    """Make the model give each token the probabilities that the table (N, K) has for its place, come what may."""

    def place(codes: Tensor, condition: Tensor, masked: Tensor) -> Tensor:
        return torch.arange(N).float()[None, :, None].expand(len(codes), N, GENERATOR.dim)

    def look_up(self: Chain, condition: Tensor, uniform: Callable[[int], Tensor], **_: float) -> Tensor:
        return table[condition[0, :, 0].long()]

    monkeypatch.setattr(pre.generator.transformer, "condition", place)
    monkeypatch.setattr(Chain, "__call__", look_up)


def undecided(model: Pretrained) -> Pretrained:
    """A model for which every bit is one with probability exactly one half."""
    model.generator.diffusion.denoiser.final_layer.forward = lambda x, c: torch.zeros(*x.shape[:-1], K)  # type: ignore[method-assign]
    return model


# ---- noise on the confidences
@pytest.mark.parametrize("schedule", ["constant", "down", "up"])
def test_the_tokens_unmasked_are_those_of_highest_confidence_plus_scheduled_noise(
    pre: Pretrained, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    table = torch.rand(N, K, generator=torch.Generator().manual_seed(3))
    known_probabilities(monkeypatch, pre, table)
    confidence, starts, steps, weight = 1 - bit_entropy(table), [N, 9], 8, 0.3
    draws, watch, masked = Recorded(), Watch(), some_masks(starts)
    settings = SamplingSettings(steps=steps, schedule="linear", gumbel=weight, gumbel_schedule=schedule)
    sample_codes(pre.generator, masked, settings=settings, draws=draws, codes=some_codes(2), callback=watch)

    uniforms = iter(u.flatten() for u in draws.given if u.shape[2] == 1)
    left = [row.nonzero().flatten() for row in masked]
    for i in range(1, steps):  # the last iteration takes what is left
        share = {"constant": 1.0, "down": 1 - i / steps, "up": i / steps}[schedule]
        noises = next(uniforms).split([len(tokens) for tokens in left])
        for b, (tokens, u) in enumerate(zip(left, noises, strict=True)):
            scores = confidence[tokens] + weight * share * -torch.log(-torch.log(u))
            left[b] = tokens[scores.argsort()[: starts[b] * (steps - i) // steps]].sort().values
            assert watch.seen[i - 1].masked[b].nonzero().flatten().tolist() == left[b].tolist()
    assert next(uniforms, None) is None


def test_with_gumbel_noise_tokens_come_in_proportion_to_the_exponential_of_their_confidence(
    pre: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Gumbel-max law: the next token is drawn from softmax(confidence / gumbel) over those that are left."""
    table = torch.full((N, K), 0.5)
    table[3], table[6] = 0.1, 0.02
    known_probabilities(monkeypatch, pre, table)
    images, tokens, watch = 6000, [3, 6, 9], Watch()
    masked = torch.zeros(images, N, dtype=torch.bool)
    masked[:, tokens] = True
    settings = SamplingSettings(steps=3, schedule="linear", gumbel=0.4)
    codes = torch.zeros(images, N, K)
    sample_codes(pre.generator, masked, settings=settings, draws=Recorded(), codes=codes, callback=watch)
    orders = torch.stack([at.masked[:, tokens] for at in watch.seen]).sum(dim=0)  # 0, 1, 2: when it came
    weights = ((1 - bit_entropy(table[tokens])) / 0.4).exp()
    for first in range(3):
        chance = weights[first] / weights.sum()
        assert (orders[:, first] == 0).float().mean().item() == pytest.approx(chance.item(), abs=0.025)
        for second in {0, 1, 2} - {first}:
            both = chance * weights[second] / (weights.sum() - weights[first])
            found = ((orders[:, first] == 0) & (orders[:, second] == 1)).float().mean()
            assert found.item() == pytest.approx(both.item(), abs=0.025)


# ---- guidance and temperature
@pytest.mark.parametrize(
    ("extra", "chains"), [({}, [1, 2, 3, 4]), ({"order": "halton"}, [1, 2, 3, 4]), ({"confidence_steps": 2}, None)]
)
def test_every_chain_has_the_guidance_of_its_iteration_and_the_temperature(
    pre: Pretrained, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], chains: list[int] | None
) -> None:
    seen: list[tuple[float, float]] = []
    run = Chain.__call__

    def spy(self: Chain, condition: Tensor, uniform: Any, **how: Any) -> Tensor:
        seen.append((how["guidance"], how["temperature"]))
        return run(self, condition, uniform, **how)

    monkeypatch.setattr(Chain, "__call__", spy)
    settings = SamplingSettings(steps=4, guidance=3.0, guidance_schedule="linear", temperature=0.7, **extra)
    condition = classes(pre.generator, [1, 2])
    sample_codes(pre.generator, all_masked(2), settings=settings, draws=Recorded(), condition=condition)
    chains = chains or [1, 1, 2, 2, 3, 3, 4]  # first to rank, then for those chosen; the last ranks nothing
    assert seen == [(1 + 2 * i / 4, 0.7) for i in chains]


def test_at_a_very_high_temperature_every_bit_is_its_own_fair_coin(pre: Pretrained) -> None:
    draws = Recorded()
    settings = SamplingSettings(steps=1, temperature=1e9)
    codes = sample_codes(pre.generator, all_masked(1), settings=settings, draws=draws)
    assert torch.equal(codes[0], (draws.given[-1][0] < 0.5).float())


def test_at_a_temperature_near_zero_bits_do_not_depend_on_their_draws() -> None:
    """Of a model without diffusion, which draws nothing else."""
    sharp = tiny_model(objective="bce")
    settings = SamplingSettings(steps=4, order="raster", temperature=1e-6)
    some = [sample_codes(sharp.generator, all_masked(1), settings=settings, draws=Recorded(seed)) for seed in (0, 1)]
    assert torch.equal(*some)


# ---- the chain
def recorded_chain(
    diffusion: BernoulliDiffusion, condition: Tensor, steps: int, **options: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The chain's answer (R, K), its uniforms (S, R, K), and the noisy bits (R, K) that the denoiser saw."""
    generator, given, seen = torch.Generator().manual_seed(0), [], []

    def uniform(blocks: int) -> Tensor:
        given.append(torch.rand(blocks, condition.shape[1], K, generator=generator))
        return given[-1]

    handle = diffusion.denoiser.x_embedder.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] + 1) / 2))
    try:
        answer = Chain(diffusion, steps)(condition, uniform, **options)
    finally:
        handle.remove()
    return answer, torch.cat(given), seen


@pytest.mark.parametrize("steps", [1, 2, 16, 17, 20, 40])
@pytest.mark.parametrize(("objective", "guidance"), [("flip", 1.0), ("flip", 2.5), ("x0", 2.5)])
def test_a_chain_is_a_loop_that_takes_fresh_uniforms_at_every_step(objective: str, guidance: float, steps: int) -> None:
    diffusion, rows, total = tiny_model(objective=objective, train_timesteps=40).generator.diffusion, 30, 40
    halves = 2 if guidance > 1 else 1
    condition = torch.randn(halves, rows, GENERATOR.dim, generator=torch.Generator().manual_seed(1))
    answer, uniforms, seen = recorded_chain(diffusion, condition, steps, guidance=guidance, temperature=0.8)
    assert len(uniforms) == len(seen) == steps

    def clean(x: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            logits = [diffusion.denoiser(x, torch.full((rows,), t), half) for half in condition]
        mixed = logits[-1] + guidance * (logits[0] - logits[-1]) if guidance > 1 else logits[0]
        p = torch.sigmoid(mixed / 0.8)
        return torch.where(x == 1, 1 - p, p) if objective == "flip" else p

    times = chain_times(steps, total)
    x = (uniforms[0] < 0.5).float()
    for (t, s), u, noisy in zip(pairwise(times), uniforms[1:], seen[:-1], strict=True):
        assert torch.equal(noisy, x)
        prior = clean(x, t) * (1 - s / total) + s / total / 2
        stays = (1 + (total - t) / (total - s)) / 2
        one, zero = prior * torch.where(x == 1, stays, 1 - stays), (1 - prior) * torch.where(x == 0, stays, 1 - stays)
        x = (u < one / (one + zero)).float()
    assert torch.equal(seen[-1], x)
    torch.testing.assert_close(answer, clean(x, times[-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 20])
def test_the_bits_on_the_way_to_known_ones_are_as_often_noisy_as_the_forward_process_says(steps: int) -> None:
    """With x_0 certain: P(x_t = x_0) = (1 + k_t) / 2 at each time, and P(x_s != x_t) = (1 - k_t / k_s) / 2."""
    rows, total = 4000, 40
    diffusion = tiny_model(objective="x0", train_timesteps=total).generator.diffusion
    clean = torch.randint(0, 2, (rows, K), generator=torch.Generator().manual_seed(2)).float()
    diffusion.denoiser.final_layer.forward = lambda x, c: 200 * (2 * clean - 1)  # type: ignore[method-assign]
    _, _, seen = recorded_chain(diffusion, torch.zeros(1, rows, GENERATOR.dim), steps)
    keep = [1 - t / total for t in chain_times(steps, total)]
    for k, x in zip(keep, seen, strict=True):
        assert (x == clean).float().mean().item() == pytest.approx((1 + k) / 2, abs=0.02)
    for (k_t, k_s), (x_t, x_s) in zip(pairwise(keep), pairwise(seen), strict=True):
        assert (x_s != x_t).float().mean().item() == pytest.approx((1 - k_t / k_s) / 2, abs=0.02)


# ---- bits
def test_a_bit_that_is_wholly_undecided_is_taken_as_zero() -> None:
    model = undecided(tiny_model())
    settings = SamplingSettings(steps=3, deterministic=True)
    assert not sample_codes(model.generator, all_masked(2), settings=settings, draws=Recorded()).any()


def test_deterministic_bits_are_what_draws_of_one_half_give(pre: Pretrained) -> None:
    for model in (pre, undecided(tiny_model())):
        drawn, taken = (
            sample_codes(
                model.generator,
                all_masked(2),
                settings=SamplingSettings(steps=4, deterministic=flag),
                draws=Threshold(),
                condition=classes(model.generator, [1, 2]),
            )
            for flag in (False, True)
        )
        assert torch.equal(drawn, taken)


# ---- seeds
def test_seeds_whose_hashes_are_neighbors_share_no_noise() -> None:
    """The 32-bit hashes of these two seeds are 10 apart: images counted on from them would meet."""
    hashes = [int(np.random.SeedSequence(seed).generate_state(1)[0]) for seed in (10695, 12133)]
    assert hashes[1] - hashes[0] == 10
    noise = {
        tuple(SeededDraws(seed, [image]).uniform([4], 1, 1).flatten().tolist())
        for seed in (10695, 12133)
        for image in range(100)
    }
    assert len(noise) == 200


def noise_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> list[tuple[float, ...]]:
    """How each of the draws in a call begins."""
    begun: list[tuple[float, ...]] = []
    uniform = SeededDraws.uniform

    def record(self: SeededDraws, counts: Sequence[int], blocks: int, width: int) -> Tensor:
        given = uniform(self, counts, blocks, width)
        begun.append(tuple(given.flatten()[:4].tolist()))
        return given

    with monkeypatch.context() as patch:
        patch.setattr(SeededDraws, "uniform", record)
        call()
    return begun


def test_no_window_of_a_seed_has_the_noise_of_a_window_of_another(
    pre: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Image.new("RGB", (48, 16), "gray")
    noise: list[tuple[float, ...]] = []
    for seed in range(4):
        told: list[Painted] = []

        def paint(seed: int = seed, told: list[Painted] = told) -> None:
            inpaint_photo(pre, photo, np.ones((16, 48)), steps=1, diffusion_steps=1, seed=seed, on_step=told.append)

        noise += noise_of(monkeypatch, paint)
        assert len(told) > 2  # windows
    assert len(set(noise)) == len(noise) >= 4 * 3


def test_all_images_of_an_interpolation_have_the_noise_of_the_first_number(pre: Pretrained) -> None:
    for first in (0, 2):
        got = interpolate(pre, [3, 1], weights=[[1, 0], [0, 1], [1, 0]], first=first, steps=3)
        assert torch.equal(got[0], got[2])
        for image, label in ((0, 3), (1, 1)):
            assert torch.equal(got[image], generate(pre, [label], first=first, steps=3)[0])
    assert not torch.equal(got, interpolate(pre, [3, 1], weights=[[1, 0], [0, 1], [1, 0]], steps=3))


def test_each_enriched_image_goes_through_the_four_places_in_an_order_of_its_own(pre: Pretrained) -> None:
    images, watch = 12, Watch()
    enrich(pre, some_images(), count=images, steps=2, diffusion_steps=1, callback=watch, batch_size=images)
    halfway = [at.masked for at in watch.seen[::2]]  # two of a round's four tokens are still to be made
    tokens = torch.arange(N)
    place_of_token = 2 * (tokens // GENERATOR.grid % 2) + tokens % GENERATOR.grid % 2
    orders = [tuple(int(place_of_token[masked[i]].unique()) for masked in halfway) for i in range(images)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) > 4


def test_all_orders_of_the_four_places_are_equally_likely() -> None:
    images = 4800
    masks = block_rounds(all_masked(images), Recorded())
    first_block = torch.stack(masks)[:, :, [0, 1, 4, 5]].int()  # (round, image, place)
    orders = first_block.argmax(dim=2).T @ torch.tensor([64, 16, 4, 1])
    _, counts = orders.unique(return_counts=True)
    assert len(counts) == 24
    assert (counts - images / 24).abs().max() < 5 * (images / 24) ** 0.5


# ---- orders
def test_the_halton_order_is_van_der_corput_to_base_two_for_rows_and_three_for_columns() -> None:
    halves = [Fraction(0), Fraction(1, 2), Fraction(1, 4), Fraction(3, 4), Fraction(1, 8), Fraction(5, 8)]
    thirds = [Fraction(0), Fraction(1, 3), Fraction(2, 3), Fraction(1, 9), Fraction(4, 9), Fraction(7, 9)]
    cells = [4 * math.floor(4 * row) + math.floor(4 * column) for row, column in zip(halves, thirds, strict=True)]
    assert cells == [0, 9, 6, 12, 1, 11]
    assert list(halton_order(4)[:6]) == cells
    assert halton_order(2) == (0, 2, 1, 3)  # the points 0, 1, 2 and 5; 3 and 4 fall into cells met before


@pytest.mark.parametrize("values", [1, 3])
def test_of_equally_good_tokens_the_first_in_raster_order_are_chosen(values: int) -> None:
    tokens, generator = 1024, torch.Generator().manual_seed(0)
    scores = torch.randint(0, values, (3, tokens), generator=generator).float()
    masked = torch.rand(3, tokens, generator=generator) < 0.9
    chosen = choose(scores, masked, [100, 500, 777])
    for row, open_, picked, count in zip(scores, masked, chosen, [100, 500, 777], strict=True):
        best = sorted(open_.nonzero().flatten().tolist(), key=lambda token: (-row[token].item(), token))[:count]
        assert picked.nonzero().flatten().tolist() == sorted(best)


# ---- defaults
def test_presets_stay_what_they_are() -> None:
    """Pictures of a seed would be others, and the numbers that were measured would be another sampler's."""
    paper = {
        "steps": 20,
        "order": "entropy",
        "schedule": "cosine",
        "diffusion_steps": None,
        "confidence_steps": None,
        "guidance": None,
        "guidance_schedule": "constant",
        "temperature": 1.0,
        "gumbel": 0.17,
        "gumbel_schedule": "constant",
        "deterministic": False,
    }
    assert dataclasses.asdict(SamplingSettings()) == paper
    assert dataclasses.asdict(FAST) == paper | {"steps": 16, "order": "halton", "diffusion_steps": 25}
    assert dataclasses.asdict(PAINTING) == paper | {"steps": 25, "schedule": "linear"}


def some_photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(("side", "window", "band"), [(40, None, 3), (48, 24, 3), (3, None, 1)])
def test_a_band_is_half_a_token_unless_given(pre: Pretrained, side: int, window: int | None, band: int) -> None:
    """A window has four tokens a side and twice the mark's width; there is no band of less than a pixel."""
    mask = np.zeros((side, side), np.bool_)
    mask[: side // 3, : side // 3] = True

    def painted(band: int | None) -> Image.Image:
        pasting = Pasting(window=window, blend="feather", band=band)
        return inpaint_photo(pre, some_photo(side, side), mask, steps=1, diffusion_steps=1, pasting=pasting)[0]

    assert painted(None) == painted(band)
    for other in {band - 1, band + 1} - {0}:
        assert painted(None) != painted(other)


@pytest.mark.parametrize(("size", "window"), [((40, 24), 16), ((16, 30), 16), ((12, 10), 10)])
@pytest.mark.parametrize("blend", ["none", "feather"])
def test_enriching_sees_windows_of_the_canvas_own_side_or_all_of_a_smaller_photograph(
    pre: Pretrained, size: tuple[int, int], window: int, blend: str
) -> None:
    def enriched(pasting: Pasting | None) -> Image.Image:
        return enrich_photo(pre, some_photo(*size), steps=1, diffusion_steps=1, pasting=pasting)[0]

    wanted = enriched(Pasting(window=window, blend=blend))
    assert enriched(Pasting(blend=blend)) == wanted
    assert enriched(Pasting(window=window - 1, blend=blend)) != wanted
    if blend == "none":
        assert enriched(None) == wanted


# ---- series
def test_an_animation_asked_for_later_is_the_one_made_at_once(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures it shows are drawn again for it, the others are not, and every file stays what it was."""
    monkeypatch.setattr(series, "SHOWN", 3)
    once, later = tmp_path / "once", tmp_path / "later"
    generate_files(pre, once, [1, 2], count=5, animation=tmp_path / "once.gif", steps=2)
    generate_files(pre, later, [1, 2], count=5, steps=2)
    before = {path.name: path.read_bytes() for path in later.iterdir()}
    with counted_passes(pre) as passes:
        generate_files(pre, later, [1, 2], count=5, animation=tmp_path / "later.gif", steps=2)
    assert len(passes) == 2 * 3  # iterations of three pictures
    assert (tmp_path / "later.gif").read_bytes() == (tmp_path / "once.gif").read_bytes()
    assert {path.name: path.read_bytes() for path in later.iterdir()} == before
    assert {path.name: path.read_bytes() for path in once.iterdir()} == before


# ---- files
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("suffix", ["png", "gif", "npz"])
def test_a_file_whose_writing_fails_halfway_is_what_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException, there: bool
) -> None:
    path, image = tmp_path / f"out.{suffix}", Image.new("RGB", (4, 3))
    if there:
        path.write_bytes(b"old")

    def half(self: Image.Image, target: Any, *_: object, **__: object) -> None:
        if hasattr(target, "write"):
            target.write(b"half")
            target.flush()
        else:
            Path(target).write_bytes(b"half")
        raise error

    def two() -> Iterator[Image.Image]:
        yield image
        raise error

    monkeypatch.setattr(Image.Image, "save", half)
    write = {
        "png": lambda: write_png(path, image, {}),
        "gif": lambda: write_gif(path, [image, image], milliseconds=100, provenance={}),
        "npz": lambda: write_npz(path, two(), (2, 3, 4, 3)),
    }[suffix]
    with pytest.raises(type(error)):
        write()
    assert [file.name for file in tmp_path.iterdir()] == [path.name] * there
    if there:
        assert path.read_bytes() == b"old"


def test_images_half_of_all_seeds_apart_do_not_share_their_noise() -> None:
    seeds = {noise._generator(0, image).initial_seed() for image in (0, 1, 2**16, 2**31, 2**31 + 1, 2**32 - 1)}
    assert len(seeds) == 6
