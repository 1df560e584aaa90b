"""A model with the methods and attributes of timm's vision transformers, and its transform. Knows no files."""

# B batch, S side in pixels, N tokens, h w token grid, D width, C classes

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.checkpoints.pretrained import Pretrained, load
from bigr_repr.codes import grid_to_tokens
from bigr_repr.features.condition import as_plain
from bigr_repr.features.extractor import Layer, check_range
from bigr_repr.features.pools import POOLS, pool_tokens, pool_width
from bigr_repr.images.inputs import read
from bigr_repr.models.tokenizer import without_decoder
from bigr_repr.models.transformer import up_to_block

__all__ = ["TimmStyle", "as_timm", "create_transform"]


def as_timm(
    model: PathLike | Pretrained = DEFAULT_MODEL, *, layer: Layer = 12, num_classes: int = 0, global_pool: str = "avg"
) -> TimmStyle:
    """A model for code written for timm: see TimmStyle. Raises as load does, and as TimmStyle does."""
    return TimmStyle(
        model if isinstance(model, Pretrained) else load(model), layer, num_classes=num_classes, global_pool=global_pool
    )


class TimmStyle(nn.Module):
    """The tokenizer and the transformer up to a block, with the interface of timm's vision transformers.

    Calling it returns features (B, D), or logits (B, C) with num_classes; images are float (B, 3, S, S) in [0, 1], as
    made by create_transform: mean 0 and deviation 1 in `pretrained_cfg`. The weights are copies. The transformer can be
    trained; the tokenizer, which rounds to bits, cannot.

    layer: 0-based block whose states are the features; global_pool: "avg", "max", "avg+max" or "grid2". Raises
    ValueError for others, for a negative num_classes, and for images of another size or with values outside [0, 1].
    """

    def __init__(self, pre: Pretrained, layer: Layer = 12, *, num_classes: int = 0, global_pool: str = "avg") -> None:
        super().__init__()
        config, generator = pre.config, pre.config.generator
        block = generator.layer_index(layer, config.name)
        self.config, self.grid_size = config, (generator.grid, generator.grid)
        self.tokenizer = copy.deepcopy(without_decoder(pre.tokenizer)).requires_grad_(False)
        self.transformer = copy.deepcopy(up_to_block(pre.generator.transformer, block))
        # Parameters used only for drawing must not be passed to an optimizer.
        self.transformer.norm.requires_grad_(False)
        self.transformer.diffusion_pos_embed_learned.requires_grad_(False)
        self.embed_dim = self.num_features = generator.dim
        self.num_prefix_tokens, self.global_pool = 0, global_pool
        self.feature_info = [
            {"num_chs": generator.dim, "reduction": config.tokenizer.downsample, "module": f"layers.{index}"}
            for index in range(block + 1)
        ]
        self.pretrained_cfg = self.default_cfg = _data_config(config.name, config.image_size, num_classes)
        self.reset_classifier(num_classes, global_pool)

    @property
    def head_hidden_size(self) -> int:
        """Width of the classifier's input."""
        return pool_width(self.global_pool, self.num_features)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by one for so many classes; 0: none. Raises ValueError for fewer, or an unknown pool."""
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be at least 0; choose 0 for features, without a head")
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in POOLS:
            raise ValueError(f"global_pool={pool!r} is unknown; choose one of {', '.join(POOLS)}")
        self.num_classes, self.global_pool = num_classes, pool
        self.head: nn.Module = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def train(self, mode: bool = True) -> TimmStyle:
        """As in a module, but the tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> features (B, D), or logits (B, C)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> states of the last block, (B, N, D)."""
        last = len(self.transformer.layers) - 1
        return self._states(x, [last])[last]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """States (B, N, D) -> pooled (B, D), or logits (B, C)."""
        pooled = pool_tokens(x, self.global_pool)
        return pooled if pre_logits else self.head(pooled)

    @overload
    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = ..., return_prefix_tokens: bool = ..., norm: bool = ...,
        stop_early: bool = ..., output_fmt: str = ..., *, intermediates_only: Literal[True],
    ) -> list[Tensor]: ...  # fmt: skip
    @overload
    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = ..., return_prefix_tokens: bool = ..., norm: bool = ...,
        stop_early: bool = ..., output_fmt: str = ..., intermediates_only: bool = ...,
    ) -> Any: ...  # fmt: skip
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """States of several blocks, each (B, D, h, w) or, with output_fmt="NLC", (B, N, D); and those of the last.

        indices: of blocks, negative from the end; a number n: the last n; None: all. stop_early: run no block after the
        last one requested, whose states are then the final ones. There are neither prefix tokens nor a final norm of
        features, so return_prefix_tokens has no effect and norm=True is refused.

        Raises ValueError for a block that does not exist, no block at all, another output_fmt, or norm.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; choose NCHW or NLC")
        if norm:
            raise ValueError("norm=True: features are taken before any final norm; leave it out")
        taken = self._indices(indices)
        last = max(taken) if stop_early else len(self.transformer.layers) - 1
        states = self._states(x, {*taken, last})
        found = [states[index] for index in taken]
        if output_fmt == "NCHW":
            found = [each.transpose(1, 2).unflatten(2, self.grid_size) for each in found]  # type: ignore[no-untyped-call]
        return found if intermediates_only else (states[last], found)

    def _indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.transformer.layers)
        given: Any = range(count) if indices is None else as_plain(indices)
        if isinstance(given, int) and not 1 <= given <= count:
            raise ValueError(f"indices={given} is a number of blocks outside 1..{count}: this has {count} blocks")
        wanted = range(-given, 0) if isinstance(given, int) else given
        if not len(wanted):
            raise ValueError("indices=[] names no block; name at least one, or leave it out for all")
        for index in wanted:
            if not -count <= index < count:
                raise ValueError(f"indices holds {index}, outside -{count}..{count - 1}: this has {count} blocks")
        return [index % count for index in wanted]

    def _states(self, x: Tensor, wanted: Sequence[int] | set[int]) -> dict[int, Tensor]:
        side = self.config.image_size
        if x.ndim != 4 or x.shape[1:] != (3, side, side):
            remedy = f"{self.config.name} reads (B, 3, {side}, {side}); prepare them with create_transform(model)"
            raise ValueError(f"images has shape {tuple(x.shape)}; {remedy}")
        check_range(x)
        with torch.no_grad():
            codes = grid_to_tokens(self.tokenizer.encode(x))
        condition = self.transformer.condition_embedding(None, codes.shape[0])
        return self.transformer(codes, condition, layers=tuple(wanted))  # type: ignore[no-any-return]


def _data_config(name: str, side: int, num_classes: int) -> dict[str, Any]:
    """The values that timm.data.resolve_model_data_config uses."""
    return {
        "architecture": name, "num_classes": num_classes, "input_size": (3, side, side), "fixed_input_size": True,
        "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0), "first_conv": None, "classifier": "head",
    }  # fmt: skip


class Square(v2.Transform):  # type: ignore[misc]
    """The middle square of a picture, cropped and resized by bigr_repr.images.center_crop.

    Takes a PIL image or a tensor (3, H, W), and returns an RGB PIL image.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """torchvision's hook, for each of its inputs."""
        if not isinstance(inpt, Image.Image | Tensor):
            return inpt
        return Image.fromarray(read(inpt, self.size, 0))


def create_transform(model: TimmStyle | Pretrained | int) -> v2.Compose:
    """Pictures to a model's input, float32 (3, S, S) in [0, 1], as a torchvision v2 pipeline.

    model: a model, or S. The numbers equal the inputs of extract_features up to the rounding of one division: they
    differ by at most 6e-8.
    """
    side = model if isinstance(model, int) else model.config.image_size
    return v2.Compose([Square(side), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
