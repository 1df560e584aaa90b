"""Tar shards: which pictures are in them, and where. Knows nothing of decoding."""
# ruff: noqa: PTH119, PTH122  (names of members need not be paths here)

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from bigr_repr.images.find import IMAGE_SUFFIXES, escape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.images.member import NOWHERE, SPARSE, Member
from bigr_repr.system.object_store import ObjectPath, is_url

_BUFFER: Final = 4 << 20  # bytes read at a time
_HOPS: Final = 40  # from link to link, as Linux follows them
_PACKED: Final = {
    b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
}  # fmt: skip


def tar_members(file: str, labels: bool) -> Iterator[Member]:
    """Pictures in a tar file, in its order: regular files and links with the suffix of an image.

    Raises ImageError for a file that is empty or compressed, and what tarfile raises.
    """
    links = _Links(file)
    with _open(file) as stream, _open_tar(stream, file) as tar:
        for infos in _samples(tar):
            label = next((_text(tar, info) for info in infos if info.name.endswith(".cls")), None) if labels else None
            for info in infos:
                folder, base = os.path.split(info.name)
                if os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES and not base.startswith("."):
                    own = label if label is not None or not folder else escape_path(os.path.basename(folder))
                    yield Member(info.name, *links.place(info), own)


class _Links:
    """Where the bytes of members are; the file is listed once more when there is a first link in it."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] | None = None
        self._targets: dict[str, str] = {}

    def place(self, info: tarfile.TarInfo) -> tuple[int, int]:
        """Start and size of a member, of what it links to if it is a link."""
        if info.isreg():
            return (SPARSE, 0) if info.issparse() else (info.offset_data, info.size)
        if self._places is None:
            self._places = {}
            with _open(self._file) as stream, _open_tar(stream, self._file) as tar:
                for each in _files(tar):
                    name = posixpath.normpath(each.name)
                    if each.isreg():
                        self._places[name] = self.place(each)
                    else:
                        self._targets[name] = _target(each)
        name = _target(info)
        for _ in range(_HOPS):
            if name in self._places:
                return self._places[name]
            name = self._targets.get(name, "")
        return NOWHERE, 0


def _target(info: tarfile.TarInfo) -> str:
    """The name that a link leads to."""
    name = info.linkname if info.islnk() else posixpath.join(posixpath.dirname(info.name), info.linkname)
    return posixpath.normpath(name)


def _open(file: str) -> BinaryIO:
    if is_url(file):
        return io.BufferedReader(ObjectPath(file).open_input(), _BUFFER)
    return Path(file).open("rb")


def _open_tar(stream: BinaryIO, file: str) -> tarfile.TarFile:
    start = stream.read(8)
    if not start:
        raise ImageError("empty", f"{escape_path(file)}: the file is empty; fetch it again")
    for magic, (name, command) in _PACKED.items():
        if start.startswith(magic):
            raise ImageError(
                "unsupported",
                f"{escape_path(file)}: compressed with {name}, so its members cannot be read where they are; "
                f"decompress it first: {command}",
            )
    stream.seek(0)
    return tarfile.open(fileobj=stream, mode="r:")


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Regular files and links. What comes before damage is given before that is raised."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        if info.isreg() or info.islnk() or info.issym():
            yield info
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damage for the end
        raise tarfile.ReadError("no member begins where one should, and no end mark")


def _samples(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Neighboring members with one key, together. What comes before an error is given before it is raised."""
    sample: list[tarfile.TarInfo] = []
    try:
        for info in _files(tar):
            if sample and _key(info.name) != _key(sample[0].name):
                yield sample
                sample = []
            sample.append(info)
    except Exception:
        yield sample
        raise
    yield sample


def _key(name: str) -> str:
    """What members of one WebDataset sample share."""
    folder, base = os.path.split(name)
    return f"{folder}/{base.partition('.')[0]}"


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    member = tar.extractfile(info) if info.isreg() else None
    return "" if member is None else escape_path(os.fsdecode(member.read(1024).strip()))
