"""Laws of `bench retrieval` and `bench generation`: codes beside their floats, drawn beside real images."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from bigr_repr_cli.bench import app
from bigr_repr_cli.main import main
from PIL import Image
from tiny_model import tiny_model, write_pictures
from typer.testing import CliRunner

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.codes import to_bytes
from bigr_repr.datasets import open_images
from bigr_repr.evaluate.metrics import label_retrieval as label_retrieval_module
from bigr_repr.evaluate.metrics.generation import frechet_distance
from bigr_repr.evaluate.metrics.label_retrieval import Collection, RetrievalRow, label_retrieval
from bigr_repr.evaluate.metrics.rabitq import rabitq
from bigr_repr.evaluate.metrics.ranking import retrieval
from bigr_repr.images.formats import ImageError


@pytest.fixture(scope="module")
def sides() -> tuple[Collection, Collection]:
    """60 and 12 rows of 3 classes, 16 features, 24 token bits."""
    draws = np.random.default_rng(0)
    centers = draws.normal(size=(3, 16))

    def side(count: int) -> Collection:
        labels = np.arange(count) % 3
        vectors = (centers[labels] + draws.normal(size=(count, 16))).astype(np.float32)
        return Collection(vectors, to_bytes(draws.random((count, 24)) < 0.5), labels)

    return side(60), side(12)


def _row(rows: list[RetrievalRow], name: str) -> RetrievalRow:
    (found,) = [row for row in rows if row.name == name]
    return found


def test_rows_hold_every_kind_of_code_once_with_and_without_rescoring(sides: tuple[Collection, Collection]) -> None:
    rows = label_retrieval(*sides, bits=(8, 32))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for name in ("sign 16", "pca 8", "pca 16", "rotation 8", "rotation 32", "itq 8", "itq 16", "tokenizer bits 24"):
        assert {name, f"{name} + rescoring"} <= set(names)
        assert (f"{name}, float query" in names) == ("tokenizer" not in name)
    assert {"rabitq 8, float query", "rabitq 32, float query"} <= set(names)
    without = label_retrieval(sides[0]._replace(tokens=None), sides[1], bits=(8,))
    assert "tokenizer bits 24" not in [row.name for row in without]


def test_a_shortlist_of_everything_gives_the_float_row(sides: tuple[Collection, Collection]) -> None:
    rows = label_retrieval(*sides, bits=(8,), shortlist=60)
    first = rows[0]
    for row in rows:
        if row.rescored:
            assert row.map_at_all == pytest.approx(first.map_at_all)
            assert row.share_of_float == pytest.approx(100)
    short = _row(label_retrieval(*sides, bits=(8,), shortlist=1), "pca 8 + rescoring")
    assert short.map_at_all == pytest.approx(_row(rows, "pca 8").map_at_all, abs=5)


def test_rows_are_retrieval_by_their_codes(sides: tuple[Collection, Collection]) -> None:
    base, queries = sides
    row = _row(label_retrieval(base, queries, bits=(8,)), "tokenizer bits 24")
    assert base.tokens is not None
    assert queries.tokens is not None
    bits = [np.unpackbits(side, axis=1).astype(int) for side in (queries.tokens, base.tokens)]
    expected = retrieval(
        (bits[0][:, None] != bits[1]).sum(axis=2), queries.labels, base.labels, depths=(None,), k=(60,)
    )
    assert row.map_at_all == pytest.approx(expected.map_at[None])
    assert row.map_at_all_bounds == pytest.approx(expected.map_bounds[None])
    assert row.precision == pytest.approx(expected.precision[60])


def test_recall_of_float_is_counted_over_the_orders_of_ties(sides: tuple[Collection, Collection]) -> None:
    rows = label_retrieval(*sides, bits=(8,), shortlist=10)
    assert rows[0].recall_of_float == 100
    assert _row(rows, "sign 16 + rescoring").recall_of_float < 100  # the shortlist lacks some
    truth = np.array([[0, 3]])  # the two nearest by floats; by bits, one of rows 1, 2 and 3 is among the two nearest
    distances = np.array([[1.0, 2.0, 2.0, 2.0, 5.0]])
    found = label_retrieval_module._recall(lambda rows: distances[rows], truth)
    assert found == pytest.approx(100 * (1 + 1 / 3) / 2)


@pytest.mark.parametrize("n_bits", [6, 16, 40])
def test_rabitq_estimates_the_cosine(sides: tuple[Collection, Collection], n_bits: int) -> None:
    base, queries = sides
    ours, theirs = (x.vectors / np.linalg.norm(x.vectors, axis=1, keepdims=True) for x in (queries, base))
    estimate = -rabitq(queries.vectors, base.vectors, n_bits)(slice(0, 12))
    assert np.corrcoef(estimate.ravel(), (ours @ theirs.T).ravel())[0, 1] > 0.75
    again = -rabitq(queries.vectors, base.vectors, n_bits)(slice(3, 5))
    np.testing.assert_allclose(again, estimate[3:5], rtol=1e-5)


def test_the_shortlist_stays_in_front_of_all_others() -> None:
    """By cosine among themselves, also where that is far and the others are near by bits."""
    bits = np.array([[0, 1, 2, 1]])
    cosine = np.array([[1.9, 0.5, 0.0, 0.0]])
    found = label_retrieval_module._rescored(lambda rows: bits[rows], lambda rows: cosine[rows], 2, slice(0, 1))
    assert np.argsort(found[0], kind="stable").tolist() == [1, 0, 3, 2]


def test_a_data_base_too_small_for_a_binarizer_is_measured_without(
    sides: tuple[Collection, Collection], caplog: pytest.LogCaptureFixture
) -> None:
    base = Collection(*(None if part is None else part[:20] for part in sides[0]))  # type: ignore[arg-type]
    names = [row.name for row in label_retrieval(base, sides[1], bits=(8, 16))]
    assert {"itq 8", "pca 16"} <= set(names)
    assert "itq 16" not in names
    assert "itq of 16 bits is left out: 20 rows" in caplog.text


@pytest.mark.parametrize(("options", "named"), [({"bits": ()}, "bits="), ({"shortlist": 0}, "shortlist=0")])
def test_impossible_settings_are_named(
    sides: tuple[Collection, Collection], options: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        label_retrieval(*sides, **options)  # type: ignore[arg-type]


# ---- commands


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(tiny_model(), tmp_path_factory.mktemp("model") / "tiny"))


def _run(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_retrieval_command(model: str, tmp_path: Path) -> None:
    shared = ("retrieval", "--dataset", "digits", "--limit", "60", "--test-limit", "20", "--bits", "8", "--cache",
              str(tmp_path), "--model")  # fmt: skip
    text = _run(*shared, model, "--layer", "-1")
    assert "20 of 599 test images as queries" in text
    assert "tokenizer bits" in text
    found = json.loads(_run(*shared, "pixels:8", "--json"))
    assert found["rows"][0]["share_of_float"] == 100
    assert found["rows"][0]["map_at_all"] > 60
    assert not [row for row in found["rows"] if row["codes"] == "tokenizer bits"]


@pytest.mark.slow
def test_generation_command_reads_what_generate_writes(model: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "real", 8)
    arrays = [np.asarray(open_images(tmp_path / "real").load(row).resize((16, 16))) for row in range(8)]
    np.savez(tmp_path / "same.npz", np.stack(arrays))
    for row, array in enumerate(arrays):
        (tmp_path / "small").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "small" / f"{row}.png")
    options = ("--model", model, "--layer", "1", "--cache", str(tmp_path / "cache"), "--json")
    same = json.loads(_run("generation", str(tmp_path / "same.npz"), "--real", str(tmp_path / "small"), *options))
    assert same["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert same["precision"] == same["recall"] == 1
    assert "layer 1" in same["extractor"]
    write_pictures(tmp_path / "other", 8, first=100)
    other = json.loads(_run("generation", str(tmp_path / "other"), "--real", str(tmp_path / "small"), *options))
    assert other["frechet_distance"] > same["frechet_distance"]


def test_features_of_any_network_are_compared(tmp_path: Path) -> None:
    real, drawn = np.random.default_rng(0).normal(size=(2, 40, 5))
    np.savez(tmp_path / "real.npz", features=real)
    np.save(tmp_path / "drawn.npy", drawn)
    sides = f"features:{tmp_path}/drawn.npy", f"features:{tmp_path}/real.npz"
    found = json.loads(_run("generation", sides[0], "--real", sides[1], "--json"))
    assert found["frechet_distance"] == pytest.approx(frechet_distance(real, drawn))
    assert (found["extractor"], found["n_real"], found["n_generated"]) == ("real", 40, 40)
    assert [Path(file).name for file in found["model"]["files"]] == ["real.npz", "drawn.npy"]
    table = _run("generation", sides[0], "--real", sides[1], "--format", "csv", "--model", "clip")
    (line,) = csv.DictReader(io.StringIO(table))
    assert line["features"] == "clip"
    assert float(line["Fréchet distance"]) == found["frechet_distance"]
    write_pictures(tmp_path / "photos", 4)
    for arguments, said in (
        ([sides[0], "--real", f"{tmp_path}/photos"], "one side has features and the other images"),
        ([f"{tmp_path}/drawn.npy", "--real", f"{tmp_path}/photos"], f"give features:{tmp_path}/drawn.npy"),
        ([f"{tmp_path}/real.npz", "--real", f"{tmp_path}/photos"], f"give features:{tmp_path}/real.npz"),
        ([sides[0], "--real", sides[1], "--layer", "1"], "no layer"),
    ):
        assert said in str(CliRunner().invoke(app, ["generation", *arguments]).exception)
    (tmp_path / "none").mkdir()
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "good.npz", images)
    other = CliRunner().invoke(app, ["generation", f"{tmp_path}/good.npz", "--real", f"{tmp_path}/none"]).exception
    both = ["--real", f"{tmp_path}/good.npz", "--real", f"{tmp_path}/none"]
    for error in (other, CliRunner().invoke(app, ["generation", f"{tmp_path}/photos", *both]).exception):
        assert error is not None
        assert "holds features" not in str(error)  # the file that can be read is not at fault
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    damaged = CliRunner().invoke(app, ["generation", f"{tmp_path}/bad.parquet", *both]).exception
    assert isinstance(damaged, ImageError)
    assert f"give features:{tmp_path}/bad.parquet" in str(damaged)
    several = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["generation", sides[0], "--real", sides[1], "--real", "x"])
    assert "features are given as one file" in several.output


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["retrieval", "--dataset", "digits", "--layer", "1,2"], 2, "several"),
        (["retrieval", "--dataset", "digits", "--layer", "1", "2"], 2, "several"),
        (["retrieval", "--dataset", "digits", "--model", "tokenizer-bits"], 1, "only bits"),
        (["generation", "broken.npz", "--real", "examples"], 1, "broken.npz"),
        (["generation", "words.npz", "--real", "examples"], 1, "arr_0"),
        (["generation", "flat.npz", "--real", "examples"], 1, "(n, H, W, 3)"),
    ],
)
@pytest.mark.slow
def test_wrong_usage_and_failures_are_one_line(
    arguments: list[str],
    code: int,
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "flat.npz", np.zeros((4, 4), np.uint8))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "flat.npz").read_bytes()[:40])
    np.savez(tmp_path / "words.npz", words=np.array(["a"]))
    options = ["--limit", "20", "--test-limit", "10"] if arguments[0] == "retrieval" else []
    monkeypatch.setattr(sys, "argv", ["bigr-repr", "bench", *arguments, *options, "--cache", str(tmp_path / "cache")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    found = capsys.readouterr().err
    assert named in found
    assert "Traceback" not in found
