"""Files that embed and its export must not replace, and what they say."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bigr_repr_cli.embed.metrics import METRICS_START, metrics_text
from bigr_repr_cli.embed.watch import Meter
from test_embed_growth import run
from test_sources import encoded, write_tar
from tiny_model import picture, tiny_model, write_pictures

import bigr_repr as br
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import embed_images, export_embeddings
from bigr_repr.embed.engines.eight_bits import NETWORK
from bigr_repr.embed.options import EmbedOptions
from bigr_repr.features.exported.model import ExportedModel
from bigr_repr.features.exported.write import export_model

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--layer", "1", "--model", "model")
PRE = tiny_model(layers=2, side=8, levels=2)  # few operations: each is compiled


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    br.save(PRE, tmp_path / "model")
    write_pictures(tmp_path / "in", 3)
    return tmp_path


# ---- the 8-bit network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in 8 bits of the model."""
    pytest.importorskip("openvino", reason="the extra export is not installed")
    folder = tmp_path_factory.mktemp("network") / "int8"
    pixels = np.stack([np.asarray(picture(number, 8, 8)) for number in range(3)])
    export_model(folder, model=PRE, layer=1, to="openvino", precision="int8", calibrate=list(pixels))
    return folder


@pytest.fixture
def exports(network: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where networks are exported to; a copy stands for each."""
    made = list[Path]()

    def copied(out: Path, **options: Any) -> ExportedModel:
        made.append(out)
        return br.load_exported(shutil.copytree(network, out))

    monkeypatch.setattr("bigr_repr.features.exported.write.export_model", copied)
    return made


INT8 = ("embed", "in", *SMALL, "--precision", "int8", "--out")


@pytest.mark.slow
def test_a_refused_run_leaves_the_network_of_the_rows(place: Path, bigr: Run, exports: list[Path]) -> None:
    """Whatever it is refused for."""
    assert bigr(*INT8, "q")[0] == 0
    before = contents(place / "q")
    assert any(name.startswith(NETWORK) for name in before)
    held = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", held, place / "q/_run/lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        code, _, error = bigr(*INT8, "q", "--overwrite")
        other.communicate(b"\n")
    assert (code, "another process is embedding" in error) == (1, True)
    br.save(tiny_model(layers=2, side=8, levels=2, seed=1), place / "second")
    code, _, error = bigr(*INT8, "q", "--model", "second")
    assert (code, "weights_sha256 was" in error) == (1, True)
    write_pictures(place / "in", 1, first=7)
    code, _, error = bigr(*INT8, "q")
    assert (code, "inputs were 3, are 4" in error) == (1, True)
    assert len(exports) == 1
    assert contents(place / "q") == before


@pytest.mark.slow
def test_overwriting_replaces_the_network_only_with_the_rows(
    place: Path, bigr: Run, exports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bigr(*INT8, "q")[0] == 0
    before, inode = contents(place / "q"), (place / "q" / NETWORK).stat().st_ino

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    with monkeypatch.context() as disk:  # once the network is made, and before the rows are removed
        disk.setattr("bigr_repr.embed.job.revoke_plan", full)
        code, _, error = bigr(*INT8, "q", "--overwrite")
    assert (code, "No space left" in error, len(exports)) == (1, True, 2)
    changed = [name for name, content in contents(place / "q").items() if before.get(name) != content]
    assert all(name.startswith("_run/") for name in changed), changed
    assert not list((place / "q").glob(".*"))
    assert bigr(*INT8, "q", "--overwrite")[0] == 0
    assert (place / "q" / NETWORK).stat().st_ino != inode
    assert sorted(path.name for path in (place / "q").glob("*net*")) == [NETWORK]
    assert len(exports) == 3
    (place / "q" / NETWORK).rename(place / "elsewhere")
    code, _, error = bigr(*INT8, "q")
    assert (code, "the network that made the rows in q is missing" in error) == (1, True)
    assert len(exports) == 3


@pytest.mark.slow
def test_the_network_of_another_model_is_not_used(place: Path, bigr: Run, network: Path) -> None:
    """Also if there are no rows yet."""
    br.save(tiny_model(layers=2, side=8, levels=2, seed=1), place / "second")
    shutil.copytree(network, place / "q" / NETWORK)
    code, _, error = bigr(*INT8, "q", "--model", "second")
    assert (code, "network-int8 is another network: weights was" in error) == (1, True)
    code, _, error = bigr(*INT8, "q", "--layer", "0")
    assert (code, "network-int8 is another network: layers was [1], is [1, 0]" in error) == (1, True)


def test_other_rows_are_refused_before_a_network_is_made(
    place: Path, bigr: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigr_repr.features.exported.write.export_model", lambda *arguments, **options: 1 / 0)
    assert bigr("embed", "in", *SMALL, "--out", "f")[0] == 0
    before = contents(place / "f")
    code, _, error = bigr(*INT8, "f")
    assert (code, "holds other embeddings: dtype was float32, is openvino int8 with float32" in error) == (1, True)
    assert contents(place / "f") == before
    (place / "g" / NETWORK).mkdir(parents=True)
    (place / "g" / NETWORK / "mine").touch()
    for more in ((), ("--overwrite",)):
        code, _, error = bigr(*INT8, "g", *more)
        assert (code, "mine is not part of a network in 8 bits; move it away" in error) == (1, True)


# ---- exports


@pytest.fixture(scope="module")
def stored(pre: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    write_tar(folder / "in.tar", [(f"{number}.png", encoded(number)) for number in range(3)])
    embed_images(folder / "in.tar", folder / "out", model=pre, layers=[1], codes=True, decode_timeout=None)
    return folder / "out"


def test_an_export_of_paths_with_several_lines_is_replaced(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in" / 'a, "b"\nc\r', 2)
    embed_images(tmp_path / "in", tmp_path / "out", model=pre, layers=[1], codes=True, labels_from_folders=True)
    for name in ("codes.csv", "vectors.csv", "codes.npy", "vectors.npy", "vectors.tar"):
        for _ in range(2):
            export_embeddings(tmp_path / "out", tmp_path / name, codes=name.startswith("codes"))


def test_an_export_replaces_only_exports(stored: Path, tmp_path: Path) -> None:
    shard = stored.parent / "in.tar"
    before = shard.read_bytes()
    with pytest.raises(FileExistsError, match=r"in.tar exists and is not an export of bigr-repr; choose another name"):
        export_embeddings(stored, shard)
    assert shard.read_bytes() == before
    np.save(tmp_path / "mine.npy", np.zeros(3))
    (tmp_path / "list.paths.txt").write_text("a list of mine\n")
    (tmp_path / "table.csv").write_text("path,label\na.png,1\n", newline="\r\n")
    (tmp_path / "codes.csv").write_text("path,code\na.png,17\n", newline="\r\n")
    (tmp_path / "mine.h5").write_bytes(b"mine")
    write_tar(tmp_path / "mine.tar", [("000000000.npy", b"1"), ("000000001.npy", b"2")])
    there = contents(tmp_path)
    for name in ("mine.npy", "list.npy", "table.csv", "codes.csv", "mine.h5", "mine.tar"):
        with pytest.raises(FileExistsError, match="exists and is not an export of bigr-repr"):
            export_embeddings(stored, tmp_path / name)
    assert contents(tmp_path) == there


@pytest.mark.parametrize("suffix", ["npy", "csv", "h5", "zarr", "tar"])
def test_an_export_replaces_the_earlier_one_and_an_empty_file(stored: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip({"h5": "h5py", "zarr": "zarr"}.get(suffix, "numpy"))
    if suffix != "zarr":
        (tmp_path / f"f.{suffix}").touch()
    export_embeddings(stored, tmp_path / f"f.{suffix}", codes=True)
    export_embeddings(stored, tmp_path / f"f.{suffix}")
    new = contents(tmp_path)
    export_embeddings(stored, tmp_path / f"g.{suffix}")
    if suffix != "h5":  # holds times
        assert new == {
            name.replace("g.", "f."): content for name, content in contents(tmp_path).items() if "g." in name
        }


def test_an_export_stays_out_of_the_data_set(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(stored)
    before = contents(stored)
    for target in (stored / "part-00000.npy", stored / "_run" / "x.csv", tmp_path / "link" / "x.zarr"):
        with pytest.raises(ValueError, match=r"is in the data set to export, .*; choose a name outside of it"):
            export_embeddings(stored, target)
    with pytest.raises(FileNotFoundError, match="no such folder; create it first"):
        export_embeddings(stored, tmp_path / "nowhere" / "x.csv")
    assert contents(stored) == before


@pytest.mark.parametrize("full", ["fsync", "replace"])
def test_vectors_are_never_beside_the_paths_of_others(
    stored: Path, pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """At whichever step the disk fails, what is there belongs together, and the export can be repeated."""
    write_pictures(tmp_path / "in", 2)
    run(tmp_path / "in", tmp_path / "other", pre, layers=[1])
    for step in range(6):
        export_embeddings(stored, tmp_path / "f.npy")
        left, plain = step, getattr(os, full)

        def fails(*arguments: Any, plain: Any = plain) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return plain(*arguments)

        with monkeypatch.context() as disk:
            disk.setattr(os, full, fails)
            done = True
            try:
                export_embeddings(tmp_path / "other", tmp_path / "f.npy")
            except OSError:
                done = False
        names, vectors = tmp_path / "f.paths.txt", tmp_path / "f.npy"
        if vectors.exists():
            assert len(np.load(vectors)) == len(names.read_text().splitlines())
        if done:
            break
        for path in (names, vectors):
            path.unlink(missing_ok=True)
    assert not list(tmp_path.glob(".*"))


def test_an_array_that_was_being_replaced_can_be_written_again(stored: Path, tmp_path: Path) -> None:
    """A process that is killed between the two files leaves the paths, and the array under its temporary name."""
    export_embeddings(stored, tmp_path / "f.npy")
    (tmp_path / "f.npy").rename(tmp_path / ".f.npy.part")
    export_embeddings(stored, tmp_path / "f.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npy", "f.paths.txt"]


# ---- the file of metrics


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("in/00000.png", "holds no metrics of an earlier run; choose another name"),
        ("in/empty.png", "is an input, in, and would be overwritten"),
        ("out/part-00000.parquet", "is where the rows go, out; choose a file outside of it"),
        ("out/new.prom", "is where the rows go"),
        ("out", "is where the rows go"),
        ("pipe", "is not a regular file"),
    ],
)
def test_metrics_replace_nothing_else(tmp_path: Path, bigr: Run, file: str, said: str) -> None:
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "in/empty.png").touch()
    os.mkfifo(tmp_path / "pipe")
    before = contents(tmp_path)
    code, _, error = bigr("embed", "in", "--out", "out", "--metrics", file, "--model", "nowhere")  # not looked for yet
    assert (code, said in error) == (2, True), error
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_metrics_of_an_earlier_run_are_replaced(place: Path, bigr: Run) -> None:
    assert metrics_text(Meter()).encode().startswith(METRICS_START)
    for file in ("new.prom", "new.prom", "empty.prom"):
        (place / "empty.prom").touch()
        code, _, error = bigr("embed", "in", *SMALL, "--metrics", file)
        assert code == 0, error
        assert "bigr_repr_embed_images_done 3" in (place / file).read_text()


# ---- what is said


def test_a_changed_tar_is_told_by_what_differs(pre: Pretrained, tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("a.png", encoded(1)), ("b.png", encoded(2))])
    run(tmp_path / "t.tar", tmp_path / "out", pre, layers=[1])
    stat = (tmp_path / "t.tar").stat()
    for members, difference in (
        (
            [("a.png", encoded(1) + b"more"), ("b.png", encoded(2))],
            rf"size was {len(encoded(1))}, is {len(encoded(1)) + 4}",
        ),
        ([("c.png", encoded(1)), ("b.png", encoded(2))], "path was a.png, is c.png"),
    ):
        write_tar(tmp_path / "t.tar", members)
        with pytest.raises(ValueError, match=rf"input 0 of .*t.tar: {difference}.*has changed since it was listed"):
            run(tmp_path / "t.tar", tmp_path / "out", pre, layers=[1])
    write_tar(tmp_path / "t.tar", [("a.png", encoded(1)), ("b.png", encoded(2))])
    os.utime(tmp_path / "t.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns // 10**9 * 10**9 + 7))  # in the same second
    with pytest.raises(ValueError, match=r"\.\d{9}, now .*\.000000007"):
        run(tmp_path / "t.tar", tmp_path / "out", pre, layers=[1])


def test_no_rows_are_not_offered_for_reading(tmp_path: Path, bigr: Run) -> None:
    (tmp_path / "broken.png").write_bytes(b"none")
    br.save(PRE, tmp_path / "model")
    code, said, error = bigr("embed", "broken.png", *SMALL)
    assert (code, "none of the images could be embedded" in error) == (1, True)
    assert [line.partition(":")[0] for line in said.splitlines()] == ["1 images", "failures"]


@pytest.mark.parametrize("layers", [1, np.int64(1), np.array(1), [np.int32(1)], iter([1]), "1+0"])
def test_a_single_layer_and_numpy_numbers_are_layers(pre: Pretrained, tmp_path: Path, layers: Any) -> None:
    write_pictures(tmp_path / "in", 1)
    options = EmbedOptions(layers=layers, batch_size=np.int64(2), unit_size=np.int64(3), thumbnails=np.int64(16))  # type: ignore[arg-type]
    for _ in range(2):  # the second goes on with the first
        embed_images(tmp_path / "in", tmp_path / "out", options, model=pre, decode_timeout=None)
    plan = json.loads((tmp_path / "out/_run/plan.json").read_text())
    assert (plan["unit_size"], plan["provenance"]["batch_size"]) == (3, 2)
    assert plan["provenance"]["layers"] == (["1+0"] if layers == "1+0" else [1])


def test_layers_that_are_none_are_told(pre: Pretrained, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    for layers, said in (
        (99, "layer=99 is outside"),
        (1.5, r"layers=1.5 must be blocks: 12"),
        ([1.5], r"layers=\[1.5\] must be"),
        (None, "layers=None must be"),
        (True, "neither a whole number"),
    ):
        with pytest.raises(ValueError, match=said):
            embed_images(tmp_path / "in", tmp_path / "out", model=pre, layers=layers)
    for size in (0, 2.5, "many"):
        with pytest.raises(ValueError, match=f"unit_size={size!r} must be a whole number, at least 1"):
            EmbedOptions(unit_size=size)  # type: ignore[arg-type]
