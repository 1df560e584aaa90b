"""Laws of models on disk where something is wrong: what is not ours stays, and each fault is one line naming it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import tiny_model

import bigr_repr as br
from bigr_repr.checkpoints.adapters import header_text, split_name
from bigr_repr.checkpoints.description import describe
from bigr_repr.checkpoints.pretrained import Pretrained, load_tokenizer, save_tokenizer, with_adapter
from bigr_repr.system.sums import write_sums

Bigr = Callable[..., tuple[int, str, str]]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return tiny_model(layers=1)


def _one_line(caught: pytest.ExceptionInfo[BaseException], *named: object) -> None:
    assert "\n" not in str(caught.value)
    assert all(str(each) in str(caught.value) for each in named), str(caught.value)


# ---- saving


@pytest.mark.parametrize(
    "record",
    [
        {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8}, {"tokenizer": {}},
        {"tokenizer": "bert-base"}, {"tokenizer": {"class": "BertTokenizer"}}, [], {"format": 1},
    ],
)  # fmt: skip
def test_a_folder_of_another_librarys_model_stays(pre: Pretrained, tmp_path: Path, bigr: Bigr, record: object) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(record))
    for write in (br.save, lambda model, place: save_tokenizer(model.tokenizer, place)):
        with pytest.raises(FileExistsError, match="exists and is not a model folder; choose another folder") as caught:
            write(pre, tmp_path / "m")
        _one_line(caught, tmp_path / "m")
    files = ("--tokenizer", GOLDEN / "none.th", "--generator", GOLDEN / "none.pt")  # refused before they are read
    code, _, said = bigr("models", "import", *files, "--out", "m", "--force")
    assert (code, "not a model folder" in said) == (1, True)
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == record
    assert [each.name for each in (tmp_path / "m").iterdir()] == ["config.json"]


def test_a_models_folder_is_recognized_whatever_became_of_its_weights(pre: Pretrained, tmp_path: Path) -> None:
    folder = br.save(pre, tmp_path / "m")
    (folder / "generator.safetensors").write_bytes(b"damaged")
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, "name": "renamed by hand"}))
    assert br.load(br.save(pre, folder)).fingerprint == pre.fingerprint


def test_a_tokenizer_does_not_take_a_whole_models_place(pre: Pretrained, tmp_path: Path) -> None:
    folder = br.save(pre, tmp_path / "m")
    with pytest.raises(FileExistsError, match="holds a whole model, not only a tokenizer; choose another folder"):
        save_tokenizer(pre.tokenizer, folder)
    assert br.load(folder).fingerprint == pre.fingerprint
    alone = save_tokenizer(pre.tokenizer, tmp_path / "t")
    assert br.load(br.save(pre, save_tokenizer(pre.tokenizer, alone))).fingerprint == pre.fingerprint


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, "float16"])
def test_a_number_type_that_cannot_hold_weights_harms_no_model(pre: Pretrained, tmp_path: Path, dtype: Any) -> None:
    folder = br.save(pre, tmp_path / "m")
    for write in (br.save, lambda model, place, **given: save_tokenizer(model.tokenizer, place, **given)):
        for place in (folder, tmp_path / "new"):
            with pytest.raises(
                ValueError, match=r"store_dtype=.* cannot hold weights; choose torch\.float16"
            ) as caught:
                write(pre, place, store_dtype=dtype)
            _one_line(caught, repr(dtype))
    assert br.load(folder).fingerprint == pre.fingerprint
    assert [each.name for each in tmp_path.iterdir()] == ["m"]


def test_a_card_on_a_full_disk_names_its_file(
    pre: Pretrained, tmp_path: Path, bigr: Bigr, monkeypatch: pytest.MonkeyPatch
) -> None:
    br.save(pre, tmp_path / "m")
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("mine")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, said = bigr("models", "push", "m", "user/m", "--card-only", "card", "--samples", 0)
    assert code == 1
    assert said.startswith("error: card/README.md: No space left on device; free some space")
    assert (tmp_path / "card" / "README.md").read_text() == "mine"
    assert [each.name for each in (tmp_path / "card").iterdir()] == ["README.md"]


@pytest.mark.parametrize("repository", ["m", "user/m@v1", "a/b/c"])
def test_a_card_is_written_for_a_repository_that_could_hold_it(bigr: Bigr, repository: str) -> None:
    code, _, said = bigr("models", "push", "m", repository, "--card-only", "card", "--samples", 0)
    assert (code, said) == (1, f"error: repository={repository!r} is not of the form user/name\n")
    assert not Path("card").exists()


# ---- loading


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "float16"}, "dtype='float16' is not one of torch.float16, torch.bfloat16, torch.float32"),
        ({"dtype": torch.int8}, "dtype=torch.int8 is not one of torch.float16"),
        ({"device": "foo"}, "device='foo' is unknown; try cpu, cuda or cuda:1"),
        ({"device": "cuda:99"}, "device='cuda:99' is not there"),
        ({"device": "vulkan"}, "device='vulkan' is not there, or torch was built without it; try cpu"),
    ],
)
def test_where_and_in_what_numbers_a_model_cannot_be(pre: Pretrained, given: dict[str, Any], said: str) -> None:
    """Before anything is read: none of these files exists."""
    calls: list[Callable[..., object]] = [
        pre.to,
        lambda **named: br.load("none", **named),
        lambda **named: br.load_official(tokenizer="none", generator="none", **named),
    ]
    if "device" in given:
        calls.append(lambda **named: load_tokenizer("none", **named))
    for call in calls:
        with pytest.raises(ValueError, match=said) as caught:
            call(**given)
        _one_line(caught)
    assert next(pre.generator.parameters()).dtype == torch.float32


def test_an_empty_name_is_no_model_and_no_adapter(
    pre: Pretrained, tmp_path: Path, bigr: Bigr, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the current folder is one."""
    br.save(pre, tmp_path)
    monkeypatch.chdir(tmp_path)
    for call in (br.load, load_tokenizer, describe, br.Pretrained.from_pretrained):
        with pytest.raises(ValueError, match="model='' is empty; give a model's name or folder"):
            call("")
        with pytest.raises(ValueError, match=r"model='bigr-tiny\+' names no adapter after the \+; .* alone: bigr-tiny"):
            call("bigr-tiny+")
    assert "is empty" in bigr("models", "info", "")[2]
    (tmp_path / "odd+").mkdir()
    assert split_name("odd+") is None


