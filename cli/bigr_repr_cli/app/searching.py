"""The Search page: opens an index or a folder of pictures. `bigr_repr.serve` does the searching."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed.run import embed_images
from bigr_repr.models.bigr import usual_block
from bigr_repr.retrieval import build_index
from bigr_repr.retrieval.index.shard_list import is_index
from bigr_repr.serve import Service, api
from bigr_repr.serve.guard import RefusedError
from bigr_repr_cli.app.jobs import Look, Watch
from bigr_repr_cli.app.orders import FieldError
from bigr_repr_cli.app.routes import Queue, page

_TEMPLATES: Final = Path(api.__file__).parent
router = APIRouter()


class OpenBody(BaseModel):
    """What to search. path: an index folder, or a folder of pictures; images: the folder of an index's pictures."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, max_length=4096)
    images: str = Field("", max_length=4096)


class Finder:
    """Opens what is searched. open_paths: whether the page may name folders of this machine.

    folder: a private folder for the codes of picture folders, kept while the server runs.
    """

    def __init__(self, pre: Pretrained, folder: Path, *, open_paths: bool) -> None:
        self.pre, self.open_paths, self._folder = pre, open_paths, folder
        self.service: Service | None = None
        self.path: Path | None = None

    def open(self, path: Path, images: Path | None, watch: Watch) -> int:
        """Open an index folder, or a folder of pictures, which is embedded first. Returns the number of rows.

        Raises OSError and ValueError for folders that cannot be searched.
        """
        path = path.expanduser()
        if not path.exists():
            raise FieldError("path", f"{path}: no such folder")
        index, photos = path, None if images is None else images.expanduser()
        if photos is not None and not photos.exists():
            raise FieldError("images", f"{photos}: no such folder")
        if not is_index(path):
            index, photos = self._indexed(path, watch), path
        service = Service(self.pre, index=index, images=photos)
        before, self.service, self.path = self.service, service, path
        if before is not None:
            before.close()
        return service.rows

    def _indexed(self, pictures: Path, watch: Watch) -> Path:
        name = hashlib.sha256(str(pictures.resolve()).encode()).hexdigest()[:16]
        codes, index = self._folder / f"{name}-codes", self._folder / f"{name}-index"

        def report(done: float, total: float | None, look: Look | None = None) -> None:
            watch(done, total or 0, look)

        summary = embed_images(
            pictures, codes, model=self.pre, codes=True, layers=(usual_block(self.pre.config.generator.layers),),
            root=pictures, update=True, unit_size=256,
            on_progress=lambda at: report(at.done, at.total),
        )  # fmt: skip
        if not summary.rows:
            raise FieldError("path", f"{pictures}: none of its {summary.failures} files can be read as a picture")
        build_index(codes, index, binarizer="bits")
        return index

    def close(self) -> None:
        """Stop the search service."""
        if self.service is not None:
            self.service.close()


@router.get("/search/")
async def search_page(request: Request) -> Response:
    """The page."""
    return page("search.html", request, _TEMPLATES)


@router.get("/search/opened")
async def opened(request: Request) -> dict[str, Any]:
    """The index or folder that is open."""
    finder: Finder = request.app.state.finder
    return {
        "path": None if finder.path is None else str(finder.path), "open_paths": finder.open_paths,
        "rows": 0 if finder.service is None else finder.service.rows,
    }  # fmt: skip


@router.post("/search/open")
async def open_index(body: OpenBody, request: Request, desk: Queue) -> dict[str, str]:
    """Open an index, or a folder of pictures."""
    app: FastAPI = request.app
    finder: Finder = app.state.finder
    if not finder.open_paths:
        raise RefusedError(
            403, "paths", "other machines can reach this page: start it with --password, or with --search"
        )
    images = Path(body.images) if body.images.strip() else None

    def work(watch: Watch) -> dict[str, int]:
        rows = finder.open(Path(body.path), images, watch)
        app.state.service = finder.service
        return {"rows": rows}

    return {"job": desk.submit(work).id}
