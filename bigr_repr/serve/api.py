"""The HTTP API: one application around a Service. Knows nothing of how it is served, or of how things are computed."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from PIL import Image
from starlette.exceptions import HTTPException

from bigr_repr._version import __version__
from bigr_repr.images.find import escape_path
from bigr_repr.images.formats import ImageError
from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.serve import metrics
from bigr_repr.serve.batching import QueueFullError
from bigr_repr.serve.guard import COOKIE, RefusedError, RequestGuard, error_body, session
from bigr_repr.serve.live_index import IndexState
from bigr_repr.serve.schemas import (
    About,
    CodesAnswer,
    CodesBody,
    DecodeAnswer,
    DecodeBody,
    Embedding,
    EmbeddingsAnswer,
    EmbeddingsBody,
    ErrorAnswer,
    HitAnswer,
    SearchAnswer,
    SearchBody,
    listed,
)
from bigr_repr.serve.service import Query, SearchOptions, Service, index_code, query_of_code, query_of_row
from bigr_repr.serve.settings import Access
from bigr_repr.system.pages import TOKENS, render

_PAGE: Final = FilePath(__file__).parent / "search_page.html"
_STATIC: Final = FilePath(__file__).parent / "static"
_FOREVER: Final = "private, max-age=86400, immutable"  # addresses name the index's version
_IMAGE_STATUS: Final = {"too-large": 413, "timeout": 422, "crashed": 422, "unsupported": 415, "not-an-image": 415}


def create_app(service: Service, access: Access | None = None) -> FastAPI:
    """The application, which closes the service when it shuts down.

    access: where it will be reached and who may use it; None: this machine only, without a token.
    """
    access = access or Access()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="bigr-repr", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Embeddings, bit codes and search of pictures.", responses={"4XX": {"model": ErrorAnswer}},
    )  # fmt: skip
    app.state.service, app.state.token = service, access.token
    app.add_middleware(RequestGuard, access=access, limits=service.limits, metrics=service.metrics)
    app.include_router(router)
    app.include_router(own)
    mount_static(app)
    handle_errors(app)
    return app


def mount_static(app: FastAPI, path: str = "/static", folder: FilePath = _STATIC) -> None:
    """Scripts and styles of a folder, the search page's unless named, and the tokens that all pages share."""

    @app.get(f"{path}/tokens.css", include_in_schema=False)
    async def tokens() -> Response:
        return FileResponse(TOKENS)

    app.mount(path, StaticFiles(directory=folder))


def handle_errors(app: FastAPI) -> None:
    """Errors as OpenAI's API words them, none with a path of this machine."""

    def answer(status: int, code: str, message: str) -> JSONResponse:
        headers = {"Retry-After": "1"} if status == 429 else None
        return JSONResponse(error_body(status, code, message), status, headers)

    async def refused(request: Request, error: Any) -> Response:
        return answer(error.status, error.code, error.message)

    async def image(request: Request, error: Any) -> Response:
        return answer(_IMAGE_STATUS.get(error.kind, 400), error.kind, str(error))

    async def value(request: Request, error: Exception) -> Response:
        return answer(400, "invalid", str(error))

    async def full(request: Request, error: Exception) -> Response:
        return answer(429, "busy", str(error))

    async def invalid(request: Request, error: Any) -> Response:
        return answer(422, "invalid", _in_words(error.errors()[0]))

    async def http(request: Request, error: Any) -> Response:
        return answer(error.status_code, "http", str(error.detail))

    handlers = {
        RefusedError: refused, ImageError: image, ValueError: value, QueueFullError: full,
        RequestValidationError: invalid, HTTPException: http,
    }  # fmt: skip
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _in_words(error: dict[str, Any]) -> str:
    """What is wrong with a body, from what the validator says."""
    place, kind, said = ".".join(str(part) for part in error["loc"][1:]), error["type"], str(error["msg"])
    if kind == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', 'it cannot be read')}"
    if kind == "value_error":
        said = said.removeprefix("Value error, ")
    known = {"extra_forbidden": "there is no such field; see /docs", "missing": "is required"}
    said = known.get(kind, said[:1].lower() + said[1:])
    return f"{place}: {said}" if place else f"the body: {said}" if kind != "value_error" else said


