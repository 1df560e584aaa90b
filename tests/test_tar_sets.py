"""Laws of tar shards as training data: pictures, captions and classes are those of the samples, over all shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_model import picture

from bigr_repr.datasets import TarSet, open_images
from bigr_repr.datasets.shards import expand_braces
from bigr_repr.images import ImageError


def _png(seed: int) -> bytes:
    opened = io.BytesIO()
    picture(seed).save(opened, "PNG")
    return opened.getvalue()


def _write(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    record = json.dumps({"caption": ["c", "d"], "url": "x"}).encode()
    _write(tmp_path / "s/a-000.tar", {"0.png": _png(0), "0.txt": b"a\n b \n", "1.png": _png(1), "1.json": record})
    _write(tmp_path / "s/a-001.tar", {"0.json": b'"e"', "0.png": _png(2), "0.txt": "é".encode(), "3.png": _png(3)})
    return tmp_path / "s"


def test_pictures_and_captions_of_all_shards_in_their_order(shards: Path) -> None:
    found = open_images(f"{shards}/a-{{000..001}}.tar")
    assert isinstance(found, TarSet)
    assert [np.array_equal(np.asarray(found.load(i)), np.asarray(picture(i))) for i in range(len(found))] == [True] * 4
    assert found.captions == [("a", "b"), ("c", "d"), ("é",), ()]
    assert found.labels is None
    for same in (open_images(shards), open_images(sorted(shards.iterdir()))):
        assert same.fingerprint() == found.fingerprint()


def test_classes_are_common_to_all_shards_whichever_they_hold(tmp_path: Path) -> None:
    one = _write(tmp_path / "1.tar", {"0.png": _png(0), "0.cls": b"10", "1.png": _png(1), "1.cls": b"2"})
    two = _write(tmp_path / "2.tar", {"2.png": _png(2), "2.cls": b"10", "cat/3.png": _png(3)})
    found = open_images([one, two])
    assert found.class_names == ("2", "10", "cat")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 1, 2]
    assert found.captions is None


def test_what_is_wrong_with_a_shard_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a-002\.tar: no such file"):
        open_images(f"{shards}/a-{{000..002}}.tar")
    bad = _write(tmp_path / "bad.tar", {"x/0.png": b"no picture", "x/0.txt": b"caf\xe9"})
    found = open_images(bad)
    with pytest.raises(ValueError, match=r"bad\.tar#x/0\.txt is not UTF-8 text \(byte 3\)"):
        _ = found.captions
    with pytest.raises(ImageError, match=r"bad\.tar#x/0\.png"):
        found.load(0)
    with pytest.raises(ImageError, match="holds no picture"):
        open_images(_write(tmp_path / "empty.tar", {"0.txt": b"a"}))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{a,b}-{8..10}", ["a-8", "a-9", "a-10", "b-8", "b-9", "b-10"]),
        ("{008..010}.tar", ["008.tar", "009.tar", "010.tar"]),
    ],
)
def test_braces_stand_for_several_names(pattern: str, names: list[str]) -> None:
    assert list(expand_braces(pattern)) == names
