"""Laws of the studio behind its pages: it paints as the commands do, keeps what it made, and says what went wrong."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")

from bigr_repr_cli.app import jobs
from bigr_repr_cli.app.inside import UnmaskBody, unmasking
from bigr_repr_cli.app.jobs import BusyError, Desk, QueuedJob
from bigr_repr_cli.app.orders import field_of
from bigr_repr_cli.app.studio import DrawRequest, Studio
from forks import COMMAND, HEEDING, run, run_command, start
from numpy.typing import NDArray
from PIL import Image
from studio_server import Running, served, waited
from text_model import text_model
from tiny_model import picture, tiny_model, write_pictures

import bigr_repr as br
from bigr_repr.codes import from_bytes
from bigr_repr.embed import embed_images
from bigr_repr.features.tokens import token_pca, token_views
from bigr_repr.options import options_of
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.pictures import read_provenance
from bigr_repr.retrieval import build_index, build_shards
from bigr_repr.sampling.job import given_options
from bigr_repr.sampling.settings import SamplingSettings

QUICK = given_options({"seed": 3, "steps": 2, "diffusion_steps": 2}, fast=True)


def pixels(path: Path | str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


def silent(done: float, total: float, look: Any) -> None:
    assert 0 <= done <= total


def marked(height: int, width: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return mask


def encoded(mask: NDArray[np.bool_]) -> str:
    file = io.BytesIO()
    Image.fromarray(np.dstack([np.uint8(255) * mask] * 4), "RGBA").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tiny_model(), tmp_path / "drawn")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    picture(5, 96, 64).save(path)
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(Studio(tiny_model(), tmp_path_factory.mktemp("drawn"))) as opened:
        yield opened


def upload(running: Running, photo: Path) -> str:
    return str(running_json(running, "POST", f"/pictures?name={photo.name}", photo.read_bytes())["id"])


def running_json(running: Running, method: str, path: str, body: bytes | None = None) -> Any:
    status, _, answer = running.ask(method, path, body)
    assert status == 200, answer
    return json.loads(answer)


def outcome(running: Running, path: str, /, **body: Any) -> Any:
    """What becomes of a press."""
    status, answer = running.post(path, **body)
    assert status == 200, answer
    job = {"state": "", "version": -1}
    while job["state"] not in ("done", "failed", "stopped"):
        job = running_json(running, "GET", f"/jobs/{answer['job']}?seen={job['version']}")
    return job


SHORT = {"settings": {"steps": 2, "diffusion_steps": 2}}


# ---- what is drawn
def test_marks_on_a_smaller_copy_mark_the_photograph(studio: Studio, photo: Path) -> None:
    before = pixels(photo)
    (path,) = studio.inpaint(DrawRequest(photo=photo, mask=marked(32, 48), options=QUICK), silent)
    after, inside = pixels(path), np.zeros(before.shape[:2], bool)
    inside[16:32, 24:48] = True
    assert (after[~inside] == before[~inside]).all()
    assert (after[inside] != before[inside]).any()


def test_a_picture_can_be_made_again_from_what_it_says(studio: Studio, photo: Path) -> None:
    feather = br.Pasting(blend="feather")
    order = DrawRequest(photo=photo, mask=marked(64, 96), label="1", pasting=feather, options=QUICK)
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
def test_every_press_keeps_its_pictures(studio: Studio, photo: Path) -> None:
    order = DrawRequest(photo=photo, label="2", pasting=br.Pasting(window=48), options=QUICK)
    made = [
        studio.outpaint(DrawRequest(photo=photo, versions=2, options=QUICK), 2.0, silent),
        studio.enrich(order, silent),
        studio.enrich(dataclasses.replace(order, mask=marked(64, 96)), silent),
        studio.generate(["1", "2"], 3, QUICK, silent),
        studio.generate([""], 1, QUICK, silent),
        studio.interpolate("0", "1", 3, QUICK, silent),
    ]
    assert [len(paths) for paths in made] == [2, 1, 1, 3, 1, 2]
    every = [path for paths in made for path in paths]
    assert len(set(every)) == len(every)
    assert all(path.exists() and studio.out in path.parents for path in every)
    assert pixels(made[0][0]).shape == (64, 128, 3)


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    pre = tiny_model()
    config = dataclasses.replace(pre.config, class_names=("crane", "tern", "crane"))
    studio = Studio(dataclasses.replace(pre, config=config), tmp_path)
    assert list(studio.classes) == ["crane (0)", "tern", "crane (2)"]
    (path,) = studio.generate(["crane (2)"], 1, QUICK, silent)
    assert read_provenance(path)["labels"] == [2]


def test_a_model_without_classes_offers_none(tmp_path: Path) -> None:
    pre = tiny_model()
    config = dataclasses.replace(pre.config, training={"settings": {"conditional": False}})
    studio = Studio(dataclasses.replace(pre, config=config), tmp_path)
    assert studio.classes == {}
    assert len(studio.generate([""], 1, QUICK, silent)) == 1


# ---- over HTTP
def test_a_model_of_captions_takes_them_where_others_take_classes(tmp_path: Path, photo: Path) -> None:
    studio = Studio(text_model(), tmp_path / "studio")
    assert (studio.classes, studio.by_text) == ({}, True)
    away = given_options({**QUICK, "negative": "a black square"})
    (path,) = studio.generate(["a red circle, large"], 1, away, silent)
    said = read_provenance(path)
    assert (said["prompts"], said["negative"]) == (["a red circle, large"], "a black square")
    assert read_provenance(studio.generate([""], 1, QUICK, silent)[0])["prompts"] is None
    assert len(studio.interpolate("a red circle", "a cross", 3, QUICK, silent)) == 2
    with pytest.raises(ValueError, match="end='' is empty; name one caption to end with"):
        studio.interpolate("a red circle", "", 3, QUICK, silent)
    order = DrawRequest(photo=photo, mask=marked(64, 96), label="a red circle", options=QUICK)
    assert read_provenance(studio.inpaint(order, silent)[0])["prompts"] == ["a red circle"]


def test_a_press_draws_what_is_asked_for(running: Running, photo: Path) -> None:
    opened = upload(running, photo)
    job = outcome(
        running, "/jobs", kind="inpaint", photo=opened, mask=encoded(marked(64, 96)), label="1", seed=7, count=2,
        pasting={"blend": "feather"}, **SHORT,
    )  # fmt: skip
    assert (job["state"], job["share"], len(job["result"])) == ("done", 1, 2)
    made = job["result"][0]
    assert (made["width"], made["height"]) == (96, 64)
    said = read_provenance(running.studio.out / made["name"])
    assert (said["labels"], said["seed"], said["settings"]["order"], said["settings"]["steps"]) == ([1], 7, "halton", 2)
    assert said["pasting"]["blend"] == "feather"
    _, headers, data = running.ask("GET", f"/pictures/{made['id']}/file")
    assert data == (running.studio.out / made["name"]).read_bytes()
    assert made["name"] in headers["content-disposition"]
    again = outcome(running, "/jobs", kind="enrich", photo=made["id"], **SHORT)  # going on with it
    assert again["state"] == "done"


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"kind": "inpaint"}, "photo", "no photograph is open"),
        ({"kind": "inpaint", "photo": "PHOTO"}, "mask", "nothing is marked"),
        ({"kind": "generate", "settings": {"temperature": -1}}, "temperature", "temperature"),
        ({"kind": "generate", "settings": {"steps": 0}}, "steps", "steps"),
        ({"kind": "generate", "settings": {"steps": "many"}}, "steps", "whole number"),
        ({"kind": "generate", "settings": {"steps": 17}}, "steps", "17 iterations"),
        ({"kind": "generate", "settings": {"guidance": 3}}, "guidance", "guidance"),
        ({"kind": "generate", "settings": {"colour": 3}}, None, "not an option"),
        ({"kind": "generate", "label": "zebra"}, "label", "zebra"),
        ({"kind": "generate", "count": 65}, "count", "65 pictures"),
        ({"kind": "interpolate", "start": "0", "end": "1", "count": 33}, "count", "33 frames"),
        ({"kind": "interpolate", "start": "", "end": "1", "count": 3}, "start", "name one class to start from"),
        ({"kind": "interpolate", "start": "1,2", "end": "", "count": 3}, "start", "names 2 classes"),
        ({"kind": "interpolate", "start": "0", "end": "1,2", "count": 3}, "end", "names 2 classes"),
        ({"kind": "interpolate", "start": "0", "end": "zebra", "count": 3}, "end", "zebra"),
        ({"kind": "outpaint", "photo": "PHOTO", "aspect": "wide"}, "aspect", "'wide'"),
        ({"kind": "outpaint", "photo": "PHOTO", "aspect": "3:2"}, "aspect", "aspect"),
        ({"kind": "enrich", "photo": "PHOTO", "pasting": {"window": 5000}}, "window", "window"),
        (
            {"kind": "enrich", "photo": "PHOTO", "pasting": {"window": 8, "max_windows": 2}},
            "max_windows",
            "max_windows",
        ),
        ({"kind": "enrich", "photo": "PHOTO", "pasting": {"max_windows": 10_001}}, "max_windows", "1..10000"),
        ({"kind": "enrich", "photo": "PHOTO", "pasting": {"best_of": 17}}, "best_of", "1..16"),
        ({"kind": "enrich", "photo": "PHOTO", "pasting": {"blend": "glue"}}, "blend", "blend"),
    ],
)
def test_an_error_names_its_field(
    running: Running, photo: Path, body: dict[str, Any], field: str | None, words: str
) -> None:
    before = set(running.studio.out.iterdir())
    if body.get("photo") == "PHOTO":
        body = {**body, "photo": upload(running, photo)}
    status, answer = running.post("/jobs", **body)
    if status == 200:
        job = {"state": "", "version": -1}
        while job["state"] not in ("done", "failed", "stopped"):
            job = running_json(running, "GET", f"/jobs/{answer['job']}?seen={job['version']}")
        assert job["state"] == "failed"
        error = (job["error"]["message"], job["error"]["field"])
    else:
        assert status == 400
        error = (answer["error"]["message"], answer["error"]["param"])
    assert words in error[0]
    assert error[1] == field
    assert "\n" not in error[0]
    assert set(running.studio.out.iterdir()) == before


def test_the_page_offers_every_option_there_is(running: Running) -> None:
    """Options are stated once, in the library: a new one appears on the page by itself."""
    about = running_json(running, "GET", "/about")
    assert [each["name"] for each in about["settings"]] == list(options_of(SamplingSettings))
    assert [each["name"] for each in about["pasting"]] == list(options_of(Pasting))
    assert all(each["help"] for each in about["settings"] + about["pasting"])
    for kind, key in ((SamplingSettings, "settings"), (Pasting, "pasting")):
        for name in options_of(kind):
            assert field_of(ValueError(f"{name}=3 is not allowed")) == name, key


def test_samples_are_photographs_to_begin_with(running: Running) -> None:
    samples = running_json(running, "GET", "/about")["samples"]
    assert len(samples) >= 6
    _, headers, data = running.ask("GET", f"/pictures/{samples[0]['id']}")
    assert headers["content-type"].startswith("image/")
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (samples[0]["width"], samples[0]["height"])


def test_an_unreadable_photograph_is_one_line(running: Running) -> None:
    status, _, answer = running.ask("POST", "/pictures?name=text.png", b"no picture")
    assert status == 415
    assert b"text.png" in answer
    assert str(running.folder).encode() not in answer


# ---- what is shown, and recorded
def test_what_is_drawn_is_shown_whatever_its_size(
    running: Running, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for photographs that come in: work that is done is not thrown away."""
    opened = upload(running, photo)
    monkeypatch.setattr(running.app.state.shelf, "max_pixels", 96 * 64)
    job = outcome(running, "/jobs", kind="outpaint", photo=opened, aspect="3:1", **SHORT)
    assert job["state"] == "done", job["error"]
    (made,) = job["result"]
    assert made["width"] * made["height"] > 96 * 64
    assert running.ask("GET", f"/pictures/{made['id']}")[0] == 200
    assert running.post("/inside/look", picture=made["id"])[0] == 200
    larger = io.BytesIO()
    picture(1, 97, 64).save(larger, "PNG")
    assert running.ask("POST", "/pictures?name=larger.png", larger.getvalue())[0] == 413


