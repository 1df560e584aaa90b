"""Models of any size compute what the reference computes, and keep their laws."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from released_files import random_release, randomize
from torch import Tensor, nn

from bigr_repr.checkpoints.pretrained import Pretrained, load_official
from bigr_repr.config import GeneratorConfig, TokenizerConfig
from bigr_repr.models import winograd
from bigr_repr.models.bigr import BiGR, draw_mask, masked_count
from bigr_repr.models.blocks import _attend as attend
from bigr_repr.models.blocks import rotary_table, rotate
from bigr_repr.models.tokenizer import BinaryAutoencoder, ResBlock

TOLERANCE = 1e-4
Loaded = tuple["Size", Pretrained, dict[str, reference.Array]]


@dataclass(frozen=True)
class Size:
    tokenizer: TokenizerConfig
    generator: GeneratorConfig
    heads: int | None  # as given to load_official


def _size(heads_given: bool, tokenizer: dict[str, object], generator: dict[str, object]) -> Size:
    defaults = {"embed_dim": 32, "base_channels": 32}
    bits = TokenizerConfig(**{**defaults, **tokenizer})  # type: ignore[arg-type]
    codes = GeneratorConfig(**{**generator, "grid": bits.grid, "code_bits": bits.code_bits})  # type: ignore[arg-type]
    return Size(bits, codes, codes.heads if heads_given else None)


SIZES = {
    "one head, 16 bits, 64 steps": _size(
        False,
        {"image_size": 32, "channel_multipliers": (1, 2), "res_blocks": 2, "code_bits": 16},
        {"layers": 2, "heads": 1, "dim": 64, "transcoder_blocks": 1, "transcoder_dim": 48, "classes": 7,
         "train_timesteps": 64, "sample_timesteps": 64},
    ),
    "three heads, 20 bits, attention at 16, factor 16": _size(
        True,
        {"image_size": 64, "channel_multipliers": (1, 1, 2, 2, 4), "res_blocks": 1, "code_bits": 20, "embed_dim": 64},
        {"layers": 3, "heads": 3, "dim": 60, "transcoder_blocks": 3, "transcoder_dim": 20, "classes": 3,
         "ffn_multiple_of": 32},
    ),
    "five heads, 32 bits, no attention at any level": _size(
        True,
        {"image_size": 24, "channel_multipliers": (1, 2, 3), "res_blocks": 1, "code_bits": 32, "norm_first": False},
        {"layers": 4, "heads": 5, "dim": 80, "transcoder_blocks": 2, "transcoder_dim": 96, "classes": 1,
         "ffn_multiple_of": 48},
    ),
    "twelve heads, 24 bits, attention at two levels": _size(
        True,
        {"image_size": 16, "channel_multipliers": (2, 1), "res_blocks": 1, "attention_resolutions": (16, 8)},
        {"layers": 2, "heads": 12, "dim": 96, "transcoder_blocks": 1, "transcoder_dim": 64, "classes": 5,
         "train_timesteps": 128, "ffn_multiple_of": 1},
    ),
    "three heads of 64": _size(
        False,
        {"image_size": 16, "channel_multipliers": (1, 1, 1), "res_blocks": 3, "code_bits": 8},
        {"layers": 1, "heads": 3, "dim": 192, "transcoder_blocks": 1, "transcoder_dim": 32, "classes": 4},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(SIZES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    size = SIZES[request.param]
    folder = tmp_path_factory.mktemp("release")
    tokenizer, generator, weights = random_release(folder, size.tokenizer, size.generator)
    return size, load_official(tokenizer=tokenizer, generator=generator, heads=size.heads), weights


def _close(found: Tensor, wanted: reference.Array | np.float64) -> None:
    difference = np.abs(found.detach().double().numpy() - np.asarray(wanted)).max()
    assert difference < TOLERANCE * max(1.0, np.abs(wanted).max()), f"differs by {difference}"


def _codes(config: GeneratorConfig, batch: int = 2, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, config.tokens, config.code_bits, generator=draws) > 0.5).float()


def _images(config: TokenizerConfig, batch: int = 2, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, config.image_size, config.image_size, generator=draws)


# ---- any size computes what the reference computes


def test_architecture_is_inferred(loaded: Loaded) -> None:
    size, pre, _ = loaded
    found, wanted = pre.config.generator, size.generator
    assert found.ffn_dim == wanted.ffn_dim
    for name in ("layers", "heads", "dim", "transcoder_blocks", "transcoder_dim", "classes", "code_bits", "grid"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.train_timesteps == wanted.train_timesteps
    assert found.sample_timesteps == min(100, wanted.train_timesteps)
    assert pre.config.tokenizer == size.tokenizer


def test_tokenizer_equals_the_reference(loaded: Loaded) -> None:
    size, pre, weights = loaded
    config = size.tokenizer
    layout = {
        "levels": len(config.channel_multipliers),
        "res_blocks": config.res_blocks,
        "attended": config.attention_resolutions,
    }
    image = _images(config, 1)
    with torch.no_grad():
        probabilities = pre.tokenizer.bit_probabilities(image)
        bits = pre.tokenizer.encode(image)
        decoded = pre.tokenizer.decode(bits)
    wanted = reference.bit_probabilities(weights, image[0].double().numpy(), **layout)  # type: ignore[arg-type]
    _close(probabilities[0], wanted)
    clear = np.abs(wanted - 0.5) > TOLERANCE
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(bits[0].numpy()[clear], (wanted > 0.5)[clear])
    assert 0.05 < bits.mean() < 0.95
    plain = bits[0].double().numpy()
    _close(decoded[0], reference.decode(weights, plain, **layout, norm_first=config.norm_first))  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [None, 0])
def test_transformer_equals_the_reference(loaded: Loaded, label: int | None) -> None:
    size, pre, weights = loaded
    config = size.generator
    codes = _codes(config, 1)
    masked = torch.rand(1, config.tokens, generator=torch.Generator().manual_seed(1)) > 0.5
    labels = None if label is None else torch.tensor([label])
    sizes = {"layers": config.layers, "heads": config.heads}
    plain, row = codes[0].double().numpy(), config.classes if label is None else label
    with torch.no_grad():
        states = pre.generator.hidden_states(codes, labels, layers=range(config.layers))
        condition = pre.generator.condition(codes, labels, masked)
    for layer, wanted in enumerate(reference.hidden_states(weights, plain, row, **sizes)):
        _close(states[layer][0], wanted)
    last = reference.hidden_states(weights, plain, row, masked=masked[0].numpy(), **sizes)[-1]
    _close(condition[0], reference.transcoder_condition(weights, last))


def test_transcoder_equals_the_reference(loaded: Loaded) -> None:
    size, pre, weights = loaded
    config = size.generator
    diffusion, steps = pre.generator.diffusion, config.train_timesteps
    draws = torch.Generator().manual_seed(2)
    rows = 6
    bits = (torch.rand(rows, config.code_bits, generator=draws) > 0.5).float()
    condition = torch.randn(rows, config.dim, generator=draws)
    uniform = torch.rand(rows, config.code_bits, generator=draws)
    t = torch.tensor([1, 2, steps // 3, steps // 2, steps - 1, steps])
    with torch.no_grad():
        logits = diffusion.denoiser(bits, t, condition)
        losses = diffusion.loss_per_bit(bits, condition, t, uniform)
        moved = [diffusion.step_probability(uniform, bits, int(t[i]), int(t[i]) // 2) for i in range(rows)]
    blocks = config.transcoder_blocks
    for i in range(rows):
        row, cond, draw = (x[i].double().numpy() for x in (bits, condition, uniform))
        at = int(t[i])
        _close(logits[i], reference.denoiser_logits(weights, row, at, cond, blocks=blocks))
        _close(losses[i], reference.loss_per_bit(weights, row, cond, at, draw, steps=steps, blocks=blocks))
        _close(moved[i][i], reference.step_probability(draw, row, at, at // 2, steps))


def test_loss_equals_the_reference(loaded: Loaded) -> None:
    size, pre, weights = loaded
    config, codes = size.generator, _codes(size.generator, 1)
    masked = torch.zeros(1, config.tokens, dtype=torch.bool)
    masked[0, [0, 2, config.tokens - 1]] = True
    seed = torch.Generator().manual_seed(5)
    with torch.no_grad():
        found = pre.generator.loss(codes, torch.tensor([0]), masked=masked, class_dropout=0.0, generator=seed)
    seed.manual_seed(5)
    t = torch.randint(1, config.train_timesteps + 1, (3,), generator=seed)
    uniform = torch.rand(3, config.code_bits, generator=seed).double().numpy()
    plain, places = codes[0].double().numpy(), masked[0].numpy()
    last = reference.hidden_states(weights, plain, 0, layers=config.layers, heads=config.heads, masked=places)[-1]
    conditions = reference.transcoder_condition(weights, last)[places]
    sizes = {"steps": config.train_timesteps, "blocks": config.transcoder_blocks}
    losses = [
        reference.loss_per_bit(weights, plain[places][i], conditions[i], int(t[i]), uniform[i], **sizes)
        for i in range(3)
    ]
    _close(found, np.mean(losses))


# ---- laws


@pytest.fixture(scope="module")
def tokenizer() -> BinaryAutoencoder:
    config = TokenizerConfig(
        image_size=32, base_channels=32, channel_multipliers=(1, 2, 2), res_blocks=1, embed_dim=32, code_bits=16
    )
    module = BinaryAutoencoder(config).eval()
    randomize(module, 3)
    return module


@pytest.fixture(scope="module")
def generator() -> BiGR:
    sizes = {"layers": 5, "heads": 4, "dim": 64, "transcoder_blocks": 1, "transcoder_dim": 32, "classes": 6, "grid": 8}
    module = BiGR(GeneratorConfig(**sizes, code_bits=16)).eval()  # type: ignore[arg-type]
    randomize(module, 4)
    return module


@pytest.mark.parametrize("layers", [(0,), (3, 1), (-1, 0), (2, 2), (-5, 4)])
def test_a_choice_of_layers_equals_the_full_run(generator: BiGR, layers: tuple[int, ...]) -> None:
    codes = _codes(generator.config)
    with torch.inference_mode():
        every = generator.hidden_states(codes, layers=range(5))
        some = generator.hidden_states(codes, layers=layers)
    assert set(some) == set(layers)
    for layer, state in some.items():
        assert torch.equal(state, every[layer % 5])


def test_blocks_past_the_deepest_layer_do_not_run(generator: BiGR) -> None:
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(generator.transformer.layers)
    ]
    generator.hidden_states(_codes(generator.config), layers=(0, 2))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("layer", [5, -6, 40])
def test_a_layer_past_either_end_is_an_error_that_names_the_range(generator: BiGR, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"layer={layer} is outside 0\.\.4"):
        generator.hidden_states(_codes(generator.config), layers=(0, layer))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_batch_size_changes_no_float_beyond_rounding(tokenizer: BinaryAutoencoder, generator: BiGR, batch: int) -> None:
    images, labels = _images(tokenizer.config, 14), torch.arange(14) % 7

    def run(images: Tensor, labels: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = bits.flatten(2).transpose(1, 2)
        states = generator.hidden_states(codes, labels, layers=(4,))[4]
        return tokenizer.bit_logits(images), tokenizer.decode(bits), states

    with torch.inference_mode():
        bits = tokenizer.encode(images)
        whole = run(images, labels, bits)
        parts = zip(images.split(batch), labels.split(batch), bits.split(batch), strict=True)
        joined = [torch.cat(part) for part in zip(*(run(*part) for part in parts), strict=True)]
    for found, wanted in zip(joined, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    clear = whole[0].abs() > 1e-5  # a bit may only fall differently where the model has no opinion
    assert torch.equal((joined[0] > 0)[clear], bits.bool()[clear])


def test_a_masked_tokens_bits_are_not_seen(generator: BiGR) -> None:
    codes = _codes(generator.config)
    masked = draw_mask(2, 64, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))
    other = torch.where(masked[:, :, None], 1 - codes, codes)
    assert torch.equal(generator.condition(codes, None, masked), generator.condition(other, None, masked))
    assert not torch.equal(generator.condition(codes, None, None), generator.condition(other, None, None))


def test_no_class_is_the_last_row_of_the_table(generator: BiGR) -> None:
    codes = _codes(generator.config)
    by_none = generator.hidden_states(codes)[-1]
    assert torch.equal(by_none, generator.hidden_states(codes, torch.tensor([6, 6]))[-1])
    assert not torch.equal(by_none, generator.hidden_states(codes, torch.tensor([0, 5]))[-1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 7]), r"0\.\.7 is outside 0\.\.6"),
        (torch.tensor([-1, 0]), r"-1\.\.0 is outside 0\.\.6"),
        (torch.tensor([1]), r"expected \(2,\)"),
        (torch.tensor([[0], [1]]), r"expected \(2,\)"),
        (torch.tensor([0.0, 1.0]), "dtype"),
        (torch.tensor([0, 1], dtype=torch.uint8), "dtype"),
        (torch.tensor([True, False]), "dtype"),
    ],
)
def test_wrong_labels_are_named(generator: BiGR, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator.hidden_states(_codes(generator.config), labels)


@pytest.mark.parametrize("shape", [(2, 63, 16), (2, 64, 15), (2, 64), (2, 16, 8, 8)])
def test_wrong_codes_are_named(generator: BiGR, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 64, 16\)"):
        generator.hidden_states(torch.zeros(shape))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"expected \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 32, 32), r"expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 32, 30), "multiples of 4"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "divide uint8 by 255"),
    ],
)
def test_wrong_images_are_named(tokenizer: BinaryAutoencoder, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(images)


def test_tokenizer_takes_other_sizes_than_it_was_trained_on(tokenizer: BinaryAutoencoder) -> None:
    with torch.inference_mode():
        bits = tokenizer.encode(torch.rand(1, 3, 24, 40))
        assert bits.shape == (1, 16, 6, 10)
        assert tokenizer.decode(bits).shape == (1, 3, 24, 40)


def test_bits_drawn_follow_their_generator(tokenizer: BinaryAutoencoder) -> None:
    images = _images(tokenizer.config)

    def draw(seed: int) -> Tensor:
        return tokenizer.encode(images, sample=True, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert set(draw(0).unique().tolist()) <= {0.0, 1.0}


def test_the_loss_follows_its_generator_and_reaches_every_weight(generator: BiGR) -> None:
    codes, labels = _codes(generator.config), torch.tensor([1, 2])

    def loss(seed: int) -> Tensor:
        return generator.loss(codes, labels, generator=torch.Generator().manual_seed(seed))

    with torch.no_grad():
        assert torch.equal(loss(0), loss(0))
        assert not torch.equal(loss(0), loss(1))
    for (name, _), gradient in zip(
        generator.named_parameters(), torch.autograd.grad(loss(0), list(generator.parameters())), strict=True
    ):
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def test_masked_counts_fall_from_all_to_none() -> None:
    counts = [masked_count(step, 20, 256) for step in range(21)]
    assert counts[0] == 256
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)


def test_rotations_are_the_same_compiled_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 10, 3, 12, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    table = rotary_table(3, 12, 10000.0, x.device)
    plain = rotate(x, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, table), plain, atol=1e-6, rtol=0)
    assert rotate(x.bfloat16(), table).dtype == torch.bfloat16


@torch.no_grad()
def test_working_in_place_changes_neither_images_nor_bits(tokenizer: BinaryAutoencoder) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    bits = tokenizer.bit_probabilities(images)
    decoded = tokenizer.decode(bits.round())
    assert torch.equal(images, kept)
    with torch.enable_grad():
        assert torch.equal(tokenizer.bit_probabilities(images), bits)
        assert torch.equal(tokenizer.decode(bits.round()), decoded)


# ---- Winograd's convolution


def _plain(norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What `norm_silu_conv` computes, operation by operation and in double precision."""
    norm, conv = copy.deepcopy(norm).double(), copy.deepcopy(conv).double()
    return conv(F.silu(norm(x.double()))).float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("tiles", [4, 12, 512])  # strips of one row of tiles, of several, and the whole map
