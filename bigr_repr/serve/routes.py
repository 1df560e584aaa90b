"""The routes used by a search page: about, codes, search, pictures. Knows nothing of how things are computed."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from bigr_repr.images.find import escape_path
from bigr_repr.retrieval.codes.filters import Filter
from bigr_repr.retrieval.codes.regions import Region
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.request import AnyIndex, SearchRequest, codes_are_tokens
from bigr_repr.serve.guard import RefusedError
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
    HitAnswer,
    MemberAnswer,
    QueryBody,
    RegionBody,
    SearchAnswer,
    SearchBody,
    listed,
)
from bigr_repr.serve.searching import (
    Hit,
    Query,
    column_names,
    index_code,
    query_of_code,
)
from bigr_repr.serve.service import Service

_FOREVER: Final = "private, max-age=86400, immutable"  # URLs contain the index's version
router = APIRouter()


async def _service(request: Request) -> Service:  # not in a thread of its own
    service: Service | None = request.app.state.service
    if service is None:
        raise RefusedError(404, "no-index", "no index is open")
    return service


Served = Annotated[Service, Depends(_service)]


def _state(service: Service, version: str | None = None) -> IndexState:
    """The index state for an answer.  Raises RefusedError if there is none, or this version is no longer available."""
    if service.live is None:
        raise RefusedError(404, "no-index", "this server has no index; start it with --index")
    state = service.live.current if version is None else service.live.state(version)
    if state is None:
        raise RefusedError(410, "version", "the index has changed since; search again")
    return state


def _check_count(service: Service, count: int) -> None:
    if not 1 <= count <= service.limits.images:
        raise RefusedError(413, "images", f"{count} items are outside 1..{service.limits.images}, the limits per call")


@router.get("/about")
async def about(service: Served) -> About:
    """The model and the index."""
    config, state = service.pre.config, None if service.live is None else service.live.current
    index = None if state is None else state.index
    layout = None if index is None else index.layout
    return About(
        model=config.name, image_size=config.image_size, layers=config.generator.layers, layer=service.default_layer,
        rows=service.rows, version=None if state is None else state.version,
        kind=None if index is None else _kind(index), n_bits=None if index is None else index.n_bits,
        token_bits=None if layout is None else layout.n_bits,
        grid=None if layout is None else (layout.width, layout.height), decodable=layout is not None,
        pictures=index is not None and index.provenance is not None,
        rescore=isinstance(index, HammingIndex) and index.rows.vectors is not None,
        columns={} if index is None else column_names(index), together=isinstance(index, HammingIndex),
        most_neighbors=service.limits.neighbors, most_images=service.limits.images,
    )  # fmt: skip


def _kind(index: AnyIndex) -> str:
    return index.settings.kind if isinstance(index, HammingIndex) else index.header.kind


# ---- pictures to numbers


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer)
async def embeddings(body: EmbeddingsBody, service: Served) -> Response:
    """Vectors of pictures, in the format of OpenAI's API."""
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
    return _json(EmbeddingsAnswer(data=data, model=name))


def _encoded(vector: NDArray[np.float32], form: str) -> list[float] | list[int] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    if form == "ubinary":
        return list(map(int, np.packbits(vector > 0)))
    numbers: list[float] = vector.tolist()
    return numbers


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
        bits, per_token = index.n_bits, generator.code_bits if codes_are_tokens(index) else None
    return CodesAnswer(codes=[_base64(code) for code in found], n_bits=bits, bits_per_token=per_token)


# ---- search


