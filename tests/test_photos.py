"""Laws of painting into photographs of any size, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampling_model import Watch, some_images, tiny_model

from bigr_repr import edit_photo, enrich, enrich_photo, inpaint, inpaint_photo, outpaint_photo
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.formats import ImageError
from bigr_repr.painting.call import Painted
from bigr_repr.painting.pasting import BLENDS, Pasting
from bigr_repr.painting.windows import Margins, box_mask, grow, windows
from bigr_repr.sampling import job
from bigr_repr.sampling.noise import SeededDraws

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return tiny_model()


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def changed(before: Image.Image, after: Image.Image) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return (np.asarray(before) != np.asarray(after)).any(axis=2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("size", [(50, 31), (16, 16), (9, 40)])
def test_only_what_is_marked_changes(pre: Pretrained, size: tuple[int, int], blend: str) -> None:
    photo, mask = photograph(*size), box_mask(*size, (3, 5, 8, 30))
    (painted,) = inpaint_photo(pre, photo, mask, steps=2, pasting=Pasting(blend=blend, band=2))
    assert painted.size == photo.size
    near = np.zeros_like(mask)
    for row, column in zip(*mask.nonzero(), strict=True):
        reach = 2 if blend == "feather" else 0
        near[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
    assert not changed(photo, painted)[~near].any()
    assert changed(photo, painted)[mask].mean() > 0.5


def test_pasting_is_a_pasting(pre: Pretrained) -> None:
    how: Any = {"blend": "feather"}
    with pytest.raises(TypeError, match=r"make one: Pasting"):
        enrich_photo(pre, photograph(20, 20), pasting=how)


def test_a_photograph_of_the_models_size_is_painted_as_the_canvas_is(pre: Pretrained) -> None:
    pixels = (some_images() * 255).round().byte()
    mask = box_mask(16, 16, (2, 3, 9, 6))
    plain = Pasting(fit="none")
    got = inpaint_photo(pre, pixels[0].permute(1, 2, 0).numpy(), mask, 2, count=2, steps=2, seed=5, pasting=plain)
    canvas = inpaint(pre, pixels, torch.from_numpy(mask), 2, count=2, steps=2, seed=5)
    wanted = (canvas * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for version, expected in zip(got, wanted, strict=True):
        assert np.array_equal(np.asarray(version)[mask], expected[mask])
    enriched = enrich_photo(pre, pixels[0].permute(1, 2, 0).numpy(), steps=1)
    expected = (enrich(pre, pixels, steps=1)[0] * 255).round().byte().permute(1, 2, 0)
    assert np.array_equal(np.asarray(enriched[0]), expected.numpy())


def test_versions_differ_and_each_is_the_same_alone(pre: Pretrained) -> None:
    photo, mask = photograph(40, 20), box_mask(40, 20, (0, 0, 40, 20))
    several = inpaint_photo(pre, photo, mask, [1, 3], count=3, steps=2)
    assert changed(several[0], several[2]).any()
    assert several[1] == inpaint_photo(pre, photo, mask, 3, first=1, steps=2)[0]
    assert several[0] == edit_photo(pre, photo, mask, 1, steps=2)[0]
    assert several == inpaint_photo(pre, photo, mask, [1, 3], count=3, steps=2)


def test_windows_have_noise_of_their_own(pre: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first window that of the seed, so that one window is what the canvas would be."""
    seeds: list[int] = []

    class Spy(SeededDraws):
        def __init__(self, seed: int, images: Sequence[int]) -> None:
            seeds.append(seed)
            super().__init__(seed, images)

    monkeypatch.setattr(job, "SeededDraws", Spy)
    inpaint_photo(pre, photograph(32, 16), np.ones((16, 32)), steps=1, seed=5)
    assert len(seeds) == 3
    assert seeds[0] == 5
    noise = [SeededDraws(seed, [0]).uniform([4], 1, 1).flatten().tolist() for seed in seeds]
    assert len(set(map(tuple, noise))) == 3


