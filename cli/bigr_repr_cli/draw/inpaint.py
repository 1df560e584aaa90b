"""`bigr-repr inpaint`: a part of a photograph painted anew."""

from bigr_repr_cli.draw.adapter import takes
from bigr_repr_cli.draw.photo import PhotoCall, photo_options
from bigr_repr_cli.draw.sampling import Sampling, sampling_options


@takes(photo=photo_options("inpainted.png"), sampling=sampling_options())
def command(photo: PhotoCall, sampling: Sampling) -> None:
    """Repaint the marked part of a photograph, at the photograph's own resolution.

    With --blend none, pixels outside the mask stay bit for bit.
    """
    from bigr_repr.painting.files import inpaint_file

    photo.paint(sampling, "inpainting", inpaint_file)
