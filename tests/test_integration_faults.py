"""Laws of the frameworks' adapters: one vector for each row or a clear error, saved is loaded, limits are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import picture, tiny_model, write_pictures

import bigr_repr as br
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.features.exported import manifest
from bigr_repr.features.exported import model as exported
from bigr_repr.images import ImageError, decode_image
from bigr_repr.integrations import BatchEmbedder, BigrModule
from bigr_repr.system.files import sha256_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(path) for path in write_pictures(tmp_path_factory.mktemp("files"), 3)]


@pytest.fixture(scope="module")
def vectors(pre: Pretrained, files: list[str]) -> NDArray[np.float32]:
    return br.extract_features(files, model=pre, layer=1)


def _frame(files: list[str]) -> Any:
    return __import__("pandas").DataFrame({"path": files}, index=[7, 8, 9])


FORMS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array of text": np.array,
    "array of objects": lambda files: np.array(files, object),
    "column": lambda files: np.array(files)[:, None],
    "paths": lambda files: [Path(file) for file in files],
    "frame": _frame,
    "series": lambda files: _frame(files)["path"],
    "pictures": lambda files: [decode_image(file) for file in files],
    "array of pictures": lambda files: np.stack([np.asarray(decode_image(file)) for file in files]),
    "bytes": lambda files: [{"bytes": Path(file).read_bytes(), "path": None} for file in files],
    "paths not read": lambda files: [{"bytes": None, "path": file} for file in files],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_rows_gives_a_vector_for_each(
    pre: Pretrained, files: list[str], vectors: NDArray[np.float32], form: str
) -> None:
    rows = FORMS[form](files)
    assert np.array_equal(br.BigrFeatures(pre, layer=1).fit_transform(rows), vectors)
    assert np.array_equal(BatchEmbedder(pre, layer=1).embed_all(rows), vectors)


def test_a_split_of_paths_and_a_table_are_steps_of_a_pipeline(
    pre: Pretrained, files: list[str], vectors: NDArray[np.float32]
) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.model_selection import train_test_split

    step = br.BigrFeatures(pre, layer=np.int64(1))  # as GridSearchCV takes it from np.arange
    some, _ = train_test_split(np.array(files), test_size=1, shuffle=False)
    assert np.array_equal(step.fit(some).transform(some), vectors[:2])
    table = make_column_transformer((step, ["path"]))
    assert np.array_equal(table.fit_transform(_frame(files)), vectors)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.zeros((4, 3072)), r"X has shape \(4, 3072\), which is not one picture for each row; pass an array \(n, H"),
        (np.zeros((8, 8, 3)), r"X has shape \(8, 8, 3\)"),
        (np.array([["a", "b"]]), r"X has shape \(1, 2\)"),
        (torch.zeros(3, 32, 32), r"X has shape \(3, 32, 32\)"),
        ("pictures", "X is a single str"),
        ([[0.1, 0.2]], "X, row 0 is a list, not one picture; give a path"),
        ([np.zeros((2, 8, 8, 3))], r"X, row 0 is a ndarray of shape \(2, 8, 8, 3\), not one picture"),
        ([{"a": 1}], "X, row 0 is a dict, not one picture"),
        ([b"abc"], "X, row 0 is a bytes"),
        ([float("nan")], "X, row 0 is nan, not a picture; leave such rows out"),
    ],
)
def test_what_is_not_one_picture_for_each_row_is_refused(pre: Pretrained, rows: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        br.BigrFeatures(pre, layer=1).transform(rows)


def test_a_table_of_several_columns_is_refused(pre: Pretrained, files: list[str]) -> None:
    table = _frame(files).assign(label=1)
    with pytest.raises(ValueError, match=r"X has 2 columns \(path, label\); pass only the one with the pictures"):
        br.BigrFeatures(pre, layer=1).transform(table)


def test_a_folder_or_a_pattern_is_not_an_entry_and_a_name_like_one_is(
    pre: Pretrained, files: list[str], vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    embedder = BatchEmbedder(pre, layer=1)
    folder = Path(files[0]).parent
    for several in (folder, folder / "*.png"):
        with pytest.raises(ValueError, match=r"images, row 1 is '.*', a folder or a pattern; list its files"):
            embedder.embed_all([files[0], str(several)])
        with pytest.raises(ValueError, match="a folder or a pattern"):
            embedder.embed(several)
    named = tmp_path / "a[1].png"
    named.write_bytes(Path(files[1]).read_bytes())
    assert np.array_equal(embedder.embed_all([files[0], named, files[2]]), vectors)
    with pytest.raises(FileNotFoundError, match="no such file"):
        embedder.embed_all(["nothing.png"])


def test_tensors_of_the_models_size_are_used_as_they_are(pre: Pretrained) -> None:
    """Without rounding to bytes."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = br.extract_features(images, model=pre, layer=1)
    assert np.array_equal(BatchEmbedder(pre, layer=1).embed_all(images), ours)


