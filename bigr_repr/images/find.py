"""Finding image files in folders, patterns and lists, and a text form for paths. Knows nothing of pixels.

Names are handled as the bytes that the file system holds, so a name that is not valid UTF-8 survives: in Python it is
a str with surrogate escapes (PEP 383), in files it is what `escape_path` makes of it. Names reach memory one folder at
a time, packed, so that a folder of a million files costs the bytes of its names and not a million objects.
"""
# pathlib does not take names as bytes:
# ruff: noqa: PTH109, PTH112, PTH116, PTH118, PTH122

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain, islice
from typing import BinaryIO

from bigr_repr._typing import PathLike
from bigr_repr.images.sorting import sorted_names

log = logging.getLogger(__name__)

# Suffixes of the formats that decode() reads, then those of photographs it cannot read: a folder's HEIC pictures are
# listed, and end among the failures with the remedy, instead of being passed over in silence.
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib",
    ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pnm", ".ppm", ".pgm", ".pbm", ".pfm", ".qoi",
    ".heic", ".heif", ".hif", ".jxl",
})
# fmt: on
_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
_TABLES = (b".parquet", b".pq", b".parq")  # of folders that hold Parquet files, as Spark writes them
_VANISHED = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP}
_CHUNK = 1 << 16  # bytes of a list read at a time; more than the longest path, so the first chunk shows the separator
MAGIC = re.compile(rb"[*?\[]")


@dataclass(frozen=True, slots=True)
class Source:
    """One image. path: what is recorded for it; file: what is opened. Both may hold surrogate escapes.

    start: None if the image is the whole file; otherwise the image is size bytes at offset start or, if size is None,
    row start of a Parquet file. label: the label in the file itself. together: the number of images, from this one on,
    that are read together, if this is the first of several. stamp: size and modification time in nanoseconds of a file
    with several images, taken before it was listed; None if unknown.
    """

    path: str
    file: str
    start: int | None = None
    size: int | None = None
    label: str | None = None
    together: int | None = None
    stamp: tuple[int, int] | None = None


