"""Laws of suites and of pictures: nothing is measured twice, reports say how figures came, CKA knows no rotation."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from bigr_repr_cli.bench import app
from forks import COMMAND, run_command, start
from PIL import Image
from tiny_model import tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.embed import embed_images
from bigr_repr.evaluate.reports import plots
from bigr_repr.evaluate.reports.inspection import cka, confusion, neighbor_strips, plane
from bigr_repr.evaluate.reports.report import write_reports
from bigr_repr.evaluate.representations.hidden import Hidden
from bigr_repr.evaluate.runs import suite as suite_module
from bigr_repr.evaluate.runs.extraction import BenchSettings
from bigr_repr.evaluate.runs.suite import Suite, SuiteData, SuiteModel, read_suite, run_suite

SUITE = """
name: tried
k: [5]
datasets:
  - {dataset: digits, name: Ziffern, limit: 120, test_limit: 60}
models:
  - pixels:8
  - {model: $model, layers: all}
  - {model: "tokenizer-bits:$model", name: bits}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tiny_model(), tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return path


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


# ---- suites


@pytest.mark.slow
def test_a_suite_goes_on_where_it_was(model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, settings = read_suite(file, model=model), BenchSettings(cache=tmp_path / "cache", device="cpu", workers=1)
    done, real = [], suite_module.bench

    def counted(*arguments: object, **options: object) -> object:
        done.append(arguments[0])
        if len(done) == 2:
            raise RuntimeError("killed")
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(suite_module, "bench", counted)
    with pytest.raises(RuntimeError, match="killed"):
        run_suite(suite, tmp_path / "out", settings)
    records = run_suite(suite, tmp_path / "out", settings)
    assert done == ["pixels:8", model, model, f"tokenizer-bits:{model}"]
    told: list[tuple[str, int, int]] = []
    assert run_suite(suite, tmp_path / "out", settings, lambda *progress: told.append(progress)) == records
    assert (told[0], told[-1]) == (("suite", 0, 3), ("suite", 3, 3))
    assert len(done) == 4
    assert [record["layer"] for record in records] == [None, 0, 1, 2, 3, None]
    assert {record["dataset"] for record in records} == {"Ziffern"}
    assert records[-1]["knn"]["metric"] == "hamming"
    run_suite(suite.limited(100, None), tmp_path / "out", settings)  # other images: measured anew
    assert len(done) == 7


# The command, which waits to be killed when it has eight rows: however late that comes, it has not ended.
HELD = f"""
import time
from bigr_repr.evaluate.runs import suite
replacing = suite.replacing
def held(path):
    while len(list(path.parent.glob("*.json"))) >= 8:
        time.sleep(1)
    return replacing(path)
suite.replacing = held
{COMMAND}
"""


@pytest.mark.slow
def test_a_suite_that_is_killed_goes_on_with_what_is_done(tmp_path: Path) -> None:
    """Three data sets, kill -9 in the middle: what was measured is not measured again, and the figures are the same."""
    for number, name in enumerate(("one", "two")):
        for label in "ab":
            write_pictures(tmp_path / name / label, 30, first=1000 * number + ord(label))
    sources = f"[{{dataset: digits, limit: 120, test_limit: 60}}, {tmp_path}/one, {tmp_path}/two]"
    path = tmp_path / "three.yaml"
    path.write_text(f"k: [3]\ndatasets: {sources}\nmodels: [pixels:8, pixels:4, pixels:2, pixels:16]\n")

    def arguments(out: str) -> list[object]:
        options = ["--device", "cpu", "--workers", "1", "--out", tmp_path / out, "--cache", tmp_path / f"{out}-cache"]
        return ["bench", "suite", path, *options]

    rows = tmp_path / "out" / "rows"
    with start(HELD, arguments("out")) as killed:
        while killed.poll() is None and len(list(rows.glob("*.json"))) < 5:
            time.sleep(0.005)
    assert killed.returncode == -9
    kept = {file.name: file.stat().st_mtime_ns for file in rows.glob("*.json")}
    assert 5 <= len(kept) < 12
    for out in ("out", "whole"):
        run_command(*arguments(out), check=True)
    for name, stamp in kept.items():
        assert (rows / name).stat().st_mtime_ns == stamp
    found, whole = (json.loads((tmp_path / out / "three.json").read_text())["rows"] for out in ("out", "whole"))
    assert len(found) == 12
    for one, other in zip(found, whole, strict=True):
        assert {**one, "date": ""} == {**other, "date": ""}


@pytest.mark.slow
def test_images_pass_a_model_once_for_all_its_lines(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for masked tokens, which are another pass; lines give what each gives by itself."""
    lines = (
        SuiteModel(model=model, name="one", layers=(1,)),
        SuiteModel(model=model, name="grid", layers=((1, 3),), pool="grid2"),
        SuiteModel(model=model, name="masked", layers=(1,), masked_share=0.5),
    )
    data = (SuiteData(dataset="digits", limit=60, test_limit=30),)
    seen, compute = [], Hidden.compute

    def counted(self: Hidden, batch: list[np.ndarray], items: list[str]) -> dict[str, np.ndarray]:
        seen.append(len(batch))
        return compute(self, batch, items)

    monkeypatch.setattr(Hidden, "compute", counted)
    settings = BenchSettings(cache=tmp_path / "cache", device="cpu", workers=1)
    suite = Suite(name="tried", datasets=data, models=lines, k=(5,))
    together = run_suite(suite, tmp_path / "out", settings)
    assert sum(seen) == 2 * 90
    alone = [
        record
        for line in lines
        for record in run_suite(
            dataclasses.replace(suite, models=(line,)), tmp_path / line.name,
            dataclasses.replace(settings, cache=tmp_path / f"cache-{line.name}"),
        )
    ]  # fmt: skip
    for one, other in zip(together, alone, strict=True):
        assert one["linear_probe"] == other["linear_probe"]
        assert one.get("condition") == other.get("condition")
    assert together[2]["condition"] == {"masked_share": 0.5, "mask_seed": 0}


def test_an_optional_data_set_that_is_not_at_hand_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, settings = tmp_path / "s.yaml", BenchSettings(cache=tmp_path / "cache", device="cpu")
    path.write_text("k: [3]\ndatasets: [digits, {dataset: no/such, optional: true}]\nmodels: [pixels:4]\n")
    records = run_suite(read_suite(path).limited(60, 30), tmp_path / "out", settings)
    assert [record["dataset"] for record in records] == ["digits"]
    assert "such is left out" in caplog.text
    path.write_text("datasets: [{dataset: no/such, optional: true}]\nmodels: [pixels:4]\n")
    with pytest.raises(FileNotFoundError, match="none of the data sets of s is available"):
        run_suite(read_suite(path), tmp_path / "out", settings)


def test_a_suite_without_any_of_its_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("no weights")

    monkeypatch.setattr(suite_module, "open_representation", missing)
    path, settings = tmp_path / "s.yaml", BenchSettings(cache=tmp_path / "cache", device="cpu")
    path.write_text("datasets: [digits]\nmodels: [{model: m, optional: true}]\n")
    with pytest.raises(FileNotFoundError, match="no model of s is available on digits"):
        run_suite(read_suite(path), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_other_settings_are_measured_anew(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that determines a figure is part of the name it is kept under."""
    calls: list[object] = []

    class Row:
        def record(self) -> dict[str, str]:
            return {}

    monkeypatch.setattr(suite_module, "bench", lambda name, *rest, **options: (calls.append(name), [Row()])[1])
    file.write_text("datasets: [digits]\nmodels: [pixels:8]\nk: [5]")
    suite, settings = read_suite(file), BenchSettings(cache=tmp_path / "cache", device="cpu")
    changes: list[dict[str, object]] = [
        {"protocol": "mae"}, {"protocol": "mae", "rates": (0.1,)}, {"protocol": "mae", "batch": 64}, {"C": (1.0,)},
        {"seeds": 2}, {"k": (3,)}, {"temperature": 0.1},
        {"models": (SuiteModel(model="pixels:4"),)}, {"models": (SuiteModel(model="pixels:8", mirror=True),)},
        {"models": (SuiteModel(model="pixels:8", center=True),)},
        {"datasets": (SuiteData(dataset="digits", limit=90),)},
        {"datasets": (SuiteData(dataset="digits", test_limit=90),)},
    ]  # fmt: skip
    for done, change in enumerate([{}, *changes], 1):
        for _ in range(2):  # and what is there already is not
            run_suite(dataclasses.replace(suite, **change), tmp_path / "out", settings)  # type: ignore[arg-type]
        assert len(calls) == done, change
    monkeypatch.setattr(suite_module, "_MEASUREMENT", suite_module._MEASUREMENT + 1)  # the same settings mean another
    run_suite(suite, tmp_path / "out", settings)
    assert len(calls) == len(changes) + 2


def test_names_with_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    names = ["mine [v1]", "mine [bold]", "run [/data/x]", r"[red]\\", ":smile:"]
    models = [{"model": f"pixels:{side}", "name": name} for side, name in enumerate(names, 2)]
    entry = {"dataset": "digits", "name": "[/sets] x", "limit": 40, "test_limit": 20}
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps({"C": 1, "k": [1], "datasets": [entry], "models": models}))
    given = ["suite", str(path), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "c"), "--device", "cpu"]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, given, catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert "[/sets] x" in lines
    for name in names:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1, name


