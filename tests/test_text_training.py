"""Captions beside codes, where they come from, and the training of generators of captions."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bigr_repr_cli.train.captions import Encoding
from forks import run_together
from test_train import losses
from tiny_model import write_pictures

from bigr_repr.captions.sources import class_captions, coco_captions, parquet_captions, sidecar_captions
from bigr_repr.checkpoints.pretrained import Pretrained, save_tokenizer
from bigr_repr.checkpoints.text_encoders import WordEncoder
from bigr_repr.config import GeneratorConfig, ModelConfig, TokenizerConfig
from bigr_repr.datasets import SceneSet, open_images
from bigr_repr.datasets.subset import Subset
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.system.sums import sealed, without_seal
from bigr_repr.train.batches import batches
from bigr_repr.train.caption_set import CaptionStore, write_captions
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.generator import train_generator
from bigr_repr.train.initial import begun_from
from bigr_repr.train.mixture import CodeMixture
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.resume import TrainingError
from bigr_repr.train.run import open_training_data
from bigr_repr.train.settings import TrainSettings

WORDS = WordEncoder()
TOKENIZER = TokenizerConfig(
    image_size=32, base_channels=8, channel_multipliers=(1, 1, 1, 2), res_blocks=1, embed_dim=8, code_bits=6,
    attention_resolutions=(4,), norm_groups=4,
)  # fmt: skip
MODEL = ModelConfig(
    name="test",
    tokenizer=TOKENIZER,
    generator=GeneratorConfig(
        layers=2, heads=2, dim=16, transcoder_blocks=1, transcoder_dim=16, classes=1, code_bits=6, grid=4,
        condition="text", caption_dim=WORDS.width, caption_tokens=16, train_timesteps=16, sample_timesteps=8,
        ffn_multiple_of=8,
    ),
    text_encoder="words",
    text_encoder_sha256=WORDS.fingerprint,
)  # fmt: skip


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> CodeSet:
    """24 scenes and their captions; image 5 has none."""
    folder, scenes = tmp_path_factory.mktemp("codes") / "c", SceneSet(24, side=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_codes(scenes, BinaryAutoencoder(TOKENIZER), folder, tokenizer_name="random", mirror=False)
    captions = [() if number == 5 else own for number, own in enumerate(scenes.captions)]
    write_captions(captions, WORDS, folder, limit=16)
    return CodeSet(folder)


# ---- where captions come from


def test_captions_beside_pictures(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, 5)
    assert open_images(tmp_path).captions is None
    (tmp_path / "00000.txt").write_text("one\n\n  two \n", encoding="utf-8")
    (tmp_path / "00001.json").write_text('{"caption": "a"}')
    (tmp_path / "00002.json").write_text('["b", "c"]')
    (tmp_path / "00003.json").write_text('{"url": "x"}')
    assert sidecar_captions(files) == [("one", "two"), ("a",), ("b", "c"), (), ()]
    assert open_images(tmp_path).captions == sidecar_captions(files)
    (tmp_path / "00004.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"00004\.txt is not UTF-8 text \(byte 3\)"):
        sidecar_captions(files)
    (tmp_path / "00004.txt").unlink()
    (tmp_path / "00004.json").write_text('{"caption": 3}')
    with pytest.raises(ValueError, match=r"00004\.json: a caption is a int"):
        sidecar_captions(files)
    (tmp_path / "00004.json").write_text("{")
    with pytest.raises(ValueError, match=r"00004\.json is not JSON"):
        sidecar_captions(files)


def test_captions_in_parquet_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    one, several = ["x", None, "z"], [["x", "y"], [], None]
    pq.write_table(pa.table({"image": [b"", b"", b""], "caption": one, "texts": several}), file)
    assert parquet_captions(file, "caption") == [("x",), (), ("z",)]
    assert parquet_captions(file, "texts") == [("x", "y"), (), ()]
    assert parquet_captions(file, "none") is None
    pq.write_table(pa.table({"caption": pa.array([b"ok", b"caf\xe9"], pa.binary())}), file)
    with pytest.raises(ValueError, match=r"a\.parquet#1, column caption: not UTF-8 text"):
        parquet_captions(file, "caption")


def test_captions_of_coco(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    annotations = [{"image_id": 7, "caption": "one"}, {"image_id": 7, "caption": "two"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    assert coco_captions(file, ["x/a.jpg", "b.jpg", "c.jpg"]) == [("one", "two"), (), ()]
    with pytest.raises(ValueError, match="no captions for these pictures"):
        coco_captions(file, ["c.jpg"])
    file.write_text("[]")
    with pytest.raises(ValueError, match="not a COCO captions file"):
        coco_captions(file, ["a.jpg"])


def test_captions_of_classes() -> None:
    found = class_captions(np.array([1, -1, 0]), ("tench, Tinca tinca", "great_shark"), "a photograph of a {}")
    assert found == [("a photograph of a great shark",), (), ("a photograph of a tench",)]
    with pytest.raises(ValueError, match=r"no \{\} for the class name"):
        class_captions(np.array([0]), ("a",), "a photograph")
    with pytest.raises(ValueError, match="no named classes"):
        class_captions(None, (), "a {}")


# ---- encoded


def test_what_is_stored_is_what_the_encoder_gives(codes: CodeSet) -> None:
    store, scenes = codes.captions, SceneSet(24, side=32)
    assert store is not None
    assert (store.header.images, store.header.bare, store.header.encoder) == (24, 1, "words")
    assert store.header.captions == sum(map(len, scenes.captions)) - len(scenes.captions[5])
    for image in (0, 7, 23):
        own = scenes.captions[image]
        for which, text in enumerate(own):
            vectors, lengths = store.draw([image], [(which + 0.5) / len(own)])
            assert np.array_equal(vectors[0, : lengths[0]], WORDS.encode([text], 16)[0])
    vectors, lengths = store.draw([5, 0], [0.3, 0.3])
    assert lengths[0] == 0
    assert not vectors[0].any()
    assert store.texts(2) == list(scenes.captions[0][:2])
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.draw([0], [0.0])[0], store.draw([0], [0.0])[0])


def test_a_text_that_many_images_share_is_stored_once(tmp_path: Path) -> None:
    store = write_captions([("a cat",)] * 1000, WORDS, tmp_path, limit=8)
    assert (store.header.texts, store.header.tokens, store.header.captions) == (1, 2, 1000)
    assert store.bytes_per_caption < 15


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([("",), ("  ",)], "no image has a caption"),
        ([("a",), (b"b",)], "image 1: a caption is a bytes"),
        ([("a",), ("caf\udce9",)], "image 1: a caption is not UTF-8"),
    ],
)
def test_captions_that_are_none_are_named(captions: list[tuple[str, ...]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_captions(captions, WORDS, tmp_path, limit=8)
    assert not (tmp_path / "captions.json").exists()


def test_odd_captions_are_kept_and_long_ones_cut(tmp_path: Path) -> None:
    store = write_captions([("🔴", "دائرة حمراء"), ("word " * 10_000,), ("a\n\tb",)], WORDS, tmp_path, limit=8)
    assert (store.header.cut, store.header.longest, store.header.texts) == (1, 8, 4)
    assert store.texts(9)[3] == "a b"


def test_damaged_captions_are_refused(tmp_path: Path) -> None:
    write_captions([("a cat",)], WORDS, tmp_path, limit=8)
    with (tmp_path / "captions.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ValueError, match=r"captions\.npy is damaged.*train captions"):
        CaptionStore(tmp_path)


# ---- training


def test_batches_hold_a_caption_of_each_image_wherever_they_start(codes: CodeSet) -> None:
    def stream(first_step: int, **options: int) -> object:
        return batches(codes, batch_size=4, seed=0, first_step=first_step, image_size=32, **options)

    whole = stream(0)
    listed = [next(whole) for _ in range(4)]  # type: ignore[call-overload]
    later = next(stream(3))  # type: ignore[call-overload]
    for name in ("codes", "captions", "caption_lengths"):
        assert torch.equal(getattr(later, name), getattr(listed[3], name))
    parts = [next(stream(3, rank=rank, ranks=2)) for rank in range(2)]  # type: ignore[call-overload]
    lengths = torch.stack([part.caption_lengths for part in parts], dim=1).flatten()
    assert torch.equal(lengths, later.caption_lengths)


def _settings(out: Path, steps: int) -> TrainSettings:
    return TrainSettings(
        out=str(out), steps=steps, batch_size=4, learning_rate=1e-3, ema=0.9, save_every=2, log_every=1, cpu=True
    )


def _trained(codes: CodeSet, out: Path, steps: int, **recipe: object) -> BiGR:
    made = GeneratorRecipe(**recipe)  # type: ignore[arg-type]
    return train_generator(codes, MODEL, _settings(out, steps), made)


def test_a_run_that_stopped_goes_on_as_if_it_had_not(codes: CodeSet, tmp_path: Path) -> None:
    whole = _trained(codes, tmp_path / "whole", 4)
    _trained(codes, tmp_path / "parts", 2)
    parts = _trained(codes, tmp_path / "parts", 4)
    assert all(map(torch.equal, whole.state_dict().values(), parts.state_dict().values()))


def test_accumulated_batches_learn_from_all_captions(codes: CodeSet, tmp_path: Path) -> None:
    """Passes of one caption each: every caption is split off with its own codes."""
    model = _trained(codes, tmp_path / "a", 3, accumulate=4, class_dropout=0.0)
    start = _trained(codes, tmp_path / "b", 3, accumulate=4, class_dropout=1.0)
    first = [each.transformer.cap_embedding.first.weight for each in (model, start)]
    assert not torch.equal(*first)


SPLIT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import dataclasses
from test_text_training import MODEL, _settings
from bigr_repr.train.code_set import CodeSet
from bigr_repr.train.generator import train_generator
from bigr_repr.train.recipe import GeneratorRecipe
still = dataclasses.replace(MODEL.generator, objective="bce", attention="causal")
config = dataclasses.replace(MODEL, generator=still)
train_generator(CodeSet({codes!r}), config, _settings(Path({out!r}), 6), GeneratorRecipe(dropout=0, class_dropout=0))
"""


