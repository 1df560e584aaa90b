"""Laws of training where something goes wrong: two writers, damaged checkpoints, odd weights, limits and batches."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from bigr_repr_cli.main import app
from numpy.typing import NDArray
from safetensors.torch import save_file
from test_text_training import MODEL as TEXT_MODEL
from test_train import MODEL, TOKENIZER, losses, settings
from test_training_state import Toy
from test_training_state import _settings as toy_settings
from test_training_state import _stream as toy_stream
from tiny_model import write_pictures
from torch import Tensor
from typer.testing import CliRunner

from bigr_repr.checkpoints import pretrained
from bigr_repr.checkpoints.pretrained import Pretrained, save_tokenizer
from bigr_repr.checkpoints.prompts import read_captions
from bigr_repr.checkpoints.text_encoders import WordEncoder
from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.models.bigr import BiGR, TrainingPass
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.system.files import locked
from bigr_repr.train import loop
from bigr_repr.train.alignment import AlignmentFeatures, FrozenNetwork, write_features
from bigr_repr.train.caption_set import StoredTexts, write_captions
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.frozen import classifier
from bigr_repr.train.generator import train_generator
from bigr_repr.train.generator_task import GeneratorTask
from bigr_repr.train.mixture import CodeMixture
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.resume import TrainingError, find_checkpoints
from bigr_repr.train.run import sample_grid

WORDS = WordEncoder()
NETWORK = "test_efficientnet"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root, 5)
    return open_images(root)


@pytest.fixture(scope="module")
def tokenizer() -> BinaryAutoencoder:
    torch.manual_seed(0)
    return BinaryAutoencoder(TOKENIZER)


@pytest.fixture
def codes(images: ImageSet, tokenizer: BinaryAutoencoder, tmp_path: Path) -> CodeSet:
    return write_codes(images, tokenizer, tmp_path / "codes", tokenizer_name="t")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("network") / "weights.pth"
    torch.save(timm.create_model(NETWORK).state_dict(), file)
    return file


# ---- two writers


def test_only_one_writes_to_a_folder_at_a_time(
    images: ImageSet, tokenizer: BinaryAutoencoder, codes: CodeSet, weights: Path, tmp_path: Path
) -> None:
    network = FrozenNetwork(f"timm:{NETWORK}", grid=4, weights=weights)
    writers: list[Callable[[], object]] = [
        lambda: write_codes(images, tokenizer, codes.folder, tokenizer_name="t"),
        lambda: write_captions([("a cat",)] * 5, WORDS, codes.folder, limit=8),
        lambda: write_features(images, codes, network),
        lambda: loop.train(Toy(), toy_stream, toy_settings(codes.folder), record={}),
    ]
    before = sorted(each.name for each in codes.folder.iterdir())
    with locked(codes.folder, "busy"):
        for write in writers:
            with pytest.raises(RuntimeError, match=r"^.*codes: another process is writing to this folder; wait"):
                write()
    assert sorted(each.name for each in codes.folder.iterdir()) == before
    for write in writers[1:]:
        write()


# ---- which checkpoint a run resumes from


def _stopped(out: Path, steps: int, **fields: Any) -> list[int]:
    """Train to a step; returns the steps taken."""
    task = Toy()
    loop.train(task, toy_stream, toy_settings(out, steps=steps, sample_every=0, **fields), record={})
    return [step for step, _ in task.seen]


def test_a_repeated_resume_from_the_previous_checkpoint_goes_on(tmp_path: Path) -> None:
    assert _stopped(tmp_path, 6) == list(range(6))  # checkpoints after 4 and 6
    assert _stopped(tmp_path, 7, resume="previous") == [4, 5, 6]
    assert _stopped(tmp_path, 10, resume="previous") == [7, 8, 9]
    assert [each.name for each in tmp_path.glob("set-aside-*")] == ["set-aside-000000006"]
    _, newest = find_checkpoints(tmp_path)[-1]
    (newest / "ema.safetensors").write_bytes(b"damaged")
    assert _stopped(tmp_path, 11, resume="previous") == [8, 9, 10]
    assert len(list(tmp_path.glob("set-aside-*"))) == 2


def test_the_only_checkpoint_is_continued_if_it_is_intact_and_otherwise_a_new_run_is_advised(tmp_path: Path) -> None:
    _stopped(tmp_path, 3)
    with pytest.raises(TrainingError, match=r"only one checkpoint, .*3, which is intact; .*: --resume newest$"):
        _stopped(tmp_path, 5, resume="previous")
    (tmp_path / "set-aside-000000004").mkdir()
    assert _stopped(tmp_path, 4, resume="previous", keep=1) == [3]
    (_, only), *_ = find_checkpoints(tmp_path)
    (only / "ema.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"which is damaged \(.*ema\.safetensors .*\); to start a new run, choose"):
        _stopped(tmp_path, 5, resume="previous")
    with pytest.raises(TrainingError, match=r"cannot be read \(.*\); to start a new run, choose another out folder"):
        _stopped(tmp_path, 5)


# ---- previews


def test_a_preview_of_captions_needs_no_text_encoder(
    codes: CodeSet, tokenizer: BinaryAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_captions([(f"a cat number {i}",) for i in range(5)], WORDS, codes.folder, limit=16)
    own = Pretrained(TEXT_MODEL, tokenizer, BiGR(TEXT_MODEL.generator).eval())
    texts = store.texts(16)
    wanted = sample_grid(TEXT_MODEL, tokenizer, None, texts)(own.generator)
    monkeypatch.setattr(pretrained, "load_text_encoder", lambda name: pytest.fail("loaded"))
    assert torch.equal(sample_grid(TEXT_MODEL, tokenizer, None, texts, StoredTexts(store, 16))(own.generator), wanted)
    both = CodeMixture([CodeSet(codes.folder)] * 2, [1, 1])
    assert both.captions is not None
    assert {text: each.tobytes() for text, each in both.captions._encoded(3).items()} == {
        text: each.tobytes() for text, each in store._encoded(5).items() if text in both.captions.texts(3)
    }


def test_a_preview_that_cannot_be_drawn_does_not_end_the_training(
    codes: CodeSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fails(generator: BiGR) -> Tensor:
        asked.append(generator)
        raise FileNotFoundError("no such encoder")

    train_generator(codes, MODEL, settings(tmp_path / "out", steps=3, sample_every=1), sampler=fails)
    assert len(losses(tmp_path / "out")) == 3
    assert len(asked) == 1
    assert caplog.text.count("sample images cannot be drawn (no such encoder); training continues") == 1


# ---- alignment


def test_networks_that_do_not_read_the_size_are_refused_at_once(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"^align='timm:vit_tiny_patch16_224' cannot read pictures of 64 x 64 pixels \("
    ):
        FrozenNetwork("timm:vit_tiny_patch16_224", grid=4, weights=tmp_path / "w.pth")


def _train_codes(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["train", "codes", *map(str, arguments), "--device", "cpu"])
    return done.exit_code, f"{done.output} {done.exception}"


def test_codes_that_a_failed_command_left_are_given_features(
    images: ImageSet, tokenizer: BinaryAutoencoder, weights: Path, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path / "t")
    write_pictures(tmp_path / "p", 3)
    usual = (tmp_path / "p", "--tokenizer", tmp_path / "t", "--out", tmp_path / "c")
    align = ("--align", f"timm:{NETWORK}", "--align-weights", weights)
    code, said = _train_codes(*usual, *align, "--crops", 1)
    assert code != 0
    assert "features of crops are not stored" in said
    assert not (tmp_path / "c").exists()
    assert _train_codes(*usual)[0] == 0
    packed = (tmp_path / "c" / "codes.npy").stat().st_mtime_ns
    code, said = _train_codes(*usual, *align, "--no-mirror")
    assert code != 0
    assert "views was 2, is 1" in said
    assert _train_codes(*usual, *align)[0] == 0
    assert (tmp_path / "c" / "codes.npy").stat().st_mtime_ns == packed
    assert AlignmentFeatures(CodeSet(tmp_path / "c")).header.network == f"timm:{NETWORK}:3"
    code, said = _train_codes(*usual, *align)
    assert code != 0
    assert "already holds a code data set" in said


def test_weights_in_other_files_are_read_or_refused_in_a_line(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    renamed = {f"model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": renamed, "epoch": 3}, tmp_path / "l.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("l.pth", "w.safetensors"):
        read = classifier(NETWORK, tmp_path / name).state_dict()
        assert all(torch.equal(read[key], value) for key, value in state.items())
    save_file(renamed, tmp_path / "n.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of"):
        classifier(NETWORK, tmp_path / "n.safetensors")
    (tmp_path / "text.py").write_text("import this")
    with pytest.raises(ValueError, match=r"^.*text\.py cannot be read \(.*\); give a state dict"):
        classifier(NETWORK, tmp_path / "text.py")


# ---- data


def test_data_loading_processes_map_the_files_themselves(images: ImageSet, codes: CodeSet, weights: Path) -> None:
    write_features(images, codes, FrozenNetwork(f"timm:{NETWORK}", grid=4, weights=weights))
    features, first = AlignmentFeatures(codes), (np.arange(5), np.zeros(5, int))
    content = [codes.packed.tobytes(), *(part.numpy().tobytes() for part in features.rows(*first))]
    sent = pickle.dumps((codes, features, CodeMixture([codes, codes], [1, 2])))
    assert all(each[:64] not in sent for each in [codes.packed.tobytes(), np.asarray(features._arrays[0]).tobytes()])
    one, other, mixed = pickle.loads(sent)
    again = [one.packed.tobytes(), *(part.numpy().tobytes() for part in other.rows(*first))]
    assert again == content
    index = np.array([2, 7])
    assert np.array_equal(mixed.bits(index, index * 0), codes.bits(np.array([2, 2]), index * 0))


class Short(WordEncoder):
    """Reads four words, whatever the limit."""

    def encode(self, texts: Sequence[str], limit: int) -> list[NDArray[np.float16]]:
        return super().encode(texts, min(limit, 4))


def test_captions_cut_at_the_encoders_own_limit_are_counted(
    tmp_path: Path, tokenizer: BinaryAutoencoder, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [("one",), ("one two three four",), ("one two three four five",)]
    header = write_captions(texts, Short(), tmp_path, limit=120).header
    assert (header.cut, header.limit, header.longest) == (1, 4, 4)
    model = Pretrained(TEXT_MODEL, tokenizer, BiGR(TEXT_MODEL.generator))
    vars(model)["text_encoder"] = Short()
    read_captions(model, [text for (text,) in texts])
    assert re.findall(r"'([\w ]+)' has 5 tokens; test reads the first 4", caplog.text) == ["one two three four five"]


def test_sets_without_a_single_label_are_mixed(images: ImageSet, codes: CodeSet, tmp_path: Path) -> None:
    np.save(codes.folder / "labels.npy", np.full(5, -1))
    record = json.loads((codes.folder / "codes.json").read_text())
    record["sha256"].pop("labels.npy", None)
    record.pop("record_sha256")
    (codes.folder / "codes.json").write_text(json.dumps({**record, "class_names": []}))
    bare = CodeSet(codes.folder)
    assert bare.labels is not None
    mixed = CodeMixture([bare, bare], [1, 1])
    assert mixed.labels is not None
    assert mixed.labels.tolist() == [-1] * 10


@pytest.mark.parametrize(("accumulate", "rows"), [(3, 8), (4, 10), (2, 8)])
def test_every_image_of_a_split_batch_weighs_the_same(
    codes: CodeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, rows: int
) -> None:
    seen: list[float] = []

    def passed(self: GeneratorTask, c: Tensor, *_: object) -> tuple[TrainingPass, dict[str, tuple[float, Tensor]]]:
        values = c.flatten(1).mean(1)
        seen.extend(values.tolist())
        anchor = sum(each.sum() * 0 for each in self.modules[0].parameters())
        found = Found(values.mean() + anchor)
        return found, {"other": (1.0, 2 * values.mean())}  # type: ignore[return-value]

    monkeypatch.setattr(GeneratorTask, "_pass", passed)
    out = settings(tmp_path / "out", steps=1, warmup=0, batch_size=rows)
    train_generator(codes, MODEL, out, GeneratorRecipe(accumulate=accumulate))
    assert len(seen) == rows
    assert losses(tmp_path / "out") == pytest.approx([np.mean(seen)], rel=1e-6)
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert line["other"] == pytest.approx(2 * np.mean(seen), rel=1e-6)


@dataclasses.dataclass
class Found:
    """A pass of which only the loss counts."""

    loss: Tensor
