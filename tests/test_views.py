"""Laws of the views in a code set: each is what the tokenizer makes of that picture, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import MODEL, TOKENIZER, losses, settings
from tiny_model import write_pictures

from bigr_repr.datasets import open_images
from bigr_repr.images.augment import random_resized_crop
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train import GeneratorRecipe, TokenizerRecipe, train_tokenizer
from bigr_repr.train.alignment import write_features
from bigr_repr.train.batches import batches
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.generator import train_generator


def _packed(root: Path, out: Path, **changes: int) -> CodeSet:
    torch.manual_seed(0)
    return write_codes(
        open_images(root), BinaryAutoencoder(TOKENIZER), out, tokenizer_name="t", batch_size=3, **changes
    )


def test_random_parts_follow_the_image_and_its_mirror_image(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 5)
    plain, more = _packed(tmp_path / "p", tmp_path / "a"), _packed(tmp_path / "p", tmp_path / "b", crops=2)
    assert (plain.views, more.views, more.header.crops) == (2, 4, 2)
    index = np.arange(5)
    for view in (0, 1):
        assert np.array_equal(plain.bits(index, np.full(5, view)), more.bits(index, np.full(5, view)))
    torch.manual_seed(0)
    tokenizer, images = BinaryAutoencoder(TOKENIZER).eval(), open_images(tmp_path / "p")
    part = random_resized_crop(images.load(3), 32, np.random.default_rng([3, 1]), least=0.4)
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        bits = tokenizer.encode(pixels).flatten(2).transpose(1, 2).bool().numpy()
    assert np.array_equal(more.bits(np.array([3]), np.array([3])), bits)
    again = _packed(tmp_path / "p", tmp_path / "c", crops=2)
    assert again.header.sha256 == more.header.sha256


def test_training_on_more_views_resumes_exactly(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 5)
    codes = _packed(tmp_path / "p", tmp_path / "c", mirror=False, crops=3)
    whole = train_generator(codes, MODEL, settings(tmp_path / "w", steps=4))
    train_generator(codes, MODEL, settings(tmp_path / "r", steps=2))
    parts = train_generator(codes, MODEL, settings(tmp_path / "r", steps=4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_codes_are_never_written_over_others(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    _packed(tmp_path / "p", tmp_path / "c", mirror=False)
    before = {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()}
    with pytest.raises(FileExistsError, match="already holds a code data set"):
        _packed(tmp_path / "p", tmp_path / "c", mirror=False, crops=1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()} == before


def test_features_of_random_parts_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    codes = _packed(tmp_path / "p", tmp_path / "c", crops=1)
    with pytest.raises(ValueError, match="has random crops of its images"):
        write_features(open_images(tmp_path / "p"), codes, None)  # type: ignore[arg-type]


# ---- drawn while training from images


def _parts(root: Path, first_step: int, **changes: object) -> list[torch.Tensor]:
    stream = batches(
        open_images(root), batch_size=3, seed=7, first_step=first_step, image_size=32, least_area=0.3,
        **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    found = [next(stream).images for _ in range(3)]
    assert all(each is not None and each.shape == (3, 3, 32, 32) for each in found)
    return [each for each in found if each is not None]


def test_random_parts_depend_on_the_seed_and_the_step_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, 5)
    whole = _parts(tmp_path, 0)
    assert torch.equal(_parts(tmp_path, 2)[0], whole[2])
    middle = next(batches(open_images(tmp_path), batch_size=3, seed=7, first_step=0, image_size=32)).images
    assert not torch.equal(whole[0], middle)


def test_mirror_images_are_left_out_where_they_would_be_wrong(tmp_path: Path) -> None:
    """Each image has its bright side on the left, and so has every part of it that is drawn."""
    from PIL import Image

    ramp = np.repeat(np.linspace(255, 0, 48).astype(np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "0.png")

    def left_is_brighter(mirror: bool) -> set[bool]:
        found = torch.cat(_parts(tmp_path, 0, flip=mirror)).float()
        return set((found[..., :16].mean((1, 2, 3)) > found[..., 16:].mean((1, 2, 3))).tolist())

    assert left_is_brighter(False) == {True}
    assert left_is_brighter(True) == {True, False}


@pytest.mark.parametrize("what", ["tokenizer", "generator"])
def test_training_on_random_parts_resumes_exactly(what: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 5)
    images = open_images(tmp_path / "p")
    torch.manual_seed(0)
    tokenizer = BinaryAutoencoder(TOKENIZER)

    def run(out: str, steps: int) -> torch.nn.Module:
        if what == "tokenizer":
            recipe = TokenizerRecipe(perceptual=None, gan_start=None, least_area=0.3)
            return train_tokenizer(images, TOKENIZER, settings(tmp_path / out, steps=steps), recipe)
        drawn = GeneratorRecipe(least_area=0.3, mirror=False)
        return train_generator(images, MODEL, settings(tmp_path / out, steps=steps), drawn, tokenizer=tokenizer)

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_codes_have_their_views_already(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    codes = _packed(tmp_path / "p", tmp_path / "c")
    with pytest.raises(ValueError, match=r"least_area=0\.5 and mirror are for training on images"):
        train_generator(codes, MODEL, settings(tmp_path / "o"), GeneratorRecipe(least_area=0.5))
    for value in (0, 1.5):
        with pytest.raises(ValueError, match=r"^least_area="):
            TokenizerRecipe(least_area=value)


class _Cut:
    """Stands for a picture; remembers which box of it is asked for."""

    def __init__(self, width: int, height: int) -> None:
        self.size, self.boxes = (width, height), list[tuple[int, int, int, int]]()

    def resize(self, size: tuple[int, int], resample: object, box: tuple[int, int, int, int]) -> Image.Image:
        self.boxes.append(box)
        return Image.new("RGB", size)


def test_random_parts_have_the_published_areas_and_ratios() -> None:
    picture, random = _Cut(400, 300), np.random.default_rng(0)
    for _ in range(400):
        random_resized_crop(picture, 8, random, least=0.2)  # type: ignore[arg-type]
    left, top, right, bottom = np.array(picture.boxes).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 400
    assert bottom.max() <= 300
    areas, ratios = (right - left) * (bottom - top) / 120_000, (right - left) / (bottom - top)
    assert 0.19 < areas.min() < 0.25
    assert areas.max() > 0.9
    assert 0.74 < ratios.min() < 0.77
    assert 1.3 < ratios.max() < 1.345
    long = _Cut(1000, 10)  # into which no such part fits: the largest of 4/3 in the middle
    random_resized_crop(long, 8, random, least=0.9)  # type: ignore[arg-type]
    assert long.boxes == [(493, 0, 506, 10)]
