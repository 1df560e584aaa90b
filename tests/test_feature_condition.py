"""Features with a class or caption given, or tokens masked: what is computed and recorded, and what does not mix."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from text_model import text_model
from tiny_model import picture, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.checkpoints.prompts import read_captions
from bigr_repr.codes import grid_to_tokens
from bigr_repr.config import ModelConfig
from bigr_repr.embed import embed_images, read_embeddings
from bigr_repr.embed.dataset.read import EmbeddingSet
from bigr_repr.evaluate.data.splits import open_data
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.runs.bench import bench
from bigr_repr.evaluate.runs.extraction import features_of
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.features.condition import NO_CONDITION, FeatureCondition
from bigr_repr.features.extract import extract_features
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.images.decode import center_crop
from bigr_repr.models.bigr import Given
from bigr_repr.retrieval.build import build_index
from bigr_repr.retrieval.search import search_images
from bigr_repr.serve.encoder import Encoder, EncodeTask

HALF = FeatureCondition(given=1, masked_share=0.5, mask_seed=7)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    crops = [center_crop(picture(seed), 32) for seed in range(5)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def by_hand(pre: Pretrained, pixels: torch.Tensor, labels: Given | None, masked: torch.Tensor | None) -> np.ndarray:
    with torch.no_grad():
        codes = grid_to_tokens(pre.tokenizer.encode(pixels.float() / 255))
        states = pre.generator.hidden_states(codes, labels, layers=(2,), masked=masked)
    return states[2].mean(1).numpy()


# ---- what is computed


def test_features_are_the_states_with_that_class_and_those_tokens_masked(pre: Pretrained, pixels: torch.Tensor) -> None:
    labels = torch.full((5,), 1)
    found = extract_features(pixels, model=pre, layer=2, condition=1)
    np.testing.assert_allclose(found, by_hand(pre, pixels, labels, None), rtol=0, atol=1e-5)
    places = torch.from_numpy(HALF.masked(16))
    assert int(places.sum()) == 8
    found = extract_features(pixels, model=pre, layer=2, condition=HALF)
    np.testing.assert_allclose(found, by_hand(pre, pixels, labels, places.expand(5, -1)), rtol=0, atol=1e-5)
    usual = extract_features(pixels, model=pre, layer=2)
    assert np.array_equal(usual, extract_features(pixels, model=pre, layer=2, condition=NO_CONDITION))
    assert np.abs(found - usual).max() > 1e-2, "a condition must tell for this test to say anything"


def test_masks_are_those_of_the_seed_whatever_the_batch(pre: Pretrained, pixels: torch.Tensor) -> None:
    whole = extract_features(pixels, model=pre, layer=2, condition=HALF)
    single = extract_features(pixels, model=pre, layer=2, condition=HALF, batch_size=1)
    np.testing.assert_allclose(whole, single, rtol=0, atol=1e-5)
    np.testing.assert_allclose(whole[3:], extract_features(pixels[3:], model=pre, layer=2, condition=HALF), atol=1e-5)
    other = extract_features(pixels, model=pre, layer=2, condition=dataclasses.replace(HALF, mask_seed=8))
    assert np.abs(whole - other).max() > 1e-2
    for share, count in ((0.001, 1), (0.25, 4), (0.999, 15)):
        assert FeatureCondition(masked_share=share).masked(16).sum() == count


def test_codes_are_those_without_a_condition(pre: Pretrained, pixels: torch.Tensor) -> None:
    told = FeatureExtractor(pre, (0,), condition=HALF)(pixels).codes
    assert torch.equal(told, FeatureExtractor(pre, (0,))(pixels).codes)


def test_captions_are_conditions_of_text_models(pixels: torch.Tensor) -> None:
    pre = text_model()
    side = pre.config.image_size
    images = torch.from_numpy(np.stack([center_crop(picture(seed), side) for seed in range(3)])).permute(0, 3, 1, 2)
    captions = read_captions(pre, ["a red ball"] * 3)
    found = extract_features(images, model=pre, layer=2, condition=" a red ball ")
    np.testing.assert_allclose(found, by_hand(pre, images, captions, None), rtol=0, atol=1e-5)
    assert np.abs(found - extract_features(images, model=pre, layer=2, condition="a blue ball")).max() > 1e-3


def test_a_class_has_a_number_and_a_name(pre: Pretrained, pixels: torch.Tensor) -> None:
    config = dataclasses.replace(pre.config, class_names=("cat", "dog", "bird"))
    named = Pretrained(config, pre.tokenizer, pre.generator)
    by_name = extract_features(pixels, model=named, layer=2, condition="dog")
    assert np.array_equal(by_name, extract_features(pixels, model=named, layer=2, condition=1))
    assert FeatureCondition(given="dog").of(config).record() == {"given": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"given": 3}, "outside 0..2"), ({"given": "cat"}, "no names"), ({"given": " "}, "is empty"),
        ({"given": 1.5}, "neither a class nor a caption"), ({"given": True}, "neither a class nor a caption"),
        ({"masked_share": 1.0}, "outside"), ({"masked_share": -0.1}, "outside"),
        ({"masked_share": float("nan")}, "outside"), ({"masked_share": 0.5, "mask_seed": -1}, "at least 0"),
        ({"masked_share": "0.25"}, "masked_share='0.25' is outside"), ({"masked_share": None}, "outside"),
        ({"masked_share": 0.5, "mask_seed": 1.5}, "mask_seed=1.5 must be a whole number"),
        ({"masked_share": 0.5, "mask_seed": "1"}, "mask_seed='1' must"), ({"mask_seed": True}, "mask_seed=True must"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(pre: Pretrained, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(pre, (2,), condition=FeatureCondition(**given))  # type: ignore[arg-type]


def test_numbers_of_any_kind_are_those_of_python() -> None:
    """One condition has one record, whose name is that of the data sets made with it."""
    ours = FeatureCondition(given=1, masked_share=0.25, mask_seed=3)
    theirs = FeatureCondition(given=np.int64(1), masked_share=np.float32(0.25), mask_seed=np.uint8(3))  # type: ignore[arg-type]
    assert (theirs, theirs.tag, theirs.record()) == (ours, ours.tag, ours.record())
    assert bool(FeatureCondition(masked_share=np.float32(0.25))) is True  # type: ignore[arg-type]
    assert FeatureCondition.from_record(json.loads(json.dumps(theirs.record()))) == ours


def test_models_in_order_and_models_without_classes_refuse(pre: Pretrained) -> None:
    def changed(**generator: object) -> ModelConfig:
        return dataclasses.replace(pre.config, generator=dataclasses.replace(pre.config.generator, **generator))

    with pytest.raises(ValueError, match="predicts tokens in order"):
        HALF.of(changed(attention="causal"))
    unlabeled = dataclasses.replace(pre.config, training={"settings": {"conditional": False}})
    with pytest.raises(ValueError, match="trained without classes"):
        HALF.of(unlabeled)


# ---- what is recorded, and what does not mix


def test_data_sets_record_it_and_refuse_another(pre: Pretrained, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    write_pictures(photos, 5)
    usual: dict[str, object] = {"model": pre, "layers": (2,), "decode_timeout": None}
    embed_images(photos, out, condition=HALF, **usual)
    found = read_embeddings(out)
    assert EmbeddingSet(out).provenance["condition"] == {"given": 1, "masked_share": 0.5, "mask_seed": 7}
    np.testing.assert_allclose(
        found.vectors, extract_features(photos, model=pre, layer=2, condition=HALF), rtol=0, atol=1e-5
    )
    assert embed_images(photos, out, condition=HALF, **usual).rows == 5
    with pytest.raises(ValueError, match=r"condition was .*mask_seed.*, is no class, no token masked"):
        embed_images(photos, out, **usual)
    with pytest.raises(ValueError, match=r"condition\.mask_seed was 7, is 8"):
        embed_images(photos, out, condition=dataclasses.replace(HALF, mask_seed=8), **usual)
    embed_images(photos, tmp_path / "plain", **usual)
    assert EmbeddingSet(tmp_path / "plain").provenance["condition"] == "no class, no token masked"


def test_pictures_search_an_index_as_its_rows_were_read(pre: Pretrained, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 5)
    for name, condition in (("told", HALF), ("plain", None)):
        embed_images(photos, tmp_path / name, model=pre, layers=(2,), decode_timeout=None, condition=condition)
    index, plain = (build_index(tmp_path / name, tmp_path / f"{name}-index") for name in ("told", "plain"))
    found = search_images(index, photos, model=pre, k=1)
    assert found.found.distances[:, 0].tolist() == [0] * 5
    assert plain.provenance is not None
    assert "condition" not in plain.provenance
    assert index.provenance is not None
    assert index.provenance["condition"] == HALF.record()
    assert not np.array_equal(index.rows.codes, plain.rows.codes)


def test_a_server_reads_tasks_of_one_batch_each_in_its_way(pre: Pretrained, pixels: torch.Tensor) -> None:
    picture = pixels[0].permute(1, 2, 0).numpy()
    tasks = [
        EncodeTask(pixels=picture, layers=frozenset({2}), condition=condition) for condition in (NO_CONDITION, HALF)
    ]
    found = [output.features[2] for output in Encoder(pre, dtype=None, device=None, batch=8)(tasks)]
    for vector, condition in zip(found, (None, HALF), strict=True):
        expected = extract_features(pixels[:1], model=pre, layer=2, condition=condition)[0]
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)


@pytest.fixture
def settings(tmp_path: Path) -> BenchSettings:
    return BenchSettings(cache=tmp_path / "cache", k=(1,), device="cpu")


@pytest.mark.slow
def test_benchmarks_measure_what_is_asked_for_and_keep_it_apart(
    pre: Pretrained, tmp_path: Path, settings: BenchSettings
) -> None:
    model = str(save(pre, tmp_path / "tiny"))
    data = open_data("digits", limit=20, test_limit=10)
    told = dataclasses.replace(settings, condition=HALF)
    plain, first, again = (features_of(model, data, each, layers=[2]) for each in (settings, told, told))
    arrays = [next(iter(each.test.values())) for each in (plain, first, again)]
    assert np.array_equal(arrays[1], arrays[2])
    assert np.abs(arrays[0] - arrays[1]).max() > 1e-2
    assert first.facts["condition"] == first.facts["model"]["condition"] == HALF.record()
    assert "condition" not in plain.facts
    assert len({settings.pool_key, told.pool_key}) == 2


def test_benchmarks_of_data_sets_say_what_these_were_read_with(
    pre: Pretrained, tmp_path: Path, settings: BenchSettings
) -> None:
    for name in "ab":
        write_pictures(tmp_path / "photos" / name, 8, first=ord(name))
    usual: dict[str, object] = {"model": pre, "layers": (2,), "decode_timeout": None, "labels_from_folders": True}
    embed_images(tmp_path / "photos", tmp_path / "out", condition=HALF, **usual)
    data = open_data(str(tmp_path / "out"))
    (row,) = bench(None, data, settings, probe=False)
    assert row.record()["condition"] == HALF.record()
    other = dataclasses.replace(settings, condition=FeatureCondition(masked_share=0.25))
    with pytest.raises(ValueError, match="holds features with condition 1, 50% of tokens masked, not with no class"):
        bench(None, data, other, probe=False)


@pytest.mark.parametrize("model", ["pixels", "timm:test_vit?random", "tokenizer-bits"])
def test_what_has_no_condition_refuses_one(model: str) -> None:
    with pytest.raises(ValueError, match="only BiGR's blocks do"):
        open_representation(model, condition=HALF)


def test_bits_have_no_condition(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="codes take no condition"):
        BenchSettings(codes=True, condition=HALF)
