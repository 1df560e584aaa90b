"""Laws of training: a killed and resumed run equals an unbroken one; ranks do not change the data; bad luck is told."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forks import run, run_together, start
from PIL import Image
from tiny_model import tiny_model

from bigr_repr.checkpoints.pretrained import load, load_tokenizer, save, save_tokenizer, tokenizer_fingerprint
from bigr_repr.config import GeneratorConfig, ModelConfig, TokenizerConfig, preset
from bigr_repr.datasets import open_images
from bigr_repr.datasets.subset import Subset
from bigr_repr.images.formats import ImageError
from bigr_repr.models.bigr import BiGR, draw_mask, masked_count
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train import pace
from bigr_repr.train.batches import Batch, StreamSampler, batches
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.generator import train_generator
from bigr_repr.train.generator_task import GeneratorTask, make_optimizers, parameter_groups
from bigr_repr.train.losses import PatchDiscriminator, adaptive_weight, augment
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.resume import TrainingError, find_checkpoints
from bigr_repr.train.run import run_generator_training, run_tokenizer_training
from bigr_repr.train.settings import TrainSettings, identify
from bigr_repr.train.tokenizer import TokenizerRecipe, bit_usage, train_tokenizer

TOKENIZER = TokenizerConfig(
    image_size=32, base_channels=8, channel_multipliers=(1, 1, 1, 2), res_blocks=1, embed_dim=8, code_bits=6,
    attention_resolutions=(4,), norm_groups=4,
)  # fmt: skip
MODEL = ModelConfig(
    name="test",
    tokenizer=TOKENIZER,
    generator=GeneratorConfig(
        layers=2, heads=2, dim=16, transcoder_blocks=1, transcoder_dim=16, classes=2, code_bits=6, grid=4,
        train_timesteps=16, sample_timesteps=8, ffn_multiple_of=8,
    ),
)  # fmt: skip
PLAIN = TokenizerRecipe(perceptual=None, gan_start=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        place = root / ("cat" if i % 2 else "dog")
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def codes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("codes")
    write_codes(open_images(folder), BinaryAutoencoder(TOKENIZER), out, tokenizer_name="test", batch_size=7)
    return out


def settings(out: Path, **changes: object) -> TrainSettings:
    base = {
        "steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup": 2, "save_every": 2, "log_every": 1, "cpu": True,
        "ema": 0.9,
    }  # fmt: skip
    return TrainSettings(out=str(out), **{**base, **changes})  # type: ignore[arg-type]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> list[bytes]:
    """The weights of the newest checkpoint, and their moving average."""
    newest = find_checkpoints(out)[-1][1]
    return [(newest / name).read_bytes() for name in ("model.safetensors", "ema.safetensors")]


# Packed codes


def test_packed_codes_are_the_tokenizers_bits_both_ways_round(folder: Path, codes: Path) -> None:
    torch.manual_seed(0)
    tokenizer, images, packed = BinaryAutoencoder(TOKENIZER).eval(), open_images(folder), CodeSet(codes)
    assert packed.views == 2
    index = next(iter(StreamSampler(len(images), 1, seed=0, first_step=0)))[0][0]
    pixels = next(batches(images, batch_size=1, seed=0, first_step=0, image_size=32, flip=False)).images
    assert pixels is not None
    for view in (0, 1):
        with torch.no_grad():
            bits = tokenizer.encode((pixels.flip(-1) if view else pixels).float() / 255).flatten(2).transpose(1, 2)
        assert np.array_equal(packed.bits(np.array([index]), np.array([view])), bits.bool().numpy())


def test_packed_codes_take_one_bit_a_bit(codes: Path) -> None:
    packed = CodeSet(codes)
    assert (codes / "codes.npy").stat().st_size == 128 + len(packed) * 2 * (16 * 6 // 8)
    assert packed.labels is not None
    assert packed.header.class_names == ("cat", "dog")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot")
def test_a_disk_too_small_for_all_codes_is_said_before_any_is_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        assert size == (tmp_path / "c/codes.npy").stat().st_size > 0
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    seen: list[int] = []
    with pytest.raises(OSError, match=r"No space left on device; free some space .*: .*codes\.npy"):
        write_codes(
            open_images(folder), BinaryAutoencoder(TOKENIZER), tmp_path / "c", tokenizer_name="t",
            on_progress=lambda done, total: seen.append(done),
        )  # fmt: skip
    assert not seen
    with pytest.raises(FileNotFoundError):
        CodeSet(tmp_path / "c")


def test_half_written_codes_are_not_read(codes: Path, tmp_path: Path) -> None:
    (tmp_path / "codes.npy").write_bytes((codes / "codes.npy").read_bytes())
    with pytest.raises(FileNotFoundError, match="train codes"):
        CodeSet(tmp_path)


def test_codes_of_another_tokenizer_are_refused_by_both_names(codes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    same = BinaryAutoencoder(TOKENIZER)
    other = BinaryAutoencoder(TOKENIZER)
    ours, theirs = tokenizer_fingerprint(same), tokenizer_fingerprint(other)
    assert CodeSet(codes).header.tokenizer_sha256 == ours
    said = rf"by the tokenizer test \(SHA-256 {ours[:12]}…\).*different \(SHA-256 {theirs[:12]}…\).*train codes"
    with pytest.raises(ValueError, match=said):
        train_generator(CodeSet(codes), MODEL, settings(tmp_path / "other"), tokenizer=other)
    assert not (tmp_path / "other").exists()
    train_generator(CodeSet(codes), MODEL, settings(tmp_path / "same", steps=2), tokenizer=same)


def test_a_run_goes_on_with_codes_of_its_own_tokenizer_only(folder: Path, codes: Path, tmp_path: Path) -> None:
    write_codes(open_images(folder), BinaryAutoencoder(TOKENIZER), tmp_path / "other", tokenizer_name="other")
    train_generator(CodeSet(codes), MODEL, settings(tmp_path / "g", steps=2))
    with pytest.raises(TrainingError, match="tokenizer_sha256"):
        train_generator(CodeSet(tmp_path / "other"), MODEL, settings(tmp_path / "g", steps=4))


def test_codes_and_runs_of_older_versions_go_on_with_a_warning(
    codes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "old"
    shutil.copytree(codes, old)
    header = json.loads((old / "codes.json").read_text())
    del header["record_sha256"]
    del header["tokenizer_sha256"]
    (old / "codes.json").write_text(json.dumps(header))
    train_generator(CodeSet(old), MODEL, settings(tmp_path / "g", steps=2), tokenizer=BinaryAutoencoder(TOKENIZER))
    assert "does not record which weights made its codes" in caplog.text
    file = find_checkpoints(tmp_path / "g")[-1][1] / "run.json"
    record = json.loads(file.read_text())
    del record["tokenizer_sha256"]
    file.write_text(json.dumps(record))
    (file.parent / "sha256.json").unlink()
    train_generator(CodeSet(codes), MODEL, settings(tmp_path / "g", steps=4))
    assert "did not record tokenizer_sha256" in caplog.text
    assert len(losses(tmp_path / "g")) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"precision": "fp8"}, "precision='fp8' is unknown"),
        ({"device": "cuda:99"}, "device='cuda:99' is not there"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        write_codes(open_images(folder), BinaryAutoencoder(TOKENIZER), tmp_path / "c", tokenizer_name="t", **options)
    assert not (tmp_path / "c").exists()


def test_a_broken_run_leaves_no_labels_to_the_next(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(next(folder.rglob("*.png")), flat)
    out = tmp_path / "c"
    out.mkdir()
    np.save(out / "labels.npy", np.zeros(24, dtype=np.int64))
    made = write_codes(open_images(flat), BinaryAutoencoder(TOKENIZER), out, tokenizer_name="t")
    assert made.labels is None


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("codes.json", lambda old: old.replace(b"codes 1", b"codes 9"), "format 'bigr-repr codes 9'"),
        ("codes.json", lambda old: old[:40], "Expecting"),
        ("codes.json", lambda old: b"[]", "a list where an object is expected"),
        ("codes.json", lambda old: b'{"format": "bigr-repr codes 1"}', "lacks the fields"),
        ("codes.json", lambda old: old.replace(b'"n_bits": 96', b'"n_bits": 0'), "n_bits=0"),
        ("codes.json", lambda old: old.replace(b'"views": 2', b'"views": 1'), r"uint8 \(24, 2, 12\).*\(24, 1, 12\)"),
        ("codes.npy", lambda old: old[:-50], "mmap"),
        ("codes.npy", lambda old: b"", "no data"),
        ("labels.npy", lambda old: old.replace(b"(24,)", b"(23,)")[:-8], r"labels.npy is int64 \(23,\)"),
        ("codes.npy", lambda old: old[:10] + b"(" * 40 + old[50:], "codes.npy: damaged"),
        ("codes.npy", lambda old: old[:-5] + bytes([old[-5] ^ 1]) + old[-4:], "codes.npy is damaged: its SHA-256"),
        ("labels.npy", lambda old: old[:-8] + bytes([old[-8] ^ 1]) + old[-7:], "labels.npy is damaged: its SHA-256"),
    ],
)
def test_damaged_codes_say_what_is_wrong_and_how_to_make_them_again(
    codes: Path, tmp_path: Path, file: str, change: Callable[[bytes], bytes], said: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(codes, broken)
    (broken / file).write_bytes(change((broken / file).read_bytes()))
    with pytest.raises(
        ValueError,
        match=f"(?i)^{broken}/codes.json cannot be used: .*{said}.*make it again with: bigr-repr train codes$",
    ):
        CodeSet(broken)


# Pictures that cannot be read


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> str:
    """A Parquet file whose row 3 is half a picture."""
    pictures = [file.read_bytes() for file in sorted(folder.rglob("*.png"))[:6]]
    pictures[3] = pictures[3][:200]
    pq.write_table(pa.table({"image": pictures}), tmp_path / "some.parquet")
    return str(tmp_path / "some.parquet")


def test_codes_name_the_file_and_the_row_of_a_damaged_picture(damaged: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^/.*some.parquet#3: .*replace this picture.*repeat the command$"):
        write_codes(
            open_images(damaged), BinaryAutoencoder(TOKENIZER), tmp_path / "c", tokenizer_name="t", batch_size=4
        )
    assert not (tmp_path / "c" / "codes.json").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_names_the_file_and_the_row_of_a_damaged_picture(damaged: str, workers: int) -> None:
    stream = batches(open_images(damaged), batch_size=6, seed=0, first_step=0, image_size=32, workers=workers)
    with pytest.raises(ImageError, match=r"^/.*some.parquet#3: [^\n]*replace this picture[^\n]*$"):
        next(stream)


def test_torchvision_names_the_number_of_a_damaged_picture(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "own")
    (tmp_path / "own" / "cat" / "1.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"^torchvision:ImageFolder:.*own#0: .*cat/1.png"):
        open_images(f"torchvision:ImageFolder:{tmp_path / 'own'}").load(0)


# The order of the data


def test_every_epoch_shows_every_item_once() -> None:
    stream = iter(StreamSampler(10, 4, seed=3, first_step=0))
    shown = [index for _ in range(5) for index, _ in next(stream)]
    assert sorted(shown[:10]) == list(range(10))
    assert sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:]


def test_ranks_split_the_same_global_batch() -> None:
    whole = next(iter(StreamSampler(50, 8, seed=1, first_step=9)))
    parts = [next(iter(StreamSampler(50, 8, seed=1, first_step=9, rank=r, ranks=2))) for r in (0, 1)]
    assert sorted(whole) == sorted(parts[0] + parts[1])


@pytest.mark.slow
def test_batches_do_not_depend_on_workers_or_where_they_start(folder: Path) -> None:
    images = open_images(folder)
    kind = {"seed": 5, "image_size": 32, "crop": 8}
    plain = batches(images, batch_size=4, first_step=0, **kind)  # type: ignore[arg-type]
    later = batches(images, batch_size=4, first_step=2, workers=1, **kind)  # type: ignore[arg-type]
    _, _, third = next(plain), next(plain), next(plain)
    same = next(later)
    assert third.images is not None
    assert same.images is not None
    assert third.images.shape == (4, 3, 8, 8)
    assert torch.equal(third.images, same.images)
    del later


# Masks and groups


def test_masks_follow_the_cosine_schedule() -> None:
    generator = torch.Generator().manual_seed(0)
    allowed = {max(1, masked_count(s, 64, 64)) for s in range(64)}
    counts = set()
    for _ in range(50):
        counts_of_batch = draw_mask(3, 64, generator=generator, device=torch.device("cpu")).sum(1).tolist()
        assert len(set(counts_of_batch)) == 1
        counts.add(counts_of_batch[0])
    assert counts <= allowed
    assert max(counts) > 60
    assert min(counts) < 10


def test_weight_decay_spares_vectors_and_the_transcoder() -> None:
    model = BiGR(MODEL.generator)
    decayed, plain = parameter_groups(model, 0.02)
    assert decayed["weight_decay"] == 0.02
    assert plain["weight_decay"] == 0
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
    spared = {id(p) for p in plain["params"]}
    assert all(id(p) in spared for p in model.diffusion.parameters())
    assert all(id(p) in spared for p in model.parameters() if sum(s > 1 for s in p.shape) < 2)
    assert id(model.transformer.layers[0].attention.wqkv.weight) not in spared  # type: ignore[union-attr]


def test_warm_up_reaches_every_group_and_cosine_ends_at_zero() -> None:
    s = settings(Path("x"), steps=100, warmup=10, schedule="cosine", learning_rate=1.0)
    assert s.rate(0) == pytest.approx(0.1)
    assert s.rate(9) == pytest.approx(1.0)
    assert s.rate(55) == pytest.approx(0.5)
    assert s.rate(99) < 1e-2


# Losses


def test_augmentation_is_differentiable_and_keeps_the_shape() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    out = augment(images)
    assert out.shape == images.shape
    out.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_adaptive_weight_is_the_clamped_ratio_of_gradients() -> None:
    w = torch.nn.Parameter(torch.tensor([2.0]))
    weight = adaptive_weight((3 * w).sum(), (6 * w).sum(), w)
    assert float(weight) == pytest.approx(0.5, rel=1e-3)
    assert float(adaptive_weight((30 * w).sum(), (6 * w).sum(), w)) == 1.0


def test_dead_bits_are_counted() -> None:
    probabilities = torch.rand(8, 6, 4, 4)
    probabilities[:, 2] = 0.9
    usage = bit_usage(probabilities)
    assert usage["dead_bits"] == 1
    assert 0 < usage["bit_entropy"] < 1


# Runs


@pytest.mark.slow
def test_tokenizer_learns_and_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    images = open_images(folder)
    recipe = TokenizerRecipe(perceptual=None, gan_start=3, gan_width=8)
    whole = train_tokenizer(images, TOKENIZER, settings(tmp_path / "a", steps=8, sample_every=8), recipe)
    train_tokenizer(images, TOKENIZER, settings(tmp_path / "b", steps=5), recipe)
    again = train_tokenizer(images, TOKENIZER, settings(tmp_path / "b", steps=8), recipe)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert (tmp_path / "a" / "samples-000000008.png").exists()


@pytest.mark.slow
def test_generator_from_codes_and_from_images(folder: Path, codes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = BinaryAutoencoder(TOKENIZER)
    recipe = GeneratorRecipe(diffusion_draws=2)
    train_generator(CodeSet(codes), MODEL, settings(tmp_path / "a", steps=30, learning_rate=3e-3), recipe)
    found = losses(tmp_path / "a")
    assert np.mean(found[-5:]) < np.mean(found[:5])
    train_generator(open_images(folder), MODEL, settings(tmp_path / "b", steps=3), recipe, tokenizer=tokenizer)
    assert len(losses(tmp_path / "b")) == 3


@pytest.mark.slow
def test_data_without_labels_train_without_classes(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.rglob("*.png"):
        (flat / file.name).write_bytes(file.read_bytes())
    save_tokenizer(BinaryAutoencoder(preset("tiny").tokenizer), tmp_path / "t")
    run_settings = settings(tmp_path / "g", steps=2)
    made = run_generator_training(
        [str(flat)], str(tmp_path / "t"), run_settings, GeneratorRecipe(), preset="tiny", name="flat"
    )
    assert load(made).config.training["settings"]["conditional"] is False
    with pytest.raises(ValueError, match="no labels"):
        train_generator(
            open_images(flat), MODEL, settings(tmp_path / "h"), GeneratorRecipe(conditional=True),
            tokenizer=BinaryAutoencoder(TOKENIZER),
        )  # fmt: skip


def test_the_record_of_a_model_has_what_was_computed_in_and_no_place_on_this_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_measured", lambda trial, device: "bfloat16")
    save_tokenizer(BinaryAutoencoder(preset("mini").tokenizer), tmp_path / "t")
    run_settings = settings(tmp_path / "g", steps=2, precision="auto", max_time=1000.0)
    made = run_generator_training([str(folder)], str(tmp_path / "t"), run_settings, GeneratorRecipe(), preset="mini")
    record = load(made).config.training["settings"]
    assert not {"out", "cpu", "resume", "max_time"} & record.keys()
    assert (record["precision"], record["steps"], record["conditional"]) == ("bf16", 2, True)
    assert str(tmp_path) not in (made / "config.json").read_text()


@pytest.mark.slow
def test_data_whose_labels_are_all_unknown_train_without_classes(codes: Path, tmp_path: Path) -> None:
    data = CodeSet(codes)
    assert data.labels is not None
    data.labels[:] = -1
    train_generator(data, MODEL, settings(tmp_path / "a", steps=2), GeneratorRecipe())
    with pytest.raises(ValueError, match="no labels"):
        train_generator(data, MODEL, settings(tmp_path / "b"), GeneratorRecipe(conditional=True))


@pytest.mark.slow
def test_muon_takes_the_matrices_of_the_blocks_and_resumes_exactly(codes: Path, tmp_path: Path) -> None:
    recipe = GeneratorRecipe(optimizer="muon")
    model = BiGR(MODEL.generator)
    adamw, muon = make_optimizers(model, recipe)
    matrices = {id(p) for p in muon.param_groups[0]["params"]}
    assert matrices == {id(p) for p in model.transformer.layers.parameters() if p.ndim == 2}
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert not rest & matrices
    assert rest | matrices == {id(p) for p in model.parameters()}
    whole = train_generator(CodeSet(codes), MODEL, settings(tmp_path / "a", steps=6), recipe)
    train_generator(CodeSet(codes), MODEL, settings(tmp_path / "b", steps=4), recipe)
    again = train_generator(CodeSet(codes), MODEL, settings(tmp_path / "b", steps=6), recipe)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_muon_is_refused_where_it_would_be_wrong(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer='lion' is not allowed: choose one of adamw, muon"):
        GeneratorRecipe(optimizer="lion")
    with pytest.raises(ValueError, match="choose bfloat16 or float32"):
        train_generator(CodeSet(codes), MODEL, settings(tmp_path, precision="fp16"), GeneratorRecipe(optimizer="muon"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ema", 1.0), ("ema", -0.1), ("ema", float("nan")), ("workers", -1), ("sample_every", -1), ("clip", -1.0),
        ("clip", float("nan")), ("learning_rate", float("inf")), ("seed", -1), ("seed", 2**32),
        ("precision", "float8"),
    ],
)  # fmt: skip
def test_settings_out_of_range_name_field_and_value(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}='?{value}'? "):
        settings(tmp_path, **{field: value})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TokenizerRecipe, "gan_start", -1), (TokenizerRecipe, "crop", 0), (GeneratorRecipe, "dropout", 1.5),
        (GeneratorRecipe, "weight_decay", -0.1), (GeneratorRecipe, "accumulate", 0),
    ],
)  # fmt: skip
def test_recipes_out_of_range_name_field_and_value(kind: Any, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field}={value} "):
        kind(**{field: value})


@pytest.mark.parametrize(("name", "recorded"), [("float32", "no"), ("bfloat16", "bf16"), ("float16", "fp16")])
def test_precisions_go_by_two_names_and_are_recorded_by_one(tmp_path: Path, name: str, recorded: str) -> None:
    assert settings(tmp_path, precision=name) == settings(tmp_path, precision=recorded)
    assert identify(settings(tmp_path, precision=name))["precision"] == recorded


def test_tokenizer_goes_on_from_other_weights_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_tokenizer(BinaryAutoencoder(TOKENIZER), tmp_path / "start")

    def go_on(steps: int, start: Path) -> Path:
        return run_tokenizer_training(
            [str(folder)], settings(tmp_path / "t", steps=steps), PLAIN, preset="tiny", initial=str(start)
        )

    made = go_on(2, tmp_path / "start")
    assert made == tmp_path / "t" / "tokenizer"
    assert load_tokenizer(made).config == TOKENIZER
    (tmp_path / "start").rename(tmp_path / "moved")
    go_on(4, tmp_path / "moved")
    assert len(losses(tmp_path / "t")) == 4
    save_tokenizer(BinaryAutoencoder(TOKENIZER), tmp_path / "other")
    with pytest.raises(TrainingError, match="initial"):
        go_on(6, tmp_path / "other")


def test_unknown_pixel_loss_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="l1, l2"):
        TokenizerRecipe(pixel_loss="huber")


@pytest.mark.parametrize(
    ("objective", "head"), [("flip", "bernoulli"), ("x0", "bernoulli"), ("bce", "bernoulli"), ("flip", "categorical")]
)
def test_every_weight_of_a_new_generator_comes_to_learn(objective: str, head: str) -> None:
    """Some weights begin at zero, so that others have no gradient at first; none may stay without one."""
    torch.manual_seed(0)
    config = dataclasses.replace(MODEL.generator, objective=objective, output_head=head, transcoder_blocks=2)
    model = BiGR(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bits = torch.randint(0, 2, (8, config.tokens, config.code_bits)).float()
    masked = torch.arange(config.tokens)[None] < torch.arange(1, 9)[:, None]
    learned = set[str]()
    for _ in range(4):
        optimizer.zero_grad()
        model.loss(bits, torch.arange(8) % config.classes, masked=masked, class_dropout=0.5).backward()
        learned |= {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
        optimizer.step()
    unused = {"diffusion.denoiser.x_embedder.weight"} if objective == "bce" else set()  # it sees no bits
    assert {name for name, _ in model.named_parameters()} - learned == unused


@pytest.mark.parametrize("objective", ["flip", "x0", "bce"])
def test_every_transcoder_objective_trains(codes: Path, tmp_path: Path, objective: str) -> None:
    config = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, objective=objective))
    train_generator(CodeSet(codes), config, settings(tmp_path, steps=2))
    assert np.isfinite(losses(tmp_path)).all()


def test_accumulated_batches_take_the_same_step(codes: Path, tmp_path: Path) -> None:
    """With an objective that draws no noise, splitting a batch changes nothing but rounding."""
    config = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, objective="bce"))
    models = []
    for accumulate in (1, 2, 4):
        recipe = GeneratorRecipe(accumulate=accumulate, dropout=0)
        out = settings(tmp_path / str(accumulate), steps=3, batch_size=8, schedule="cosine")
        models.append(train_generator(CodeSet(codes), config, out, recipe))
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-4)
    for first, other in zip(models[0].parameters(), models[2].parameters(), strict=True):
        torch.testing.assert_close(first, other, rtol=0, atol=1e-3)


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import MODEL, settings
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.generator import train_generator
train_generator(CodeSet({codes!r}), MODEL, settings(Path({out!r}), steps=40, save_every=3), **{extra})
print("finished", flush=True)
"""


