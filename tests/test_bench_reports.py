"""Laws of reports and plots: what is written and drawn is what was measured, number for number."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bigr_repr_cli.bench import app
from numpy.typing import NDArray
from PIL import Image
from tiny_model import tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.evaluate.data.splits import BenchData, Part, open_data
from bigr_repr.evaluate.probes.attentive import AttentiveProbe
from bigr_repr.evaluate.probes.knn import knn
from bigr_repr.evaluate.probes.linear_probe import linear_probe
from bigr_repr.evaluate.reports import drawings, plots, report, tables
from bigr_repr.evaluate.reports.drawings import draw_cka, draw_confusion, draw_map, draw_neighbors
from bigr_repr.evaluate.reports.inspection import cka, confusion, plane
from bigr_repr.evaluate.representations.hidden import Hidden
from bigr_repr.evaluate.runs import attention
from bigr_repr.evaluate.runs import suite as suite_module
from bigr_repr.evaluate.runs.attention import bench_attentive
from bigr_repr.evaluate.runs.bench import bench, bench_retrieval
from bigr_repr.evaluate.runs.extraction import extract_together, features_of
from bigr_repr.evaluate.runs.few_shot import bench_clusters, bench_few_shot
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.images.decode import center_crop


def _record(dataset: str, representation: str, layer: int | None, top1: float, **other: Any) -> dict[str, Any]:
    """What `bench` records of a layer; of a sweep, the held-out part likes the later one of two equal layers less."""
    probe = {
        "top1": top1, "interval": [top1 - 2, top1 + 3], "top5": top1 + 20, "mean_per_class": top1 - 1,
        "held_out_top1": top1 - 5, "protocol": "logreg", "seeds": [0, 1], "seed_interval": None,
    }  # fmt: skip
    return {
        "dataset": dataset, "representation": representation, "layer": layer, "features": f"layer-{layer}",
        "linear_probe": probe | other.pop("probe", {}),
        "knn": {
            "top1": {"20": top1 - 10, "100": top1 - 12, "5": top1 - 8}, "protocol": "cosine",
            "interval": {"20": [top1 - 11, top1], "100": [top1 - 13, top1], "5": [top1 - 9, top1 - 6]},
        },
        "train": {"images": 1200, "of": 50_000, "drawn": "stratified, seed 0", "classes": 10},
        "test": {"images": 300, "split": "a fifth", "classes": 9}, "test_images_in_train": 0,
        "model": {"model": representation, "model_sha256": f"{representation}-sum"},
        "machine": {"cores": 2, "cpu": "AMD EPYC", "gpu": None, "torch": "2"}, "version": "1.0", **other,
    }  # fmt: skip


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Of two data sets: a sweep whose second layer is the best, and a representation without blocks."""
    sweep = [_record("d", "net", layer, top1) for layer, top1 in ((1, 60.0), (2, 70.0), (3, 65.0))]
    joined = _record("d", "joined", None, 72.0) | {"features": "layer-4+layer-12"}
    return [*sweep, joined, _record("e", "net", 2, 41.0), _record("e", "pixels", None, 31.0)]


# ---- reports


def test_a_table_has_a_line_for_each_data_set_and_representation(records: list[dict[str, Any]]) -> None:
    assert report.markdown_table(records).splitlines() == [
        "| data set | representation | layer | probe ± 95 % | top-5 | 5-NN |",
        "|---|---|---:|---:|---:|---:|",
        "| d | net | 2 | 70.0 ± 2.5 | 90.0 | 62.0 |",
        "| d | joined | 4+12 | 72.0 ± 2.5 | 92.0 | 64.0 |",
        "| e | net | 2 | 41.0 ± 2.5 | 61.0 | 33.0 |",
        "| e | pixels |  | 31.0 ± 2.5 | 51.0 | 23.0 |",
    ]


def test_every_form_has_the_same_lines(records: list[dict[str, Any]]) -> None:
    lines = list(csv.DictReader(io.StringIO(report.csv_table(records))))
    assert lines[0] == {
        "dataset": "d", "representation": "net", "layer": "2", "top1": "70.0", "low": "68.0", "high": "73.0",
        "top5": "90.0", "knn5": "62.0", "mean_per_class": "69.0",
    }  # fmt: skip
    assert [line["representation"] for line in lines] == ["net", "joined", "net", "pixels"]
    latex = report.latex_table(records)
    assert r"d & net & 2 & 70.0 $\pm$ 2.5 & 90.0 & 62.0 \\" in latex
    assert r"\begin{tabular}{llrrrr}" in latex


