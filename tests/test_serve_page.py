"""The search page in a real browser: open, go on, back, a region, the bits, keys, a narrow screen, a token."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright", reason="playwright is not installed")

import uvicorn
from browser import chromium, needs_chromium, pages
from playwright import sync_api as playwright
from tiny_model import tiny_model, write_pictures

from bigr_repr.embed.run import embed_images
from bigr_repr.retrieval import build_index
from bigr_repr.serve import Access, Service, create_app

TOKEN = "a token of sufficient length"
pytestmark = [
    needs_chromium,
    pytest.mark.slow,
]


class _Running:
    """An application on a free port of this machine, in a thread."""

    def __init__(self, service: Service, access: Access) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(create_app(service, access), log_level="warning", ws="none"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_pictures(root / "pictures", 30)
    embed_images(root / "pictures", root / "embeddings", model=tiny_model(), layers=[2], codes=True)
    build_index(root / "embeddings", root / "index", binarizer="bits")
    return root / "pictures"


@pytest.fixture(scope="module", params=[None, TOKEN], ids=["open", "token"])
def served(request: pytest.FixtureRequest, pictures: Path) -> Iterator[tuple[str, str | None]]:
    service = Service(tiny_model(), index=pictures.parent / "index", images=pictures)
    running = _Running(service, Access(token=request.param))
    yield running.url, request.param
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_page(browser: Any, served: tuple[str, str | None]) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing has gone wrong in it, and nothing was asked of another host."""
    url, token = served
    with pages(browser, url) as new_page:

        def open_it(width: int = 1280) -> Any:
            page = new_page(width)
            page.goto(url)
            if token is not None:
                page.fill("#token", token)
                page.press("#token", "Enter")
            playwright.expect(page.locator("#about")).to_contain_text("30 pictures")
            return page

        yield open_it


def _shown(page: Any, count: int = 24) -> list[str]:
    playwright.expect(page.locator("#hits:not(.busy) .hit[title]")).to_have_count(count)
    return [text for text in page.locator(".hit").evaluate_all("all => all.map(each => each.title)") if text]


