"""Laws of the page in the browser: it paints as the commands do, keeps what it made, and says what went wrong."""

from __future__ import annotations

import dataclasses
import gc
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gradio as gr
import numpy as np
import pytest
from bigr_repr_cli.app.page import Page
from bigr_repr_cli.app.server import build, private_folder
from bigr_repr_cli.app.studio import DrawRequest, Preview, Studio
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient
from tiny_model import tiny_model

import bigr_repr as br
from bigr_repr.painting.pictures import read_provenance
from bigr_repr.sampling.job import given_options

PHOTOS = Path(__file__).parent.parent / "examples" / "images"
QUICK = given_options({"seed": 3, "steps": 2, "diffusion_steps": 2}, fast=True)


@pytest.fixture(autouse=True)
def gradio_leaves_event_loops_open() -> Iterator[None]:
    """Collect them here, where that is no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def pixels(path: Path | str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


def silent(done: float, total: float, picture: Preview | None) -> None:
    assert 0 <= done <= total


def strokes(height: int, width: int) -> list[NDArray[np.uint8]]:
    """A layer as the page sends it: half transparent color where it was painted, nothing elsewhere."""
    layer = np.zeros((height, width, 4), np.uint8)
    layer[height // 4 : height // 2, width // 4 : width // 2] = (255, 48, 96, 176)
    return [layer]


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(br.load("bigr-tiny"), tmp_path / "drawn")


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(pixels(PHOTOS / "coffee.jpg")).resize((320, 200)).save(path)
    return str(path)


def test_strokes_on_a_smaller_copy_mark_the_photograph(studio: Studio, photo: str) -> None:
    before = pixels(photo)
    (path,) = studio.inpaint(DrawRequest(photo=photo, strokes=strokes(100, 160), options=QUICK), silent)
    after = pixels(path)
    inside = np.zeros(before.shape[:2], bool)
    inside[50:100, 80:160] = True
    assert (after[~inside] == before[~inside]).all()
    assert (after[inside] != before[inside]).any()


def test_a_picture_can_be_made_again_from_what_it_says(studio: Studio, photo: str, tmp_path: Path) -> None:
    feather = br.Pasting(blend="feather")
    order = DrawRequest(photo=photo, strokes=strokes(200, 320), label="seashore", pasting=feather, options=QUICK)
    (path,) = studio.inpaint(order, silent)
    said = read_provenance(path)
    (again,) = br.inpaint_photo(
        studio.pre,
        Image.fromarray(pixels(photo)),
        pixels(path.parent / said["masks"][0]["name"]) > 0,
        said["labels"],
        pasting=br.Pasting(**said["pasting"]),
        settings=br.SamplingSettings(**said["settings"]),
        seed=said["seed"],
    )
    assert (np.asarray(again) == pixels(path)).all()


@pytest.mark.slow
def test_every_button_keeps_its_pictures(studio: Studio, photo: str) -> None:
    order = DrawRequest(photo=photo, label="alp", pasting=br.Pasting(window=200), options=QUICK)
    made = [
        studio.outpaint(DrawRequest(photo=photo, versions=2, options=QUICK), 2.0, silent),
        studio.enrich(order, silent),
        studio.enrich(dataclasses.replace(order, strokes=strokes(200, 320)), silent),
        studio.generate(["seashore", "alp"], 3, QUICK, silent),
        studio.generate([], 1, QUICK, silent),
        studio.interpolate("seashore", "alp", 3, QUICK, silent),
    ]
    assert [len(paths) for paths in made] == [2, 1, 1, 3, 1, 2]
    every = [path for paths in made for path in paths]
    assert len(set(every)) == len(every)
    assert all(path.exists() and studio.out in path.parents for path in every)
    assert pixels(made[0][0]).shape == (200, 400, 3)


class Session:
    """What Gradio tells a handler of who asks."""

    session_hash = "one"


def entered(page: Page, **values: Any) -> dict[Any, Any]:
    """Every component's own value, but for those given by the page's names; numbers are typed into fields of text."""
    usual = {part: part.value for part in vars(page).values() if isinstance(part, gr.components.Component)}
    usual |= {part: part.value for part in page.settings.values()}
    for name, value in values.items():
        part = page.settings[name] if name in page.settings else getattr(page, name)
        usual[part] = str(value) if isinstance(part, gr.Textbox) else value
    return usual


def press(page: Page, work: Any, values: dict[Any, Any]) -> list[Any]:
    """What the gallery shows in the end."""
    session: Any = Session()
    page._pressed(session)
    *_, last = page._run(work)(values, Session())
    return cast(list[Any], last)


def test_buttons_paint_with_what_is_entered(studio: Studio, photo: str) -> None:
    page = Page(studio)
    quick = {"steps": 2, "diffusion_steps": 2}
    painted = {"background": None, "layers": strokes(200, 320), "composite": None}
    (path,) = press(page, page._inpaint, entered(page, photo=photo, editor=painted, label="alp", **quick))
    said = read_provenance(Path(path))
    assert (said["classes"], said["settings"]["order"], said["pasting"]["blend"]) == (["alp"], "halton", "feather")
    assert len(press(page, page._outpaint, entered(page, photo=photo, **quick))) == 1
    assert len(press(page, page._enrich, entered(page, photo=photo, editor=painted, window=200, **quick))) == 1
    assert len(press(page, page._generate, entered(page, count=2, **quick))) == 2
    assert [Path(p).suffix for p in press(page, page._interpolate, entered(page, **quick))] == [".gif", ".png"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "no photograph is open"),
        ({"photo": "PHOTO"}, "nothing is marked"),
        ({"photo": "PHOTO", "strokes": True, "temperature": "-1"}, "temperature"),
        ({"photo": "PHOTO", "strokes": True, "window": "5000"}, "window"),
        ({"photo": "PHOTO", "strokes": True, "steps": "5000"}, "5000 iterations"),
        ({"photo": "PHOTO", "strokes": True, "steps": "0"}, "steps"),
        ({"photo": "PHOTO", "strokes": True, "steps": "many"}, "Iterations: 'many' is not a whole number"),
        ({"photo": "PHOTO", "strokes": True, "seed": "1.5"}, r"Seed: '1\.5' is not a whole number"),
        ({"photo": "PHOTO", "strokes": True, "seed": "-1"}, "seed"),
        ({"photo": "PHOTO", "strokes": True, "guidance": "nan"}, "guidance"),
        ({"photo": __file__, "strokes": True}, "test_app.py"),
    ],
)
def test_errors_are_messages_on_the_page(studio: Studio, photo: str, values: dict[str, Any], words: str) -> None:
    page, values = Page(studio), dict(values)
    if values.pop("strokes", False):
        values["editor"] = {"layers": strokes(200, 320)}
    if values.get("photo") == "PHOTO":
        values["photo"] = photo
    with pytest.raises(gr.Error, match=words):
        press(page, page._inpaint, entered(page, **values))
    assert not list(studio.out.iterdir())


def test_a_photograph_opened_again_is_another_to_the_editor(studio: Studio, photo: str) -> None:
    """Else it would keep what was painted on it."""
    page = Page(studio)
    first, second = (page.editor.postprocess(page._opened(photo)[1]) for _ in range(2))  # type: ignore[arg-type]
    assert first is not None
    assert second is not None
    assert first.background != second.background


def test_opening_a_photograph_shows_no_progress(studio: Studio) -> None:
    """With it, Gradio's editor waits for ever if the photograph before was painted on."""
    page = Page(studio)
    (opens,) = [fn for fn in page.blocks.fns.values() if page.editor in fn.outputs]
    assert opens.show_progress == "hidden"


