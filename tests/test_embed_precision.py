"""`embed --precision int8` and bfloat16: one measured line, and rows whose network is kept."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bigr_repr_cli.main import app
from tiny_model import picture, tiny_model, write_pictures
from typer.testing import CliRunner

import bigr_repr as br
from bigr_repr.embed.options import EmbedOptions
from bigr_repr.embed.precision import measure_tradeoff, sample_images
from bigr_repr.embed.run import embed_in_8_bits

PRE = tiny_model(layers=2, side=8, levels=2)  # few operations: each is compiled
SIDE = PRE.config.image_size
LINE = re.compile(
    r"(int8|bfloat16): ([\d.]+) times float32's speed on this machine; cosine of features ([\d.]+); ([\d.]+) % of the "
    r"codes' bits equal \((\d+) images\)"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    br.save(PRE, folder / "model")
    write_pictures(folder / "images", 6)
    (folder / "images" / "broken.png").write_bytes(b"none")
    return folder


def _embed(place: Path, out: Path, *options: str) -> re.Match[str]:
    command = ["embed", str(place / "images"), "--model", str(place / "model"), "--layer", "1", "--codes"]
    done = CliRunner().invoke(app, [*command, "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    found = LINE.search(done.output)
    assert found, done.output
    return found


@pytest.mark.slow
def test_bfloat16_says_what_it_costs(place: Path, tmp_path: Path) -> None:
    found = _embed(place, tmp_path / "out", "--precision", "bfloat16")
    assert float(found[3]) > 0.99
    assert int(found[5]) == 6  # the broken one is not among them


@pytest.mark.slow
def test_int8_keeps_its_network_beside_the_rows(place: Path, tmp_path: Path) -> None:
    """A second run goes on with it, and pictures can be compared with the rows by it, not by the model."""
    pytest.importorskip("openvino", reason="the extra export is not installed")
    found = _embed(place, tmp_path / "out", "--precision", "int8")
    assert float(found[3]) > 0.98
    assert float(found[4]) == 100  # the tokenizer stays in float32
    rows = br.read_embeddings(tmp_path / "out")
    kept = br.load_exported(tmp_path / "out" / "network-int8")
    files = [place / "images" / path for path in rows.paths]
    np.testing.assert_allclose(br.extract_features(files, model=kept, layer=1), rows.vectors, rtol=1e-3, atol=1e-4)
    before = kept.manifest.files
    write_pictures(place / "images", 1, first=6)
    _embed(place, tmp_path / "out", "--precision", "int8", "--update")
    assert len(br.read_embeddings(tmp_path / "out").paths) == 7
    assert br.load_exported(tmp_path / "out" / "network-int8").manifest.files == before
    runner = CliRunner()
    built = runner.invoke(
        app, ["index", "build", str(tmp_path / "out"), "--codes", "bits", "--out", str(tmp_path / "i")]
    )
    assert built.exit_code == 0, built.output
    query = ["search", str(files[0]), "--index", str(tmp_path / "i"), "-k", "1"]
    by_it = runner.invoke(app, [*query, "--model", str(tmp_path / "out" / "network-int8")])
    assert by_it.exit_code == 0, by_it.output
    assert re.search(r"\b0\b.*00000\.png", by_it.output)
    refused = runner.invoke(app, [*query, "--model", str(place / "model")])
    assert "made by an exported network (openvino int8 with float32)" in str(refused.exception)


def test_the_measure_tells_a_perfect_copy(place: Path) -> None:
    images = sample_images([str(place / "images")], EmbedOptions(), SIDE)
    extractor = br.FeatureExtractor(PRE, (1,))
    found = measure_tradeoff(extractor, extractor, images)
    assert found.cosine == pytest.approx(1)
    assert found.bits == 1
    assert found.speed > 0


def test_what_cannot_be_measured_or_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"none")
    with pytest.raises(ValueError, match="none of the first images can be read"):
        sample_images(str(tmp_path), EmbedOptions(), SIDE)
    pixels = torch.from_numpy(np.asarray(picture(1, SIDE, SIDE)).copy()).permute(2, 0, 1)[None]
    with pytest.raises(ValueError, match=r"out=s3://bucket/run: .* choose a local folder"):
        embed_in_8_bits(
            tmp_path, "s3://bucket/run", EmbedOptions(layers=1), model=PRE, calibrate=pixels,
            on_network=lambda fast, exact: None,
        )  # fmt: skip
