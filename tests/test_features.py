"""Features are the states the model computes: whatever the batch, the input's form, and the model's mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import picture, tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.codes import from_bytes, grid_to_tokens
from bigr_repr.features import extract
from bigr_repr.features.extract import encode_codes, extract_features
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.features.pools import POOLS, pool_tokens
from bigr_repr.images.decode import center_crop
from bigr_repr.images.formats import ImageError
from bigr_repr.system.devices import as_dtype, choose_device


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    crops = [center_crop(picture(seed), 32) for seed in range(11)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def by_hand(
    pre: Pretrained, pixels: torch.Tensor, layers: tuple[int, ...]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    with torch.no_grad():
        codes = grid_to_tokens(pre.tokenizer.encode(pixels.float() / 255))
        return pre.generator.hidden_states(codes, layers=layers), codes


def test_features_are_mean_hidden_states_of_unmasked_codes_without_class(pre: Pretrained, pixels: torch.Tensor) -> None:
    states, codes = by_hand(pre, pixels, (0, 2, 3))
    features = FeatureExtractor(pre, (0, 2, 3))(pixels)
    assert features.codes.dtype == torch.bool
    assert torch.equal(features.codes, codes > 0.5)
    for layer, state in states.items():
        assert features.layers[layer].dtype == torch.float32
        torch.testing.assert_close(features.layers[layer], state.mean(1), rtol=0, atol=1e-5)
    grids = FeatureExtractor(pre, (2,), pool="none")(pixels)
    torch.testing.assert_close(grids.layers[2], states[2], rtol=0, atol=1e-5)
    assert states[2].std(0).mean() > 0.1, "the pictures must differ for this test to say anything"


@pytest.mark.slow
@pytest.mark.parametrize("pool", [*POOLS, "none"])
@pytest.mark.parametrize("mirror", [False, True])
def test_features_are_pooled_states_of_blocks_side_by_side_and_of_the_mirror_image(
    pre: Pretrained, pixels: torch.Tensor, pool: str, mirror: bool
) -> None:
    found = extract_features(pixels, model=pre, layer=["mid+-1+0", 2, 0], pool=pool, mirror=mirror)
    for layer, blocks in (("mid+-1+0", (2, 3, 0)), (2, (2,)), (0, (0,))):
        sides = []
        for side in (pixels, pixels.flip(-1))[: 1 + mirror]:
            states, _ = by_hand(pre, side, (0, 2, 3))
            parts = [states[block] if pool == "none" else pool_tokens(states[block], pool) for block in blocks]
            whole = torch.cat(parts, dim=-1)
            if pool == "none" and side is not pixels:  # each token beside the one of the same place
                whole = whole.unflatten(1, (4, 4)).flip(2).flatten(1, 2)
            sides.append(whole)
        expected = torch.stack(sides).mean(0)
        np.testing.assert_allclose(found[layer], expected.numpy(), rtol=0, atol=1e-5)
        assert extract_features([], model=pre, layer=layer, pool=pool).shape == (0, *expected.shape[1:])
    codes = FeatureExtractor(pre, (0,), pool, mirror=mirror)(pixels).codes
    assert torch.equal(codes, FeatureExtractor(pre, ())(pixels).codes)


def test_tokens_with_the_mirror_image_stay_in_their_places(pre: Pretrained, pixels: torch.Tensor) -> None:
    """Tokens of a mirror image are the mirrored tokens; pooled vectors of both are the same."""
    tokens = FeatureExtractor(pre, (1,), "none", mirror=True)
    one, other = (tokens(side).layers[1].unflatten(1, (4, 4)) for side in (pixels[:2], pixels[:2].flip(-1)))
    torch.testing.assert_close(one, other.flip(2))
    assert not torch.allclose(one, one.flip(2), atol=1e-2), "the sides must differ for this test to say anything"
    for pool in POOLS:
        pooled = FeatureExtractor(pre, (1,), pool, mirror=True)
        torch.testing.assert_close(pooled(pixels[:2]).layers[1], pooled(pixels[:2].flip(-1)).layers[1])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_rounded_weights_do_not_pass_for_exact_ones(half: torch.dtype, pixels: torch.Tensor) -> None:
    rough = tiny_model().to(dtype=half)
    for dtype in {torch.float32, torch.float64, torch.bfloat16, torch.float16} - {half}:
        for layers in ((1,), ()):
            with pytest.raises(ValueError, match=rf"dtype={dtype}, .* rounded to {half}; load it with {dtype}"):
                FeatureExtractor(rough, layers, dtype=dtype)
    with pytest.raises(ValueError, match=r"rounded to .*; load it with torch\.float32"):
        extract_features(pixels, model=rough, layer=1, dtype="float32")
    found = FeatureExtractor(rough, (1,), dtype=half)
    assert found.precision == FeatureExtractor(rough, (1,)).precision == str(half).removeprefix("torch.")
    exact = tiny_model().to(dtype=torch.float64)  # of weights that were float32
    assert FeatureExtractor(exact, (1,), dtype=torch.float32).precision == "float32"
    assert FeatureExtractor(tiny_model(), (1,), dtype=torch.float64).precision == "float64"


def test_what_the_mirror_image_lacks_the_mean_lacks(pre: Pretrained, pixels: torch.Tensor) -> None:
    extractor = FeatureExtractor(pre, (2,), mirror=True)
    shown = extractor._bit_logits

    def broken(images: torch.Tensor) -> torch.Tensor:
        logits = shown(images)
        turned = (images == pixels[0].flip(-1).float() / 255).flatten(1).all(1)
        logits[: len(images)][turned] = torch.nan
        return logits

    extractor._bit_logits = broken  # type: ignore[method-assign]
    found = extractor(pixels)
    assert found.finite.tolist() == [False, *([True] * (len(pixels) - 1))]
    assert found.layers[2][0].isnan().all()
    assert found.layers[2][1:].isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_batch_size_changes_no_bit_and_no_feature(pre: Pretrained, pixels: torch.Tensor, batch_size: int) -> None:
    extractor = FeatureExtractor(pre, (3,))
    at_once = extractor(pixels)
    parts = [extractor(part) for part in pixels.split(batch_size)]
    assert torch.equal(torch.cat([part.codes for part in parts]), at_once.codes)
    features = torch.cat([part.layers[3] for part in parts])
    torch.testing.assert_close(features, at_once.layers[3], rtol=0, atol=1e-5)


def test_logits_are_the_same_numbers_whatever_the_batch_size(pre: Pretrained, pixels: torch.Tensor) -> None:
    extractor = FeatureExtractor(pre, ())
    inputs = pixels.float() / 255
    at_once = extractor._bit_logits(inputs)[:11]
    for batch_size in (1, 2, 3, 7):
        parts = [extractor._bit_logits(part)[: len(part)] for part in inputs.split(batch_size)]
        assert torch.equal(torch.cat(parts), at_once)


def test_blocks_past_the_deepest_are_neither_run_nor_kept(pixels: torch.Tensor) -> None:
    pre = tiny_model()
    expected = FeatureExtractor(pre, (1,))(pixels).layers[1]
    for block in (2, 3):
        for weight in pre.generator.transformer.layers[block].parameters():
            weight.data.fill_(torch.nan)
    extractor = FeatureExtractor(pre, (1, 0))
    assert torch.equal(extractor(pixels).layers[1], expected)
    assert extractor.transformer is not None
    assert len(extractor.transformer.layers) == 2
    assert len(pre.generator.transformer.layers) == 4


def test_the_model_stays_as_it_is_and_its_mode_does_not_matter(pixels: torch.Tensor) -> None:
    pre = tiny_model()
    expected = FeatureExtractor(pre, (3,))(pixels).layers[3]
    before = {name: (value.data_ptr(), value.stride()) for name, value in pre.tokenizer.state_dict().items()}
    pre.generator.train()
    pre.generator.transformer.dropout = 0.5
    extractor = FeatureExtractor(pre, (3,)).train()
    assert not extractor.training
    assert torch.equal(extractor(pixels).layers[3], expected)
    FeatureExtractor(pre, (3,), dtype=torch.bfloat16)
    assert pre.generator.training
    assert pre.generator.transformer.mask_tok.requires_grad
    assert pre.generator.transformer.mask_tok.dtype == torch.float32
    assert {name: (value.data_ptr(), value.stride()) for name, value in pre.tokenizer.state_dict().items()} == before


def test_weights_that_need_no_conversion_are_shared(pre: Pretrained) -> None:
    extractor = FeatureExtractor(pre, (3,))
    assert extractor.transformer is not None
    assert extractor.transformer.mask_tok.data_ptr() == pre.generator.transformer.mask_tok.data_ptr()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_close(pre: Pretrained, pixels: torch.Tensor, dtype: str) -> None:
    exact = FeatureExtractor(pre, (2,), pool="none")(pixels)
    rough = FeatureExtractor(pre, (2,), pool="none", dtype=as_dtype(dtype))(pixels)
    assert rough.layers[2].dtype == torch.float32
    assert (rough.codes == exact.codes).float().mean() > 0.97
    same = (rough.codes == exact.codes).flatten(1).all(1)
    similarity = torch.cosine_similarity(rough.layers[2], exact.layers[2], dim=-1)[same]
    assert (similarity > 0.99).all()


def test_layers_are_named_as_asked(pre: Pretrained) -> None:
    images = [picture(1), picture(2)]
    several = extract_features(images, model=pre, layer=[0, -1, "mid", 3])
    assert list(several) == [0, -1, "mid", 3]
    np.testing.assert_array_equal(several[-1], several[3])
    np.testing.assert_array_equal(several["mid"], extract_features(images, model=pre, layer=2))
    assert list(extract_features(images, model=pre, layer=range(2))) == [0, 1]
    with pytest.raises(ValueError, match=r"layer=4 is outside 0\.\.3 for tiny-random"):
        extract_features(images, model=pre, layer=4)
    with pytest.raises(ValueError, match="names no layer"):
        extract_features(images, model=pre, layer=[])


def test_every_form_of_input_gives_the_same_rows(pre: Pretrained, pixels: torch.Tensor, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 11)
    expected = extract_features(pixels, model=pre, layer=3)
    assert expected.dtype == np.float32
    assert expected.shape == (11, 64)
    array = pixels.permute(0, 2, 3, 1).numpy()
    pictures = [picture(seed) for seed in range(11)]
    forms = [
        tmp_path / "in", f"{tmp_path}/in/*.png", paths, [str(path) for path in paths], pictures, iter(pictures),
        array, list(array), list(pixels), [tmp_path / "in"], [paths[0], pictures[1], array[2], *paths[3:]],
        pixels.float() / 255,
    ]  # fmt: skip
    for form in forms:
        found = extract_features(form, model=pre, layer=3, batch_size=4)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    one = extract_features(pictures[4], model=pre, layer=3)
    assert one.shape == (1, 64)
    np.testing.assert_allclose(one[0], expected[4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(extract_features(pixels[4], model=pre, layer=3), one, rtol=0, atol=1e-5)


def test_codes_are_the_tokenizers_bits_packed(pre: Pretrained, pixels: torch.Tensor) -> None:
    _, codes = by_hand(pre, pixels, (0,))
    packed = encode_codes(pixels, model=pre, batch_size=3)
    assert packed.shape == (11, 24)
    np.testing.assert_array_equal(from_bytes(packed, 192), codes.flatten(1).numpy() > 0.5)


def test_no_images_give_no_rows(pre: Pretrained) -> None:
    assert extract_features([], model=pre, layer=2).shape == (0, 64)
    assert extract_features([], model=pre, layer=2, pool="none").shape == (0, 16, 64)
    assert encode_codes(torch.zeros(0, 3, 32, 32), model=pre).shape == (0, 24)
    assert FeatureExtractor(pre, (2,))(torch.zeros(0, 3, 32, 32)).layers[2].shape == (0, 64)


def test_a_model_is_loaded_by_name_of_its_folder(pre: Pretrained, tmp_path: Path) -> None:
    save(pre, tmp_path / "model")
    image = picture(3)
    loaded = extract_features(image, model=tmp_path / "model", layer=2, device="cpu")
    np.testing.assert_array_equal(loaded, extract_features(image, model=pre, layer=2))
    with pytest.raises(FileNotFoundError, match="bigr-missing"):
        extract_features(image, model="bigr-missing", layer=2)


def test_a_picture_that_cannot_be_read_is_named(pre: Pretrained, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 5)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    with pytest.raises(ImageError, match=r"00003\.png") as caught:
        extract_features(tmp_path, model=pre, layer=2)
    assert caught.value.kind == "truncated"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        extract_features([paths[0], tmp_path / "nowhere.png"], model=pre, layer=2)
    with pytest.raises(ValueError, match="image 1: image array of shape"):
        extract_features([picture(0), np.zeros((3, 32, 32), np.uint8)], model=pre, layer=2)
    with pytest.raises(TypeError, match="image 0"):
        extract_features([b"bytes"], model=pre, layer=2)  # type: ignore[list-item]


def test_wrong_tensors_are_refused(pre: Pretrained, pixels: torch.Tensor) -> None:
    extractor = FeatureExtractor(pre, (2,))
    with pytest.raises(ValueError, match=r"-1\.\.1; expected \[0, 1\]"):
        extractor(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"nan\.\.nan"):
        extractor(torch.full((1, 3, 32, 32), torch.nan))
    with pytest.raises(ValueError, match=r"reads \(B, 3, 32, 32\)"):
        extractor(pixels[:, :, :16, :16])
    with pytest.raises(ValueError, match="int64"):
        extractor(pixels.long())
    with pytest.raises(ValueError, match="pool='sum' is unknown; choose one of avg, max"):
        FeatureExtractor(pre, (2,), pool="sum")
    for layer in ("4+8", "1+mid+x", "1+"):
        with pytest.raises(ValueError, match="layer="):
            FeatureExtractor(pre, (layer,))
    for size in (0, 2.5, "2"):
        with pytest.raises(ValueError, match=f"batch_size={size!r} must be a whole number, at least 1"):
            extract_features(pixels, model=pre, layer=2, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fp8"):
        as_dtype("fp8")
    with pytest.raises(ValueError, match="gpu9"):
        choose_device("gpu9")
    with pytest.raises(ValueError, match="device='gpu9' is unknown"):
        FeatureExtractor(pre, (2,), device="gpu9")


def test_choosing_a_gpu_does_not_open_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", opened)
    assert choose_device("cuda:1") == torch.device("cuda:1")  # a network may run there in another process


def test_a_model_by_name_is_put_on_the_best_device_and_a_given_one_stays(
    pre: Pretrained, pixels: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[object]()

    def choose(device: object) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr("bigr_repr.features.extract.choose_device", choose)
    save(pre, tmp_path / "model")
    extract_features(pixels, model=tmp_path / "model", layer=2)
    extract_features(pixels, model=pre, layer=2)
    extract_features(pixels, model=pre, layer=2, device="cpu")
    assert asked == [None, "cpu"]


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_what_is_not_finite_never_passes_for_a_feature(pixels: torch.Tensor, part: str) -> None:
    pre = tiny_model()
    broken = pre.tokenizer.quantize.proj[0] if part == "tokenizer" else pre.generator.transformer.layers[1].attention.wo
    broken.weight.data[0, 0] = torch.nan
    features = FeatureExtractor(pre, (2,))(pixels)
    assert features.layers[2].isnan().any(1).all()
    assert bool(features.finite.all()) == (part == "generator")
    with pytest.raises(ValueError, match="image 0: its features are not finite: the model's weights are damaged"):
        extract_features(pixels, model=pre, layer=2)
    if part == "tokenizer":
        with pytest.raises(ValueError, match="image 0"):
            encode_codes(pixels, model=pre)


def test_batches_know_the_number_of_their_first_image(pre: Pretrained, pixels: torch.Tensor) -> None:
    extractor = FeatureExtractor(pre, (2,))
    pictures = [picture(seed) for seed in range(5)]
    for images in (pictures, pixels[:5].float() / 255):
        found = list(extract._batches(images, extractor, 2, None))
        assert [first for first, _ in found] == [0, 2, 4]
        assert [len(features.codes) for _, features in found] == [2, 2, 1]


def test_a_compiled_extractor_sees_one_shape(
    pre: Pretrained, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    extractor = FeatureExtractor(pre, (2,), compile=True)
    shapes = set()
    assert extractor.transformer is not None
    extractor.transformer.register_forward_pre_hook(lambda _, inputs: shapes.add(tuple(inputs[0].shape)))
    parts = [extractor(part) for part in pixels.split(4)]
    assert shapes == {(4, 16, 12)}
    expected = FeatureExtractor(pre, (2,))(pixels)
    assert torch.equal(torch.cat([part.codes for part in parts]), expected.codes)
    features = torch.cat([part.layers[2] for part in parts])
    torch.testing.assert_close(features, expected.layers[2], rtol=0, atol=1e-5)


def test_pictures_are_oriented_and_cropped(pre: Pretrained, tmp_path: Path) -> None:
    turned = picture(5).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    found = extract_features(tmp_path / "turned.png", model=pre, layer=2)
    np.testing.assert_allclose(found, extract_features(picture(5), model=pre, layer=2), rtol=0, atol=1e-5)
