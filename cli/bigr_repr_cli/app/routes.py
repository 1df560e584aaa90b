"""The drawing page's HTTP routes: pictures, jobs, progress. Independent of how pictures are drawn."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse
from PIL import Image

from bigr_repr.images.formats import ImageError
from bigr_repr.painting.pasting import Pasting
from bigr_repr.sampling.settings import FAST, SamplingSettings
from bigr_repr.serve.guard import RefusedError
from bigr_repr.system.pages import picture_url, render
from bigr_repr_cli.app.jobs import Desk, QueuedJob
from bigr_repr_cli.app.orders import DrawBody, field_of, fields, work_of
from bigr_repr_cli.app.shelf import Shelf, ShelfPicture
from bigr_repr_cli.app.studio import MOST_FRAMES, MOST_PICTURES, MOST_VERSIONS, Studio

log = logging.getLogger(__name__)
PAGES: Final = Path(__file__).with_name("pages")
_POLL_SECONDS: Final = 10.0  # how long a request for progress waits for news
_LOOK_EVERY: Final = 0.05
_FOREVER: Final = {"Cache-Control": "private, max-age=86400, immutable"}
_EXPECTED: Final = (ValueError, OSError, ImportError, RuntimeError, TypeError)

router = APIRouter()


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


Drawn = Annotated[Studio, Depends(_studio)]
Shown = Annotated[Shelf, Depends(_shelf)]
Queue = Annotated[Desk, Depends(_desk)]


def page(name: str, request: Request, *more: Path) -> Response:
    """One of the studio's pages."""
    studio: Studio = request.app.state.studio
    text = render(PAGES / name, *more, here=name.removesuffix(".html"), model=model_line(studio))
    return HTMLResponse(text, headers={"Cache-Control": "no-cache"})


def model_line(studio: Studio) -> dict[str, Any]:
    """A description of the model."""
    config, side = studio.pre.config, studio.pre.config.image_size
    classes = f", knows {len(studio.classes):,} classes" if studio.classes else ", of captions" * studio.by_text
    small = side < 128  # like the bundled models
    return {"name": config.name, "does": f"draws {side}x{side} pixels{classes}", "small": small}


@router.get("/")
async def draw_page(request: Request) -> Response:
    """The page to draw on."""
    return page("draw.html", request)


@router.get("/about")
async def about(request: Request, studio: Drawn, shelf: Shown) -> dict[str, Any]:
    """The model, the fields and the samples."""
    config, out = studio.pre.config, shown_folder(studio.out, request)
    samples = await run_in_threadpool(lambda: shelf.samples)
    return {
        "model": config.name, "image_size": config.image_size, "grid": config.generator.grid,
        "layers": config.generator.layers, "classes": list(studio.classes), "captions": studio.by_text,
        "out": out, "in_turn": config.generator.attention == "causal",
        "settings": fields(SamplingSettings), "pasting": fields(Pasting), "samples": [told(each) for each in samples],
        "fast": f"{FAST.steps} iterations, order {FAST.order}, {FAST.diffusion_steps} diffusion steps",
        "most": {"versions": MOST_VERSIONS, "pictures": MOST_PICTURES, "frames": MOST_FRAMES},
    }  # fmt: skip


def shown_folder(folder: Path, request: Request) -> str:
    """A folder's path, for those who may name folders of this machine; only its name for others."""
    return str(folder) if request.app.state.finder.open_paths else folder.absolute().name


# ---- pictures


def told(picture: ShelfPicture) -> dict[str, Any]:
    """A picture's description for the page."""
    width, height = picture.size
    return {"id": picture.id, "name": picture.name, "width": width, "height": height, "animated": picture.animated}


def found(shelf: Shelf, id: str) -> ShelfPicture:
    """The picture with this id. Raises RefusedError for an unknown id."""
    picture = shelf.get(id)
    if picture is None or not picture.path.is_file():
        raise RefusedError(404, "picture", "this picture is no longer available; open it again")
    return picture