def test_what_a_model_has_seen_is_marked_and_explained(records: list[dict[str, Any]]) -> None:
    assert "†" not in report.markdown_table(records)
    records[4]["trained_on"] = "e, 500 images"
    text = report.markdown_table(records)
    assert "| e | net † | 2 |" in text
    assert "| d | net | 2 |" in text
    assert text.endswith("\n\n† trained on images of this data set, as its training record says")
    assert "† net on e: e, 500 images." in report._provenance(records)


def test_a_sweep_marks_the_layer_that_was_chosen(records: list[dict[str, Any]]) -> None:
    (sweep,) = report._sweeps(records)
    assert sweep.title == "net on d"
    assert sweep.head == ["layer", "probe", "95 %", "top-5", "20-NN", "100-NN", "5-NN"]
    assert [line[0] for line in sweep.lines] == ["1", "2 ←", "3"]
    assert sweep.lines[1][1:] == ["70.00", "68.0..73.0", "90.00", "60.00", "58.00", "62.00"]


def test_a_report_says_how_its_figures_came_about(records: list[dict[str, Any]]) -> None:
    said = report._provenance(records)
    assert len(said) == len(set(said))
    assert said[0] == (
        "d: 1,200 of 50,000 (stratified, seed 0) images of 10 classes to train on, "
        "300 (a fifth) images of 9 classes to test on."
    )
    assert "Linear probe, d: logreg; seeds 0, 1." in said
    assert "Neighbors: cosine." in said
    assert "net: net, SHA-256 net-sum." in said
    assert "Measured on 2 cores of AMD EPYC, GPU none, torch 2, bigr-repr 1.0." in said
    assert not [line for line in said if "test images are training images" in line or "better one" in line]


def test_a_report_admits_what_weakens_its_figures(records: list[dict[str, Any]]) -> None:
    records[1]["linear_probe"] |= {"edges": ["C=10 is the largest"], "seed_interval": [69.04, 71.0]}
    records[1]["layer_chosen_by"] = {"layer": 2, "images": 12_000}
    records[0]["linear_probe"]["edges"] = ["of a layer that was not chosen"]
    records[4] |= {"test_images_in_train": 7, "machine": records[4]["machine"] | {"gpu": "H200"}}
    records[5]["model"] |= {"weights_seed": 3}
    records[4]["model"] |= {"checkpoint": "w.pth: 3 tensors in order (a → b), 2 left over"}
    said = report._provenance(records)
    assert "net on d: C=10 is the largest; a better one may lie beyond." in said
    assert "net on d: 69.0..71.0 is 95 % of the mean over seeds, by Student's t." in said
    assert "net on d: layer 2 is that of a sweep over 12,000 images." in said
    assert not any("not chosen" in line for line in said)
    assert "e: 7 test images are training images too." in said
    assert "pixels: pixels, SHA-256 pixels-sum, weights drawn with seed 3." in said
    assert any("GPU H200" in line for line in said)
    assert any("weights of w.pth: 3 tensors in order (a → b), 2 left over" in line for line in said)
    records[5]["model"]["model_sha256"] = None
    assert not any("pixels-sum" in line for line in report._provenance(records))


def test_a_report_is_six_files_or_seven_with_a_sweep(records: list[dict[str, Any]], tmp_path: Path) -> None:
    kinds = ["x.json", "x.csv", "x.tex", "x.md", "x.html"]
    written = report.write_reports("x", records, tmp_path / "new" / "all")
    assert [path.name for path in written] == ["x-accuracy.png", "x-layers.png", *kinds]
    assert json.loads(written[2].read_text()) == {"name": "x", "rows": records}
    text = written[5].read_text()
    assert text.startswith("# x\n\n| data set |")
    assert "![x-accuracy.png](x-accuracy.png)\n\n![x-layers.png](x-layers.png)\n\n## net on d\n\n| layer |" in text
    assert written[6].read_text().count("data:image/png;base64,") == 2
    assert [path.name for path in report.write_reports("x", records[3:], tmp_path)] == ["x-accuracy.png", *kinds]


