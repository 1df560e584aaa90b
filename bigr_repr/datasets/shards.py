"""Tar shards in WebDataset's layout as an image set: pictures with captions and labels under the same key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.captions.sources import Listed, captions_in
from bigr_repr.datasets.image_set import ImageSet, fingerprint_of, stamps
from bigr_repr.images.containers import members
from bigr_repr.images.decode import decode_image
from bigr_repr.images.find import escape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.images.member import REASONS
from bigr_repr.images.tar import sample_key, tar_texts

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class TarSet(ImageSet):
    """The pictures in tar files, in their order, read in place.

    Captions are the `.txt` or `.json` members with a picture's key, its name up to the first dot. Classes come from
    `.cls` members, or from the folders in the tar files, if every picture has one: numbers in order, then names.
    Raises ImageError for a file that is missing, damaged or compressed, or has no pictures.
    """

    def __init__(self, files: Sequence[PathLike]) -> None:
        self._files = [os.fspath(file) for file in files]
        self._members = [(file, member) for file in self._files for member in members(file, labels=True)]
        given = [member.label for _, member in self._members if member.label is not None]
        if len(given) == len(self._members):
            self.class_names = tuple(sorted(set(given), key=_by_number))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = np.array([number[name] for name in given], np.int64)

    def __len__(self) -> int:
        return len(self._members)

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        known = {file: _captions_of(file) for file in self._files}
        found = [known[file].get(sample_key(member.name), ()) for file, member in self._members]
        return found if any(found) else None

    def load(self, index: int) -> Image.Image:
        file, member = self._members[index]
        name = f"{file}#{member.name}"
        if member.start < 0:
            raise ImageError("unreadable", f"{escape_path(name)}: {REASONS[member.start]}")
        with Path(file).open("rb") as opened:
            opened.seek(member.start)
            return decode_image(opened.read(member.size), name=name)

    def fingerprint(self) -> str:
        return fingerprint_of(["tar", stamps(self._files)])


def _captions_of(file: str) -> dict[str, Listed]:
    """The captions in a tar file, by the key of their sample; a text member takes precedence over a JSON record."""
    found: dict[str, Listed] = {}
    for key, suffix, content in tar_texts(file, ("txt", "json")):
        if suffix == "txt" or key not in found:
            found[key] = captions_in(content, suffix, f"{escape_path(file)}#{key.lstrip('/')}.{suffix}")
    return found


def _by_number(name: str) -> tuple[int, str]:
    """Sort key: numbers in numerical order, then other names."""
    return (int(name), "") if name.isdecimal() else (1 << 62, name)


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand a pattern such as `part-{000..012}.tar` or `{train,val}.tar`, as in shells and WebDataset.

    Numbers keep leading zeros. A name without braces stands for itself.
    """
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    inner, numbers = found[1], _RANGE.fullmatch(found[1])
    parts = inner.split(",")
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        width = max(map(len, numbers.groups())) if numbers[1].startswith("0") or numbers[2].startswith("0") else 0
        parts = [f"{number:0{width}d}" for number in range(first, last + 1)]
    for part in parts:
        yield from expand_braces(pattern[: found.start()] + part + pattern[found.end() :])
