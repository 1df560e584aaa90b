"""`bigr-repr generate`: draws any number of new pictures of classes."""

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

    out: Annotated[Path, typer.Option(help="Folder for 000000.png, 000001.png and so on; created if missing.")] = Path(
        "generated"
    )
    grid: Annotated[Path | None, typer.Option(help="Also write the first 64 pictures as a grid to this PNG file.")] = (
        None
    )
    npz: Annotated[
        Path | None,
        typer.Option(help="Also write all pictures as one array to this .npz file, which ADM's evaluator reads."),
    ] = None
    animate: Annotated[
        Path | None, typer.Option(help="Also write a GIF that shows how the first 64 pictures are drawn.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SeriesSampling(PromptedSampling):
    """The shared options, and prompts from a file."""

    prompts: Annotated[
        Path | None,
        typer.Option(help="UTF-8 file of prompts, one per line, for a text model.", metavar="FILE"),
    ] = None

    def options(self) -> Options:
        """The same, with the file's prompts."""
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
            help=r"Classes by number or name, such as 3,goldfish; all: every class. May be repeated \[default: no "
            "particular class].",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help=r"Total number of pictures, cycling through classes or prompts \[default: one of each]."
        ),
    ] = None,
) -> None:
    """Generate pictures of the given classes or prompts, or unconditionally.

    Pictures already in OUT are not drawn again: a stopped run resumes, and a larger count adds to it.
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
