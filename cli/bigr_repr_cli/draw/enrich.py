"""`bigr-repr enrich`: a photograph with new detail."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.photo import Label, Marks, Out, Photo
from bigr_repr_cli.draw.sampling import PromptedSampling
from bigr_repr_cli.flatten import flattened


@flattened
def command(
    photo: Photo,
    marks: Marks,
    sampling: PromptedSampling,
    scale: Annotated[
        int, typer.Option(min=1, help="Shrink the photograph this many times before redrawing; 1: not at all.")
    ] = 2,
    label: Label = None,
    out: Out = Path("enriched.png"),
) -> None:
    """Give a photograph, or the marked part of it, new detail: four rounds that redraw a quarter of the tokens each.

    It works in squares of the model's own size, unless --window is given.

    It follows what is there; --label CLASS with --guidance 10, say, draws it towards a class.
    """
    from bigr_repr.painting.files import enrich_file

    photo.paint(enrich_file, sampling, "enriching", label=label, out=out, marks=marks, scale=scale)
