"""Pictures on disk: PNG files that record how they were made, grids, animations, arrays. Knows no models or sampling.

Every file is written atomically.
"""

# H W pixels

from __future__ import annotations

import json
import math
import secrets
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from bigr_repr.images.find import escape_path
from bigr_repr.images.formats import image_errors, open_image
from bigr_repr.images.sheets import contact_sheet
from bigr_repr.system.files import replacing
from bigr_repr.system.records import as_object, parsed, usable

METADATA_KEY = "bigr_repr"  # the PNG text chunk that holds a picture's provenance, as JSON
_HELD_MS = 1500
_LONGEST = 384  # longer side of an animation, in pixels
MOST_FRAMES = 256  # of an animation of a painting, at most 0.4 MB each in memory


def write_png(path: Path, image: Image.Image, provenance: Mapping[str, Any], profile: bytes | None = None) -> None:
    """Write a picture with its provenance and ICC profile. Raises OSError that names path."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(provenance, ensure_ascii=False))
    with replacing(path, own_writer()) as file:
        image.save(file, "PNG", pnginfo=info, icc_profile=profile)


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a picture written by `write_png`. Raises ValueError if the file has none, or it is damaged."""
    text = recorded_text(path)
    if text is None:
        raise ValueError(
            f"{path} does not record how it was made: not written by bigr-repr, or its metadata was stripped"
        )
    with usable(path, "make the picture again, or use an undamaged copy"):
        return as_object(parsed(text))


def recorded_text(path: Path, *, verified: bool = False) -> str | None:
    """The provenance of a picture of any size, as JSON; None if it has none.

    verified: check the file's checksums, too.  Raises OSError, and ImageError for a file that is not a picture, or is
    damaged.
    """
    name = escape_path(str(path))
    with Path(path).open("rb") as file, image_errors(name):
        image = open_image(file, name)  # Pillow's own function refuses large pictures
        text = image.info.get(METADATA_KEY)
        if verified:
            image.verify()
    return text


def own_writer() -> str:
    """A name for `replacing`, different each time, for files that several processes may write at once."""
    return secrets.token_hex(4)


def for_animation(frame: Image.Image) -> Image.Image:
    """A picture scaled to at most 384 pixels per side, for a frame of an animation."""
    scale = min(1.0, _LONGEST / max(frame.size))
    size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
    return frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC)


def write_gif(
    path: Path,
    frames: Sequence[Image.Image],
    *,
    milliseconds: int,
    provenance: Mapping[str, Any],
    held: Collection[int] | None = None,
) -> None:
    """Write frames of one size as an endless animation of at most 384 pixels per side.

    held: frames to show for longer; None: the last.
    """
    small = [for_animation(frame) for frame in frames]
    longer = {len(small) - 1} if held is None else set(held)
    with replacing(path, own_writer()) as file:
        small[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=small[1:],
            duration=[max(_HELD_MS, milliseconds) if i in longer else milliseconds for i in range(len(small))],
            loop=0,
            comment=json.dumps(provenance).encode(),
        )


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Images of one size in a grid on white, row by row; about as many rows as columns by default."""
    return contact_sheet(images, columns or math.ceil(math.sqrt(len(images))), edge=0)


def write_npz(path: Path, images: Iterable[Image.Image], shape: tuple[int, int, int, int]) -> None:
    """Write RGB images as the array `arr_0`, uint8 (n, H, W, 3), which ADM's evaluator reads. Holds one at a time.

    Raises ValueError for an image of a wrong size, OSError that names path.
    """
    with (
        replacing(path, own_writer()) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(member, header)
        for number, image in enumerate(images):
            pixels = np.asarray(image, np.uint8)
            if pixels.shape != shape[1:]:
                raise ValueError(f"image {number} is {image.width}x{image.height} pixels, not {shape[2]}x{shape[1]}")
            member.write(pixels.tobytes())
