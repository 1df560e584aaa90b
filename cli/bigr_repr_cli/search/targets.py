"""Checks, before any work, that the files a search is to write can be written and are not its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bigr_repr.system.targets import check_target

if TYPE_CHECKING:
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.stores.base import StoreIndex


def check_targets(targets: Mapping[str, Path | None], *, inputs: Iterable[str] = (), index: str = "") -> None:
    """Check files to write, by option. inputs: files, folders, patterns and members of files that are read.

    Raises BadParameter for a file that is an input, part of the index, or named twice, OSError for one that cannot be
    written.
    """
    named = {option: path for option, path in targets.items() if path is not None}
    if not named:
        return
    others: dict[Path, str] = {}
    for option, path in named.items():
        other = others.setdefault(path.resolve(), option)
        if other != option:
            raise typer.BadParameter(f"{path} is the file of {other} too; choose another name", param_hint=option)
        check_target(path, ".png" if option == "--montage" else "")
    check_inputs(targets, inputs)
    for option, path in named.items():
        if index and path.exists() and path.resolve().is_relative_to(Path(index).resolve()):
            raise typer.BadParameter(f"{path} is a file of the index; choose another name", param_hint=option)


def check_inputs(targets: Mapping[str, Path | None], inputs: Iterable[str]) -> None:
    """Raise BadParameter for a file to write that is an input, or one of the images of an input."""
    there = {option: path for option, path in targets.items() if path is not None and path.exists()}
    for given in inputs if there else ():
        for file in _files(given):
            for option, path in there.items():
                if path.samefile(file):
                    raise typer.BadParameter(
                        f"{path} is an input, {given}, and would be overwritten; choose another name", param_hint=option
                    )


def check_photographs(
    targets: Mapping[str, Path | None], index: HammingIndex | StoreIndex, images: Path | None = None
) -> None:
    """Raise BadParameter for a file to write that is a photograph of the index. images: as in PhotoFinder."""
    there = {option: path for option, path in targets.items() if path is not None and path.exists()}
    if not there:
        return
    from bigr_repr.images.find import escape_path
    from bigr_repr.retrieval import HammingIndex
    from bigr_repr.retrieval.results.photos import PhotoFinder

    finder = PhotoFinder(images, index.source if isinstance(index, HammingIndex) else None)
    for option, path in there.items():
        parts = path.absolute().parts
        ids = [escape_path(str(Path(*parts[start:]))) for start in range(len(parts))]
        rows = index.rows.places(ids).tolist() if isinstance(index, HammingIndex) else map(index.row_of, ids)
        for id, row in zip(ids, rows, strict=True):
            for found in finder.encoded(id, row, thumbnails=False) if row >= 0 else ():
                if isinstance(found, str) and path.samefile(found):
                    raise typer.BadParameter(
                        f"{path} is an image of the index, {id}; choose another name", param_hint=option
                    )


def _files(given: str) -> Iterator[str]:
    """The files behind an input that exist: itself, the images of a folder or pattern, a container of a member."""
    from bigr_repr.images.find import find_images

    if Path(given).is_file():
        yield given
        return
    parents = [given.rpartition("#")[0], *map(str, Path(given).parents)]
    if inside := [each for each in parents if Path(each).is_file()]:
        yield inside[0]
        return
    with suppress(OSError, ValueError):  # the search says what is wrong with it
        yield from (source.file for source in find_images(given) if Path(source.file).is_file())
