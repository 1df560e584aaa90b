"""The page itself: what stands where, and which call each button makes. All else is in studio.py."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from PIL import Image

from bigr_repr.painting.pasting import Pasting
from bigr_repr.sampling.fields import options_of
from bigr_repr.sampling.job import Options, given_options
from bigr_repr.sampling.settings import FAST, SamplingSettings
from bigr_repr_cli.app.studio import MOST_FRAMES, MOST_PICTURES, MOST_VERSIONS, DrawRequest, Preview, Studio, Watch

_ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "21:9": 21 / 9, "3:4": 3 / 4, "9:16": 9 / 16}
CSS = """
footer {display: none !important}
#pictures .gallery-item, #pictures .thumbnail-item {max-height: 530px}
"""

_LOOK_SECONDS = 0.5  # at least, between looks at what is being drawn
_LOOK_SHARE = 0.1  # of the time, at most, goes into looking
_LOOK_PIXELS = 512
_ABANDONED_SECONDS = 10.0  # without anybody listening, after which drawing ends
_WAITING = 8  # presses in the queue
_THREAD = "drawing"
_TITLES = {"steps": "Iterations"}  # as on the command line

Values = dict[Any, Any]  # what is entered, by component
Work = Callable[[Values, Watch], list[Path]]


class _StopError(Exception):
    """The button Stop was pressed."""


class _Threads:
    """The threads that draw. Once they have been ended, none is started any more."""

    def __init__(self) -> None:
        self.ended = False
        self._running: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def start(self, work: Callable[[], None]) -> threading.Thread:
        """A thread that does the work. Raises _StopError after `end`."""

        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._running.discard(thread)

        thread = threading.Thread(target=run, name=_THREAD, daemon=True)
        with self._lock:
            if self.ended:
                raise _StopError
            self._running.add(thread)
            thread.start()
        return thread

    def end(self) -> None:
        """Tell the threads to stop, and wait until they have."""
        self.ended = True
        with self._lock:
            running = list(self._running)
        for thread in running:
            thread.join()


def _drawn(work: Callable[[Watch], list[Path]], halted: Callable[[], bool], threads: _Threads) -> Iterator[list[Any]]:
    """The pictures for the gallery: what is being drawn, now and then, and in the end all that was drawn.

    The work has a thread of its own, which ends when this iterator does. Raises what the work raises, and _StopError.
    """
    told: queue.SimpleQueue[list[Any] | BaseException | None] = queue.SimpleQueue()
    looked, cost, gone = time.monotonic(), 0.0, threading.Event()
    shown: Image.Image | None = None

    def watch(done: float, total: float, picture: Preview | None) -> None:
        nonlocal looked, cost, shown
        if halted() or gone.is_set() or threads.ended:
            raise _StopError
        started = time.monotonic()
        if started - looked < max(_LOOK_SECONDS, cost / _LOOK_SHARE):
            return
        if picture is not None:
            shown = picture()
            shown.thumbnail((_LOOK_PIXELS, _LOOK_PIXELS))
        if shown is not None:
            told.put([(shown, f"{done / total:.0%}")])
        looked = time.monotonic()
        cost = looked - started

    def draw() -> None:
        try:
            told.put(list(work(watch)))
            told.put(None)
        except BaseException as error:
            told.put(error)

    thread = threads.start(draw)
    try:
        while (seen := told.get()) is not None:
            if isinstance(seen, BaseException):
                raise seen
            yield seen
    finally:
        gone.set()  # the page may have closed before the work was done
        thread.join()


def _told(error: Exception, photo: str | None) -> gr.Error:
    """An error as a message on the page, with the photograph's name as the user knows it."""
    text = " ".join(str(error).split())
    return gr.Error(text.replace(f"{Path(photo).parent}/", "") if photo else text, print_exception=False, duration=None)


def _number(title: str, *, empty: str = "as usual") -> gr.Textbox:
    """A field for a number, or for nothing; Gradio's own turns nothing into 0."""
    return gr.Textbox(label=title, placeholder=empty)


def _entered(values: Values, field: gr.Textbox | gr.Dropdown, kind: type) -> Any:
    """What is in a field, None if it is empty. Raises ValueError that names the field."""
    text = (values[field] or "").strip()
    try:
        return kind(text) if text else None
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{field.label}: {text!r} is not {wanted}") from None


