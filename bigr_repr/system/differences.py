"""Describes how two records differ. Knows nothing of what is recorded."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignored: Collection[str] = ()) -> list[str]:
    """Each differing field as "name was …, is …"; in nested records only what differs, as outer.inner.

    Values are as in JSON: a field that only one of them has is null in the other.  ignored: fields to ignore.
    """
    found = []
    for name in sorted({*old, *new} - {*ignored}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += [f"{name}.{inner}" for inner in differences(before, after)]
        elif before != after:
            found.append(f"{name} was {_text(before)}, is {_text(after)}")
    return found


def _text(value: object) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"{text[:12]}…" if len(text) == 64 else text  # a SHA-256