def _script(codes: Path, out: Path, extra: str = "{}") -> str:
    return RUN.format(tests=str(Path(__file__).parent), codes=str(codes), out=str(out), extra=extra)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_losses_and_weights(codes: Path, tmp_path: Path) -> None:
    run(_script(codes, tmp_path / "whole"), check=True)
    broken = tmp_path / "broken"
    rng = np.random.default_rng(int(time.time()))
    for _ in range(3):
        seen = losses_so_far(broken)
        with start(_script(codes, broken)) as process:
            while process.poll() is None and losses_so_far(broken) < min(seen + 5, 38):
                time.sleep(0.005)
            time.sleep(float(rng.uniform(0, 0.1)))
    run(_script(codes, broken), check=True)
    assert losses(broken) == losses(tmp_path / "whole")
    assert weights(broken) == weights(tmp_path / "whole")


def losses_so_far(out: Path) -> int:
    file = out / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_two_processes_train_resume_and_agree(codes: Path, tmp_path: Path) -> None:
    """Two gloo processes: the run ends, resumes under torchrun, and both ranks see one loss."""
    check = "from accelerate import PartialState\nassert PartialState().num_processes == 2\n"
    for out, steps in (("whole", 9), ("broken", 5)):
        run_together(2, _script(codes, tmp_path / out).replace("steps=40", f"steps={steps}") + check)
    file = tmp_path / "run.py"
    file.write_text(_script(codes, tmp_path / "broken").replace("steps=40", "steps=9") + check)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, env=clean_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(losses(tmp_path / "whole")) == 9
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")


