"""Laws of representations: which features a backbone is measured by, whatever library it comes from."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bigr_repr_cli.bench import app
from PIL import Image
from tiny_model import picture
from typer.testing import CliRunner

from bigr_repr.evaluate.representations.backbone import Backbone, States, final_norm, states_of
from bigr_repr.evaluate.representations.base import Reading, View
from bigr_repr.evaluate.representations.open import open_representation


@pytest.mark.parametrize("ending", ["", ".mirror"])
def test_a_transformer_is_measured_by_its_last_class_tokens_with_and_without_the_mean(ending: str) -> None:
    """DINOv2's protocol: the class token of the last block or of the last four, alone or beside the mean of the last,
    after the final norm.
    """
    backbone = open_representation("timm:test_vit?random", device="cpu")
    views = backbone.official_views(Reading(mirror=bool(ending)))
    ending = f".normed{ending}"
    mean = f"layer-5{ending}"
    one, four = [f"layer-5.cls{ending}"], [f"layer-{block}.cls{ending}" for block in (2, 3, 4, 5)]
    assert [list(view.items) for view in views] == [one, [*one, mean], four, [*four, mean]]
    assert [view.item for view in views] == ["+".join(view.items) for view in views]
    assert backbone.official_views(Reading(pool="max")) != views
    assert all("final norm" in view.words for view in views)


def test_states_after_the_final_norm_are_as_timm_gives_them() -> None:
    backbone = open_representation("timm:test_vit?random", device="cpu")
    network: Any = backbone.network  # type: ignore[attr-defined]
    torch.nn.init.normal_(network.norm.weight)
    batch = [backbone.prepare(picture(number)) for number in range(3)]
    items = ["layer-2.cls.normed", "layer-2.normed", "layer-2.max.normed", "layer-2", "layer-4.cls.normed.mirror"]
    found = backbone.arrays(batch, items)
    options = {"indices": [2, 4], "norm": True, "output_fmt": "NLC", "return_prefix_tokens": True}
    options["intermediates_only"] = True
    with torch.no_grad():
        x = torch.from_numpy(np.stack(batch))
        ((tokens, prefix), (_, last)) = network.forward_intermediates(x, **options)
        (_, (_, mirrored)) = network.forward_intermediates(x.flip(-1), **options)
    np.testing.assert_allclose(found["layer-2.cls.normed"], prefix[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["layer-2.normed"], tokens.mean(dim=1), atol=1e-5)
    np.testing.assert_allclose(found["layer-2.max.normed"], tokens.amax(dim=1), atol=1e-5)
    np.testing.assert_allclose(found["layer-4.cls.normed.mirror"], (last + mirrored)[:, 0] / 2, atol=1e-5)
    assert not np.allclose(found["layer-2"], found["layer-2.normed"], atol=1e-2)


@pytest.mark.parametrize(
    ("norm", "widths", "found"),
    [
        (torch.nn.LayerNorm(4), [4, 4], True),
        (torch.nn.LayerNorm(4), [2, 4], False),  # of a network whose stages widen
        (torch.nn.Identity(), [4, 4], False),
        (torch.nn.BatchNorm1d(4), [4, 4], False),  # not of one token by itself
    ],
)
def test_the_final_norm_is_one_of_the_tokens_of_every_block(
    norm: torch.nn.Module, widths: list[int], found: bool
) -> None:
    for name in ("norm", "layernorm", "post_layernorm", "ln_post"):
        assert (final_norm(types.SimpleNamespace(**{name: norm}), widths) is norm) == found


def test_parts_are_set_side_by_side_in_their_order() -> None:
    arrays = {"a": np.zeros((2, 3)), "b": np.ones((2, 1))}
    assert np.array_equal(View(item="b+a", parts=("b", "a")).read(arrays), [[1, 0, 0, 0]] * 2)
    assert View(item="a").read(arrays) is arrays["a"]


# ---- networks of other libraries


def _computed(name: str, items: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    found = open_representation(name, device="cpu", seed=seed)
    return found.arrays([found.prepare(picture(number)) for number in range(3)], items)


MODULE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.cut, self.tokens = torch.nn.Conv2d(3, 5, 8, 8), tokens

    def forward(self, x):
        found = self.cut(x)
        if self.tokens == "vector":
            return found.mean((2, 3))
        return found if self.tokens == "map" else torch.cat([x.new_ones(len(x), 1, 5), found.flatten(2).mT], 1)

def small(image):
    return torch.tensor(list(image.convert("RGB").resize((32, 32)).tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255

def vector(): return Net("vector")
def grid(): return Net("map"), small
def tokens(): return Net("tokens"), small
def broken(): return "no module"
def shape(): return torch.nn.Flatten(0, 3)
class Words(torch.nn.Identity):
    def forward(self, x): return [x]
def words(): return Words()
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of functions in the current folder."""
    name = f"made_by_a_user_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_any_module_is_a_representation(code: str) -> None:
    vector, grid, tokens = (open_representation(f"module:{code}.{name}", device="cpu") for name in
                            ("vector", "grid", "tokens"))  # fmt: skip
    assert (vector.layers, grid.layers, tokens.layers) == (0, 1, 1)
    assert [("cls" in each.pools) for each in (vector, grid, tokens)] == [False, False, True]
    assert vector.prepare(picture(1)).shape == (3, 224, 224)
    batch = [grid.prepare(picture(number)) for number in range(2)]
    found = grid.compute(batch, ["pooled", "layer-0", "layer-0.tokens", "layer-0.grid2"])
    np.testing.assert_allclose(found["pooled"], found["layer-0"], atol=1e-6)
    assert found["layer-0.tokens"].shape == (2, 16, 5)
    assert found["layer-0.grid2"].shape == (2, 20)
    other = tokens.compute(batch, ["layer-0", "layer-0.cls", "pooled"])
    np.testing.assert_allclose(other["layer-0"], found["layer-0"], atol=1e-6)
    assert (other["layer-0.cls"] == 1).all()
    again = open_representation(f"module:{code}.vector", device="cpu")
    assert again.fingerprint == vector.fingerprint
    assert open_representation(f"module:{code}.vector", device="cpu", seed=1).fingerprint != vector.fingerprint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("net", "does not name a function"),
        ("not.there", "No module named 'not'; the current folder and installed packages are searched"),
        ("CODE.lost", "has no function lost"),
        ("CODE.broken", "gave str; expected a torch module"),
        ("CODE.shape", r"gives \(\d+,\); expected a tensor"),
        ("CODE.words", "gives list; expected a tensor"),
    ],
)
def test_what_is_no_module_is_refused_in_one_line(code: str, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        open_representation(f"module:{name.replace('CODE', code)}", device="cpu")
    assert len(str(error.value).splitlines()) == 1


def test_a_module_is_measured_by_its_name(code: str) -> None:
    arguments = ["knn", "--model", f"module:{code}.grid", "--pool", "grid2", "--layer", "0", "--dataset", "digits"]
    arguments += ["--limit", "30", "--test-limit", "20", "-k", "3", "--cache", "cache", "--device", "cpu", "--json"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)["rows"][0]
    assert found["features"] == "layer-0.grid2"
    assert found["model"]["model"] == f"module:{code}.grid"


@pytest.mark.parametrize(
    ("name", "package"), [("transformers:x/y", "transformers"), ("open_clip:x", "open_clip_torch")]
)
def test_libraries_that_are_not_installed_are_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name.partition(":")[0], None)
    with pytest.raises(FileNotFoundError, match=f"pip install {package}"):
        open_representation(name, device="cpu")


