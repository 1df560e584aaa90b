"""Request bodies, the form fields that the page shows, and errors assigned to fields."""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from bigr_repr.images.formats import ImageError
from bigr_repr.options import options_of
from bigr_repr.painting.pasting import Pasting
from bigr_repr.sampling.job import Options, given_options
from bigr_repr.sampling.settings import SamplingSettings
from bigr_repr_cli.app.jobs import Watch
from bigr_repr_cli.app.shelf import ShelfPicture
from bigr_repr_cli.app.studio import DrawRequest, Studio

_TITLES: Final = {"steps": "Iterations"}  # as on the command line
_MASK_BYTES: Final = 16 << 20
_MASK_PIXELS: Final = 1 << 26
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_NAMED: Final = re.compile(r"\b([a-z_]+)=")
_HINTS: Final = (  # wording of errors that do not name a field
    (r"is marked|mask", "mask"),
    (r"iterations", "steps"),
    (r"negative", "negative"),
    (r"class|label|prompt|caption", "label"),
    (r"pictures|versions|frames", "count"),
    (r"photograph is open", "photo"),
)

Value = int | float | str | bool | None


class FieldError(ValueError):
    """An error in one field of the page."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class DrawBody(BaseModel):
    """One click on Draw. photo: a picture's id. mask: a base64 PNG of any size, light or opaque where to paint."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["inpaint", "outpaint", "enrich", "generate", "interpolate"]
    photo: str | None = Field(None, max_length=100)
    mask: str | None = Field(None, max_length=_MASK_BYTES)
    label: str = Field("", max_length=10_000)
    negative: str = Field("", max_length=10_000)
    start: str = Field("", max_length=1000)
    end: str = Field("", max_length=1000)
    count: int = 1
    aspect: str = Field("16:9", max_length=20)
    seed: int = Field(0, ge=0, lt=1 << 53)
    fast: bool = True
    settings: dict[str, Value] = Field({}, max_length=50)
    pasting: dict[str, Value] = Field({}, max_length=50)


def fields(kind: type) -> list[dict[str, Any]]:
    """The options of a dataclass, as the page shows them."""
    return [
        {
            "name": name,
            "title": _TITLES.get(name, name.replace("_", " ").capitalize()),
            "help": each.help,
            "usual": each.usual,
            "kind": each.kind.__name__,
            "choices": each.choices,
            "least": each.least,
            "most": each.most,
        }
        for name, each in options_of(kind).items()
    ]


def field_of(error: Exception) -> str | None:
    """The form field that an error is about, if it can be told."""
    if isinstance(error, FieldError):
        return error.field
    if isinstance(error, ImageError):
        return "photo"
    if isinstance(error, OSError):  # about a file; the words of its path mean nothing
        return None
    text = str(error)
    known = {*options_of(SamplingSettings), *options_of(Pasting), "seed", "count", "aspect", "start", "end"}
    named = next((name for name in _NAMED.findall(text) if name in known), None)
    return named or next((field for words, field in _HINTS if re.search(words, text)), None)


def work_of(studio: Studio, body: DrawBody, photo: ShelfPicture | None) -> Callable[[Watch], list[Path]]:
    """The requested job, after all checks that are quick. Raises ValueError (FieldError if a field is at fault)."""
    options = _options(body)
    if body.kind == "generate":
        return lambda watch: studio.generate([body.label], body.count, options, watch)
    if body.kind == "interpolate":
        return lambda watch: studio.interpolate(body.start, body.end, body.count, options, watch)
    if photo is None:
        raise FieldError("photo", "no photograph is open; open one first")
    mask = None if body.mask is None else _mask(body.mask)
    if body.kind == "inpaint" and (mask is None or not mask.any()):
        raise FieldError("mask", "nothing is marked; paint over the area to replace")
    given = {name: value for name, value in body.pasting.items() if value is not None}
    pasting = Pasting(**_known(Pasting, given))
    order = DrawRequest(
        photo=photo.path, name=photo.name, mask=mask, label=body.label, versions=body.count, pasting=pasting,
        options=options,
    )  # fmt: skip
    if body.kind == "outpaint":
        aspect = _aspect(body.aspect)
        return lambda watch: studio.outpaint(order, aspect, watch)
    paint = studio.inpaint if body.kind == "inpaint" else studio.enrich
    return lambda watch: paint(order, watch)


def _options(body: DrawBody) -> Options:
    given = {name: value for name, value in body.settings.items() if value is not None}
    options = given_options({**_known(SamplingSettings, given), "seed": body.seed}, fast=body.fast)
    if body.negative.strip():
        options["negative"] = body.negative
    SamplingSettings().with_changes(given)  # report invalid values at once
    return options


def _known(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    for name in given.keys() - options_of(kind).keys():
        raise ValueError(f"{name[:50]!r} is not an option; leave it out")
    return given


def _aspect(text: str) -> float:
    try:
        width, _, height = text.partition(":")
        return float(width) / float(height or 1)
    except (ValueError, ZeroDivisionError):
        raise FieldError("aspect", f"{text!r} is neither width:height nor a number") from None


def _mask(text: str) -> NDArray[np.bool_]:
    """A base64 PNG as bool (h, w): True where it is at all opaque. Raises FieldError."""
    try:
        data = base64.b64decode(text, validate=True)
        width, height = struct.unpack(">II", data[16:24])  # checked before Pillow opens a picture that may be too large
        if data.startswith(_PNG) and width * height > _MASK_PIXELS:
            raise FieldError("mask", f"the mask has {width}x{height} pixels, too many")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGBA"))[..., 3] > 0
    except (binascii.Error, struct.error, OSError, SyntaxError) as error:
        raise FieldError("mask", "the mask is not a PNG") from error
