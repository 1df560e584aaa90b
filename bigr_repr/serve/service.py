"""The server's functions without HTTP: embed, encode, search, decode, show. Knows nothing of requests or pages."""

# n pictures, k neighbors, S side in pixels, D width

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.codes import code_bytes
from bigr_repr.features.condition import NO_CONDITION, FeatureCondition
from bigr_repr.features.exported.model import ExportedModel
from bigr_repr.features.extractor import FeatureExtractor, blocks_of, layer_name
from bigr_repr.images.containers import is_container
from bigr_repr.images.formats import ImageError
from bigr_repr.models.bigr import usual_block
from bigr_repr.retrieval.codes.decoding import decode_codes
from bigr_repr.retrieval.codes.provenance import reading_of
from bigr_repr.retrieval.index.hamming import HammingIndex
from bigr_repr.retrieval.queries import icc_of, model_of
from bigr_repr.retrieval.request import AnyIndex, SearchRequest
from bigr_repr.retrieval.results.photos import PhotoFinder
from bigr_repr.serve.batching import Batcher, ClosedError, QueueFullError
from bigr_repr.serve.encoder import Encoder, EncoderOutput, EncodeTask
from bigr_repr.serve.live_index import IndexState, LiveIndex, opener_of
from bigr_repr.serve.metrics import Metrics
from bigr_repr.serve.pictures import THUMBNAIL, PictureReader
from bigr_repr.serve.searching import (
    Hit,
    Query,
    id_of,
    index_code,
    query_of_row,
    row_of,
    search,
)
from bigr_repr.serve.settings import Limits
from bigr_repr.system.devices import as_dtype, choose_device

T = TypeVar("T")
_DECODE_BATCH = 8  # codes that become pictures at once: the page asks for a screenful


