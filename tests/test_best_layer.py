"""Laws of `--layer best`: it is what a sweep over the same images found, and where sweeps differ nobody guesses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bigr_repr_cli.main import main
from tiny_model import picture, tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import load, save
from bigr_repr.embed import EmbeddingSet, embed_images
from bigr_repr.evaluate.data.splits import open_data, transfer
from bigr_repr.evaluate.runs.bench import bench, best_row, unmeasured_neighbor
from bigr_repr.evaluate.runs.best_layer import recall, recall_any, remember
from bigr_repr.evaluate.runs.extraction import BenchSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tiny_model(), tmp_path_factory.mktemp("model") / "tiny"))


def _photos(folder: Path, count: int, first: int = 0) -> str:
    for number, name in enumerate("ab"):
        write_pictures(folder / "train" / name, count, first=first + 100 * number)
        write_pictures(folder / "test" / name, 2, first=first + 100 * number + 50)
    return str(folder)


def _best(cache: Path, data: str, limit: int | None = None) -> int:
    train = open_data(data, limit=limit).train
    (layer,) = recall(["best"], cache, "0" * 64, "avg", train=train, model="m", dataset=data)
    assert isinstance(layer, int)
    return layer


def test_best_belongs_to_the_images_and_not_to_their_name(tmp_path: Path) -> None:
    one, other = _photos(tmp_path / "1" / "photos", 4), _photos(tmp_path / "2" / "photos", 4)
    for layer, data in ((3, one), (5, other)):
        remember(tmp_path, "0" * 64, "avg", train=open_data(data).train, found={"layer": layer})
    assert (_best(tmp_path, one), _best(tmp_path, other)) == (3, 5)
    picture(7, 60, 60).save(Path(one) / "train" / "a" / "00000.png")
    swept = r"photos train \(8 images: 3\), photos train \(8 images: 5\)"
    with pytest.raises(ValueError, match=rf"not known yet .*swept so far: {swept}"):
        _best(tmp_path, one)


def test_best_belongs_to_the_very_rows_swept(tmp_path: Path) -> None:
    data = _photos(tmp_path / "photos", 4)
    for layer, limit in ((3, 4), (5, None)):
        remember(tmp_path, "0" * 64, "avg", train=open_data(data, limit=limit).train, found={"layer": layer})
    assert (_best(tmp_path, data), _best(tmp_path, data, limit=4)) == (5, 3)
    with pytest.raises(ValueError, match=r"on these 6 images of photos train is not known"):
        _best(tmp_path, data, limit=6)
    (file,) = (tmp_path / "best-layer").iterdir()
    for text in ("{", "[]", '{"a": 1}', '{"a": {}}', '{"a": {"layer": "3", "images": 1, "train": ""}}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"^{file} cannot be used: .*; remove it and sweep again$"):
            _best(tmp_path, data)


@pytest.mark.parametrize("every", [None, ["all"]])
def test_a_row_says_where_its_best_layer_comes_from(every: list[str] | None, model: str, tmp_path: Path) -> None:
    data, settings = open_data(_photos(tmp_path / "photos", 5)), BenchSettings(cache=tmp_path, k=(1,), device="cpu")
    swept = best_row(bench(model, data, settings, layers=every))
    (row,) = bench(model, data, settings, layers=["best"], probe=False)
    noted = row.record()["layer_chosen_by"]
    assert (noted["layer"], noted["images"], noted["train"]) == (swept.view.layer, 10, "photos train")
    mirrored = BenchSettings(cache=tmp_path, k=(1,), device="cpu", mirror=True)
    with pytest.raises(ValueError, match="not known yet"):  # of other features
        bench(model, data, mirrored, layers=["best"])


@pytest.mark.slow
def test_embeddings_have_a_best_layer_too(model: str, tmp_path: Path) -> None:
    photos = Path(_photos(tmp_path / "photos", 5))
    for side in ("train", "test"):
        out = tmp_path / side
        embed_images([str(photos / side)], out, model=model, layers=[0, 1, 3], labels_from_folders=True, device="cpu")
    data = transfer(str(tmp_path / "train"), str(tmp_path / "test"))
    settings = BenchSettings(cache=tmp_path / "cache", k=(1,), device="cpu")
    with pytest.raises(ValueError, match="not known yet"):
        bench(None, data, settings, layers=["best"])
    swept = best_row(bench(None, data, settings, layers=None))
    every = bench(None, data, settings, layers=["all"])
    assert [row.view for row in every] == [row.view for row in bench(None, data, settings)]
    assert bench(None, data, settings, layers=["best"], neighbors=False)[0].view == swept.view


def _embed(model: str, photos: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    arguments = [photos, "--model", model, "--layer", "best,0", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bigr-repr", "embed", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.slow
def test_embed_takes_the_layer_that_all_sweeps_found(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache, sha256 = tmp_path / "bigr-repr", load(model).fingerprint
    sources = [_photos(tmp_path / name, 3, first) for name, first in (("cats", 0), ("dogs", 500), ("cows", 900))]
    assert _embed(model, sources[0], tmp_path / "out", monkeypatch) == 1
    assert "bench layers --model" in capsys.readouterr().err
    for source in sources[:2]:
        remember(cache, sha256, "avg", train=open_data(source).train, found={"layer": 2})
    remember(cache, sha256, "max", train=open_data(sources[2]).train, found={"layer": 1})  # of other features
    assert _embed(model, sources[0], tmp_path / "out", monkeypatch) == 0
    assert EmbeddingSet(tmp_path / "out").layers == (2, 0)
    assert "layer best: 2" in capsys.readouterr().err
    remember(cache, sha256, "avg", train=open_data(sources[2]).train, found={"layer": 3})
    with pytest.raises(ValueError, match="2 on cats train, 2 on dogs train, 3 on cows train"):
        recall_any(model)
    assert _embed(model, sources[0], tmp_path / "other", monkeypatch) == 1
    assert not (tmp_path / "other").exists()
    assert json.loads(next((cache / "best-layer").glob("*-max.json")).read_text())


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({2: 50.0, 5: 60.0, 9: 40.0}, "block 5 is the best of those measured; 4 and 6 beside it are not"),
        ({4: 50.0, 5: 60.0}, "block 5 is the best of those measured; 6 beside it is not"),
        ({4: 50.0, 5: 60.0, 6: 40.0}, None),
        ({10: 50.0, 11: 60.0}, None),  # the last one has no other beside it
        ({2: None, 5: 60.0}, None),  # nothing to choose by
    ],
)
def test_a_neighbor_of_the_best_block_that_was_not_measured_is_named(
    measured: dict[int, float | None], said: str | None
) -> None:
    rows: Any = [
        SimpleNamespace(
            view=SimpleNamespace(layer=layer),
            probe=SimpleNamespace(held_out_top1=top1),
            facts={"model": {"blocks": 12}},
        )
        for layer, top1 in measured.items()
    ]
    assert unmeasured_neighbor(rows) == said


def test_the_best_block_of_all_sweeps_is_the_one_they_agree_on(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"is not known yet in .*cache; find it with: bigr-repr bench layers --model"):
        recall_any(model, cache=tmp_path / "cache")
    fingerprint, parts = load(model).fingerprint, [_Side(name) for name in ("one", "two")]
    for part in parts:
        remember(tmp_path / "cache", fingerprint, "avg", train=part, found={"layer": 2})
    remember(tmp_path / "cache", fingerprint, "max", train=parts[0], found={"layer": 3})
    assert recall_any(model, cache=tmp_path / "cache") == 2
    remember(tmp_path / "cache", fingerprint, "avg", train=parts[1], found={"layer": 1})
    with pytest.raises(ValueError, match="depends on the data set: 2 on one, 1 on two; choose one by number"):
        recall_any(model, cache=tmp_path / "cache")


class _Side:
    """A training side of three images."""

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, np.arange(3)

    def __len__(self) -> int:
        return 3

    def fingerprint(self) -> str:
        return self.name