def test_a_picture_records_the_name_of_the_photograph(running: Running, photo: Path) -> None:
    (made,) = outcome(running, "/jobs", kind="outpaint", photo=upload(running, photo), aspect="3:1", **SHORT)["result"]
    assert read_provenance(running.studio.out / made["name"])["photograph"]["name"] == photo.name


# ---- jobs
@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(jobs, "_LOOK_SECONDS", 0)
    opened = Desk()
    yield opened
    opened.close()


def over(job: QueuedJob) -> bool:
    return waited(lambda: job.over)


def test_looks_and_the_time_left_are_told_as_it_goes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_LOOK_SHARE", np.inf)
    go, seen = threading.Semaphore(0), []

    def work(watch: Any) -> str:
        for done in range(1, 5):
            go.acquire()
            time.sleep(0.02)
            watch(done, 4, lambda done=done: f"look {done}")
        return "whole"

    job = desk.submit(work)
    for done in range(1, 5):
        go.release()
        assert waited(lambda done=done: job.look == f"look {done}")  # type: ignore[misc]
        seen.append((job.share, job.seconds_left))
    assert over(job)
    assert [share for share, _ in seen] == [0.25, 0.5, 0.75, 1]
    assert all(left > 0 for _, left in seen[:-1] if left is not None)
    assert (job.state, job.result) == ("done", "whole")


