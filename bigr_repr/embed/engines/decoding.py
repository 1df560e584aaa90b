"""How pictures are decoded, and how undecodable ones are represented. Independent of units and the network."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

from bigr_repr.images.decode import MAX_PIXELS
from bigr_repr.images.isolated import GuardedLoading, Loaded, Loading
from bigr_repr.system.processes import supported

log = logging.getLogger(__name__)


class Unreadable(NamedTuple):
    """Why there are no pixels. Unlike the exception, it keeps no picture in memory."""

    error: str
    message: str


Decoded = Loaded | Unreadable


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How pictures are decoded. workers: number in parallel; None: one per core.

    timeout: time limit in seconds per picture, decoded in a separate process; None: decoded in threads of this process,
    which a crash or endless loop in a decoder then brings down. Raises ValueError for values out of range.
    """

    workers: int | None = None
    timeout: float | None = 120.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1")
        if self.timeout is not None and not 0 < self.timeout <= 86400:
            raise ValueError(f"decode_timeout={self.timeout:g} is not within 0..86400 seconds; None sets no limit")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels} must be at least 1")

    def loader(self, size: int, *, sha256: bool, icc: str, thumbnail: int | None = None) -> Loading | GuardedLoading:
        """The decoder for one picture; a GuardedLoading must be closed."""
        loading = Loading(size=size, max_pixels=self.max_pixels, sha256=sha256, icc=icc, thumbnail=thumbnail)
        if self.timeout is None:
            return loading
        if not supported():
            log.warning("this system cannot isolate decoders: a picture that crashes or hangs one will stop the run")
            return loading
        return GuardedLoading(loading, self.timeout)