def clean_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "true"}


# Bad luck


def test_nan_stops_with_the_step_and_keeps_the_checkpoint(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is nan at step \d+.*learning rate"):
        train_generator(CodeSet(codes), MODEL, settings(tmp_path, steps=500, learning_rate=1e30, warmup=4, clip=0.0))


def test_other_settings_are_refused_by_name(codes: Path, tmp_path: Path) -> None:
    train_generator(CodeSet(codes), MODEL, settings(tmp_path, steps=2))
    with pytest.raises(TrainingError, match=r"another run: learning_rate was 0.01, is 0.5; choose"):
        train_generator(CodeSet(codes), MODEL, settings(tmp_path, steps=4, learning_rate=0.5))
    config = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, layers=3, transcoder_blocks=2))
    said = (
        "another run: config.layers was 2, is 3; config.transcoder_blocks was 1, is 2; objective.dropout was 0.1, is 0;"
    )
    with pytest.raises(TrainingError, match=said):
        train_generator(CodeSet(codes), config, settings(tmp_path, steps=4), GeneratorRecipe(dropout=0))


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_codes_only(folder: Path, codes: Path, tmp_path: Path) -> None:
    """As many of as many bits are not enough."""
    train_generator(CodeSet(codes), MODEL, settings(tmp_path / "g", steps=2))
    torch.manual_seed(0)
    images = open_images(folder)
    turned = Subset(images, np.roll(np.arange(len(images)), 1), images.labels, images.class_names)
    other = write_codes(turned, BinaryAutoencoder(TOKENIZER), tmp_path / "other", tokenizer_name="t")
    assert other.header.shape == CodeSet(codes).header.shape
    with pytest.raises(TrainingError, match=r"another run: codes\.codes\.npy was \w{12}…, is \w{12}…; choose another"):
        train_generator(other, MODEL, settings(tmp_path / "g", steps=4))
    for out in ("g", "whole"):
        train_generator(CodeSet(codes), MODEL, settings(tmp_path / out, steps=4))
    assert weights(tmp_path / "g") == weights(tmp_path / "whole")