def test_stop_ends_what_works_and_what_waits(desk: Desk) -> None:
    begun: list[int] = []

    def work(watch: Any, number: int = 0) -> None:
        begun.append(number)
        while True:
            watch(0, 1, None)
            time.sleep(0.01)

    first, second = desk.submit(work), desk.submit(lambda watch: work(watch, 1))
    assert waited(lambda: begun == [0])
    assert (desk.ahead(first), desk.ahead(second)) == (0, 1)
    desk.stop(second)
    assert second.state == "stopped"
    desk.stop(first)
    assert over(first)
    assert (first.state, begun) == ("stopped", [0])
    third = desk.submit(lambda watch: "next")
    assert over(third)
    assert third.result == "next"


def test_long_work_asks_before_it_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_SURE_SECONDS", 0.02)
    steps: list[float] = []

    def work(watch: Any) -> str:
        for done in range(4):
            steps.append(time.monotonic())
            time.sleep(0.03)
            watch(done + 1, 4 if done else 1e6, None)
        return "whole"

    asked = desk.submit(work)
    assert waited(lambda: asked.state == "asking")
    assert asked.seconds_left is not None
    assert asked.seconds_left > jobs.LONG_SECONDS
    time.sleep(0.3)
    assert len(steps) == 1  # it waits
    asked.confirmed.set()
    assert over(asked)
    assert (asked.state, len(steps)) == ("done", 4)
    refused = desk.submit(work)
    assert waited(lambda: refused.state == "asking")
    desk.stop(refused)
    assert over(refused)
    assert refused.state == "stopped"


