"""Models on disk: what is saved is loaded, and damage is one line that names it."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from released_files import randomize
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigr_repr.checkpoints import catalog
from bigr_repr.checkpoints.catalog import available_models
from bigr_repr.checkpoints.description import describe
from bigr_repr.checkpoints.pretrained import Pretrained, load, load_tokenizer, save, save_tokenizer
from bigr_repr.config import GeneratorConfig, ModelConfig, TokenizerConfig
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = TokenizerConfig(
    image_size=16, base_channels=32, channel_multipliers=(1, 1), res_blocks=1, embed_dim=32, code_bits=8
)
GENERATOR = GeneratorConfig(
    layers=2, heads=1, dim=64, transcoder_blocks=1, transcoder_dim=16, classes=3, code_bits=8, grid=8
)
CONFIG = ModelConfig(
    name="small",
    tokenizer=TOKENIZER,
    generator=GENERATOR,
    class_names=("cat", "dög", "newt"),
    training={"data": ["made up"], "terms": "none"},
    quality={"knn": 0.5},
)


@pytest.fixture
def pre() -> Pretrained:
    tokenizer, generator = BinaryAutoencoder(TOKENIZER), BiGR(GENERATOR)
    randomize(tokenizer, 0)
    randomize(generator, 1)
    return Pretrained(CONFIG, tokenizer.eval(), generator.eval())


def _weights(pre: Pretrained) -> list[Tensor]:
    return [*pre.tokenizer.state_dict().values(), *pre.generator.state_dict().values()]


def _same(a: Pretrained, b: Pretrained) -> bool:
    return all(torch.equal(x, y) for x, y in zip(_weights(a), _weights(b), strict=True))


# ---- model folders


def test_load_gives_what_save_was_given(pre: Pretrained, tmp_path: Path) -> None:
    folder = save(pre, tmp_path / "deep" / "model")
    again = load(folder)
    assert _same(pre, again)
    assert again.config == pre.config
    assert again.fingerprint == pre.fingerprint
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generator.safetensors",
        "tokenizer.safetensors",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert not again.tokenizer.training
    assert not again.generator.training
    assert again.device == torch.device("cpu")
    frozen = {name for name, weight in again.tokenizer.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, weight in pre.tokenizer.named_parameters() if not weight.requires_grad}


def test_files_are_as_readable_as_other_files(pre: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in save(pre, tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "other").stat().st_mode}


def test_layout_in_memory_is_of_no_account(pre: Pretrained, tmp_path: Path) -> None:
    fingerprint = pre.fingerprint
    turned = Pretrained(CONFIG, pre.tokenizer.to(memory_format=torch.channels_last), pre.generator)  # type: ignore[call-overload]
    assert turned.fingerprint == fingerprint
    assert load(save(turned, tmp_path / "model")).fingerprint == fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_and_comes_back_as_float32(
    pre: Pretrained, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = save(pre, tmp_path / "half", store_dtype=dtype)
    assert {tensor.dtype for tensor in load_file(folder / "generator.safetensors").values()} == {dtype}
    again = load(folder)
    assert {weight.dtype for weight in _weights(again)} == {torch.float32}
    assert all(torch.equal(x.to(dtype).float(), y) for x, y in zip(_weights(pre), _weights(again), strict=True))
    # The fingerprint is that of the weights as stored, whatever they are converted to and saved as afterwards.
    assert again.fingerprint != pre.fingerprint
    assert load(save(again, tmp_path / "single")).fingerprint == again.fingerprint
    assert load(folder, dtype=torch.bfloat16).fingerprint == again.fingerprint


def test_to_converts_in_place_and_keeps_the_fingerprint(pre: Pretrained) -> None:
    before = Pretrained(pre.config, pre.tokenizer, pre.generator).fingerprint
    assert pre.to(dtype=torch.float64) is pre
    assert {weight.dtype for weight in _weights(pre)} == {torch.float64}
    assert pre.to("cpu", torch.bfloat16).fingerprint == before


def test_the_fingerprint_tells_every_change(pre: Pretrained) -> None:
    seen = {pre.fingerprint}
    for weight in (pre.tokenizer.quantize.embed.weight, pre.generator.transformer.mask_tok):
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3
        seen.add(Pretrained(CONFIG, pre.tokenizer, pre.generator).fingerprint)
    assert len(seen) == 3
    assert all(len(value) == 64 for value in seen)


def test_weights_too_large_for_half_precision_are_refused(pre: Pretrained, tmp_path: Path) -> None:
    with torch.no_grad():
        pre.generator.transformer.mask_tok[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"transformer.mask_tok reaches 1e\+06.*float16; use torch.bfloat16"):
        save(pre, tmp_path / "model", store_dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_save_replaces_a_model_and_nothing_else(pre: Pretrained, tmp_path: Path) -> None:
    folder = save(pre, tmp_path / "model")
    (folder / "README.md").write_text("mine")
    earlier = load(folder)  # its weights are mapped from the files that are about to be replaced
    kept = [weight.clone() for weight in _weights(earlier)]
    with torch.no_grad():
        pre.generator.transformer.mask_tok += 1
    assert _same(load(save(pre, folder)), pre)
    assert (folder / "README.md").read_text() == "mine"
    assert all(torch.equal(x, y) for x, y in zip(kept, _weights(earlier), strict=True))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for place in ("photos", "photos/a.jpg"):
        with pytest.raises(FileExistsError, match="not a model folder; choose another folder"):
            save(pre, tmp_path / place)
    (tmp_path / "empty").mkdir()
    assert _same(load(save(pre, tmp_path / "empty")), pre)


@pytest.mark.parametrize("known", [False, True])
def test_all_of_a_model_is_on_the_disk_before_its_name_is(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Contents first, then the name that makes them a model, then the folders that hold names; nothing after that."""
    folder = save(pre, tmp_path / "model") if known else tmp_path / "model"
    done: list[tuple[str, int]] = []
    rename, replace = Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(("sync", os.fstat(handle).st_ino)))
    monkeypatch.setattr(Path, "rename", lambda self, to: done.append(("name", self.stat().st_ino)) or rename(self, to))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: done.append(("name", self.stat().st_ino)) or replace(self, to)
    )
    save(pre, folder)
    files = {("sync", path.stat().st_ino) for path in folder.iterdir()}
    first = next(index for index, (kind, _) in enumerate(done) if kind == "name")
    last = max(index for index, (kind, _) in enumerate(done) if kind == "name")
    own, above = ("sync", folder.stat().st_ino), ("sync", tmp_path.stat().st_ino)
    assert len(files) == 3
    assert files <= set(done[:first])
    assert own in (done[last:] if known else done[:first])
    assert above in done[last:]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(pre: Pretrained, tmp_path: Path) -> None:
    folder = save(pre, tmp_path / "model")
    fingerprint = pre.fingerprint
    with torch.no_grad():
        pre.generator.transformer.mask_tok += 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            OSError,
            match=r"space or choose another folder, then repeat the command: .*model/tokenizer.safetensors",
        ):
            save(pre, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load(folder).fingerprint == fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_alone_and_a_models(pre: Pretrained, tmp_path: Path) -> None:
    alone = load_tokenizer(save_tokenizer(pre.tokenizer, tmp_path / "tokenizer"))
    inside = load_tokenizer(save(pre, tmp_path / "model"))
    for tokenizer in (alone, inside):
        assert tokenizer.config == TOKENIZER
        assert not tokenizer.training
        for name, weight in pre.tokenizer.state_dict().items():
            assert torch.equal(tokenizer.state_dict()[name], weight)
    with pytest.raises(ValueError, match=r"only a tokenizer; train a generator"):
        load(tmp_path / "tokenizer")
    with (tmp_path / "tokenizer" / "tokenizer.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ValueError, match="damaged or were replaced"):
        load_tokenizer(tmp_path / "tokenizer")


# ---- what can be wrong with a folder


def _edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        record = json.loads((folder / "config.json").read_text())
        del record["record_sha256"]  # as one does who changes it on purpose
        change(record)
        (folder / "config.json").write_text(json.dumps(record))

    return damage


def _edit_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / "generator.safetensors")
        change(state)
        save_file(state, folder / "generator.safetensors")

    return damage


def _truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def _flip(folder: Path) -> None:
    content = bytearray((folder / "generator.safetensors").read_bytes())
    content[-1000] ^= 1
    (folder / "generator.safetensors").write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"no config\.json; see: bigr-repr models"),
    "no weights": (lambda f: (f / "generator.safetensors").unlink(), FileNotFoundError, "generator.safetensors"),
    "config cut": (_truncate("config.json", 40), ValueError, r"config\.json cannot be used"),
    "config damaged": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('"name": "', '"name": "x')),
        ValueError,
        "config.json cannot be used: it has changed since it was written; .* remove record_sha256 from it",
    ),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), ValueError, "holds a list"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), ValueError, "cannot be used"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 100_000), ValueError, "cannot be used"),
    "no name": (_edit_config(lambda c: c.pop("name")), ValueError, "name"),
    "tokenizer a list": (_edit_config(lambda c: c.update(tokenizer=[1])), ValueError, "cannot be used"),
    "unknown field": (_edit_config(lambda c: c["generator"].update(color=1)), ValueError, "color"),
    "a billion layers": (_edit_config(lambda c: c["generator"].update(layers=10**9)), ValueError, "at most 1024"),
    "huge grid": (_edit_config(lambda c: c["generator"].update(grid=10**9)), ValueError, "at most 4096"),
    "long number": (_edit_config(lambda c: c["generator"].update(dim=10**4000)), ValueError, "dim=1000.*… is not"),
    "longer number": (
        lambda f: (f / "config.json").write_text('{"generator": {"dim": 1' + "0" * 9999 + "}}"),
        ValueError,
        "digits",
    ),
    "bad value": (_edit_config(lambda c: c["generator"].update(heads=7)), ValueError, "heads=7"),
    "bad number": (_edit_config(lambda c: c["generator"].update(rope_base="x")), ValueError, "rope_base='x'"),
    "no groups": (
        _edit_config(lambda c: c["tokenizer"].update(norm_groups=0)),
        ValueError,
        "norm_groups=0.*at least 1",
    ),
    "wide level": (
        _edit_config(lambda c: c["tokenizer"].update(channel_multipliers=[1, 1025])),
        ValueError,
        "each at most 1024",
    ),
    "bad level": (_edit_config(lambda c: c["tokenizer"].update(channel_multipliers=[1, 1.5])), ValueError, "1.5"),
    "newer format": (_edit_config(lambda c: c.update(format=2)), ValueError, "install a newer"),
    "other pixels": (_edit_config(lambda c: c.update(preprocessing={})), ValueError, "preprocessing"),
    "other architecture": (
        _edit_config(lambda c: c["generator"].update(layers=1)),
        ValueError,
        r"not expected: transformer\.layers\.1",
    ),
    "weights cut": (_truncate("generator.safetensors", 5000), ValueError, "damaged, or not a safetensors"),
    "weights empty": (_truncate("generator.safetensors", 0), ValueError, "damaged, or not a safetensors"),
    "a bit flipped": (_flip, ValueError, "damaged or were replaced.*download the folder again"),
    "missing and surplus": (
        _edit_weights(lambda s: s.update(extra=s.pop("transformer.mask_tok"))),
        ValueError,
        r"generator.safetensors: .*1 missing: transformer.mask_tok; 1 not expected: extra",
    ),
    "misshapen": (
        _edit_weights(lambda s: s.update({"transformer.norm.weight": torch.zeros(65)})),
        ValueError,
        r"1 of another shape or type: transformer.norm.weight \(65,\) instead of \(64,\)",
    ),
    "not floats": (
        _edit_weights(lambda s: s.update({"transformer.norm.weight": torch.zeros(64, dtype=torch.int32)})),
        ValueError,
        r"transformer.norm.weight of torch.int32",
    ),
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damage_is_one_line_that_names_it(pre: Pretrained, tmp_path: Path, kind: str) -> None:
    damage, error, message = DAMAGE[kind]
    folder = save(pre, tmp_path / "model")
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no-such-model", FileNotFoundError, "neither a bundled model nor a folder.*bigr-repr models list"),
        ("bigr-L-d24", FileNotFoundError, "did you mean hf:haoosz/BiGR/L-d24?"),
        ("hf:haoosz/BiGR", ValueError, "form is hf:owner/repo/VARIANT"),
        ("hf:haoosz/BiGR/S-d24", ValueError, "VARIANT one of L-d24, XL-d24"),
        (str(GOLDEN / "bigr.pt"), ValueError, "is a file.*bigr-repr models import"),
    ],
)
def test_unknown_names_say_what_there_is(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(name)


# ---- what there is


def test_the_default_model_is_in_the_package() -> None:
    folders = catalog.bundled_folders()
    assert catalog.DEFAULT_MODEL in folders
    for name, folder in folders.items():
        config, fingerprint = catalog.read_config(folder)
        assert (config.name, len(fingerprint or "")) == (name, 64)
        assert {"config.json", "generator.safetensors", "tokenizer.safetensors"} <= {
            each.name for each in folder.iterdir()
        }
    listed = {model.name: model for model in available_models()}
    assert {name for name, model in listed.items() if model.kind == "bundled"} == set(folders)
    assert [name for name, model in listed.items() if model.kind == "released"] == [
        f"hf:haoosz/BiGR/{variant}" for variant in ("L-d24", "XL-d24", "XXL-d24", "XXL-d32", "L-d32-512")
    ]
    assert listed["hf:haoosz/BiGR/L-d32-512"].config.name == "bigr-L-d32-512"
    assert listed["hf:haoosz/BiGR/L-d32-512"].config.image_size == 512


def test_every_listed_model_can_be_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pre: Pretrained) -> None:
    monkeypatch.setattr(catalog, "ASSETS", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    folder = save(pre, tmp_path / "small")
    models = available_models()
    assert {model.kind for model in models} == {"bundled", "released", "preset"}
    assert models[0].name == "small"
    for model in models:
        description = describe(model.name)
        assert description.config == model.config
        assert (description.fingerprint is None) == (model.kind != "bundled")
    assert describe("small").fingerprint == pre.fingerprint == load("small").fingerprint
    assert describe("small").location == str(folder)
    assert sum(describe("small").parameters) == sum(weight.numel() for weight in _weights(pre))
