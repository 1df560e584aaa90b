"""Captions go to the pictures that they are of, and whatever is wrong with their files is said by name, in time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_text_training import TOKENIZER
from tiny_model import picture, write_pictures

from bigr_repr.captions.sources import coco_captions, sidecar_captions
from bigr_repr.checkpoints.pretrained import save_tokenizer
from bigr_repr.datasets import open_images
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.system.sums import sealed, without_seal
from bigr_repr.train.code_set import CodeSet, images_digest

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_tokenizer(BinaryAutoencoder(TOKENIZER), folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures, each with its caption."""
    for file in write_pictures(tmp_path / "photos", 4):
        file.with_suffix(".txt").write_text(f"picture {file.stem}", encoding="utf-8")
    return tmp_path / "photos"


def encoded(bigr: Run, photos: Path, tokenizer: Path) -> tuple[int, str]:
    """Exit code and messages of the command, which writes to the folder c."""
    code, _, said = bigr("train", "captions", photos, "--tokenizer", tokenizer, "--out", "c", "--device", "cpu")
    return code, said


# ---- the codes that captions are put beside


def test_captions_are_not_put_beside_codes_of_other_images(
    bigr: Run, photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """As many are not enough; but pictures that are only copied, renamed or touched are the same."""
    assert encoded(bigr, photos, tokenizer)[0] == 0
    (tmp_path / "c" / "captions.json").unlink()
    shutil.move(photos / "00003.png", tmp_path / "kept.png")
    picture(9).save(photos / "0.png")
    (photos / "0.txt").write_text("another", encoding="utf-8")
    code, said = encoded(bigr, photos, tokenizer)
    assert code == 1
    assert "c holds codes of other images, or in another order; choose another folder" in said
    assert not (tmp_path / "c" / "captions.json").exists()
    (photos / "0.png").unlink()
    shutil.move(tmp_path / "kept.png", photos / "00003.png")
    os.utime(photos / "00001.png", (1, 1))
    photos.rename(tmp_path / "moved")
    assert encoded(bigr, tmp_path / "moved", tokenizer)[0] == 0
    assert (tmp_path / "c" / "captions.json").exists()


def test_codes_of_older_versions_are_reused_with_a_warning(
    bigr: Run, photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    assert encoded(bigr, photos, tokenizer)[0] == 0
    (tmp_path / "c" / "captions.json").unlink()
    file = tmp_path / "c" / "codes.json"
    header = without_seal(json.loads(file.read_text(encoding="utf-8")))
    assert header.pop("images_sha256") == images_digest(open_images(photos), TOKENIZER.image_size)
    file.write_text(json.dumps(sealed(header)), encoding="utf-8")
    assert CodeSet(tmp_path / "c").header.images_sha256 is None
    code, said = encoded(bigr, photos, tokenizer)
    assert code == 0
    assert "warning: c holds codes of an older version, which do not say which images" in said


@pytest.mark.parametrize("bad", ['"caf\\udce9"', "{", "[" * 100_000, f"[{'1' * 5000}]", "folder"])
def test_bad_captions_are_named_before_anything_is_encoded(
    bad: str, bigr: Run, photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (photos / "00003.txt").unlink()
    if bad == "folder":
        (photos / "00003.txt").mkdir()
    else:
        (photos / "00003.json").write_text(bad, encoding="utf-8")
    code, said = encoded(bigr, photos, tokenizer)
    assert code == 1
    assert f"{photos / '00003'}.{'txt' if bad == 'folder' else 'json'}" in said
    assert not (tmp_path / "c").exists()


def test_captions_that_are_all_empty_are_told_before_anything_is_encoded(
    bigr: Run, photos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    for file in photos.glob("*.txt"):
        file.unlink()
        file.with_suffix(".json").write_text('" "', encoding="utf-8")
    code, said = encoded(bigr, photos, tokenizer)
    assert (code, "no image has a caption" in said) == (1, True)
    assert not (tmp_path / "c").exists()


# ---- files of captions


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, r"a number is too long, or lists are nested too deep"),
        ('{"caption": ' + "1" * 5000 + "}", r"a number is too long, or lists are nested too deep"),
        ('{"caption": "caf\\udce9"}', r"a caption is not UTF-8 text"),
    ],
)
def test_an_unreadable_record_is_named(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"/0\.json.*{reason}") as caught:
        sidecar_captions([tmp_path / "0.jpg"])
    assert len(str(caught.value)) < 300
    (tmp_path / "coco").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="/coco "):
        coco_captions(tmp_path / "coco", ["a.jpg"])


def test_a_folder_in_place_of_captions_is_not_no_caption(tmp_path: Path) -> None:
    (tmp_path / "0.txt").mkdir()
    with pytest.raises(ValueError, match=r"/0\.txt is a folder or a broken link, not a file of captions of 0\.jpg"):
        sidecar_captions([tmp_path / "0.jpg"])
    (tmp_path / "0.txt").rmdir()
    (tmp_path / "0.txt").symlink_to("gone.txt")
    with pytest.raises(ValueError, match=r"/0\.txt is a folder or a broken link"):
        sidecar_captions([tmp_path / "0.jpg"])


# ---- names in COCO's files


def coco(place: Path, *names: str) -> Path:
    """A captions file in which every picture has its name as a caption."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": name} for number, name in enumerate(names)]
    file = place / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["val/1.jpg"], {"/d/val/1.jpg": "val/1.jpg", "/d/train/1.jpg": None}),
        (["val/1.jpg", "train/1.jpg"], {"/d/train/1.jpg": "train/1.jpg", "/d/val/1.jpg": "val/1.jpg"}),
        (["coco/val/1.jpg", "coco/train/1.jpg"], {"/e/val/1.jpg": "coco/val/1.jpg"}),
        (["a/1.jpg", "1.jpg"], {"/d/a/1.jpg": "a/1.jpg", "/d/b/1.jpg": "1.jpg"}),
        (["1.jpg", "2.jpg"], {"/d/x/1.jpg": "1.jpg", "/d/y/2.jpg": "2.jpg"}),
        (["1.jpg", "1.jpg"], {"/d/1.jpg": "1.jpg"}),
    ],
)
def test_a_picture_has_the_captions_of_the_name_whose_end_it_shares(
    names: list[str], wanted: dict[str, str | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = coco_captions(coco(tmp_path, *names), list(wanted))
    assert [set(own) for own in found] == [set() if name is None else {name} for name in wanted.values()]
    assert not caplog.records


def test_names_that_fit_several_pictures_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = coco_captions(coco(tmp_path, "1.jpg", "2.jpg"), ["/d/train/1.jpg", "/d/val/1.jpg", "/d/val/2.jpg"])
    assert found == [(), (), ("2.jpg",)]
    assert "2 pictures have no captions: it is unclear which of several" in caplog.text
    assert "/d/train/1.jpg" in caplog.text
    found = coco_captions(coco(tmp_path, "x/1.jpg", "y/1.jpg", "2.jpg"), ["/d/1.jpg", "/d/2.jpg"])
    assert found == [(), ("2.jpg",)]


def test_captions_of_another_folder_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = coco(tmp_path, "val/1.jpg", "2.jpg")
    assert coco_captions(file, ["/d/train/1.jpg", "/d/train/2.jpg"]) == [("val/1.jpg",), ("2.jpg",)]
    assert "1 pictures have the captions of files in other folders" in caplog.text
    assert "/d/train/1.jpg and val/1.jpg" in caplog.text