@pytest.mark.filterwarnings("default")
def test_a_folder_of_transformers_is_read_as_its_library_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    whole = transformers.ViTForImageClassification(config).eval()
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    whole.save_pretrained(tmp_path)
    name = f"transformers:{tmp_path}"
    found = _computed(name, ["layer-1.tokens", "layer-1.cls", "layer-2", "pooled", "layer-2.cls.normed"])
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(
        images=[picture(number).convert("RGB") for number in range(3)], return_tensors="pt"
    )
    with torch.no_grad():
        own = whole.vit(**pixels, output_hidden_states=True)
    np.testing.assert_allclose(found["layer-1.tokens"], own.hidden_states[2][:, 1:].half(), atol=1e-2)
    np.testing.assert_allclose(found["layer-1.cls"], own.hidden_states[2][:, 0], atol=1e-5)
    np.testing.assert_allclose(found["layer-2"], own.hidden_states[3][:, 1:].mean(1), atol=1e-5)
    np.testing.assert_allclose(found["layer-2.cls.normed"], own.last_hidden_state[:, 0], atol=1e-5)
    # The pooler was not trained: the class token stands for it.
    np.testing.assert_allclose(found["pooled"], own.last_hidden_state[:, 0], atol=1e-5)
    first, second = (_computed(f"{name}?random", ["pooled"], seed)["pooled"] for seed in (0, 1))
    assert not np.allclose(first, second)
    with pytest.raises(FileNotFoundError, match="hf download no/such") as error:
        open_representation("transformers:no/such", device="cpu")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.filterwarnings("default")