@pytest.mark.slow
def test_two_processes_learn_from_captions_what_one_learns(codes: CodeSet, tmp_path: Path) -> None:
    """Of a generator whose steps draw nothing at random; one image of a batch may have no caption."""
    for count in (1, 2):
        places = {"codes": str(codes.folder), "out": str(tmp_path / str(count))}
        run_together(count, SPLIT.format(tests=str(Path(__file__).parent), **places))
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert one == pytest.approx(two, rel=2e-5)
    assert len(set(one)) == len(one) == 6


def _begun(start: Pretrained, config: ModelConfig) -> dict[str, torch.Tensor]:
    return dict(begun_from(start, config).state_dict())


def test_a_second_stage_begins_with_the_weights_of_the_first(caplog: pytest.LogCaptureFixture) -> None:
    """Other data, a finer grid, another encoder; and captions for a model that knew classes."""
    start = Pretrained(MODEL, BinaryAutoencoder(TOKENIZER), BiGR(MODEL.generator))
    own = start.generator.state_dict()
    longer = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, caption_tokens=20))
    begun = _begun(start, longer)
    assert torch.equal(begun["transformer.cap_embedding.places"][:, :16], own["transformer.cap_embedding.places"])
    tokenizer = dataclasses.replace(TOKENIZER, image_size=64)
    finer = dataclasses.replace(MODEL, tokenizer=tokenizer, generator=dataclasses.replace(MODEL.generator, grid=8))
    begun = _begun(start, finer)
    name = "transformer.diffusion_pos_embed_learned"
    assert begun[name].shape == (1, 64, 16)
    assert abs(float(begun[name].mean() - own[name].mean())) < 0.01
    assert torch.equal(begun["transformer.cap_embedding.null"], own["transformer.cap_embedding.null"])
    other = _begun(start, dataclasses.replace(MODEL, text_encoder="t5", text_encoder_sha256="f" * 64))
    assert not torch.equal(other["transformer.cap_embedding.null"], own["transformer.cap_embedding.null"])
    assert torch.equal(other["transformer.adaLN.1.bias"], own["transformer.adaLN.1.bias"])
    plain = {"condition": "class", "caption_dim": 0, "caption_tokens": 0, "classes": 3}
    generator = dataclasses.replace(MODEL.generator, **plain)  # type: ignore[arg-type]
    classes = ModelConfig(name="classes", tokenizer=TOKENIZER, generator=generator)
    known = Pretrained(classes, BinaryAutoencoder(TOKENIZER), BiGR(generator))
    caplog.clear()
    begun = _begun(known, MODEL)
    assert torch.equal(begun["transformer.mask_tok"], known.generator.state_dict()["transformer.mask_tok"])
    assert "so initialized wholly or partly at random: transformer.cap_embedding.first.bias" in caplog.text


