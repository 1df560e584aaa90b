"""Photographs, masks, names and folders as users have them: what was painted wrong or lost, each once."""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bigr_repr_cli import main
from PIL import Image
from test_picture_faults import PROFILES, ck, icc
from tiny_model import picture

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.images import isolated
from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import unescape_path
from bigr_repr.integrations.sentence import BigrModule
from bigr_repr.painting.files import PhotoFile, inpaint_file
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.photos import inpaint_photo
from bigr_repr.painting.series import generate_files
from bigr_repr.painting.windows import box_mask
from bigr_repr.system.targets import check_target

FAST: Any = {"steps": 1, "diffusion_steps": 1, "pasting": Pasting(blend="none")}
BOX = (4, 4, 12, 12)


pytestmark = pytest.mark.usefixtures("one_thread")


def damage(path: Path) -> None:
    """Insert a text with a wrong checksum, which no pixel depends on."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + ck(b"tEXt", b"Comment\0x", 1) + data[33:])


def test_a_profile_is_not_applied_twice(pre: Pretrained, tmp_path: Path) -> None:
    photo, profile = picture(1, 24, 20), icc(*PROFILES["ProPhoto"])
    photo.save(tmp_path / "photo.png", icc_profile=profile)
    inpaint_file(pre, PhotoFile(photo=tmp_path / "photo.png", out=tmp_path / "o.png", boxes=[BOX]), **FAST)
    with Image.open(tmp_path / "o.png") as made:
        assert made.info["icc_profile"] == profile
        same = (np.asarray(made) == np.asarray(photo)).all(axis=2)
    assert same[~box_mask(24, 20, BOX)].all()
    assert not same.all()


def test_an_animation_shows_the_colors_of_a_profile(pre: Pretrained, tmp_path: Path) -> None:
    picture(1, 24, 20).save(tmp_path / "photo.png", icc_profile=icc(*PROFILES["ProPhoto"]))
    file = PhotoFile(photo=tmp_path / "photo.png", out=tmp_path / "o.png", boxes=[BOX], animate=True)
    inpaint_file(pre, file, **FAST)
    seen = np.asarray(decode_image(tmp_path / "o.png"), np.float64)
    with Image.open(tmp_path / "o.png") as made:
        stored = np.asarray(made, np.float64)
    with Image.open(tmp_path / "o.gif") as animation:
        animation.seek(animation.n_frames - 1)  # type: ignore[attr-defined]
        last = np.asarray(animation.convert("RGB"), np.float64)
    assert np.abs(last - seen).mean() < np.abs(last - stored).mean() / 4


def test_damaged_metadata_costs_no_painting(pre: Pretrained, tmp_path: Path) -> None:
    profile, marked = icc(*PROFILES["ProPhoto"]), box_mask(24, 20, BOX)
    picture(1, 24, 20).save(tmp_path / "photo.png", icc_profile=profile)
    Image.fromarray(np.dstack([np.full_like(marked, 255, np.uint8)] * 3 + [marked * np.uint8(255)])).save(
        tmp_path / "mask.png"
    )
    for name in ("photo.png", "mask.png"):
        damage(tmp_path / name)
    file = PhotoFile(photo=tmp_path / "photo.png", out=tmp_path / "o.png", masks=[tmp_path / "mask.png"])
    assert np.array_equal(file.marked(picture(1, 24, 20)), marked)
    inpaint_file(pre, file, **FAST)
    with Image.open(tmp_path / "o.png") as made:
        assert made.info["icc_profile"] == profile
        assert np.array_equal(np.asarray(made)[~marked], np.asarray(picture(1, 24, 20))[~marked])


def test_a_folder_with_pictures_of_another_series_is_left_alone(pre: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "000001.png").write_bytes(b"another's")
    with pytest.raises(ValueError, match=r"holds 000001\.png, but no generation\.json: .* choose another folder"):
        generate_files(pre, tmp_path, count=1, steps=1, diffusion_steps=1)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("000001.png", b"another's")]


@pytest.mark.parametrize("size", [(1, 1), (300, 1)])
def test_a_window_of_one_pixel_has_no_steps_to_average(pre: Pretrained, size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (painted,) = inpaint_photo(pre, picture(1, *size), box_mask(*size, (0, 0, 1, 1)), **FAST)
    assert painted.size == size


def test_limits_beyond_what_a_system_can_set_are_the_largest_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    double = types.ModuleType("resource")
    double.RLIMIT_AS, double.RLIM_INFINITY, double.getrlimit = 9, -1, lambda which: (-1, -1)  # type: ignore[attr-defined]
    double.setrlimit = lambda which, pair: found.append(pair[0])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resource", double)
    isolated._limit_memory(20 * 99999999999999999999)
    assert found == [2**63 - 1]


def test_a_name_too_long_for_its_temporary_file_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 248 + ".png")
    with pytest.raises(OSError, match=r"it has 252 bytes, and 6 more while it is written; choose a shorter one"):
        check_target(path, ".png")
    check_target(tmp_path / ("x" * 245 + ".png"), ".png")
    assert not list(tmp_path.iterdir())


def test_sentences_have_one_vector_per_image(pre: Pretrained) -> None:
    with pytest.raises(ValueError, match=r"pool='none' gives one vector per token"):
        BigrModule(pre, layer=1, pool="none")


def test_names_of_any_bytes_are_printed_as_json(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save(pre, tmp_path / "model")
    picture(1, 16, 16).save(tmp_path / "photo.png")
    out = os.fsdecode(b"o\xff.png")
    options = ["--box", "2,2,9,9", "--iterations", "1", "--diffusion-steps", "1", "--model", "model", "--json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bigr-repr", "inpaint", "photo.png", "--out", out, *options])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert not caught.value.code
    (name,) = json.loads(capfd.readouterr().out)["images"]
    assert (name, unescape_path(name)) == (r"o\xff.png", out)
    assert Path(out).exists()
