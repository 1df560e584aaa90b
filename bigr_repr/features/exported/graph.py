"""The feature network as one graph that exports cleanly. Knows nothing of files or runtimes."""

# B batch, S side in pixels, N tokens, K bits per token, D width

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr_repr.codes import grid_to_tokens
from bigr_repr.features.extractor import FeatureExtractor

__all__ = ["FeatureGraph", "trace"]

_LARGEST = 1 << 16  # batch


class FeatureGraph(nn.Module):
    """images (B, 3, S, S), float32 in [0, 1] -> features of each layer, float32, and codes, uint8 (B, bytes).

    The same results as the extractor's, without its checks and grouping. If the tokenizer's output for an image is not
    finite, its features are NaN.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        assert extractor.transformer is not None
        self.extractor, self.transformer = extractor, extractor.transformer
        self.register_buffer("places", torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        weight = next(self.extractor.tokenizer.parameters())
        logits = grid_to_tokens(self.extractor.tokenizer.bit_logits(images.to(weight.dtype))).float()
        bits = logits.sigmoid() > 0.5  # as BinaryAutoencoder.encode decides
        finite = logits.isfinite().flatten(1).all(1)
        condition = self.transformer.condition_embedding(None, images.shape[0])
        blocks = {block for several in self.extractor.layers.values() for block in several}
        states = self.transformer(bits.to(condition.dtype), condition, layers=tuple(blocks))
        return (*self.extractor.read_layers(states, finite).values(), self._packed(bits.flatten(1)))

    def _packed(self, bits: Tensor) -> Tensor:
        """(B, n_bits) of bool -> uint8 (B, bytes)."""
        filled = F.pad(bits.to(torch.int32), (0, -bits.shape[1] % 8))
        assert isinstance(self.places, Tensor)
        packed: Tensor = (filled.unflatten(1, (-1, 8)) * self.places).sum(-1)  # type: ignore[no-untyped-call]
        return packed.to(torch.uint8)


def trace(graph: FeatureGraph) -> Any:
    """The graph as a torch.export.ExportedProgram with any batch size from 1."""
    side = graph.extractor.config.image_size
    batch = torch.export.Dim("batch", min=1, max=_LARGEST)
    with torch.no_grad():
        return torch.export.export(graph, (torch.zeros(2, 3, side, side),), dynamic_shapes={"images": {0: batch}})
