"""Options shared by all drawing commands, and how results are printed. Knows no single command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr_cli.flatten import FieldsOf
from bigr_repr_cli.options import Compile, Computed, Device, Json, Model, Precision
from bigr_repr_cli.progress import counting_progress

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.painting.files import Written
    from bigr_repr.sampling.job import Options

PANEL = "Sampling"


def load_for_sampling(model: str, device: str, precision: str, compiled: bool) -> Pretrained:
    """Load a model by name, on a device and in a precision."""
    from bigr_repr.checkpoints.pretrained import load
    from bigr_repr.sampling.compiled import compile_for_sampling
    from bigr_repr.system.devices import as_dtype, choose_device

    pre = load(model, device=choose_device(device), dtype=as_dtype(str(precision)))
    return compile_for_sampling(pre) if compiled else pre


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The shared options."""

    model: Model = DEFAULT_MODEL
    seed: Annotated[int, typer.Option(min=0, help="Random seed: the same seed gives the same pictures.")] = 0
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=r"Images drawn together; in bf16, 32 are faster \[default: 1 on a CPU, else 8,192 tokens' worth].",
        ),
    ] = None
    device: Device = "auto"
    precision: Precision = Computed.float32
    compile: Compile = False
    as_json: Json = False
    negative: Annotated[
        str | None, typer.Option(help="With a prompt: what guidance steers away from, in words.", metavar="TEXT")
    ] = None
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Start from the fast preset instead of the paper's settings: 16 iterations, Halton order, 25 "
            "diffusion steps (of these, autoregressive models take only the last); the options below override it.",
            rich_help_panel=PANEL,
        ),
    ] = False
    settings: Annotated[
        dict[str, Any], FieldsOf(kind=SamplingSettings, panel=PANEL, flags={"steps": ("--iterations", "--steps")})
    ]

    def load(self) -> Pretrained:
        """The model, on its device and in its precision."""
        return load_for_sampling(self.model, self.device, self.precision, self.compile)

    def options(self) -> Options:
        """Keyword arguments for the library: only those given, so that the called function's defaults apply."""
        from bigr_repr.sampling.job import given_options

        own = {"seed": self.seed, "batch_size": self.batch_size, "negative": self.negative}
        return given_options(own | self.settings, fast=self.fast)

    @contextmanager
    def reported(self, name: str) -> Iterator[tuple[Callable[[float, float], None], Callable[[Written], None]]]:
        """Yields `on_progress` for the library call, and a function that prints the result."""
        results: list[Written] = []
        try:
            with counting_progress(name) as on_progress:
                yield on_progress, results.append
        except KeyboardInterrupt:
            if name == "generating":
                raise KeyboardInterrupt("finished pictures are kept; repeat the command to continue") from None
            raise
        for result in results:
            self._print(result)

    def _print(self, result: Written) -> None:
        from bigr_repr.images.find import escape_path

        files = [escape_path(str(file)) for file in (*result.images, *result.also)]
        if self.as_json:
            record = {"images": files[: len(result.images)], "also": files[len(result.images) :]}
            typer.echo(json.dumps(record | {"drawn": result.drawn, "seconds": round(result.seconds, 3)}, indent=2))
            return
        before = len(result.images) - result.drawn
        note = f"; {before:,} already existed" if before > 0 else ""
        typer.echo(f"{result.drawn:,} drawn in {result.seconds:.1f} s{note}")
        shown = files if len(files) <= 8 else [files[0], "…", *files[len(result.images) - 1 :]]
        typer.echo("\n".join(shown))


@dataclass(frozen=True, kw_only=True)
class PromptedSampling(Sampling):
    """The shared options, and a prompt."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="What to draw, in words, with a text model. May be repeated: one picture each.",
        ),
    ] = None

    def options(self) -> Options:
        given = super().options()
        if self.prompt:
            given["prompt"] = self.prompt
        return given
