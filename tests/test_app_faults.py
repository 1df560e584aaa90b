"""The studio when things go wrong at once: other indexes, other studios, full disks; and what it then says to whom."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")

from bigr_repr_cli.app import searching, server, studio
from bigr_repr_cli.app.jobs import StopError
from bigr_repr_cli.app.orders import field_of
from bigr_repr_cli.app.studio import DrawRequest, Studio
from fastapi import Request
from studio_server import Running, served, waited
from test_app import QUICK, SHORT, outcome, photo, running_json, silent, upload
from test_full_disk import room_for
from tiny_model import tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.images.formats import ImageError
from bigr_repr.painting import photos
from bigr_repr.painting.files import PhotoFile
from bigr_repr.painting.pictures import write_png
from bigr_repr.painting.windows import Margins, grow, most_windows, most_windows_around
from bigr_repr.serve import Access, service

__all__ = ["photo"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(Studio(tiny_model(), tmp_path_factory.mktemp("drawn"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of pictures."""
    place = tmp_path_factory.mktemp("pictures")
    for first, name in ((0, "one"), (5, "other")):
        write_pictures(place / name, 5, first=first)
    return [place / "one", place / "other"]


def reached(running: Running, folders: list[Path]) -> dict[str, Any]:
    return {"image": base64.b64encode((folders[0] / "00000.png").read_bytes()).decode(), "k": 2}


# ---- another index


