"""The categorical head: its probabilities, how its codes are drawn, what it learns, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sampling_model import GENERATOR, K, N, tiny_model

from bigr_repr.checkpoints.description import count_parameters
from bigr_repr.checkpoints.pretrained import Pretrained, load, save
from bigr_repr.config import GeneratorConfig, ModelConfig
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.categorical import CategoricalHead, bits_of, class_of
from bigr_repr.sampling import SamplingSettings, generate, inpaint, sample_codes
from bigr_repr.sampling.chain import make_chain
from bigr_repr.sampling.compiled import compile_for_sampling
from bigr_repr.sampling.noise import SeededDraws
from bigr_repr.sampling.prediction import predict_bits
from bigr_repr.train.initial import begun_from

CODES = 2**K


def model(**changes: object) -> Pretrained:
    return tiny_model(output_head="categorical", **changes)


def none_drawn(width: int) -> torch.Tensor:
    raise AssertionError("nothing is to be drawn")


# ---- probabilities


def test_every_code_is_a_class_of_its_own() -> None:
    classes = torch.arange(CODES)
    assert torch.equal(class_of(bits_of(classes, K)), classes)
    assert len(bits_of(classes, K).unique(dim=0)) == CODES


def test_predictions_are_the_softmax_of_guided_logits() -> None:
    pre, condition = model(), torch.randn(2, 7, GENERATOR.dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with_class, without = pre.generator.categorical(condition)
    found = make_chain(pre.generator, 5)(condition, none_drawn, guidance=2.5, temperature=0.7)
    expected = ((without + 2.5 * (with_class - without)) / 0.7).softmax(-1)
    torch.testing.assert_close(found, expected)
    plain = make_chain(pre.generator, 1)(condition[:1], none_drawn)
    torch.testing.assert_close(plain, with_class.softmax(-1))


def test_bits_alone_have_the_probability_of_all_codes_that_hold_them() -> None:
    chain = make_chain(model().generator, 1)
    predicted = torch.rand(9, CODES, generator=torch.Generator().manual_seed(1))
    predicted /= predicted.sum(-1, keepdim=True)
    table = bits_of(torch.arange(CODES), K)
    found = chain.bit_probabilities(predicted)
    for bit in range(K):
        torch.testing.assert_close(found[:, bit], predicted[:, table[:, bit] > 0].sum(-1))


def test_a_prior_is_a_product_of_experts() -> None:
    """Codes are as likely as the model says, times as likely as the prior says of each of their bits."""
    chain, condition = make_chain(model().generator, 1), torch.randn(1, 3, GENERATOR.dim)
    prior = torch.randn(3, K)
    table = bits_of(torch.arange(CODES), K)
    weights = torch.where(table[None] > 0, prior.sigmoid()[:, None], 1 - prior.sigmoid()[:, None]).prod(-1)
    expected = chain(condition, none_drawn) * weights
    found = chain(condition, none_drawn, prior=prior)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), rtol=1e-4, atol=1e-7)


def test_the_surest_codes_rank_first() -> None:
    chain = make_chain(model().generator, 1)
    sure = torch.zeros(CODES)
    sure[3] = 1
    half = torch.zeros(CODES)
    half[3] = half[5] = 0.5
    rows = torch.stack([sure, half, torch.full((CODES,), 1 / CODES)])
    torch.testing.assert_close(chain.confidence("entropy", rows), torch.tensor([1, 1 - 1 / K, 0]))
    torch.testing.assert_close(chain.confidence("reversed", rows), torch.tensor([0, 1 / K, 1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(chain.confidence("margin", rows), torch.tensor([1.0, 0, 0]))


# ---- drawing


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    """A whole code at a time: bits of a code are not drawn each by itself."""
    chain, count = make_chain(model().generator, 1), 20_000
    predicted = torch.zeros(CODES)
    predicted[torch.tensor([0, 9, CODES - 1])] = torch.tensor([0.2, 0.5, 0.3])
    uniform = torch.rand(count, 1, generator=torch.Generator().manual_seed(2))
    drawn = class_of(chain.bits(predicted.expand(count, -1), lambda width: uniform, deterministic=False))
    shares = torch.bincount(drawn, minlength=CODES) / count
    assert torch.equal(shares > 0, predicted > 0)
    torch.testing.assert_close(shares, predicted, rtol=0, atol=0.02)
    edges = torch.tensor([[0.0], [1 - 2**-24]])
    ends = class_of(chain.bits(predicted.expand(2, -1), lambda width: edges, deterministic=False))
    assert ends.tolist() == [0, CODES - 1]
    assert class_of(chain.bits(predicted[None], none_drawn, deterministic=True)).tolist() == [9]


@pytest.mark.parametrize("settings", [{}, {"order": "halton"}, {"order": "margin", "confidence_steps": 2}])
def test_the_same_seed_draws_the_same_images_whatever_the_batch(settings: dict[str, object]) -> None:
    pre = model()
    images = generate(pre, [1, 2, 3], steps=4, seed=5, **settings)
    alone = generate(pre, [1, 2, 3], steps=4, seed=5, batch_size=1, **settings)
    torch.testing.assert_close(images, alone, rtol=0, atol=1e-4)
    assert not torch.equal(images, generate(pre, [1, 2, 3], steps=4, seed=6, **settings))


def test_known_tokens_stay_as_they_are() -> None:
    pre = model()
    codes = (torch.rand(2, N, K, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    masked = torch.zeros(2, N, dtype=torch.bool)
    masked[:, ::2] = True
    settings = SamplingSettings(steps=3)
    found = sample_codes(pre.generator, masked, settings=settings, draws=SeededDraws(0, range(2)), codes=codes)
    assert torch.equal(found[~masked], codes[~masked])
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    assert inpaint(pre, picture, mask, steps=2).isfinite().all()


def test_bits_of_hidden_tokens_are_predicted() -> None:
    codes = torch.zeros(1, N, K)
    found = predict_bits(model(), codes, rounds=2)
    assert found.shape == (1, N, K)
    assert bool(((found > 0) & (found < 1)).all())


@pytest.mark.slow
def test_compiled_images_are_the_same() -> None:
    images = generate(model(), [1], steps=2, seed=1)
    compiled = generate(compile_for_sampling(model(), backend="eager"), [1], steps=2, seed=1)
    torch.testing.assert_close(images, compiled, rtol=0, atol=1e-4)


# ---- learning


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_the_loss_is_the_cross_entropy_of_whole_codes(attention: str) -> None:
    pre = model(attention=attention)
    codes = (torch.rand(2, N, K, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    masked = torch.zeros(2, N, dtype=torch.bool)
    masked[:, 3:9] = True
    found = pre.generator.loss(codes, torch.tensor([0, 1]), masked=masked, class_dropout=0)
    targets = masked if attention == "full" else torch.ones_like(masked)
    hidden = pre.generator.condition(codes, torch.tensor([0, 1]), masked if attention == "full" else None)
    expected = F.cross_entropy(pre.generator.categorical(hidden[targets]), class_of(codes[targets]))
    torch.testing.assert_close(found, expected)


def test_a_fresh_head_holds_all_codes_equally_likely_and_learns_those_it_sees() -> None:
    torch.manual_seed(0)
    generator = BiGR(dataclasses.replace(GENERATOR, output_head="categorical"))
    codes = bits_of(torch.tensor([7, 11]).repeat(N // 2), K)[None].expand(8, -1, -1)
    draw = torch.Generator().manual_seed(0)
    first = generator.loss(codes, generator=draw)
    torch.testing.assert_close(first, torch.tensor(float(np.log(CODES))))
    optimizer = torch.optim.Adam(generator.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        generator.loss(codes, generator=draw).backward()
        optimizer.step()
    generator.eval()
    everything = torch.ones(2, N, dtype=torch.bool)
    drawn = sample_codes(
        generator, everything, settings=SamplingSettings(steps=4), draws=SeededDraws(0, range(2))
    )  # fmt: skip
    assert torch.isin(class_of(drawn), class_of(codes)).float().mean() > 0.9  # two codes of 64


# ---- files, features, refusals


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    pre = model()
    again = load(save(pre, tmp_path / "model"))
    assert again.config == pre.config
    assert again.config.generator.output_head == "categorical"
    assert again.fingerprint == pre.fingerprint
    assert torch.equal(generate(pre, [1], steps=2), generate(again, [1], steps=2))
    assert count_parameters(pre.config).transcoder == sum(p.numel() for p in pre.generator.categorical.parameters())


def test_features_do_not_depend_on_the_head() -> None:
    ours, theirs = model(), tiny_model()
    state = {key: value for key, value in theirs.generator.state_dict().items() if key.startswith("transformer.")}
    ours.generator.load_state_dict(state, strict=False)
    ours.tokenizer.load_state_dict(theirs.tokenizer.state_dict())
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FeatureExtractor(ours, (1,))(images).layers[1], FeatureExtractor(theirs, (1,))(images).layers[1])


def test_configurations_without_the_head_are_as_they_were() -> None:
    assert "output_head" not in GENERATOR.to_dict()
    changed = GeneratorConfig(**{**GENERATOR.to_dict(), "output_head": "categorical"})
    assert changed.to_dict()["output_head"] == "categorical"


def test_files_that_call_it_head_are_read() -> None:
    config = model().config
    written = config.to_dict()
    written["generator"]["head"] = written["generator"].pop("output_head")
    assert ModelConfig.from_dict(written) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_head": "softmax"}, "choose one of bernoulli, categorical"),
        ({"output_head": "categorical", "code_bits": 15}, "at most 14"),
        ({"output_head": "categorical", "objective": "bce"}, "leave objective out"),
    ],
)
def test_what_a_head_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GENERATOR, **changes)  # type: ignore[arg-type]


def test_a_model_does_not_go_on_with_another_head() -> None:
    with pytest.raises(ValueError, match="output_head was bernoulli, is categorical"):
        begun_from(tiny_model(), model().config)


def test_fourteen_bits_are_a_head_of_their_codes() -> None:
    config = dataclasses.replace(GENERATOR, output_head="categorical", code_bits=14)
    assert CategoricalHead(config)(torch.zeros(1, config.dim)).shape == (1, 2**14)