class Service:
    """A model, and optionally an index, ready for callers; all methods that wait are coroutines.

    pre: the model, on its device, or an exported network, which cannot decode codes. index: an index folder made with
    this model, or a store to which it was pushed under a name, as in open_store; watched for changes.
    images: the folder to which the index's paths are relative, or the embedded tar or Parquet file, as the source of
    photographs. image_column: of that Parquet file; None: as embedded. processes: number that search a sharded index;
    1: this one. poll_seconds: between checks of the index folder. Close it after use.

    Raises FileNotFoundError or ValueError for an index that is missing, damaged or another model's, for images that are
    missing or neither a folder nor a tar or Parquet file, or given without an index.
    """

    def __init__(
        self,
        pre: Pretrained | ExportedModel,
        *,
        index: PathLike | None = None,
        name: str = "images",
        images: PathLike | None = None,
        image_column: str | None = None,
        processes: int = 1,
        device: str | None = None,
        limits: Limits | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        self.pre, self.limits, self.metrics = pre, limits or Limits(), Metrics()
        self.images, self._image_column = None if images is None else Path(images), image_column
        _check_images(self.images, image_column, index)
        self._finder = "", PhotoFinder()
        self._precision, self._icc = "float32", "convert"
        self.live: LiveIndex | None = None
        if index is not None:
            opener = opener_of(index, name, processes)
            self.live = LiveIndex(opener, check=self._check_index, reloaded=self._reloaded, interval=poll_seconds)
            if made := self.live.current.index.provenance:
                self._precision, self._icc = made["precision"], icc_of(made)
        self._start(None if device is None else choose_device(device))

    def _start(self, device: torch.device | None) -> None:
        limits, workers = self.limits, max(1, min(8, os.cpu_count() or 1))
        exported = isinstance(self.pre, ExportedModel)
        dtype = None if exported else as_dtype(self._precision)
        encoder = Encoder(self.pre, dtype=dtype, device=None if exported else device, batch=limits.batch)
        side = self.pre.config.image_size
        self._encoder = encoder
        encoder([EncodeTask(pixels=np.zeros((side, side, 3), np.uint8))])  # the first run is slow
        self._encoding: Batcher[EncodeTask, EncoderOutput] = Batcher(
            encoder, batch=limits.batch, wait_seconds=limits.wait_seconds, waiting=limits.waiting, name="encode",
            observe=self.metrics.observe_batch,
        )  # fmt: skip
        self._decoding: Batcher[NDArray[np.uint8], NDArray[np.uint8]] = Batcher(
            lambda codes: list(decode_codes(self._decoder, np.stack(codes))), batch=_DECODE_BATCH,
            wait_seconds=limits.wait_seconds, waiting=limits.waiting, name="decode",
        )  # fmt: skip
        guard = {"max_pixels": limits.pixels, "timeout": limits.decode_seconds}
        self._reader = PictureReader(side, workers=workers, icc=self._icc, **guard)  # type: ignore[arg-type]
        self._photos = PictureReader(THUMBNAIL, workers=workers, **guard)  # type: ignore[arg-type]
        self._searching: Batcher[Callable[[], Any], Any] = Batcher(
            _called, batch=1, threads=workers, wait_seconds=0, waiting=limits.waiting, name="search"
        )
        self._locating: Batcher[Callable[[], Any], Any] = Batcher(  # photographs, apart from searches
            _called, batch=1, wait_seconds=0, waiting=limits.waiting, name="photos"
        )
        self._waiting = 0
        self.metrics.gauge("bigr_queue_pictures", "Pictures being decoded, waiting or encoded.", lambda: self._waiting)
        self.metrics.gauge("bigr_index_rows", "Rows of the index.", lambda: 0 if self.live is None else self.rows)

    def close(self) -> None:
        """Finish encoding, drop other queued work, and end threads and processes.

        A search that has begun is not waited for, and does not keep the process from ending.
        """
        self._searching.close(finish=False)
        self._locating.close(finish=False)
        self._reader.close()
        self._photos.close()
        self._encoding.close()
        self._encoder.close()
        self._decoding.close()
        if self.live is not None:
            self.live.close()

    @property
    def ready(self) -> bool:
        """Whether requests are being processed."""
        return self._encoding.alive and self._decoding.alive

    @property
    def rows(self) -> int:
        """Rows of the index; 0 without one."""
        return 0 if self.live is None else len(self.live.current.index)

    @property
    def default_layer(self) -> int:
        """The block of the index's vectors; without one, 12, or the last block of a shallower model."""
        made = None if self.live is None else self.live.current.index.provenance
        if made is not None and isinstance(made["layer"], int):
            return made["layer"]
        if isinstance(self.pre, ExportedModel):
            first = self.pre.manifest.layers[0]
            return first if isinstance(first, int) else int(first.split("+")[0])
        return usual_block(self.pre.config.generator.layers)

    @property
    def _decoder(self) -> Pretrained:
        """The model, to decode codes.  Raises ValueError for an exported network, which has no decoder."""
        if isinstance(self.pre, ExportedModel):
            raise ValueError("this server runs an exported network, which decodes no codes: serve the model itself")
        return self.pre

    # ---- for callers

    async def encode(
        self,
        pictures: Sequence[str],
        layers: Iterable[int | str] = (),
        *,
        pool: str | None = None,
        mirror: bool = False,
        condition: FeatureCondition = NO_CONDITION,
    ) -> list[EncoderOutput]:
        """Encode pictures, data URLs or base64. The rest as in FeatureExtractor; pool None: "avg", or its own.

        Raises ImageError naming "image <number>", ValueError for a layer out of range, QueueFullError.
        """
        wanted = frozenset(layer_name(blocks_of(layer, self.pre.config)) for layer in layers)
        own = "avg"
        if isinstance(self.pre, ExportedModel):
            own = self.pre.manifest.pool
            FeatureExtractor(self.pre, wanted, pool or own)  # raises for what was not exported
        if self._waiting + len(pictures) > self.limits.waiting:
            raise QueueFullError(f"{self._waiting} pictures are waiting; the queue holds {self.limits.waiting}")
        self._waiting += len(pictures)
        task = partial(_task, layers=wanted, pool=pool or own, mirror=mirror, condition=condition)
        try:
            decoded = (self._reader.read(text, f"image {number}") for number, text in enumerate(pictures))
            return await _all([self._encoding.submit_later(each, task) for each in decoded])
        except ImageError as error:
            self.metrics.unreadable.labels(error.kind).inc()
            raise
        finally:
            self._waiting -= len(pictures)

    async def encode_as(self, index: AnyIndex, pictures: Sequence[str]) -> list[EncoderOutput]:
        """Encode pictures as an index of stated provenance was made.  Raises as encode."""
        assert index.provenance is not None
        reading = reading_of(index.provenance)
        how: dict[str, Any] = {"pool": reading.pool, "mirror": reading.mirror, "condition": reading.condition}
        return await self.encode(pictures, reading.layers, **how)

    async def decode(self, codes: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """Pictures of tokenizer codes, uint8 (bytes,): uint8 (S, S, 3).  Raises ValueError for another length."""
        length = code_bytes(self._decoder.config.code_size)
        for number, code in enumerate(codes):
            if code.shape != (length,):
                raise ValueError(f"code {number} has {code.size} bytes; {self.pre.config.name} decodes {length}")
        return await _all(self._decoding.submit(codes))

    async def queries_of_pictures(self, pictures: Sequence[str], state: IndexState) -> list[Query]:
        """Pictures, encoded like the index.  Raises as encode, and ValueError for an index without provenance."""
        if not pictures:
            return []
        index, made = state.index, state.index.provenance
        if made is None:
            raise ValueError("this index does not say which model its codes come from; search it by code or id")
        return [
            Query(
                code=index_code(index, found), tokens=found.tokens,
                vector=None if made["layer"] is None else found.features[made["layer"]],
            )
            for found in await self.encode_as(index, pictures)
        ]  # fmt: skip

    async def search(self, state: IndexState, queries: Sequence[Query], request: SearchRequest) -> list[Hit]:
        """The nearest rows.  Raises ValueError for what the index does not have, or options out of range."""
        return await self._search_thread(lambda: search(state.index, queries, request))

    async def query_of_row(self, state: IndexState, row: int) -> Query:
        """A row as a query, by what the index stores of it."""
        return await self._search_thread(lambda: query_of_row(state.index, row))

    async def row_of(self, state: IndexState, id: str) -> int | None:
        """The first row with an id; None if there is none."""
        row = await self._search_thread(lambda: row_of(state.index, id))
        return None if row < 0 else row

    async def photo(self, state: IndexState, row: int) -> NDArray[np.uint8] | None:
        """The photograph of a row, its middle square, uint8 (320, 320, 3); None if it cannot be found."""
        source = await self._called_by(self._locating, lambda: self._locate(state, row))
        if source is None:
            return None
        try:
            return await asyncio.wrap_future(self._photos.read_encoded(source, f"row {row}"))
        except ImageError:
            return None

    def _locate(self, state: IndexState, row: int) -> str | bytes | None:
        """The encoded photograph of a row. Called by a single thread: a finder opens files that are not shared."""
        version, finder = self._finder
        if version != state.version:
            source = state.index.source if isinstance(state.index, HammingIndex) else None
            inside = self.images or Path()
            finder = PhotoFinder(self.images, source, image_column=self._image_column, inside=inside)
            self._finder = state.version, finder
        return next(finder.encoded(id_of(state.index, row), row), None)

    async def _search_thread(self, work: Callable[[], T]) -> T:
        return await self._called_by(self._searching, work)

    async def _called_by(self, threads: Batcher[Callable[[], Any], Any], work: Callable[[], T]) -> T:
        """What work() returns.  Raises ClosedError if the service is closed first."""
        try:
            found: T = await asyncio.wrap_future(threads.submit([work])[0])
        except RuntimeError as error:
            if threads.alive or isinstance(error, QueueFullError):
                raise
            raise ClosedError from error  # such as processes that have ended
        return found

    def _check_index(self, index: AnyIndex) -> None:
        """Raises ValueError unless this model made the index, if it states its provenance."""
        if index.provenance is None:
            return
        model_of(index.provenance, self.pre)
        if self.live is not None and index.provenance["precision"] != self._precision:
            raise ValueError(
                f"the index was made in {index.provenance['precision']}, the server runs {self._precision}: restart it"
            )
        if self.live is not None and icc_of(index.provenance) != self._icc:
            raise ValueError("the index handles color profiles differently from the running server: restart it")

    def _reloaded(self, ok: bool) -> None:
        self.metrics.reloads.labels("ok" if ok else "failed").inc()


def _check_images(images: Path | None, image_column: str | None, index: PathLike | None) -> None:
    if index is None and (images is not None or image_column is not None):
        raise ValueError("images and image_column say where an index's photographs are: give an index, or neither")
    if images is None:
        return
    if not images.exists():
        raise FileNotFoundError(f"images={str(images)!r}: no such file or folder; name what was embedded")
    if not images.is_dir() and not is_container(str(images)):
        raise ValueError(f"images={str(images)!r} must be a folder, or a tar or Parquet file; name what was embedded")


def _called(work: list[Callable[[], T]]) -> list[T]:
    return [each() for each in work]


def _task(pixels: NDArray[np.uint8], **how: Any) -> EncodeTask:
    return EncodeTask(pixels=pixels, **how)


async def _all(futures: Sequence[Future[T]]) -> list[T]:
    """All results, in order. If one fails, or the caller gives up, those not yet started are dropped."""
    try:
        return await asyncio.gather(*map(asyncio.wrap_future, futures))
    except BaseException:
        for future in futures:
            future.cancel()
        raise
