"""The model in other frameworks' hands: scikit-learn's pipelines, timm's methods, torchvision's transforms."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures

import bigr_repr as br
from bigr_repr.images import center_crop
from bigr_repr.integrations import BatchEmbedder, TimmStyle, create_transform

PRE = tiny_model()


# ---- scikit-learn


@pytest.mark.slow
def test_a_pipeline_searches_layers_and_pools() -> None:
    """Features of the whole set beside those of the folds: cross-validation computes what extract_features does."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images = [picture(seed) for seed in range(12)]
    labels = [seed % 2 for seed in range(12)]
    pipeline = make_pipeline(br.BigrFeatures(PRE, layer=1), StandardScaler(), LogisticRegression())
    grid = GridSearchCV(pipeline, {"bigrfeatures__layer": [0, 3], "bigrfeatures__pool": ["avg", "grid2"]}, cv=2)
    grid.fit(images, labels)
    chosen = grid.best_params_
    assert len(grid.cv_results_["mean_test_score"]) == 4
    step = grid.best_estimator_[0]
    ours = br.extract_features(
        images, model=PRE, layer=chosen["bigrfeatures__layer"], pool=chosen["bigrfeatures__pool"]
    )
    assert np.array_equal(step.transform(images), ours)
    assert step.model is PRE  # clones share the weights


def test_the_estimator_keeps_to_scikit_learns_rules(tmp_path: Path) -> None:
    from sklearn.base import clone

    br.save(PRE, tmp_path / "model")
    files = write_pictures(tmp_path / "images", 3)
    step = br.BigrFeatures(tmp_path / "model", layer=2, mirror=True)
    params = step.get_params()
    assert params == {"model": tmp_path / "model", "layer": 2, "pool": "avg", "mirror": True, "batch_size": 32,
                      "device": None}  # fmt: skip
    assert clone(step).get_params() == params
    assert step.set_params(pool="max") is step
    again = pickle.loads(pickle.dumps(step))
    assert np.array_equal(again.transform(files), step.fit_transform(files))
    assert step.set_output(transform="pandas").fit_transform(files).columns[0] == "bigrfeatures0"


@pytest.mark.parametrize(
    ("fields", "said"), [({"layer": 9}, "layer=9 is outside"), ({"pool": "none"}, "choose another")]
)
def test_the_estimator_refuses_at_fit(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        br.BigrFeatures(PRE, **{"layer": 1} | fields).fit([])  # type: ignore[arg-type]


# ---- batches


def test_batches_give_what_extract_features_gives(tmp_path: Path) -> None:
    br.save(PRE, tmp_path / "model")
    embedder = BatchEmbedder(tmp_path / "model", layer=2, column="photo", codes=True)
    images = [picture(seed) for seed in range(3)]
    found = embedder({"photo": images, "other": [1, 2, 3]})
    ours = br.extract_features(images, model=PRE, layer=2)
    assert np.array_equal(np.stack(found["embedding"]), ours)
    assert found["code"] == [row.tobytes() for row in br.encode_codes(images, model=PRE)]
    assert np.allclose(embedder.embed(images[1]), ours[1], atol=1e-5)
    again = pickle.loads(pickle.dumps(embedder))
    assert len(pickle.dumps(embedder)) < 1000  # no weights
    assert np.array_equal(again.embed_all(images), ours)


def test_batches_without_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="column='image' is not in the batch, which has photo, label"):
        BatchEmbedder(PRE)({"photo": [], "label": []})
    with pytest.raises(ValueError, match="pool='none' gives one vector per token"):
        BatchEmbedder(PRE, pool="none")


# ---- timm


def _images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pool", ["avg", "max", "avg+max", "grid2"])
def test_timm_style_features_are_the_extractors(pool: str) -> None:
    style = br.as_timm(PRE, layer=2, global_pool=pool).eval()
    ours = br.FeatureExtractor(PRE, (2,), pool)(_images()).layers[2]
    with torch.no_grad():
        torch.testing.assert_close(style(_images()), ours)
        tokens = style.forward_features(_images())
        torch.testing.assert_close(style.forward_head(tokens, pre_logits=True), ours)
    assert tokens.shape == (3, 16, style.num_features)
    assert ours.shape[1] == style.head_hidden_size


