"""Laws of probes on tokens and few labels, and of measures that need no classifier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bigr_repr_cli.bench import app
from typer.testing import CliRunner

from bigr_repr.evaluate.data.splits import open_data, transfer
from bigr_repr.evaluate.metrics.clustering import cluster_accuracy, rank_me, structure
from bigr_repr.evaluate.probes import attentive
from bigr_repr.evaluate.probes.attentive import AttentiveProbe, attentive_probe
from bigr_repr.evaluate.probes.linear_probe import linear_probe, mean_per_class
from bigr_repr.evaluate.runs.few_shot import bench_clusters, bench_few_shot
from bigr_repr.evaluate.runs.settings import BenchSettings

SHORT = AttentiveProbe(queries=2, rates=(1e-6, 0.01), epochs=25, batch=32)


@pytest.fixture
def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Two classes, told by the sign of a feature in the one token that another marks: their mean says little."""
    rng = np.random.default_rng(0)
    y, n = np.arange(400) % 2, 400
    x = rng.normal(size=(n, 16, 4)).astype(np.float32)
    x[:, :, 3] = 0
    place = rng.integers(16, size=n)
    x[np.arange(n), place, 3] = 4
    x[np.arange(n), place, 0] = 2 * y - 1
    return x, y


def test_queries_find_the_token_that_tells(tokens: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = tokens
    (found,) = attentive_probe([x[:300]], y[:300], [x[300:]], y[300:], probe=SHORT, device="cpu")
    mean = linear_probe(x[:300].mean(1), y[:300], x[300:].mean(1), y[300:])
    assert found.top1 > mean.top1 + 10
    assert found.settings[0]["rate"] == 0.01
    assert found.edges == ("rate=0.01 is the largest of its grid of 2",)


def test_layers_that_train_together_become_what_they_would_alone(tokens: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = tokens
    other = x[:, :, ::-1]
    two = attentive_probe([x[:300], other[:300]], y[:300], [x[300:], other[300:]], y[300:], probe=SHORT, device="cpu")
    one = attentive_probe([other[:300]], y[:300], [other[300:]], y[300:], probe=SHORT, device="cpu")
    assert two[1].top1 == pytest.approx(one[0].top1, abs=2)
    assert two[1].held_out_top1 == pytest.approx(one[0].held_out_top1, abs=4)


def test_rates_are_chosen_on_images_that_no_head_has_seen(
    tokens: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = tokens
    sizes, train = [], attentive._train
    monkeypatch.setattr(attentive, "_train", lambda rows, *rest: (sizes.append(rows.shape[1]), train(rows, *rest))[1])
    attentive_probe([x[:300]], y[:300], [x[300:]], y[300:], probe=SHORT, device="cpu")
    assert sizes == [240, 300]


def test_an_epoch_shows_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(40.0)[None, :, None, None].expand(1, 40, 2, 2)
    seen, logits = [], attentive._AttentiveHeads.logits
    monkeypatch.setattr(
        attentive._AttentiveHeads, "logits", lambda self, part: (seen.append(part[0, :, 0, 0]), logits(self, part))[1]
    )
    options = AttentiveProbe(queries=1, epochs=2, batch=10)
    attentive._train(x, torch.arange(40) % 2, 2, options, torch.tensor([[0.01]]), 0)
    assert len(seen) == 8
    for epoch in (seen[:4], seen[4:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(40))


def test_alignment_is_of_two_different_images() -> None:
    x = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]])
    assert structure(x, [0, 0, 1, 1]).alignment == pytest.approx((2 + 4) / 2, abs=0.02)


def test_impossible_tokens_are_refused(tokens: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = tokens
    with pytest.raises(ValueError, match="queries=3 does not divide the tokens' width 4"):
        attentive_probe([x], y, [x], y, probe=AttentiveProbe(queries=3), device="cpu")
    with pytest.raises(ValueError, match="needs tokens"):
        attentive_probe([x[:, 0]], y, [x[:, 0]], y, device="cpu")
    with pytest.raises(ValueError, match="above 0"):
        AttentiveProbe(queries=0)


def test_clusters_of_apart_classes_are_the_classes() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    apart = 10 * np.eye(3)[y] + 0.1 * rng.normal(size=(300, 3))
    found, mixed = structure(apart, y), structure(rng.normal(size=(300, 3)), y)
    assert (found.nmi, found.ari, found.accuracy) == (1, 1, 100)
    assert mixed.accuracy < 60
    assert mixed.ari < 0.1
    assert found.alignment < 0.01 < mixed.alignment
    assert mixed.uniformity < found.uniformity
    assert found.uniformity == pytest.approx(np.log(1 / 3 + 2 / 3 * np.exp(-4)), abs=0.02)
    with pytest.raises(ValueError, match="one class"):
        structure(apart, y * 0)


def test_clusters_name_the_side_whose_features_do_not_do(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), np.arange(20) % 2
    np.savez(tmp_path / "train.npz", features=x, label=y)
    np.savez(tmp_path / "test.npz", features=x * np.float32(1e25), label=y)
    data = transfer(f"features:{tmp_path}/train.npz", f"features:{tmp_path}/test.npz")
    with pytest.raises(ValueError, match=r"^test features: 20 of 20 rows are longer than"):
        bench_clusters(None, data, BenchSettings(cache=tmp_path / "cache", device="cpu"))


def test_clusters_may_be_called_anything() -> None:
    assert cluster_accuracy(np.array([0, 0, 1, 1]), np.array([2, 2, 0, 0])) == 100
    assert cluster_accuracy(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])) == 50