def test_feather_fades_on_every_side_of_a_mark_as_wide_as_a_window(pre: Pretrained) -> None:
    photo, mask = photograph(120, 60), box_mask(120, 60, (30, 20, 90, 40))
    (painted,) = inpaint_photo(pre, photo, mask, steps=1, pasting=Pasting(blend="feather", band=8))
    differs = changed(photo, painted)
    beside = [differs[20:40, 22:30], differs[20:40, 90:98], differs[12:20, 30:90], differs[40:48, 30:90]]
    assert all(part.mean() > 0.5 for part in beside)
    assert not differs[:, :22].any()
    assert not differs[:, 98:].any()


def test_masks_of_floats_are_marked_from_a_half_as_on_the_canvas(pre: Pretrained) -> None:
    photo, marked = photograph(16, 16), box_mask(16, 16, (2, 3, 9, 6))
    (painted,) = inpaint_photo(pre, photo, np.where(marked, 0.5, 0.4), steps=1)
    assert (painted,) == tuple(inpaint_photo(pre, photo, marked, steps=1))
    with pytest.raises(ValueError, match="mask is empty"):
        inpaint_photo(pre, photo, np.where(marked, 0.4, 0.0), steps=1)


def test_outpainting_keeps_the_photograph(pre: Pretrained) -> None:
    photo, margins = photograph(20, 18), Margins(3, 0, 40, 7)
    (grown,) = outpaint_photo(pre, photo, margins, steps=1)
    assert grown.size == (63, 25)
    assert grown.crop((3, 0, 23, 18)) == photo
    edge = np.asarray(photo)[9, -1].astype(int)
    assert np.abs(np.asarray(grown)[9, 23:].astype(int) - edge).max() > 10  # painted, not repeated


def test_a_photograph_smaller_than_the_canvas_is_seen_whole(pre: Pretrained) -> None:
    """And a window may be as large as the result, whose sides here are 20."""

    def passes(window: int | None) -> int:
        steps: list[Painted] = []
        pasting = Pasting(window=window)
        outpaint_photo(pre, photograph(12, 10), (4, 5, 4, 5), steps=1, on_step=steps.append, pasting=pasting)
        return len(steps)

    assert passes(20) == 1
    assert passes(None) == 4  # of the canvas's 16, so that each holds all of the photograph
    assert passes(10) > 4
    with pytest.raises(ValueError, match=r"window=21 is outside 1\.\.20"):
        passes(21)


def test_enrich_changes_all_of_it_or_what_is_marked(pre: Pretrained) -> None:
    photo, mask = photograph(30, 24), box_mask(30, 24, (20, 2, 28, 20))
    assert changed(photo, enrich_photo(pre, photo, steps=1, pasting=Pasting(window=12))[0]).mean() > 0.9
    assert not changed(photo, enrich_photo(pre, photo, mask=mask, steps=1)[0])[~mask].any()


def test_paintings_side_by_side_fade_into_each_other(pre: Pretrained) -> None:
    """The second window's band reaches into what the first has painted, and nowhere else."""
    photo, mask = photograph(30, 20), box_mask(30, 20, (0, 0, 30, 10))
    seen: list[Image.Image] = []

    def keep(painted: Painted) -> None:
        assert painted.picture is not None
        seen.append(painted.picture())

    (final,) = inpaint_photo(pre, photo, mask, steps=1, on_step=keep, pasting=Pasting(band=3))
    assert len(seen) == 2
    first = box_mask(30, 20, (0, 0, 20, 10))
    assert changed(seen[0], final)[first].any()  # within the band
    assert not changed(seen[0], final)[:, :16].any()
    assert not changed(photo, final)[~mask].any()


