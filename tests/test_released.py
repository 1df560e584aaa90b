"""The authors' files: any size loads as it is, what is wrong is one line that names it, and the hub brings them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from released_files import random_release
from torch import Tensor

from bigr_repr.checkpoints import catalog, released
from bigr_repr.checkpoints.architecture import infer_generator, infer_tokenizer
from bigr_repr.checkpoints.classes import class_names
from bigr_repr.checkpoints.description import count_parameters
from bigr_repr.checkpoints.pretrained import load, load_official, save
from bigr_repr.checkpoints.released import generator_file_name
from bigr_repr.checkpoints.weights import without_weights
from bigr_repr.config import GeneratorConfig, TokenizerConfig, preset
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = TokenizerConfig(
    image_size=16, base_channels=32, channel_multipliers=(1, 1), res_blocks=1, embed_dim=32, code_bits=8
)
GENERATOR = GeneratorConfig(
    layers=2, heads=1, dim=64, transcoder_blocks=1, transcoder_dim=16, classes=3, code_bits=8, grid=8
)


def _release(folder: Path) -> dict[str, Path]:
    tokenizer, generator, _ = random_release(folder, TOKENIZER, GENERATOR)
    return {"tokenizer": tokenizer, "generator": generator}


def _alter(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = torch.load(path, weights_only=True)
    change(data.get("ema", data))
    torch.save(data, path)


def test_released_files_keep_every_weight_through_save(tmp_path: Path) -> None:
    tokenizer, generator, weights = random_release(tmp_path, TOKENIZER, GENERATOR)
    pre = load(save(load_official(tokenizer=tokenizer, generator=generator, name="mine"), tmp_path / "model"))
    assert pre.config.name == "mine"
    assert pre.config.generator == dataclasses.replace(GENERATOR, ffn_multiple_of=256)
    for name, weight in pre.tokenizer.state_dict().items():
        assert torch.equal(weight.double(), torch.from_numpy(weights[f"ae.{name}"]))
    for name, weight in pre.generator.state_dict().items():
        assert torch.equal(weight.double(), torch.from_numpy(weights[generator_file_name(name)]))


def test_all_wrong_tensors_are_named_at_once(tmp_path: Path) -> None:
    paths = _release(tmp_path)

    def change(state: dict[str, Tensor]) -> None:
        del state["mask_tok"], state["diffusion_pos_embed_learned"], state["layers.1.attention.wo.weight"]
        state["layers.0.attention_norm.weight"] = torch.zeros(3)
        state["tok_embeddings.weight"] = torch.zeros(64, 9)
        state["freqs"] = torch.zeros(3)

    _alter(paths["generator"], change)
    with pytest.raises(ValueError, match=r"bigr\.pt: its tensors do not fit") as caught:
        load_official(**paths, image_size=16)
    message = str(caught.value)
    assert "3 missing: diffusion_pos_embed_learned, layers.1.attention.wo.weight, mask_tok" in message
    assert "1 not expected: freqs" in message
    assert "layers.0.attention_norm.weight (3,) instead of (64,)" in message
    assert "tok_embeddings.weight (64, 9) instead of (64, 8)" in message


def test_a_wrong_tokenizer_is_named_by_the_files_own_names(tmp_path: Path) -> None:
    paths = _release(tmp_path)

    def change(state: dict[str, Tensor]) -> None:
        del state["ae.encoder.blocks.1.conv1.weight"]
        del state["ae.generator.blocks.0.weight"]
        state["ae.quantize.proj.0.weight"] = torch.zeros(9, 32, 1, 1)
        state["ae.more"] = torch.zeros(1)

    _alter(paths["tokenizer"], change)
    with pytest.raises(ValueError, match=r"binaryae_ema\.th: its tensors do not fit") as caught:
        load_official(**paths)
    message = str(caught.value)
    assert "2 missing: ae.encoder.blocks.1.conv1.weight, ae.generator.blocks.0.weight" in message
    assert "1 not expected: ae.more" in message
    assert "ae.quantize.proj.0.weight (9, 32, 1, 1) instead of (8, 32, 1, 1)" in message


ALTERED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "a block missing": (
        "tokenizer",
        lambda s: [s.pop(name) for name in list(s) if name.startswith("ae.encoder.blocks.3.")],
        r"holds no encoder\.blocks\.3",
    ),
    "a level of no whole width": (
        "tokenizer",
        lambda s: s.update(
            {n: torch.zeros(40, *w.shape[1:]) for n, w in s.items() if n.startswith("ae.encoder.blocks.4.")}
        ),
        r"widths \[32, 40\] are not multiples of the first width 32",
    ),
    "blocks in another order": (
        "tokenizer",
        lambda s: s.update({"ae.encoder.blocks.1.q.weight": 0, "ae.encoder.blocks.99.weight": torch.zeros(1)}),
        r"holds no encoder\.blocks\.1\d",
    ),
    "a layer missing": (
        "generator",
        lambda s: [s.pop(name) for name in list(s) if name.startswith("layers.0.")],
        r"holds no layers\.0\.\*",
    ),
    "copies that differ": (
        "generator",
        lambda s: s.update({"diffusion_processor._denoise_fn.x_embedder.bias": torch.ones(16)}),
        r"occur twice and differ \(1 tensors, first diffusion_processor\._denoise_fn\.x_embedder\.bias",
    ),
    "another schedule": (
        "generator",
        lambda s: s["diffusion_processor.scheduler.k_final"].pow_(2),
        "not the schedule 1 - t/T",
    ),
    "a narrow feed-forward": (
        "generator",
        lambda s: s.update(
            {f"layers.{n}.feed_forward.{w}.weight": torch.zeros(99, 64) for n in (0, 1) for w in ("w1", "w3")}
        ),
        "feed-forward width 99 is below 170",
    ),
    "tokens in no square": (
        "generator",
        lambda s: s.update(diffusion_pos_embed_learned=torch.zeros(1, 63, 64)),
        "63 positions",
    ),
    "not a tensor": ("generator", lambda s: s.update(mask_tok=3), "1 missing: mask_tok; 1 not expected|1 missing"),
}


@pytest.mark.parametrize("kind", list(ALTERED))
def test_released_files_of_another_model_say_what_is_wrong(tmp_path: Path, kind: str) -> None:
    part, change, message = ALTERED[kind]
    paths = _release(tmp_path)
    _alter(paths[part], change)
    with pytest.raises(ValueError, match=message) as caught:
        load_official(**paths)
    assert str(paths[part]) in str(caught.value)


def test_the_image_size_follows_from_the_files_and_is_checked(tmp_path: Path) -> None:
    paths = _release(tmp_path)
    assert load_official(**paths).config.image_size == 16
    assert load_official(**paths, image_size=16).config.image_size == 16
    with pytest.raises(ValueError, match=r"image_size=32 does not fit.*make images of 16 pixels"):
        load_official(**paths, image_size=32)


def test_the_head_count_is_asked_for_where_it_cannot_be_known(tmp_path: Path) -> None:
    odd = dataclasses.replace(GENERATOR, dim=72, heads=6)
    tokenizer, generator, _ = random_release(tmp_path, TOKENIZER, odd)
    with pytest.raises(ValueError, match=r"width 72 is not a multiple of 64.*give heads="):
        load_official(tokenizer=tokenizer, generator=generator)
    with pytest.raises(ValueError, match=r"heads=7.*divide dim=72"):
        load_official(tokenizer=tokenizer, generator=generator, heads=7)
    assert load_official(tokenizer=tokenizer, generator=generator, heads=6).config.generator.heads == 6


def test_two_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    paths = _release(tmp_path)
    (tmp_path / "other").mkdir()
    other = random_release(tmp_path / "other", dataclasses.replace(TOKENIZER, code_bits=9), GENERATOR)
    with pytest.raises(ValueError, match=r"do not belong together.*code_bits"):
        load_official(tokenizer=other[0], generator=paths["generator"])
    with pytest.raises(ValueError, match=r'no weights under "ema".*tokenizer files end in \.th'):
        load_official(tokenizer=paths["tokenizer"], generator=paths["tokenizer"])
    with pytest.raises(ValueError, match=r"no tensor named ae"):
        load_official(tokenizer=paths["generator"], generator=paths["generator"])


class _Harmful:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("content", ["empty", "cut", "text", "harmful", "plain pickle", "list"])
def test_unreadable_files_are_one_line(tmp_path: Path, content: str) -> None:
    paths = _release(tmp_path)
    path = paths["generator"]
    if content == "empty":
        path.write_bytes(b"")
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    elif content == "text":
        path.write_text("<html>404</html>")
    elif content == "harmful":
        torch.save({"ema": _Harmful(tmp_path / "harm")}, path)
    elif content == "plain pickle":
        path.write_bytes(pickle.dumps({"ema": _Harmful(tmp_path / "harm")}))
    else:
        torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match=r"damaged|holds a list|first keys|holds no") as caught:
        load_official(**paths)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("missing", ["tokenizer", "generator"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    paths = _release(tmp_path)
    paths[missing].unlink()
    with pytest.raises(FileNotFoundError, match=paths[missing].name):
        load_official(**paths)


def test_files_from_before_the_zip_format_load_too(tmp_path: Path) -> None:
    paths = _release(tmp_path)
    wanted = load_official(**paths).fingerprint
    for path in paths.values():
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert load_official(**paths).fingerprint == wanted


_PEAK = """
import sys
from pathlib import Path
from bigr_repr.checkpoints import load_official
def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
import bigr_repr.models.bigr
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = status("VmRSS")
pre = load_official(tokenizer=sys.argv[1], generator=sys.argv[2])
pre.fingerprint  # reads every weight, mapped or not
print((status("VmHWM") - before) / Path(sys.argv[2]).stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_loading_peaks_below_1_2_times_the_files_size(tmp_path: Path) -> None:
    large = dataclasses.replace(GENERATOR, layers=4, heads=16, dim=1024, classes=1000)
    with without_weights():
        shapes = BiGR(large).state_dict()
    # Zeros, made one by one as the file is written: only what loading takes counts.
    state = {generator_file_name(name): torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    state |= {
        name.replace("denoise_mlp.", "diffusion_processor._denoise_fn."): tensor
        for name, tensor in state.items()
        if name.startswith("denoise_mlp.")
    }
    paths = _release(tmp_path)
    torch.save({"ema": state}, paths["generator"])
    del state
    assert paths["generator"].stat().st_size > 200e6
    run = [sys.executable, "-c", _PEAK, *map(str, paths.values())]
    share = float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    paths["generator"].unlink()
    assert 0.9 < share < 1.2


@pytest.mark.parametrize("variant", list(catalog.RELEASED))
def test_released_sizes_are_inferred_from_shapes_alone(variant: str) -> None:
    wanted = preset(catalog.RELEASED[variant].preset)
    with without_weights():
        tokenizer, generator = BinaryAutoencoder(wanted.tokenizer), BiGR(wanted.generator)
    state = {generator_file_name(name): tensor for name, tensor in generator.state_dict().items()}
    found = infer_generator(state, steps=256, heads=None)
    assert found == wanted.generator
    assert infer_tokenizer(tokenizer.state_dict(), grid=found.grid) == wanted.tokenizer


def test_released_sizes_have_the_papers_parameter_counts() -> None:
    counts = {name: count_parameters(preset(name)) for name in ("L", "XL", "XXL", "L-512")}
    millions = {name: round((count.transformer + count.transcoder) / 1e6) for name, count in counts.items()}
    assert millions == {"L": 336, "XL": 799, "XXL": 1480, "L-512": 373}  # BiGR, table 7: 336 M, 799 M, 1.5 B, 373 M
    assert counts["L"].tokenizer == pytest.approx(65.5e6, rel=0.01)


# ---- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub that has the golden files as variant L-d24; the list grows by what is asked of it."""
    asked = []

    def download(repository: str, filename: str, **options: object) -> str:
        asked.append((repository, filename))
        place = tmp_path / "cache" / filename
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(GOLDEN / ("bigr.pt" if filename.endswith(".pt") else "binaryae_ema.th"), place)
        return str(place)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_released_variant_comes_from_the_hub(hub: list[tuple[str, str]]) -> None:
    pre = load("hf:haoosz/BiGR/L-d24")
    assert hub == [
        ("haoosz/BiGR", "bae/bae_d24/binaryae_ema_1000000.th"),
        ("haoosz/BiGR", "gpt/bigr_L_d24.pt"),
    ]
    assert pre.config.name == "bigr-L-d24"
    assert "ImageNet" in pre.config.training["data"]
    assert "non-commercial" in pre.config.training["terms"]
    assert pre.config.class_names == ()  # these files have ten classes, not ImageNet's
    half = load("hf:haoosz/BiGR/L-d24", device="meta", dtype=torch.bfloat16)
    assert {(weight.dtype, weight.device.type) for weight in half.generator.parameters()} == {(torch.bfloat16, "meta")}


def test_a_download_that_is_not_the_releases_is_refused_and_removed(hub: list[tuple[str, str]], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^gpt/bigr_XL_d24\.pt: its SHA-256 is .* instead of the release.s .*; try again$"
    ):
        load("hf:haoosz/BiGR/XL-d24")
    assert not (tmp_path / "cache/gpt/bigr_XL_d24.pt").exists()


def test_classes_of_a_release_have_the_names_that_are_looked_up_before_it_is_there(tmp_path: Path) -> None:
    tokenizer, generator, _ = random_release(tmp_path, TOKENIZER, dataclasses.replace(GENERATOR, classes=1000))
    generator = generator.rename(tmp_path / "bigr_L_d24.pt")
    names = load_official(tokenizer=tokenizer, generator=generator).config.class_names
    assert names == class_names(catalog.released_config("L-d24"))
    assert (len(names), names[0], names[207]) == (1000, "tench, Tinca tinca", "golden retriever")
    own = tuple(f"class {number}" for number in range(1000))
    assert class_names(dataclasses.replace(catalog.released_config("L-d24"), class_names=own)) == own


def _offline_line(name: str) -> str:
    with pytest.raises(ConnectionError) as caught:
        load(name)
    return str(caught.value)


def test_offline_says_what_to_download_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    line = _offline_line("hf:haoosz/BiGR/XXL-d32")
    assert "\n" not in line
    for part in (
        "no connection, or offline mode",
        "bae/bae_d32/binaryae_ema_950000.th and gpt/bigr_XXL_d32.pt from https://huggingface.co/haoosz/BiGR ",
        "bigr-repr models import --tokenizer binaryae_ema_950000.th --generator bigr_XXL_d32.pt --out FOLDER",
        'load_official(tokenizer="binaryae_ema_950000.th", generator="bigr_XXL_d32.pt")',
    ):
        assert part in line


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("503 Server Error\nfor url"), KeyError("etag")]
)
def test_any_failure_of_a_download_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(repository: str, filename: str, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    line = _offline_line("hf:haoosz/BiGR/L-d24")
    assert "\n" not in line
    assert str(error).splitlines()[0] in line


def test_attempts_of_the_hubs_client_are_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = huggingface_hub.utils.logging.get_logger("huggingface_hub.utils._http")
    before = huggingface_hub.utils.logging.get_verbosity()

    def download(*_: str, **options: object) -> str:
        logger.warning("thrown while requesting HEAD")
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)  # to caplog
    with pytest.raises(ConnectionError, match="no route to host"):
        load("hf:haoosz/BiGR/L-d24")
    assert not caplog.records
    logger.warning("told again")
    assert len(caplog.records) == 1
    assert huggingface_hub.utils.logging.get_verbosity() == before