def test_an_unreadable_photograph_is_a_message(studio: Studio) -> None:
    with pytest.raises(gr.Error, match=r"^.?test_app\.py"):  # without the folder, which is the server's
        Page(studio)._opened(__file__)


def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is being drawn shown at every step, however long that takes."""
    monkeypatch.setattr("bigr_repr_cli.app.page._LOOK_SECONDS", 0)
    monkeypatch.setattr("bigr_repr_cli.app.page._LOOK_SHARE", np.inf)


def test_what_is_being_drawn_is_shown(studio: Studio, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look_always(monkeypatch)
    page, painted = Page(studio), {"background": None, "layers": strokes(200, 320), "composite": None}
    values = entered(page, photo=photo, editor=painted, window=200, steps=4, diffusion_steps=2, versions=2, count=2)
    for work in (page._inpaint, page._outpaint, page._enrich, page._generate, page._interpolate):
        *looks, last = page._run(work)(values, Session())
        assert all(len(look) == 1 for look in looks)
        shares = [int(caption.removesuffix("%")) for ((_, caption),) in looks]
        assert len(set(shares)) >= 4
        assert shares == sorted(shares)
        assert shares[-1] == 100
        assert all(isinstance(path, str) for path in last)
    # The last look shows what was drawn last, whole.
    ((picture, _),) = looks[-1]
    strip = pixels(next(path for path in last if path.endswith(".png")))
    assert (np.asarray(picture) == strip[:64, -64:]).all()


def halting(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Stop pressed as soon as the first look is taken."""
    look_always(monkeypatch)
    session: Any = Session()
    thumbnail = Image.Image.thumbnail

    def press_stop(image: Image.Image, *args: Any) -> None:
        page._halt(session)
        thumbnail(image, *args)

    monkeypatch.setattr(Image.Image, "thumbnail", press_stop)