def test_a_bar_in_a_name_does_not_break_the_table(records: list[dict[str, Any]]) -> None:
    assert "| d | a\\|b |" in report.markdown_table([_record("d", "a|b", 1, 50.0)])
    assert report._markdown_lines(["h|", "n"], [["w", "1"]]) == "| h\\| | n |\n|---|---:|\n| w | 1 |"


def test_a_terminal_of_80_columns_shows_every_number(
    records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "timm:vit_small_patch16_224.dino?checkpoint=/data/weights/dino_deitsmall16_pretrain.pth"
    records += [_record("tiny-imagenet → cifar10", long, 12, 87.0, trained_on="x")]
    plan = SimpleNamespace(name="s", limited=lambda *given: plan)
    monkeypatch.setattr(suite_module, "read_suite", lambda *given, **named: plan)
    monkeypatch.setattr(suite_module, "run_suite", lambda *given: records)
    monkeypatch.setattr(report, "write_reports", lambda *given: [tmp_path / "s.md"])
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["suite", "s.yaml", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "d"
    assert lines[2].split() == ["net", "2", "70.0", "±", "2.5", "90.0", "62.0"]
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-5].split()[-5:] == ["87.0", "±", "2.5", "107.0", "79.0"]
    assert "".join(line.split(" ")[0] for line in lines[-5:-3]) == long
    assert lines[-2] == "† trained on images of this data set, as its training record says"
    assert lines[-1] == f"reports: {tmp_path}/s.md"


# ---- plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Figures, as they would be saved."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    yield figures
    plots.pyplot().close("all")


def test_bars_are_as_long_as_their_accuracy_and_stand_by_their_name(
    records: list[dict[str, Any]], drawn: list[Any]
) -> None:
    plots.plot_bars([records[1], *records[3:]], "x.png")
    left, right = drawn[0].axes
    assert [pane.get_title() for pane in (left, right)] == ["d", "e"]
    assert [each.get_text() for each in left.get_yticklabels()] == ["net", "joined", "pixels"]
    for pane, bars, widest in ((left, {0: 70.0, 1: 72.0}, 75), (right, {0: 41.0, 2: 31.0}, 44)):
        found = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in pane.patches}
        assert found == bars
        assert pane.get_xlim() == pytest.approx((0, 1.2 * widest))
        (whiskers,) = [each for each in pane.collections if hasattr(each, "get_segments")]
        ends = {int(part[0, 1]): part[:, 0].tolist() for part in whiskers.get_segments()}
        assert ends == {place: [value - 2, value + 3] for place, value in bars.items()}
        assert [(each.get_text().strip(), each.get_position()) for each in pane.texts] == [
            (f"{value:.1f}", (value + 3, place)) for place, value in bars.items()
        ]
    colors = [{bar.get_y(): bar.get_facecolor() for bar in pane.patches} for pane in (left, right)]
    assert colors[0][left.patches[0].get_y()] == colors[1][left.patches[0].get_y()]  # of one representation
    assert left.patches[0].get_facecolor() != left.patches[1].get_facecolor()
    assert left.yaxis_inverted()


def test_sweeps_are_lines_and_what_has_no_blocks_is_a_level(records: list[dict[str, Any]], drawn: list[Any]) -> None:
    records[0]["layer"], records[1]["layer"] = records[1]["layer"], records[0]["layer"]
    plots.plot_sweeps(records, "x.png")
    left, right = drawn[0].axes
    assert [(pane.get_title(), pane.get_xlabel()) for pane in (left, right)] == [("d", "block"), ("e", "block")]
    lines = {line.get_label(): line for line in left.get_lines()}
    assert lines["net, linear probe"].get_xdata().tolist() == [1, 2, 3]  # whatever the order of the records
    assert lines["net, linear probe"].get_ydata().tolist() == [70, 60, 65]
    assert lines["net, 5-NN"].get_ydata().tolist() == [62, 52, 57]
    assert (lines["net, linear probe"].get_linestyle(), lines["net, 5-NN"].get_linestyle()) == ("-", ":")
    assert list(lines["joined, linear probe"].get_ydata()) == [72, 72]
    assert lines["joined, linear probe"].get_color() != lines["net, linear probe"].get_color()
    (mark,) = [line for line in left.get_lines() if line.get_fillstyle() == "none"]
    assert (mark.get_xdata().tolist(), mark.get_ydata().tolist()) == ([1], [70])
    band = left.collections[0].get_paths()[0].vertices
    assert (band[band[:, 0] == 2, 1].min(), band[band[:, 0] == 2, 1].max()) == (58, 63)
    below = left.collections[1].get_paths()[0].vertices
    assert (below[below[:, 0] == 2, 1].min(), below[below[:, 0] == 2, 1].max()) == (51, 54)
    assert len(left.collections) == 2
    assert {line.get_label(): list(line.get_ydata()) for line in right.get_lines()}["pixels, 5-NN"] == [23, 23]
    legend = [each.get_text() for each in drawn[0].legends[0].get_texts()]
    assert len(legend) == len(set(legend)) == 8
    assert {"chosen on held-out images", "95 %", "pixels, linear probe"} < set(legend)