def test_a_fault_ends_its_own_job_only(desk: Desk) -> None:
    wrong = desk.submit(lambda watch: 1 / 0)
    right = desk.submit(lambda watch: 1)
    assert over(wrong)
    assert over(right)
    assert (wrong.state, type(wrong.error), right.state) == ("failed", ZeroDivisionError, "done")


def test_a_full_queue_is_refused(desk: Desk) -> None:
    halt = threading.Event()
    first = desk.submit(lambda watch: halt.wait(30))
    assert waited(lambda: first.state == "running")
    queued = [desk.submit(lambda watch: 1) for _ in range(jobs.WAITING)]
    with pytest.raises(BusyError, match="8 jobs"):
        desk.submit(lambda watch: 1)
    halt.set()
    assert all(map(over, queued))
    assert over(desk.submit(lambda watch: 1))


def test_the_end_of_the_server_ends_what_is_drawn(studio: Studio) -> None:
    desk = Desk()
    options = given_options({"steps": 16, "diffusion_steps": 200}, fast=True)
    job = desk.submit(lambda watch: studio.generate([""], 60, options, watch))
    assert waited(lambda: job.share > 0)
    desk.close()
    assert job.state == "stopped"
    assert not any(thread.name == jobs.THREAD and thread is desk._thread for thread in threading.enumerate())
    assert not list(studio.out.iterdir())  # nothing half made is left


# ---- looking inside, and searching
def test_look_inside_shows_the_models_tokens(running: Running, photo: Path) -> None:
    status, found = running.post("/inside/look", picture=upload(running, photo))
    assert status == 200
    views = token_views(photo, running.studio.pre, range(4))
    packed = np.array([list(bytes.fromhex(text)) for text in found["bits"]], np.uint8)
    assert (from_bytes(packed, 12) == views.bits[0]).all()
    np.testing.assert_allclose(found["open"], views.entropy[0], atol=1e-4)
    colors = np.frombuffer(base64.b64decode(found["colors"]), np.uint8).reshape(4, 4, 4, 3)
    assert (colors[2] == token_pca(views.states[2])[0]).all()
    kept = Image.open(io.BytesIO(base64.b64decode(found["kept"].split(",")[1])))
    assert (np.asarray(kept) == views.reconstruction[0]).all()
    assert len(found["expected"]) == len(found["surprise"]) == 16


def test_unmasking_shows_every_iteration(running: Running) -> None:
    job = outcome(running, "/inside/unmask", label="1", seed=4, steps=4, order="entropy")
    film = job["result"]
    assert len(film["frames"]) == 4
    assert sorted(set(film["when"])) == [1, 2, 3, 4]
    status, answer = running.post("/inside/unmask", order="backwards")
    assert (status, answer["error"]["param"]) == (400, "order")