router = APIRouter()  # what a search page asks
own = APIRouter()  # what only a server of its own has


def _service(request: Request) -> Service:
    service: Service | None = request.app.state.service
    if service is None:
        raise RefusedError(404, "no-index", "no index is open")
    return service


Served = Annotated[Service, Depends(_service)]


def _state(service: Service, version: str | None = None) -> IndexState:
    """The index to answer from.  Raises RefusedError if there is none, or none of this version any more."""
    if service.live is None:
        raise RefusedError(404, "no-index", "this server has no index; start it with --index")
    state = service.live.current if version is None else service.live.state(version)
    if state is None:
        raise RefusedError(410, "version", "the index has changed since; search again")
    return state


def _check_count(service: Service, count: int) -> None:
    if not 1 <= count <= service.limits.images:
        raise RefusedError(413, "images", f"{count} items are outside 1..{service.limits.images}, what one call takes")


# ---- pages


@own.get("/", include_in_schema=False)
async def page() -> Response:
    """The search page."""
    return HTMLResponse(render(_PAGE), headers={"Cache-Control": "no-cache"})


@own.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The API, readable."""
    return FileResponse(_STATIC / "docs.html", headers={"Cache-Control": "no-cache"})


@own.post("/session", include_in_schema=False)
async def start_session(request: Request) -> Response:
    """Keep the search page signed in: the guard has checked the token already."""
    answer = Response(status_code=204)
    if request.app.state.token is not None:
        value = session(request.app.state.token).decode()
        answer.set_cookie(COOKIE, value, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


# ---- state


@own.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@own.get("/ready")
async def ready(service: Served) -> dict[str, str]:
    """Model and index are loaded, and requests are worked on; 503 otherwise."""
    if not service.ready:
        raise RefusedError(503, "not-ready", "the server is shutting down")
    return {"status": "ready"}


@own.get("/metrics", response_class=Response)
async def read_metrics(service: Served) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)


@router.get("/about")
async def about(service: Served) -> About:
    """The model and the index."""
    config, state = service.pre.config, None if service.live is None else service.live.current
    index = None if state is None else state.index
    layout = None if index is None else index.layout
    return About(
        model=config.name, image_size=config.image_size, layers=config.generator.layers, layer=service.default_layer,
        rows=service.rows, version=None if state is None else state.version,
        kind=None if index is None else index.settings.kind, n_bits=None if index is None else index.n_bits,
        token_bits=None if layout is None else layout.n_bits,
        grid=None if layout is None else (layout.width, layout.height), decodable=layout is not None,
        pictures=index is not None and index.provenance is not None,
        rescore=index is not None and index.rows.vectors is not None,
        columns={} if index is None else index.rows.column_names,
        most_neighbors=service.limits.neighbors, most_images=service.limits.images,
    )  # fmt: skip


# ---- pictures to numbers


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsBody, service: Served) -> EmbeddingsAnswer:
    """Vectors of pictures, in the form of OpenAI's API."""
    name = service.pre.config.name
    if body.model not in (None, name):
        raise RefusedError(404, "model", f"this server runs {name}")
    pictures = listed(body.input)
    _check_count(service, len(pictures))
    wanted = (
        body.layer if isinstance(body.layer, list) else [service.default_layer if body.layer is None else body.layer]
    )
    blocks = [service.pre.config.generator.layer_index(layer, name) for layer in wanted]
    found = await service.encode(pictures, blocks)
    data = [
        Embedding(index=i, layer=layer, embedding=_encoded(each.features[block], body.encoding_format))
        for i, each in enumerate(found)
        for layer, block in zip(wanted, blocks, strict=True)
    ]
    return EmbeddingsAnswer(data=data, model=name)


def _encoded(vector: NDArray[np.float32], form: str) -> list[float] | list[int] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    if form == "ubinary":
        return [int(value) for value in np.packbits(vector > 0)]
    return [float(value) for value in vector]