def test_nothing_is_marked_where_nothing_was_held_out(records: list[dict[str, Any]], drawn: list[Any]) -> None:
    records[1]["linear_probe"]["held_out_top1"] = None
    records[2]["knn"] = None
    plots.plot_sweeps(records[:3], "x.png")
    assert [line for line in drawn[0].axes[0].get_lines() if line.get_fillstyle() == "none"] == []
    lines = {line.get_label(): line.get_xdata().tolist() for line in drawn[0].axes[0].get_lines()}
    assert lines == {"net, linear probe": [1, 2, 3], "net, 5-NN": [1, 2]}


def test_a_map_has_every_point_in_the_color_of_its_class(drawn: list[Any]) -> None:
    points, labels = np.arange(24.0).reshape(12, 2), np.array([0, 2, 5] * 4)
    plots.plot_map(points, labels, ["a", "b", "c"], "title", "x.png")
    (pane,) = drawn[0].axes
    assert (pane.get_title(), len(pane.get_xticks()), len(pane.get_yticks())) == ("title", 0, 0)
    assert [each.get_label() for each in pane.collections] == ["a", "c", "5"]
    assert [each.get_text() for each in pane.get_legend().get_texts()] == ["a", "c", "5"]
    for label, shown in zip((0, 2, 5), pane.collections, strict=True):
        assert np.array_equal(shown.get_offsets(), points[labels == label])
    assert len({tuple(each.get_facecolor()[0]) for each in pane.collections}) == 3


@pytest.mark.parametrize(("classes", "columns"), [(30, 1), (31, 2), (200, 7), (201, 0)])
def test_a_legend_names_up_to_200_classes(classes: int, columns: int, drawn: list[Any]) -> None:
    plots.plot_map(np.zeros((classes, 2)), np.arange(classes), [], "", "x.png")
    legend = drawn[0].axes[0].get_legend()
    assert (legend._ncols if legend else 0) == columns