@router.post("/search", response_model=SearchAnswer)
async def search(body: SearchBody, service: Served, request: Request) -> Response:
    """The pictures in the index that are nearest to a picture, a code, or one of their own."""
    if body.k > service.limits.neighbors:
        raise RefusedError(422, "invalid", f"k: {body.k} is more than {service.limits.neighbors}")
    state = _state(service, body.version)
    parts: list[QueryBody] = [body] if body.queries is None else [*body.queries]
    _check_count(service, len(parts))
    queries = await _queries(service, state, parts)
    region = None if body.region is None else _region(state, body.region)
    ids = None if body.ids is None else tuple(_recorded(id) if isinstance(id, str) else id for id in body.ids)
    only = Filter(where=body.where, match=body.match, ids=ids)  # type: ignore[arg-type]
    asked = SearchRequest(
        k=body.k, within={"where": only, "radius": body.radius, "offset": body.offset},
        region=region, rescore=body.rescore, effort=body.effort, group=body.group,
        weights=None if body.queries is None else tuple(query.weight for query in body.queries),
    )  # fmt: skip
    hits = await service.search(state, queries, asked)
    photos = request.app.url_path_for("image", row=0).removesuffix("0")
    return _json(SearchAnswer(
        hits=[_answer(photos, hit, state) for hit in hits], metric="cosine" if body.rescore else "bits",
        n_bits=_compared(state, region), rows=len(state.index), version=state.version,
        code=_base64(queries[0].code) if body.queries is None else None,
    ))  # fmt: skip


def _recorded(id: str) -> str:
    """An id as an index holds it.  Raises ValueError for one that none can hold."""
    try:
        return escape_path(id)
    except UnicodeEncodeError:
        raise ValueError(f"ids: {id!r:.80} is not Unicode text, so no index has it; leave it out") from None


def _answer(photos: str, hit: Hit, state: IndexState) -> HitAnswer:
    """photos: URL of the photographs, without their rows."""

    def shown(each: Hit) -> dict[str, Any]:
        address = f"{photos}{each.row}?version={state.version}"
        return {"row": each.row, "id": each.id, "distance": each.distance, "image": address}

    members = [MemberAnswer(**shown(each)) for each in hit.members]
    return HitAnswer(**shown(hit), columns=hit.columns, members=members)


async def _queries(service: Service, state: IndexState, asked: list[QueryBody]) -> list[Query]:
    """The requested queries; pictures are encoded together."""
    encoded = iter(await service.queries_of_pictures([each.image for each in asked if each.image is not None], state))
    return [next(encoded) if each.image is not None else await _query(service, state, each) for each in asked]


async def _query(service: Service, state: IndexState, asked: QueryBody) -> Query:
    if asked.code is not None:
        return query_of_code(state.index, _code(asked.code, "code"))
    row = asked.row if asked.id is None else await service.row_of(state, asked.id)
    if row is None or row >= len(state.index):
        raise RefusedError(404, "row", "the index has no such row")
    return await service.query_of_row(state, row)


def _region(state: IndexState, asked: RegionBody) -> Region:
    """The tokens of a rectangle.  Raises ValueError if the index has no tokenizer codes."""
    return Region.of_fractions(asked.x, asked.y, asked.w, asked.h, state.index.token_layout())


def _compared(state: IndexState, region: Region | None) -> int:
    """The number of bits that a search compares."""
    return state.index.n_bits if region is None else region.w * region.h * state.index.token_layout().bits_per_token


@router.post("/decode")
async def decode(body: DecodeBody, service: Served) -> DecodeAnswer:
    """Decode tokenizer codes to pictures, to see what the bits keep."""
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
    """The photograph of a row, its middle square; or, with decoded, the picture from its bits."""
    state = _state(service, version)
    if not 0 <= row < len(state.index):
        raise RefusedError(404, "row", "the index has no such row")
    headers = {"Cache-Control": "no-store" if version is None else _FOREVER}
    if decoded:
        tokens = (await service.query_of_row(state, row)).tokens
        if tokens is None:
            state.index.token_layout()  # raises
            raise RefusedError(400, "invalid", "this index has no tokenizer codes")
        pixels = (await service.decode([tokens]))[0]
        return Response(_png(pixels), media_type="image/png", headers=headers)
    photo = await service.photo(state, row)
    if photo is None:
        raise RefusedError(404, "no-photo", "the photograph of this row was not found")
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=85)
    return Response(file.getvalue(), media_type="image/jpeg", headers=headers)


def _json(answer: BaseModel) -> Response:
    """Serialize an answer directly: FastAPI would validate and copy it once more."""
    return Response(answer.model_dump_json(), media_type="application/json")


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
