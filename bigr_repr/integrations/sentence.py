"""The model as the first module of a SentenceTransformer, for images. Knows nothing of networks."""

# B batch, D width

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.features.exported.model import ExportedModel, open_model
from bigr_repr.features.extractor import FeatureExtractor, Layer
from bigr_repr.images.inputs import read, stack

__all__ = ["BigrModule"]


class BigrModule(nn.Module):
    """For `SentenceTransformer(modules=[BigrModule()])`, whose `encode` then takes paths and PIL images.

    model: a name or folder, a model, or an exported network. layer, pool: as in FeatureExtractor. Raises likewise.
    """

    def __init__(
        self, model: PathLike | Pretrained | ExportedModel = DEFAULT_MODEL, layer: Layer = 12, pool: str = "avg"
    ) -> None:
        super().__init__()
        if pool == "none":
            raise ValueError("pool='none' gives one vector per token, but here an image has one: choose another")
        self.extractor = FeatureExtractor(open_model(model), (layer,), pool)
        self.layer = layer

    def preprocess(self, inputs: list[Any], **_: Any) -> dict[str, Tensor]:
        """Paths, PIL images or arrays -> {"pixel_values": uint8 (B, 3, S, S)}."""
        side = self.extractor.config.image_size
        return {"pixel_values": stack([read(each, side, number) for number, each in enumerate(inputs)])}

    tokenize = preprocess

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Adds "sentence_embedding", float32 (B, D)."""
        features["sentence_embedding"] = self.extractor(features["pixel_values"]).layers[self.layer]
        return features

    def get_sentence_embedding_dimension(self) -> int:
        """D."""
        return self.extractor.vector_shape(self.layer)[0]

    get_embedding_dimension = get_sentence_embedding_dimension

    @property
    def modalities(self) -> list[str]:
        """The supported inputs."""
        return ["image"]
