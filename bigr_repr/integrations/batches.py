"""Features of batches from other programs: columns of datasets, lists of FiftyOne. Knows no networks."""

# n images, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.features.extract import encode_codes, extract_features
from bigr_repr.images.inputs import Pictures
from bigr_repr.integrations.opened import AnyModel, opened
from bigr_repr.integrations.samples import samples

__all__ = ["BatchEmbedder"]


class BatchEmbedder:
    """Images in, features out: `Dataset.map(embedder, batched=True)`, or `embed_all` as in FiftyOne's models.

    model: a name or folder, a model, or an exported network. layer, pool, batch_size, device: as in extract_features.
    column: of the pictures in a batch. codes: also return the packed codes, as "code". A name is loaded once per
    process and pickled as a name, so that `datasets` can reuse its cached results.
    """

    media_type = "image"
    has_embeddings = True

    def __init__(
        self,
        model: AnyModel = DEFAULT_MODEL,
        layer: int | str = 12,
        pool: str = "avg",
        *,
        column: str = "image",
        codes: bool = False,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        if pool == "none":
            raise ValueError("pool='none' gives one vector per token, but here an image has one: choose another")
        self.model, self.layer, self.pool, self.column, self.codes = model, layer, pool, column, codes
        self.batch_size, self.device = batch_size, device

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The new columns of a batch: "embedding", float32 vectors (D,), and "code", bytes, if requested.

        Raises ValueError if the picture column is missing, or a row of it is not one picture, such as None; ImageError
        for a picture that cannot be read.
        """
        if self.column not in batch:
            raise ValueError(f"column={self.column!r} is not in the batch, which has {', '.join(map(str, batch))}")
        name, images = f"column={self.column!r}", batch[self.column]
        found: dict[str, list[Any]] = {"embedding": list(self._embedded(images, name))}
        if self.codes:
            packed = encode_codes(
                self._samples(images, name), model=opened(self.model), batch_size=self.batch_size, device=self.device
            )
            found["code"] = [row.tobytes() for row in packed]
        return found

    def embed(self, image: Any) -> NDArray[np.float32]:
        """Features of one image, (D,)."""
        found: NDArray[np.float32] = self.embed_all([image])[0]
        return found

    def embed_all(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Features of n images, (n, D): paths, PIL images or arrays, one vector for each.

        Raises ValueError for an entry that is not one picture, such as a folder; otherwise as extract_features does.
        """
        return self._embedded(images, "images")

    def _samples(self, images: Any, name: str) -> Pictures:
        return samples(images, name, opened(self.model).config.image_size)

    def _embedded(self, images: Any, name: str) -> NDArray[np.float32]:
        return extract_features(
            self._samples(images, name), model=opened(self.model), layer=self.layer, pool=self.pool,
            batch_size=self.batch_size, device=self.device,
        )  # fmt: skip
