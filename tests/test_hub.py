"""Laws of publishing, on a hub on loopback: what is pushed comes back bit for bit, and what goes wrong is one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml
from hub_double import TOKEN, Hub, running_hub
from tiny_model import tiny_model

import bigr_repr as br
from bigr_repr.checkpoints import card as card_module
from bigr_repr.checkpoints.card import model_card
from bigr_repr.checkpoints.description import describe
from bigr_repr.checkpoints.hub import HubName, fetch_folder, parse_folder_name, published_files, push
from bigr_repr.checkpoints.pretrained import Pretrained

# How the hub's client uploads; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as found:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model(layers=1)
    training = {"data": "noise", "terms": "for everyone", "settings": {"conditional": True, "steps": 3}}
    quality = {"probe": {"command": "bigr-repr bench linear-probe", "table": ["| a | b |", "|---|---|", "| 1 | 2 |"]}}
    config = dataclasses.replace(model.config, class_names=("fig", "plum", "pear"), training=training, quality=quality)
    return br.save(Pretrained(config, model.tokenizer, model.generator), tmp_path / "mine")


@pytest.mark.slow
def test_what_is_pushed_comes_back_bit_for_bit_and_by_its_commit(hub: Hub, folder: Path) -> None:
    done = push(folder, "user/mine", card="# mine\n", pictures={"samples.png": b"png"})
    assert done.url == f"{hub.url}/user/mine"
    there = hub.at("user/mine", "main")
    assert there is not None
    assert set(there[1]) == {
        "README.md",
        "config.json",
        "generator.safetensors",
        "samples.png",
        "tokenizer.safetensors",
    }
    for name in ("hf:user/mine", f"hf:user/mine@{done.commit}"):
        assert br.load(name).fingerprint == br.load(folder).fingerprint
    found = Pretrained.from_pretrained("user/mine", revision=done.commit)
    assert found.fingerprint == Pretrained.from_pretrained(folder).fingerprint
    assert describe("hf:user/mine").config.name == br.load(folder).config.name
    before = len(hub.seen)
    assert br.load(f"hf:user/mine@{done.commit}", local_files_only=True).config.class_names[0] == "fig"
    assert len(hub.seen) == before


def test_an_interrupted_upload_goes_on(hub: Hub, folder: Path) -> None:
    hub.broken.append("POST /api/models/user/mine/commit")
    with pytest.raises(ConnectionError, match=r"^user/mine: .*try again: uploaded files are kept") as caught:
        push(folder, "user/mine", card="# mine\n")
    assert "\n" not in str(caught.value)
    sent = [line for line in hub.seen if line.startswith("PUT")]
    assert len(sent) == 2
    push(folder, "user/mine", card="# mine\n")
    assert [line for line in hub.seen if line.startswith("PUT")] == sent


def test_damage_on_the_way_is_noticed(hub: Hub, folder: Path) -> None:
    push(folder, "user/mine", card="# mine\n")
    files = hub.commits["user/mine"][-1][1]
    content = bytearray(files["generator.safetensors"])
    content[-4:] = b"\x00\x00\x80?"
    files["generator.safetensors"] = bytes(content)
    with pytest.raises(ValueError, match="the weights are damaged or were replaced"):
        br.load("hf:user/mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:user/other", "^user/other: it does not exist, or the token may not read it"),
        (
            "hf:user/gated",
            r"^user/gated: the model is gated; request access on https://huggingface.co/user/gated, then",
        ),
        ("hf:user/mine@v9", "^user/mine: there is no revision 'v9'"),
    ],
)
def test_what_keeps_a_model_away_is_one_line(hub: Hub, folder: Path, name: str, said: str) -> None:
    push(folder, "user/mine", card="# mine\n")
    hub.commits["user/gated"], hub.gated = hub.commits["user/mine"], {"user/gated"}
    with pytest.raises(ConnectionError, match=said) as caught:
        br.load(name)
    assert "\n" not in str(caught.value)


def test_without_a_token_or_a_network_the_line_says_so(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConnectionError, match=r"^user/mine: it does not exist, or is not public: .*HF_TOKEN"):
        push(folder, "user/mine", card="")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConnectionError, match="cannot be written without a token; log in with: hf auth login"):
        push(folder, "user/mine", card="")
    with pytest.raises(ConnectionError, match="not in the cache; connect, or pass a folder"):
        fetch_folder(HubName("user/nowhere", None), local_files_only=True)


def test_only_models_are_published(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/adapter.json").touch()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json, .*; it is an adapter"):
        published_files(tmp_path / "a")
    with pytest.raises(ValueError, match="is not of the form user/name"):
        push(folder, "mine", card="")
    (folder / "notes.txt").touch()
    assert "notes.txt" not in {file.name for file in published_files(folder)}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hf:user/name", ("user/name", None)),
        ("hf:user/name@v1", ("user/name", "v1")),
        ("hf:owner/repo/L-d24", None),
        ("bigr-tiny", None),
        ("hf:name", None),
    ],
)
def test_names_of_folders_on_the_hub(name: str, found: tuple[str, str | None] | None) -> None:
    assert parse_folder_name(name) == found


def test_the_card_says_what_the_record_says(folder: Path) -> None:
    config = br.load(folder).config
    card = model_card(
        config, repository="user/mine", fingerprint="0" * 64, parameters=1_500_000, license="mit",
        pictures={"samples.png": "Drawn"},
    )  # fmt: skip
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "bigr-repr"
    assert yaml.safe_load(head)["license"] == "mit"
    for said in ("**data**: noise", "**terms**: for everyone", "| 1 | 2 |", 'labels=["fig"]', "hf:user/mine@COMMIT",
                 "1.5 million", "![Drawn](samples.png)", "3 classes: fig, plum, pear",
                 "`bigr-repr bench linear-probe`"):  # fmt: skip
        assert said in body
    bare = dataclasses.replace(config, training={}, quality={})
    assert model_card(bare, repository="a/b", fingerprint="0" * 64, parameters=1).count("Not recorded.") == 2
    json.dumps(card)


def test_the_card_draws_no_class_with_a_model_that_learned_none(folder: Path) -> None:
    config = br.load(folder).config
    config = dataclasses.replace(config, training={"settings": {"conditional": False}})
    card = model_card(config, repository="a/b", fingerprint="0" * 64, parameters=1)
    assert "br.generate(model, count=4, seed=0)" in card
    assert "labels=" not in card


def test_name_and_token_are_checked_before_pictures_are_drawn(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, bigr: Callable[..., tuple[int, str, str]]
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr("bigr_repr.train.card.card_and_pictures", lambda *given, **options: drawn.append(given))
    code, _, err = bigr("models", "push", folder, "badname")
    assert (code, "'badname' is not of the form user/name" in err) == (1, True)
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = bigr("models", "push", folder, "user/mine")
    assert (code, "cannot be written without a token" in err) == (1, True)
    assert drawn == []


def test_the_card_lists_all_of_few_classes(folder: Path) -> None:
    config = br.load(folder).config
    for count, more in ((card_module._CLASSES_SHOWN, False), (card_module._CLASSES_SHOWN + 1, True)):
        names = tuple(f"class {i}" for i in range(count))
        generator = dataclasses.replace(config.generator, classes=count)
        text = model_card(
            dataclasses.replace(config, generator=generator, class_names=names),
            repository="a/b", fingerprint="0" * 64, parameters=1,
        )  # fmt: skip
        assert (f"{names[card_module._CLASSES_SHOWN - 1]}, …" in text) == more
        assert "  " not in text.split("---\n", 2)[2].strip().split("\n")[0]
