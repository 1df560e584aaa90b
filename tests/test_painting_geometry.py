"""Windows cover the mask, blends leave the photograph alone outside it, classes are found by name."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from sampling_model import tiny_model

from bigr_repr.checkpoints.catalog import released_config
from bigr_repr.checkpoints.classes import class_list, class_names, class_number
from bigr_repr.images.decode import decode_with_profile
from bigr_repr.painting.blend import paste
from bigr_repr.painting.masks import read_mask
from bigr_repr.painting.pasting import BLENDS, Pasting
from bigr_repr.painting.windows import (
    Margins,
    Window,
    box_mask,
    grow,
    margins_to_aspect,
    most_windows,
    tokens_of,
    window_side,
    windows,
)


def some_mask(width: int, height: int, seed: int) -> NDArray[np.bool_]:
    """A few boxes at random places."""
    random, mask = np.random.default_rng(seed), np.zeros((height, width), np.bool_)
    for _ in range(3):
        left, top = random.integers(0, width), random.integers(0, height)
        mask[top : top + random.integers(1, height), left : left + random.integers(1, width)] = True
    return mask


# ---- windows
@pytest.mark.parametrize("seed", range(20))
def test_windows_lie_in_the_photograph_and_cover_the_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    width, height = (int(n) for n in random.integers(1, 90, 2))
    side = int(random.integers(1, min(width, height) + 1))
    mask = some_mask(width, height, seed)
    left = mask.copy()
    for window in windows(mask, side):
        assert 0 <= window.left <= width - side
        assert 0 <= window.top <= height - side
        assert left[window.area].any()  # none for nothing
        left[window.area] = False
    assert not left.any()


def test_what_fits_gets_one_window_with_the_mark_in_its_middle() -> None:
    mask = box_mask(100, 60, (40, 20, 50, 40))
    assert list(windows(mask, 30)) == [Window(30, 15, 30)]
    assert list(windows(box_mask(100, 60, (0, 0, 4, 4)), 60)) == [Window(0, 0, 60)]
    assert list(windows(box_mask(100, 60, (98, 58, 120, 99)), 60)) == [Window(40, 0, 60)]


def test_planning_looks_at_a_window_as_if_it_had_counted_all_anew() -> None:
    """At every turn the window with the fewest pixels left, of these the most marked, in the order of the raster."""
    mask, side = some_mask(70, 53, 3) | some_mask(70, 53, 4), 9
    left = mask.copy()
    for window in windows(mask, side):
        steps = [sorted({*range(0, n - side, side // 2), n - side}) for n in mask.shape]
        areas = {(top, x): (slice(top, top + side), slice(x, x + side)) for top in steps[0] for x in steps[1]}
        counts = {place: (left[area].sum(), -mask[area].sum()) for place, area in areas.items()}
        fewest = min(count for count in counts.values() if count[0])
        assert (window.top, window.left) == next(place for place, count in counts.items() if count == fewest)
        left[window.area] = False
    assert not left.any()


@pytest.mark.slow
def test_an_upper_bound_of_the_windows_is_known_before_they_are_listed() -> None:
    for seed in range(20):
        mask = some_mask(70, 53, seed)
        assert len(list(windows(mask, 9))) <= most_windows(mask, 9)
    assert most_windows(np.ones((4000, 6000), np.bool_), 64) == 23188


def test_planning_a_large_photograph_takes_seconds() -> None:
    started = time.process_time()
    assert sum(1 for _ in windows(np.ones((1500, 2000), np.bool_), 64)) > 2000
    assert time.process_time() - started < 10


def test_windows_begin_beside_what_is_known() -> None:
    """Growing to the right by two widths: each window sees half a window of what stands to its left."""
    mask = np.ones((10, 30), np.bool_)
    mask[:, :10] = False
    assert [window.left for window in windows(mask, 10)] == [5, 10, 15, 20]


def test_a_mark_that_fills_a_window_is_painted_from_its_edge() -> None:
    mask = np.zeros((10, 20), np.bool_)
    mask[:, 10:] = True
    assert [window.left for window in windows(mask, 10)] == [5, 10]
    mask[:, 10:13] = False
    assert [window.left for window in windows(mask, 10)] == [10]


def test_windows_of_nothing_are_none() -> None:
    assert not list(windows(np.zeros((5, 7), np.bool_), 5))


@pytest.mark.parametrize(("side", "grid"), [(16, 4), (17, 4), (3, 4), (1, 4), (250, 8)])
def test_a_token_is_painted_if_it_holds_a_marked_pixel(side: int, grid: int) -> None:
    mask = np.zeros((side, side), np.bool_)
    row, column = side // 2, side - 1
    mask[row, column] = True
    edges = np.arange(grid + 1) * side / grid
    holds = [(edges[:-1] < pixel + 1) & (edges[1:] > pixel) for pixel in (row, column)]
    wanted = torch.from_numpy(holds[0][:, None] & holds[1][None, :])
    assert torch.equal(tokens_of(mask, grid).view(grid, grid), wanted)


def test_margins_to_an_aspect_are_the_least() -> None:
    assert margins_to_aspect(300, 200, 2.0) == Margins(50, 0, 50, 0)
    assert margins_to_aspect(301, 200, 1.0) == Margins(0, 50, 0, 51)
    grown, mask = grow(np.zeros((200, 301, 3), np.uint8), margins_to_aspect(301, 200, 1.0))
    assert grown.shape == (301, 301, 3)
    assert mask.sum() == 301 * 101


def test_growing_repeats_the_edge_and_keeps_the_photograph() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    grown, mask = grow(photo, Margins(2, 1, 0, 3))
    assert np.array_equal(grown[1:5, 2:], photo)
    assert (grown[1:5, :2] == photo[:, :1]).all()
    assert not mask[1:5, 2:].any()
    assert mask.sum() == 8 * 7 - 4 * 5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: window_side(40, 30, 31), r"window=31 is outside 1\.\.30"),
        (lambda: window_side(40, 30, 0), r"window=0 is outside"),
        (lambda: box_mask(40, 30, (40, 0, 50, 9)), "contains no pixel of the 40x30"),
        (lambda: box_mask(40, 30, (9, 9, 9, 20)), "contains no pixel"),
        (lambda: margins_to_aspect(40, 30, 4 / 3), "there is nothing to paint"),
        (lambda: margins_to_aspect(40, 30, float("nan")), "aspect=nan"),
        (lambda: margins_to_aspect(40, 30, -1.0), "positive number"),
        (lambda: margins_to_aspect(40, 30, 1e308), "more than"),
        (lambda: margins_to_aspect(40, 30, 5e-324), "more than"),
        (lambda: Pasting(window=0), "window=0"),
        (lambda: grow(np.zeros((3, 3, 3), np.uint8), Margins()), "nothing to paint"),
        (lambda: grow(np.zeros((3, 3, 3), np.uint8), Margins(left=-1, top=3)), "nothing to paint"),
    ],
)
def test_impossible_geometry_is_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


# ---- blends
def some_pair(side: int = 40) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    photo, painting = (random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(2))
    return photo, painting


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("seed", range(3))
def test_pixels_outside_stay_bit_for_bit(blend: str, seed: int) -> None:
    photo, painting = some_pair()
    mask, before = some_mask(40, 40, seed), photo.copy()
    pasted = paste(photo, painting, mask, blend, band=3)
    assert np.array_equal(photo, before)
    rows, columns = mask.nonzero()
    squares = (np.arange(40)[:, None, None] - rows) ** 2 + (np.arange(40)[None, :, None] - columns) ** 2
    reach = 3 if blend == "feather" else 0
    outside = squares.min(axis=2) > reach**2
    assert np.array_equal(pasted[outside], photo[outside])
    assert (pasted != photo).any()


def test_the_mask_is_the_painting_and_feather_fades_evenly() -> None:
    photo, painting = np.zeros((1, 12, 3), np.uint8), np.full((1, 12, 3), 200, np.uint8)
    mask = np.zeros((1, 12), np.bool_)
    mask[0, :3] = True
    assert paste(photo, painting, mask)[0, :, 0].tolist() == [200] * 3 + [0] * 9
    assert paste(photo, painting, mask, "feather", 3)[0, :, 0].tolist() == [200] * 3 + [150, 100, 50] + [0] * 6


@pytest.mark.parametrize("blend", BLENDS)
def test_a_painting_that_equals_the_photograph_changes_nothing(blend: str) -> None:
    """Also at the edges, in corners, and where everything is marked: the painting stays in its place."""
    rows, columns = np.mgrid[:40, :40]
    photo = np.stack([rows * 6, columns * 6, (rows + columns) * 3], axis=2).astype(np.uint8)
    masks = [box_mask(40, 40, box) for box in ((0, 0, 9, 12), (11, 7, 30, 20), (38, 38, 40, 40), (0, 0, 40, 40))]
    for mask in [*masks, masks[0] | masks[2], np.zeros((40, 40), np.bool_)]:
        pasted = paste(photo, photo, mask, blend, band=5).astype(int)
        assert np.abs(pasted - photo).max() <= 1


def test_poisson_takes_the_colors_of_its_surroundings() -> None:
    photo, painting = np.full((40, 40, 3), 180, np.uint8), np.full((40, 40, 3), 60, np.uint8)
    painting[20, 20] = 100
    pasted = paste(photo, painting, box_mask(40, 40, (10, 10, 30, 30)), "poisson").astype(int)
    assert np.abs(pasted[12, 12] - 180).max() <= 2
    assert (pasted[20, 20] - pasted[14, 14]).min() > 25


def test_poisson_without_opencv_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"bigr-repr\[poisson\]"):
        paste(*some_pair(), np.ones((40, 40), np.bool_), "poisson")
    with pytest.raises(ImportError, match=r"bigr-repr\[poisson\]"):
        Pasting(blend="poisson")


@pytest.mark.parametrize(
    ("blend", "band", "says"), [("alpha", 3, "choose one of none, feather"), ("none", 0, "band=0")]
)
def test_unknown_blends_are_refused(blend: str, band: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        paste(*some_pair(), np.ones((40, 40), np.bool_), blend, band)


# ---- classes
NAMES = ("great white shark, white shark", "Goldfish", "tabby cat", "white shark", "ice-cream")
CRANES = ("crane", "tern, gull", "Crane", "kite, bird of prey", "kite, toy")


def test_classes_by_number_name_and_part() -> None:
    config = dataclasses.replace(tiny_model().config, class_names=NAMES)
    assert class_list(config, ["3, goldfish", "0"]) == [3, 1, 0]
    assert class_list(config, ["Great White Shark, white shark"]) == [0]  # a whole name holds commas
    assert class_number(config, "white shark") == 3  # a whole name stands above a part
    assert class_number(config, "great white shark") == 0
    assert class_number(config, " ice_cream ") == class_number(config, "ICE CREAM") == 4
    assert class_list(config, ["all", "1"]) == [0, 1, 2, 3, 4, 1]


def test_a_model_of_a_thousand_classes_has_its_own_names_or_imagenets() -> None:
    config = tiny_model().config
    thousand = dataclasses.replace(config, generator=dataclasses.replace(config.generator, classes=1000))
    imagenet = dataclasses.replace(thousand, training={"data": "ImageNet-1k, train"})
    assert class_names(config) == class_names(thousand) == ()
    assert class_names(dataclasses.replace(config, training=imagenet.training)) == ()
    assert class_names(imagenet)[1].startswith("goldfish")
    own = tuple(map(str, range(1000)))
    assert class_names(dataclasses.replace(imagenet, class_names=own)) == own


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("goldfihs", "nearest: 'Goldfish'"),
        ("great wite shark", "nearest: 'great white shark, white shark', 'white shark'$"),  # each name once
        ("xyzzy", r"give a number 0\.\.4"),
        ("5", r"class 5 is outside 0\.\.4 for test"),
        ("-1", r"class -1 is outside"),
        ("1.5", "class '1.5' is not one"),
        (" , ", "no class is named"),
        ("", "no class is named"),
    ],
)
def test_unknown_classes_are_refused(text: str, says: str) -> None:
    config = dataclasses.replace(tiny_model().config, class_names=NAMES)
    with pytest.raises(ValueError, match=says):
        class_list(config, [text])


@pytest.mark.parametrize(("text", "says"), [("crane", "'crane' is 0 and 2 of test"), ("kite", "is 3 and 4 of test")])
def test_a_name_of_several_classes_is_refused(text: str, says: str) -> None:
    config = dataclasses.replace(tiny_model().config, class_names=CRANES)
    with pytest.raises(ValueError, match=f"{says}; give the number"):
        class_list(config, [text])
    assert class_list(config, ["2,gull", "kite, toy"]) == [2, 1, 4]


def test_models_without_names_take_numbers_and_imagenet_has_names() -> None:
    with pytest.raises(ValueError, match=r"test has no names; give 0\.\.4"):
        class_number(tiny_model().config, "cat")
    released = released_config("L-d24")
    assert len(class_names(released)) == 1000
    assert class_number(released, "goldfish") == 1


def test_a_mask_file_fits_its_photograph_and_marks_something(tmp_path: Path) -> None:
    marked = np.zeros((5, 9), np.uint8)
    marked[1, 2:4] = [128, 255]
    marked[2, 2] = 127  # not light enough
    Image.fromarray(marked).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", (9, 5)), marked >= 128)
    with pytest.raises(ValueError, match=r"m\.png is 9x5 pixels, the photograph 5x9; a mask must have the same size"):
        read_mask(tmp_path / "m.png", (5, 9))
    Image.fromarray(marked.clip(max=127)).save(tmp_path / "dark.png")
    with pytest.raises(ValueError, match=r"dark\.png is empty: nothing in it is light"):
        read_mask(tmp_path / "dark.png", (9, 5))


def test_the_profile_of_a_photograph_is_that_of_its_colors(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, kept in (("RGB", profile), ("RGBA", profile), ("L", None)):
        Image.new(mode, (4, 4)).save(tmp_path / f"{mode}.png", icc_profile=profile)
        assert decode_with_profile(tmp_path / f"{mode}.png")[1] == kept
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert decode_with_profile(tmp_path / "plain.png")[1] is None
