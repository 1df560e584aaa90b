"""Laws of mixed code sets: every image is drawn as often as its set's weight says, with its own label and bits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import MODEL, TOKENIZER, settings
from tiny_model import write_pictures

from bigr_repr.datasets import open_images
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.train.batches import batches
from bigr_repr.train.code_set import CodeSet, write_codes
from bigr_repr.train.generator import train_generator
from bigr_repr.train.mixture import CodeMixture, split_weight
from bigr_repr.train.run import open_training_data


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixed")
    torch.manual_seed(0)
    tokenizer = BinaryAutoencoder(TOKENIZER)
    for name, classes in {"a": ("cat", "dog"), "b": ("owl", "cat")}.items():
        for number, kind in enumerate(classes):
            write_pictures(root / name / kind, 2 + number, first=10 * number + 100 * (name == "b"))
        write_codes(open_images(root / name), tokenizer, root / f"codes-{name}", tokenizer_name="t", mirror=False)
    return {name: root / f"codes-{name}" for name in ("a", "b")}


def _rows(codes: CodeSet, epochs: int) -> list[bytes]:
    """All that is drawn in some epochs: the label's name and bits of each image."""
    stream = batches(codes, batch_size=len(codes), seed=0, first_step=0, image_size=32)
    found = []
    for _ in range(epochs):
        batch = next(stream)
        assert batch.codes is not None
        assert batch.labels is not None
        names = [codes.header.class_names[label] for label in batch.labels.tolist()]
        found += [name.encode() + bits.numpy().tobytes() for name, bits in zip(names, batch.codes, strict=True)]
    return found


@pytest.mark.parametrize(("weights", "epochs"), [((1, 1), 1), ((3, 1), 1), ((0.4, 2), 5), ((1.4, 1), 5)])
def test_each_image_is_drawn_by_its_sets_weight_with_its_own_label(
    places: dict[str, Path], weights: tuple[float, float], epochs: int
) -> None:
    sets = [CodeSet(places[name]) for name in ("a", "b")]
    drawn = Counter(_rows(CodeMixture(sets, weights), epochs))
    for each, weight in zip(sets, weights, strict=True):
        for row, count in Counter(_rows(each, 1)).items():
            assert drawn.pop(row) == round(weight * epochs) * count
    assert not drawn


def test_classes_are_joined_by_name(places: dict[str, Path]) -> None:
    mixed = open_training_data([f"{places['a']}:2", str(places["b"])])
    assert isinstance(mixed, CodeMixture)
    assert mixed.header.class_names == ("cat", "dog", "owl")
    assert len(mixed) == 2 * 5 + 5


def test_a_set_of_hardly_any_weight_has_a_draw_an_epoch(places: dict[str, Path]) -> None:
    mixed = CodeMixture([CodeSet(places[name]) for name in ("a", "b")], [0.01, 1])
    assert len(mixed) == 1 + 5
    drawn = mixed.numbers(np.arange(6), np.zeros(6, np.int64))
    assert (drawn < 5).tolist() == [True, False, False, False, False, False]


def test_classes_without_names_are_joined_by_number(places: dict[str, Path]) -> None:
    sets = [CodeSet(places[name]) for name in ("a", "b")]
    for each in sets:
        each.header = dataclasses.replace(each.header, class_names=())
    mixed = CodeMixture(sets, [1, 1])
    assert mixed.header.class_names == ("0", "1")
    assert mixed.labels is not None
    assert mixed.labels.tolist() == [label for each in sets for label in np.asarray(each.labels).tolist()]


def test_a_mixture_trains_and_resumes_exactly(places: dict[str, Path], tmp_path: Path) -> None:
    config = dataclasses.replace(MODEL, generator=dataclasses.replace(MODEL.generator, classes=3))
    mixed = CodeMixture([CodeSet(place) for place in places.values()], [1.5, 1])
    whole = train_generator(mixed, config, settings(tmp_path / "w", steps=6))
    train_generator(mixed, config, settings(tmp_path / "p", steps=4))
    parts = train_generator(mixed, config, settings(tmp_path / "p", steps=6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_sets_that_do_not_fit_are_named(places: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    images = open_images(places["a"].parent / "a")
    other = write_codes(images, BinaryAutoencoder(TOKENIZER), tmp_path / "other", tokenizer_name="t", mirror=False)
    with pytest.raises(ValueError, match=r"has tokenizer_sha256 .*; mix code sets of one tokenizer"):
        CodeMixture([CodeSet(places["a"]), other], [1, 1])
    with pytest.raises(ValueError, match=r"weights=\(1, 0\) must be above 0"):
        CodeMixture([CodeSet(places["a"]), CodeSet(places["b"])], [1, 0])
    with pytest.raises(ValueError, match="code sets and images cannot be mixed"):
        open_training_data([str(places["a"]), str(places["a"].parent / "a")])


def test_weights_are_read_off_the_end(tmp_path: Path) -> None:
    assert split_weight("runs/a:3") == ("runs/a", 3.0)
    assert split_weight("torchvision:CIFAR10:data") == ("torchvision:CIFAR10:data", 1.0)
    (tmp_path / "a:3").mkdir()
    assert split_weight(str(tmp_path / "a:3")) == (str(tmp_path / "a:3"), 1.0)
    assert np.isclose(split_weight("a:0.5")[1], 0.5)