def test_a_model_that_lacks_a_file_says_so(pre: Pretrained, tmp_path: Path) -> None:
    folder = br.save(pre, tmp_path / "m")
    (folder / "generator.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"generator\.safetensors is missing; download or copy") as caught:
        br.load(folder)
    _one_line(caught, folder)


# ---- adapters

MATRIX = "base_model.model.transformer.layers.0.attention.wo"
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


@pytest.fixture
def adapter(pre: Pretrained, tmp_path: Path) -> Path:
    """A low-rank adapter that changes one matrix and no class, as older versions wrote it: without checksums."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter.json").write_text(header_text(pre.config, base="tiny", base_sha256=pre.fingerprint))
    save_file({"taken": torch.arange(4), "rows": torch.zeros(0, 64)}, folder / "classes.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    low_rank = {f"{MATRIX}.lora_A.weight": torch.ones(2, 64), f"{MATRIX}.lora_B.weight": torch.ones(64, 2)}
    save_file(low_rank, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_adds_its_product(pre: Pretrained, adapter: Path) -> None:
    name = MATRIX.removeprefix("base_model.model.") + ".weight"
    before, after = pre.generator.state_dict(), with_adapter(pre, adapter).generator.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == {name}
    torch.testing.assert_close(after[name], before[name] + 4 / 2 * 2)  # alpha / r, times ones (64, 2) @ ones (2, 64)


def _settings(**changes: object) -> Callable[[Path], None]:
    kept = {name: value for name, value in {**SETTINGS, **changes}.items() if value is not ...}
    return lambda folder: (folder / "adapter_config.json").write_text(json.dumps(kept)) and None


def _tensors(file: str, **changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Tensors replaced, or removed (None). a, b: the low-rank ones."""

    def change(folder: Path) -> None:
        names = {"a": f"{MATRIX}.lora_A.weight", "b": f"{MATRIX}.lora_B.weight"}
        state: dict[str, Any] = load_file(folder / file) | {names.get(key, key): new for key, new in changes.items()}
        save_file({name: value for name, value in state.items() if value is not None}, folder / file)

    return change


def _text(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


LOW_RANK, CLASSES, CONFIG = "adapter_model.safetensors", "classes.safetensors", "adapter_config.json"
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no rank": (_settings(r=...), CONFIG, "r=None is not a rank"),
    "rank 0": (_settings(r=0), CONFIG, "r=0 is not a rank"),
    "rank a text": (_settings(r="2"), CONFIG, "r='2' is not a rank"),
    "another rank": (_settings(r=4), LOW_RANK, "of rank 4, does not fit the model"),
    "no alpha": (_settings(lora_alpha=...), CONFIG, "lora_alpha=None is not a number"),
    "alpha not finite": (_settings(lora_alpha=float("nan")), CONFIG, "lora_alpha=nan is not a number"),
    "alpha huge": (_settings(lora_alpha=10**400), CONFIG, "is not a number below 1,000,000"),
    "no LoRA": (_settings(peft_type=...), CONFIG, "peft_type=None, bias=None is not supported; only plain LoRA"),
    "with biases": (_settings(bias="all"), CONFIG, "bias='all' is not supported"),
    "settings a list": (_text(CONFIG, "[]"), CONFIG, "it holds a list where an object is expected"),
    "settings cut": (_text(CONFIG, '{"r": '), CONFIG, "Expecting value"),
    "settings deep": (_text(CONFIG, "[" * 100_000), CONFIG, "nested too deep"),
    "settings missing": (lambda f: (f / CONFIG).unlink(), CONFIG, f"is missing, but {LOW_RANK} is there"),
    "tensors missing": (lambda f: (f / LOW_RANK).unlink(), LOW_RANK, f"is missing, but {CONFIG} is there"),
    "no A": (_tensors(LOW_RANK, a=None), LOW_RANK, "lora_B.weight; copy the whole adapter again"),
    "no B": (_tensors(LOW_RANK, b=None), LOW_RANK, "lora_B.weight; copy the whole adapter again"),
    "more": (_tensors(LOW_RANK, other=torch.zeros(1)), LOW_RANK, "not expected: other"),
    "misshapen": (_tensors(LOW_RANK, a=torch.zeros(2, 65)), LOW_RANK, "attention.wo.weight of the adapter"),
    "other inside": (_tensors(LOW_RANK, b=torch.zeros(64, 3)), LOW_RANK, "attention.wo.weight of the adapter"),
    "tensors cut": (_text(LOW_RANK, ""), LOW_RANK, "damaged, or not a safetensors file"),
    "no classes": (lambda f: (f / CLASSES).unlink(), CLASSES, "is missing"),
    "no rows": (_tensors(CLASSES, rows=None), CLASSES, "not expected: rows"),
    "no class taken": (_tensors(CLASSES, taken=torch.arange(0)), CLASSES, "do not fit the model's table"),
    "taken not numbers": (_tensors(CLASSES, taken=torch.zeros(4)), CLASSES, "do not fit the model's table"),
    "taken from beyond": (_tensors(CLASSES, taken=torch.arange(1, 5)), CLASSES, "do not fit the model's table"),
    "header deep": (_text("adapter.json", "[" * 100_000), "adapter.json", "cannot be used"),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_adapter_is_one_line_that_names_the_file(pre: Pretrained, adapter: Path, kind: str) -> None:
    damage, file, said = BROKEN[kind]
    damage(adapter)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        with_adapter(pre, adapter)
    _one_line(caught, adapter / file, said)


@pytest.mark.parametrize("name", [LOW_RANK, CLASSES, "adapter_config.json", "adapter.json", "tokenizer.safetensors"])
def test_no_file_is_read_that_the_checksums_do_not_list(pre: Pretrained, adapter: Path, name: str) -> None:
    if name == "tokenizer.safetensors":
        save_file(pre.tokenizer.state_dict(), adapter / name)
    content = (adapter / name).read_bytes()
    (adapter / name).unlink()
    write_sums(adapter)
    (adapter / "README.md").write_text("what is not read need not be listed")
    (adapter / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"is not listed in sha256\.json, so it is not of this adapter") as caught:
        with_adapter(pre, adapter)
    _one_line(caught, adapter / name)
    (adapter / "sha256.json").unlink()
    write_sums(adapter)
    with_adapter(pre, adapter)