def test_encoded_pictures_in_a_batch_are_decoded_as_their_files_are(
    pre: Pretrained, files: list[str], vectors: NDArray[np.float32]
) -> None:
    embedder = BatchEmbedder(pre, layer=1, column="photo", codes=True)
    photos = [{"bytes": Path(file).read_bytes(), "path": "name.png"} for file in files]
    found = embedder({"photo": photos})
    assert np.array_equal(np.stack(found["embedding"]), vectors)
    assert found["code"] == [row.tobytes() for row in br.encode_codes(files, model=pre)]
    with pytest.raises(ValueError, match="column='photo', row 1 is None, not a picture; leave such rows out first"):
        embedder({"photo": [photos[0], None]})
    with pytest.raises(ValueError, match="row 1 is None"):
        embedder({"photo": [photos[0], {"bytes": None, "path": None}]})
    with pytest.raises(ImageError, match=r"^name\.png: "):
        embedder({"photo": [{"bytes": b"damaged", "path": "name.png"}]})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_data_set_maps_alike_whether_it_decodes_or_not(
    pre: Pretrained, files: list[str], vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra interop is not installed")
    br.save(pre, tmp_path / "model")
    embedder = BatchEmbedder(tmp_path / "model", layer=1)
    for decode in (True, False):
        data = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image(decode=decode))
        found = data.map(embedder, batched=True)["embedding"]
        assert np.array_equal(np.array(found, np.float32), vectors)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_saved_sentence_transformer_is_loaded_again(pre: Pretrained, files: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the extra interop is not installed")
    made = library.SentenceTransformer(modules=[BigrModule(pre, layer="1+2", pool="max")], device="cpu")
    expected = made.encode(files)
    for _ in range(2):  # a model may be saved where one was
        made.save(str(tmp_path / "saved"))
    (tmp_path / "saved").rename(tmp_path / "moved")
    again = library.SentenceTransformer(str(tmp_path / "moved"), trust_remote_code=True, device="cpu")
    assert np.array_equal(again.encode(files), expected)
    assert (again[0].layer, again[0].extractor.pool) == ("1+2", "max")


def test_a_module_is_saved_with_its_model_and_damage_is_named(pre: Pretrained, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra interop is not installed")
    BigrModule(pre, layer=-1).save(str(tmp_path), safe_serialization=True)
    again = BigrModule.load(str(tmp_path), subfolder="", trust_remote_code=True)
    inputs = again.preprocess([picture(1)])
    ours = br.extract_features([picture(1)], model=pre, layer=-1)
    assert np.array_equal(again(inputs)["sentence_embedding"].numpy(), ours)
    (tmp_path / "bigr_module.json").write_text('{"layer": 1}')
    with pytest.raises(ValueError, match=r"bigr_module\.json cannot be used: .*; save the model again"):
        BigrModule.load(str(tmp_path))


def test_a_module_saved_where_another_was_is_the_one_loaded(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kind of model either is; files that are no model's are not lost."""
    pytest.importorskip("sentence_transformers", reason="the extra interop is not installed")
    monkeypatch.setattr(exported, "_onnx", lambda path, manifest: lambda images: [])
    made = tmp_path / "network"
    made.mkdir()
    (made / "model.onnx").write_bytes(b"graph")
    (made / "notes.txt").write_text("mine")
    told = manifest.Manifest(
        config=pre.config, weights=pre.fingerprint, layers=(1,), pool="avg", to="onnx",
        files={"model.onnx": sha256_of(made / "model.onnx")},
    )  # fmt: skip
    (made / "export.json").write_text(told.text())
    network, out = br.load_exported(made), tmp_path / "out"
    for model in (network, pre, tiny_model(1), network, network, pre):
        BigrModule(model, layer=1).save(str(out))
        again = BigrModule.load(str(out))
        assert type(again._saved) is type(model)
        assert again._saved.fingerprint == model.fingerprint
        again.save(str(out))  # into its own folder
        assert sorted(each.name for each in out.iterdir()) == ["bigr_module.json", "model"]
    (out / "model" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.txt is not of a model that was saved here; move it away"):
        BigrModule(network, layer=1).save(str(out))
    assert BigrModule.load(str(out))._saved.fingerprint == pre.fingerprint
    assert (out / "model" / "thesis.txt").read_text() == "years of work"


def test_numbers_of_classes_and_sizes_of_images_are_named(pre: Pretrained) -> None:
    said = "must be at least 0; choose 0 for features"
    with pytest.raises(ValueError, match=f"num_classes=-1 {said}"):
        br.as_timm(pre, layer=1, num_classes=-1)
    style = br.as_timm(pre, layer=np.int64(1))
    with pytest.raises(ValueError, match=f"num_classes=-2 {said}"):
        style.reset_classifier(-2)
    for shape in ((1, 3, 16, 16), (3, 32, 32)):
        with pytest.raises(
            ValueError, match=r"images has shape \(.*\); tiny-random reads \(B, 3, 32, 32\); prepare them"
        ):
            style(torch.zeros(shape))


def test_whole_numbers_of_any_kind_name_layers(pre: Pretrained) -> None:
    ours = br.extract_features([picture(1)], model=pre, layer=[1, 2])
    for layer in (np.int64(1), np.array(1), torch.tensor(1)):
        assert np.array_equal(br.extract_features([picture(1)], model=pre, layer=layer), ours[1])
    found = br.extract_features([picture(1)], model=pre, layer=np.arange(1, 3))
    assert list(found) == [1, 2]
    assert all(np.array_equal(found[layer], ours[layer]) for layer in (1, 2))
    for wrong in (1.0, True, None):
        with pytest.raises(ValueError, match=f"layer={wrong} is neither a whole number nor"):
            br.extract_features([picture(1)], model=pre, layer=wrong)  # type: ignore[call-overload]
