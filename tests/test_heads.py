"""Laws of heads that train together: each becomes what it would alone, and what plain PyTorch makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigr_repr.evaluate.probes import sgd
from bigr_repr.evaluate.probes.heads import train_heads, train_renewed
from bigr_repr.evaluate.probes.linear_probe import linear_probe, linear_probes
from bigr_repr.evaluate.probes.protocols import PROTOCOLS, SgdProtocol, sgd_protocol

SGD = SgdProtocol(name="sgd", optimizer="sgd", rates=(0.01, 0.3, 2.0), batch=32, epochs=4, warmup=1)
LARS = dataclasses.replace(SGD, name="lars", optimizer="lars", rates=(1.0, 20.0), batch_norm=True)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Two layers of 100 rows, 6 wide, 3 classes."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(100) % 3
    x = torch.randn(2, 100, 6, generator=draw) * 3 + 1
    x[:, :, 0] += y * 2
    return x, y


def _plain(x: Tensor, y: Tensor, protocol: SgdProtocol, seed: int, rate: float) -> torch.nn.Module:
    """One head by torch's own modules, optimizer and loop."""
    draw = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(x.shape[1], 3)
    linear.weight.data = (torch.randn(x.shape[1], 3, generator=draw) * protocol.init_std).T.contiguous()
    linear.bias.data.zero_()
    norm = torch.nn.BatchNorm1d(x.shape[1], affine=False, eps=1e-6) if protocol.batch_norm else torch.nn.Identity()
    model = torch.nn.Sequential(norm, linear)
    optimizer = torch.optim.SGD(linear.parameters(), lr=1, momentum=0.9)
    total, _ = protocol.steps(len(x))
    step = 0
    while step < total:
        for rows in torch.randperm(len(x), generator=draw).split(protocol.batch):
            optimizer.param_groups[0]["lr"] = rate * protocol.factor(step, len(x))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
    return model.eval()