@pytest.mark.parametrize(("channels", "out", "bias"), [(16, 16, True), (8, 24, False)])
@torch.no_grad()
def test_winograds_convolution_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, channels: int, out: int, bias: bool, tiles: int
) -> None:
    monkeypatch.setattr(winograd, "_TILES", tiles)
    monkeypatch.setattr(winograd, "_STATISTICS", 7 * channels)
    norm, conv = nn.GroupNorm(4, channels, eps=1e-3), nn.Conv2d(channels, out, 3, padding=1, bias=bias)
    randomize(norm, 0)
    randomize(conv, 1)
    draws = torch.Generator().manual_seed(2)
    x = (3 * torch.randn(2, channels, 12, 8, generator=draws) + 1).to(memory_format=torch.channels_last)
    residual, kept = torch.randn(2, out, 12, 8, generator=draws), x.clone()
    wanted = _plain(norm, conv, x)
    torch.testing.assert_close(winograd.norm_silu_conv(norm, conv, x), wanted, rtol=1e-5, atol=1e-5)
    with_residual = winograd.norm_silu_conv(norm, conv, x, residual)
    torch.testing.assert_close(with_residual, wanted + residual, rtol=1e-5, atol=1e-5)
    assert with_residual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, kept)
    if out == channels:
        again = winograd.norm_silu_conv(norm, conv, x, residual, in_place=True)
        assert torch.equal(again, with_residual)
        assert again.data_ptr() == x.data_ptr()
    conv.weight.mul_(2)  # in its place: the kernel kept from before no longer holds
    torch.testing.assert_close(
        winograd.norm_silu_conv(norm, conv, kept), _plain(norm, conv, kept), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("widths", [(128, 128), (128, 256)])
def test_wide_blocks_give_the_same_by_either_convolution(
    monkeypatch: pytest.MonkeyPatch, widths: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    calls, real = [], winograd.norm_silu_conv
    monkeypatch.setattr(winograd, "norm_silu_conv", lambda *a, **k: calls.append(a[1]) or real(*a, **k))
    block = ResBlock(*widths, 32)
    randomize(block, 0)
    x = torch.randn(1, widths[0], 16, 16, generator=torch.Generator().manual_seed(1))
    x = x.to(memory_format=torch.channels_last)
    plain = block(x)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain, rtol=1e-4, atol=1e-4)
    assert calls == [block.conv1, block.conv2]


@torch.no_grad()
def test_winograds_convolution_serves_only_what_it_was_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def served(channels: int = 128, out: int = 128, height: int = 16, width: int = 16, **changes: Any) -> bool:
        x = torch.zeros(1, channels, height, width).to(memory_format=changes.get("layout", torch.channels_last))
        conv = nn.Conv2d(channels, out, 3, padding=1)
        return winograd.applies(x.to(changes.get("dtype")), conv.to(changes.get("weights")))

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert served()
    assert served(height=8, width=32)
    assert not served(channels=127)
    assert not served(out=127)
    assert not served(height=14)  # too small a map
    assert not served(height=17)  # no whole tiles
    assert not served(width=17)
    assert not served(layout=torch.contiguous_format)
    assert not served(dtype=torch.bfloat16)
    assert not served(weights=torch.bfloat16, dtype=torch.bfloat16)
    with torch.enable_grad():
        assert not served()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not served()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_the_same_with_gradients_and_without(causal: bool, padded: bool) -> None:
    """By the fused kernel, and written out where that is slower; what is padding is read by nobody but itself."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    present = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)[:, None, None] if padded else None
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 8**0.5
    read = torch.ones(2, 1, 5, 5, dtype=torch.bool) if present is None else present.expand(2, 1, 5, 5).clone()
    if causal:
        read = read & torch.ones(5, 5, dtype=torch.bool).tril()
    expected = scores.masked_fill(~read, -1e30).softmax(-1) @ v
    rows = read.any(-1)[:, 0]  # that read anything
    with torch.no_grad():
        fused = attend(q, k, v, causal, present)
    written = attend(q.requires_grad_(), k, v, causal, present)
    for found in (fused, written.detach()):
        assert found.shape == (2, 4, 5, 8)
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found.transpose(1, 2)[rows], expected.transpose(1, 2)[rows], rtol=1e-4, atol=1e-5)


def test_a_new_model_begins_without_what_its_class_says_to_the_blocks() -> None:
    sizes = {"layers": 5, "heads": 4, "dim": 64, "transcoder_blocks": 1, "transcoder_dim": 32, "classes": 6, "grid": 8}
    transformer = BiGR(GeneratorConfig(**sizes, code_bits=16)).transformer  # type: ignore[arg-type]
    assert not transformer.adaLN[1].weight.any()
    gates = torch.stack([block.ada_gss[:, :, 2::3] for block in transformer.layers])  # type: ignore[index, union-attr]
    assert torch.equal(gates, torch.full_like(gates, len(transformer.layers) ** -0.5))