def test_an_autoregressive_model_is_watched_token_by_token(tmp_path: Path) -> None:
    studio = Studio(tiny_model(attention="causal"), tmp_path / "drawn")
    film = unmasking(studio, UnmaskBody(label="1", seed=4, steps=4, order="entropy"))(silent)
    assert (len(film["frames"]), film["when"]) == (16, [*range(1, 17)])


def test_searches_use_unrounded_weights(tmp_path: Path) -> None:
    """Codes of rounded weights differ in some bits from those of an index."""
    exact = tiny_model()
    write_pictures(tmp_path / "pictures", 3)
    embed_images(tmp_path / "pictures", tmp_path / "rows", model=exact, layers=[2], codes=True)
    build_index(tmp_path / "rows", tmp_path / "index", binarizer="bits")
    studio = Studio(tiny_model().to(dtype=torch.bfloat16), tmp_path / "drawn", load_exact=lambda: exact)
    query = base64.b64encode((tmp_path / "pictures" / "00001.png").read_bytes()).decode()
    with served(studio) as opened:
        for path in ("index", "pictures"):
            opened.app.state.finder.open(tmp_path / path, None, lambda *_: None)
            assert opened.app.state.service.pre is exact
            _, found = opened.post("/search/search", image=query, k=1)
            assert (found["hits"][0]["id"], found["hits"][0]["distance"]) == ("00001.png", 0)


@pytest.mark.slow
def test_a_folder_of_pictures_is_searched(running: Running, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 12)
    assert running.ask("GET", "/search/about")[0] == 404
    job = outcome(running, "/search/open", path=str(tmp_path / "pictures"))
    assert (job["state"], job["result"]) == ("done", {"rows": 12})
    query = base64.b64encode((tmp_path / "pictures" / "00007.png").read_bytes()).decode()
    status, found = running.post("/search/search", image=query, k=3)
    assert (status, found["hits"][0]["id"], found["hits"][0]["distance"]) == (200, "00007.png", 0)
    status, headers, _ = running.ask("GET", found["hits"][0]["image"])
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    write_pictures(tmp_path / "pictures", 3, first=12)
    assert outcome(running, "/search/open", path=str(tmp_path / "pictures"))["result"] == {"rows": 15}
    for path, words in [(tmp_path / "nowhere", "no such folder"), (running.folder / "none", "no such folder")]:
        job = outcome(running, "/search/open", path=str(path))
        assert (job["state"], job["error"]["field"]) == ("failed", "path")
        assert words in job["error"]["message"]
    assert running_json(running, "GET", "/search/opened")["rows"] == 15  # what was open stays


@pytest.mark.slow
def test_an_index_in_shards_is_searched_as_one(running: Running, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 12)
    embed_images(
        tmp_path / "pictures", tmp_path / "rows", model=running.studio.pre, layers=[2], codes=True, unit_size=4
    )
    build_shards(tmp_path / "rows", tmp_path / "shards", 3, binarizer="bits")
    job = outcome(running, "/search/open", path=str(tmp_path / "shards"), images=str(tmp_path / "pictures"))
    assert (job["state"], job["result"]) == ("done", {"rows": 12})
    query = base64.b64encode((tmp_path / "pictures" / "00007.png").read_bytes()).decode()
    status, found = running.post("/search/search", image=query, k=12)
    assert (status, found["hits"][0]["id"], len(found["hits"])) == (200, "00007.png", 12)


def test_the_pages_load_nothing_from_elsewhere(running: Running) -> None:
    pages = ["/", "/search/", "/inside/", "/static/studio.css", "/static/tabs.css", "/search/static/controls.css"]
    for page in [*pages, "/static/draw.js", "/static/inside.js", "/static/open.js", "/static/common.js"]:
        status, _, text = running.ask("GET", page)
        assert status == 200
        assert not re.findall(rb"""(?:src|href|from|url|import)[=( ]+["']?https?:""", text), page


# ---- the command


@pytest.mark.slow
def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    with start(HEEDING, ["app", "--no-browser", "--out", tmp_path / "drawn", "--port", 0]) as running:
        assert "press Ctrl-C to stop" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert (running.returncode, said) == (0, "")


@pytest.mark.slow
def test_without_fastapi_the_command_says_what_to_install(tmp_path: Path) -> None:
    done = run(f"import sys; sys.modules['fastapi'] = None; {COMMAND}", ["app", "--no-browser", "--out", tmp_path])
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "error: the page needs FastAPI and uvicorn; install them with: pip install 'bigr-repr[app]'"
    )


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = run_command("app", "--no-browser", "--out", tmp_path, "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert done.stderr.count("\n") == 1