def test_stop_stops_and_the_next_press_goes_on(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(studio)
    values = entered(page, steps=2, diffusion_steps=2, count=2)
    with monkeypatch.context() as patch:
        halting(page, patch)
        (look,) = press(page, page._generate, values)
    assert look[1] == "25%"
    page._halt(cast(Any, Session()))  # while it waits for its turn
    assert list(page._run(page._generate)(values, Session())) == []
    assert len(press(page, page._generate, values)) == 2


def test_a_page_that_is_closed_ends_its_work(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    look_always(monkeypatch)
    page, before = Page(studio), threading.active_count()
    drawing = page._run(page._generate)(entered(page, steps=60, diffusion_steps=50, count=60), Session())
    next(drawing)
    assert threading.active_count() == before + 1
    drawing.close()
    assert threading.active_count() == before
    assert not list(studio.out.iterdir())  # nothing half made is left


def test_the_end_of_the_server_ends_what_is_drawn(studio: Studio) -> None:
    page = Page(studio)
    values = entered(page, steps=60, diffusion_steps=50, count=60)
    asked = threading.Thread(target=lambda: list(page._run(page._generate)(values, Session())))
    asked.start()
    while not any(thread.name == "drawing" for thread in threading.enumerate()):
        time.sleep(0.01)
    page.close()
    asked.join(timeout=60)
    assert not asked.is_alive()
    assert not any(thread.name == "drawing" for thread in threading.enumerate())


@pytest.mark.slow
def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # tests may run deaf to Ctrl-C
    program = app_program(heard, "--out", str(tmp_path / "drawn"), "--port", str(free_port()))
    running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    assert "Ctrl-C ends it" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    try:
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, said) == (0, "")


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    pre = tiny_model()
    config = dataclasses.replace(pre.config, class_names=("crane", "tern", "crane"))
    studio = Studio(dataclasses.replace(pre, config=config), tmp_path)
    assert list(studio.classes) == ["crane (0)", "tern", "crane (2)"]
    (path,) = studio.generate([studio.classes["crane (2)"]], 1, QUICK, silent)
    assert read_provenance(path)["labels"] == [2]


def test_a_model_without_classes_offers_none(tmp_path: Path) -> None:
    pre = tiny_model()
    config = dataclasses.replace(pre.config, training={"settings": {"conditional": False}})
    page = Page(Studio(dataclasses.replace(pre, config=config), tmp_path))
    assert not page.label.visible
    assert not page.labels.visible
    assert not hasattr(page, "interpolate")
    quick = entered(page, steps=2, diffusion_steps=2, count=1)
    assert len(press(page, page._generate, quick)) == 1


@pytest.mark.slow
def test_the_page_is_served_and_loads_nothing_from_elsewhere(studio: Studio) -> None:
    with private_folder() as folder:
        page, guard = build(studio, "127.0.0.1", folder)
        (studio.out / "private.txt").write_text("private")
        with TestClient(guard, base_url="http://localhost") as client:
            text = client.get("/").text
            assert client.get(f"/gradio_api/file={studio.out / 'private.txt'}").status_code == 403
        page.close()
    assert "Open a photograph" in text
    assert not re.findall(r"""<(?:script|link)[^>]+(?:src|href)=["']https?://(?!127|localhost)[^"']+""", text)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def app_program(code: str, *words: str) -> str:
    """The command, after some code."""
    start = f"import sys; {code}; sys.argv = ['bigr-repr', 'app', '--no-browser', *{words!r}]; "
    return start + "from bigr_repr_cli.main import main; main()"


def run_app(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = app_program(code, *words)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_without_gradio_the_command_says_what_to_install(tmp_path: Path) -> None:
    done = run_app("sys.modules['gradio'] = None", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the page needs Gradio; install it with: pip install 'bigr-repr[app]'"


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = run_app("pass", "--out", str(tmp_path), "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert done.stderr.count("\n") == 1
