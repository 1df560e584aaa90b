"""`bigr-repr interpolate`: draws a sequence of pictures from one class to another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr_cli.draw.sampling import PANEL, Sampling
from bigr_repr_cli.flatten import FieldsOf, flattened


@dataclass(frozen=True, kw_only=True)
class InterpolationSampling(Sampling):
    """The shared options; --steps counts pictures here."""

    settings: Annotated[
        dict[str, Any], FieldsOf(kind=SamplingSettings, panel=PANEL, flags={"steps": ("--iterations",)})
    ]


Smooth = Annotated[
    bool,
    typer.Option(
        "--smooth/--each-by-itself",
        help="Keep neighbors similar: noise and order are tied to positions, and bits change one by one; or draw "
        "each picture independently, with the same noise.",
    ),
]


@flattened
def command(
    sampling: InterpolationSampling,
    start: Annotated[str, typer.Option("--from", metavar="CLASS", help="First class, by number or name; or a prompt.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="CLASS",
            help="Last class, by number or name; several, such as 3,cat: through each in turn. For a text model, "
            "the last prompt.",
        ),
    ],
    frames: Annotated[
        int,
        typer.Option(
            "--steps",
            "--frames",
            min=2,
            max=1000,
            help="Number of pictures, including the first and the last class.",
        ),
    ] = 9,
    smooth: Smooth = True,
    out: Annotated[
        Path, typer.Option(help="PNG file for the strip of pictures; a GIF of the same name is written next to it.")
    ] = Path("interpolated.png"),
) -> None:
    """Draw the transition from one class, or prompt, to another as a strip and as a GIF."""
    from bigr_repr.checkpoints.classes import class_list
    from bigr_repr.painting.files import interpolate_file

    pre = sampling.load()
    options = sampling.options()
    by_text = pre.config.generator.condition == "text"
    if by_text:
        options["prompt"] = [start, to]
    classes = None if by_text else class_list(pre.config, [start, to])
    with sampling.reported("interpolating") as (on_progress, report):
        report(interpolate_file(pre, classes, out, frames=frames, smooth=smooth, on_progress=on_progress, **options))