def test_an_image_tower_of_open_clip_is_read_as_its_library_reads_it(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "tiny-clip.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    network, _, transform = open_clip.create_model_and_transforms("tiny-clip", load_weights=False)
    torch.save(network.state_dict(), tmp_path / "clip.pt")
    items = ["pooled", "layer-0", "layer-2.cls", "layer-1.cls.normed"]
    found = _computed(f"open_clip:tiny-clip?checkpoint={tmp_path / 'clip.pt'}", items)
    x = torch.stack([transform(picture(number).convert("RGB")) for number in range(3)])
    with torch.no_grad():
        np.testing.assert_allclose(found["pooled"], network.eval().encode_image(x), atol=1e-5)
        normed = network.visual.forward_intermediates(
            x, indices=[1], normalize_intermediates=True, intermediates_only=True, output_extra_tokens=True
        )
    np.testing.assert_allclose(found["layer-1.cls.normed"], normed["image_intermediates_prefix"][0][:, 0], atol=1e-5)
    assert found["layer-0"].shape == found["layer-2.cls"].shape == (3, 64)
    assert not np.allclose(found["layer-0"], found["layer-2.cls"])
    assert not np.allclose(found["pooled"], _computed("open_clip:tiny-clip?random", ["pooled"], 1)["pooled"])
    for name, said in (
        ("no-such", "has no model"),
        ("tiny-clip/tag", "has no weights 'tag'"),
        ("tiny-clip", "?random"),
    ):
        with pytest.raises(ValueError, match=said.replace("?", r"\?")):
            open_representation(f"open_clip:{name}", device="cpu")
    with pytest.raises(FileNotFoundError, match="fetch them once"):
        open_representation("open_clip:ViT-B-32/openai", device="cpu")


@pytest.mark.slow
def test_the_fids_network_is_torchvisions_with_other_pools(tmp_path: Path) -> None:
    """One weight at the border tells the pools apart: a mean over what is there, and a maximum in the last block."""
    from torchvision.models.inception import Inception3

    from bigr_repr.evaluate.representations.inception import _network, _prepared

    torch.manual_seed(0)
    theirs = Inception3(1008, aux_logits=False, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    found = open_representation(f"inception:{tmp_path / 'weights.pth'}", device="cpu")
    assert (found.layers, found.record["fid"]) == (0, True)
    assert found.compute([found.prepare(picture(0))], ["pooled"])["pooled"].shape == (1, 2048)
    ours = _network().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 192, 5, 5)
    with torch.no_grad():
        padded = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
        shares = torch.nn.functional.avg_pool2d(torch.ones_like(x), 3, 1, 1)
        expected = theirs.Mixed_5b.branch_pool(padded / shares)
        torch.testing.assert_close(ours.Mixed_5b(x)[:, -32:], expected)
        torch.testing.assert_close(ours.Mixed_5b(x)[:, :-32], theirs.Mixed_5b(x)[:, :-32])
        wide = torch.rand(1, 2048, 4, 4)
        largest = theirs.Mixed_7c.branch_pool(torch.nn.functional.max_pool2d(wide, 3, 1, 1))
        torch.testing.assert_close(ours.Mixed_7c(wide)[:, -192:], largest)
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (60, 100, 3))
    across = _prepared(Image.fromarray(np.ascontiguousarray(ramp)))[0, 0] * 128 + 128
    np.testing.assert_allclose(across, np.minimum(np.arange(299) * 100 / 299, 99), atol=1e-3)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not the FID's Inception: it lacks"):
        open_representation(f"inception:{tmp_path / 'other.pth'}", device="cpu")