# ---- several sets


@pytest.fixture(scope="module")
def mixed(codes: CodeSet, tmp_path_factory: pytest.TempPathFactory) -> CodeMixture:
    """Those 24 scenes and, drawn twice as often, 6 others with three captions each, one of them long."""
    folder, scenes = tmp_path_factory.mktemp("other") / "c", SceneSet(30, side=32)
    rows = np.arange(24, 30)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        chosen = Subset(scenes, rows, None)
        write_codes(chosen, BinaryAutoencoder(TOKENIZER), folder, tokenizer_name="random", mirror=False)
    texts = [(f"scene {row}", f"a picture of number {row}", " ".join([f"scene {row}"] * 7)) for row in rows]
    write_captions(texts, WORDS, folder, limit=16)
    found = open_training_data([str(codes.folder), f"{folder}:2"])
    assert isinstance(found, CodeMixture)
    return found


def _captions_of(codes: CodeSet, image: int) -> set[bytes]:
    """All that may be drawn for an image."""
    assert codes.captions is not None
    drawn = (codes.captions.draw([image], [choice]) for choice in np.arange(0, 1, 0.05).tolist())
    return {vectors[0, : int(lengths[0])].tobytes() for vectors, lengths in drawn}


def test_images_of_mixed_sets_keep_their_captions(mixed: CodeMixture) -> None:
    known: dict[bytes, set[bytes]] = {}
    for each in mixed.sets:
        for image in range(len(each)):
            bits = each.bits(np.array([image]), np.array([0])).tobytes()
            known.setdefault(bits, set()).update(_captions_of(each, image))
    stream = batches(pickle.loads(pickle.dumps(mixed)), batch_size=len(mixed), seed=0, first_step=0, image_size=32)
    drawn = set[bytes]()
    for _ in range(8):
        batch = next(stream)
        assert batch.codes is not None
        assert batch.captions is not None
        assert batch.caption_lengths is not None
        for bits, vectors, length in zip(batch.codes, batch.captions, batch.caption_lengths.tolist(), strict=True):
            own = vectors[:length].numpy().tobytes()
            assert own in known[bits.numpy().tobytes()]
            assert not vectors[length:].any()
            drawn.add(own)
    assert len(mixed) == 24 + 2 * 6
    assert len(drawn) > 20 + 3 * 5  # several of each image of the second set
    assert mixed.captions is not None
    assert mixed.captions.texts(4)[1::2] == ["scene 24", "a picture of number 24"]


