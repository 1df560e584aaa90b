"""Text encoders of transformers: random tiny networks in a folder, as a user's own would lie there."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bigr_repr.checkpoints.text_encoders import TransformersEncoder, load_text_encoder
from bigr_repr.datasets import SceneSet
from bigr_repr.evaluate.runs import agreement
from bigr_repr.evaluate.runs.agreement import bench_agreement

transformers: Any = pytest.importorskip("transformers")
WORDS = ["a", "red", "blue", "circle", "square", "left", "of"]


def _tokenizer(folder: Path, **special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<pad>", "</s>", "<unk>", *WORDS]
    own = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", eos_token="</s>", model_max_length=16, **special
    )
    made.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A T5, a CLIP and a causal model, each with its tokenizer."""
    root, size = tmp_path_factory.mktemp("encoders"), len(WORDS) + 3
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": size, "max_position_embeddings": 16}
    vision = {**text, "image_size": 32, "patch_size": 16}
    configs = {
        "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config(
            vocab_size=size, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)),
        "clip": (transformers.CLIPModel, transformers.CLIPConfig(
            text_config={**text, "eos_token_id": 1}, vision_config=vision, projection_dim=8)),
        "causal": (transformers.GPT2LMHeadModel, transformers.GPT2Config(
            vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=16)),
    }  # fmt: skip
    for name, (kind, config) in configs.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kind(config).save_pretrained(root / name)
        _tokenizer(root / name, **({} if name == "causal" else {"pad_token": "<pad>"}))
    return {name: root / name for name in configs}


@pytest.mark.parametrize("name", ["t5", "clip", "causal"])
def test_captions_are_encoded_each_by_itself(folders: dict[str, Path], name: str) -> None:
    encoder = load_text_encoder(str(folders[name]))
    texts = ["a red circle", "a blue square left of a red circle"]
    together = encoder.encode(texts, 32)
    assert [rows.shape for rows in together] == [(4, 16), (9, 16)]
    assert all(rows.dtype == np.float16 for rows in together)
    for text, rows in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text], 32)[0], rows, atol=2e-3)
    assert not np.allclose(together[0][:3], together[1][:3], atol=1e-3)
    assert encoder.encode(["a red circle"], 2)[0].shape == (2, 16)
    assert encoder.count("a red circle " * 50) == 151


def test_the_vector_of_a_word_tells_the_words_around_it() -> None:
    words = load_text_encoder("words")
    first, turned, alone = words.encode(["a red circle, a Blue square", "a blue square, a red circle", "circle"], 24)
    assert first.shape == (7, words.width)
    half = words.width // 2
    assert (first[2, :half] == turned[6, :half]).all()  # the word itself
    assert (alone[0, :half] == first[2, :half]).all()
    assert not alone[0, half:].any()

    def nearness(which: int, word: int) -> float:
        """How far "red circle" has another word around it: a cosine."""
        around, sought = words.encode(["red circle, a blue square"], 24)[0][which, half:], first[word, :half]
        return float(np.dot(around, sought) / np.linalg.norm(around) / np.linalg.norm(sought))

    circle = [nearness(1, word) for word in (1, 3, 4, 5)]  # red; then the comma, "a" and "blue", ever farther away
    assert circle[0] > 0.3
    assert circle[1] > circle[2] > 0.15
    assert abs(nearness(1, 2)) < 0.15  # itself is not among its neighbors


def test_of_a_t5_only_the_encoder_is_taken(folders: dict[str, Path]) -> None:
    whole = transformers.T5ForConditionalGeneration.from_pretrained(folders["t5"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["t5"])
    ids = tokenizer(["a red circle"], return_tensors="pt")
    with torch.no_grad():
        wanted = whole.encoder(input_ids=ids["input_ids"]).last_hidden_state[0]
    found = TransformersEncoder(str(folders["t5"])).encode(["a red circle"], 16)[0]
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-3)


def test_the_fingerprint_is_of_weights_and_words(folders: dict[str, Path], tmp_path: Path) -> None:
    first = TransformersEncoder(str(folders["t5"])).fingerprint
    assert TransformersEncoder(str(folders["t5"])).fingerprint == first
    model = transformers.T5ForConditionalGeneration.from_pretrained(folders["t5"])
    model.save_pretrained(tmp_path)
    WORDS.append("cat")
    try:
        _tokenizer(tmp_path, pad_token="<pad>")
    finally:
        WORDS.pop()
    assert TransformersEncoder(str(tmp_path)).fingerprint != first


def test_without_the_package_or_the_model_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a folder of a model.*hf download") as error:
        load_text_encoder(str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ModuleNotFoundError, match=r"needs transformers; pip install \"bigr-repr\[text\]\"") as missing:
        load_text_encoder("google/flan-t5-xl")
    assert "\n" not in str(missing.value)


# ---- agreement of pictures with captions


def test_real_pictures_agree_with_their_captions() -> None:
    scenes = SceneSet(20, seed=4)
    texts = [own[0] for own in scenes.captions]
    told: list[tuple[int, int]] = []
    found = bench_agreement(scenes, texts, on_progress=lambda *each: told.append(each))
    assert told == [(done, 20) for done in range(1, 21)]
    assert found.protocol.startswith(f"20 pictures of {len(set(texts))} captions, judged by an exact reader")
    assert found.scores["all"] == 1.0
    assert found.pictures == 20
    turned = bench_agreement(scenes, texts[1:] + texts[:1])
    assert turned.scores["all"] < 0.2  # type: ignore[operator]
    with pytest.raises(ValueError, match="scorer='x' is unknown"):
        bench_agreement(scenes, texts, "x")


def test_a_judge_is_looked_for_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def found(name: str, **given: Any) -> Any:
        asked.append((name, given))
        return SimpleNamespace(eval=SimpleNamespace)

    def absent(name: str, **given: Any) -> Any:
        raise OSError("not there")

    library = SimpleNamespace(
        AutoProcessor=SimpleNamespace(from_pretrained=found), AutoModel=SimpleNamespace(from_pretrained=found)
    )
    monkeypatch.setattr(agreement, "importlib", SimpleNamespace(import_module=lambda name: library))
    with pytest.raises(ValueError, match="transformers:a/b is not an image-text model; choose one such as CLIP"):
        agreement._open("a/b")
    assert asked == [("a/b", {"local_files_only": True})] * 2
    library.AutoModel.from_pretrained = absent
    with pytest.raises(FileNotFoundError, match="once, with a connection: hf download a/b"):
        agreement._open("a/b")


def test_a_model_of_images_and_texts_scores_any_caption(folders: dict[str, Path]) -> None:
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["clip"])
    transformers.CLIPProcessor(processor, tokenizer).save_pretrained(folders["clip"])
    told: list[tuple[int, int]] = []
    name = f"transformers:{folders['clip']}"
    found = bench_agreement(SceneSet(3), ["a red circle", "a cat"], name, on_progress=lambda *each: told.append(each))
    assert told == [(3, 3)]
    assert -1 <= found.scores["cosine"] <= 1  # type: ignore[operator]
    assert 0 <= found.scores["found"] <= 1  # type: ignore[operator]
