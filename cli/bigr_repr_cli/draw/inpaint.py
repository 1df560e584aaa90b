"""`bigr-repr inpaint`: repaints part of a photograph."""

from pathlib import Path

from bigr_repr_cli.draw.photo import Label, Marks, Out, Photo
from bigr_repr_cli.draw.sampling import PromptedSampling
from bigr_repr_cli.flatten import flattened


@flattened
def command(
    photo: Photo, marks: Marks, sampling: PromptedSampling, label: Label = None, out: Out = Path("inpainted.png")
) -> None:
    """Repaint the marked part of a photograph, at the photograph's own resolution.

    With --blend none, pixels outside the mask stay bit-identical.
    """
    from bigr_repr.painting.files import inpaint_file

    photo.paint(inpaint_file, sampling, "inpainting", label=label, out=out, marks=marks)
