"""Laws of the views in a code set: each is what the tokenizer makes of that picture, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import MODEL, TOKENIZER, settings
from tiny_model import write_pictures

from bigr_repr.datasets import open_images
from bigr_repr.images.augment import random_resized_crop
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train.alignment import write_features
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


def test_features_of_random_parts_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    codes = _packed(tmp_path / "p", tmp_path / "c", crops=1)
    with pytest.raises(ValueError, match="has random parts of its images"):
        write_features(open_images(tmp_path / "p"), codes, None)  # type: ignore[arg-type]