@pytest.mark.slow
def test_another_index_is_opened_while_a_search_goes_on(
    running: Running, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends with what it began with, and nobody waits for it."""
    assert outcome(running, "/search/open", path=str(folders[0]))["state"] == "done"
    before, plain = running.app.state.service, service.search
    begun, go, closed = threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return plain(*arguments)

    def close(own: Callable[[], None] = before.close) -> None:
        own()
        closed.set()

    monkeypatch.setattr(service, "search", slow)
    monkeypatch.setattr(before, "close", close)
    found: list[Any] = []
    body = reached(running, folders)
    searcher = threading.Thread(target=lambda: found.append(running.post("/search/search", **body)))
    searcher.start()
    assert begun.wait(60)
    try:
        assert outcome(running, "/search/open", path=str(folders[1]))["state"] == "done"
        assert running.app.state.service is not before
        assert not closed.is_set()
    finally:
        go.set()
        searcher.join()
    ((status, answer),) = found
    assert (status, answer["hits"][0]["id"], answer["hits"][0]["distance"]) == (200, "00000.png", 0)
    assert closed.wait(60)


@pytest.mark.slow
def test_searches_never_fail_because_indexes_change(running: Running, folders: list[Path]) -> None:
    assert outcome(running, "/search/open", path=str(folders[0]))["state"] == "done"
    body, ended, found = reached(running, folders), threading.Event(), list[int]()

    def search() -> None:
        while not ended.is_set():
            found.append(running.post("/search/search", **body)[0])

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            assert outcome(running, "/search/open", path=str(folders[number % 2]))["state"] == "done"
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert len(found) > 10
    assert set(found) == {200}
    assert waited(lambda: not any(thread.name == "close index" for thread in threading.enumerate()))


# ---- what is said, and to whom


def test_a_picture_is_not_opened_like_a_folder(running: Running, folders: list[Path]) -> None:
    job = outcome(running, "/search/open", path=str(folders[0] / "00000.png"))
    assert (job["state"], job["error"]["field"]) == ("failed", "path")
    assert job["error"]["message"].endswith("00000.png is neither a folder nor a tar or Parquet file; choose a folder")


@pytest.mark.parametrize("field", ["path", "images"])
@pytest.mark.parametrize(
    ("text", "words"), [("~nosuchuser/x", "no such user"), ("n" * 300, "too long"), ("/nowhere", "no such folder")]
)
def test_a_folder_that_cannot_be_opened_is_an_error_of_its_field(
    field: str, text: str, words: str, running: Running, folders: list[Path]
) -> None:
    job = outcome(running, "/search/open", **{"path": str(folders[0]), field: text})
    assert (job["state"], job["error"]["field"]) == ("failed", field)
    assert words in job["error"]["message"]


def test_pictures_of_a_folder_of_pictures_are_refused(running: Running, folders: list[Path]) -> None:
    job = outcome(running, "/search/open", path=str(folders[0]), images=str(folders[1]))
    assert (job["state"], job["error"]["field"]) == ("failed", "images")
    assert "is only for an index" in job["error"]["message"]


def test_files_that_are_no_pictures_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 3)
    for name in ("a.png", "b.png"):
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    drawing, opened = Studio(tiny_model(), tmp_path / "drawn"), list[dict[str, Any]]()

    def listen(app: Any, *_: Any, **__: Any) -> None:
        opened.append(asyncio.run(searching.opened(Request({"type": "http", "app": app}))))
        app.state.finder.close()

    monkeypatch.setattr(server, "run_server", listen)
    server.serve(drawing, "127.0.0.1", 0, browser=False, search=tmp_path / "pictures")
    assert (opened[0]["rows"], opened[0]["unreadable"]) == (3, 2)
    assert "3 rows; files that cannot be read as pictures: 2" in capsys.readouterr().err


def test_a_taken_port_is_told_before_any_picture_is_embedded(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Studio(tiny_model(), tmp_path / "drawn")
    monkeypatch.setattr(searching, "embed_images", None)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="cannot listen on"):
        server.serve(drawing, "127.0.0.1", taken.getsockname()[1], browser=False, search=folders[0])


def test_embedding_at_startup_tells_its_progress(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, float]] = []

    @contextmanager
    def progress(name: str) -> Iterator[Any]:
        yield lambda done, total: told.append((done, total))

    monkeypatch.setattr(server, "counting_progress", progress)
    monkeypatch.setattr(server, "run_server", lambda app, *_, **__: app.state.finder.close())
    server.serve(Studio(tiny_model(), tmp_path / "drawn"), "127.0.0.1", 0, browser=False, search=folders[0])
    assert told[-1] == (5, 5)


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (FileNotFoundError(2, "No such file or directory", "/home/classes/mask.png"), None),
        (OSError("cannot write /home/classes/steps=3.png"), None),
        (ImageError("too-large", "classes.png: 9 x 9 pixels are more than max_pixels=1; raise it"), "photo"),
    ],
)
def test_the_words_of_a_path_are_no_field(error: Exception, field: str | None) -> None:
    assert field_of(error) == field


def test_what_users_are_told_names_no_folders_of_the_server(
    running: Running, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever could not be written or read, in the folder of pictures or in that of uploads."""
    opened, out = upload(running, photo), running.studio.out
    before, said = set(out.iterdir()), []
    with room_for(0):
        for body in ({"kind": "outpaint", "photo": opened}, {"kind": "generate"}, {"kind": "interpolate"}):
            said.append(outcome(running, "/jobs", start="0", end="1", count=2, aspect="3:1", **body, **SHORT)["error"])
        status, _, answer = running.ask("POST", "/pictures?name=a.png", photo.read_bytes())
    assert status == 507
    told = [error["message"] for error in said] + [answer.decode()]
    assert all("free some space" in each for each in told)
    assert set(out.iterdir()) == before
    monkeypatch.setattr(running.studio, "out", tmp_path / "file")
    (tmp_path / "file").write_bytes(b"")
    told.append(outcome(running, "/jobs", kind="generate", **SHORT)["error"]["message"])
    assert told[-1].startswith("file is a file; choose a folder for the pictures")
    for each in told:
        assert "Errno" not in each
        assert not re.search(rf"{out.parent}|{running.folder}|{tmp_path}|/tmp", each), each


@pytest.mark.slow
def test_only_those_who_may_name_folders_see_where_they_are(tmp_path: Path, folders: list[Path]) -> None:
    for access, whole in ((Access(host="0.0.0.0", anyone=True), False), (Access(anyone=True), True)):
        with served(Studio(tiny_model(), tmp_path / "drawn"), access) as opened:
            opened.app.state.finder.open(folders[0], None, lambda *_: None)
            out, path = (running_json(opened, "GET", each) for each in ("/about", "/search/opened"))
            assert out["out"] == (str(tmp_path / "drawn") if whole else "drawn")
            assert path["path"] == (str(folders[0]) if whole else "one")


def test_a_file_in_place_of_the_folder_of_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "drawn").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"/drawn is a file; choose a folder for the pictures"):
        Studio(tiny_model(), tmp_path / "drawn")


def test_pictures_of_no_index_are_refused(bigr: Callable[..., tuple[int, str, str]]) -> None:
    code, _, said = bigr("app", "--images", "/nosuch")
    assert code == 2
    assert "--search" in said


@pytest.mark.parametrize(("precision", "rounded"), [("bf16", True), ("fp32", False)])
def test_a_rounded_model_is_loaded_again_to_search(
    precision: str, rounded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bigr: Callable[..., Any]
) -> None:
    given: list[Studio] = []
    monkeypatch.setattr(server, "serve", lambda drawing, *_, **__: given.append(drawing))
    assert bigr("app", "--no-browser", "--out", str(tmp_path), "--precision", precision)[0] == 0
    (drawing,) = given
    assert (drawing.exact is not drawing.pre) == rounded
    assert {each.dtype for each in drawing.exact.generator.parameters()} == {torch.float32}
    assert drawing.exact.fingerprint == drawing.pre.fingerprint


