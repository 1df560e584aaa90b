"""Exported networks: the same features and bits as the model's own, in every place that takes a model."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bigr_repr_cli.main import app
from tiny_model import picture, tiny_model, write_pictures
from typer.testing import CliRunner

import bigr_repr as br
from bigr_repr.features import ExportedModel

pytest.importorskip("onnxruntime", reason="the extra export is not installed")

LAYERS = (1, "0+1")
PRE = tiny_model(layers=2, side=8, levels=2)  # few operations: each is compiled
SIDE = PRE.config.image_size
SLOW = pytest.mark.slow
RUNTIMES = [
    ("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "int8"), ("onnx", "int8"),
    # Its compiler runs others, and warns of them in its own name.
    pytest.param("torch", "bfloat16", marks=pytest.mark.filterwarnings("default")),
]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    return br.export_model(tmp_path_factory.mktemp("exported") / "onnx", model=PRE, layer=LAYERS, pool="grid2")


def _images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@SLOW
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_features_and_bits_are_those_of_the_model(exported: ExportedModel, count: int) -> None:
    """Whatever the batch size: the graph was traced with another one."""
    ours = br.FeatureExtractor(PRE, LAYERS, "grid2")(_images(count))
    theirs = br.FeatureExtractor(exported, reversed(LAYERS), "grid2")(_images(count))
    assert torch.equal(theirs.codes, ours.codes)
    assert bool(theirs.finite.all())
    assert theirs.layers.keys() == ours.layers.keys()
    for layer, values in ours.layers.items():
        torch.testing.assert_close(theirs.layers[layer], values, rtol=1e-4, atol=1e-5)


@SLOW
@pytest.mark.parametrize(("to", "precision"), RUNTIMES)
def test_other_runtimes_and_precisions_agree(tmp_path: Path, to: str, precision: str) -> None:
    """Features point the same way; the bits are equal wherever the tokenizer stays in float32."""
    calibrate = [picture(seed) for seed in range(16)] if precision == "int8" else None
    made = br.export_model(tmp_path / "x", model=PRE, layer=1, to=to, precision=precision, calibrate=calibrate)
    ours = br.FeatureExtractor(PRE, (1,))(_images(5))
    theirs = br.FeatureExtractor(made, (1,))(_images(5))
    again = br.FeatureExtractor(br.load_exported(tmp_path / "x"), (1,))(_images(1))
    assert torch.equal(again.codes, theirs.codes[:1])
    equal = (theirs.codes == ours.codes).float().mean()
    assert equal == 1 if made.manifest.tokenizer == "float32" else equal > 0.97
    exact = precision == "float32"
    cosine = torch.nn.functional.cosine_similarity(theirs.layers[1], ours.layers[1])
    assert cosine.min() > (0.999999 if exact else 0.98)
    assert made.precision == ("float32" if exact else made.precision)
    assert (made.precision == "float32") == exact
    assert made.manifest.calibration == (16 if precision == "int8" else 0)


@SLOW
def test_nothing_is_reported_to_the_makers_of_the_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's converter does by default."""
    telemetry = pytest.importorskip("openvino_telemetry").Telemetry
    monkeypatch.setattr(telemetry, "_SingletonMetaClass__single_instance", None)
    monkeypatch.delenv("CI", raising=False)
    br.export_model(tmp_path / "x", model=PRE, layer=1, to="openvino")
    assert not telemetry().consent
    assert "CI" not in os.environ