@router.post("/pictures")
async def upload(request: Request, shelf: Shown, name: Annotated[str, Query(max_length=1000)] = "picture") -> Any:
    """Open a picture: the body is the file."""
    return told(await run_in_threadpool(shelf.upload, await request.body(), name))


@router.get("/pictures/{id}/about")
async def about_picture(id: str, shelf: Shown) -> Any:
    """Name and size of a picture."""
    return told(found(shelf, id))


@router.get("/pictures/{id}")
async def picture(id: str, shelf: Shown) -> Response:
    """A copy for the page."""
    data, kind = await run_in_threadpool(lambda: found(shelf, id).shown)
    return Response(data, media_type=kind, headers=_FOREVER)


@router.get("/pictures/{id}/file")
async def file(id: str, shelf: Shown) -> Response:
    """The file itself, to download."""
    kept = found(shelf, id)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(kept.name)}"}
    return FileResponse(kept.path, media_type="application/octet-stream", headers=headers)


# ---- jobs


@router.post("/jobs")
async def press(body: DrawBody, studio: Drawn, shelf: Shown, desk: Queue) -> dict[str, str]:
    """Draw."""
    photo = None if body.photo is None else found(shelf, body.photo)
    work = await run_in_threadpool(work_of, studio, body, photo)
    job = desk.submit(lambda watch: [told(shelf.put(path, drawn=True)) for path in work(watch)])
    return {"job": job.id}


def job_of(id: str, desk: Queue) -> QueuedJob:
    """The job with this id. Raises RefusedError for an unknown id."""
    try:
        return desk[id]
    except KeyError:
        raise RefusedError(404, "job", "this job is no longer available; start it again") from None


Asked = Annotated[QueuedJob, Depends(job_of)]


@router.get("/jobs/{id}")
async def watch(request: Request, job: Asked, desk: Queue, seen: int = -1) -> dict[str, Any]:
    """A job's progress, returned as soon as it differs from version `seen`."""
    until = time.monotonic() + _POLL_SECONDS
    with job.heard():
        while job.version == seen and not job.over and time.monotonic() < until:
            if await request.is_disconnected():
                break
            await asyncio.sleep(_LOOK_EVERY)
        look = job.look
        return {
            "state": job.state, "version": job.version, "share": job.share, "seconds_left": job.seconds_left,
            "ahead": desk.ahead(job), "result": job.result, "error": _error(job.error, request),
            "look": await run_in_threadpool(_shown, look) if isinstance(look, Image.Image) else None,
        }  # fmt: skip


@router.post("/jobs/{id}/confirm")
async def confirm(job: Asked) -> dict[str, bool]:
    """Confirm that a job may take long."""
    job.confirmed.set()
    return {"confirmed": True}


@router.delete("/jobs/{id}")
async def stop(job: Asked, desk: Queue) -> dict[str, bool]:
    """Stop a job; unfinished pictures are discarded."""
    desk.stop(job)
    return {"stopped": True}


def _error(error: Exception | None, request: Request) -> dict[str, str | None] | None:
    if error is None:
        return None
    message = without_folders(error, request)
    if not isinstance(error, (*_EXPECTED, ImageError)):
        log.error("drawing failed", exc_info=error)
        return {"message": f"{type(error).__name__}: {message}", "field": None}
    return {"message": message, "field": field_of(error)}


def without_folders(error: Exception, request: Request) -> str:
    """An error in one line, in which the studio's files have no folders: these do not concern the page's users."""
    studio: Studio = request.app.state.studio
    shelf: Shelf = request.app.state.shelf
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{Path(os.fsdecode(error.filename)).name}: {error.strerror}"
    for folder in (studio.out, shelf.folder):
        for path in (folder.absolute(), folder.resolve()):
            text = text.replace(f"{path}{os.sep}", "").replace(str(path), path.name)
    return " ".join(text.split())


def _shown(image: Image.Image) -> str:
    return picture_url(image, "WEBP", quality=85, method=2)