def find_images(
    inputs: PathLike | Iterable[PathLike],
    *,
    root: PathLike | None = None,
    follow_links: bool = True,
    literal: bool = False,
    alone: bool | None = None,
) -> Iterator[Source]:
    """List the images in files, folders and glob patterns, in the order given; streams.

    - A folder is walked recursively in byte order of the relative paths. Members are selected by suffix
      (`IMAGE_SUFFIXES`, either case) without being opened; names that start with a dot are skipped.
    - A pattern (`*`, `?`, `[…]`, and `**` for any number of folders) means the same as in a shell: files that
      match, and everything below folders that match. Matches are selected by suffix too, unless the pattern ends in a
      suffix of its own (`*.dat`); in a folder that matches `*.parquet`, Parquet files are listed as well. An existing
      file whose name looks like a pattern is that file.
    - A file that is named directly is always listed, whatever its suffix, even if it is a dangling link.

    The recorded path of a file or of a pattern's match is the path as given. A folder's member is recorded relative to
    the folder if that is the only input; with several inputs the folder is prefixed as given, so that a recorded
    path never means two files. With `root`, every path is relative to root. A file named by two inputs is listed twice.

    follow_links: enter folders through symbolic links; a link back to a folder above itself is not entered.
    literal: for paths from a list: nothing is a pattern, and a path that does not exist is passed on unchanged,
    for decode() to report. alone: whether to treat inputs as a single one; None: only if there is just one.

    Raises FileNotFoundError for an input that does not exist (at once if inputs is a sequence; when it is reached if
    they are a stream) or has no image, PermissionError for a folder that cannot be listed, ValueError for no inputs or
    a path outside root.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    if isinstance(inputs, Sequence) and not literal:
        require(inputs)
    return _find(map(os.fsencode, inputs), None if root is None else os.fsencode(root), follow_links, literal, alone)


def require(inputs: Iterable[PathLike]) -> None:
    """Raise FileNotFoundError for the first input that does not exist and is not a pattern."""
    for given in map(os.fsencode, inputs):
        if not os.path.lexists(given) and not MAGIC.search(given):
            raise nothing_at(given)


def _find(
    inputs: Iterator[bytes], root: bytes | None, follow_links: bool, literal: bool, alone: bool | None
) -> Iterator[Source]:
    first = list(islice(inputs, 2))
    if not first:
        raise ValueError("no inputs; name image files, folders or patterns")
    alone = len(first) == 1 if alone is None else alone
    for given in chain(first, inputs):
        if not os.path.isdir(given) and (literal or os.path.lexists(given)):
            path = os.fsdecode(given if root is None else _relative(given, root))
            yield Source(path, os.fsdecode(given))
        else:
            yield from _listed(given, root, follow_links, alone)


def _listed(given: bytes, root: bytes | None, follow_links: bool, alone: bool) -> Iterator[Source]:
    """The images in a folder, or those that match a pattern."""
    folder = os.path.isdir(given)
    top, parts = (given, ()) if folder else split_pattern(given)
    if not folder and not (MAGIC.search(given) and os.path.isdir(top or b".")):
        raise nothing_at(given)
    shown = b"" if alone and not parts else top
    if root is not None:
        shown = _relative(top, root)
    shown, opened = os.path.join(shown, b""), os.path.join(top, b"")  # with a slash at the end, unless empty
    member = None
    for member in _walk(top or b".", parts, follow_links):
        yield Source(os.fsdecode(shown + member), os.fsdecode(opened + member))
    if member is None:
        raise nothing_at(given, folder=folder)


def nothing_at(given: bytes, folder: bool = False) -> FileNotFoundError:
    """The error for an input that does not exist, or a folder without images."""
    name = escape_path(os.fsdecode(given))
    if folder:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        return FileNotFoundError(
            f"{name}: the folder holds no image ({suffixes}); name other files directly, such as 'folder/*.tar'"
        )
    if MAGIC.search(given):
        return FileNotFoundError(f"{name}: the pattern matches no image; quote it, and use ** for folders at any depth")
    return FileNotFoundError(f"{name}: no such file or folder; check the path, which is relative to {os.getcwd()}")


def _relative(path: bytes, root: bytes) -> bytes:
    relative = os.path.relpath(path or b".", root)
    if relative.split(os.sep.encode())[0] == b"..":
        raise ValueError(
            f"{escape_path(os.fsdecode(path))} lies outside root={escape_path(os.fsdecode(root))}; "
            "give a root that holds every input, or none"
        )
    return b"" if relative == b"." else relative


# ---- walking: the state is a set of positions in the pattern, so that only folders that can match are entered


def split_pattern(pattern: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """A pattern's fixed folder, and the parts from the first wildcard on."""
    parts = pattern.rstrip(b"/").split(b"/")
    fixed = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    top = b"/".join(parts[:fixed])
    return top or (b"/" if pattern.startswith(b"/") else b""), tuple(part for part in parts[fixed:] if part)


def _skip_stars(positions: set[int], parts: tuple[bytes, ...]) -> frozenset[int]:
    """Positions, plus those after any ** at one of them, because ** may match no folder at all."""
    for position, part in enumerate(parts):
        if part == b"**" and position in positions:
            positions.add(position + 1)
    return frozenset(positions)


def _advance(positions: frozenset[int], name: bytes, parts: tuple[bytes, ...]) -> frozenset[int]:
    """Positions after one more name. The position len(parts) is a match; everything below matches too."""
    after = set()
    for position in positions:
        if parts[position] == b"**":
            after.add(position)
        elif fnmatchcase(name, parts[position]):
            after.add(position + 1)
    return _skip_stars(after, parts)


def _walk(top: bytes, parts: tuple[bytes, ...], follow_links: bool) -> Iterator[bytes]:
    """Paths, relative to top, of the files that match parts."""
    return walk(
        parts,
        lambda folder: _members(os.path.join(top, folder), follow_links),
        lambda folder: _identity(os.path.join(top, folder)),
    )


