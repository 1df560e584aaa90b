"""Laws of pages: what the template of near-duplicates and of an adaptation is given, number for number."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigr_repr.evaluate.reports import adapted
from bigr_repr.evaluate.reports.adapted import ClassShown, adaptation_page, fallen, figures_of, quality_of
from bigr_repr.retrieval.index.clusters import Cluster, Kept
from bigr_repr.retrieval.results import duplicates
from bigr_repr.retrieval.results.duplicates import duplicates_page, file_sizes, save_duplicates_page, save_keep_list

Given = dict[str, Any]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """What a template is rendered with."""
    found: Given = {}

    def render(template: Path, **values: Any) -> str:
        found.update(values, template=template.name)
        return "page"

    for module in (duplicates, adapted):
        monkeypatch.setattr(module, "render", render)
    return found


def picture(url: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    image.load()
    return image


# ---- near-duplicates


def cluster(rows: int, first: int = 0) -> tuple[Cluster, Kept]:
    """Of so many rows the second is kept, and the others are like it."""
    ids = np.array([f"p{first + n}.jpg" for n in range(rows)], object)
    keep = np.arange(rows) == 1
    found = Cluster(rows=np.arange(first, first + rows), ids=ids, distances=np.arange(rows))
    return found, Kept(keep=keep, like=np.ones(rows, np.int64), distances=np.where(keep, 0, 2 + np.arange(rows)))


def test_a_list_says_what_to_keep_and_what_each_other_is_like(tmp_path: Path) -> None:
    pairs = [cluster(3), cluster(2, 10)]
    save_keep_list([one for one, _ in pairs], [kept for _, kept in pairs], tmp_path / "list.csv")
    assert list(csv.reader((tmp_path / "list.csv").read_text().splitlines())) == [
        ["cluster", "action", "image", "like", "distance"], ["1", "delete", "p0.jpg", "p1.jpg", "2"],
        ["1", "keep", "p1.jpg", "", ""], ["1", "delete", "p2.jpg", "p1.jpg", "4"],
        ["2", "delete", "p10.jpg", "p11.jpg", "2"], ["2", "keep", "p11.jpg", "", ""],
    ]  # fmt: skip


def test_a_page_shows_what_is_kept_first_and_counts_what_it_leaves_out(given: Given, tmp_path: Path) -> None:
    pairs = [cluster(30), *(cluster(2, 100 + 2 * n) for n in range(202))]
    asked: list[tuple[str, int]] = []

    def photo_of(id: str, row: int) -> Image.Image | None:
        asked.append((id, row))
        return None if row == 0 else Image.new("RGB", (400, 100), (200, 30, 30))

    page = duplicates_page([one for one, _ in pairs], [kept for _, kept in pairs], photo_of, found="much")
    assert (page, given["template"], given["found"]) == ("page", "duplicates.html", "much")
    assert (len(given["clusters"]), given["left_out"]) == (200, 3)
    first = given["clusters"][0]
    assert (first["images"], first["delete"], first["left_out"], len(first["pictures"])) == (30, 29, 6, 24)
    shown = first["pictures"]
    assert [each["name"] for each in shown] == ["p1.jpg", "p0.jpg", *(f"p{n}.jpg" for n in range(2, 24))]
    assert [each["keep"] for each in shown[:3]] == [True, False, False]
    assert [each["distance"] for each in shown[:3]] == [0, 2, 4]
    assert {each["like"] for each in shown} == {"p1.jpg"}
    assert shown[1]["photo"] is None
    small = picture(shown[0]["photo"])
    assert (small.format, small.size) == ("JPEG", (192, 48))
    assert asked[:2] == [("p1.jpg", 1), ("p0.jpg", 0)]
    save_duplicates_page("ä", tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == "ä"


def test_sizes_are_of_files_and_of_what_is_inside_others(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    there = {"p0.jpg": iter([str(tmp_path / "a")]), "p1.jpg": iter([b"123"]), "p2.jpg": iter(())}
    finder: Any = SimpleNamespace(encoded=lambda id, row, thumbnails: there[id])
    assert file_sizes(cluster(3)[0], finder) == [5, 3, -1]


# ---- an adaptation


def row(probe: float | None, **neighbors: float) -> Any:
    return SimpleNamespace(
        probe=None if probe is None else SimpleNamespace(top1=probe),
        knn=SimpleNamespace(top1={int(k[1:]): value for k, value in neighbors.items()}) if neighbors else None,
    )


def test_figures_are_before_and_after_by_the_most_neighbors() -> None:
    assert figures_of(None) == {}
    assert figures_of((row(50.126, k5=1.0, k20=30.0), row(60.0, k5=2.0, k20=31.234))) == {
        "linear probe": (50.13, 60.0), "20-NN": (30.0, 31.23)
    }  # fmt: skip
    assert figures_of((row(None, k5=1.0), row(60.0, k5=2.0))) == {"5-NN": (1.0, 2.0)}
    assert figures_of((row(1.0), row(2.0, k5=2.0))) == {"linear probe": (1.0, 2.0)}
    assert fallen({"a": (50.0, 49.0), "b": (50.0, 48.99), "c": (50.0, 60.0)}) == ["b"]


def test_a_record_of_quality_names_its_images() -> None:
    assert quality_of({}, {"reconstruction_db": 20.0}, 7) == {
        "reconstruction": {"images": 7, "psnr_mean_of_images_db": 20.0}
    }
    found = quality_of({"20-NN": (1.0, 2.5)}, {"reconstruction_db": 20.0, "reconstruction_after_db": 21.0}, 99)
    assert found == {
        "reconstruction": {"images": 64, "psnr_mean_of_images_db": 21.0},
        "held_out_pictures": {"images": 99, "20-NN": "2.5 % (before: 1.0 %)"},
    }


def test_the_page_has_sheets_of_each_class_and_the_curve_of_losses(given: Given) -> None:
    images = [Image.new("RGB", (10, 10), (n, 0, 0)) for n in range(4)]
    record = {
        "method": "lora", "held_out_losses": {"0": 3.0, "50": 1.0, "100": 2.0}, "best_step": 50,
        "trained_parameters": 5, "parameters": 200,
    }  # fmt: skip
    shown = [
        ClassShown(name="cat", real=images, before=images[:2], after=images[:3]),
        ClassShown(name="dog", real=(), before=(), after=images[:1]),
    ]
    page = adaptation_page("mine", record, {"20-NN": (50.0, 40.0)}, shown)
    assert (page, given["template"], given["name"], given["record"]) == ("page", "adapted.html", "mine", record)
    cat, dog = given["classes"]
    assert cat["name"] == "cat"
    assert [(caption, width) for caption, _, width in cat["sheets"]] == [
        ("yours, held out", 100), ("before", 50), ("after", 75)
    ]  # fmt: skip
    assert [caption for caption, _, _ in dog["sheets"]] == ["after"]
    sheet = picture(cat["sheets"][0][1])
    assert sheet.height < 2 * 10 < 4 * 10 <= sheet.width  # in one row
    assert (given["fell"], given["share"], given["best"]) == (["20-NN"], 2.5, 50)
    assert given["method"].startswith("low-rank changes")
    assert given["curve"] == {
        "points": "0.00,0.00 50.00,100.00 100.00,50.00",
        "levels": [("3.0000", 0), ("2.0000", 50), ("1.0000", 100)],
        "steps": [(0, 0), (50, 50), (100, 100)], "best": 50.0,
    }  # fmt: skip


def test_a_curve_takes_two_losses_and_may_be_level(given: Given) -> None:
    record = {"method": "full", "held_out_losses": {"0": 3.0}, "best_step": 0, "trained_parameters": 1, "parameters": 1}
    adaptation_page("mine", record, {}, ())
    assert given["curve"] is None
    record["held_out_losses"] = {"10": 3.0, "0": 3.0}
    adaptation_page("mine", record, {}, ())
    assert given["curve"]["points"] == "0.00,0.00 100.00,0.00"
    assert given["curve"]["levels"] == [("3.0000", 0)]
