"""The options that all drawing commands share, what is made of them, and what is printed. Knows no single command."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.options import Compile, Computed, Device, Json, Model, Precision
from bigr_repr_cli.progress import counting_progress

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.painting.files import Written
    from bigr_repr.sampling.job import Options

Order = StrEnum("Order", ["entropy", "margin", "reversed", "random", "raster", "halton"])
Masked = StrEnum("Masked", ["cosine", "linear"])
GuidanceOver = StrEnum("GuidanceOver", ["constant", "linear"])
NoiseOver = StrEnum("NoiseOver", ["constant", "down", "up"])
_PANEL = "Sampling"
_ITERATIONS = (
    "Iterations in which the tokens are drawn; of enrich, in each of its four rounds "
    r"\[default: 20; inpaint, outpaint, edit: 25; --fast: 16]."
)


def _option(help: str, *names: str, **checks: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, **checks)


_Iterations = Annotated[int | None, _option(_ITERATIONS, "--iterations", "--steps", min=1)]
_OnlyIterations = Annotated[int | None, _option(_ITERATIONS, "--iterations", min=1)]


def _shared(
    model: Model = DEFAULT_MODEL,
    seed: Annotated[int, typer.Option(min=0, help="Random seed: the same seed gives the same pictures.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=r"Images drawn together; in bf16, 32 are faster \[default: 1 on a CPU, else 8,192 tokens' worth].",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = Computed.float32,
    compile: Compile = False,
    as_json: Json = False,
    fast: Annotated[
        bool,
        _option(
            "Start from the fast preset instead of the paper's settings: 16 iterations, order halton, 25 diffusion "
            "steps; the options below still change it.",
            "--fast",
        ),
    ] = False,
    iterations: _Iterations = None,
    order: Annotated[
        Order | None,
        _option(
            "Which tokens are drawn first: the most certain by entropy or by margin, the least certain (reversed), "
            "random ones, row by row (raster; autoregressive models always) or evenly spread ones (halton) "
            r"\[default: entropy; --fast: halton].",
            metavar="ORDER",
        ),
    ] = None,
    schedule: Annotated[
        Masked | None,
        _option(
            "How fast tokens are drawn: few at first (cosine) or equally many in each iteration (linear) "
            r"\[default: cosine; inpaint, outpaint, edit without --fast: linear]."
        ),
    ] = None,
    diffusion_steps: Annotated[
        int | None,
        _option(
            "Diffusion steps that draw the bits of the tokens "
            r"\[default: the number that models info shows; --fast: 25].",
            min=1,
        ),
    ] = None,
    confidence_steps: Annotated[
        int | None,
        _option(
            "Rank the tokens by a shorter diffusion of this many steps, for orders entropy, margin and reversed; "
            r"faster, but not the paper's sampler \[default: rank by the full one].",
            min=1,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        _option(r"Classifier-free guidance scale, 0 or more; 1 or less: off \[default: 2.5 with a class, else off]."),
    ] = None,
    guidance_schedule: Annotated[
        GuidanceOver | None,
        _option(
            "How guidance changes over the iterations: constant, or linear, growing to --guidance "
            r"\[default: constant]."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        _option(r"Temperature of the bit probabilities, above 0; lower: less variety \[default: 1]."),
    ] = None,
    gumbel: Annotated[
        float | None,
        _option(
            "Scale of the random noise in the ranking of the tokens, for orders entropy, margin and reversed; "
            r"0: none \[default: 0.17]."
        ),
    ] = None,
    gumbel_schedule: Annotated[
        NoiseOver | None,
        _option(r"How that noise changes over the iterations: constant, down to 0 or up from 0 \[default: constant]."),
    ] = None,
    deterministic: Annotated[
        bool, _option("Take each bit's likelier value instead of drawing it at random.", "--deterministic")
    ] = False,
) -> None:
    """Only its signature is used: the options of `sampling_command`."""


def load_for_sampling(model: str, device: str, precision: str, compiled: bool) -> Pretrained:
    """A model by name, where and in what it is to compute."""
    from bigr_repr.checkpoints.pretrained import load
    from bigr_repr.sampling.compiled import compile_for_sampling
    from bigr_repr.system.devices import as_dtype, choose_device

    pre = load(model, device=choose_device(device), dtype=as_dtype(str(precision)))
    return compile_for_sampling(pre) if compiled else pre


@dataclass(frozen=True)
class Sampling:
    """The values of the shared options, as given."""

    values: dict[str, Any]

    def load(self) -> Pretrained:
        """The model, where and in what it is to compute."""
        v = self.values
        return load_for_sampling(v["model"], v["device"], v["precision"], v["compile"])

    def options(self) -> Options:
        """Keywords for the library: those given only, so that the rest is up to the function called."""
        from bigr_repr.sampling.settings import FAST

        found: Any = {"seed": self.values["seed"], "batch_size": self.values["batch_size"]}
        if self.values["fast"]:
            found["settings"] = FAST
        for name in (
            "order", "schedule", "diffusion_steps", "confidence_steps", "guidance", "guidance_schedule", "temperature",
            "gumbel", "gumbel_schedule",
        ):  # fmt: skip
            if self.values[name] is not None:
                value = self.values[name]
                found[name] = str(value) if isinstance(value, StrEnum) else value
        if self.values["iterations"] is not None:
            found["steps"] = self.values["iterations"]
        if self.values["deterministic"]:
            found["deterministic"] = True
        options: Options = found
        return options

    @contextmanager
    def reported(self, name: str) -> Iterator[tuple[Callable[[float, float], None], Callable[[Written], None]]]:
        """Gives `on_progress` for the library call, and what to call with its result, which is then printed."""
        results: list[Written] = []
        try:
            with counting_progress(name) as on_progress:
                yield on_progress, results.append
        except KeyboardInterrupt:
            if name == "generating":
                raise KeyboardInterrupt("the pictures drawn are kept, the same command goes on from there") from None
            raise
        for result in results:
            self._print(result)

    def _print(self, result: Written) -> None:
        files = [*map(str, result.images), *map(str, result.also)]
        if self.values["as_json"]:
            record = {"images": files[: len(result.images)], "also": files[len(result.images) :]}
            typer.echo(json.dumps(record | {"drawn": result.drawn, "seconds": round(result.seconds, 3)}, indent=2))
            return
        before = len(result.images) - result.drawn
        note = f"; {before:,} were there" if before > 0 else ""
        typer.echo(f"{result.drawn:,} drawn in {result.seconds:.1f} s{note}")
        shown = files if len(files) <= 8 else [files[0], "…", *files[len(result.images) - 1 :]]
        typer.echo("\n".join(shown))


def sampling_command(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the shared options to a command, whose parameter `sampling` gets their values."""
    own = inspect.signature(command, eval_str=True).parameters
    shared = dict(inspect.signature(_shared, eval_str=True).parameters)
    if "steps" in own:  # there the name means something else
        shared["iterations"] = shared["iterations"].replace(annotation=_OnlyIterations)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        sampling = Sampling({name: values.pop(name) for name in shared})
        command(sampling=sampling, **values)

    parameters = [p for name, p in own.items() if name != "sampling"] + list(shared.values())
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in keywords}
    return run