class Page:
    """The components of one page, and what they set off."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._halted: defaultdict[str | None, threading.Event] = defaultdict(threading.Event)  # by session
        self._threads = _Threads()
        self.alone: Callable[[str | None, float], float] = lambda session, now: 0.0  # see Guard.seconds_alone
        self.settings: dict[str, gr.Dropdown | gr.Textbox] = {}  # by name
        config = studio.pre.config
        with gr.Blocks(
            title=f"bigr-repr: {config.name}", analytics_enabled=False, delete_cache=(86_400, 86_400)
        ) as self.blocks:
            gr.Markdown(
                f"## {config.name}\nThe model draws {config.image_size}x{config.image_size} pixels; photographs may "
                f"have any size and keep theirs. Every picture is kept in `{studio.out}` and says how it was made."
            )
            with gr.Row():
                with gr.Column(scale=3), gr.Tabs():
                    with gr.Tab("Photograph"):
                        self._photograph()
                    with gr.Tab("New pictures"):
                        self._new_pictures()
                with gr.Column(scale=2):
                    self.results = gr.Gallery(
                        label="Pictures",
                        elem_id="pictures",
                        columns=2,
                        height=560,
                        object_fit="contain",
                        buttons=["download", "fullscreen"],
                    )
                    self.stop = gr.Button("Stop", size="sm")
                    self._settings()
            self._wire()
        self.blocks.queue(max_size=_WAITING, api_open=False)

    # ---- what stands where

    def _photograph(self) -> None:
        self.photo = gr.State()  # the file, which is what is painted into
        self.open = gr.UploadButton("Open a photograph", file_types=["image"], variant="primary")
        self.editor = gr.ImageEditor(
            label="Paint over what is to change", type="numpy", image_mode="RGBA", sources=(), transforms=(),
            layers=False, brush=gr.Brush(colors=["#ff3060b0"], color_mode="fixed", default_size=40), height=520,
            format="png", buttons=["fullscreen"],
        )  # fmt: skip
        with gr.Row():
            self.label = self._classes("What to paint", "what fits the surroundings")
            self.versions = gr.Slider(1, MOST_VERSIONS, value=1, step=1, label="Versions")
        with gr.Row():
            self.inpaint = gr.Button("Paint anew", variant="primary")
            self.enrich = gr.Button("Enrich")
            self.outpaint = gr.Button("Extend")
            self.aspect = gr.Dropdown(list(_ASPECTS), value="16:9", label="Extend to", min_width=100)
        with gr.Accordion("How it meets the photograph", open=False), gr.Row():
            self.blend = gr.Radio(["none", "feather", "poisson"], value="feather", label="Blend")
            self.band = _number("Band in pixels", empty="half a token")
            self.window = _number("Window in pixels", empty="as large as fits")

    def _new_pictures(self) -> None:
        self.labels = self._classes("Classes", "no class in particular", multiselect=True)
        self.count = gr.Slider(1, MOST_PICTURES, value=4, step=1, label="Pictures")
        self.generate = gr.Button("Generate", variant="primary")
        if self.studio.classes:
            with gr.Row():
                self.start = self._classes("From", None)
                self.end = self._classes("To", None, first=-1)
                self.frames = gr.Slider(2, MOST_FRAMES, value=9, step=1, label="Steps")
            self.interpolate = gr.Button("Interpolate")

    def _classes(self, title: str, none: str | None, *, multiselect: bool = False, first: int = 0) -> gr.Dropdown:
        """A choice of classes; `none` says what no class means."""
        classes = list(self.studio.classes.items())
        usual: Any = ([] if multiselect else "") if none else classes[first][1]
        choices = [(none, ""), *classes] if none and not multiselect else classes
        return gr.Dropdown(
            choices, value=usual, label=title, multiselect=multiselect, info=none if multiselect else None,
            visible=bool(classes),
        )  # fmt: skip

    def _settings(self) -> None:
        with gr.Group(), gr.Row():
            self.seed = _number("Seed", empty="0")
            what = f"{FAST.steps} iterations, order {FAST.order}, {FAST.diffusion_steps} diffusion steps"
            self.fast = gr.Checkbox(True, label="Fast", info=what)
        with gr.Accordion("More settings", open=False):
            for names in (("steps", "order"), ("diffusion_steps", "guidance", "temperature")):
                with gr.Row():
                    self.settings |= {name: self._setting(name) for name in names}

    def _setting(self, name: str) -> gr.Dropdown | gr.Textbox:
        """A field for one of the sampling settings; empty: as usual."""
        says = options_of(SamplingSettings)[name]
        title = _TITLES.get(name, name.replace("_", " ").capitalize())
        if says.choices:
            return gr.Dropdown([("as usual", ""), *((each, each) for each in says.choices)], value="", label=title)
        return _number(title)

    # ---- what happens

    def _wire(self) -> None:
        settings = {self.seed, self.fast, *self.settings.values()}
        painting = settings | {
            self.photo, self.editor, self.label, self.versions, self.blend, self.band, self.window, self.aspect
        }  # fmt: skip
        # Shown progress would leave an editor that has been painted on waiting for ever.
        self.open.upload(
            self._opened, self.open, [self.photo, self.editor], show_progress="hidden", api_visibility="private"
        )
        works: list[tuple[gr.Button, set[Any], Work]] = [
            (self.inpaint, painting, self._inpaint),
            (self.enrich, painting, self._enrich),
            (self.outpaint, painting, self._outpaint),
            (self.generate, settings | {self.labels, self.count}, self._generate),
        ]
        if self.studio.classes:
            walk = settings | {self.start, self.end, self.frames}
            works.append((self.interpolate, walk, self._interpolate))
        for button, inputs, work in works:
            pressed = button.click(self._pressed, queue=False, show_progress="hidden", api_visibility="private")
            pressed.then(
                self._run(work), inputs, self.results, concurrency_id="model", concurrency_limit=1,
                show_progress_on=self.results, api_visibility="private",
            )  # fmt: skip
        self.stop.click(self._halt, queue=False, show_progress="hidden", api_visibility="private")
        self.blocks.unload(self._halt)

    def _run(self, work: Work) -> Callable[..., Iterator[Any]]:
        """A button's handler: shows what is being drawn, then what was; errors become messages on the page."""

        def run(values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:
            session = request.session_hash
            halted = self._halted[session]

            def abandoned() -> bool:
                return halted.is_set() or self.alone(session, time.monotonic()) > _ABANDONED_SECONDS

            progress(0, desc="drawing")
            try:
                for seen in _drawn(lambda watch: work(values, watch), abandoned, self._threads):
                    yield [self._served(each) if isinstance(each, Path) else each for each in seen]
            except _StopError:
                gr.Info("what was being drawn is not kept", title="Stopped", duration=3)
            except (ValueError, OSError, ImportError, RuntimeError) as error:
                raise _told(error, values.get(self.photo)) from error
            except Exception as error:  # a fault of ours: in words on the page, with its traceback on the terminal
                raise gr.Error(f"{type(error).__name__}: {error}", duration=None) from error

        return run

    def _served(self, path: Path) -> str:
        """A copy of a picture, of which the page is made; nothing else in the folder is served."""
        return str(save_file_to_cache(str(path), self.results.GRADIO_CACHE))

    def _pressed(self, request: gr.Request) -> None:
        self._halted[request.session_hash].clear()

    def _halt(self, request: gr.Request) -> None:
        self._halted[request.session_hash].set()

    def halt(self) -> None:
        """Tell all that is being drawn to stop; no more will begin."""
        self._threads.ended = True

    def close(self) -> None:
        """Stop all that is being drawn, and wait until it has."""
        self._threads.end()

    def _opened(self, file: str) -> tuple[str, dict[str, Any]]:
        try:
            shown = self.studio.shown(file)
        except (ValueError, OSError) as error:
            raise _told(error, file) from error
        shown.info["opened"] = str(time.time())  # the editor keeps what was painted on a file that it has seen before
        return file, {"background": shown, "layers": [], "composite": None}

    def _inpaint(self, values: Values, watch: Watch) -> list[Path]:
        return self.studio.inpaint(self._order(values), watch)

    def _enrich(self, values: Values, watch: Watch) -> list[Path]:
        return self.studio.enrich(self._order(values), watch)

    def _outpaint(self, values: Values, watch: Watch) -> list[Path]:
        return self.studio.outpaint(self._order(values), _ASPECTS[values[self.aspect]], watch)

    def _generate(self, values: Values, watch: Watch) -> list[Path]:
        return self.studio.generate(values[self.labels], values[self.count], self._options(values), watch)

    def _interpolate(self, values: Values, watch: Watch) -> list[Path]:
        return self.studio.interpolate(
            values[self.start], values[self.end], values[self.frames], self._options(values), watch
        )

    def _order(self, values: Values) -> DrawRequest:
        return DrawRequest(
            photo=values[self.photo],
            strokes=(values[self.editor] or {"layers": ()})["layers"],
            label=values[self.label],
            versions=values[self.versions],
            pasting=Pasting(
                window=_entered(values, self.window, int),
                blend=values[self.blend],
                band=_entered(values, self.band, int),
            ),
            options=self._options(values),
        )

    def _options(self, values: Values) -> Options:
        """What is entered under Settings, as keywords of the library."""
        entered = {
            name: _entered(values, field, options_of(SamplingSettings)[name].kind)
            for name, field in self.settings.items()
        }
        return given_options({"seed": _entered(values, self.seed, int) or 0, **entered}, fast=values[self.fast])
