"""Drawing from file to file: two runs at once, limits, labels of any form, and records that give the same picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny_model import picture, tiny_model

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.decode import as_rgb
from bigr_repr.images.pictures import to_batch, to_marks, to_picture
from bigr_repr.painting import (
    edit_photo,
    enrich_photo,
    inpaint_photo,
    outpaint_photo,
    read_provenance,
    recorded_options,
    series,
)
from bigr_repr.painting import files as drawing
from bigr_repr.painting.files import (
    PhotoFile,
    check_picture,
    enrich_file,
    inpaint_file,
    interpolate_file,
    outpaint_file,
    to_pictures,
)
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.pictures import grid, write_png
from bigr_repr.painting.series import generate_files
from bigr_repr.sampling import interpolate
from bigr_repr.system.files import replacing

QUICK: Any = {"steps": 1, "diffusion_steps": 1}
BOX = (4, 4, 12, 12)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    picture(1, 24, 20).save(path)
    return path


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- two at once


def test_a_second_run_into_a_folder_is_refused_and_the_first_completes(pre: Pretrained, tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(done: float, total: float) -> None:
        with pytest.raises(RuntimeError, match="another run is drawing into this folder") as caught:
            generate_files(pre, tmp_path / "out", [1], count=2, seed=7, **QUICK)
        refused.append(str(caught.value))

    assert generate_files(pre, tmp_path / "out", [1], count=2, on_progress=meanwhile, **QUICK).drawn == 2
    assert len(refused) == 2
    assert not any("\n" in each for each in refused)
    assert generate_files(pre, tmp_path / "out", [1], count=2, **QUICK).drawn == 0


def test_what_a_killed_run_was_writing_is_removed(pre: Pretrained, tmp_path: Path) -> None:
    generate_files(pre, tmp_path / "out", count=1, **QUICK)
    for name in (".000001.png.part", ".000001.png.0123abcd.part", ".notes.part"):
        (tmp_path / "out" / name).write_bytes(b"half")
    generate_files(pre, tmp_path / "out", count=2, **QUICK)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"000000.png", "000001.png", "generation.json", ".notes.part"}


def test_of_two_that_write_a_picture_at_once_neither_disturbs_the_other(tmp_path: Path) -> None:
    path = tmp_path / "o.png"
    with replacing(path) as file:
        file.write(b"first")
        check_picture(path, ".png")
    assert path.read_bytes() == b"first"

    class Slow(Image.Image):
        def save(self, *args: Any, **options: Any) -> None:
            if args:
                write_png(path, picture(2), {"seed": 2})
            picture(1).save(*args, **options)

    write_png(path, Slow(), {"seed": 1})
    assert read_provenance(path) == {"seed": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["o.png"]


def test_a_folder_that_cannot_be_written_is_told_before_any_picture_is_drawn(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_files(pre, tmp_path, count=1, **QUICK)

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(series, "check_writable", refuse)
    monkeypatch.setattr(series, "generate", lambda *_, **__: pytest.fail("drawn"))
    assert generate_files(pre, tmp_path, count=1, **QUICK).drawn == 0
    with pytest.raises(PermissionError):
        generate_files(pre, tmp_path, count=2, **QUICK)


# ---- records


def test_the_recorded_arguments_draw_the_same_picture(pre: Pretrained, tmp_path: Path, photo: Path) -> None:
    out, other = tmp_path / "o.png", Pasting(window=10, max_windows=1500)
    enrich_file(pre, PhotoFile(photo=photo, out=out), scale=8, pasting=other, seed=3, **QUICK)
    recorded = recorded_options(read_provenance(out))
    assert (recorded["scale"], recorded["pasting"].max_windows) == (8, 1500)
    assert np.array_equal(np.asarray(enrich_photo(pre, photo, **recorded)[0]), pixels(out))

    outpaint_file(pre, PhotoFile(photo=photo, out=out), [2], aspect=2.0, seed=3, **QUICK)
    record = read_provenance(out)
    again = outpaint_photo(pre, photo, labels=record["labels"], **recorded_options(record))[0]
    assert np.array_equal(np.asarray(again), pixels(out))

    inpaint_file(pre, PhotoFile(photo=photo, out=out, boxes=[BOX]), [2], command="edit", seed=3, **QUICK)
    mask, record = np.zeros((20, 24), bool), read_provenance(out)
    mask[4:12, 4:12] = True
    again = edit_photo(pre, photo, mask, record["labels"], **recorded_options(record))[0]
    assert np.array_equal(np.asarray(again), pixels(out))

    interpolate_file(pre, [0, 2], out, frames=3, smooth=False, first=5, **QUICK)
    record = read_provenance(out)
    drawn = interpolate(pre, record["labels"], **recorded_options(record))
    assert np.array_equal(np.asarray(grid(to_pictures(drawn), columns=3)), pixels(out))


def test_pictures_that_enrich_drew_before_can_be_drawn_again(pre: Pretrained, tmp_path: Path, photo: Path) -> None:
    enrich_file(pre, PhotoFile(photo=photo, out=tmp_path / "o.png"), **QUICK)
    record = read_provenance(tmp_path / "o.png")
    assert (record["pasting"]["fit"], record["pasting"]["follow"]) == ("none", None)
    record["pasting"] |= {"fit": "surroundings", "follow": 2.0}  # as earlier versions recorded
    del record["pasting"]["max_windows"]
    assert np.array_equal(
        np.asarray(enrich_photo(pre, photo, **recorded_options(record))[0]), pixels(tmp_path / "o.png")
    )


def test_enrich_refuses_what_it_would_ignore(pre: Pretrained, photo: Path) -> None:
    with pytest.raises(ValueError, match=r"follow=5 has no effect: .* leave follow out"):
        enrich_photo(pre, photo, pasting=Pasting(follow=5.0), **QUICK)


def test_pictures_beyond_pillows_limit_are_read(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_files(pre, tmp_path, count=1, **QUICK)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_provenance(tmp_path / "000000.png")["image"] == 0
    assert generate_files(pre, tmp_path, count=1, **QUICK).drawn == 0


# ---- limits


def test_a_long_animation_keeps_every_second_frame(
    pre: Pretrained, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(drawing, "MOST_FRAMES", 5)
    monkeypatch.setattr(drawing, "write_gif", lambda path, frames, **_: kept.append(len(frames)))
    for steps in (4, 5, 8, 9, 16):
        file = PhotoFile(photo=photo, out=tmp_path / "o.png", boxes=[BOX], animate=True)
        inpaint_file(pre, file, steps=steps, diffusion_steps=1)
    assert kept == [5, 4, 5, 4, 5]


def test_a_series_records_a_bounded_number_of_frames(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "MOST_FRAMES", 5)
    generate_files(pre, tmp_path / "s", count=1, animation=tmp_path / "a.gif", steps=16, diffusion_steps=1)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames <= 5  # type: ignore[attr-defined]
        animation.seek(animation.n_frames - 1)  # type: ignore[attr-defined]
        last = np.asarray(animation.convert("RGB"), np.float64)
    assert np.abs(last - pixels(tmp_path / "s/000000.png")).mean() < 10  # a GIF has 256 colors


def test_versions_are_counted_before_anything_is_touched_and_probed_once(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, probed = PhotoFile(photo=photo, out=tmp_path / "o.png"), list[str]()
    with pytest.raises(ValueError, match=r"count=10001 is more than 10,000 versions"):
        PhotoFile(photo=photo, out=tmp_path / "nowhere/o.png").check(10_001)
    monkeypatch.setattr(drawing, "check_picture", lambda path, suffix: probed.append(path.name))
    file.check(1000)
    assert probed == ["o-100.png"]
    (tmp_path / "o-7.png").mkdir()
    file.check(1000)
    assert probed[1:] == ["o-7.png", "o-100.png"]


def test_outpainting_grows_up_to_the_limit_that_is_given(pre: Pretrained, tmp_path: Path, photo: Path) -> None:
    file = PhotoFile(photo=photo, out=tmp_path / "o.png", max_pixels=24 * 20)
    with pytest.raises(ValueError, match=r"the result would have 25x20 pixels, more than max_pixels=480; choose"):
        outpaint_file(pre, file, margins=(1, 0, 0, 0), **QUICK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"aspect=2 takes more than max_pixels=480 around a 24x20 photograph"):
        outpaint_file(pre, file, aspect=2.0, **QUICK)


# ---- what calls take


@pytest.mark.parametrize("labels", [1, [1], np.array([1]), torch.tensor([1]), "cat", ["cat"]])
def test_labels_have_any_form(tmp_path: Path, photo: Path, labels: Any) -> None:
    plain = tiny_model()
    config = dataclasses.replace(plain.config, class_names=("dog", "cat", "tree"))
    pre = Pretrained(config, plain.tokenizer, plain.generator)
    generate_files(pre, tmp_path / "s", labels, **QUICK)
    inpaint_file(pre, PhotoFile(photo=photo, out=tmp_path / "o.png", boxes=[BOX]), labels, **QUICK)
    for path in (tmp_path / "s/000000.png", tmp_path / "o.png"):
        assert read_provenance(path)["labels"] == [1]
    assert json.loads((tmp_path / "s/generation.json").read_text())["labels"] == [1]


def test_rounding_beyond_0_and_1_is_no_error() -> None:
    for image in (torch.full((3, 4, 4), 1.0000001), np.full((4, 4, 3), 1.0000001)):
        assert np.asarray(to_picture(image)).min() == 255
    assert np.asarray(as_rgb(np.full((4, 4, 3), -1e-7))).max() == 0
    assert to_batch(torch.full((3, 4, 4), 1.0000001)).max() == 1
    for wrong in (torch.full((3, 4, 4), 1.00001), np.full((4, 4, 3), 1.00001)):
        with pytest.raises(ValueError, match=r"1\.00001.*(clamp|clip) it"):
            to_picture(wrong)


def test_the_opacity_of_a_rotated_mask_is_that_of_its_pixels(tmp_path: Path) -> None:
    layer = np.zeros((40, 60, 4), np.uint8)
    layer[5:20, 5:20] = 255
    Image.fromarray(layer).save(tmp_path / "m.tif", tiffinfo={274: 6})
    wanted = np.rot90(layer[..., 3] > 0, -1)
    assert np.array_equal(to_marks(tmp_path / "m.tif"), wanted)
    with Image.open(tmp_path / "m.tif") as image:
        assert np.array_equal(to_marks(image), wanted)


def test_inpainting_takes_every_number_of_numpy(pre: Pretrained, photo: Path) -> None:
    mask = np.zeros((20, 24), bool)
    mask[4:12, 4:12] = True
    pasting: Any = {"window": np.int64(16), "follow": np.float32(1)}
    assert inpaint_photo(pre, photo, mask, pasting=Pasting(**pasting), **QUICK)[0].size == (24, 20)
