"""Laws of probes of several labels an image and of every pixel: what scikit-learn finds, and pixels where they lie."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from bigr_repr_cli.bench import app
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from tiny_model import write_pictures
from typer.testing import CliRunner

from bigr_repr.datasets import FolderSet
from bigr_repr.evaluate.data.multi_labels import read_multi_labels
from bigr_repr.evaluate.data.segments import SegmentSet, open_segments
from bigr_repr.evaluate.data.splits import Part
from bigr_repr.evaluate.probes import multi_label, segment
from bigr_repr.evaluate.probes.multi_label import mean_average_precision, multi_label_probe
from bigr_repr.evaluate.probes.segment import intersection_over_union, segment_probe
from bigr_repr.evaluate.representations.pixels import PixelRepresentation
from bigr_repr.evaluate.runs.cache import DIGESTS, FeatureCache
from bigr_repr.evaluate.runs.multi_label import bench_multi_label
from bigr_repr.evaluate.runs.segment import bench_segment
from bigr_repr.evaluate.runs.settings import BenchSettings

# ---- several labels


@pytest.fixture
def many() -> tuple[np.ndarray, ...]:
    """Features (120, 6) and (80, 6) with labels (n, 3); a few unknown."""
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 6)) * [1, 5, 1, 0.1, 1, 1] + 3
    y = ((x - 3) @ random.normal(size=(6, 3)) + random.normal(size=(200, 3)) > 1).astype(np.int8)
    y[::17, 1] = -1
    return x[:120], y[:120], x[120:], y[120:]


def test_each_class_is_fitted_as_scikit_learn_does(many: tuple[np.ndarray, ...]) -> None:
    x, y, z, truth = many
    found = multi_label_probe(x, y, z, truth, grid=[0.3], device="cpu")
    mean, deviation = x.mean(0), x.std(0)
    for column in range(3):
        known, shown = y[:, column] >= 0, truth[:, column] >= 0
        fitted = LogisticRegression(C=0.3, tol=1e-10, max_iter=5000)
        fitted.fit(((x - mean) / deviation)[known], y[known, column])
        scores = fitted.decision_function((z - mean) / deviation)[shown]
        expected = 100 * average_precision_score(truth[shown, column], scores)
        assert found.by_class[column] == pytest.approx(expected, abs=1e-6)
    assert found.map == pytest.approx(np.mean(found.by_class))
    assert found.interval[0] <= found.map <= found.interval[1]
    assert (found.C, found.held_out_map, found.edge) == (0.3, None, None)


@pytest.mark.slow
def test_c_is_chosen_without_the_test_images(many: tuple[np.ndarray, ...]) -> None:
    x, y, z, truth = many
    found, other = (
        multi_label_probe(x, y, z, labels, grid=[1e-3, 0.1, 10], device="cpu") for labels in (truth, 1 - truth.clip(0))
    )
    assert (found.C, found.held_out_map) == (other.C, other.held_out_map)
    assert found.held_out_map is not None
    edge = multi_label_probe(x, y, z, truth, grid=[1e-3, 10], device="cpu").edge
    assert edge is not None
    assert "of its grid" in edge


def test_c_is_the_best_of_its_grid_on_a_held_out_fifth(
    many: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, z, truth = many
    asked: list[tuple[int, int, float]] = []
    values = {0.1: 0.2, 1.0: 0.9, 10.0: 0.5}

    def scores(x: np.ndarray, labels: np.ndarray, z: np.ndarray, c: float, place: object) -> np.ndarray:
        asked.append((len(x), len(z), c))
        return np.full((len(z), 3), c)

    monkeypatch.setattr(multi_label, "_scores", scores)
    monkeypatch.setattr(multi_label, "_interval", lambda scores, labels: (0.0, 1.0))
    monkeypatch.setattr(
        multi_label, "mean_average_precision", lambda scores, labels: (values[float(scores[0, 0])], (1.0, None, 0.0))
    )
    found = multi_label_probe(x, y, z, truth, grid=[10.0, 0.1, 1.0], seed=2, device="cpu")
    assert asked == [(96, 24, 0.1), (96, 24, 1.0), (96, 24, 10.0), (120, 80, 1.0)]
    assert (found.C, found.held_out_map, found.edge, found.map) == (1.0, 0.9, None, 0.9)
    assert (found.n_train, found.n_test, found.n_features) == (120, 80, 6)
    assert "C from 3 values by mAP on a held-out fifth; fitted on all 120 training images" in found.protocol
    values[10.0] = 1.0
    assert (
        multi_label_probe(x, y, z, truth, grid=[10.0, 0.1], device="cpu").edge == "C=10 is the largest of its grid of 2"
    )
    values[0.1] = 2.0
    smallest = multi_label_probe(x, y, z, truth, grid=[10.0, 0.1], device="cpu").edge
    assert smallest == "C=0.1 is the smallest of its grid of 2"
    values[0.1] = 1.0  # no better than its neighbor
    tied = multi_label_probe(x, y, z, truth, grid=[10.0, 0.1], device="cpu").edge
    assert tied == "C=0.1 is the smallest of its grid of 2, and no better than 10 beside it"
    asked.clear()
    assert multi_label_probe(x, y, z, truth, grid=[1.0, 1.0], device="cpu").held_out_map is None
    assert asked == [(120, 80, 1.0)]
    with pytest.raises(ValueError, match="1 training images are too few to hold any out; pass a single C"):
        multi_label_probe(x[:1], np.ones((1, 3), np.int8), z, truth, grid=[1.0, 2.0], device="cpu")


@pytest.mark.parametrize(
    ("rows", "labels", "grid", "said"),
    [
        (119, 120, [1.0], r"train features and labels have shapes \(119, 6\) and \(120, 3\)"),
        (120, 120, [], r"C=\(\) must be above 0"), (120, 120, [0.0, 1.0], "must be above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(
    rows: int, labels: int, grid: list[float], said: str, many: tuple[np.ndarray, ...]
) -> None:
    x, y, z, truth = many
    with pytest.raises(ValueError, match=said):
        multi_label_probe(x[:rows], y[:labels], z, truth, grid=grid, device="cpu")
    odd = z.copy()
    odd[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"test features: 1 of 80 rows are not finite \(the first is row 7\)"):
        multi_label_probe(x, y, odd, truth, device="cpu")
    with pytest.raises(ValueError, match="train features have 6 columns and test features 4; use the same model"):
        multi_label_probe(x, y, z[:, :4], truth, device="cpu")
    none = y.copy()
    none[:, 2] = 0
    with pytest.raises(ValueError, match="class 2 has no training image; leave it out"):
        multi_label_probe(x, none, z, truth, grid=[1.0], device="cpu")


def test_classes_that_no_test_image_has_are_not_counted() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.3]])
    value, by_class = mean_average_precision(scores, np.array([[1, 0], [0, 0], [0, -1]], np.int8))
    assert (value, by_class) == (100.0, (100.0, None))
    with pytest.raises(ValueError, match="no test image"):
        mean_average_precision(scores, np.zeros((3, 2), np.int8))


def test_labels_are_names_or_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat, dog\n\nowl\n")
    (tmp_path / "b.txt").write_text("dog\ncat\n")
    train, test = read_multi_labels((tmp_path / "a.txt", tmp_path / "b.txt"))
    assert train.class_names == ("cat", "dog", "owl")
    assert train.values.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert test.values.tolist() == [[0, 1, 0], [1, 0, 0]]
    (tmp_path / "b.txt").write_text("dog\nbat\n")
    with pytest.raises(ValueError, match="names 'bat', which no training image has"):
        read_multi_labels((tmp_path / "a.txt", tmp_path / "b.txt"))
    np.save(tmp_path / "a.npy", np.array([[1, -2], [0, 1]]))
    np.savez(tmp_path / "b.npz", labels=np.array([[True, False]]))
    train, test = read_multi_labels((tmp_path / "a.npy", tmp_path / "b.npz"))
    assert train.values.tolist() == [[1, -1], [0, 1]]
    assert test.values.tolist() == [[1, 0]]
    np.save(tmp_path / "a.npy", np.array([[2, 0]]))
    with pytest.raises(ValueError, match="a label is 2"):
        read_multi_labels((tmp_path / "a.npy", tmp_path / "b.npz"))


def test_a_command_measures_images_with_several_labels(tmp_path: Path) -> None:
    for side, count in (("train", 12), ("test", 8)):
        write_pictures(tmp_path / side, count, first=count)
        lines = [("red,blue", "red", "blue", "")[number % 4] for number in range(count)]
        (tmp_path / f"{side}.txt").write_text("\n".join(lines) + "\n")
    arguments = ["multi-label", "--model", "pixels:8", "--images", str(tmp_path / "train"), "--device", "cpu"]
    arguments += ["--labels", str(tmp_path / "train.txt"), "--test-images", str(tmp_path / "test")]
    arguments += ["--test-labels", str(tmp_path / "test.txt"), "--cache", str(tmp_path / "cache")]
    found = CliRunner().invoke(app, [*arguments, "--C", "1", "--json"])
    assert found.exit_code == 0, found.output
    row = json.loads(found.stdout)["rows"][0]
    assert (row["n_train"], row["n_test"], row["C"], len(row["by_class"])) == (12, 8, 1.0, 2)
    (tmp_path / "test.txt").write_text("red\n")
    assert "8 images and" in str(CliRunner().invoke(app, arguments).exception)


# ---- every pixel


def _folder(place: Path, counts: tuple[int, int] = (10, 6)) -> Path:
    """Pictures 48 x 32 of a bright left or right half, whose mask is 1 there, 2 in a corner and 255 in the other."""
    random = np.random.default_rng(0)
    for side, count in zip(("train", "test"), counts, strict=True):
        for kind in ("images", "masks"):
            (place / side / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            mask = np.zeros((32, 48), np.uint8)
            mask[:, slice(24) if number % 2 else slice(24, 48)] = 1
            picture = random.integers(0, 60, (32, 48, 3)) + 150 * mask[..., None]
            mask[:4, 8:12] = 255
            Image.fromarray(picture.astype(np.uint8)).save(place / side / "images" / f"{number}.jpg", quality=95)
            Image.fromarray(mask).save(place / side / "masks" / f"{number}.png")
    return place


def test_masks_lie_where_their_pictures_do(tmp_path: Path) -> None:
    train, test = open_segments(_folder(tmp_path))
    assert (len(train), len(test)) == (10, 6)
    for index in range(3):
        shown, mask = np.asarray(train.load(index)), train.mask(index, 32)
        assert shown.shape == (32, 32, 3)
        assert ((shown.mean(axis=2) > 100) == (mask == 1))[mask != 255].all()
    middle = train.mask(0, 16, 0.5)
    np.testing.assert_array_equal(middle, train.mask(0, 32)[8:24, 8:24])


def test_a_head_that_sees_the_classes_finds_every_pixel() -> None:
    random = np.random.default_rng(0)
    masks = np.repeat(np.repeat(random.integers(0, 3, (20, 4, 4)), 8, 1), 8, 2).astype(np.uint8)
    masks[:, :8, :8] = 255
    tokens = np.eye(3)[masks[:, ::8, ::8].clip(0, 2)].reshape(20, 16, 3) + random.normal(size=(20, 16, 3)) * 0.01
    found = segment_probe(tokens[:14], masks[:14], tokens[14:], masks[14:], grid=[100.0], device="cpu")
    assert found.grid == (4, 4)
    assert found.miou > 60  # bilinear logits round the corners of cells
    shuffled = segment_probe(tokens[:14], masks[:14], tokens[14:][::-1], masks[14:], grid=[100.0], device="cpu")
    assert found.miou > shuffled.miou + 20
    assert found.interval[0] <= found.miou <= found.interval[1]
    with pytest.raises(ValueError, match="h \\* h"):
        segment_probe(tokens[:14, :15], masks[:14], tokens[14:, :15], masks[14:])
    with pytest.raises(ValueError, match="1 training images are too few to hold any out; pass a single C"):
        segment_probe(tokens[:1], masks[:1], tokens[14:], masks[14:], device="cpu")
    with pytest.raises(ValueError, match="train features have 48 columns and test features 32"):
        segment_probe(tokens[:14], masks[:14], tokens[14:, :, :2], masks[14:], device="cpu")
    tokens[15, 3, 1] = np.nan
    with pytest.raises(ValueError, match=r"test features: 1 of 6 rows are not finite \(the first is row 1\)"):
        segment_probe(tokens[:14], masks[:14], tokens[14:], masks[14:], device="cpu")


@pytest.mark.parametrize(
    ("scores", "edge"),
    [
        ((0.2, 0.5), "C=1 is the largest of its grid of 2"),
        ((0.5, 0.5), "C=0.1 is the smallest of its grid of 2, and no better than 1 beside it"),
    ],
)
def test_a_head_notes_the_edge_of_its_grid_as_all_probes_do(
    scores: tuple[float, float], edge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = dict(zip((0.1, 1.0), scores, strict=True))
    monkeypatch.setattr(segment._Fitter, "tried", lambda *arguments: tried)
    masks = np.arange(2, dtype=np.uint8).repeat(8).reshape(1, 4, 4).repeat(3, 0)
    tokens = np.random.default_rng(0).normal(size=(3, 16, 2))
    found = segment_probe(tokens, masks, tokens, masks, grid=[1.0, 0.1], device="cpu")
    assert (found.edge, found.held_out_miou) == (edge, 0.5)


def test_miou_counts_classes_that_are_predicted_or_true() -> None:
    value, by_class = intersection_over_union(np.array([[6, 0, 0, 0], [8, 2, 0, 0], [6, 0, 4, 0]]))
    assert by_class == {0: 75.0, 1: 0.0, 2: 0.0}
    assert value == 25.0


def test_a_representation_is_measured_by_its_tokens(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "data")
    (folder / "classes.txt").write_text("dark\nbright\n")
    settings = BenchSettings(cache=tmp_path / "cache", device="cpu")
    (row,) = bench_segment("timm:test_vit?random", folder, settings, layers=[1], side=32, limit=8)
    assert (row.probe.n_train, row.probe.n_test, row.view.layer) == (8, 6, 1)
    assert row.probe.miou > 60
    assert set(row.probe.iou_by_class) == {0, 1}
    arguments = ["segment", "--data", str(folder), "--model", "timm:test_vit?random", "--layer", "1", "--side", "32"]
    arguments += ["--cache", str(tmp_path / "cache"), "--device", "cpu", "--C", "0.01"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0, said.output
    assert "bright:" in said.output


def test_tokens_of_any_tool_are_measured_as_a_models(tmp_path: Path) -> None:
    folder, random = _folder(tmp_path / "data"), np.random.default_rng(0)
    files = []
    for side in open_segments(folder):
        classes = np.stack([side.mask(number, 32)[3::8, 3::8] == 1 for number in range(len(side))])
        tokens = classes.reshape(len(side), 16, 1) + random.normal(size=(len(side), 16, 3)) * 0.01
        files.append(tmp_path / f"{len(side)}.npy")
        np.save(files[-1], tokens)
    settings = BenchSettings(cache=tmp_path / "cache", device="cpu", C=(1.0,))
    (row,) = bench_segment(None, folder, settings, side=32, limit=8, features=(files[0], files[1]))
    assert (row.representation, row.probe.n_train, row.probe.grid) == ("10", 8, (4, 4))
    assert row.probe.miou > 90
    arguments = ["segment", "--data", str(folder), "--side", "32", "--C", "1", "--features", str(files[0]), "--json"]
    found = CliRunner().invoke(app, [*arguments, "--test-features", str(files[1]), "--limit", "8"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["rows"][0]["miou"] == row.probe.miou
    assert "give both, or neither" in CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments).output
    with pytest.raises(ValueError, match=r"6\.npy holds 6 rows; train has 10 images"):
        bench_segment(None, folder, settings, features=(files[1], files[0]))


def test_cropped_pictures_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    """The dense probe sees middle squares of the files that other probes see whole."""
    folder, pixels = _folder(tmp_path / "data", (2, 2)), PixelRepresentation("pixels:8", "8")
    cache, found = FeatureCache(tmp_path / "cache"), []
    for source in (SegmentSet(folder / "train"), FolderSet(folder / "train" / "images")):
        part = Part(name="x", source=source, rows=np.arange(2), labels=np.zeros(2, np.int64))
        found.append(cache.get(pixels, part, [DIGESTS])[DIGESTS])
    assert not (found[0] == found[1]).all(axis=1).any()


def test_values_at_the_edge_of_their_grid_are_logged_by_layer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forms for programs have no lines below the table."""
    for module in (segment, multi_label):
        monkeypatch.setattr(module, "edge_of", lambda name, chosen, *rest: f"{name}={chosen:g} is an edge")
    settings, folder = BenchSettings(cache=tmp_path / "cache", device="cpu", C=(0.1, 1.0)), _folder(tmp_path / "data")
    bench_segment("timm:test_vit?random", folder, settings, layers=[1], side=32)
    files, labels = (str(folder / "train" / "images"), str(folder / "test" / "images")), []
    for count in (10, 6):
        np.save(tmp_path / f"{count}.npy", np.arange(2 * count).reshape(count, 2) % 3 % 2)
        labels.append(tmp_path / f"{count}.npy")
    bench_multi_label("pixels:4", files, (labels[0], labels[1]), settings)
    for where in ("layer 1", "pixels"):
        assert re.search(rf"{where}: C=\S+ is an edge; a better one may lie beyond", caplog.text)


def test_folders_that_lack_something_say_what(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="needs the folders train and test"):
        open_segments(tmp_path)
    folder = _folder(tmp_path / "data", (2, 2))
    Image.new("RGB", (48, 32)).save(folder / "train" / "masks" / "0.png")
    with pytest.raises(ValueError, match="has mode RGB"):
        SegmentSet(folder / "train").mask(0, 8)
    Image.new("L", (40, 32)).save(folder / "train" / "masks" / "0.png")
    with pytest.raises(ValueError, match="is 40 x 32, its picture 48 x 32"):
        SegmentSet(folder / "train").mask(0, 8)
    (folder / "train" / "masks" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 masks, such as 0\.png"):
        SegmentSet(folder / "train")
