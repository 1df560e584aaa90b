"""Turns a picture's recorded provenance into the keyword arguments that reproduce it. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigr_repr.painting.call import PhotoOptions
from bigr_repr.painting.pasting import Pasting
from bigr_repr.sampling.settings import SamplingSettings


def recorded_options(record: Mapping[str, Any]) -> PhotoOptions:
    """Keyword arguments of the call that drew a picture, from its provenance (`read_provenance`).

    With the same model, photograph, mask and `labels`, all of which the record names, `inpaint_photo`, `outpaint_photo`
    or `enrich_photo` draws the same picture with them; for `generate`, leave out `count` and `pasting`. Pictures of
    versions without fitting are drawn as they were.

    Raises KeyError for a record without seed or settings, TypeError for settings unknown to this version.
    """
    options = PhotoOptions(
        seed=record["seed"], settings=SamplingSettings(**record["settings"]), first=record.get("image", 0), count=1
    )
    if record.get("prompts") is not None:
        options["prompt"] = record["prompts"]
    if record.get("negative") is not None:
        options["negative"] = record["negative"]
    if "pasting" in record:
        options["pasting"] = Pasting(**{"fit": "none", **record["pasting"]})
    return options