@pytest.mark.parametrize(
    "command",
    [
        ["suite", "s.yaml", "--out", "out", "--model", ""],
        ["generation", "x", "--real", "y", "--model", ""],
        ["tokens", "x.png", "--out", "y.png", "--model", " "],
        ["cka", "--dataset", "digits", "--out", "y.png", "--other", ""],
    ],
)
def test_an_empty_name_is_no_model(command: list[str]) -> None:
    """As an unset variable of the shell gives it."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert done.exit_code == 2
    assert f"Invalid value for {command[-2]}: the name is empty; leave the option out" in done.output


@pytest.mark.parametrize("damaged", ["", "[3]", "[]", "{}", "[{", "[" * 100_000])
def test_a_damaged_result_is_measured_again(
    damaged: str, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("datasets: [{dataset: digits, limit: 60, test_limit: 40}]\nmodels: ['pixels:4']\nk: 5\nC: 1")
    suite, settings = read_suite(file), BenchSettings(cache=tmp_path / "cache", device="cpu")
    (first,) = run_suite(suite, tmp_path / "out", settings)
    (path,) = (tmp_path / "out" / "rows").iterdir()
    path.write_text(damaged)
    (again,) = run_suite(suite, tmp_path / "out", settings)
    assert {**again, "date": ""} == {**first, "date": ""}
    assert f"{path} cannot be used" in caplog.text
    assert "it is measured again" in caplog.text
    assert run_suite(suite, tmp_path / "out", settings) == [again]


def _digits_features(folder: Path) -> str:
    for side, count in (("train", 1198), ("test", 599)):
        np.save(folder / f"{side}.npy", np.zeros((count, 3), np.float32))
    return f"{{train: {folder}/train.npy, test: {folder}/test.npy}}"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{model: 'timm:test_vit?random', layers: [99]}", r"timm:test_vit\?random on digits: .*99"),
        ("{model: 'pixels:4', name: P, layers: [3]}", "P on digits: pixels:4 has no layers; leave layer out"),
        ("{model: 'pixels:4', name: P, pool: max}", "P on digits: pool='max' is not for pixels:4"),
        ("{model: 'pixels:4', name: P, codes: true}", "P on digits: pixels:4 has no bits; leave codes out"),
        ("{name: clip, features: {digits: {train: no/such.npy, test: b.npy}}}", r"no/such\.npy"),
        (
            "{name: clip, layers: [3], features: {digits: FILES}}",
            "clip on digits: digits holds features, which have no",
        ),
        ("{name: clip, pool: max, features: {digits: FILES}}", "clip on digits: pool='max' is for tokens"),
    ],
)
def test_what_a_later_line_lacks_ends_a_suite_before_anything_is_measured(
    entry: str, said: str, file: Path, tmp_path: Path
) -> None:
    entry = entry.replace("FILES", _digits_features(tmp_path))
    file.write_text(f"datasets: [digits]\nmodels: ['pixels:8', {entry}]")
    with pytest.raises((ValueError, OSError), match=said):
        run_suite(read_suite(file), tmp_path / "out", BenchSettings(cache=tmp_path / "cache", device="cpu"))
    assert not (tmp_path / "out").exists()


def test_too_few_images_of_a_later_data_set_end_a_suite_before_anything_is_measured(file: Path, tmp_path: Path) -> None:
    file.write_text("datasets: [digits, {dataset: digits, name: few, limit: 60}]\nmodels: ['pixels:8']\nk: 100")
    with pytest.raises(ValueError, match=r"k=\(100,\) are all above the 60 training images"):
        run_suite(read_suite(file), tmp_path / "out", BenchSettings(cache=tmp_path / "cache", device="cpu"))
    assert not (tmp_path / "out").exists()


def test_features_of_a_data_set_that_is_not_measured_are_named(file: Path) -> None:
    file.write_text("datasets: [digits]\nmodels: [{name: clip, features: {digitz: {train: a.npy}}}]")
    with pytest.raises(ValueError, match="features of clip: 'digitz' is none of the data sets, which are digits"):
        read_suite(file)


@pytest.mark.parametrize("broken", ["datasets:\n  - no/such/place", "models:\n  - timm:resnet9000"])
def test_what_cannot_be_opened_ends_a_suite_before_anything_is_measured(
    file: Path, tmp_path: Path, broken: str
) -> None:
    key, _, entry = broken.partition("\n")
    head, _, rest = SUITE.partition(key)
    first, *others = rest.lstrip("\n").split("\n")
    file.write_text("\n".join([head + key, first, entry, *others]))
    settings = BenchSettings(cache=tmp_path / "cache", device="cpu")
    with pytest.raises((ValueError, OSError), match=r"no/such/place|resnet9000"):
        run_suite(read_suite(file, model="pixels:4"), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_embeddings_made_anew_are_measured_anew(
    model: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, calls, real = BenchSettings(cache=tmp_path / "cache", device="cpu"), [], suite_module.bench

    def counted(*arguments: object, **options: object) -> object:
        calls.append(arguments[0])
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(suite_module, "bench", counted)
    sides = f"{{train_on: {tmp_path}/train, test_on: {tmp_path}/test}}"
    file.write_text(f"k: 3\ndatasets: [{sides}]\nmodels: [tiny-random]")  # the name that the embeddings carry
    suite = read_suite(file)
    assert suite.k == (3,)
    for first in (0, 900):
        for number, side in enumerate(("train", "test")):
            for place, name in enumerate("ab"):
                write_pictures(tmp_path / f"{first}" / side / name, 6, first=first + 100 * number + 50 * place)
            source = [str(tmp_path / f"{first}" / side)]
            embed_images(source, tmp_path / side, model=model, layers=[1], labels_from_folders=True, overwrite=True)
        assert run_suite(suite, tmp_path / "out", settings) == run_suite(suite, tmp_path / "out", settings)
    assert calls == ["tiny-random", "tiny-random"]


def test_plots_of_neighbors_show_a_number_that_nothing_chose() -> None:
    row = {"knn": {"top1": {"100": 90.0, "20": 50.0}}}
    assert (plots._top1(row["knn"]), plots._neighbors([row])) == (50.0, "20-NN")


@pytest.mark.slow
def test_reports_say_what_was_found_and_how(model: str, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["suite", str(file), "--out", str(out), "--model", model, "--cache", str(tmp_path / "cache")]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    rows = json.loads((out / "tried.json").read_text())["rows"]
    sweep = [row for row in rows if row["representation"] == model]
    best = max(sweep, key=lambda row: row["linear_probe"]["held_out_top1"])
    text, page = (out / "tried.md").read_text(), (out / "tried.html").read_text()
    assert f"| {model} | {best['layer']} | {best['linear_probe']['top1']:.1f} ±" in text
    shown = f"{best['linear_probe']['top1']:.1f} ±"
    assert any(f" {best['layer']} " in line and shown in line for line in done.stdout.splitlines())
    for part in (best["model"]["model_sha256"], "seeds 0", "120 of 1,198 (stratified, seed 0)", "logreg", "cores"):
        assert part in text
        assert part in page
    assert "tried-layers.png" in text
    with (out / "tried.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [line["representation"] for line in table] == ["pixels:8", model, "bits"]
    assert float(table[1]["top1"]) == best["linear_probe"]["top1"]
    assert f"{best['linear_probe']['top1']:.1f} $\\pm$" in (out / "tried.tex").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    assert _size(out / "tried-accuracy.png")[0] > 300


@pytest.mark.slow
def test_names_cannot_break_the_page(model: str, file: Path, tmp_path: Path) -> None:
    settings = BenchSettings(cache=tmp_path / "cache", device="cpu")
    suite = read_suite(file, model=model)
    records = run_suite(suite, tmp_path / "out", settings)
    hostile = [
        {**record, "dataset": "<img src=x onerror=alert(1)>", "representation": f"{record['representation']}|b"}
        for record in records
    ]
    write_reports("tried", hostile, tmp_path / "out")
    assert "<img src=x" not in (tmp_path / "out" / "tried.html").read_text()
    assert "| pixels:8\\|b | " in (tmp_path / "out" / "tried.md").read_text()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("just words", "it is a str, not a mapping"),
        ("datasets: [digits]", "models must be a list"),
        ("datasets: []\nmodels: [pixels]", "at least one entry"),
        ("datasets: [digits]\nmodels: [pixels, pixels]", "pixels occurs twice"),
        ("datasets: [digits]\nmodels: [{model: pixels, layer: 3}]", "layer is unknown"),
        ("datasets: [{name: x}]\nmodels: [pixels]", "both train_on and test_on"),
        ("datasets: [digits]\nmodels: [{model: pixels, layers: some}]", "layers='some'"),
        ("datasets: [digits]\nmodels: [{model: pixels, layers: null}]", "layers=None is neither 'all'"),
        ("datasets: [digits]\nmodels: [{model: pixels, layers: [12.5]}]", "layers=(12.5,) is neither 'all'"),
        ("datasets: [digits]\nmodels: [{name: a, features: clip.npy}]", "features='clip.npy' must be a mapping"),
        ("datasets: [digits]\nmodels: [pixels]\nprotocol: moco", "logreg, mae"),
        ("datasets: [digits]\nmodels: [pixels]\nseeds: 0", "seeds=0"),
        ("datasets: [digits]\nmodels: [pixels]\nseeds: two", "seeds='two' is not of type int"),
        ("datasets: [digits]\nmodels: [pixels]\nk: [5, many]", "k='many'"),
        ("datasets: [digits]\nmodels: [pixels]\nname: ../x", "cannot be a file name"),
        ("datasets: [{dataset: digits, limit: all}]\nmodels: [pixels]", "limit='all'"),
        ("datasets: [digits]\nmodels: [{model: 3}]", "model=3 is not of type str"),
        ("datasets: [digits]\nmodels: [{model: pixels, codes: 1}]", "codes=1 is not of type bool"),
        ("datasets: [a/photos, b/photos]\nmodels: [pixels]", "datasets: photos occurs twice"),
        ("datasets: [digits\nmodels", "suite.yaml is not a suite"),
    ],
)
def test_what_is_no_suite_is_refused_in_one_line(file: Path, text: str, named: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=r"suite\.yaml is not a suite") as caught:
        read_suite(file)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "layers"), [("12", (12,)), ("best", ("best",)), ("[1, [2, mid]]", (1, (2, "mid"))), ("all", "all")]
)
def test_a_single_block_is_a_list_of_one(file: Path, text: str, layers: object) -> None:
    file.write_text(f"datasets: [digits]\nmodels: [{{model: m, layers: {text}}}]")
    assert read_suite(file).models[0].layers == layers


def test_suites_of_the_repository_are_suites() -> None:
    folder = Path(__file__).parent.parent / "benchmarks" / "suites"
    for path in sorted(folder.glob("*.yaml")):
        suite = read_suite(path, model="other")
        assert any(each.model.endswith("other") for each in suite.models)  # its bits alone, for instance
    assert SuiteModel(model="pixels", codes=True).label == "pixels bits"
    assert SuiteData(dataset="digits").limit is None


# ---- inspection


def test_cka_does_not_see_rotation_and_scale() -> None:
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(200, 12)), rng.normal(size=(200, 300))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(12, 12)))[0] + 5
    assert cka(x, turned) == pytest.approx(1, abs=1e-5)
    centered = x - x.mean(0), other - other.mean(0)
    gram = [side @ side.T for side in centered]
    expected = (gram[0] * gram[1]).sum() / np.sqrt((gram[0] ** 2).sum() * (gram[1] ** 2).sum())
    assert cka(x, other) == pytest.approx(expected, rel=1e-4)  # by either order of the product
    assert cka(x[:20], other[:20]) == pytest.approx(cka(other[:20], x[:20]))
    with pytest.raises(ValueError, match="199, 200 rows"):
        cka(x, other[1:])
    with pytest.raises(ValueError, match="not all finite"):
        cka(x, np.full((200, 3), np.nan))
    with pytest.raises(ValueError, match="same for every image"):
        cka(x, np.ones((200, 3)))


def test_confusion_counts_every_image_once() -> None:
    classes, counts = confusion([3, 3, 5, 9], [3, 5, 5, 3])
    assert classes.tolist() == [3, 5, 9]
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="equal length"):
        confusion([1, 2], [1])


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_maps_keep_clusters_apart_and_repeat(method: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(30, 5)), rng.normal(size=(30, 5)) + 20])
    points = plane(x, method)
    gap = np.linalg.norm(points[:30].mean(0) - points[30:].mean(0))
    assert gap > 2 * max(points[:30].std(), points[30:].std())
    assert np.array_equal(points, plane(x, method))


def test_bad_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="pca, tsne, umap"):
        plane(np.zeros((9, 2)), "lle")
    with pytest.raises(ValueError, match="at least 4"):
        plane(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="not finite"):
        plane(np.full((9, 2), np.nan))


def test_strips_frame_right_and_wrong_neighbors() -> None:
    base = np.eye(3, dtype=np.float32)
    queries = np.array([[1, 0.5, 0.1]], np.float32)

    def image(number: int) -> Image.Image:
        return Image.new("RGB", (20, 20), (10 * number, 0, 0))

    sheet = neighbor_strips(queries, base, [1], np.array([1, 0, 1]), image, image, k=2, side=32)
    blue, green, red = (sheet.getpixel((8 + 40 * place, 8)) for place in (0, 1, 2))
    assert blue == (31, 78, 140)
    assert green == (90, 147, 103)
    assert red == (176, 65, 62)
    assert sheet.getpixel((8 + 16, 24)) == (0, 0, 0)
    named = neighbor_strips(queries, base, [1], np.array([1, 0, 1]), image, image, k=2, side=32, names=("cat", "dog"))
    below = np.asarray(named)[8 + 32 : 8 + 32 + 14]
    assert [bool((below[:, 8 + 40 * place : 40 + 40 * place] < 128).any()) for place in range(3)] == [True] * 3
    assert not np.array_equal(below[:, 8:40], below[:, 88:120])  # dog, and then cat
    with pytest.raises(ValueError, match=r"k=4 is outside 1\.\.3"):
        neighbor_strips(queries, base, [1], np.array([1, 0, 1]), image, image, k=4)


@pytest.mark.slow
def test_picture_commands(model: str, tmp_path: Path) -> None:
    shared = ["--dataset", "digits", "--model", model, "--cache", str(tmp_path), "--out"]
    few = ["--test-limit", "40"]
    calls = {
        "map": [*shared, str(tmp_path / "map.svg"), *few, "--method", "pca"],
        "neighbors": [*shared, str(tmp_path / "near.png"), "--limit", "60", "--queries", "3", "-k", "4", "--codes"],
        "confusion": [*shared, str(tmp_path / "confusion.png"), "--limit", "60", *few, "--json"],
        "cka": [*shared, str(tmp_path / "cka.png"), *few, "--other", f"random:{model}", "--json"],
    }
    said = {}
    for name, arguments in calls.items():
        done = CliRunner().invoke(
            app, [name, *arguments, "--batch-size", "8", "--workers", "1"], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        said[name] = done.stdout
    found = json.loads(said["confusion"])
    assert found["confusion"] == str(tmp_path / "confusion.png")
    assert all("taken for" in mistake for mistake in found["mistakes"])
    assert np.shape(json.loads(said["cka"])["values"]) == (4, 4)
    assert _size(tmp_path / "near.png") == (72 * 5 + 8, (72 + 14) * 3 + 8)
    assert (tmp_path / "cka.png").stat().st_size > 1000
    assert CliRunner().invoke(app, ["map", *shared, str(tmp_path / "map.gif")]).exit_code == 2
    assert CliRunner().invoke(app, ["cka", *shared, str(tmp_path / "no" / "a.png")]).exit_code == 2
    several = CliRunner().invoke(app, ["map", *shared, str(tmp_path / "map.svg"), "--layer", "1", "--layer", "2"])
    assert several.exit_code == 2
    assert "several" in several.output