@SLOW
def test_mirror_and_codes_alone(exported: ExportedModel) -> None:
    ours = br.FeatureExtractor(PRE, (1,), "grid2", mirror=True)(_images(3))
    theirs = br.FeatureExtractor(exported, (1,), "grid2", mirror=True)(_images(3))
    torch.testing.assert_close(theirs.layers[1], ours.layers[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(br.FeatureExtractor(exported, ())(_images(3)).codes, ours.codes)


@SLOW
def test_an_image_without_finite_numbers_is_told_apart(exported: ExportedModel) -> None:
    images = _images(3).numpy()
    images[1] = np.nan
    features, _ = exported(images)
    assert [bool(np.isnan(row).all()) for row in features[0]] == [False, True, False]


@SLOW
def test_other_programs_can_feed_the_graph_by_what_it_says_of_itself(exported: ExportedModel) -> None:
    """With ONNX Runtime alone: names, shapes and ranges from the metadata, no code of ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    stated = json.loads(session.get_modelmeta().custom_metadata_map["bigr_repr"])
    (name,) = stated["inputs"]
    batch = _images(4).numpy()
    found = dict(zip(stated["outputs"], session.run(list(stated["outputs"]), {name: batch}), strict=True))
    ours = br.FeatureExtractor(PRE, LAYERS, "grid2")(_images(4))
    bits = np.unpackbits(found["code"], axis=1, count=stated["outputs"]["code"]["bits"])
    assert np.array_equal(bits.astype(bool), ours.codes.flatten(1).numpy())
    for output, about in stated["outputs"].items():
        assert [len(batch), *about["shape"][1:]] == list(found[output].shape)
        assert about["dtype"] == found[output].dtype.name
    assert stated["weights"] == PRE.fingerprint
    assert stated["inputs"][name]["range"] == [0, 1]
    assert stated["preprocessing"]


@SLOW
def test_embed_takes_its_folder(exported: ExportedModel, tmp_path: Path) -> None:
    """Also on the command line; what it stores can be compared with the model's own rows."""
    files = write_pictures(tmp_path / "images", 5)
    (tmp_path / "images" / "broken.png").write_bytes(b"none")
    options = ["--layer", "1", "--pool", "grid2", "--codes", "--out", str(tmp_path / "theirs"), "--batch-size", "2"]
    done = CliRunner().invoke(app, ["embed", str(tmp_path / "images"), "--model", str(exported.folder), *options])
    assert done.exit_code == 0, done.output
    br.embed_images(files, tmp_path / "ours", model=PRE, layers=(1,), pool="grid2", codes=True)
    ours, theirs = br.read_embeddings(tmp_path / "ours"), br.read_embeddings(tmp_path / "theirs")
    assert len(theirs.paths) == 5
    np.testing.assert_allclose(theirs.vectors, ours.vectors, rtol=1e-4, atol=1e-5)
    assert np.array_equal(theirs.codes, ours.codes)


@SLOW
def test_search_takes_pictures_by_it(exported: ExportedModel, tmp_path: Path) -> None:
    from bigr_repr.retrieval.queries import encode_queries, model_of

    made = {"of": "tokenizer bits", "layer": None, "pooling": None, "model": PRE.config.name,
            "weights_sha256": PRE.fingerprint, "precision": "float32"}  # fmt: skip
    from bigr_repr.retrieval.codes.provenance import provenance_by

    made["preprocessing"] = {}
    made = provenance_by(PRE, made)
    by_it = encode_queries(picture(3), model_of(made, exported), made, None)
    assert np.array_equal(by_it.codes, encode_queries(picture(3), PRE, made, None).codes)


@SLOW
def test_serve_answers_with_it(exported: ExportedModel) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from bigr_repr.serve import Access, Service, create_app

    service = Service(exported)
    buffer = io.BytesIO()
    picture(3, SIDE, SIDE).save(buffer, "PNG")
    body = {"input": base64.b64encode(buffer.getvalue()).decode()}
    with TestClient(create_app(service, Access()), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        pixels = torch.from_numpy(np.asarray(picture(3, SIDE, SIDE)).copy()).permute(2, 0, 1)[None]
        ours = br.FeatureExtractor(PRE, (1,), "grid2")(pixels).layers[1][0]
        np.testing.assert_allclose(answer.json()["data"][0]["embedding"], ours, rtol=1e-4, atol=1e-5)
        refused = client.post("/v1/embeddings", json=body | {"layer": 0})
        assert refused.status_code == 400
        assert "layer=0 is not in this exported network" in refused.text
    service.close()


@SLOW
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": (0,)}, "layer=0 is not in this exported network, which has 1, 0\\+1"),
        ({"layers": (1,), "pool": "avg"}, "pool='avg', but this network was exported with 'grid2'"),
        ({"layers": (1,), "pool": "grid2", "dtype": torch.bfloat16}, "leave out dtype"),
    ],
)
def test_what_it_was_not_exported_for_is_refused(exported: ExportedModel, fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        br.FeatureExtractor(exported, **fields)  # type: ignore[arg-type]


@SLOW
def test_a_damaged_graph_is_refused(exported: ExportedModel, tmp_path: Path) -> None:
    for file in exported.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "model.onnx").open("r+b") as graph:
        graph.seek(-200, io.SEEK_END)
        graph.write(b"\xff")
    with pytest.raises(ValueError, match=r"model\.onnx: damaged or replaced"):
        br.load_exported(tmp_path)
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(ValueError, match=r"export\.json cannot be used"):
        br.load_exported(tmp_path)


@SLOW
def test_a_model_is_asked_for_where_only_that_serves(exported: ExportedModel) -> None:
    with pytest.raises(ValueError, match="is an exported network, only for embed"):
        br.load(exported.folder)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"to": "tflite"}, ValueError, "to='tflite' is unknown; choose one of onnx, openvino, torch"),
        ({"precision": "int4"}, ValueError, "precision='int4' is unknown"),
        ({"layer": 7}, ValueError, "layer=7 is outside 0..1"),
        ({"layer": []}, ValueError, "names no layer"),
        ({"pool": "mean"}, ValueError, "pool='mean' is unknown"),
        ({"precision": "bfloat16"}, ValueError, "ONNX Runtime does not support bfloat16 on CPUs"),
        ({"precision": "int8"}, ValueError, "precision='int8' needs calibrate"),
        ({"precision": "int8", "calibrate": []}, ValueError, "calibrate has no images"),
        ({"to": "torch", "precision": "int8", "calibrate": []}, ValueError, "choose onnx or openvino"),
        ({"tokenizer": "int8"}, ValueError, "tokenizer='int8' does not work with precision='float32'"),
    ],
)
def test_bad_requests_end_with_one_line(
    tmp_path: Path, fields: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        br.export_model(tmp_path / "x", **{"model": PRE, "layer": 1} | fields)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_an_exporter_cannot_do_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing behind."""
    from bigr_repr.features.exported import graph

    def fail(*_: object) -> None:
        raise NotImplementedError("no operator aten::strange\nand pages of advice")

    monkeypatch.setattr(graph, "trace", fail)
    with pytest.raises(RuntimeError, match=r"tiny-random cannot be exported \(no operator aten::strange\)$"):
        br.export_model(tmp_path / "x", model=PRE, layer=1)
    assert not list(tmp_path.iterdir())


@SLOW
def test_a_causal_model_exports_too() -> None:
    """Its graph, traced, gives what the extractor gives, whatever the batch."""
    from bigr_repr.features.exported.graph import FeatureGraph, trace

    generator = replace(PRE.config.generator, attention="causal")
    causal = br.Pretrained(replace(PRE.config, generator=generator), PRE.tokenizer, br.BiGR(generator).eval())
    extractor = br.FeatureExtractor(causal, (1,))
    with torch.no_grad():
        features, code = trace(FeatureGraph(extractor)).module()(_images(3))
    ours = extractor(_images(3))
    torch.testing.assert_close(features, ours.layers[1], rtol=1e-4, atol=1e-5)
    assert np.array_equal(np.unpackbits(code.numpy(), axis=1).astype(bool), ours.codes.flatten(1).numpy())


def test_a_folder_of_other_things_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an exported network"):
        br.export_model(tmp_path, model=PRE, layer=1, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_without_the_packages_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'bigr-repr\[export\]'"):
        br.export_model(tmp_path / "x", model=PRE, layer=1)