def test_a_model_learns_captions_of_mixed_sets_and_goes_on_exactly(mixed: CodeMixture, tmp_path: Path) -> None:
    whole = _trained(mixed, tmp_path / "whole", 4)
    _trained(mixed, tmp_path / "parts", 2)
    parts = _trained(mixed, tmp_path / "parts", 4)
    assert all(map(torch.equal, whole.state_dict().values(), parts.state_dict().values()))
    with pytest.raises(TrainingError, match=r"holds another run: captions.*; codes\.0/codes\.npy was"):
        _trained(CodeMixture([mixed.sets[1], mixed.sets[0]], [2, 1]), tmp_path / "parts", 4)


def test_captions_that_do_not_mix_are_named(codes: CodeSet, mixed: CodeMixture, tmp_path: Path) -> None:
    other, bare = tmp_path / "other", tmp_path / "bare"
    for place in (other, bare):
        shutil.copytree(mixed.sets[1].folder, place)
    (bare / "captions.json").unlink()
    with pytest.raises(ValueError, match=r"/c has captions, .*/bare has none; give all sets captions, or none"):
        CodeMixture([CodeSet(bare), codes], [1, 1])
    header = json.loads((other / "captions.json").read_text())
    header |= {"encoder_sha256": "f" * 64}
    (other / "captions.json").write_text(json.dumps(sealed(without_seal(header))))
    with pytest.raises(ValueError, match=r"of words \(.*/other has captions of words \(ffffffffffff…\); encode"):
        CodeMixture([codes, CodeSet(other)], [1, 1])