@pytest.mark.parametrize("letters", [3, 30, 90])
def test_a_map_keeps_its_size_beside_names_of_any_length(letters: int, drawn: list[Any]) -> None:
    names = [str(number).rjust(letters, "x") for number in range(200)]
    title = "a title of more letters than a line above the map has room for, so that it takes two"
    plots.plot_map(np.zeros((200, 2)), np.arange(200), names, title, "x.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    (pane,), whole = figure.axes, figure.bbox
    assert pane.bbox.width / figure.dpi > 4.8
    for part in (pane.title, pane.get_legend()):
        box = part.get_window_extent()
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1 + 1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1 + 1
    assert max(len(each.get_text()) for each in pane.get_legend().get_texts()) == min(letters, 40)


def test_a_dollar_in_a_name_begins_no_formula(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    odd = r"$\x$"
    plots.plot_map(np.zeros((2, 2)), np.arange(2), [odd, "b"], odd, tmp_path / "map.png")
    plots.plot_matrix(np.eye(2), [odd] * 2, [odd] * 2, tmp_path / "m.svg", title=odd, labels=(odd, odd), span=(0, 1))
    hostile = [{**record, "dataset": odd, "representation": f"{odd} {record['representation']}"} for record in records]
    plots.plot_bars([{**hostile[0], "representation": odd}], tmp_path / "bars.png")
    plots.plot_sweeps(hostile, tmp_path / "sweeps.png")


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.ones((20, 8)), "features are the same for every image, which makes no map"),
        (np.full((20, 8), 0.1, np.float32), "features are the same for every image"),  # their mean is another number
        (np.arange(20.0)[:, None], "features have 1 column; a map needs at least 2"),
        (np.arange(40.0).reshape(20, 2) * 1e30, "20 rows are longer than .*; scale the features down"),
    ],
)
def test_what_makes_no_map_is_named(method: str, features: NDArray[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plane(features, method)


def test_features_too_large_for_cka_are_named() -> None:
    features = np.arange(40.0).reshape(20, 2) * 1e15
    with pytest.raises(ValueError, match="features are too large: products of float32 overflow; scale them down"):
        cka(features, features)


def test_latex_has_no_character_that_it_reads_otherwise() -> None:
    text = tables.as_latex([["a|b", "<c>"], ["50 %", "d_e"]])
    assert r"a\textbar{}b & \textless{}c\textgreater{} \\" in text
    assert r"50 \% & d\_e \\" in text


@pytest.mark.parametrize(
    ("size", "width", "font", "numbers"),
    [(3, 4.8, 7, 9), (16, 7.92, 7, 256), (17, 8.24, 7, 0), (40, 15.6, 7, 0), (41, 13.31, 5, 0), (201, 30.8, 0, 0)],
)
def test_a_matrix_grows_with_its_classes(size: int, width: float, font: int, numbers: int, drawn: list[Any]) -> None:
    names = list(map(str, range(size)))
    plots.plot_matrix(np.eye(size), names, names, "x.png", title="t", labels=("r", "c"), span=(0, 1))
    pane = drawn[0].axes[0]
    assert drawn[0].get_size_inches().tolist() == pytest.approx([width, width - 0.8])
    assert (pane.get_title(), pane.get_ylabel(), pane.get_xlabel()) == ("t", "r", "c")
    assert [each.get_fontsize() for each in pane.get_yticklabels()[:size] if font] == [font] * (size if font else 0)
    assert len(pane.texts) == numbers
    assert pane.images[0].get_clim() == (0, 1)
    if numbers:  # by columns and rows, legible on either color
        places = {each.get_position(): each for each in pane.texts}
        assert (places[1, 1].get_text(), places[1, 1].get_color()) == ("1.00", "k")
        assert (places[2, 1].get_text(), places[2, 1].get_color()) == ("0.00", "w")


def test_figures_are_whole_files_of_two_kinds(tmp_path: Path) -> None:
    figure = plots.pyplot().figure(figsize=(1, 1))
    with pytest.raises(ValueError, match=r"plots are \.png or \.svg files"):
        plots.save_figure(figure, tmp_path / "x.gif")
    plots.save_figure(figure, tmp_path / "x.PNG")
    with Image.open(tmp_path / "x.PNG") as image:
        assert image.size == (120, 120)
    assert plots.pyplot().get_fignums() == []
    plots.save_figure(plots.pyplot().figure(figsize=(1, 1)), tmp_path / "x.svg")
    assert "<svg" in (tmp_path / "x.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.PNG", "x.svg"]


# ---- drawings


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> BenchData:
    """Class folders a and b, 6 training and 3 test pictures each."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate("ab"):
        write_pictures(root / "train" / name, 6, first=100 * number)
        write_pictures(root / "test" / name, 3, first=100 * number + 50)
    return open_data(str(root))


@pytest.fixture
def settings(tmp_path: Path) -> BenchSettings:
    return BenchSettings(cache=tmp_path / "cache", k=(1, 3), workers=1, device="cpu", C=(1.0,), seeds=(3,))


def _pixels(part: Part, side: int) -> NDArray[np.float64]:
    images = [drawings._loader(part)(place) for place in range(len(part))]
    return np.stack([np.asarray(center_crop(image, side), np.float64).ravel() for image in images])


def test_a_map_shows_the_test_images(photos: BenchData, settings: BenchSettings, drawn: list[Any]) -> None:
    told: list[tuple[str, int, int]] = []
    draw_map("pixels:4", photos, settings, "x.png", method="pca", on_progress=lambda *each: told.append(each))
    (pane,) = drawn[0].axes
    assert pane.get_title() == f"pixels:4, pixels, on {photos.test.name} (pca)"
    points = plane(_pixels(photos.test, 4), "pca", seed=3)
    for number, shown in enumerate(pane.collections):
        assert shown.get_label() == "ab"[number]
        assert np.allclose(shown.get_offsets(), points[photos.test.labels == number], atol=1e-3)
    assert {total for _, _, total in told} == {6}


def test_strips_are_of_images_of_all_classes_in_turn(
    photos: BenchData, settings: BenchSettings, tmp_path: Path
) -> None:
    draw_neighbors("pixels:4", photos, settings, tmp_path / "x.png", queries=2, k=3)
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size == (72 * 4 + 8, (72 + 14) * 2 + 8)
        queries = [np.asarray(sheet.crop((16, top, 64, top + 48)), float) for top in (16, 102)]
        nearest = [np.asarray(sheet.crop((88, top, 136, top + 48)), float) for top in (16, 102)]
    test, train = (
        [drawings._loader(part)(place) for place in range(len(part))] for part in (photos.test, photos.train)
    )

    def shown(tile: NDArray[Any], images: list[Any]) -> int:
        """Which image a tile shows."""
        cut = [np.asarray(center_crop(image, 64), float)[8:56, 8:56] for image in images]
        return int(np.argmin([np.abs(each - tile).mean() for each in cut]))

    rows = [shown(each, test) for each in queries]
    assert rows == sorted(rows)
    assert photos.test.labels[rows].tolist() == [0, 1]
    found = [
        _pixels(part, 4) / np.linalg.norm(_pixels(part, 4), axis=1)[:, None] for part in (photos.test, photos.train)
    ]
    assert [shown(each, train) for each in nearest] == (found[0][rows] @ found[1].T).argmax(axis=1).tolist()


def test_strips_are_of_the_block_that_was_named(
    photos: BenchData, settings: BenchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = str(save(tiny_model(), tmp_path / "model")), list[Any]()
    whole = drawings.neighbor_strips

    def strips(queries: Any, base: Any, *given: Any, **named: Any) -> Any:
        seen.append(queries)
        return whole(queries, base, *given, **named)

    monkeypatch.setattr(drawings, "neighbor_strips", strips)
    for layer in (0, 2):
        draw_neighbors(model, photos, settings, tmp_path / "x.png", layers=[layer], queries=6, k=1)
        found = features_of(model, photos, settings, layers=[layer])
        np.testing.assert_allclose(seen[-1], next(iter(found.test.values())), atol=1e-4)
    assert not np.allclose(seen[0], seen[1])


def test_centering_is_by_the_mean_of_the_training_images(
    photos: BenchData, settings: BenchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means: list[Any] = []
    whole = drawings.neighbor_strips
    monkeypatch.setattr(
        drawings, "neighbor_strips", lambda *given, **named: (means.append(named["mean"]), whole(*given, **named))[1]
    )
    for center in (False, True):
        chosen = dataclasses.replace(settings, center=center)
        draw_neighbors("pixels:4", photos, chosen, tmp_path / "x.png", queries=2, k=1)
    assert means[0] is None
    assert np.allclose(means[1], _pixels(photos.train, 4).mean(axis=0), atol=0.6)  # pixels are whole numbers


def test_a_confusion_matrix_is_in_percent_of_a_class(
    photos: BenchData, settings: BenchSettings, drawn: list[Any]
) -> None:
    mistakes = draw_confusion("pixels:4", photos, settings, "x.png")
    (row,) = bench("pixels:4", photos, settings, neighbors=False)
    _, counts = confusion(photos.test.labels, row.probe.predicted)
    pane = drawn[0].axes[0]
    assert np.allclose(pane.images[0].get_array(), 100 * counts / 3)
    assert pane.images[0].get_clim() == (0, 100)
    assert [each.get_text() for each in pane.get_yticklabels()] == ["a", "b"]
    assert pane.get_title() == f"pixels:4, pixels, on {photos.test.name}: {row.probe.top1:.1f} %"
    assert (pane.get_ylabel(), pane.get_xlabel()) == ("class", "taken for, % of the class")
    wrong = sorted(((counts[0, 1], "a", "b"), (counts[1, 0], "b", "a")), key=lambda each: -each[0])
    assert mistakes == [f"{100 * n / 3:.0f} % of {one} taken for {other}" for n, one, other in wrong if n]


def test_the_commonest_mistakes_come_first_and_five_at_most(
    photos: BenchData, settings: BenchSettings, drawn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = np.array([[6, 1, 3], [0, 4, 0], [2, 5, 3]])
    monkeypatch.setattr(drawings, "confusion", lambda labels, predicted: (np.arange(3), counts))
    unnamed = BenchData(
        name="n", train=dataclasses.replace(photos.train, class_names=()),
        test=dataclasses.replace(photos.test, class_names=()),
    )  # fmt: skip
    assert draw_confusion("pixels:4", unnamed, settings, "x.png") == [
        "50 % of 2 taken for 1", "30 % of 0 taken for 2", "20 % of 2 taken for 0", "10 % of 0 taken for 1"
    ]  # fmt: skip


def test_cka_is_of_every_block_with_every_block(photos: BenchData, settings: BenchSettings, drawn: list[Any]) -> None:
    values = draw_cka("pixels:4", "pixels:8", photos, settings, "x.png")
    assert values == pytest.approx(np.array([[cka(_pixels(photos.test, 4), _pixels(photos.test, 8))]]), abs=1e-4)
    pane = drawn[0].axes[0]
    assert (pane.get_ylabel(), pane.get_xlabel()) == ("pixels:4", "pixels:8")
    assert pane.get_title() == f"linear CKA on {photos.test.name}"
    least, most = pane.images[0].get_clim()
    assert (least, most) == (pytest.approx(np.floor(10 * values.min()) / 10), 1)
    assert draw_cka("pixels:4", None, photos, settings, "x.png") == pytest.approx(1)


def test_features_of_a_file_are_not_compared_with_a_model(
    tmp_path: Path, settings: BenchSettings, drawn: list[Any]
) -> None:
    np.savez(tmp_path / "f.npz", x=np.random.default_rng(0).normal(size=(20, 3)), y=np.arange(20) % 2)
    data = open_data(f"features:{tmp_path}/f.npz")
    with pytest.raises(ValueError, match=r"other='pixels:4' needs images, but f\.npz holds features; leave it out"):
        draw_cka(None, "pixels:4", data, settings, "x.png")
    assert draw_cka(None, None, data, settings, "x.png") == pytest.approx(1)


def test_one_picture_is_of_one_layer_and_strips_are_of_images(
    photos: BenchData, settings: BenchSettings, tmp_path: Path
) -> None:
    for draw in (draw_map, draw_neighbors, draw_confusion):
        with pytest.raises(ValueError, match="2 layers would need 2 pictures; choose one layer"):
            draw("pixels:4", photos, settings, tmp_path / "x.png", layers=[1, 2])
    with pytest.raises(ValueError, match="holds features without their images, which strips show"):
        drawings._loader(dataclasses.replace(photos.test, source=object()))


# ---- progress, and what is measured


MEASURES: dict[str, Callable[..., Any]] = {
    "bench": bench, "clusters": bench_clusters, "few-shot": partial(bench_few_shot, shots=(1, 2), draws=1),
    "retrieval": partial(bench_retrieval, bits=(8,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ["bench", "few-shot", "clusters", "retrieval"])
def test_every_stage_is_told_from_its_beginning_to_its_end(
    name: str, photos: BenchData, settings: BenchSettings
) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def note(what: str, done: int, total: int) -> None:
        stage = "pixels" if what.startswith("pixels, ") else what  # each number of shots by its name
        told.setdefault(stage, []).append((done, total))

    MEASURES[name]("pixels:4", photos, settings, on_progress=note)
    stages = {
        "bench": {"linear probe", "neighbors"}, "few-shot": {"pixels"}, "clusters": {"clusters"},
        "retrieval": {"retrieval"},
    }  # fmt: skip
    assert stages[name] < told.keys()
    for stage, steps in told.items():
        counts, totals = [done for done, _ in steps], {total for _, total in steps}
        assert len(totals) == 1, stage
        assert counts == sorted(counts)
        assert counts[-1] == totals.pop() > 0
        if stage in stages[name]:
            assert counts == list(range(counts[-1] + 1))


def test_a_row_has_the_probe_and_the_neighbors_of_its_features(photos: BenchData, settings: BenchSettings) -> None:
    (row,) = bench("pixels:4", photos, settings)
    train, test = (_pixels(part, 4).astype(np.float32) for part in (photos.train, photos.test))
    truth = photos.train.labels, photos.test.labels
    probe = linear_probe(train, truth[0], test, truth[1], grid=(1.0,))
    assert row.probe is not None
    assert row.knn is not None
    assert (row.probe.top1, row.probe.predicted.tolist()) == (probe.top1, probe.predicted.tolist())
    assert row.knn.top1 == knn(train, truth[0], test, truth[1], k=(1, 3)).top1
    assert (row.representation, row.view.item, row.dataset) == ("pixels:4", "pixels", photos.name)
    (alone,) = bench("pixels:4", photos, settings, neighbors=False)
    assert alone.knn is None
    record = row.record()
    assert (record["train"]["images"], record["test"]["images"], record["layer"]) == (12, 6, None)


def test_few_shots_are_drawn_from_every_class_and_averaged(photos: BenchData, settings: BenchSettings) -> None:
    rows = bench_few_shot("pixels:4", photos, settings, shots=(1, 6), draws=3)
    assert [(row.shots, len(row.top1_by_draw)) for row in rows] == [(1, 3), (6, 3)]
    train, test = (_pixels(part, 4).astype(np.float32) for part in (photos.train, photos.test))
    for row in rows:
        found = []
        for draw in range(3):
            order = np.random.default_rng((3, draw)).permutation(12)
            chosen = np.concatenate([order[photos.train.labels[order] == name][: row.shots] for name in (0, 1)])
            found.append(
                linear_probe(train[chosen], photos.train.labels[chosen], test, photos.test.labels, grid=(1.0,)).top1
            )
        assert row.top1_by_draw == tuple(found)
        assert row.top1 == pytest.approx(np.mean(found))
    assert rows[0].record()["representation"] == "pixels:4"
    for wrong in ((), (0,), (7,)):
        with pytest.raises(ValueError, match=r"must lie in 1\.\.6: class 'a' has 6 images in"):
            bench_few_shot("pixels:4", photos, settings, shots=wrong)
    with pytest.raises(ValueError, match="draws=0 must be at least 1"):
        bench_few_shot("pixels:4", photos, settings, draws=0, shots=(1,))


def test_an_attentive_probe_reads_the_tokens_of_every_layer(
    photos: BenchData, settings: BenchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(save(tiny_model(), tmp_path / "model"))
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    first, second = (SimpleNamespace(edges=(), held_out_top1=None, place=place) for place in (1, 2))

    def probed(*given: Any, **more: Any) -> list[SimpleNamespace]:
        asked.append((given, more))
        return [first, second]

    monkeypatch.setattr(attention, "attentive_probe", probed)
    told: list[tuple[str, int, int]] = []
    chosen = dataclasses.replace(settings, protocol="mae", C=(), rates=(0.5,))
    rows = bench_attentive(model, photos, chosen, layers=[1, 3], on_progress=lambda *each: told.append(each))
    assert [(row.view.layer, row.probe, row.knn, row.dataset) for row in rows] == [
        (1, first, None, photos.name), (3, second, None, photos.name)
    ]  # fmt: skip
    assert told[-2:] == [("attentive probe", 0, 1), ("attentive probe", 1, 1)]
    ((train, labels, test, truth), more) = asked[0]
    assert [each.shape for each in (*train, *test)] == [(12, 16, 64)] * 2 + [(6, 16, 64)] * 2
    assert (labels.tolist(), truth.tolist()) == (photos.train.labels.tolist(), photos.test.labels.tolist())
    assert (more["probe"].rates, more["seed"], more["device"]) == ((0.5,), 3, "cpu")
    given = AttentiveProbe(rates=(0.1, 0.2))
    bench_attentive(model, photos, dataclasses.replace(settings, C=()), probe=given, layers=[1, 2])
    assert asked[1][1]["probe"].rates == (0.1, 0.2)


def test_several_readings_of_a_model_pass_the_images_once(
    photos: BenchData, settings: BenchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, computed = str(save(tiny_model(), tmp_path / "model")), list[list[str]]()
    whole = Hidden.compute

    def counted(self: Hidden, batch: list[Any], items: Any) -> Any:
        computed.append(list(items))
        return whole(self, batch, items)

    monkeypatch.setattr(Hidden, "compute", counted)
    told: list[tuple[str, int, int]] = []
    pooled = dataclasses.replace(settings, pool="max")
    extract_together(
        model, photos, [(settings, [1, 2]), (pooled, [2]), (settings, [2])], lambda *each: told.append(each)
    )
    passes = len(computed)
    assert passes == 2  # a batch a side
    assert {item for items in computed for item in items} >= {"layer-1", "layer-2", "layer-2.max"}
    assert told[-1][1] == told[-1][2] == 6
    assert {what.partition(", ")[2] for what, _, _ in told} == {photos.train.name, photos.test.name}
    for chosen, layers in ((settings, [1, 2]), (pooled, [2])):
        features_of(model, photos, chosen, layers=layers)
    assert len(computed) == passes  # all of it was there
