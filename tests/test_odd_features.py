"""Laws of measures on odd features: half precision, NaN, numbers far from 0, single images, torn files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from bigr_repr.checkpoints.state_files import state_dict
from bigr_repr.evaluate.data.feature_files import joined_classes, open_features
from bigr_repr.evaluate.metrics.clustering import rank_me, structure
from bigr_repr.evaluate.metrics.generation import precision_recall
from bigr_repr.evaluate.metrics.label_retrieval import Collection, _cosine, label_retrieval
from bigr_repr.evaluate.probes.attentive import AttentiveProbe, attentive_probe
from bigr_repr.evaluate.probes.knn import knn
from bigr_repr.evaluate.probes.linear_probe import linear_probe
from bigr_repr.evaluate.probes.protocols import SgdProtocol
from bigr_repr.evaluate.probes.segment import _most_frequent
from bigr_repr.evaluate.representations.weight_files import fill

RANDOM = np.random.default_rng(0)


def test_cosines_of_half_precision_are_those_of_single() -> None:
    """Norms above 256 overflow in float16's squares."""
    x = RANDOM.normal(size=(20, 64)).astype(np.float16) * np.float16(60)
    half, single = (_cosine(part, part)(slice(None)) for part in (x, x.astype(np.float32)))
    np.testing.assert_allclose(half, single, atol=1e-6)


def test_precision_and_recall_do_not_depend_on_the_origin() -> None:
    real, drawn = (RANDOM.normal(scale=0.01, size=(100, 32)) for _ in range(2))
    assert precision_recall(real, drawn) == precision_recall(real + 100, drawn + 100)


def test_alignment_needs_two_images_of_a_class_and_rank_needs_features() -> None:
    x = RANDOM.normal(size=(6, 4))
    assert structure(x, np.arange(6)).alignment is None
    assert structure(np.repeat(x, 2, axis=0), np.repeat(np.arange(6), 2)).alignment == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="all features are 0"):
        rank_me(np.zeros((5, 3)))


def test_cells_without_a_pixel_have_no_class() -> None:
    found = _most_frequent(np.full((1, 4, 4), 3, np.uint8), 8)
    assert set(np.unique(found).tolist()) == {3, 255}
    assert (found == 3).sum() == 16


