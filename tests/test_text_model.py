"""Generators of captions: what they compute, how they are drawn from, and what they refuse."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from text_model import text_model
from tiny_model import tiny_model

import bigr_repr as br
from bigr_repr.checkpoints.pretrained import Pretrained, load, save
from bigr_repr.checkpoints.prompts import read_captions
from bigr_repr.checkpoints.text_encoders import WordEncoder
from bigr_repr.config import GeneratorConfig, ModelConfig
from bigr_repr.models.bigr import drop_labels
from bigr_repr.models.transformer import Captions

FEW = {"steps": 3, "diffusion_steps": 3}
RED, BLUE = "a red circle", "a blue square left of a large green cross"


@pytest.fixture(scope="module")
def pre() -> Pretrained:
    return text_model()


def _codes(pre: Pretrained, batch: int = 2) -> torch.Tensor:
    config = pre.config.generator
    return torch.randint(
        2, (batch, config.tokens, config.code_bits), generator=torch.Generator().manual_seed(1)
    ).float()


def _states(pre: Pretrained, captions: Captions | None, batch: int) -> torch.Tensor:
    codes = _codes(pre, 1).expand(batch, -1, -1)
    return pre.generator.hidden_states(codes, captions, layers=(-1,))[-1].detach()


# ---- the network


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_padding_is_not_read(attention: str) -> None:
    pre = text_model(attention=attention)
    both = read_captions(pre, [RED, BLUE])
    assert both.lengths.tolist() == [3, 9]
    both.features[0, 3:] = 7.0  # what follows the end
    alone = _states(pre, read_captions(pre, [RED]), 1)[0]
    torch.testing.assert_close(_states(pre, both, 2)[0], alone, atol=1e-5, rtol=1e-5)


def test_captions_their_order_and_none_give_other_states(pre: Pretrained) -> None:
    texts = [RED, "a circle red", BLUE]
    states = [*_states(pre, read_captions(pre, texts), 3), _states(pre, None, 1)[0]]
    for i, first in enumerate(states):
        assert all((first - second).abs().max() > 1e-3 for second in states[:i])


def test_an_empty_caption_is_the_null_caption(pre: Pretrained) -> None:
    captions = read_captions(pre, [RED, BLUE])
    dropped = drop_labels(captions, 1.0, 0)
    assert isinstance(dropped, Captions)
    torch.testing.assert_close(_states(pre, dropped, 2)[1], _states(pre, None, 1)[0], atol=1e-5, rtol=1e-5)


def test_training_and_inference_attend_alike(pre: Pretrained) -> None:
    captions = read_captions(pre, [RED, BLUE])
    codes = _codes(pre)
    with torch.no_grad():
        fused = pre.generator.hidden_states(codes, captions)[-1]
    torch.testing.assert_close(pre.generator.hidden_states(codes, captions)[-1], fused, atol=1e-5, rtol=1e-4)


def test_every_weight_learns(pre: Pretrained) -> None:
    model = text_model(3).generator.train()
    captions = read_captions(pre, [RED, BLUE, RED])
    lengths = captions.lengths * torch.tensor([1, 1, 0])
    torch.manual_seed(1)  # masks that leave some tokens: where all are masked, no code is embedded
    model.loss(_codes(pre, 3), Captions(captions.features, lengths), class_dropout=0).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_reading_a_part_of_the_tokens_keeps_the_captions(pre: Pretrained) -> None:
    model, captions = pre.generator, read_captions(pre, [RED, BLUE])
    codes, masked = _codes(pre), torch.zeros(2, 16, dtype=torch.bool)
    masked[:, [1, 5]] = True
    every = torch.arange(16)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    whole = model(codes, captions, masked, generator=generators[0])
    part = model(codes, captions, masked, generator=generators[1], read=every)
    torch.testing.assert_close(whole.loss, part.loss)


# ---- configurations and files


@pytest.mark.slow
def test_class_models_are_written_as_before() -> None:
    """Older versions refuse fields that they do not know, and compare records of runs."""
    written = tiny_model().config.to_dict()
    assert not [name for name in written if name.startswith("text")]
    assert not {"condition", "caption_dim", "caption_tokens"} & written["generator"].keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "sound"}, "condition='sound'.*class, text"),
        ({"condition": "text"}, "caption_dim=0"),
        ({"condition": "text", "caption_dim": 8}, "caption_tokens=0"),
        ({"caption_dim": 8}, "condition='text'"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**changes)  # type: ignore[arg-type]


def test_a_text_model_names_its_encoder(pre: Pretrained) -> None:
    with pytest.raises(ValueError, match="text_encoder"):
        dataclasses.replace(pre.config, text_encoder="")
    with pytest.raises(ValueError, match="text_encoder"):
        dataclasses.replace(tiny_model().config, text_encoder="words")


def test_saved_and_loaded_it_draws_the_same(pre: Pretrained, tmp_path: object) -> None:
    again = load(save(pre, f"{tmp_path}/model"))
    assert again.config == ModelConfig.from_dict(pre.config.to_dict()) == pre.config
    assert torch.equal(br.generate(again, prompt=RED, **FEW), br.generate(pre, prompt=RED, **FEW))


def test_another_encoder_is_refused(pre: Pretrained) -> None:
    other = Pretrained(dataclasses.replace(pre.config, text_encoder_sha256="0" * 64), pre.tokenizer, pre.generator)
    with pytest.raises(ValueError, match=r"words is not the one tiny-text was trained with.*not 000000000000"):
        br.generate(other, prompt=RED, **FEW)


# ---- drawing


def test_a_picture_depends_on_its_own_prompt(pre: Pretrained) -> None:
    both = br.generate(pre, prompt=[RED, BLUE], **FEW)
    assert torch.equal(br.generate(pre, prompt=RED, **FEW)[0], both[0])
    assert torch.equal(br.generate(pre, prompt=BLUE, first=1, **FEW)[0], both[1])
    assert not torch.equal(br.generate(pre, prompt=BLUE, **FEW)[0], both[0])
    together = br.generate(pre, prompt=[RED, BLUE], batch_size=2, **FEW)
    assert (together - both).abs().mean() < 0.05


def test_guidance_and_what_to_keep_away_from_change_pictures(pre: Pretrained) -> None:
    def drawn(**options: object) -> torch.Tensor:
        return br.generate(pre, prompt=RED, **FEW, **options)  # type: ignore[arg-type]

    assert not torch.equal(drawn(guidance=4.0), drawn(guidance=1.0))
    assert not torch.equal(drawn(guidance=4.0, negative=BLUE), drawn(guidance=4.0))
    assert torch.equal(drawn(guidance=1.0, negative=BLUE), drawn(guidance=1.0))
    assert torch.equal(drawn(guidance=4.0, negative=RED, temperature=1e-9), drawn(guidance=1.0, temperature=1e-9))


def test_everything_that_takes_a_class_takes_a_prompt(pre: Pretrained) -> None:
    image, mask = torch.rand(3, 32, 32), torch.zeros(32, 32)
    mask[:16] = 1
    for drawn, other in (
        (br.inpaint(pre, image, mask, prompt=RED, **FEW), br.inpaint(pre, image, mask, prompt=BLUE, **FEW)),
        (br.edit(pre, image, mask, prompt=RED, **FEW), br.edit(pre, image, mask, prompt=BLUE, **FEW)),
        (br.outpaint(pre, image[:, :16], prompt=RED, **FEW), br.outpaint(pre, image[:, :16], prompt=BLUE, **FEW)),
        (br.enrich(pre, image, prompt=RED, **FEW), br.enrich(pre, image, prompt=BLUE, **FEW)),
    ):
        assert drawn.shape == (1, 3, 32, 32)
        assert not torch.equal(drawn, other)
    assert torch.equal(br.edit(pre, image, mask, prompt=RED, **FEW), br.inpaint(pre, image, mask, prompt=RED, **FEW))


@pytest.mark.parametrize("smooth", [True, False])
def test_interpolation_goes_from_prompt_to_prompt(pre: Pretrained, smooth: bool) -> None:
    way = br.interpolate(pre, prompt=[RED, BLUE], frames=3, smooth=smooth, **FEW)
    assert torch.equal(way[0], br.generate(pre, prompt=RED, **FEW)[0])
    assert torch.equal(way[2], br.generate(pre, prompt=BLUE, **FEW)[0])
    with pytest.raises(ValueError, match="single prompt"):
        br.interpolate(pre, prompt=RED, **FEW)


def test_features_are_of_the_null_caption(pre: Pretrained) -> None:
    images = torch.rand(2, 3, 32, 32)
    found = br.extract_features(images, model=pre, layer=2)
    assert found.shape == (2, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt='' is empty"),
        ({"prompt": "  \n"}, "is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": "caf\udce9"}, "is not UTF-8 text"),
        ({"prompt": RED, "negative": " "}, "negative=' ' is empty"),
        ({"negative": RED}, "needs a prompt"),
        ({"labels": [1]}, "tiny-text draws from captions, not classes; pass a prompt"),
        ({"guidance": 2.0}, "give a text model a prompt"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(pre: Pretrained, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        br.generate(pre, **FEW, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value).replace("\\n", "")


def test_a_prompt_to_a_class_model_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny-random was trained with classes, not captions; name a class"):
        br.generate(tiny_model(), prompt=RED, **FEW)


def test_long_and_foreign_prompts(pre: Pretrained, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_captions(pre, ["circle " * 10_000, "🔴 on 🟦", "دائرة حمراء", "赤い丸"])
    assert found.lengths.tolist() == [12, 3, 2, 1]
    assert [record.getMessage().partition("… has ")[2] or record.getMessage() for record in caplog.records]
    assert "has 10,000 tokens; tiny-text reads the first 12" in caplog.text
    assert len(caplog.records) == 1


def test_words_are_vectors_that_never_change() -> None:
    encoder = WordEncoder()
    rows = encoder.encode(["Circle, circles square"], 8)[0].astype(float)
    cosine = rows @ rows.T / 256
    assert abs(cosine[0, 2] - 0.3) < 0.3
    assert cosine[0, 2] > cosine[0, 3] + 0.1  # spelled alike
    assert encoder.encode(["CIRCLE"], 1)[0].tolist() == encoder.encode(["circle"], 1)[0].tolist()
    assert encoder.fingerprint == WordEncoder().fingerprint