@pytest.mark.parametrize("size", [(100, 60), (299, 299), (700, 310), (1, 1)])
def test_pictures_for_the_fid_are_resized_as_in_tensorflow_1(size: tuple[int, int]) -> None:
    """Linear between pixels whose corners lie at whole numbers, rows as columns, to about -1..1."""
    from bigr_repr.evaluate.representations.inception import _prepared

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    found = _prepared(Image.fromarray(pixels)).numpy() * 128 + 128
    assert found.shape == (3, 299, 299)
    for y, x in ((0, 0), (298, 298), (37, 211), (150, 3)):
        top, left = y * size[1] / 299, x * size[0] / 299
        rows, columns = (
            (int(at), min(int(at) + 1, count - 1)) for at, count in ((top, size[1]), (left, size[0]))
        )  # fmt: skip
        down, right = top % 1, left % 1
        corners = [pixels[row, column].astype(float) for row in rows for column in columns]
        upper, lower = (corners[0] * (1 - right) + corners[1] * right), (corners[2] * (1 - right) + corners[3] * right)
        np.testing.assert_allclose(found[:, y, x], upper * (1 - down) + lower * down, atol=0.05)


def test_weights_of_the_fid_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="inception: needs a file of weights, such as inception:weights-inception"):
        open_representation("inception:", device="cpu")


# ---- blocks of other libraries


def test_states_are_a_grid_and_perhaps_a_class_token() -> None:
    tokens = torch.arange(2 * 10 * 3.0).reshape(2, 10, 3)
    positions, token = states_of(tokens)
    assert token is not None
    assert torch.equal(token, tokens[:, 0])
    assert positions.shape == (2, 3, 3, 3)
    assert torch.equal(positions[1, :, 2, 1], tokens[1, 1 + 2 * 3 + 1])
    registers = states_of(torch.cat([tokens[:, :1], tokens], dim=1))  # what is more than a square comes first
    assert torch.equal(registers.positions, positions)
    bare = states_of(tokens[:, 1:])
    assert bare.token is None
    assert torch.equal(bare.positions, positions)
    maps = torch.zeros(2, 5, 4, 6)
    assert states_of(maps) == (maps, None)
    with pytest.raises(ValueError, match=r"states have shape \(3, 4\); expected \(B, N, D\) or \(B, C, h, w\)"):
        states_of(torch.zeros(3, 4))


class _Blocks(Backbone):
    """Four blocks whose states are the pixels times their number, with a class token of that number."""

    def __init__(self, *, token: bool = True) -> None:
        super().__init__(torch.nn.Identity(), lambda image: torch.zeros(3, 4, 6), torch.device("cpu"))
        self.name, self.layers, self.has_class_token, self.asked = "blocks", 4, token, list[Any]()
        self._with_pools()

    def read(self, x: torch.Tensor, layers: list[int], *, pooled: bool) -> Any:
        self.asked.append((layers, pooled))
        states = {n: States(x * n, torch.full((len(x), 3), float(n)) if self.has_class_token else None) for n in layers}
        return states, x.mean(dim=(2, 3)) if pooled else None