def tokens(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = np.arange(count) % 2
    return (RANDOM.normal(size=(count, 4, 8)) + labels[:, None, None]).astype(np.float32), labels


@pytest.mark.parametrize("side", ["train", "test"])
def test_an_attentive_probe_refuses_tokens_that_are_not_finite_or_too_few(side: str) -> None:
    x, y = tokens(40)
    probe = AttentiveProbe(queries=2, epochs=1)
    sides: dict[str, Any] = {"train": x, "test": x.copy()}
    sides[side] = sides[side].copy()
    sides[side][3, 1, 2] = np.nan
    with pytest.raises(ValueError, match=rf"{side} features: 1 of 40 rows are not finite \(the first is row 3\)"):
        attentive_probe([sides["train"]], y, [sides["test"]], y, probe=probe, device="cpu")
    sides[side] = x[:39]
    with pytest.raises(ValueError, match=f"{side}: 39 rows of features but 40 labels"):
        attentive_probe([sides["train"]], y, [sides["test"]], y, probe=probe, device="cpu")


def test_an_attentive_probe_of_one_rate_needs_no_images_to_choose_by() -> None:
    x, y = tokens(2)
    options = AttentiveProbe(queries=2, epochs=1, rates=(1e-3,))
    (found,) = attentive_probe([x], y, [x], y, probe=options, device="cpu")
    assert found.held_out_top1 is None
    with pytest.raises(ValueError, match="too few to hold any out"):
        attentive_probe([x], y, [x], y, probe=AttentiveProbe(queries=2, epochs=1), device="cpu")


@pytest.mark.parametrize("rates", [(1.0,), (0.1, 1.0)])
def test_a_probe_that_diverges_is_an_error(rates: tuple[float, ...]) -> None:
    x = RANDOM.normal(size=(40, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    protocol = SgdProtocol(name="sgd", optimizer="sgd", rates=rates, epochs=2, batch=8)
    assert linear_probe(x, y, x, y, protocol=protocol, device="cpu").top1 > 50
    with pytest.raises(ValueError, match="training diverged; give smaller rates"):
        linear_probe(x * 1e30, y, x * 1e30, y, protocol=protocol, device="cpu")


@pytest.mark.parametrize("rates", [(1e30,), (1e-3, 1e30), (1e30, 1e38)])
@pytest.mark.parametrize("epochs", [1, 9])
def test_attentive_heads_that_diverge_are_no_accuracy(rates: tuple[float, ...], epochs: int) -> None:
    """Not even after a single step, whose weights may be finite where the logits are not."""
    x, y = tokens(40)
    probe = AttentiveProbe(queries=2, epochs=epochs, rates=rates)
    if min(rates) < 1:
        (found,) = attentive_probe([x], y, [x], y, probe=probe, device="cpu")
        assert found.settings == ({"rate": 1e-3},)
        return
    with pytest.raises(ValueError, match=r"rates=1e\+30.*: training diverged; give smaller rates"):
        attentive_probe([x], y, [x], y, probe=probe, device="cpu")


def test_numbers_that_float32_does_not_hold_are_named() -> None:
    x, y = RANDOM.normal(size=(20, 4)), np.arange(20) % 2
    large = np.where(np.arange(20)[:, None] == 3, x * 1e200, x)
    said = r"features: 1 of 20 rows hold numbers above 3\.4e\+38, float32's largest \(the first is row 3\); scale"
    for measure in (partial(knn, x, y, k=[1]), partial(linear_probe, x, y)):
        with pytest.raises(ValueError, match=f"test {said}"):
            measure(large, y, device="cpu")
    with pytest.raises(ValueError, match=f"^{said}"):  # there is one side only
        structure(large, y)
    with pytest.raises(ValueError, match=r"^features have shape"):
        structure(y, y)
    with pytest.raises(ValueError, match=r"^20 rows of features but 19 labels"):
        structure(x, y[1:])


def test_rows_too_long_for_a_cosine_are_named() -> None:
    """Their length overflows in float32, so that all their cosines would be 0."""
    x, y = RANDOM.normal(size=(20, 4)).astype(np.float32) + 3, np.arange(20) % 2
    long = np.where(np.arange(20)[:, None] == 3, x * np.float32(1e25), x)
    said = r"features: 1 of 20 rows are longer than 1\.8e\+19, .*\(the first is row 3\); scale the features down"
    with pytest.raises(ValueError, match=f"train {said}"):
        knn(long, y, x, y, k=[1], device="cpu")
    with pytest.raises(ValueError, match=said):
        structure(long, y)
    with pytest.raises(ValueError, match=f"query {said}"):
        label_retrieval(Collection(x, None, y), Collection(long, None, y), bits=[4])
    scaled = x * np.float32(1e18)
    assert knn(scaled, y, scaled, y, k=[1], device="cpu").top1[1] == 100


def saved(file: Path, labels: NDArray[Any], features: NDArray[np.float64]) -> Path:
    np.savez(file, features=features, label=labels)
    return file


def test_names_that_look_like_numbers_are_the_names_of_the_other_side(tmp_path: Path) -> None:
    y, x = np.arange(9) % 3, RANDOM.normal(size=(9, 4))
    names = np.array(["1", "2", "x"])
    train = open_features(saved(tmp_path / "train.npz", names[y], x))
    test = open_features(saved(tmp_path / "test.npz", names[y[y < 2]], x[y < 2]))
    train, test = joined_classes([train, test])
    assert train.labels is not None and test.labels is not None  # noqa: PT018
    np.testing.assert_array_equal(train.labels[y < 2], test.labels)


def test_numbers_on_one_side_and_names_on_the_other_are_refused(tmp_path: Path) -> None:
    y, x = np.arange(9) % 3, RANDOM.normal(size=(9, 4))
    named = open_features(saved(tmp_path / "named.npz", np.array(["cat", "dog", "elk"])[y], x))
    numbered = open_features(saved(tmp_path / "numbered.npz", y, x))
    for sides in ([named, numbered], [numbered, named]):
        with pytest.raises(ValueError, match="numbered: the labels are numbers, for example 0, those of the other set"):
            joined_classes(sides)


def test_an_array_of_names_serves_as_labels_only_and_one_of_labels_not_as_features(tmp_path: Path) -> None:
    file = saved(tmp_path / "some.npz", np.array(["a", "b"]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"'label' is .* which cannot serve here; name another: features, label"):
        open_features(f"{file}#label")


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)


def test_weights_without_counters_of_steps_are_taken_by_name(tmp_path: Path) -> None:
    """A safetensors file is in alphabetical order, so that matching in order would exchange bias and weight."""
    source, target = Normed(), Normed()
    torch.nn.init.constant_(source.norm.weight, 4)
    torch.nn.init.constant_(source.norm.bias, -2)
    kept = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "norm.safetensors")
    assert "by name" in fill(target, tmp_path / "norm.safetensors")
    assert target.norm.weight.tolist() == [4] * 4
    assert target.norm.bias.tolist() == [-2] * 4


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 torn"])
def test_weights_that_cannot_be_read_are_named(ending: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"torn{ending}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"torn{ending} cannot be read"):
        state_dict(file)
