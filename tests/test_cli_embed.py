"""`bigr-repr embed` as its users meet it: exit codes, errors of one line, a useful summary, and no work lost."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bigr_repr_cli import main
from forks import HEEDING, Forked, start
from tiny_model import tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import save
from bigr_repr.embed import EmbeddingSet, read_embeddings
from bigr_repr.features.extract import extract_features

Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "bigr_repr_cli"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    save(tiny_model(), folder / "model")
    write_pictures(folder / "photos" / "a", 4)
    write_pictures(folder / "photos" / "b", 3, first=4)
    return folder


@pytest.fixture
def bigr(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, in an empty folder: (exit code, stdout, stderr)."""

    def run(*arguments: str | Path, model: Path | str = place / "model") -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bigr-repr", *map(str, arguments), "--model", str(model)])
        with pytest.raises(SystemExit) as caught:
            main.main()
        return (caught.value.code or 0, *capfd.readouterr())  # type: ignore[return-value]

    return run


@pytest.mark.slow
def test_the_whole_way_in_a_process_of_its_own(place: Path, tmp_path: Path) -> None:
    arguments = ["embed", place / "photos", "--layer", "2", "--model", place / "model"]
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, rows, _, line = done.stdout.splitlines()
    assert first.startswith("7 images: 7 rows, 0 failures, ")
    assert rows == "rows: embeddings/part-00000.parquet"
    script = f"{line}; print(data.vectors.shape, data.paths[0])"
    pasted = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=True)
    assert pasted.stdout == "(7, 64) a/00000.png\n"


@pytest.mark.slow
def test_layers_in_either_notation(place: Path, tmp_path: Path, bigr: Run) -> None:
    assert (
        bigr("embed", place / "photos", "--layer", "0,3", "--layer", "mid", "--codes", "--labels-from-folders")[0] == 0
    )
    opened = EmbeddingSet(tmp_path / "embeddings")
    assert (opened.layers, opened.n_bits) == ((0, 3, 2), 192)
    data = read_embeddings(tmp_path / "embeddings", 3)
    expected = extract_features(place / "photos", model=place / "model", layer=3, device="cpu")
    np.testing.assert_allclose(data.vectors, expected, rtol=0, atol=1e-5)
    assert data.labels == ["a"] * 4 + ["b"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["--store-dtype", "--dtype"])  # the second one: its former name
def test_vectors_are_stored_and_computed_as_asked(place: Path, tmp_path: Path, bigr: Run, name: str) -> None:
    assert bigr("embed", place / "photos", "--layer", "2", name, "float16", "--precision", "bf16")[0] == 0
    opened = EmbeddingSet(tmp_path / "embeddings")
    assert (opened.provenance["dtype"], opened.provenance["precision"]) == ("float16", "bfloat16")
    assert opened.read().vectors.dtype == np.float16


def test_layers_as_several_words(place: Path, tmp_path: Path, bigr: Run) -> None:
    (tmp_path / "2").mkdir()
    write_pictures(tmp_path / "2", 1)
    assert bigr("embed", "--layer", "0", "3", "-1", "2", "--codes", place / "photos" / "a")[0] == 0
    opened = EmbeddingSet(tmp_path / "embeddings")
    assert opened.layers == (0, 3)  # -1 is block 3 as well
    assert len(read_embeddings(tmp_path / "embeddings", 0).paths) == 5  # 2 is a folder here


def test_the_line_of_python_reads_one_of_several_layers(place: Path, tmp_path: Path, bigr: Run) -> None:
    _, text, _ = bigr("embed", place / "photos", "--layer", "1,-1", "--out", tmp_path / "it's")
    scope: dict[str, object] = {}
    exec(text.splitlines()[-1], scope)
    assert len(scope["data"].paths) == 7  # type: ignore[attr-defined]