def test_a_run_that_goes_on_with_other_images_is_warned_of(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    tokenizer = BinaryAutoencoder(TOKENIZER)

    def go_on(steps: int) -> int:
        """Train both, and return the number of warnings."""
        images = open_images(tmp_path / "own")
        caplog.clear()
        train_tokenizer(images, TOKENIZER, settings(tmp_path / "t", steps=steps, warmup=1), PLAIN)
        train_generator(images, MODEL, settings(tmp_path / "g", steps=steps, warmup=1), tokenizer=tokenizer)
        return caplog.text.count("the images differ from those of ")

    assert go_on(1) == 0
    Image.new("RGB", (36, 40)).save(tmp_path / "own" / "cat" / "1.png")
    assert (go_on(2), go_on(3)) == (2, 0)
    for out in ("t", "g"):
        file = find_checkpoints(tmp_path / out)[-1][1] / "run.json"
        record = json.loads(file.read_text())
        del record["images_fingerprint"]  # as in older versions
        file.write_text(json.dumps(record))
        (file.parent / "sha256.json").unlink()
    assert go_on(4) == 0
    assert caplog.text.count("did not record images_fingerprint: not compared") == 2


def test_a_start_of_another_architecture_is_told_by_what_differs(codes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_tokenizer(BinaryAutoencoder(TOKENIZER), tmp_path / "t")
    start = save(tiny_model(), tmp_path / "start")
    said = "initial=tiny-random is of another architecture: generator.dim was 64, is 192; generator.heads was 2, is 3; "
    with pytest.raises(ValueError, match=said):
        run_generator_training(
            [str(codes)], str(tmp_path / "t"), settings(tmp_path / "g"), GeneratorRecipe(), preset="tiny",
            initial=str(start),
        )  # fmt: skip


def test_damaged_checkpoint_is_named_and_the_one_before_it_still_resumes(codes: Path, tmp_path: Path) -> None:
    train_generator(CodeSet(codes), MODEL, settings(tmp_path, steps=4))
    newest = find_checkpoints(tmp_path)[-1][1]
    (newest / "ema.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=newest.name):
        train_generator(CodeSet(codes), MODEL, settings(tmp_path, steps=6))
    newest.rename(tmp_path / "moved-away")
    train_generator(CodeSet(codes), MODEL, settings(tmp_path, steps=6))
    assert len(losses(tmp_path)) == 6


def test_full_disk_names_the_step_and_costs_no_more_than_that_checkpoint(
    codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bigr_repr.train.resume as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    train_generator(CodeSet(codes), MODEL, settings(broken, steps=2))
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(
            TrainingError, match=r"step 4 could not be written.*No space left.*resumes from checkpoint-000000002"
        ):
            train_generator(CodeSet(codes), MODEL, settings(broken, steps=4))
    assert [step for step, _ in find_checkpoints(broken)] == [2]
    assert not list(broken.glob("partial-*"))
    for out in (broken, whole):
        train_generator(CodeSet(codes), MODEL, settings(out, steps=4))
    assert weights(broken) == weights(whole)


def test_labels_that_do_not_fit_are_named(codes: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, classes=1))
    with pytest.raises(ValueError, match=r"label 1 is outside 0..0"):
        train_generator(CodeSet(codes), config, settings(tmp_path))


def test_images_without_a_label_are_learned_without_a_class(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = open_images(folder)
    assert images.labels is not None
    some = Subset(images, np.arange(24), np.where(np.arange(24) % 3, images.labels, -1))
    recipe = GeneratorRecipe(conditional=True, class_dropout=0)
    run_settings = settings(tmp_path, steps=2, batch_size=24)
    train_generator(some, MODEL, run_settings, recipe, tokenizer=BinaryAutoencoder(TOKENIZER))
    assert caplog.text.count("8 of 24 images have no label and are learned without a class") == 1
    given = GeneratorTask(BiGR(MODEL.generator), recipe, None, None)._given(Batch(None, None, torch.tensor([1, -1, 0])))
    assert torch.equal(given, torch.tensor([1, 2, 0]))  # 2: no class


def test_discriminator_gives_logits_a_patch() -> None:
    assert PatchDiscriminator(width=8)(torch.rand(2, 3, 32, 32)).shape[:2] == (2, 1)


# By field: least and most that are allowed; None: any number above.
RECIPE_LIMITS: dict[str, tuple[float, float | None]] = {
    "class_dropout": (0, 1),
    "dropout": (0, 1),
    "weight_decay": (0, None),
    "diffusion_draws": (1, None),
    "accumulate": (1, None),
    "least_area": (0.01, 1),
    "light_share": (0, 1),
    "align_weight": (0, None),
    "pool_weight": (0, None),
}


@pytest.mark.parametrize("field", RECIPE_LIMITS)
def test_recipes_go_up_to_their_limits(field: str) -> None:
    least, most = RECIPE_LIMITS[field]
    for value in (least, 5 if most is None else most):
        assert getattr(GeneratorRecipe(**{field: value}), field) == value  # type: ignore[arg-type]
    step = 1 if isinstance(least, int) and most is None else 0.005
    for value in [least - step, *([] if most is None else [most + step])]:
        with pytest.raises(ValueError, match=field):
            GeneratorRecipe(**{field: value})  # type: ignore[arg-type]


def test_a_preset_stands_for_the_same_network_as_ever() -> None:
    sizes = {}
    for name in ("mini", "tiny"):
        config = preset(name)
        sizes[name] = tuple(
            sum(weight.numel() for weight in module.parameters())
            for module in (BinaryAutoencoder(config.tokenizer), BiGR(config.generator))
        )
    assert sizes == {"mini": (944_867, 2_091_552), "tiny": (2_684_763, 8_143_704)}
