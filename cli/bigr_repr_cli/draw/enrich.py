"""`bigr-repr enrich`: a photograph with new detail."""

from typing import Annotated

import typer

from bigr_repr_cli.draw.adapter import takes
from bigr_repr_cli.draw.photo import PhotoCall, photo_options
from bigr_repr_cli.draw.sampling import Sampling, sampling_options


@takes(photo=photo_options("enriched.png"), sampling=sampling_options())
def command(
    photo: PhotoCall,
    sampling: Sampling,
    scale: Annotated[
        int, typer.Option(min=1, help="Shrink the photograph this many times before redrawing; 1: not at all.")
    ] = 2,
) -> None:
    """Give a photograph, or the marked part of it, new detail: four rounds that redraw a quarter of the tokens each.

    It works in squares of the model's own size, unless --window is given.

    It follows what is there; --label CLASS with --guidance 10, say, draws it towards a class.
    """
    from bigr_repr.painting.files import enrich_file

    photo.paint(sampling, "enriching", enrich_file, scale=scale)