def flat_painting(job: job.Job, images: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """Every window in another color, black and white in each channel: the hardest of edges."""
    color = np.random.default_rng([job.seed >> 64, job.seed % 2**32]).integers(0, 2, 3)
    return torch.tensor(color).float()[None, :, None, None].expand(images.shape).clone()


def steepest(pixels: np.ndarray[Any, Any], where: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """The largest difference between neighbors of which both are there."""
    values, steps = pixels.astype(int), [0]
    for axis in (0, 1):
        both = np.take(where, range(1, where.shape[axis]), axis) & np.take(where, range(where.shape[axis] - 1), axis)
        steps += np.abs(np.diff(values, axis=axis)).max(axis=2)[both].tolist()
    return max(steps)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 120), marks=pytest.mark.slow)])
def test_no_seam_is_left_between_windows(
    pre: Pretrained, monkeypatch: pytest.MonkeyPatch, seeds: range, blend: str
) -> None:
    """Over hundreds of geometries no step exceeds four times that of a single fade over the band, black to white.

    Where feather is asked for, neither at the edge of the mask. Poisson has nothing to fade, so that nothing is left.
    """
    monkeypatch.setattr(job.Job, "repaint", flat_painting)
    several = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        width, height, band = (int(n) for n in random.integers((40, 40, 4), (100, 100, 10)))
        photo = np.full((height, width, 3), 128, np.uint8)
        side = min(width, height) // int(random.integers(1, 5))
        pasting = Pasting(window=side, blend=blend, band=band, fit="none")
        (left, right), (top, bottom) = (sorted(int(n) for n in random.integers(0, n, 2)) for n in (width, height))
        mask = box_mask(width, height, (left, top, right + 1, bottom + 1))
        if seed % 2:
            rows, columns = np.ogrid[:height, :width]
            mask |= (rows - height // 2) ** 2 + (columns - width // 3) ** 2 < random.integers(5, 30) ** 2
        margins = Margins(*(int(n) for n in random.integers(0, 60, 4)))
        (inside,) = inpaint_photo(pre, photo, mask, pasting=pasting)
        (around,) = outpaint_photo(pre, photo, margins, pasting=pasting)
        _, marked = grow(photo, margins)
        for painted, where in ((inside, mask), (around, marked)):
            seen = np.ones_like(where) if blend == "feather" else where
            limit = 2 if blend == "poisson" else 4 * 255 / (band + 1) + 1
            assert steepest(np.asarray(painted), seen) <= limit, (seed, painted.size)
            several += sum(1 for _ in windows(where, pasting.window or 1)) > 1
    assert several > len(seeds)


def test_photographs_and_masks_of_any_kind_are_read_alike(pre: Pretrained, tmp_path: Path) -> None:
    photo, mask = photograph(30, 20), box_mask(30, 20, (3, 5, 8, 30))
    pixels, white = np.asarray(photo), Image.fromarray(mask)
    layer = Image.new("RGBA", (30, 20), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (3, 5, 8, 20))
    photo.save(tmp_path / "photo.png")
    white.save(tmp_path / "mask.png")
    photos = [photo, pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1), tmp_path / "photo.png"]
    masks = [
        mask,
        torch.from_numpy(mask),
        mask.astype(float),
        white,
        white.convert("RGB"),
        layer,
        tmp_path / "mask.png",
    ]
    options: Any = {"steps": 1, "diffusion_steps": 1}
    (wanted,) = inpaint_photo(pre, photo, mask, **options)
    for image in [*photos, str(tmp_path / "photo.png")]:
        assert inpaint_photo(pre, image, mask, **options) == [wanted]
        assert outpaint_photo(pre, image, (1, 0, 0, 0), **options)[0].size == (31, 20)
    for marks in [*masks, tmp_path / "mask.png", str(tmp_path / "mask.png")]:
        assert inpaint_photo(pre, photo, marks, **options) == [wanted]
        assert not changed(photo, enrich_photo(pre, photo, mask=marks, **options)[0])[~mask].any()


@pytest.mark.parametrize("wrong", [{"a": 1}, None, "gone.png", object()])
def test_what_is_no_picture_is_one_clear_line(pre: Pretrained, wrong: Any) -> None:
    photo, mask = photograph(16, 16), box_mask(16, 16, (3, 5, 8, 30))
    for call in (inpaint, inpaint_photo):
        for image, marks in ((wrong, mask), (photo, wrong)):
            with pytest.raises((TypeError, ImageError), match=r"give a file's path, a PIL image|no such file"):
                call(pre, image, marks)


