"""Turns a picture's recorded provenance into the keyword arguments that reproduce it. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigr_repr.painting.pasting import Pasting
from bigr_repr.sampling.settings import SamplingSettings

_OWN = {"enrich": ("scale",), "outpaint": ("margins",), "interpolate": ("frames", "smooth")}  # arguments of a command


def recorded_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the call that drew a picture, from its provenance (`read_provenance`).

    With the same model, photograph, mask and `labels=`, all of which the record names, the function of its command
    draws the same picture with them: `generate`, `interpolate`, `inpaint_photo`, `edit_photo`, `outpaint_photo` or
    `enrich_photo`. They include `scale` of enrich, `margins` of outpaint, `frames` and `smooth` of interpolate; add
    `mask=` to enrich only if the record names masks or boxes. Pictures of versions without fitting are drawn as they
    were. Commands paint a photograph with an ICC profile in its own color space: give these functions its stored
    pixels, for they convert a file to sRGB.

    Raises KeyError for a record without seed or settings, TypeError for settings unknown to this version.
    """
    command = record.get("command")
    options: dict[str, Any] = {
        "seed": record["seed"],
        "settings": SamplingSettings(**record["settings"]),
        "first": record.get("image", record.get("first", 0)),
        **({} if command == "interpolate" else {"count": 1}),
        **{name: record[name] for name in _OWN.get(str(command), ()) if name in record},
    }
    if record.get("prompts") is not None:
        options["prompt"] = record["prompts"]
    if record.get("negative") is not None:
        options["negative"] = record["negative"]
    if "pasting" in record:
        unfitted = {"fit": "none", "follow": None} if command == "enrich" else {}
        options["pasting"] = Pasting(**{"fit": "none", **record["pasting"], **unfitted})
    return options
