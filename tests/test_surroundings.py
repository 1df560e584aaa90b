"""Laws of what surrounds a hole: colors continued into it, paintings fitted to them, pictures drawn as recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sampling_model import K, N, tiny_model
from torch import Tensor

from bigr_repr import generate, inpaint_photo, interpolate
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.painting import recorded_options
from bigr_repr.painting.files import PhotoFile, inpaint_file
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.pictures import read_provenance
from bigr_repr.painting.windows import Window, box_mask, usual_side, windows
from bigr_repr.sampling import SamplingSettings, job, sample_codes, walk
from bigr_repr.sampling.canvas import bit_logits, encode
from bigr_repr.sampling.noise import SeededDraws
from bigr_repr.sampling.surroundings import Surroundings

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"
SHORT: Any = {"steps": 2, "diffusion_steps": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return tiny_model()


def some_hole(seed: int, side: int = 32) -> NDArray[np.bool_]:
    random = np.random.default_rng(seed)
    left, top = (int(n) for n in random.integers(0, side - 4, 2))
    hole = box_mask(side, side, (left, top, left + int(random.integers(2, 20)), top + int(random.integers(2, 20))))
    hole[random.integers(0, side), random.integers(0, side)] = True
    return hole


def canvases(value: NDArray[Any]) -> Tensor:
    """One canvas of (S, S) values in all three channels."""
    return torch.from_numpy(np.broadcast_to(value, (1, 3, *value.shape)).copy()).float()


def ramp(side: int = 32) -> NDArray[Any]:
    rows, columns = np.mgrid[:side, :side] / side
    return 0.2 + 0.3 * rows + 0.2 * columns  # type: ignore[no-any-return]


# ---- a hole and what is around it
@pytest.mark.parametrize("seed", range(6))
def test_known_pixels_stay_and_the_hole_is_within_their_range(seed: int) -> None:
    hole = some_hole(seed)
    near, hidden = Surroundings(hole, 8), torch.from_numpy(hole)
    image = canvases(np.random.default_rng(seed).uniform(0.3, 0.6, (32, 32))).masked_fill(hidden, 1.0)
    filled = near.continued(image)
    assert torch.equal(filled.masked_fill(hidden, 1.0), image)
    # What is to be replaced counts for nothing.
    assert torch.equal(filled, near.continued(image.masked_fill(hidden, 0.0)))
    flat = near.continued(torch.full((1, 3, 32, 32), 0.4).masked_fill(hidden, 0.0))
    assert (flat - 0.4).abs().max() < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_an_error_in_tone_is_undone_and_detail_kept(seed: int) -> None:
    """Whatever smooth tone a painting is wrong by, inside it comes back to the surroundings, detail and all."""
    hole = some_hole(seed)
    near, image, detail = Surroundings(hole, 8), canvases(ramp()), np.zeros((32, 32))
    rows, columns = np.nonzero(hole)
    detail[rows[0], columns[0]] = 0.1
    wrong = near.fitted(canvases(ramp() - 0.15 + detail), image)
    away = (wrong - canvases(ramp() + detail)).abs()
    assert away.masked_fill(torch.from_numpy(~hole), 0.0).max() < 0.02


def test_trust_is_the_visible_share_and_falls_with_distance() -> None:
    hole = box_mask(32, 32, (8, 8, 32, 32))
    hole[8:10, 8:12] = False  # half of one token's pixels
    trust = {follow: Surroundings(hole, 8).trust(follow).view(8, 8) for follow in (0.0, 1.0, 1e3)}
    assert torch.equal(trust[0.0][:2], torch.ones(2, 8))
    assert trust[0.0][2, 2] == 0.5
    assert trust[0.0][2:, 2:].sum() == 0.5
    assert (trust[1.0][3:, 3:].diagonal().diff() < 0).all()
    assert (trust[1e3] > 0.98).all()


def test_a_smooth_painting_has_the_smallest_steps_at_the_border() -> None:
    near, image = Surroundings(box_mask(32, 32, (8, 8, 20, 20)), 8), canvases(ramp())
    painted = torch.cat([image, image + 0.1])
    steps = near.border_steps(painted, image.expand(2, -1, -1, -1))
    assert steps[1] > 4 * steps[0]


@pytest.mark.parametrize("fill", [True, False])
def test_a_hole_of_all_or_nothing_has_no_surroundings(fill: bool) -> None:
    with pytest.raises(ValueError, match="it must leave some and mark some"):
        Surroundings(np.full((8, 8), fill), 4)


# ---- evidence
def test_evidence_without_weight_changes_nothing_and_with_all_decides(pre: Pretrained) -> None:
    masked = torch.ones(1, N, dtype=torch.bool)
    settings = SamplingSettings(steps=2, diffusion_steps=2)

    def drawn(prior: Tensor | None) -> Tensor:
        return sample_codes(pre.generator, masked, settings=settings, draws=SeededDraws(0, [0]), prior=prior)

    wanted = (torch.rand(1, N, K, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    assert torch.equal(drawn(None), drawn(torch.zeros(1, N, K)))
    assert torch.equal(drawn((wanted - 0.5) * 200), wanted)
    with pytest.raises(ValueError, match=r"prior has shape \(1, 3, 6\)"):
        drawn(torch.zeros(1, 3, K))


def test_bits_are_those_above_logits_of_zero(pre: Pretrained) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(encode(pre, images), (bit_logits(pre, images) > 0).float())


# ---- a way between classes
def test_a_smooth_way_goes_in_small_steps() -> None:
    """Of a model that is not sure of itself, as trained ones are, neighbors share most bits that the ends differ in."""
    pre, options = tiny_model(), {"steps": 4, "diffusion_steps": 4, "seed": 5}
    with torch.no_grad():
        pre.generator.diffusion.denoiser.final_layer.linear.weight.mul_(0.1)
    call = job.Job(pre, SamplingSettings(), options)  # type: ignore[arg-type]
    shares = torch.linspace(1, 0, 9)
    condition = call.conditions([3, 1])
    assert condition is not None
    codes = walk.walk(call, condition, torch.stack([shares, 1 - shares], dim=1))
    flips = codes.diff(dim=0).abs().mean(dim=(1, 2)) / (codes[0] - codes[-1]).abs().mean()
    assert flips.mean() < 0.35  # 0.125 is a straight line; drawn by themselves, about 1
    images = interpolate(pre, [3, 1], frames=9, **options)  # type: ignore[arg-type]
    ends = torch.stack([generate(pre, label, **options)[0] for label in (3, 1)])  # type: ignore[arg-type]
    assert torch.equal(images[[0, -1]], ends)


def test_bits_go_over_from_end_to_end_once() -> None:
    ends, weights = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, N, K), torch.linspace(1, 0, 11)
    held = walk._held(ends, torch.stack([weights, 1 - weights], dim=1), SeededDraws(0, [0]))
    assert not held[0].any()
    assert held[-1].all()
    assert (held.diff(dim=0) >= 0).all()
    assert (held.mean(dim=(1, 2)) - (1 - weights)).abs().max() < 0.15


def test_numbers_go_with_the_place(pre: Pretrained) -> None:
    """Where all tokens are drawn nothing is different; where some are, each asks for the numbers of its place."""
    asked: list[list[int]] = []

    class Spy(SeededDraws):
        def uniform(self, counts: Sequence[int], blocks: int, width: int) -> Tensor:
            asked.append(list(counts))
            return super().uniform(counts, blocks, width)

    def drawn(masked: Tensor, by_place: bool) -> Tensor:
        settings, codes = SamplingSettings(steps=1, diffusion_steps=2), torch.zeros(1, N, K)
        draws = Spy(0, [0])
        return sample_codes(pre.generator, masked, settings=settings, draws=draws, codes=codes, by_place=by_place)

    everything = torch.ones(1, N, dtype=torch.bool)
    assert torch.equal(drawn(everything, True), drawn(everything, False))
    asked.clear()
    drawn(torch.arange(N)[None] < 3, True)
    assert {tuple(counts) for counts in asked} == {(N,)}


# ---- photographs
def test_what_is_marked_is_never_seen(pre: Pretrained) -> None:
    """Whatever stands where something is to be painted, the painting is the same."""
    random, mask = np.random.default_rng(0), box_mask(16, 16, (3, 2, 9, 11))
    photo = random.integers(0, 256, (16, 16, 3), np.uint8)
    other = np.where(mask[..., None], random.integers(0, 256, photo.shape), photo).astype(np.uint8)
    pictures = [inpaint_photo(pre, each, mask, **SHORT)[0] for each in (photo, other)]
    assert np.array_equal(*map(np.asarray, pictures))


def test_the_best_of_several_meets_the_photograph_best(pre: Pretrained) -> None:
    photo = np.random.default_rng(0).integers(90, 160, (16, 16, 3), np.uint8)
    mask = box_mask(16, 16, (3, 2, 9, 11))
    near, image = Surroundings(mask, 4), torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255

    def step(best_of: int, seed: int) -> float:
        (painted,) = inpaint_photo(pre, photo, mask, seed=seed, pasting=Pasting(best_of=best_of), **SHORT)
        pixels = torch.from_numpy(np.array(painted)).permute(2, 0, 1)[None].float() / 255
        return float(near.border_steps(pixels, image))

    steps = [(step(1, seed), step(5, seed)) for seed in range(4)]
    assert all(one >= best - 1e-3 for one, best in steps)  # levels are rounded
    assert sum(one > best for one, best in steps) > 1


def test_a_window_is_twice_what_is_marked_where_there_is_room() -> None:
    assert usual_side(box_mask(300, 200, (50, 60, 90, 80)), 64) == 80
    assert usual_side(box_mask(300, 200, (50, 60, 60, 80)), 64) == 64
    assert usual_side(box_mask(300, 200, (0, 60, 190, 80)), 64) == 200
    assert usual_side(box_mask(50, 40, (0, 0, 9, 9)), 64) == 40


def in_another_tone(job: job.Job, images: Tensor, *_: object, **__: object) -> Tensor:
    """Every window as it is, its noise as texture, in a tone of its own: what a model gets wrong most visibly."""
    random = torch.Generator().manual_seed(job.seed % 2**32 + (job.seed >> 64))
    tone = (torch.rand(len(images), 3, 1, 1, generator=random) - 0.5) * 0.3
    return (images + tone).clamp(0, 1)


def across(pixels: NDArray[Any], mask: NDArray[np.bool_], window: Window, band: int) -> Iterator[tuple[float, float]]:
    """For each side of a window, inside what is painted: the mean step across it, and the largest beside it."""
    for axis, start in ((0, window.top), (1, window.left)):
        steps = np.abs(np.diff(pixels.astype(float), axis=axis)).max(axis=2)
        painted = np.take(mask, range(1, mask.shape[axis]), axis) & np.take(mask, range(mask.shape[axis] - 1), axis)
        other = (window.left, window.top)[axis]
        along = slice(other, other + window.side)
        for line in (start - 1, start + window.side - 1):
            if not 2 * band <= line < steps.shape[axis] - 2 * band:
                continue
            near = range(line - 2 * band, line + 2 * band + 1)
            found = [np.take(steps, at, axis)[along][np.take(painted, at, axis)[along]] for at in near]
            if min(map(len, found)) >= band:
                means = [float(each.mean()) for each in found]
                yield means.pop(2 * band), max(means)


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 150), marks=pytest.mark.slow)])
def test_no_step_across_a_window_exceeds_the_photographs_own(
    pre: Pretrained, monkeypatch: pytest.MonkeyPatch, seeds: range
) -> None:
    """On real photographs, with windows of other tones: at most twice what the photograph itself has near there, and 3
    levels; nor, unless the photograph has it, more than one and a half times the largest step beside it, and 3.
    """
    monkeypatch.setattr(job.Job, "repaint", in_another_tone)
    files, seen = sorted(EXAMPLES.glob("*.jpg")), 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        photo = Image.open(files[seed % len(files)]).convert("RGB").resize((90, 70))
        left, top = (int(n) for n in random.integers(0, 20, 2))
        mask = box_mask(90, 70, (left, top, left + int(random.integers(45, 70)), top + int(random.integers(30, 50))))
        side, band = int(random.integers(24, 40)), int(random.integers(2, 6))
        blend = ("none", "feather")[seed % 2]
        (painted,) = inpaint_photo(pre, photo, mask, pasting=Pasting(window=side, band=band, blend=blend))
        for window in windows(mask, side):
            found = (across(np.asarray(each), mask, window, band) for each in (painted, photo))
            for (step, beside), own in zip(*found, strict=True):
                seen += 1
                assert step <= 2 * max(own) + 3, (seed, window, step, own)
                assert step <= 1.5 * max(beside, *own) + 3, (seed, window, step, beside, own)
    assert seen > len(seeds)


# ---- pictures drawn again
def test_a_picture_is_drawn_again_from_what_it_says(pre: Pretrained, tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    box = (3, 2, 12, 11)
    mask, file = box_mask(40, 20, box), PhotoFile(photo=tmp_path / "photo.png", out=tmp_path / "o.png", boxes=[box])
    for pasting in (None, Pasting(best_of=2, follow=0.5), Pasting(fit="none", blend="feather")):
        written = inpaint_file(pre, file, [1, 2], count=3, seed=4, pasting=pasting, **SHORT)
        for path in written.images:
            record = read_provenance(path)
            (again,) = inpaint_photo(pre, photo, mask, record["labels"], **recorded_options(record))
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), np.asarray(again))


def test_pictures_of_before_fitting_are_fitted_to_nothing() -> None:
    settings = dataclasses.asdict(SamplingSettings(steps=2))
    old = {"seed": 3, "image": 2, "settings": settings, "pasting": {"window": 36, "blend": "feather", "band": 4}}
    options = recorded_options(old)
    assert options["pasting"] == Pasting(window=36, blend="feather", band=4, fit="none")
    assert (options["seed"], options["first"]) == (3, 2)
    del old["pasting"]
    assert "pasting" not in recorded_options(old)