# ---- what does not fit


def test_captions_are_not_put_beside_codes_that_were_made_otherwise(tmp_path: Path) -> None:
    """As many of as many images are not enough."""
    scenes, (one, other) = SceneSet(3, side=32), (tmp_path / "one", tmp_path / "other")
    for place in (one, other):
        save_tokenizer(BinaryAutoencoder(TOKENIZER), place)
    made = Encoding(device="cpu").codes(scenes, str(one), tmp_path / "c")
    assert Encoding(device="cpu").codes(scenes, str(one), tmp_path / "c").header == made.header
    said = r"/c holds codes of .*/one: tokenizer_sha256 was \w{12}…, is \w{12}…; give the --tokenizer and --mirror"
    with pytest.raises(ValueError, match=said):
        Encoding(device="cpu").codes(scenes, str(other), tmp_path / "c")
    with pytest.raises(ValueError, match="/one: views was 1, is 2; give"):
        Encoding(device="cpu", mirror=True).codes(scenes, str(one), tmp_path / "c")
    write_codes(scenes, BinaryAutoencoder(TOKENIZER), tmp_path / "d", tokenizer_name="t", mirror=False, crops=1)
    with pytest.raises(ValueError, match=r"of t: crops was 1, is 0; tokenizer_sha256 .* or choose another folder"):
        Encoding(device="cpu", mirror=True).codes(scenes, str(one), tmp_path / "d")


def test_captions_of_another_encoder_or_none_are_refused(codes: CodeSet, tmp_path: Path) -> None:
    other = dataclasses.replace(MODEL, text_encoder="t5", text_encoder_sha256="f" * 64)
    with pytest.raises(ValueError, match=r"encoded by words .*the model needs those of t5 \(ffffffffffff"):
        train_generator(codes, other, _settings(tmp_path, 1), GeneratorRecipe())
    with pytest.raises(ValueError, match="no encoded captions"):
        train_generator(SceneSet(4, side=32), MODEL, _settings(tmp_path, 1), tokenizer=BinaryAutoencoder(TOKENIZER))
    short = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, caption_tokens=3))
    with pytest.raises(ValueError, match=r"up to \d+ tokens.*caption_tokens=3"):
        train_generator(codes, short, _settings(tmp_path, 1), GeneratorRecipe())