def test_a_picture_and_on_from_hit_to_hit_and_back(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page()
    page.set_input_files("#file", pictures / "00005.png")
    first = _shown(page)
    assert first[0] == "00005.png"
    assert page.locator(".hit").first.inner_text().split("\n")[1] == "0 bits"
    page.locator(".hit").nth(3).click()
    playwright.expect(page.locator("#name")).to_have_text(first[3])
    playwright.expect(page.locator(".hit").first).to_have_attribute("title", first[3])
    page.go_back()
    playwright.expect(page.locator("#name")).to_have_text("00005.png")
    playwright.expect(page.locator(".hit").first).to_have_attribute("title", "00005.png")
    page.goto(page.url.split("?")[0] + "?id=00009.png")
    playwright.expect(page.locator(".hit").first).to_have_attribute("title", "00009.png")
    playwright.expect(page.locator("#photo")).to_be_visible()


def test_it_begins_with_pictures_from_all_over_the_index(open_page: Callable[..., Any]) -> None:
    page = open_page()
    hits = page.locator("#hits .hit")
    playwright.expect(hits).to_have_count(24)
    playwright.expect(page.locator("#status")).to_contain_text("click one of these")
    hits.nth(12).click()
    shown = _shown(page)
    assert shown[0] == "00015.png"  # row 30 * 12 / 24
    playwright.expect(page.locator("#name")).to_have_text("00015.png")
    assert page.url.endswith("?id=00015.png")
    page.go_back()
    playwright.expect(page.locator("#hits .hit:not([title])")).to_have_count(24)
    playwright.expect(page.locator("#name")).to_have_text("")


def test_a_region_is_drawn_to_the_grid_and_taken_back(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page()
    page.set_input_files("#file", pictures / "00005.png")
    whole = _shown(page)
    box = page.locator("#frame").bounding_box()
    page.mouse.move(box["x"] + 0.30 * box["width"], box["y"] + 0.05 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.70 * box["width"], box["y"] + 0.20 * box["height"], steps=4)
    with page.expect_response("**/search") as answered:
        page.mouse.up()
    assert answered.value.request.post_data_json["region"] == {"x": 0.25, "y": 0, "w": 0.5, "h": 0.25}
    playwright.expect(page.locator("#status")).to_contain_text("by the part you drew")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#region")).to_be_hidden()
    playwright.expect(page.locator("#status")).not_to_contain_text("by the part")
    assert _shown(page) == whole


def test_a_filter_is_a_part_of_the_path_or_an_expression(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page()
    page.set_input_files("#file", pictures / "00003.png")
    _shown(page)
    page.keyboard.press("f")
    page.fill("#filter", "0001")
    page.press("#filter", "Enter")
    assert all("0001" in name for name in _shown(page, 11))
    page.fill("#filter", "0001?.png")
    page.press("#filter", "Enter")
    _shown(page, 10)
    page.fill("#filter", 'path in ("00003.png", "00004.png")')
    page.click("#only button")
    assert sorted(_shown(page, 2)) == ["00003.png", "00004.png"]
    page.fill("#filter", "color = 1")
    page.press("#filter", "Enter")
    playwright.expect(page.locator("#status")).to_contain_text("column 'color' is not in this index")
    page.fill("#filter", "nowhere")
    page.press("#filter", "Enter")
    playwright.expect(page.locator("#status")).to_contain_text("No picture matches the filter")


def test_what_the_bits_keep_is_shown(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page()
    page.set_input_files("#file", pictures / "00005.png")
    _shown(page)
    with page.expect_response("**/image/*decoded=true"):
        page.keyboard.press("b")
    playwright.expect(page.locator(".hit img.decoded")).to_have_count(24)
    playwright.expect(page.locator("#photo")).to_have_attribute("src", re.compile("^data:image/png"))
    page.keyboard.press("b")
    playwright.expect(page.locator(".hit img.decoded")).to_have_count(0)


def test_it_works_by_keyboard_alone(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("00007.png")
    page.keyboard.press("Enter")
    ids = _shown(page)
    assert ids[0] == "00007.png"
    page.locator("#open").focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    playwright.expect(page.locator("#name")).to_have_text(ids[1])
    page.locator("#frame").focus()
    page.keyboard.press("ArrowLeft")
    playwright.expect(page.locator("#status")).to_contain_text("by the part you drew")


def test_a_picture_may_be_dropped_or_pasted(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page()
    script = """([kind, bytes]) => {
        const file = new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"});
        const data = new DataTransfer();
        data.items.add(file);
        const init = kind === "drop" ? {dataTransfer: data} : {clipboardData: data};
        const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
        document.body.dispatchEvent(new Kind(kind, {bubbles: true, cancelable: true, ...init}));
    }"""
    for kind, number in (("drop", 3), ("paste", 4)):
        page.evaluate(script, [kind, list((pictures / f"0000{number}.png").read_bytes())])
        playwright.expect(page.locator(".hit").first).to_have_attribute("title", f"0000{number}.png")


def test_a_file_that_is_no_picture_is_one_line(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page()
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#file", tmp_path / "text.png")
    playwright.expect(page.locator("#status.error")).to_contain_text("image 0")
    assert page.locator(".hit").count() == 0


def test_a_telephone_shows_all_of_it(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page(width=390)
    page.set_input_files("#file", pictures / "00005.png")
    _shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = page.locator("button:visible, input[type=search]").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().height)"
    )
    assert np.min(small) >= 40


def test_the_api_page_lists_every_path(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.goto(page.url.split("?")[0] + "docs")
    playwright.expect(page.locator("article", has_text="/v1/embeddings")).to_contain_text("encoding_format")
    assert page.locator("article").count() >= 9


def test_more_pictures_join_the_query_and_near_duplicates_gather(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.fill("#id", "00004.png")
    page.press("#id", "Enter")
    playwright.expect(page.locator("#status")).to_have_text("The nearest 24 of 30 pictures.")
    names = page.locator(".hit .id")
    before = names.all_text_contents()
    card = page.locator(".card").nth(2)
    card.hover()
    card.get_by_role("button", name="Unlike").click()
    playwright.expect(page.locator("#status")).to_have_text("The nearest 24 of 30 pictures to 2 together.")
    assert page.locator("#others .id").all_text_contents() == [before[2]]
    assert before[2] not in names.all_text_contents()[:3]
    page.locator(".hit").nth(1).focus()
    page.keyboard.press("+")
    playwright.expect(page.locator("#status")).to_have_text("The nearest 24 of 30 pictures to 3 together.")
    page.get_by_role("button", name="Remove").first.click()
    page.get_by_role("button", name="Remove").first.click()
    playwright.expect(page.locator("#status")).to_have_text("The nearest 24 of 30 pictures.")
    assert names.all_text_contents() == before
    with page.expect_response("**/search") as answered:
        page.locator("#group").evaluate("(range) => { range.value = 20; range.dispatchEvent(new Event('change')); }")
    assert answered.value.request.post_data_json["group"] == int(0.2 * 192)
