"""The Look inside page: the tokens of a picture, and how a new one is unmasked. Work goes through a queue."""

# N tokens, K bits per token, L blocks

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Annotated, Any, Final

import numpy as np
import torch
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import to_bytes
from bigr_repr.features.tokens import token_pca, token_views
from bigr_repr.images.decode import center_crop, decode_image
from bigr_repr.models.bits import bit_entropy, bit_surprise
from bigr_repr.painting.files import to_pictures
from bigr_repr.sampling.applications import generate
from bigr_repr.sampling.canvas import decode, partly
from bigr_repr.sampling.job import given_options
from bigr_repr.sampling.prediction import predict_bits
from bigr_repr.sampling.sampler import Iteration
from bigr_repr.sampling.settings import ORDERS
from bigr_repr.system.pages import picture_url
from bigr_repr_cli.app.jobs import Watch
from bigr_repr_cli.app.orders import FieldError
from bigr_repr_cli.app.routes import Drawn, Queue, Shown, found, page
from bigr_repr_cli.app.studio import Studio

_ROUNDS: Final = 8  # in which the tokens are predicted
_MOST_STEPS: Final = 64
router = APIRouter()
_looking = threading.Lock()  # one picture at a time: the model is shared


class LookBody(BaseModel):
    """The id of the picture to inspect."""

    model_config = ConfigDict(extra="forbid")

    picture: str = Field(max_length=100)


class UnmaskBody(BaseModel):
    """A picture to draw and watch. label: its class; empty: none. steps, order: ignored by autoregressive models."""

    model_config = ConfigDict(extra="forbid")

    label: str = Field("", max_length=1000)
    seed: int = Field(0, ge=0, lt=1 << 53)
    steps: Annotated[int, Field(ge=1, le=_MOST_STEPS)] = 16
    order: str = "entropy"


@router.get("/inside/")
async def inside_page(request: Request) -> Response:
    """The page."""
    return page("inside.html", request)


@router.post("/inside/look")
async def look(body: LookBody, studio: Drawn, shelf: Shown) -> Any:
    """Everything the page shows about a picture's tokens."""
    picture = found(shelf, body.picture)

    def work() -> dict[str, Any]:
        image = decode_image(picture.path, max_pixels=picture.max_pixels, name=picture.name)
        with _looking:
            return look_inside(studio.pre, image)

    return {**await run_in_threadpool(work), "name": picture.name}


def look_inside(pre: Pretrained, image: Image.Image) -> dict[str, Any]:
    """The tokens of a picture, for the page.

    bits: each token's, packed, hexadecimal.  open, expected, surprise: a number for each token, in bits per bit;
    the last two None for an autoregressive model.  colors: uint8 (L, N, 3) in base64, `token_pca` of every block.
    """
    config = pre.config.generator
    crop = center_crop(image, pre.config.image_size)
    views = token_views(crop, pre, range(config.layers))
    bits = torch.from_numpy(views.bits)
    expected = surprise = None
    if config.attention != "causal":
        predicted = predict_bits(pre, bits, rounds=min(_ROUNDS, config.tokens)).cpu()
        expected, surprise = _numbers(bit_entropy(predicted)[0]), _numbers(bit_surprise(predicted, bits)[0])
    colors = np.concatenate([token_pca(states) for states in views.states.values()])
    return {
        "grid": config.grid,
        "layers": config.layers,
        "bits": [row.tobytes().hex() for row in to_bytes(views.bits[0])],
        "bits_per_token": config.code_bits,
        "open": _numbers(views.entropy[0]),
        "expected": expected,
        "surprise": surprise,
        "colors": base64.b64encode(colors.tobytes()).decode(),
        "seen": picture_url(Image.fromarray(crop)),
        "kept": picture_url(Image.fromarray(views.reconstruction[0])),
    }


@router.post("/inside/unmask")
async def unmask(body: UnmaskBody, studio: Drawn, desk: Queue) -> dict[str, str]:
    """Draw a picture, and record its unmasking."""
    if body.order not in ORDERS:
        raise FieldError("order", f"order={body.order[:50]!r} is unknown; choose one of {', '.join(ORDERS)}")
    return {"job": desk.submit(unmasking(studio, body)).id}


def unmasking(studio: Studio, body: UnmaskBody) -> Callable[[Watch], Any]:
    """The job: a frame after each iteration, and the iteration in which each token was drawn, from 1."""
    pre, in_turn = studio.pre, studio.pre.config.generator.attention == "causal"
    labels = studio.label_numbers([body.label])

    def work(watch: Watch) -> dict[str, Any]:
        frames, when = [], np.zeros(pre.config.generator.tokens, np.int64)

        def keep(at: Iteration) -> None:
            masked = at.masked[0].cpu().numpy()
            when[~masked & (when == 0)] = at.iteration
            with torch.inference_mode():
                (shown,) = to_pictures(partly(pre, decode(pre, at.codes[:1]), at.masked[:1]))
            frames.append(picture_url(shown))
            watch(at.iteration, at.iterations, lambda: shown)

        given: dict[str, Any] = {"seed": body.seed, "callback": keep}
        if not in_turn:
            given |= {"steps": body.steps, "order": body.order}
        generate(pre, labels, **given_options(given, fast=True))
        return {"frames": frames, "when": when.tolist(), "grid": pre.config.generator.grid}

    return work


def _numbers(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