def test_heads_are_plain_pytorchs(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    for protocol in (SGD, dataclasses.replace(SGD, batch_norm=True)):
        heads = train_heads(x, y, 3, protocol, (5, 6))
        for number, rate in enumerate(protocol.rates):
            expected = _plain(x[1], y, protocol, 6, rate)(x[1]).detach()
            torch.testing.assert_close(heads.logits(x[1], 1, 1)[number], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("protocol", [SGD, LARS], ids=["sgd", "lars"])
def test_a_head_is_the_same_whatever_trains_beside_it(data: tuple[Tensor, Tensor], protocol: SgdProtocol) -> None:
    x, y = data
    together = train_heads(x, y, 3, protocol, (5, 6))
    alone = train_heads(x[1:], y, 3, protocol, (6,), choice=torch.tensor([[1]]))
    torch.testing.assert_close(alone.weight[0, 0, 0], together.weight[1, 1, 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.bias[0, 0, 0], together.bias[1, 1, 1], atol=1e-5, rtol=1e-4)
    assert not torch.equal(together.weight[1, 0], together.weight[1, 1])


def test_lars_steps_by_the_norm_of_the_weights(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    one = SgdProtocol(name="one", optimizer="lars", rates=(256.0,), batch=100, iterations=1, init_std=0.1)
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) * 0.1
    moved = train_heads(x[:1], y, 3, one, (1,)).weight[0, 0, 0] - weight
    assert moved.norm().item() == pytest.approx(0.001 * weight.norm().item() * 256 * 100 / 256, rel=1e-4)
    larger = train_heads(x[:1] * 50, y, 3, one, (1,)).weight[0, 0, 0] - weight
    assert larger.norm().item() == pytest.approx(moved.norm().item(), rel=1e-4)


def test_rates_warm_up_and_fall() -> None:
    mae = sgd_protocol("mae")
    assert mae.steps(50_000) == (90 * 4, 10 * 4)
    assert mae.factor(40, 50_000) == pytest.approx(16384 / 256)
    assert mae.factor(0, 50_000) == 0
    assert mae.factor(359, 50_000) < 0.01
    assert mae.factor(10, 1000) == pytest.approx(1000 / 256)  # the batch is the whole set
    assert 0.1 in mae.rates
    mage = sgd_protocol("mage")
    assert (mage.steps(81920), mage.factor(200, 81920)) == ((90 * 20, 10 * 20), pytest.approx(4096 / 256))
    assert all(len(protocol.rates) == 13 for protocol in PROTOCOLS.values())
    assert sgd_protocol("dinov2").steps(10**6) == (12500, 0)


@pytest.mark.slow
def test_probe_by_gradient_descent_finds_the_classes_and_the_rate() -> None:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    test = np.arange(len(x)) % 3 == 0
    protocol = dataclasses.replace(LARS, rates=(1e-4, 6.0, 20.0), batch=256, epochs=40)
    layers = {"a": x[~test], "b": x[~test][:, :20], "c": x[~test][:, ::-1]}
    tests = {"a": x[test], "b": x[test][:, :20], "c": x[test][:, ::-1]}
    found = linear_probes(layers, y[~test], tests, y[test], protocol=protocol, seeds=(0, 1))
    assert found["a"].top1 > 93
    assert found["a"].settings[0]["rate"] > 1e-4
    assert found["b"].top1 < found["a"].top1
    assert found["a"].seed_interval is not None
    alone = linear_probe(x[~test], y[~test], x[test], y[test], protocol=protocol, seeds=(0, 1))
    assert alone.top1 == found["a"].top1
    assert "LARS" in alone.protocol


def test_layers_that_do_not_fit_together_train_in_groups_to_the_same_end(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data
    layers, sizes, real = {0: x[0], 1: x[1]}, [], sgd.train_heads

    def counted(features: Tensor, *arguments: Any) -> Any:
        sizes.append(len(features))
        return real(features, *arguments)

    monkeypatch.setattr(sgd, "train_heads", counted)
    together = linear_probes(layers, y, layers, y, protocol=SGD)
    monkeypatch.setattr(sgd, "_LOGITS", 32 * 3 * 3)  # a batch of one layer's heads
    apart = linear_probes(layers, y, layers, y, protocol=SGD)
    assert sizes == [2, 2, 1, 1, 1, 1]
    for layer in layers:
        assert together[layer].settings == apart[layer].settings
        assert np.array_equal(together[layer].predicted, apart[layer].predicted)


def test_test_set_chooses_no_rate(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    first = linear_probe(x[0], y, x[0], y, protocol=SGD)
    other = linear_probe(x[0], y, x[0], y.flip(0), protocol=SGD)
    assert first.settings == other.settings
    assert first.top1 != other.top1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rates": ()}, "rates=()"),
        ({"rates": (0.1, -1.0)}, "above 0"),
        ({"optimizer": "adam"}, "adam"),
        ({"iterations": 5}, "exactly one"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_protocols_are_checked(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        dataclasses.replace(SGD, **changes)  # type: ignore[arg-type]
    assert named in str(caught.value)


def test_unknown_protocol_and_no_seeds_are_refused(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    with pytest.raises(ValueError, match="logreg, mae, mage, dinov2"):
        linear_probe(x[0], y, x[0], y, protocol="moco")
    with pytest.raises(ValueError, match="seeds"):
        linear_probe(x[0], y, x[0], y, seeds=())


@pytest.mark.parametrize("protocol", [SGD, LARS, dataclasses.replace(SGD, epochs=0, iterations=7)])
def test_features_that_do_not_change_give_the_heads_of_one_extraction(
    data: tuple[Tensor, Tensor], protocol: SgdProtocol
) -> None:
    (x, y), asked = data, []

    def features(epoch: int) -> Tensor:
        asked.append(epoch)
        return x

    parts = [torch.arange(0, 100, 3), torch.arange(100)]
    for heads, part in zip(train_renewed(features, y, 3, protocol, (0, 5), parts), parts, strict=True):
        alone = train_heads(x[:, part], y[part], 3, protocol, (0, 5))
        for name in ("weight", "bias", "mean", "deviation"):
            torch.testing.assert_close(getattr(heads, name), getattr(alone, name), rtol=0, atol=0)
    assert asked == list(range(len(asked)))


def test_every_epoch_has_features_of_its_own(data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    same, new = (
        train_renewed(lambda epoch, new=new: x + new * epoch, y, 3, SGD, (0,), [torch.arange(100)])[0]
        for new in (0, 1)
    )  # fmt: skip
    assert not torch.allclose(same.weight, new.weight)