# ---- damage that no shape tells


def test_no_flipped_byte_is_imported_as_another_weight(tmp_path: Path) -> None:
    paths = _release(tmp_path)
    right, content = load_official(**paths).fingerprint, paths["generator"].read_bytes()
    found, random = 0, np.random.default_rng(0)
    for place in random.choice(len(content), 60, replace=False).tolist():
        paths["generator"].write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert load_official(**paths, verify=True).fingerprint == right
        except ValueError as error:
            found += 1
            assert str(paths["generator"]) in str(error)  # noqa: PT017
    assert found > 30


def test_a_file_called_as_a_released_one_that_is_not_it_is_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = _release(tmp_path)
    own = hashlib.sha256(paths["generator"].read_bytes()).hexdigest()
    for digest, said in ((own, False), ("0" * 64, True)):
        monkeypatch.setattr(released, "RELEASED_SHA256", {f"gpt/{paths['generator'].name}": digest})
        caplog.clear()
        load_official(**paths, verify=True)
        assert ("is not the file of that name in the release" in caplog.text) == said


def test_a_file_that_states_more_than_it_has_is_refused(tmp_path: Path) -> None:
    paths = _release(tmp_path)
    with zipfile.ZipFile(paths["generator"], "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bigr/data/999", bytes(50_000_000))
    with pytest.raises(ValueError, match="bytes of content, more than it has"):
        load_official(**paths)


@pytest.mark.parametrize("steps", [1, 16, 1000])
def test_the_number_of_diffusion_steps_is_read_from_the_schedule(steps: int) -> None:
    prefix = "diffusion_processor.scheduler."
    linear = torch.linspace(1, 0, steps + 1)
    assert released._diffusion_steps({prefix + "k_final": linear}, Path("x.pt")) == steps
    assert released._diffusion_steps({}, Path("x.pt")) is None
    assert released._diffusion_steps({prefix + "n": torch.tensor(5)}, Path("x.pt")) is None
    lengths = {prefix + "a": torch.zeros(steps + 1), prefix + "b": torch.zeros(1), prefix + "c": torch.zeros(9, 9)}
    assert released._diffusion_steps(lengths, Path("x.pt")) == steps  # the longest buffer has one number a step
    for other in (linear.flip(0), linear**2 if steps > 1 else linear / 2, linear[None], torch.ones(1)):
        with pytest.raises(ValueError, match=r"x\.pt: .*k_final is not the schedule 1 - t/T"):
            released._diffusion_steps({prefix + "k_final": other}, Path("x.pt"))
