"""The page itself: what stands where, and which call each button makes. All else is in studio.py."""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import typer

from bigr_repr.sampling.photos import Pasting
from bigr_repr.sampling.settings import ORDERS
from bigr_repr_cli.app.studio import Choices, OnProgress, Order, Studio

_ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "21:9": 21 / 9, "3:4": 3 / 4, "9:16": 9 / 16}
_CSS = "footer {display: none !important}"

Values = dict[Any, Any]  # what is entered, by component


class _StopError(Exception):
    """The button Stop was pressed."""


def serve(studio: Studio, host: str, port: int, *, browser: bool) -> None:
    """Serve the page until Ctrl-C. Raises OSError when the address cannot be listened on."""
    _check_free(host, port)
    typer.echo(f"{studio.pre.config.name} paints at http://{host}:{port}; Ctrl-C ends it", err=True)
    Page(studio).blocks.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        allowed_paths=[str(studio.out.resolve())],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from elsewhere
        css=_CSS,
    )


def _check_free(host: str, port: int) -> None:
    """Gradio's own error names settings that this command does not have."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host") from error


class Page:
    """The components of one page, and what they set off."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._halted: defaultdict[str | None, threading.Event] = defaultdict(threading.Event)  # by session
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
                        columns=2,
                        height=440,
                        object_fit="contain",
                        buttons=["download", "fullscreen"],
                    )
                    self.stop = gr.Button("Stop", size="sm")
                    self._settings()
            self._wire()

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
            self.versions = gr.Slider(1, 8, value=1, step=1, label="Versions")
        with gr.Row():
            self.inpaint = gr.Button("Paint anew", variant="primary")
            self.enrich = gr.Button("Enrich")
            self.outpaint = gr.Button("Extend")
            self.aspect = gr.Dropdown(list(_ASPECTS), value="16:9", label="Extend to", min_width=100)
        with gr.Accordion("How it meets the photograph", open=False), gr.Row():
            self.blend = gr.Radio(["none", "feather", "poisson"], value="feather", label="Blend")
            self.band = gr.Number(label="Band in pixels", precision=0, minimum=1, placeholder="half a token")
            self.window = gr.Number(label="Window in pixels", precision=0, minimum=1, placeholder="as large as fits")

    def _new_pictures(self) -> None:
        self.labels = self._classes("Classes", "no class in particular", multiselect=True)
        self.count = gr.Slider(1, 64, value=4, step=1, label="Pictures")
        self.generate = gr.Button("Generate", variant="primary")
        if self.studio.classes:
            with gr.Row():
                self.start = self._classes("From", None)
                self.end = self._classes("To", None, first=-1)
                self.frames = gr.Slider(2, 32, value=9, step=1, label="Steps")
            self.interpolate = gr.Button("Interpolate")

    def _classes(self, title: str, none: str | None, *, multiselect: bool = False, first: int = 0) -> gr.Dropdown:
        """A choice of classes; `none` says what no class means."""
        classes = list(self.studio.classes)
        usual: Any = ([] if multiselect else "") if none else classes[first]
        choices = [(none, ""), *((name, name) for name in classes)] if none and not multiselect else classes
        return gr.Dropdown(
            choices, value=usual, label=title, multiselect=multiselect, info=none if multiselect else None,
            visible=bool(classes),
        )  # fmt: skip

    def _settings(self) -> None:
        with gr.Group(), gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            self.fast = gr.Checkbox(True, label="Fast", info="16 iterations, Halton order, 25 diffusion steps")
        with gr.Accordion("More settings", open=False):
            gr.Markdown("What is left empty is as usual for the model and the kind of picture.")
            with gr.Row():
                self.steps = gr.Number(label="Iterations", precision=0, minimum=1)
                self.order = gr.Dropdown([("as usual", ""), *((o, o) for o in ORDERS)], value="", label="Order")
            with gr.Row():
                self.diffusion_steps = gr.Number(label="Diffusion steps", precision=0, minimum=1)
                self.guidance = gr.Number(label="Guidance", minimum=0)
                self.temperature = gr.Number(label="Temperature")

    # ---- what happens

    def _wire(self) -> None:
        settings = {
            self.seed, self.fast, self.steps, self.order, self.diffusion_steps, self.guidance, self.temperature
        }  # fmt: skip
        painting = settings | {
            self.photo, self.editor, self.label, self.versions, self.blend, self.band, self.window, self.aspect
        }  # fmt: skip
        self.open.upload(self._opened, self.open, [self.photo, self.editor], api_visibility="private")
        works: list[tuple[gr.Button, set[Any], Callable[[Values, OnProgress], list[Path]]]] = [
            (self.inpaint, painting, self._inpaint),
            (self.enrich, painting, self._enrich),
            (self.outpaint, painting, self._outpaint),
            (self.generate, settings | {self.labels, self.count}, self._generate),
        ]
        if self.studio.classes:
            walk = settings | {self.start, self.end, self.frames}
            works.append((self.interpolate, walk, self._interpolate))
        for button, inputs, work in works:
            button.click(
                self._run(work), inputs, self.results, concurrency_id="model", concurrency_limit=1,
                show_progress_on=self.results, api_visibility="private",
            )  # fmt: skip
        self.stop.click(self._halt, queue=False, show_progress="hidden", api_visibility="private")

    def _run(self, work: Callable[[Values, OnProgress], list[Path]]) -> Callable[..., list[str]]:
        """A button's handler: progress is shown, Stop stops, and errors become messages on the page."""

        def run(values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> list[str]:
            halted = self._halted[request.session_hash]
            halted.clear()

            def report(done: float, total: float) -> None:
                if halted.is_set():
                    raise _StopError
                progress(done / total, desc="drawing")

            try:
                return [str(path) for path in work(values, report)]
            except _StopError:
                raise gr.Error("stopped", title="Stopped", print_exception=False, duration=3) from None
            except (ValueError, OSError, ImportError, RuntimeError) as error:
                raise gr.Error(" ".join(str(error).split()), print_exception=False, duration=None) from error

        return run

    def _halt(self, request: gr.Request) -> None:
        self._halted[request.session_hash].set()

    def _opened(self, file: str) -> tuple[str, dict[str, Any]]:
        try:
            shown = self.studio.shown(file)
        except (ValueError, OSError) as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False, duration=None) from error
        return file, {"background": shown, "layers": [], "composite": None}

    def _inpaint(self, values: Values, on_progress: OnProgress) -> list[Path]:
        return self.studio.inpaint(self._order(values), on_progress)

    def _enrich(self, values: Values, on_progress: OnProgress) -> list[Path]:
        return self.studio.enrich(self._order(values), on_progress)

    def _outpaint(self, values: Values, on_progress: OnProgress) -> list[Path]:
        return self.studio.outpaint(self._order(values), _ASPECTS[values[self.aspect]], on_progress)

    def _generate(self, values: Values, on_progress: OnProgress) -> list[Path]:
        return self.studio.generate(values[self.labels], values[self.count], self._choices(values), on_progress)

    def _interpolate(self, values: Values, on_progress: OnProgress) -> list[Path]:
        return self.studio.interpolate(
            values[self.start], values[self.end], values[self.frames], self._choices(values), on_progress
        )

    def _order(self, values: Values) -> Order:
        return Order(
            photo=values[self.photo],
            strokes=(values[self.editor] or {"layers": ()})["layers"],
            label=values[self.label],
            versions=values[self.versions],
            pasting=Pasting(
                window=values[self.window] or None, blend=values[self.blend], band=values[self.band] or None
            ),
            choices=self._choices(values),
        )

    def _choices(self, values: Values) -> Choices:
        return Choices(
            seed=values[self.seed] or 0, fast=values[self.fast], steps=values[self.steps] or None,
            order=values[self.order] or None, diffusion_steps=values[self.diffusion_steps] or None,
            guidance=values[self.guidance], temperature=values[self.temperature],
        )  # fmt: skip