def test_every_pool_is_of_the_positions_of_its_block() -> None:
    blocks = _Blocks()
    x = [np.random.default_rng(n).random((3, 4, 6), dtype=np.float32) for n in range(2)]
    items = ["layer-2", "layer-2.max", "layer-1.cls", "layer-3.cls+avg", "layer-1.grid2", "layer-1.tokens", "pooled"]
    found, stacked = blocks.compute(x, items), np.stack(x)
    assert blocks.asked == [([1, 2, 3], True)]
    np.testing.assert_allclose(found["layer-2"], 2 * stacked.mean(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["layer-2.max"], 2 * stacked.max(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["layer-1.cls"], np.ones((2, 3)))
    np.testing.assert_allclose(found["layer-3.cls+avg"][:, :3], np.full((2, 3), 3))
    np.testing.assert_allclose(found["layer-3.cls+avg"][:, 3:], 3 * stacked.mean(axis=(2, 3)), rtol=1e-5)
    quarters = [stacked[:, :, i : i + 2, j : j + 3].mean(axis=(2, 3)) for i in (0, 2) for j in (0, 3)]
    np.testing.assert_allclose(found["layer-1.grid2"], np.concatenate(quarters, axis=1), rtol=1e-5)
    assert found["layer-1.tokens"].dtype == np.float16
    np.testing.assert_allclose(found["layer-1.tokens"], stacked.reshape(2, 3, 24).transpose(0, 2, 1), atol=1e-3)
    np.testing.assert_allclose(found["pooled"], stacked.mean(axis=(2, 3)), rtol=1e-5)
    assert blocks.compute(x, ["layer-2"]).keys() == {"layer-2"}
    assert blocks.asked[1] == ([2], False)
    with pytest.raises(ValueError, match="blocks: features of pooled are not finite; are the weights damaged"):
        blocks.compute([np.full((3, 4, 6), np.inf, np.float32)], ["pooled"])


def test_views_without_a_layer_are_the_pooled_features_and_pools_are_for_blocks() -> None:
    blocks = _Blocks()
    assert "cls+avg" in blocks.pools
    assert not [pool for pool in _Blocks(token=False).pools if "cls" in pool]
    assert blocks.default_view(Reading()).item == "pooled"
    assert blocks.default_view(Reading(mirror=True)).item.startswith("pooled")
    assert blocks.default_view(Reading(mirror=True)).item != "pooled"
    with pytest.raises(ValueError, match="pool='max' is for blocks; name a layer of blocks"):
        blocks.default_view(Reading(pool="max"))
    official = blocks.official_views(Reading())
    assert [len(view.parts) for view in official] == [1, 2, 4, 5]
    assert official[0].parts == ("layer-3.cls",)
    assert official[3].parts == (*(f"layer-{n}.cls" for n in range(4)), "layer-3")
    assert [view.item for view in official] == ["+".join(view.parts) for view in official]
    for plain in (_Blocks(token=False).official_views(Reading()), blocks.official_views(Reading(pool="max"))):
        assert len(plain) == 2  # the last block, and the last four, as of any network
    pixels = np.arange(3 * 4 * 6).reshape(3, 4, 6)
    assert np.array_equal(blocks.mirrored(pixels), pixels[:, :, ::-1])


@pytest.mark.parametrize(("shape", "trained"), [((2, 10, 3), False), ((2, 3, 4, 6), False), ((2, 9, 3), True)])
def test_pooled_features_are_the_models_own_only_where_they_were_trained(shape: tuple[int, ...], trained: bool) -> None:
    """Else the class token, else the mean over all positions."""
    from bigr_repr.evaluate.representations.transformers_backbones import TransformersBackbone

    last, own = torch.rand(shape), torch.rand(2, 3, 1, 1)
    found = types.SimpleNamespace(last_hidden_state=last, pooler_output=own)
    backbone = object.__new__(TransformersBackbone)
    backbone._pools_itself = trained
    means = {(2, 10, 3): last[:, 0], (2, 3, 4, 6): last.flatten(2).mean(dim=-1)}
    torch.testing.assert_close(backbone._pooled(found), own.flatten(1) if trained else means[shape])
    backbone._pools_itself, found.pooler_output = True, None
    expected = last.mean(dim=1) if shape == (2, 9, 3) else means[shape]
    torch.testing.assert_close(backbone._pooled(found), expected)


def test_timm_needs_no_other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "open_clip"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    image = Image.new("RGB", (40, 40))
    found = open_representation("timm:test_vit?random", device="cpu")
    assert found.compute([found.prepare(image)], ["pooled"])["pooled"].shape == (1, 64)