# ---- before the work


@pytest.mark.parametrize(("width", "height", "side"), [(30, 20, 8), (7, 31, 7), (16, 16, 5), (9, 40, 1)])
def test_windows_around_a_photograph_are_counted_without_a_mask(width: int, height: int, side: int) -> None:
    rng = np.random.default_rng(width)
    for _ in range(30):
        margins = Margins(*rng.integers(0, 40, 4).tolist())
        if any(margins):
            _, mask = grow(np.zeros((height, width, 3), np.uint8), margins)
            assert most_windows_around(width, height, margins, side) == most_windows(mask, side)


def test_too_many_windows_are_refused_before_any_work(
    pre: Pretrained, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "grow", None)
    with pytest.raises(ValueError, match=r"this takes up to 1,4\d\d windows of 64 pixels, more than max_windows=1,000"):
        Studio(pre, tmp_path / "drawn").outpaint(DrawRequest(photo=photo, options=QUICK), 720, silent)


def test_a_full_disk_is_told_before_any_work(
    pre: Pretrained, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, begun = Studio(pre, tmp_path / "drawn"), list[float]()

    def watch(done: float, total: float, look: Any) -> None:
        begun.append(done)

    with room_for(1000):
        with pytest.raises(OSError, match="free some space"):
            drawing.outpaint(DrawRequest(photo=photo, options=QUICK), 3, watch)
        with pytest.raises(OSError, match="free some space"):
            drawing.interpolate("0", "1", 2, QUICK, watch)
    assert not begun
    assert not list(drawing.out.iterdir())


# ---- another studio


DRAWN: dict[str, Callable[[Studio, Path, Any], list[Path]]] = {
    "generate": lambda where, photo, watch: where.generate(["1"], 2, QUICK, watch),
    "interpolate": lambda where, photo, watch: where.interpolate("0", "1", 2, QUICK, watch),
    "outpaint": lambda where, photo, watch: where.outpaint(DrawRequest(photo=photo, options=QUICK), 2, watch),
    "versions": lambda where, photo, watch: where.enrich(
        DrawRequest(photo=photo, mask=np.eye(64, 96, dtype=np.bool_), versions=2, options=QUICK), watch
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("kind", DRAWN)
def test_two_studios_in_one_folder_leave_each_other_alone(
    kind: str, stops: bool, pre: Pretrained, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same second: if one of them stops, its pictures go, and none of the other's."""
    monkeypatch.setattr(studio.time, "strftime", lambda form: "now")
    one, other = (Studio(pre, tmp_path / "drawn") for _ in range(2))
    kept: list[Path] = []

    def watch(*_: Any) -> None:
        if not kept:
            kept.extend(DRAWN[kind](other, photo, silent))
        if stops:
            raise StopError

    if stops:
        with pytest.raises(StopError):
            DRAWN[kind](one, photo, watch)
    else:
        kept += DRAWN[kind](one, photo, watch)
    assert all(path.exists() for path in kept)
    there = {path for path in (tmp_path / "drawn").rglob("*") if path.is_file()}
    assert set(kept) == {path for path in there if "mask" not in path.name and path.suffix != ".json"}
    assert len(set(kept)) == len(kept) == (1 if kind == "outpaint" else 2) * (1 if stops else 2)


def test_versions_of_one_studio_are_not_named_like_the_pictures_of_another(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio.time, "strftime", lambda form: "now")
    one, other, third = (Studio(pre, tmp_path / "drawn") for _ in range(3))
    with one._target("inpainted") as a, other._target("inpainted") as b, third._target("inpainted") as c:
        files = [PhotoFile(photo=b"", out=path) for path in (a, b, c)]
    several = [file.targets(versions) for file in files for versions in (1, studio.MOST_VERSIONS)]
    assert len({path for paths in several for path in paths}) == sum(map(len, several))


def test_a_folder_that_another_program_made_is_not_removed(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = Studio(pre, tmp_path / "drawn")
    plain = Path.mkdir

    def late(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.startswith("generated"):
            plain(path)
            write_png(path / "000000.png", photos.Image.new("RGB", (8, 8)), {})
        plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(FileExistsError):
        drawing.generate(["1"], 1, QUICK, silent)
    assert len(list((tmp_path / "drawn").glob("generated-*/000000.png"))) == 1
