"""The Search page: opens an index or a folder of pictures. `bigr_repr.serve` does the searching."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import State

from bigr_repr.embed.run import embed_images
from bigr_repr.images.containers import is_container
from bigr_repr.models.bigr import usual_block
from bigr_repr.retrieval import build_index
from bigr_repr.retrieval.index.shard_list import is_index
from bigr_repr.serve import Service, api
from bigr_repr.serve.guard import RefusedError
from bigr_repr_cli.app.jobs import Look, Watch
from bigr_repr_cli.app.orders import FieldError
from bigr_repr_cli.app.routes import Queue, page, shown_folder
from bigr_repr_cli.app.studio import Studio

_TEMPLATES: Final = Path(api.__file__).parent
router = APIRouter()


class OpenBody(BaseModel):
    """What to search. path: an index folder, or a folder of pictures; images: the folder of an index's pictures."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=4096)
    images: str = Field("", max_length=4096)


class Finder:
    """Opens what is searched, as the `service` of the application's state. open_paths: whether the page may name
    folders of this machine.

    folder: a private folder for the codes of picture folders, kept while the server runs. path: what is open.
    unreadable: number of its files that could not be read as pictures; 0 for an index.
    """

    def __init__(self, studio: Studio, folder: Path, state: State, *, open_paths: bool) -> None:
        self.open_paths, self._studio, self._folder, self._state = open_paths, studio, folder, state
        self._state.service = None
        self.path: Path | None = None
        self.unreadable = 0
        self._changed, self._requests, self._ended = threading.Condition(), set[object](), False
        self._closing: list[threading.Thread] = []

    @property
    def service(self) -> Service | None:
        """What requests search; None if nothing is open."""
        service: Service | None = self._state.service
        return service

    def open(self, path: Path, images: Path | None, watch: Watch) -> int:
        """Open an index folder, or a folder of pictures, which is embedded first. Returns the number of rows.

        Raises OSError and ValueError for folders that cannot be searched, and for images with a folder of pictures.
        """
        path = _existing("path", path)
        index, photos, unreadable = path, None if images is None else _existing("images", images), 0
        if not is_index(path):
            if not path.is_dir() and not is_container(str(path)):
                raise FieldError("path", f"{path} is neither a folder nor a tar or Parquet file; choose a folder")
            if images is not None:
                raise FieldError("images", f"images={str(images)!r} is only for an index; {path} is none: leave it out")
            (index, unreadable), photos = self._indexed(path, watch), path
        service = Service(self._studio.exact, index=index, images=photos)
        with self._changed:
            before, self._state.service, self.path = self.service, service, path
            self.unreadable = unreadable
            if before is not None:
                thread = threading.Thread(target=self._close, args=(before, set(self._requests)), name="close index")
                self._closing = [each for each in self._closing if each.is_alive()] + [thread]
                thread.start()
        return service.rows

    async def used(self) -> AsyncIterator[None]:
        """A dependency of requests that search: what they have begun to search stays open until they are done."""
        request = object()
        with self._changed:
            self._requests.add(request)
        try:
            yield
        finally:
            with self._changed:
                self._requests.remove(request)
                self._changed.notify_all()

    def _close(self, service: Service, requests: set[object]) -> None:
        """Close a service when these requests, which may use it, are done."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not requests & self._requests)
        service.close()

    def _indexed(self, pictures: Path, watch: Watch) -> tuple[Path, int]:
        """The index of a folder of pictures, and the number of its files that cannot be read as pictures."""
        name = hashlib.sha256(str(pictures.resolve()).encode()).hexdigest()[:16]
        codes, index = self._folder / f"{name}-codes", self._folder / f"{name}-index"

        def report(done: float, total: float | None, look: Look | None = None) -> None:
            watch(done, total or 0, look)

        pre = self._studio.exact
        summary = embed_images(
            pictures, codes, model=pre, codes=True, layers=(usual_block(pre.config.generator.layers),),
            root=pictures, update=True, unit_size=256,
            on_progress=lambda at: report(at.done, at.total),
        )  # fmt: skip
        if not summary.rows:
            raise FieldError("path", f"{pictures}: none of its {summary.failures} files can be read as a picture")
        build_index(codes, index, binarizer="bits")
        return index, summary.failures

    def close(self) -> None:
        """Stop the search service, and those before it that requests have not yet released."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._closing:
            thread.join()
        if self.service is not None:
            self.service.close()


def _existing(field: str, path: Path) -> Path:
    """A path that exists, with the home folder in place of ~. Raises FieldError."""
    try:
        found = path.expanduser()
        if found.exists():
            return found
    except RuntimeError:
        raise FieldError(field, f"{path}: there is no such user; give the whole path") from None
    except OSError as error:
        raise FieldError(field, f"{found}: {error.strerror}; choose another folder") from error
    raise FieldError(field, f"{found}: no such folder")


@router.get("/search/")
async def search_page(request: Request) -> Response:
    """The page."""
    return page("search.html", request, _TEMPLATES)


@router.get("/search/opened")
async def opened(request: Request) -> dict[str, Any]:
    """The index or folder that is open."""
    finder: Finder = request.app.state.finder
    return {
        "path": None if finder.path is None else shown_folder(finder.path, request), "open_paths": finder.open_paths,
        "rows": 0 if finder.service is None else finder.service.rows, "unreadable": finder.unreadable,
    }  # fmt: skip


@router.post("/search/open")
async def open_index(body: OpenBody, request: Request, desk: Queue) -> dict[str, str]:
    """Open an index, or a folder of pictures."""
    finder: Finder = request.app.state.finder
    if not finder.open_paths:
        raise RefusedError(
            403, "paths", "other machines can reach this page: start it with --password, or with --search"
        )
    images = Path(body.images) if body.images.strip() else None

    return {"job": desk.submit(lambda watch: {"rows": finder.open(Path(body.path), images, watch)}).id}