def walk(
    parts: tuple[bytes, ...],
    members: Callable[[bytes], Iterator[bytes]],
    identity: Callable[[bytes], Hashable | None],
) -> Iterator[bytes]:
    """Paths of the files in a tree that match parts (no parts: all images), in byte order.

    members(folder): names in a folder, given as a path with a trailing slash or empty for the top: without hidden ones,
    folders with a trailing slash, in the byte order of whole paths. identity(folder): the same for every path
    to one folder; None if it has vanished.
    """
    any_suffix = bool(parts) and not MAGIC.search(os.path.splitext(parts[-1])[1] or b"*")
    start = _skip_stars({0}, parts)
    stack = [(b"", identity(b""), start, members(b""))]
    while stack:
        folder, _, positions, names = stack[-1]
        matched = len(parts) in positions
        table = any_suffix and matched and any(part.lower().endswith(_TABLES) for part in folder.split(b"/"))
        for name in names:
            after = positions if matched else _advance(positions, name.rstrip(b"/"), parts)
            if name.endswith(b"/"):
                if not after:
                    continue
                itself = identity(folder + name)
                if itself is None or any(itself == above for _, above, _, _ in stack):
                    log.info("not entered (a link back to a folder above it, or gone): %r", folder + name)
                    continue
                stack.append((folder + name, itself, after, members(folder + name)))
                break
            named = any_suffix and not matched
            inside = table and name.lower().endswith(_TABLES) and not name.startswith(b"_")
            if len(parts) in after and (named or inside or name[name.rfind(b".") :].lower() in _SUFFIXES):
                yield folder + name
        else:
            stack.pop()


def _identity(folder: bytes) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except PermissionError:
        raise unlisted(folder) from None
    except OSError as error:
        if error.errno in _VANISHED:
            return None
        raise
    return status.st_dev, status.st_ino


def unlisted(folder: bytes) -> PermissionError:
    """The error for a folder that may hold pictures but cannot be listed."""
    name = escape_path(os.fsdecode(folder))
    return PermissionError(f"{name}: the folder cannot be listed; change its permissions or leave it out")


def _members(folder: bytes, follow_links: bool) -> Iterator[bytes]:
    """Names in a folder without hidden ones, folders with a trailing slash, in the byte order of whole paths."""
    return sorted_names(_names(folder, follow_links))


def _names(folder: bytes, follow_links: bool) -> Iterator[bytes]:
    """The same in arbitrary order.  A generator, so that it handles only errors of listing, not its consumer's."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(b"."):
                    yield entry.name + b"/" if _is_folder(entry, follow_links) else entry.name
    except PermissionError as error:
        raise (unlisted(folder) if error.errno else error) from None
    except FileNotFoundError:
        log.warning("folder vanished during listing: %r", folder)


def _is_folder(entry: os.DirEntry[bytes], follow_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except PermissionError:
        if entry.name[entry.name.rfind(b".") :].lower() in _SUFFIXES:
            return False
        raise unlisted(entry.path) from None  # a link to what may be a folder of pictures
    except OSError:  # a link to itself
        return False


# ---- lists and text forms


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Paths from a binary stream: separated by NUL if the first 64 KiB contain one, else one per line; streams.

    Lines may end in CR LF. Empty entries and a leading UTF-8 byte order mark are skipped. There are no comments.
    """
    rest = stream.read(_CHUNK)
    by_nul = b"\0" in rest
    separator = b"\0" if by_nul else b"\n"
    rest = rest.removeprefix(b"\xef\xbb\xbf")
    while True:
        *complete, rest = rest.split(separator)
        more = stream.read(_CHUNK)
        if not more:
            complete.append(rest)
        for entry in complete:
            path = entry if by_nul else entry.removesuffix(b"\r")
            if path:
                yield os.fsdecode(path)
        if not more:
            return
        rest += more


def escape_path(path: str) -> str:
    r"""A path as valid UTF-8 text, for Parquet and JSON; `unescape_path` reverses it exactly.

    A byte that is not part of valid UTF-8 becomes `\xhh` (two lower-case hexadecimal digits). A backslash in front of
    text of that form becomes `\x5c`. All other paths are left as they are.
    """
    raw = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(path))
    return raw.decode("utf-8", "backslashreplace")


def unescape_path(text: str) -> str:
    """The path from which `escape_path` made text."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text.encode("utf-8"))
    return os.fsdecode(raw)


def one_line(text: str) -> str:
    """Text with line breaks and other control characters written as Python escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
