"""Laws of an exported network that need no runtime: what its graph computes, and what its folder states and refuses."""

from __future__ import annotations

import errno
import json
import logging
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import picture, tiny_model

import bigr_repr as br
from bigr_repr.features.exported import graph, model, targets, write
from bigr_repr.features.exported.graph import FeatureGraph
from bigr_repr.features.exported.manifest import Manifest, is_exported, read_manifest
from bigr_repr.images.inputs import read_all
from bigr_repr.system.files import sha256_of

PRE = tiny_model(layers=2)


def manifest(**fields: Any) -> Manifest:
    usual = {"config": PRE.config, "weights": PRE.fingerprint, "layers": (1,), "pool": "avg", "to": "onnx"}
    return Manifest(**{**usual, **fields})


# ---- the graph


@pytest.mark.parametrize("pool", ["avg", "grid2"])
def test_a_graph_gives_what_the_extractor_gives(pool: str) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    extractor = br.FeatureExtractor(PRE, (1, "0+1"), pool)
    ours = extractor(images)
    with torch.no_grad():
        *features, code = FeatureGraph(extractor)(images)
    for values, expected in zip(features, ours.layers.values(), strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    assert code.dtype == torch.uint8
    assert np.array_equal(code.numpy(), np.packbits(ours.codes.flatten(1).numpy(), axis=1))


@pytest.mark.parametrize(("count", "width"), [(8, 1), (9, 2), (15, 2), (16, 2), (17, 3)])
def test_codes_of_any_length_are_packed_as_stored(count: int, width: int) -> None:
    bits = torch.rand(4, count, generator=torch.Generator().manual_seed(count)) > 0.5
    packed = FeatureGraph(br.FeatureExtractor(PRE, (1,)))._packed(bits)
    assert packed.shape == (4, width)
    assert np.array_equal(packed.numpy(), np.packbits(bits.numpy(), axis=1))


# ---- what is stated


@pytest.mark.parametrize(
    ("to", "precision", "tokenizer", "label"),
    [
        ("onnx", "float32", "float32", "float32"), ("onnx", "int8", "float32", "onnx int8 with float32"),
        ("openvino", "bfloat16", "bfloat16", "openvino bfloat16"), ("onnx", "int8", "int8", "onnx int8"),
    ],
)  # fmt: skip
def test_rows_name_their_precision(to: str, precision: str, tokenizer: str, label: str) -> None:
    assert manifest(to=to, precision=precision, tokenizer=tokenizer).label == label


def test_a_record_tells_other_programs_what_to_feed_and_to_read() -> None:
    two = manifest(layers=(1, "0+1"), pool="avg", calibration=3)
    assert two.outputs == ("features_1", "features_0_1", "code")
    assert manifest().outputs == ("features", "code")
    record = two.record()
    assert record["inputs"] == {
        "images": {"dtype": "float32", "shape": ["batch", 3, 32, 32], "range": [0, 1]}
    }  # fmt: skip
    assert record["outputs"] == {
        "features_1": {"layer": 1, "dtype": "float32", "shape": ["batch", 64]},
        "features_0_1": {"layer": "0+1", "dtype": "float32", "shape": ["batch", 128]},
        "code": {"dtype": "uint8", "shape": ["batch", 24], "bits": 192, "order": record["outputs"]["code"]["order"]},
    }
    assert (record["format"], record["model"], record["calibration"]) == (1, "tiny-random", 3)
    assert manifest(pool="none", layers=("0+1",)).shape("0+1") == (16, 128)
    assert manifest(pool="grid2").shape(1) == (256,)
    assert "\\u" not in two.text()
    assert two.text().endswith("}\n")


def _written(folder: Path, **fields: Any) -> Manifest:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(b"graph")
    made = manifest(files={"model.onnx": sha256_of(folder / "model.onnx")}, versions={"torch": "2"}, **fields)
    (folder / "export.json").write_text(made.text(), encoding="utf-8")
    return made


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    made = _written(tmp_path, layers=(1, "0+1"), precision="int8", calibration=5)
    assert read_manifest(tmp_path) == made
    assert is_exported(tmp_path)
    assert is_exported(str(tmp_path))
    assert not is_exported(tmp_path / "model.onnx")
    assert not is_exported(PRE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format=2 is unknown, this version reads 1"), ({"to": "tflite"}, "to='tflite'"),
        ({"files": {}}, "needs model.onnx, but files lists none"), ({"layers": 5}, "TypeError"),
        ({"files": ["model.onnx"]}, "files is a list where an object"), ({"files": 5}, "files is a int where"),
        ({"config": {}}, "export again"), ({"files": {"model.onnx": "0" * 64}}, "damaged or replaced"),
        ({"to": "openvino"}, "to='openvino' needs model.xml, but files lists model.onnx"),
        ({"precision": "int4"}, "precision='int4' is not one of float32, bfloat16, int8"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    _written(tmp_path)
    _change(tmp_path, changes)
    with pytest.raises(ValueError, match=said) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _change(folder: Path, changes: dict[str, Any], *, seal: bool = False) -> None:
    """Change export.json as one does on purpose, who removes its digest, or by accident."""
    record = json.loads((folder / "export.json").read_text()) | changes
    if not seal:
        del record["record_sha256"]
    (folder / "export.json").write_text(json.dumps(record))


@pytest.mark.parametrize("changes", [{"precision": "int8"}, {"weights": "0" * 64}, {"layers": [0]}])
def test_a_record_that_changed_is_noticed_and_one_without_a_digest_is_read(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = _written(tmp_path)
    _change(tmp_path, {})
    assert read_manifest(tmp_path) == made  # as older versions wrote it
    _written(tmp_path)
    _change(tmp_path, changes, seal=True)
    with pytest.raises(ValueError, match=r"export\.json cannot be used: it has changed since it was written"):
        read_manifest(tmp_path)


def test_a_missing_graph_is_named_with_the_remedy(tmp_path: Path) -> None:
    _written(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.onnx is missing, but listed in export\.json; export again"):
        read_manifest(tmp_path)


def test_what_a_runtime_cannot_open_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, manifest: Manifest) -> None:
        raise RuntimeError("Exception from src/core.cpp:90:\nCheck failed\n" + "x" * 1000)

    _written(tmp_path)
    monkeypatch.setattr(model, "_onnx", fail)
    with pytest.raises(ValueError, match=r"model\.onnx cannot be opened by ONNX Runtime on .*; export again") as caught:
        br.load_exported(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert not is_exported("")
    with pytest.raises(ValueError, match="folder='' is empty"):
        br.load_exported("")


def test_a_folder_without_a_record_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not an exported network, it has no export\.json"):
        read_manifest(tmp_path)


# ---- what is written


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Writing and opening without a runtime; what a writer was given is noted."""
    given: list[Any] = []

    def writer(program: Any, manifest: Manifest, file: Path, calibration: Any) -> None:
        given.append((program, manifest, calibration))
        file.write_bytes(b"graph")

    monkeypatch.setattr(graph, "trace", lambda network: network)
    monkeypatch.setattr(write, "_NEEDED", dict.fromkeys(write._NEEDED, ()))
    for to in targets.WRITERS:
        monkeypatch.setitem(targets.WRITERS, to, writer)
        monkeypatch.setattr(model, f"_{to}", lambda path, manifest: lambda images: [])
    return given


def test_a_folder_appears_when_it_is_complete(tmp_path: Path, bare: list[Any]) -> None:
    told: list[tuple[str, int, int]] = []
    made = br.export_model(
        tmp_path / "new" / "x", model=PRE, layer=[1, 0, 1], to="openvino",
        on_progress=lambda *each: told.append(each),
    )  # fmt: skip
    stages = "tracing the network", "making the openvino network"
    assert told == [(stage, done, 1) for stage in stages for done in (0, 1)]
    assert made.manifest == read_manifest(tmp_path / "new" / "x")
    assert made.manifest.layers == (1, 0)  # each once
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == ["x"]
    assert made.manifest.files == {"model.xml": sha256_of(tmp_path / "new" / "x" / "model.xml")}
    assert {"bigr-repr", "torch", "numpy"} <= set(made.manifest.versions)
    network, given, calibration = bare[0]
    assert network.extractor.layers == {1: (1,), 0: (0,)}
    assert given == _without_files(made.manifest)
    assert calibration is None


def test_only_an_exact_model_is_exported(tmp_path: Path, bare: list[Any], opened: br.features.ExportedModel) -> None:
    with pytest.raises(ValueError, match=r"model is the exported network in .*; give the model that it was exported"):
        br.export_model(tmp_path / "x", model=opened, layer=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"were rounded to torch\.bfloat16; load it with torch\.float32"):
        br.export_model(tmp_path / "x", model=tiny_model().to(dtype=torch.bfloat16), layer=1)
    assert not (tmp_path / "x").exists()
    for layer in (np.int64(1), np.arange(1, 2), [np.int64(1)]):
        made = br.export_model(tmp_path / "x", model=PRE, layer=layer, overwrite=True)  # type: ignore[arg-type]
        assert made.manifest.layers == (1,)


def _without_files(made: Manifest) -> Manifest:
    return manifest(**{name: value for name, value in vars(made).items() if name != "files"})


def test_a_network_that_stands_there_is_replaced_only_if_asked(tmp_path: Path, bare: list[Any]) -> None:
    _written(tmp_path / "x")
    with pytest.raises(FileExistsError, match="holds an exported network; choose another folder, or overwrite it"):
        br.export_model(tmp_path / "x", model=PRE, layer=1)
    made = br.export_model(tmp_path / "x", model=PRE, layer=1, to="openvino", overwrite=True)
    assert sorted(each.name for each in (tmp_path / "x").iterdir()) == ["export.json", "model.xml"]
    assert made.manifest == read_manifest(tmp_path / "x")
    (tmp_path / "x" / "model.xml").unlink()  # to export again is the remedy
    br.export_model(tmp_path / "x", model=PRE, layer=1, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
    (tmp_path / "empty").mkdir()
    br.export_model(tmp_path / "empty", model=PRE, layer=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is not an exported network"):
        br.export_model(tmp_path / "file", model=PRE, layer=1, overwrite=True)


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(each.relative_to(folder)): each.read_bytes() if each.is_file() else None for each in folder.rglob("*")}


@pytest.mark.parametrize(
    "record",
    [
        "{}", "[1]", "mine", '{"format": 1}', '{"format": 1, "files": ["src"], "weights": "x"}',
        json.dumps({"format": 1, "to": "onnx", "files": {"thesis.txt": ""}, "weights": "0" * 64}),
    ],
)  # fmt: skip
def test_no_record_of_someone_else_makes_a_folder_one_to_replace(tmp_path: Path, bare: list[Any], record: str) -> None:
    (tmp_path / "x" / "src").mkdir(parents=True)
    (tmp_path / "x" / "src" / "thesis.txt").write_text("years of work")
    (tmp_path / "x" / "export.json").write_text(record)
    before = _contents(tmp_path)
    with pytest.raises(FileExistsError, match="exists and is not an exported network; choose another folder"):
        br.export_model(tmp_path / "x", model=PRE, layer=1, overwrite=True)
    assert _contents(tmp_path) == before
    assert not bare  # before any work


@pytest.mark.parametrize(("name", "file"), [("README.md", "README.md"), ("mine", "mine/notes.txt")])
@pytest.mark.parametrize("late", [False, True])
def test_what_else_is_in_the_folder_of_a_network_stays(
    tmp_path: Path, bare: list[Any], name: str, file: str, late: bool
) -> None:
    """Whether it is there at the start or comes while the network is made."""
    _written(tmp_path / "x")

    def put(*given: object) -> None:
        (tmp_path / "x" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / file).write_text("mine")

    if not late:
        put()
    with pytest.raises(FileExistsError, match=f"x/{name} would be lost.*choose another folder"):
        br.export_model(
            tmp_path / "x", model=PRE, layer=1, overwrite=True, on_progress=put if late else lambda *given: None
        )
    assert (tmp_path / "x" / file).read_text() == "mine"
    read_manifest(tmp_path / "x")
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_the_old_network_is_somewhere_until_the_new_one_has_its_name(
    tmp_path: Path, bare: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _written(tmp_path / "x")
    rename = Path.rename

    def watched(self: Path, to: Path) -> Path:
        whole = [read_manifest(each.parent) for each in tmp_path.glob("*/export.json")]
        assert old in whole  # were it killed now, nothing would be lost
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, "Input/output error", str(self), None, str(to))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", watched)
    with pytest.raises(OSError, match=r"Input/output error: '\S*/x'"):
        br.export_model(tmp_path / "x", model=PRE, layer=0, overwrite=True)
    assert read_manifest(tmp_path / "x") == old
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_the_folder_asked_for_is_named_where_none_can_be_made(
    tmp_path: Path, bare: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def refused(self: Path, *given: Any, **named: Any) -> None:
        if self.name.startswith(".x."):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        mkdir(self, *given, **named)

    monkeypatch.setattr(Path, "mkdir", refused)
    for write_to in (lambda place: br.export_model(place, model=PRE, layer=1), lambda place: br.save(PRE, place)):
        with pytest.raises(PermissionError, match=r"Permission denied: '\S*/x'"):
            write_to(tmp_path / "x")


@pytest.mark.parametrize(
    ("to", "precision", "tokenizer", "computed"),
    [
        ("openvino", "bfloat16", "bfloat16", ("float32", "float32")),
        ("torch", "bfloat16", "float32", ("bfloat16", "float32")),
    ],
)
def test_what_computes_in_half_precision(
    tmp_path: Path, bare: list[Any], to: str, precision: str, tokenizer: str, computed: tuple[str, str]
) -> None:
    made = br.export_model(tmp_path / "x", model=tiny_model(layers=2), layer=1, to=to, precision=precision)
    assert (made.manifest.precision, made.manifest.tokenizer) == (precision, tokenizer)
    parts = bare[0][0].extractor.transformer, bare[0][0].extractor.tokenizer
    assert tuple(str(next(part.parameters()).dtype).removeprefix("torch.") for part in parts) == computed


@pytest.mark.parametrize(("count", "used"), [(3, 3), (300, 128)])
def test_ranges_are_measured_on_images_at_even_distances(
    tmp_path: Path, bare: list[Any], count: int, used: int
) -> None:
    few = [picture(seed) for seed in range(3)]
    made = br.export_model(
        tmp_path / "x", model=PRE, layer=1, precision="int8", calibrate=[few[i % 3] for i in range(count)]
    )
    assert made.manifest.calibration == used
    found = bare[0][2]
    assert (found.shape, found.dtype) == ((used, 3, 32, 32), np.float32)
    places = np.unique(np.linspace(0, count - 1, used).astype(int)) % 3
    pixels = np.stack(list(read_all(few, 32, workers=None, ahead=3))).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, pixels[places] / 255, atol=1e-7)
    assert br.export_model(tmp_path / "y", model=PRE, layer=1).manifest.calibration == 0
    with pytest.raises(ValueError, match="precision='float32' takes no calibrate: leave the images out, or choose"):
        br.export_model(tmp_path / "z", model=PRE, layer=1, calibrate=few)


def test_an_exporter_that_fails_is_named_and_a_full_disk_is_itself(
    tmp_path: Path, bare: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, said in ((RuntimeError(""), r"\(RuntimeError\)$"), (KeyError("strange"), r"\('strange'\)$")):

        def fail(*given: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setitem(targets.WRITERS, "onnx", fail)
        with pytest.raises(RuntimeError, match=said):
            br.export_model(tmp_path / "x", model=PRE, layer=1)

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(targets.WRITERS, "onnx", full)
    with pytest.raises(OSError, match="No space left"):
        br.export_model(tmp_path / "x", model=PRE, layer=1)
    assert not list(tmp_path.iterdir())


# ---- the tokenizer stays as it is


def test_nodes_that_lead_to_the_bits_are_found_behind_every_fork() -> None:
    nodes = [
        types.SimpleNamespace(name=name, op_type=kind, input=inputs, output=[name])
        for name, kind, inputs in (
            ("conv", "Conv", ["images"]), ("skip", "Add", ["conv", "weight"]), ("bits", "Greater", ["skip", "conv"]),
            ("cast", "Cast", ["bits"]),
        )
    ]  # fmt: skip
    network = types.SimpleNamespace(graph=types.SimpleNamespace(node=nodes))
    assert sorted(targets._before_bits_onnx(network)) == ["bits", "conv", "skip"]


@pytest.mark.parametrize("tokenizer", ["float32", "int8"])
def test_quantizing_leaves_out_a_tokenizer_that_keeps_its_bits(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    double = types.ModuleType("nncf")
    double.IgnoredScope = lambda names, validate: ("scope", names, validate)  # type: ignore[attr-defined]
    double.Dataset = lambda batches, read: [read(batch) for batch in batches]  # type: ignore[attr-defined]
    double.ModelType = types.SimpleNamespace(TRANSFORMER="transformer")  # type: ignore[attr-defined]
    logger = logging.getLogger("nncf")
    monkeypatch.setattr(logger, "level", logging.INFO)

    def quantize(network: str, data: Any, **given: Any) -> str:
        asked.update(given, data=data, level=logger.getEffectiveLevel())
        return "made"

    double.quantize = quantize  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "nncf", double)
    images = np.arange(20 * 12, dtype=np.float32).reshape(20, 3, 2, 2)
    made = manifest(precision="int8", tokenizer=tokenizer)
    assert targets._quantized("network", made, images, ["a", "b"]) == "made"
    assert [len(each["images"]) for each in asked["data"]] == [8, 8, 4]
    assert np.array_equal(np.concatenate([each["images"] for each in asked["data"]]), images)
    assert asked["ignored_scope"] == (("scope", ["a", "b"], False) if tokenizer == "float32" else None)
    assert (asked["subset_size"], asked["model_type"]) == (3, "transformer")
    assert (asked["level"], logger.level) == (logging.WARNING, logging.INFO)  # it has hundreds of lines to say


# ---- opening


def test_images_of_another_kind_are_refused_and_a_missing_runtime_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = br.features.ExportedModel(_written(tmp_path), tmp_path)
    assert (exported.config, exported.fingerprint, exported.precision) == (PRE.config, PRE.fingerprint, "float32")
    results = [np.zeros((2, 64), np.float32), np.zeros((2, 24), np.uint8)]
    monkeypatch.setattr(model, "_onnx", lambda path, manifest: lambda images: results)
    features, code = exported(np.zeros((2, 3, 32, 32), np.float32))
    assert len(features) == 1
    assert code is results[1]
    for wrong in (np.zeros((2, 3, 32, 32)), np.zeros((3, 32, 32), np.float32), np.zeros((1, 3, 32, 16), np.float32)):
        with pytest.raises(ValueError, match=r"tiny-random reads float32 \(B, 3, 32, 32\) in \[0, 1\]"):
            exported(wrong)
    for missing, error in (("onnxruntime", ImportError), ("numpy.other", ModuleNotFoundError)):

        def absent(path: Path, manifest: Manifest, name: str = missing) -> Any:
            raise ModuleNotFoundError(f"No module named {name}", name=name)

        monkeypatch.setattr(model, "_onnx", absent)
        with pytest.raises(error) as caught:
            br.features.ExportedModel(exported.manifest, tmp_path)(np.zeros((2, 3, 32, 32), np.float32))
        assert ("pip install onnxruntime" in str(caught.value)) == (missing == "onnxruntime")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> br.features.ExportedModel:
    """A network of two layers whose runtime is PyTorch in this process."""
    extractor = br.FeatureExtractor(PRE, (1, "0+1"))

    def session(images: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [each.numpy() for each in FeatureGraph(extractor)(torch.from_numpy(images))]

    monkeypatch.setattr(model, "_onnx", lambda path, manifest: session)
    return br.features.ExportedModel(_written(tmp_path, layers=(1, "0+1")), tmp_path)


def test_an_extractor_reads_an_exported_network_as_its_model(opened: br.features.ExportedModel) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = br.FeatureExtractor(PRE, ("0+1", 1))(images)
    theirs = br.FeatureExtractor(opened, ("0+1", 1))(images)
    assert list(theirs.layers) == ["0+1", 1]
    for layer, values in ours.layers.items():
        torch.testing.assert_close(theirs.layers[layer], values, rtol=1e-4, atol=1e-5)
    assert torch.equal(theirs.codes, ours.codes)
    assert theirs.finite.tolist() == [True] * 3
    whole = opened._session

    def blind(pixels: np.ndarray) -> list[np.ndarray]:
        """As where the tokenizer gives nothing finite for the second image."""
        *features, code = whole(pixels)
        for each in features:
            each[1] = np.nan
        return [*features, code]

    vars(opened)["_session"] = blind
    assert br.FeatureExtractor(opened, (1,))(images).finite.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("layers", "options", "said"),
    [
        ((0,), {}, r"layer=0 is not in this exported network, which has 1, 0\+1; export it again"),
        ((1,), {"pool": "max"}, "pool='max', but this network was exported with 'avg'"),
        ((1,), {"condition": br.features.FeatureCondition(given=1)}, "do not support conditions; use the model"),
        ((1,), {"dtype": torch.bfloat16}, "to onnx in float32: leave out dtype, device, compile"),
        ((1,), {"compile": True}, "leave out dtype, device, compile"),
        ((1,), {"device": "cuda"}, "leave out dtype, device, compile"),
        ((1,), {"device": "gpu9"}, "leave out dtype, device, compile"),
    ],
)  # fmt: skip
def test_what_a_network_was_not_exported_for_is_refused(
    opened: br.features.ExportedModel, layers: tuple[int, ...], options: dict[str, Any], said: str
) -> None:
    for device in ("cpu", "auto", torch.device("cpu", 0)):
        br.FeatureExtractor(opened, (1,), dtype=torch.float32, device=device)
    black = np.zeros((1, 32, 32, 3), np.uint8)
    assert br.extract_features(black, model=opened, layer=1, device="auto").shape == (1, 64)
    with pytest.raises(ValueError, match=said):
        br.FeatureExtractor(opened, layers, **options)
