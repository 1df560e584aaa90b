"""`bigr-repr edit`: replaces part of a photograph with something of a class."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.draw.photo import Marks, Out, Photo
from bigr_repr_cli.draw.sampling import PromptedSampling
from bigr_repr_cli.flatten import flattened


@dataclass(frozen=True, kw_only=True)
class EditSampling(PromptedSampling):
    """The shared options; the prompt has a different name here."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--to-prompt",
            "--prompt",
            "-p",
            metavar="TEXT",
            help="What to paint, in words, with a text model. May be repeated: one version each.",
        ),
    ] = None


@flattened
def command(
    photo: Photo,
    marks: Marks,
    sampling: EditSampling,
    label: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="CLASS",
            help="What to paint: a class by number or name; several, such as 3,cat: one version each.",
        ),
    ] = None,
    out: Out = Path("edited.png"),
) -> None:
    """Replace the marked part of a photograph with something of the given class, or prompt."""
    from bigr_repr.painting.files import inpaint_file

    if label is None and not sampling.prompt:
        raise typer.BadParameter("say what to paint: a class or a prompt", param_hint="--to / --to-prompt")
    paint = partial(inpaint_file, command="edit")
    photo.paint(paint, sampling, "editing", label=label, out=out, marks=marks)
