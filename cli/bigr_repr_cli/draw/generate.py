"""`bigr-repr generate`: new pictures of classes, as many as wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr_cli.draw.sampling import PromptedSampling
from bigr_repr_cli.flatten import flattened

if TYPE_CHECKING:
    from bigr_repr.sampling.job import Options


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is written."""

    out: Annotated[
        Path, typer.Option(help="Folder to write 000000.png, 000001.png and so on into; created if missing.")
    ] = Path("generated")
    grid: Annotated[
        Path | None, typer.Option(help="Also write the first 64 pictures side by side into this PNG file.")
    ] = None
    npz: Annotated[
        Path | None,
        typer.Option(help="Also write all pictures as one array into this .npz file, which ADM's evaluator reads."),
    ] = None
    animate: Annotated[
        Path | None, typer.Option(help="Also write a GIF file that shows how the first 64 pictures are drawn.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SeriesSampling(PromptedSampling):
    """The shared options, and prompts by file."""

    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts, one a line, in UTF-8, with a model of captions.", metavar="FILE"),
    ] = None

    def options(self) -> Options:
        """The same with the prompts of the file."""
        from bigr_repr.sampling.prompts import read_prompts

        given = super().options()
        if self.prompts is not None:
            given["prompt"] = [*(self.prompt or ()), *read_prompts(self.prompts)]
        return given


@flattened
def command(
    sampling: SeriesSampling,
    output: Output,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            "-l",
            help="Classes by number or name, as 3,goldfish, or all of them: all. May be repeated "
            r"\[default: no class in particular].",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help=r"Pictures in all, classes or prompts in turn \[default: one of each]."),
    ] = None,
) -> None:
    """Generate pictures of the given classes or prompts; without either, of nothing in particular.

    Pictures that OUT holds are not drawn again: a run that was stopped goes on, and a larger count adds to it.
    """
    from bigr_repr.checkpoints.classes import class_list
    from bigr_repr.painting.series import generate_files

    options, pre = sampling.options(), sampling.load()
    classes = class_list(pre.config, labels) if labels else None
    with sampling.reported("generating") as (on_progress, report):
        report(
            generate_files(
                pre, output.out, classes, count=count, sheet=output.grid, npz=output.npz, animation=output.animate,
                on_progress=on_progress, **options,
            )
        )  # fmt: skip