def test_intermediates_are_the_states_of_blocks_as_timm_orders_them() -> None:
    """Beside a network of timm's own with as many blocks: shapes, kinds and counts agree for the same arguments."""
    import timm

    style = br.as_timm(PRE, layer=3).eval()
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, embed_dim=64, num_heads=2, num_classes=0
    ).eval()
    ours = br.FeatureExtractor(PRE, range(4), "none")(_images()).layers
    with torch.no_grad():
        for arguments in (
            {}, {"indices": 2}, {"indices": [0, -1]}, {"indices": [1], "stop_early": True, "output_fmt": "NLC"},
            {"indices": [2], "intermediates_only": True},
        ):  # fmt: skip
            found, theirs = (
                style.forward_intermediates(_images(), **arguments),
                vit.forward_intermediates(_images(), **arguments),
            )
            listed, expected = (found, theirs) if arguments.get("intermediates_only") else (found[1], theirs[1])
            assert [each.shape for each in listed] == [each.shape for each in expected]
        final, maps = style.forward_intermediates(_images(), indices=[1, -1])
        torch.testing.assert_close(final, ours[3])
        torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), ours[1])
        stopped, _ = style.forward_intermediates(_images(), indices=[1], stop_early=True)
        torch.testing.assert_close(stopped, ours[1])


def test_timm_reads_its_configuration() -> None:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(br.as_timm(PRE, layer=1))
    assert config["input_size"] == (3, 32, 32)
    assert (config["mean"], config["std"]) == ((0.0,) * 3, (1.0,) * 3)
    assert (config["interpolation"], config["crop_pct"], config["crop_mode"]) == ("bicubic", 1.0, "center")


def test_a_step_of_training_changes_the_transformer_and_neither_tokenizer_nor_model() -> None:
    before = {name: weight.clone() for name, weight in PRE.generator.state_dict().items()}
    style = br.as_timm(PRE, layer=1, num_classes=2)
    style.train()
    learning = {name: weight for name, weight in style.named_parameters() if weight.requires_grad}
    torch.nn.functional.cross_entropy(style(_images()), torch.tensor([0, 1, 0])).backward()
    assert not [name for name in learning if name.startswith("tokenizer")]
    unused = {name for name, weight in learning.items() if weight.grad is None}
    assert unused == {"transformer.mask_tok"}  # no token is masked
    assert not style.tokenizer.training
    assert all(torch.equal(weight, before[name]) for name, weight in PRE.generator.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"layer": 4}, "layer=4 is outside"), ({"layer": 1, "global_pool": "token"}, "global_pool='token' is unknown")],
)
def test_timm_style_refuses(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        br.as_timm(PRE, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"indices": [2]}, "holds 2, outside -2..1"),
        ({"output_fmt": "NHWC"}, "NCHW or NLC"),
        ({"norm": True}, "norm"),
        *(({"indices": n, "stop_early": True}, rf"indices={n} is .* outside 1\.\.2") for n in (0, -1, 3)),
        *(({"indices": [], "stop_early": early}, "names no block") for early in (True, False)),
    ],
)
def test_intermediates_refuse(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        br.as_timm(PRE, layer=1).forward_intermediates(_images(), **fields)  # type: ignore[call-overload]


def test_timm_style_refuses_images_that_the_extractor_refuses() -> None:
    style = br.as_timm(PRE, layer=1)
    assert len(style.forward_intermediates(_images(), indices=np.int64(1), intermediates_only=True)) == 1  # type: ignore[call-overload]
    for images in ((_images() - 0.45) / 0.225, torch.full((1, 3, 32, 32), torch.nan), _images().long()):
        for given in (style, style.forward_features, style.forward_intermediates, br.FeatureExtractor(PRE, (1,))):
            with pytest.raises(ValueError, match=r"expected (uint8, or floats in )?\[0, 1\]"):
                given(images)


@pytest.mark.parametrize("size", [(32, 32), (200, 90), (31, 40), (700, 500)])
def test_the_transform_gives_what_features_are_computed_from(size: tuple[int, int]) -> None:
    """To the rounding of one division, for PIL images and for tensors."""
    image = picture(1, *size)
    made = create_transform(PRE)(image)
    expected = torch.from_numpy(center_crop(image, 32)).permute(2, 0, 1).float() / 255
    assert made.dtype == torch.float32
    assert (made - expected).abs().max() <= 2**-24
    assert torch.equal(create_transform(32)(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)), made)


def test_the_transform_serves_a_torch_dataset(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    write_pictures(tmp_path / "a", 2)
    style = br.as_timm(PRE, layer=1).eval()
    assert isinstance(style, TimmStyle)
    batch = torch.stack([image for image, _ in ImageFolder(tmp_path, create_transform(style))])
    with torch.no_grad():
        ours = br.extract_features(tmp_path, model=PRE, layer=1)
        np.testing.assert_allclose(style(batch).numpy(), ours, rtol=1e-5, atol=1e-6)


def test_a_transform_turns_modes_to_rgb() -> None:
    assert create_transform(8)(Image.new("L", (9, 9), 255)).shape == (3, 8, 8)