def test_canvases_take_pictures_and_masks_of_any_kind(pre: Pretrained, tmp_path: Path) -> None:
    photo, mask = photograph(16, 16), box_mask(16, 16, (3, 5, 8, 30))
    photo.save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options: Any = {"steps": 1, "diffusion_steps": 1}
    wanted = inpaint(pre, photo, mask, **options)
    assert torch.equal(inpaint(pre, tmp_path / "photo.png", tmp_path / "mask.png", **options), wanted)
    assert torch.equal(inpaint(pre, np.asarray(photo), Image.fromarray(mask), **options), wanted)
    assert torch.equal(enrich(pre, tmp_path / "photo.png", **options), enrich(pre, photo, **options))


def test_more_windows_than_allowed_are_refused_before_any_work(pre: Pretrained) -> None:
    photo = Image.new("RGB", (1200, 800))
    with pytest.raises(ValueError, match=r"up to 14,751 windows of 16 pixels, more than max_windows=1,000"):
        enrich_photo(pre, photo)
    with pytest.raises(ValueError, match="more than max_windows=2"):
        enrich_photo(pre, photograph(40, 40), pasting=Pasting(max_windows=2))


def test_many_windows_are_told_before_any_work(pre: Pretrained, caplog: pytest.LogCaptureFixture) -> None:
    options: Any = {"steps": 1, "diffusion_steps": 1}
    told: list[str] = []
    for width in (16, 600):
        photo = photograph(width, 16)
        caplog.clear()
        inpaint_photo(pre, photo, np.ones((16, width), np.bool_), on_step=lambda _: told.append(caplog.text), **options)
        assert ("windows of 16 pixels; a larger" in told[-1]) == (width == 600)


def test_progress_counts_every_iteration_and_shows_the_first_version(pre: Pretrained) -> None:
    photo, steps, sizes, watch = photograph(40, 16), [], [], Watch()

    def look(painted: Painted) -> None:
        steps.append(painted)
        sizes.append(painted.picture().size if painted.picture is not None else None)

    inpaint_photo(pre, photo, np.ones((16, 40), np.bool_), count=2, steps=3, on_step=look, callback=watch)
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in steps} == {len(steps)} == {len(watch.seen)}
    assert sizes == ([(40, 16)] * 3 + [None] * 3) * (len(steps) // 6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mask": np.ones((20, 31))}, "mask is 31x20 pixels, the photograph 30x20"),
        ({"mask": np.zeros((20, 30))}, "mask is empty"),
        ({"steps": 17}, "17 iterations are more than the 16 tokens of"),
        ({"labels": 5}, "labels="),
        ({"guidance": 3.0}, "no class to guide toward"),
        ({"count": 0}, "count=0"),
    ],
)
def test_what_cannot_be_painted_is_refused(pre: Pretrained, change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"mask": np.ones((20, 30)), "steps": 2, **change}
    with pytest.raises(ValueError, match=says):
        inpaint_photo(pre, photograph(30, 20), **arguments)


def test_impossible_pastings_and_margins_are_refused(pre: Pretrained) -> None:
    photo = photograph(30, 20)
    with pytest.raises(ValueError, match=r"window=21 is outside 1\.\.20"):
        inpaint_photo(pre, photo, np.ones((20, 30)), pasting=Pasting(window=21))
    with pytest.raises(ValueError, match="blend='soft' is not allowed: choose one of none"):
        Pasting(blend="soft")
    with pytest.raises(ValueError, match="nothing to paint"):
        outpaint_photo(pre, photo, (0, 0, 0, 0))
    with pytest.raises(ValueError, match="choose smaller margins"):
        outpaint_photo(pre, photo, (0, 0, 10**9, 0))
    with pytest.raises(ValueError, match="scale=0"):
        enrich_photo(pre, photo, scale=0, steps=1)
