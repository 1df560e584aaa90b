"""The names of classes that Parquet files carry in their metadata. Knows nothing of pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_WORDNET_ID = re.compile(r"^n\d{8}:")


def class_names(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """Names by the number that the column `label` holds; none if the schema's metadata states none.

    The key `classes` holds them separated by `|`, or by commas where there is no `|`; WordNet ids in front of names
    ("n01443537:goldfish") are left out. Else they are those of the Hugging Face hub's feature ClassLabel.
    """
    metadata = metadata or {}
    if classes := metadata.get(b"classes", b"").decode():
        return tuple(_WORDNET_ID.sub("", name) for name in classes.split("|" if "|" in classes else ","))
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()