def test_a_list_on_stdin(place: Path, tmp_path: Path, bigr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [str(place / "photos/b/00005.png"), str(tmp_path / "go*ne.png"), str(place / "photos/a/00000.png")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\0".join(listed).encode())))
    code, text, _ = bigr("embed", "-", "--layer", "2", "--json")
    record = json.loads(text)
    assert (code, record["inputs"], record["rows"], record["failures"], record["out"]) == (0, 3, 2, 1, "embeddings")
    assert read_embeddings(tmp_path / "embeddings").paths == [listed[0], listed[2]]


@pytest.mark.slow
def test_failures_are_counted_and_listed(place: Path, tmp_path: Path, bigr: Run) -> None:
    write_pictures(tmp_path / "in", 3)
    (tmp_path / "in/00001.png").write_bytes(b"")
    code, text, _ = bigr("embed", "in", "--layer", "2")
    assert code == 0
    assert "3 images: 2 rows, 1 failures" in text
    assert "failures: embeddings/failures.jsonl" in text
    write_pictures(tmp_path / "in", 3)
    code, text, _ = bigr("embed", "in", "--layer", "2", "--retry-failed")
    assert "3 images: 3 rows, 0 failures" in text
    assert "2 of them were done before" in text


def test_nothing_but_failures_is_a_failure(tmp_path: Path, bigr: Run) -> None:
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    code, text, error = bigr("embed", "junk.jpg", "--layer", "2")
    assert code == 1
    assert "0 rows, 1 failures" in text
    assert error.splitlines()[-1].startswith("error: none of the images could be embedded")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty"], "the folder holds no image"),
        (["photos", "--layer", "9"], "layer=9 is outside 0..3"),
        (["photos", "--layer", "2", "--out", "file"], "file is a file"),
        (["photos", "--layer", "2", "--out", "file/out"], "Not a directory"),
        (["photos", "--layer", "2", "--device", "quantum"], "device='quantum' is unknown"),
        (["photos", "--layer", "1", "--out", "taken"], "layers was [2], is [1]"),
        (["photos", "--layer", "2", "--out", "taken", "--no-resume"], "already holds embeddings"),
    ],
)
def test_what_goes_wrong_is_one_line(
    place: Path, tmp_path: Path, bigr: Run, arguments: list[str], message: str
) -> None:
    (tmp_path / "photos").symlink_to(place / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    if "taken" in arguments:
        assert bigr("embed", "photos", "--layer", "2", "--out", "taken")[0] == 0
    code, text, error = bigr("embed", *arguments)
    assert (code, text) == (1, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--overwrite --update", "--overwrite removes the rows that --update would continue from"),
        (
            "--retry-failed --update --overwrite",
            "--overwrite removes the rows that --retry-failed and --update would continue from; leave one of them out",
        ),
        ("--overwrite --verify", "--overwrite removes the rows that --verify would continue from"),
        ("--no-resume --retry-failed", "--no-resume refuses the rows that --retry-failed would continue from"),
        ("--no-resume --update", "--no-resume refuses the rows that --update would continue from"),
        ("--overwrite --no-resume", "--overwrite removes the rows that --no-resume protects"),
        ("--drop-gone", "--drop-gone needs"),
        ("--label-column class", "has no effect without --labels-from-folders"),
        ("--dtype float32 --store-dtype float16", "is the old name of --store-dtype and contradicts it"),
        ("--precision int8 --engine ray", "int8 runs on this machine's CPU"),
        ("--precision int8 --device cuda:1 --compile", "int8 runs on this machine's CPU"),
    ],
)
def test_options_that_exclude_each_other_are_refused(place: Path, bigr: Run, options: str, said: str) -> None:
    code, text, error = bigr("embed", place / "photos", "--layer", "2", *options.split())
    assert code in (1, 2)
    assert text == ""
    assert said in " ".join(error.replace("│", "").split())
    assert not Path("embeddings").exists()


def test_an_unknown_model_is_one_line(place: Path, bigr: Run) -> None:
    code, _, error = bigr("embed", place / "photos", model="bigr-unheard-of")
    assert (code, error.count("\n")) == (1, 1)
    assert "bigr-unheard-of" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [[], ["photos", "--layer", "twelve"], ["-", "photos"], ["photos", "--pool", "sum"], ["photos", "--unheard-of"]],
)
def test_wrong_usage_is_exit_code_2(bigr: Run, arguments: list[str]) -> None:
    code, text, error = bigr("embed", *arguments)
    assert (code, text) == (2, "")
    assert "Traceback" not in error


# The command, which waits to be ended when it has done half of the units: however late that comes, it has not ended.
HELD = f"""
import time
from bigr_repr.embed.dataset.ledger import Ledger
seal = Ledger.seal
def held(self, unit, record):
    seal(self, unit, record)
    while unit >= 10:
        time.sleep(1)
Ledger.seal = held
{HEEDING}
"""


def begin(inputs: Path, tmp_path: Path, sealed: int, *more: str, code: str = HELD) -> Forked:
    """A run in a process of its own, in units of four, that has sealed so many of them."""
    arguments = ["embed", inputs, "--layer", "2", "--model", inputs.parent / "model", "--out", tmp_path / "out"]
    options = ["--unit-size", "4", "--batch-size", "2", "--workers", "1"]
    process = start(code, [*arguments, *options, *more])
    while len(list((tmp_path / "out/_run/units").glob("*.json"))) < sealed:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.slow
def test_a_run_that_was_ended_goes_on_where_it_was(place: Path, tmp_path: Path, bigr: Run, end: signal.Signals) -> None:
    write_pictures(place / "some", 80)
    process = begin(place / "some", tmp_path, 3)
    process.send_signal(end)
    _, error = process.communicate(timeout=120)
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in error
        assert "repeat the command to continue" in error
    done = len(list((tmp_path / "out/_run/units").glob("*.json")))
    assert 3 <= done < 20
    again = ["embed", place / "some", "--layer", "2", "--batch-size", "2"]
    code, text, _ = bigr(*again, "--out", tmp_path / "out", "--json")
    assert code == 0
    record = json.loads(text)
    assert (record["rows"], record["embedded"]) == (80, 80 - 4 * done)
    bigr(*again, "--out", tmp_path / "whole", "--unit-size", "4")
    resumed, whole = read_embeddings(tmp_path / "out"), read_embeddings(tmp_path / "whole")
    assert resumed.paths == whole.paths
    np.testing.assert_allclose(resumed.vectors, whole.vectors, rtol=0, atol=1e-6)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.slow
