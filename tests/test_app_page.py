"""The studio's pages in a real browser: every press, wide and narrow, light and dark."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright", reason="playwright is not installed")

from bigr_repr_cli.app import jobs
from bigr_repr_cli.app.studio import Studio
from browser import chromium, needs_chromium, pages
from PIL import Image
from playwright.sync_api import expect
from studio_server import Running, served
from tiny_model import picture, tiny_model, write_pictures

from bigr_repr.sampling.chain import Chain

LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
pytestmark = needs_chromium
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(Studio(tiny_model(), tmp_path_factory.mktemp("drawn"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser: Any, running: Running) -> Iterator[Open]:
    """Opens a page; at the end nothing has gone wrong in it, and nothing was asked of another host."""
    with pages(browser, running.url) as new_page:

        def open_it(path: str = "/", width: int = 1280, scheme: str = "light") -> Any:
            page = new_page(width, color_scheme=scheme)
            page.goto(running.url + path)
            if path != "/search/":
                expect(page.locator("#samples button").first).to_be_attached()
            return page

        yield open_it


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    picture(5, 120, 80).save(path)
    return path


def with_photo(page: Any, photo: Path) -> None:
    page.set_input_files("#file", photo)
    expect(page.locator("#photo")).to_have_attribute("alt", photo.name)
    page.locator("#photo").evaluate("each => each.decode()")  # it has its size, and so has what is drawn on


def quick(page: Any) -> None:
    """Settings with which a picture takes no time."""
    page.locator("summary", has_text="More settings").click()
    page.fill("#option-steps", "2")
    page.fill("#option-diffusion_steps", "2")


def choose(page: Any, name: str, value: str) -> None:
    page.locator(f"[name={name}][value={value}]").check(force=True)


def drag(page: Any, *points: tuple[float, float]) -> None:
    """Over the photograph, in shares of its sides."""
    page.locator("#marks").scroll_into_view_if_needed()
    box = page.locator("#marks").bounding_box()
    for i, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def press(page: Any) -> dict[str, Any]:
    """What was sent, after what was drawn is shown."""
    with page.expect_response("**/jobs") as answered:
        page.click("#draw")
    expect(page.locator("#draw")).to_be_enabled()
    assert page.locator("#press .wrong:not(:empty)").all_inner_texts() == []
    expect(page.locator("#shown")).to_be_visible()
    sent: dict[str, Any] = json.loads(answered.value.request.post_data)
    return sent


def sent_mask(sent: dict[str, Any]) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(base64.b64decode(sent["mask"]))) as image:
        return np.asarray(image.convert("RGBA"))[..., 3] > 0


@pytest.mark.slow
def test_what_is_marked_is_painted_anew(open_page: Open, photo: Path, running: Running) -> None:
    page = open_page()
    with_photo(page, photo)
    quick(page)
    drag(page, (0.4, 0.4), (0.6, 0.6))
    sent = press(page)
    mask = sent_mask(sent)
    assert mask.shape == (80, 120)
    assert mask[40, 60]
    assert not mask[:20].any()
    (name,) = [each.name for each in running.studio.out.glob("inpainted*.png") if "mask" not in each.name]
    assert page.locator("#shown-name").inner_text().startswith(f"{name}, 120")
    after = np.asarray(Image.open(running.studio.out / name))
    assert (after[:12] == np.asarray(picture(5, 120, 80))[:12]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_press_in_every_look(open_page: Open, photo: Path, width: int, scheme: str) -> None:
    page = open_page(width=width, scheme=scheme)
    with_photo(page, photo)
    quick(page)
    drag(page, (0.2, 0.3), (0.5, 0.6), (0.7, 0.3))
    assert press(page)["kind"] == "inpaint"
    for kind, pictures in [("outpaint", 1), ("enrich", 1), ("generate", 4), ("interpolate", 2)]:
        before = page.locator("#history button").count()
        choose(page, "kind", kind)
        if kind == "interpolate":
            page.fill("#count", "3")
        assert press(page)["kind"] == kind
        expect(page.locator("#history button")).to_have_count(before + pictures)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light dark"
    shade = page.evaluate("getComputedStyle(document.querySelector('#stage')).backgroundColor")
    assert max(map(int, shade[4:-1].split(","))) < 48  # the canvas is dark in both
    small = page.locator("button:visible, .button:visible, input[type=number]:visible, select:visible").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().height)"
    )
    assert min(small) >= 40


@pytest.mark.slow
def test_rectangle_lasso_and_eraser_beside_the_brush(open_page: Open, photo: Path) -> None:
    page = open_page()
    with_photo(page, photo)
    quick(page)
    choose(page, "tool", "rectangle")
    drag(page, (0.5, 0.5), (0.25, 0.25))  # from any corner
    choose(page, "tool", "lasso")
    drag(page, (0.6, 0.6), (0.9, 0.6), (0.9, 0.9), (0.6, 0.9))
    choose(page, "tool", "eraser")
    page.fill("#size", "5")
    drag(page, (0.375, 0.375), (0.375, 0.376))
    mask = sent_mask(press(page))
    rows, columns = np.nonzero(mask[:45, :65])
    assert abs(np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]) - [20, 40, 30, 60]).max() <= 1
    assert mask[60, 90]
    assert not mask[30, 45]
    assert not mask[70, 20]


@pytest.mark.slow
def test_a_box_by_numbers_needs_no_mouse(open_page: Open, photo: Path) -> None:
    page = open_page()
    with_photo(page, photo)
    quick(page)
    page.locator("#box input").first.focus()
    for value in ("10", "20", "50", "40"):
        page.keyboard.type(value)
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    mask = sent_mask(press(page))
    wanted = np.zeros((80, 120), bool)
    wanted[20:40, 10:50] = True
    assert (mask == wanted).all()
    page.click("#back")
    page.fill("#box [name=right]", "5")
    page.keyboard.press("Enter")
    expect(page.locator("#photo-error")).to_contain_text("right must be greater than left")


@pytest.mark.slow
def test_the_seed_is_new_at_every_press_unless_it_is_kept(open_page: Open) -> None:
    page = open_page()
    quick(page)
    choose(page, "kind", "generate")
    page.fill("#count", "1")
    seeds = [press(page)["seed"] for _ in range(3)]
    assert len(set(seeds)) == 3
    assert page.input_value("#seed") == str(seeds[-1])
    page.check("#lock")
    assert press(page)["seed"] == press(page)["seed"] == seeds[-1]
    page.fill("#seed", "7")
    assert press(page)["seed"] == 7


@pytest.mark.slow
def test_two_presses_at_once_draw_once(open_page: Open) -> None:
    page = open_page()
    quick(page)
    choose(page, "kind", "generate")
    page.fill("#count", "1")
    sent: list[str] = []
    page.on("request", lambda asked: sent.append(asked.url) if asked.method == "POST" else None)
    page.evaluate("() => { for (let i = 0; i < 3; i++) document.getElementById('press').requestSubmit(); }")
    expect(page.locator("#shown")).to_be_visible()
    expect(page.locator("#draw")).to_be_enabled()
    assert len(sent) == 1
    press(page)
    assert len(sent) == 2


@pytest.mark.slow
def test_undo_goes_back_through_marks_and_pictures(open_page: Open, photo: Path) -> None:
    page = open_page()
    with_photo(page, photo)
    quick(page)
    expect(page.locator("#undo")).to_be_disabled()
    drag(page, (0.2, 0.2), (0.3, 0.3))
    drag(page, (0.6, 0.6), (0.7, 0.7))
    page.click("#undo")
    page.keyboard.press("Control+y")
    page.keyboard.press("Control+z")
    mask = sent_mask(press(page))
    assert mask[20, 30]
    assert not mask[52, 78]
    page.click("#go-on")
    expect(page.locator("#photo")).not_to_have_attribute("alt", photo.name)
    drag(page, (0.8, 0.2), (0.9, 0.2))
    page.click("#clear")
    page.click("#undo")  # the clearing
    page.click("#undo")  # the stroke
    page.click("#undo")  # going on
    expect(page.locator("#photo")).to_have_attribute("alt", photo.name)
    assert (sent_mask(press(page)) == mask).all()  # with its marks


@pytest.mark.slow
def test_before_and_after(open_page: Open, photo: Path) -> None:
    page = open_page()
    with_photo(page, photo)
    quick(page)
    drag(page, (0.4, 0.4), (0.6, 0.6))
    press(page)
    for share in ("0", "100", "30"):
        page.fill("#compare", share)
        clip = page.locator("#before").evaluate("each => getComputedStyle(each).clipPath")
        assert f"{100 - int(share)}%" in clip or (share == "100" and "0" in clip)
    choose(page, "kind", "outpaint")
    press(page)
    expect(page.locator("#compare-row")).to_be_hidden()  # of another size


@pytest.mark.slow
def test_a_reload_keeps_everything(open_page: Open, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LONG_SECONDS", 1e9)  # no machine is so slow that it asks
    page = open_page()
    with_photo(page, photo)
    quick(page)
    drag(page, (0.4, 0.4), (0.6, 0.6))
    press(page)
    page.click("#back")
    drag(page, (0.1, 0.1), (0.2, 0.2))
    page.fill("#label", "2")
    page.reload()
    expect(page.locator("#photo")).to_have_attribute("alt", photo.name)
    expect(page.locator("#history button")).to_have_count(1)
    assert page.input_value("#label") == "2"
    mask = sent_mask(press(page))
    assert mask[40, 60]
    assert mask[12, 18]
    choose(page, "kind", "generate")
    page.locator("summary", has_text="More settings").click()
    page.fill("#option-steps", "16")
    page.fill("#count", "3")
    draw, calls, going_on = Chain.__call__, itertools.count(), threading.Event()

    def held(*arguments: Any, **options: Any) -> Any:
        assert next(calls) < 4 or going_on.wait(120)  # the page is loaded again in the midst of it
        return draw(*arguments, **options)

    monkeypatch.setattr(Chain, "__call__", held)
    try:
        page.click("#draw")
        expect(page.locator("#progress")).to_be_visible()  # before, what it says is of the last press
        expect(page.locator("#left")).to_contain_text("%")
        for _ in range(2):
            page.reload()
            expect(page.locator("#progress")).to_be_visible()
    finally:
        going_on.set()
    expect(page.locator("#history button")).to_have_count(5, timeout=120_000)


@pytest.mark.slow
def test_a_picture_may_be_dropped_or_pasted(open_page: Open, photo: Path) -> None:
    script = """([kind, bytes]) => {
        const file = new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"});
        const data = new DataTransfer();
        data.items.add(file);
        const init = kind === "drop" ? {dataTransfer: data} : {clipboardData: data};
        const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
        document.body.dispatchEvent(new Kind(kind, {bubbles: true, cancelable: true, ...init}));
    }"""
    page = open_page()
    for kind in ("drop", "paste"):
        page.evaluate(script, [kind, list(photo.read_bytes())])
        expect(page.locator("#photo")).to_have_attribute("alt", f"{kind}.png")
    page = open_page("/inside/")
    page.evaluate(script, ["drop", list(photo.read_bytes())])
    expect(page.locator("#status")).to_contain_text("drop.png")


@pytest.mark.slow
def test_errors_stand_beside_what_they_are_about(open_page: Open, photo: Path, tmp_path: Path) -> None:
    page = open_page()
    page.click("#draw")
    expect(page.locator("#photo-error")).to_contain_text("no photograph is open")
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "text.png")
    expect(page.locator("#photo-error")).to_contain_text("text.png")
    page.locator("#samples button").first.click()
    page.click("#draw")
    expect(page.locator("[data-field=mask] .wrong")).to_contain_text("nothing is marked")
    choose(page, "kind", "generate")
    page.fill("#label", "zebra")
    page.click("#draw")
    expect(page.locator("[data-field=label] .wrong")).to_contain_text("zebra")
    expect(page.locator("#label")).to_be_focused()
    page.fill("#label", "")
    page.locator("summary", has_text="More settings").click()
    page.fill("#option-steps", "17")
    page.locator("summary", has_text="More settings").click()
    page.click("#draw")
    expect(page.locator("[data-field=steps] .wrong")).to_contain_text("17 iterations")  # and is shown
    assert page.locator("#history button").count() == 0


@pytest.mark.slow
def test_an_error_of_a_hidden_field_is_seen(open_page: Open) -> None:
    page = open_page()
    choose(page, "kind", "interpolate")
    message = {"error": {"message": "no such class", "param": "label"}}
    page.route("**/jobs", lambda route: route.fulfill(status=400, json=message))
    page.click("#draw")
    expect(page.locator("#press-error")).to_have_text("no such class")


@pytest.mark.slow
def test_an_autoregressive_model_offers_no_iterations(browser: Any, tmp_path: Path) -> None:
    with served(Studio(tiny_model(attention="causal"), tmp_path)) as opened, pages(browser, opened.url) as new_page:
        page = new_page(1280, color_scheme="light")
        page.goto(f"{opened.url}/inside/")
        expect(page.locator("#samples button").first).to_be_attached()
        expect(page.locator("#steps")).to_be_hidden()
        expect(page.locator("#order")).to_be_hidden()
        page.click("#watch button[type=submit]")
        expect(page.locator("#at-value")).to_contain_text("of 16")


@pytest.mark.slow
def test_files_that_are_no_pictures_are_counted_on_the_page(open_page: Open, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 3)
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    page = open_page("/search/")
    page.fill("#path", str(tmp_path / "pictures"))
    with page.expect_navigation():
        page.click("#opening button[type=submit]")
    expect(page.locator("#unreadable")).to_have_text("Files that cannot be read as pictures: 1.")


@pytest.mark.slow
def test_long_work_is_estimated_and_confirmed_and_can_be_stopped(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SURE_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "LONG_SECONDS", 0.5)
    page = open_page()
    choose(page, "kind", "generate")
    page.locator("summary", has_text="More settings").click()
    page.fill("#option-steps", "16")  # so that it goes on for longer than it takes to stop it
    page.fill("#option-diffusion_steps", "100")
    page.fill("#count", "60")
    page.click("#draw")
    expect(page.locator("#left")).to_contain_text("on this machine. Continue?")
    page.click("#on")
    expect(page.locator("#left")).to_contain_text("left")
    expect(page.locator("#on")).to_be_hidden()
    page.click("#stop")
    expect(page.locator("#press-error")).to_contain_text("Stopped")
    assert page.locator("#history button").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_look_inside(open_page: Open, photo: Path, width: int, scheme: str) -> None:
    page = open_page("/inside/", width, scheme)
    page.set_input_files("#file", photo)
    expect(page.locator("#views")).to_be_visible()
    shot = "document.querySelector('[data-view=colors] canvas').toDataURL()"
    first = page.evaluate(shot)
    page.fill("#block", "0")
    assert page.evaluate(shot) != first
    page.locator("[data-view=expected]").hover()
    expect(page.locator("#token")).to_contain_text("bits")
    page.locator("[data-view=seen]").focus()
    before = page.locator("#token").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#token").inner_text() != before
    page.fill("#steps", "4")
    page.fill("#label", "1")
    page.click("#watch button[type=submit]")
    expect(page.locator("#at-value")).to_have_text("4 of 4")
    page.fill("#at", "2")
    expect(page.locator("#at-value")).to_have_text("2 of 4")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [LOOKS[0], LOOKS[3]])
def test_search_a_folder_of_pictures(open_page: Open, tmp_path: Path, width: int, scheme: str) -> None:
    write_pictures(tmp_path / "pictures", 12)
    page = open_page("/search/", width, scheme)
    page.fill("#path", str(tmp_path / "nowhere"))
    page.click("#opening button[type=submit]")
    expect(page.locator("#opening-error")).to_contain_text("no such folder")
    page.fill("#path", str(tmp_path / "pictures"))
    with page.expect_navigation():
        page.click("#opening button[type=submit]")
    expect(page.locator("#about")).to_contain_text("12 pictures")
    page.set_input_files("#file", tmp_path / "pictures" / "00005.png")
    expect(page.locator(".hit[title]")).to_have_count(12)
    titles = page.locator(".hit[title]").evaluate_all("all => all.map(each => each.title)")
    assert titles[0] == "00005.png"
    page.locator(".hit[title]").nth(2).click()
    expect(page.locator(".hit[title]").first).to_have_attribute("title", titles[2])
    expect(page.locator("#photo")).to_have_js_property("complete", True)
    page.locator("#frame").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#status")).to_contain_text("by the part you drew")
    page.keyboard.press("b")
    expect(page.locator(".hit img.decoded")).to_have_count(12)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
