"""Tar shards: lists the pictures in them and their offsets. Knows nothing of decoding."""
# ruff: noqa: PTH119, PTH122  (member names need not be local paths)

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from bigr_repr.images.find import IMAGE_SUFFIXES, escape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.images.member import NOWHERE, SPARSE, Member
from bigr_repr.system.object_store import ObjectPath, is_url

_BUFFER: Final = 1 << 20  # bytes of a store's object read at a time if members are small
_HEADER, _JUMP = 2 << 10, 64 << 10  # the same if they are large, and the size from which they are
_HOPS: Final = 40  # longest chain of links, as in Linux
_PACKED: Final = {
    b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
}  # fmt: skip


def tar_members(file: str, labels: bool) -> Iterator[Member]:
    """Pictures in a tar file, in its order: regular files and links with an image suffix.

    The file is read once, and only its headers where members are large. From the first link on, members are held back
    until the end, because links may point to later members. Raises ImageError for a file that is empty or compressed,
    and what tarfile raises.
    """
    links, waiting = _Links(), list[tuple[Member, str | None]]()
    with _open(file) as stream, _open_tar(stream, file) as tar:
        try:
            for infos in _samples(tar):
                for member, target in _pictures_of(tar, infos, labels):
                    if target is None and not waiting:
                        yield member
                    else:
                        waiting.append((member, target))
                for info in infos:
                    links.note(info)
        except Exception:
            yield from links.resolved(waiting)
            raise
    yield from links.resolved(waiting)


def tar_texts(file: str, suffixes: Collection[str]) -> Iterator[tuple[str, str, bytes]]:
    """Content of the members with one of the suffixes, in the order of a tar file: (key of the sample, suffix,
    content).

    A suffix is everything after a name's first dot, in lower case. Raises as `tar_members` does.
    """
    with _open(file) as stream, _open_tar(stream, file) as tar:
        for info in _files(tar):
            suffix = os.path.basename(info.name).partition(".")[2].lower()
            content = tar.extractfile(info) if suffix in suffixes and info.isreg() else None
            if content is not None:
                yield sample_key(info.name), suffix, content.read()


def _pictures_of(
    tar: tarfile.TarFile, infos: list[tarfile.TarInfo], labels: bool
) -> Iterator[tuple[Member, str | None]]:
    """Pictures of a sample, each with the name it links to, or None."""
    label = next((_text(tar, info) for info in infos if info.name.endswith(".cls")), None) if labels else None
    for info in infos:
        folder, base = os.path.split(info.name)
        if os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES and not base.startswith("."):
            own = label if label is not None else _label_of(folder)
            yield Member(info.name, *_place(info), own), None if info.isreg() else _target(info)


def _label_of(folder: str) -> str | None:
    """The name of a member's folder; None at the top, which `tar cf x.tar .` writes as "."."""
    name = posixpath.basename(posixpath.normpath(folder)) if folder else ""
    return escape_path(name) if name not in ("", ".") else None


def _place(info: tarfile.TarInfo) -> tuple[int, int]:
    """Start and size of a member's bytes; a placeholder for a link."""
    if info.issparse():
        return SPARSE, 0
    return (info.offset_data, info.size) if info.isreg() else (NOWHERE, 0)


class _Links:
    """Offsets and sizes of members, by name."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        self._targets: dict[str, str] = {}

    def note(self, info: tarfile.TarInfo) -> None:
        """Remember a member; if a name occurs twice, the last one counts."""
        name = posixpath.normpath(info.name)
        if info.isreg():
            self._places[name] = _place(info)
        else:
            self._targets[name] = _target(info)

    def resolved(self, members: list[tuple[Member, str | None]]) -> Iterator[Member]:
        """Members with their links resolved."""
        for member, target in members:
            if target is None:
                yield member
            else:
                start, size = self._find(target)
                yield member._replace(start=start, size=size)

    def _find(self, name: str) -> tuple[int, int]:
        for _ in range(_HOPS):
            if name in self._places:
                return self._places[name]
            name = self._targets.get(name, "")
        return NOWHERE, 0


def _target(info: tarfile.TarInfo) -> str:
    """The name that a link points to."""
    name = info.linkname if info.islnk() else posixpath.join(posixpath.dirname(info.name), info.linkname)
    return posixpath.normpath(name)


def _open(file: str) -> BinaryIO:
    if is_url(file):
        return io.BufferedReader(_Headers(ObjectPath(file).open_input()), tarfile.BLOCKSIZE)
    return Path(file).open("rb")


class _Headers(io.RawIOBase):
    """An object, read in few requests if members are small, and only by its headers if they are large.

    Each consecutive piece is twice as long, up to _BUFFER; after a jump over _JUMP bytes, pieces are short again.
    """

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file, self._place, self._start, self._piece, self._content = file, 0, 0, _HEADER, b""
        self._size: int = file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place}.get(whence, self._size)
        return self._place

    def readinto(self, buffer: Any) -> int:
        within = self._place - self._start
        if not 0 <= within < len(self._content):
            near = 0 <= within - len(self._content) < _JUMP
            self._piece = min(_BUFFER, 2 * self._piece) if near else _HEADER
            self._start, within = self._place, 0
            size = min(self._piece, self._size - self._place)
            self._content = self._file.read_at(size, self._place) if size > 0 else b""
        content = self._content[within : within + len(buffer)]
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def _open_tar(stream: BinaryIO, file: str) -> tarfile.TarFile:
    start = stream.read(8)
    if not start:
        raise ImageError("empty", f"{escape_path(file)}: the file is empty; fetch it again")
    for magic, (name, command) in _PACKED.items():
        if start.startswith(magic):
            raise ImageError(
                "unsupported",
                f"{escape_path(file)}: compressed with {name}, so its members cannot be read in place; "
                f"decompress it first: {command}",
            )
    stream.seek(0)
    return tarfile.open(fileobj=stream, mode="r:")


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Regular files and links. Everything before damage is yielded before the error is raised."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]    # tarfile would keep them all
        if info.isreg() or info.islnk() or info.issym():
            yield info
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile treats any damage as the end
        raise tarfile.ReadError("neither a member nor an end mark where one should begin")


def _samples(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Adjacent members with the same key, grouped. Everything before an error is yielded before it is raised."""
    sample: list[tarfile.TarInfo] = []
    try:
        for info in _files(tar):
            if sample and sample_key(info.name) != sample_key(sample[0].name):
                yield sample
                sample = []
            sample.append(info)
    except Exception:
        yield sample
        raise
    yield sample


def sample_key(name: str) -> str:
    """The key shared by the members of a WebDataset sample: folder, and name up to its first dot."""
    folder, base = os.path.split(name)
    return f"{folder}/{base.partition('.')[0]}"


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    member = tar.extractfile(info) if info.isreg() else None
    return "" if member is None else escape_path(os.fsdecode(member.read(1024).strip()))