def test_devices_whose_run_was_killed_never_write_beside_the_next(place: Path, tmp_path: Path, bigr: Run) -> None:
    write_pictures(place / "many", 160)
    process = begin(place / "many", tmp_path, 3, "--device", "cpu,cpu", code=HEEDING)
    process.kill()
    process.communicate(timeout=120)
    again = ["embed", place / "many", "--layer", "2", "--batch-size", "2", "--decode-timeout", "0"]
    deadline = time.monotonic() + 120
    while (done := bigr(*again, "--out", tmp_path / "out"))[0]:
        assert "another process is embedding into this folder" in done[2]  # as long as they are at it
        assert time.monotonic() < deadline
    bigr(*again, "--out", tmp_path / "whole", "--unit-size", "4")
    resumed, whole = read_embeddings(tmp_path / "out"), read_embeddings(tmp_path / "whole")
    assert resumed.paths == whole.paths
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    (left,) = Path(tempfile.gettempdir()).glob("bigr-repr-*")  # a run a minute later would remove it
    left.rmdir()


# ---- growing, doubles, devices, and files for others


@pytest.mark.slow
def test_inputs_that_were_added_need_update(place: Path, tmp_path: Path, bigr: Run) -> None:
    write_pictures(tmp_path / "in", 3)
    usual = ["embed", "in", "--layer", "2", "--batch-size", "auto", "--decode-timeout", "0"]
    assert bigr(*usual)[0] == 0
    (tmp_path / "in/00000.png").rename(tmp_path / "in/z.png")
    code, text, error = bigr(*usual)
    assert (code, text, error.count("\n")) == (1, "", 1)
    assert "add new inputs with update" in error
    code, text, _ = bigr(*usual, "--update")
    assert code == 0
    assert text.startswith("4 images: 4 rows, 0 failures")
    assert "3 of them were done before" in text
    assert "gone: embeddings/gone.jsonl" in text


@pytest.mark.slow
def test_doubles_are_counted_and_listed(tmp_path: Path, bigr: Run) -> None:
    paths = write_pictures(tmp_path / "in", 3)
    paths[2].write_bytes(paths[0].read_bytes())
    usual = ["embed", "in", "--layer", "2", "--dedup", "exact", "--sha256", "--device", "cpu,cpu"]
    code, text, _ = bigr(*usual)
    assert code == 0
    assert text.startswith("3 images: 2 rows, 0 failures, 1 duplicates, ")
    assert "duplicates: embeddings/duplicates.jsonl" in text
    assert "before" not in text


def test_a_picture_that_takes_too_long_or_is_too_large_is_a_failure(tmp_path: Path, bigr: Run) -> None:
    write_pictures(tmp_path / "in", 2)
    code, _, _ = bigr("embed", "in", "--layer", "2", "--max-pixels", "100")
    assert code == 1
    kinds = [json.loads(line)["error"] for line in (tmp_path / "embeddings/failures.jsonl").read_text().splitlines()]
    assert kinds == ["too-large"] * 2


@pytest.mark.parametrize(
    "arguments", [["--batch-size", "0"], ["--batch-size", "many"], ["--decode-timeout", "-1"], ["--dedup", "near"]]
)
def test_wrong_values_of_the_new_options_are_usage(bigr: Run, arguments: list[str]) -> None:
    assert bigr("embed", "photos", *arguments)[0] == 2


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs bigr-repr embed export in this process."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bigr-repr", "embed", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main.main()
        return (caught.value.code or 0, *capfd.readouterr())  # type: ignore[return-value]

    return run


def test_rows_are_exported(place: Path, tmp_path: Path, bigr: Run, export: Run) -> None:
    assert bigr("embed", place / "photos", "--layer", "1,2", "--decode-timeout", "0")[0] == 0
    code, text, _ = export("embeddings", "--to", "f.npy", "--layer", "2")
    assert (code, text) == (0, "7 x 64 of float32: f.npy\npaths: f.paths.txt\n")
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), read_embeddings(tmp_path / "embeddings", 2).vectors)
    code, text, _ = export("embeddings", "--to", "f.csv", "--layer", "2", "--json")
    assert json.loads(text) == {"files": ["f.csv"], "shape": [7, 64], "dtype": "float32"}
    code, text, error = export("embeddings", "--to", "f.npy")
    assert (code, text, error.count("\n")) == (1, "", 1)
    assert export("embeddings")[0] == 2


def test_a_folder_called_export_can_be_embedded(place: Path, tmp_path: Path, bigr: Run) -> None:
    write_pictures(tmp_path / "export", 2)
    assert bigr("embed", "./export", "--layer", "2", "--decode-timeout", "0")[1].startswith("2 images: 2 rows")
    assert bigr("embed", "--decode-timeout", "0", "--layer", "2", "export")[1].startswith("2 images: 2 rows")