def test_rank_is_that_of_equal_singular_values() -> None:
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    assert rank_me(turned[:, :7]) == pytest.approx(7, abs=0.01)
    assert rank_me(turned[:, :1] @ turned[:1]) == pytest.approx(1, abs=0.01)


def test_the_mean_per_class_counts_rare_classes_alike() -> None:
    assert mean_per_class(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])) == 50


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            AttentiveProbe(queries=4, epochs=1, rates=(1e-3,)),
            "attentive: 4 queries over 9 tokens, then linear, by AdamW, batch 160, 1 epoch, cosine; rate 0.001 given, "
            "trained on all 160 training images",
        ),
        (
            AttentiveProbe(queries=1, epochs=2, batch=32, rates=(1e-3, 1e-2)),
            "attentive: 1 query over 9 tokens, then linear, by AdamW, batch 32, 2 epochs, cosine; 2 rates, chosen on a "
            "held-out fifth (stratified), retrained on all 160 training images",
        ),
    ],
)
def test_the_attentive_probe_says_what_was_done(options: AttentiveProbe, said: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(200, 9, 4)).astype(np.float32), np.arange(200) % 2
    (found,) = attentive_probe([x[:160]], y[:160], [x[160:]], y[160:], probe=options, device="cpu")
    assert found.protocol == said


def test_few_shots_are_of_every_class_and_their_draws_differ(tmp_path: Path) -> None:
    settings, data = BenchSettings(cache=tmp_path, device="cpu"), open_data("digits", limit=300, test_limit=200)
    rows = bench_few_shot("pixels:8", data, settings, shots=(1, 10), draws=3)
    one, ten = rows
    assert ten.top1 > one.top1 + 10
    assert len(set(one.top1_by_draw)) > 1
    assert one.interval is not None
    assert one.interval[0] <= one.top1 <= one.interval[1]
    assert "on all 10 training images" in one.protocol
    assert bench_few_shot("pixels:8", data, settings, shots=(1,), draws=3)[0].top1_by_draw == one.top1_by_draw
    with pytest.raises(
        ValueError, match=r"shots=\(900,\) must lie in 1\.\.\d+: class '\d' has \d+ images in digits train; use fewer"
    ):
        bench_few_shot("pixels:8", data, settings, shots=(900,))


@pytest.mark.slow
def test_commands(tmp_path: Path) -> None:
    shared = ["--dataset", "digits", "--test-limit", "50", "--cache", str(tmp_path), "--model"]

    def run(*arguments: str) -> str:
        done = CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    text = run("few-shot", *shared, "pixels:8", "--shots", "1,5", "--draws", "2", "--limit", "200")
    assert "means over 2 draws" in text
    found = json.loads(run("clusters", *shared, "pixels:8", "--json"))
    assert found["rows"][0]["classes"] == 10
    assert "RankMe" in run("clusters", *shared, "pixels:8")
    few = ["--limit", "60", "--layer", "1,3", "--epochs", "1", "--queries", "4", "--rates", "1e-3,1e-2"]
    text = run("attentive-probe", *shared, "timm:test_vit?random", *few)
    assert "attentive: 4 queries over 100 tokens" in " ".join(text.split())
