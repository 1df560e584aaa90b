"""Decoders in processes: what they give, and that a picture can neither end nor hold a run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import types
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import tiny_model, write_pictures

from bigr_repr.embed import embed_images, read_embeddings
from bigr_repr.images import isolated
from bigr_repr.images.formats import ImageError
from bigr_repr.images.isolated import GuardedLoading, Loading
from bigr_repr.system.processes import Child
from bigr_repr.system.threads import map_ahead

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need POSIX")

# Runs in every Python that starts with its folder on the path: pictures of these names crash the decoder, or hold it.
SABOTAGE = """
import os, pathlib, signal, sys
from bigr_repr.images import decode
plain = decode.decode_image
def decode_image(source, **options):
    name = pathlib.Path(options["name"]).name
    if "crash" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in name:
        pathlib.Path(options["name"] + ".begun").touch()
    while "hang" in name:
        pass
    died = pathlib.Path(options["name"] + ".died")
    if "once" in name and not died.exists():
        died.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(source, **options)
if sys.flags.safe_path:  # only where the package started it
    decode.decode_image = decode_image
"""


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def spoilt(folder: Path, names: list[str]) -> list[Path]:
    """Pictures 00000.png and so on, the last of which get these names."""
    paths = write_pictures(folder, 4 + len(names))
    for path, name in zip(paths[4:], names, strict=True):
        path.rename(folder / name)
    return paths


def test_processes_give_what_threads_give(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 6)
    paths[2].write_bytes(b"junk")
    loading = Loading(size=32, max_pixels=10**6, sha256=True)
    guarded = GuardedLoading(loading, 60)
    try:
        for path in [paths[0], paths[5]]:
            for source in (str(path), path.read_bytes()):
                ours, theirs = loading(source, "x"), guarded(source, "x")
                np.testing.assert_array_equal(ours.pixels, theirs.pixels)
                assert ours.sha256 == theirs.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(ImageError, match="name of it") as caught:
            guarded(str(paths[2]), "name of it")
        assert caught.value.kind == "not-an-image"
    finally:
        guarded.close()


def test_a_thread_has_a_process_and_closing_ends_them(tmp_path: Path) -> None:
    paths = [str(path) for path in write_pictures(tmp_path, 12)]
    guarded = GuardedLoading(Loading(size=32, max_pixels=10**6), 60)
    loaded = list(map_ahead(lambda path: guarded(path, path).pixels, paths, workers=2))
    assert len(loaded) == 12
    processes = [child._process for child in guarded._children]
    assert 1 <= len(processes) <= 2
    guarded.close()
    assert all(process.poll() is not None for process in processes)


@pytest.mark.usefixtures("sabotage")
@pytest.mark.slow
def test_a_crash_and_an_endless_loop_cost_a_picture_each(tmp_path: Path) -> None:
    pre = tiny_model()
    spoilt(tmp_path / "in", ["crash-a.png", "crash-b.png", "hang.png", "once.png"])
    options = {"model": pre, "layers": [2], "unit_size": 4, "batch_size": 4, "workers": 2}
    done = embed_images(tmp_path / "in", tmp_path / "out", decode_timeout=5, **options)  # type: ignore[arg-type]
    assert (done.rows, done.failures) == (5, 3)
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert [line.split('"error": ')[1].split(",")[0] for line in lines] == ['"crashed"', '"crashed"', '"timeout"']
    assert all("it crashed its decoder twice" in line for line in lines[:2])
    assert "SIGSEGV" in lines[0]
    assert "decode_timeout=5" in lines[2]
    # Threads of this process are not sabotaged.
    whole = embed_images(tmp_path / "in", tmp_path / "whole", decode_timeout=None, **options)  # type: ignore[arg-type]
    assert whole.rows == 8
    found, expected = (read_embeddings(tmp_path / name) for name in ("out", "whole"))
    rows = dict(zip(expected.paths, expected.vectors, strict=True))
    assert len(found.paths) == 5
    assert "once.png" in found.paths  # killed from outside, as it were: tried again
    for path, vector in zip(found.paths, found.vectors, strict=True):
        np.testing.assert_array_equal(vector, rows[path])


@pytest.mark.slow
@pytest.mark.usefixtures("sabotage")
def test_a_decoder_without_a_caller_ends(tmp_path: Path) -> None:
    path = spoilt(tmp_path / "in", ["hang.png"])[-1].parent / "hang.png"
    child = Child("bigr_repr.images.isolated", "_serve")
    connection: Any = child.connection
    connection.send((Loading(size=32, max_pixels=10**6), -4.5))  # its timer is 10 seconds longer than twice that
    assert connection.recv_bytes() == b"ready"
    connection.send((str(path), str(path)))
    connection.close()  # as when the caller is killed
    assert child._process.wait(60) == -signal.SIGALRM


@pytest.mark.slow
@pytest.mark.usefixtures("sabotage")
def test_ctrl_c_does_not_wait_for_a_decoder_that_hangs(tmp_path: Path) -> None:
    spoilt(tmp_path / "in", ["hang.png"])
    options = {"model": tiny_model(), "layers": [2], "unit_size": 4, "batch_size": 4, "workers": 2}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    done = threading.Event()

    def press() -> None:
        while not (tmp_path / "in/hang.png.begun").exists() and not done.wait(0.02):
            pass
        if not done.wait(0.2):
            signal.pthread_kill(main, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    try:
        with pytest.raises(KeyboardInterrupt):  # not an end after the hour that the picture may take
            embed_images(tmp_path / "in", tmp_path / "out", decode_timeout=3600, **options)  # type: ignore[arg-type]
    finally:
        done.set()
        pressing.join()
        signal.signal(signal.SIGINT, before)


def test_decoders_that_do_not_start_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    guarded = GuardedLoading(Loading(size=32, max_pixels=10**6), 60)
    with pytest.raises(RuntimeError, match="does not start"):
        guarded("x.png", "x")


# ---- what the process does, in this one


def test_a_decoder_answers_one_picture_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: list[float] = []
    limits: list[int] = []
    timer = types.SimpleNamespace(ITIMER_REAL=0, setitimer=lambda which, seconds: clock.append(seconds))
    monkeypatch.setattr(isolated, "signal", timer)
    monkeypatch.setattr(isolated, "warnings", types.SimpleNamespace(simplefilter=lambda action: None))
    monkeypatch.setattr(isolated, "_limit_memory", limits.append)
    (good,) = write_pictures(tmp_path, 1)
    loading = Loading(size=32, max_pixels=5000, sha256=True, thumbnail=16)
    ours, theirs = Pipe()
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            isolated._serve(theirs)
        except EOFError as error:  # the other end was closed
            ended.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    ours.send((loading, 3.0))
    assert ours.recv_bytes() == b"ready"
    assert limits == [20 * 5000 + (2 << 30)]
    expected = loading(str(good), "a")
    for source in (str(good), good.read_bytes()):
        ours.send((source, "a"))
        assert ours.recv_bytes().decode() == expected.sha256 == hashlib.sha256(good.read_bytes()).hexdigest()
        assert ours.recv_bytes() == expected.pixels.tobytes()
        assert ours.recv_bytes() == expected.thumbnail
    ours.send((b"junk", "b.png"))
    kind, said = json.loads(ours.recv_bytes())
    assert kind != ""
    assert "b.png" in said
    ours.close()
    thread.join(10)
    assert len(ended) == 1
    assert clock == [16.0, 0] * 3  # twice the time and ten seconds, and none while nothing is decoded


@pytest.mark.parametrize(("most", "limit"), [(-1, 500), (300, 300), (900, 500)])
def test_memory_is_limited_where_the_system_sees_to_that(
    most: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = types.ModuleType("resource")
    found: list[Any] = []
    double.RLIMIT_AS, double.RLIM_INFINITY = 9, -1  # type: ignore[attr-defined]
    double.getrlimit = lambda which: (7, most)  # type: ignore[attr-defined]
    double.setrlimit = lambda which, pair: found.append((which, pair))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resource", double)
    isolated._limit_memory(500)
    assert found == [(9, (limit, most))]
    monkeypatch.setitem(sys.modules, "resource", None)
    isolated._limit_memory(500)
    assert len(found) == 1