@router.post("/codes")
async def codes(body: CodesBody, service: Served) -> CodesAnswer:
    """Bit codes of pictures."""
    pictures, generator = listed(body.input), service.pre.config.generator
    _check_count(service, len(pictures))
    per_token: int | None
    if body.of == "tokens":
        found = [each.tokens for each in await service.encode(pictures)]
        bits, per_token = service.pre.config.code_size, generator.code_bits
    else:
        index = _state(service).index
        if index.provenance is None:
            raise RefusedError(400, "invalid", "this index does not say which model its codes come from")
        found = [index_code(index, each) for each in await service.encode_as(index, pictures)]
        own = index.has_tokens and index.rows.tokens is None
        bits, per_token = index.n_bits, generator.code_bits if own else None
    return CodesAnswer(codes=[_base64(code) for code in found], n_bits=bits, bits_per_token=per_token)


# ---- search


@router.post("/search")
async def search(body: SearchBody, service: Served, request: Request) -> SearchAnswer:
    """The pictures of the index that are nearest to a picture, a code, or one of themselves."""
    if body.k > service.limits.neighbors:
        raise RefusedError(422, "invalid", f"k: {body.k} is more than {service.limits.neighbors}")
    state = _state(service, body.version)
    query = await _query(service, state, body)
    region = None if body.region is None else (body.region.x, body.region.y, body.region.w, body.region.h)
    ids = None if body.ids is None else tuple(escape_path(id) if isinstance(id, str) else id for id in body.ids)
    options = SearchOptions(
        k=body.k, where=Filter(where=body.where, match=body.match, ids=ids), radius=body.radius, offset=body.offset,  # type: ignore[arg-type]
        region=region, rescore=body.rescore, effort=body.effort,
    )  # fmt: skip
    hits = await service.search(state, query, options)
    return SearchAnswer(
        hits=[
            HitAnswer(
                row=hit.row, id=hit.id, distance=hit.distance, columns=hit.columns,
                image=_address(request, hit.row, state),
            )
            for hit in hits
        ],
        metric="cosine" if body.rescore else "bits",
        n_bits=_compared(state, region), rows=len(state.index), version=state.version, code=_base64(query.code),
    )  # fmt: skip


def _address(request: Request, row: int, state: IndexState) -> str:
    return f"{request.app.url_path_for('image', row=row)}?version={state.version}"


async def _query(service: Service, state: IndexState, body: SearchBody) -> Query:
    if body.image is not None:
        return await service.query_of_picture(body.image, state)
    if body.code is not None:
        return query_of_code(state.index, _code(body.code, "code"))
    row = body.row if body.id is None else await service.row_of(state, body.id)
    if row is None or row >= len(state.index):
        raise RefusedError(404, "row", "the index has no such row")
    return query_of_row(state.index, row)


def _compared(state: IndexState, region: tuple[float, float, float, float] | None) -> int:
    if region is None:
        return state.index.n_bits
    layout = state.index.token_layout()
    tokens = Region.of_fractions(*region, layout)
    return tokens.w * tokens.h * layout.bits_per_token


@router.post("/decode")
async def decode(body: DecodeBody, service: Served) -> DecodeAnswer:
    """Tokenizer codes as pictures: what the bits keep."""
    if body.codes is not None:
        _check_count(service, len(body.codes))
        wanted = [_code(text, f"code {number}") for number, text in enumerate(body.codes)]
    else:
        assert body.image is not None
        wanted = [each.tokens for each in await service.encode([body.image])]
    found = await service.decode(wanted)
    return DecodeAnswer(images=[f"data:image/png;base64,{base64.b64encode(_png(each)).decode()}" for each in found])


@router.get("/image/{row}", response_class=Response)
async def image(row: int, service: Served, version: str | None = None, decoded: bool = False) -> Response:
    """The photograph of a row, its middle square; or, decoded, the picture that its bits keep."""
    state = _state(service, version)
    if not 0 <= row < len(state.index):
        raise RefusedError(404, "row", "the index has no such row")
    headers = {"Cache-Control": "no-store" if version is None else _FOREVER}
    if decoded:
        pixels = (await service.decode([state.index.tokens[row]]))[0]
        return Response(_png(pixels), media_type="image/png", headers=headers)
    photo = await service.photo(state, row)
    if photo is None:
        raise RefusedError(404, "no-photo", "the photograph of this row is not at hand")
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=85)
    return Response(file.getvalue(), media_type="image/jpeg", headers=headers)


def _code(text: str, name: str) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, "code", f"{name}: not valid base64 ({error})") from None


def _base64(code: NDArray[np.uint8]) -> str:
    return base64.b64encode(code.tobytes()).decode()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
