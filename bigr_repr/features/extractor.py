"""FeatureExtractor: images as tensors in, hidden states and bits of a pretrained model out. Knows nothing of files.

An image's codes go through the transformer, unmasked and without a class unless a condition says otherwise; the
features are the hidden states after a block, without final norm and condition token, averaged over the tokens (BiGR,
section 4.3) or pooled differently, of one block or of several concatenated.
"""

# B batch, S side in pixels, N tokens, K bits per token, D width

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.checkpoints.prompts import read_captions
from bigr_repr.codes import from_bytes, grid_to_tokens
from bigr_repr.config import ModelConfig
from bigr_repr.features.condition import FeatureCondition, as_condition, as_plain
from bigr_repr.features.exported.manifest import Manifest
from bigr_repr.features.exported.model import ExportedModel
from bigr_repr.features.pools import NONE, POOLS, pool_tokens, vector_shape
from bigr_repr.models.tokenizer import without_decoder
from bigr_repr.models.transformer import Captions, Transformer, up_to_block
from bigr_repr.system.devices import choose_device

__all__ = ["FeatureExtractor", "Features", "Layer", "blocks_of", "check_range", "layer_name"]

Layer = int | str
_M = TypeVar("_M", bound=nn.Module)

_GROUP_TOKENS = 512


class Features(NamedTuple):
    """The result of a FeatureExtractor for a batch.

    layers: {layer as given: (B, D), or (B, N, D) with pool="none"}, float32. codes: (B, N, K), bool. finite: (B,),
    bool; False: the tokenizer's output for the image, or its mirror image, was not finite, so its codes are meaningless
    and its layers are NaN.
    """

    layers: dict[Layer, Tensor]
    codes: Tensor
    finite: Tensor


class FeatureExtractor(nn.Module):
    """Features of any blocks, and codes, in one pass: for your own loop.

    pre: the model, or an exported network from `load_exported`, which has its own layers, pool and precision, and runs
    on the CPU. The model is not moved or converted, and its modules' modes do not change. The extractor has its own
    modules around the same weights, always in eval mode; weights that need conversion (dtype, device, channels-last
    convolutions) are copied, so make a new extractor after changing weights.

    layers: block indices as in GeneratorConfig.layer_index (0-based, negative from the end, "mid"), or several joined
    by "+" as in "4+8", whose features are concatenated; blocks past the deepest are not run; empty: codes only. pool:
    how tokens become one vector: "avg", "max", "avg+max" (both concatenated), "grid2" (the means over four quarters,
    concatenated), or "none". mirror: average the features of an image and its mirror image, with "none" of the same
    place in both, in twice the time; codes are the image's own. condition: a class or caption to extract features with,
    or a FeatureCondition, which can also mask a share of the tokens; None: neither. dtype: of the network's
    computation; None: that of the weights. In bfloat16 or float16 some bits of the codes differ from those in float32.
    device: None: where the weights are; "auto": a GPU if there is one. compile: use torch.compile.

    Raises ValueError for a layer out of range, an unknown pool, class or device, a dtype that holds more than weights
    in half precision do, or anything that an exported network was not exported for.
    """

    def __init__(
        self,
        pre: Pretrained | ExportedModel,
        layers: Iterable[Layer] = (12,),
        pool: str = "avg",
        *,
        mirror: bool = False,
        condition: FeatureCondition | int | str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if pool not in (*POOLS, NONE):
            raise ValueError(f"pool={pool!r} is unknown; choose one of {', '.join((*POOLS, NONE))}")
        config = pre.config
        self.config, self.pool, self.mirror = config, pool, mirror
        self.layers = {as_plain(layer): blocks_of(layer, config) for layer in layers}
        self.condition = as_condition(condition).of(config)
        self._exported, self._compiled, self._largest = None, compile, 0
        self.transformer: Transformer | None = None
        if isinstance(pre, ExportedModel):
            self._check_exported(pre.manifest, dtype, device)
            self._exported = pre
        else:
            self._take(pre, dtype, device)
        self.eval()

    def _take(self, pre: Pretrained, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        """Make own modules around a model's weights."""
        device = None if device is None else choose_device(device)
        self.tokenizer = _own(without_decoder(pre.tokenizer), device, dtype, torch.channels_last)
        if self.layers:
            deepest = max(map(max, self.layers.values()))
            self.transformer = _own(up_to_block(pre.generator.transformer, deepest), device, dtype)
            self._told, self._masked = _told(pre, self.condition)
        self._logits: Callable[..., Tensor] = self.tokenizer.bit_logits
        if self._compiled:
            self._logits = torch.compile(self._logits)
            if self.transformer is not None:
                self.transformer.compile()

    def _check_exported(self, manifest: Manifest, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        """Raise ValueError for anything that an exported network was not exported for."""
        there = {blocks_of(layer, self.config): layer for layer in manifest.layers}
        for layer, blocks in self.layers.items():
            if blocks not in there:
                has = ", ".join(map(str, there.values()))
                raise ValueError(f"layer={layer} is not in this exported network, which has {has}; export it again")
        if self.layers and self.pool != manifest.pool:
            raise ValueError(
                f"pool={self.pool!r}, but this network was exported with {manifest.pool!r}; export it again"
            )
        if self.condition:
            raise ValueError(
                f"condition={self.condition.words!r}: exported networks do not support conditions; use the model itself"
            )
        elsewhere = device is not None and str(device).partition(":")[0] not in ("auto", "cpu")
        if self._compiled or dtype not in (None, torch.float32) or elsewhere:
            raise ValueError(
                f"this network was exported to {manifest.to} in {manifest.precision}: leave out dtype, device, compile"
            )

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: features come from a model that is not being trained."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """The device of the weights and results."""
        return torch.device("cpu") if self._exported else self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation; for an exported network, that of its inputs and outputs."""
        return torch.float32 if self._exported else self._weight.dtype

    @property
    def precision(self) -> str:
        """The same by name, as recorded in provenance: "float32", "bfloat16"; or that of an exported network."""
        return self._exported.precision if self._exported else str(self.dtype).removeprefix("torch.")

    @property
    def _weight(self) -> Tensor:
        return next(self.tokenizer.parameters())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """images: uint8, or floats in [0, 1], (B, 3, S, S) with S the model's image size, RGB, on any device.

        Raises ValueError for a wrong shape, dtype or range. Results are on the extractor's device.
        """
        rows = len(images)
        inputs = self._inputs(images)
        found = self._read(inputs)
        if self.mirror and self.layers:
            other = self._read(inputs.flip(-1))
            layers = {layer: (values + self._turned(other.layers[layer])) / 2 for layer, values in found.layers.items()}
            found = Features(layers, found.codes, found.finite & other.finite)
        kept = {layer: values[:rows] for layer, values in found.layers.items()}
        return Features(kept, found.codes[:rows], found.finite[:rows])

    def _turned(self, values: Tensor) -> Tensor:
        """Features of a mirror image, each token where the image has it; pooled ones belong to no place."""
        if self.pool != NONE:
            return values
        grid = self.config.generator.grid
        return values.reshape(-1, grid, grid, values.shape[-1]).flip(2).flatten(1, 2)

    def vector_shape(self, layer: Layer) -> tuple[int, ...]:
        """The shape of an image's features of a layer: (D,), or (N, D) with pool="none"."""
        generator = self.config.generator
        return vector_shape(self.pool, generator.tokens, generator.dim, len(self.layers[as_plain(layer)]))

    @property
    def group(self) -> int:
        """Images per group of the transformer on a CPU: a few hundred tokens, which stay in its caches.

        Batches of this size, or of a multiple, give bit-identical results in float32 on a CPU; with others, codes are
        identical and features agree up to rounding.
        """
        if self._exported or self._compiled or not self._exact:
            return 1
        at_a_time = _images_at_a_time(self.config.image_size)
        return -(-max(2, _GROUP_TOKENS // self.config.generator.tokens) // at_a_time) * at_a_time

    @property
    def _exact(self) -> bool:
        return self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64)

    def _read(self, inputs: Tensor) -> Features:
        """Features of prepared images, not mirrored."""
        if self._exported is not None:
            return self._read_exported(self._exported, inputs)
        logits = self._bit_logits(inputs)[: len(inputs)]
        bits = grid_to_tokens(logits).float().sigmoid() > 0.5  # as BinaryAutoencoder.encode decides
        finite = logits.isfinite().flatten(1).all(1)  # comparing with NaN also gives bits
        layers = self.read_layers(self._states(bits), finite) if self.transformer is not None else {}
        return Features(layers, bits, finite)

    def _read_exported(self, model: ExportedModel, inputs: Tensor) -> Features:
        arrays, packed = model(inputs.contiguous().numpy())
        vectors = {
            blocks_of(layer, self.config): torch.from_numpy(array)
            for layer, array in zip(model.manifest.layers, arrays, strict=True)
        }
        generator = self.config.generator
        bits = from_bytes(packed, self.config.code_size).reshape(len(packed), generator.tokens, generator.code_bits)
        finite = torch.stack([~values.flatten(1).isnan().all(1) for values in vectors.values()]).all(0)
        return Features(
            {layer: vectors[blocks] for layer, blocks in self.layers.items()}, torch.from_numpy(bits), finite
        )

    def read_layers(self, states: Mapping[int, Tensor], finite: Tensor) -> dict[Layer, Tensor]:
        """Features of hidden states {block: (B, N, D)}, as `Features.layers`; NaN where finite, bool (B,), is False."""
        layers = {}
        for layer, blocks in self.layers.items():
            read = [states[block].float() for block in blocks]
            read = read if self.pool == NONE else [pool_tokens(state, self.pool) for state in read]
            whole = read[0] if len(read) == 1 else torch.cat(read, dim=-1)
            layers[layer] = whole.masked_fill(~finite.view(-1, *(1 for _ in whole.shape[1:])), torch.nan)
        return layers

    def _states(self, bits: Tensor) -> dict[int, Tensor]:
        """bits: (B, N, K).  Returns {block: (B, N, D)}."""
        assert self.transformer is not None
        blocks = tuple({block for several in self.layers.values() for block in several})
        parts = []
        for part in torch.split(bits, self.group if self.group > 1 else len(bits)):
            condition = self.transformer.condition_embedding(_rows(self._told, len(part), self.device), len(part))
            masked = None if self._masked is None else self._masked.to(self.device).expand(len(part), -1)
            parts.append(self.transformer(part.to(self.dtype), condition, masked, layers=blocks))
        return {block: torch.cat([part[block] for part in parts]) for block in blocks}

    def _inputs(self, images: Tensor) -> Tensor:
        side = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            remedy = f"{self.config.name} reads (B, 3, {side}, {side}); see bigr_repr.images.center_crop"
            raise ValueError(f"images has shape {tuple(images.shape)}; {remedy}")
        check_range(images)
        wanted = max(1, len(images))  # kernels need not support empty batches
        if self._compiled:  # pad to the largest shape so far: the last batch needs no recompilation
            self._largest = wanted = max(self._largest, wanted)
        images = torch.cat([images, images.new_zeros(wanted - len(images), 3, side, side)])
        scale = 255 if images.dtype == torch.uint8 else 1
        images = images.to(self.device, memory_format=torch.channels_last).float() / scale
        return images.to(self.dtype)

    def _bit_logits(self, images: Tensor) -> Tensor:
        if not self._exact:
            return self._logits(images)
        # Convolution kernels round differently for different batch sizes, and a logit near 0 could change its bit. So
        # they always see the same number of images; the last group is padded.
        group = _images_at_a_time(self.config.image_size)
        images = torch.cat([images, images[-1:].expand(-len(images) % group, -1, -1, -1)])
        return torch.cat([self._logits(part) for part in torch.split(images, group)])


def blocks_of(layer: Layer, config: ModelConfig) -> tuple[int, ...]:
    """The blocks that a layer names: one, or several as "4+8".  Raises ValueError for unknown blocks."""
    parts: list[Layer] = [layer]
    if isinstance(layer, str) and "+" in layer:
        parts = [int(part) if part.removeprefix("-").isdecimal() else part for part in layer.split("+")]
    return tuple(config.generator.layer_index(part, config.name) for part in parts)


def check_range(images: Tensor) -> None:
    """Raise ValueError for images that are neither uint8 nor floats in [0, 1]."""
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images has dtype {images.dtype}; expected uint8, or floats in [0, 1]")
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
        found = f"{images.min().item():.4g}..{images.max().item():.4g}"
        raise ValueError(f"images has values {found}; expected [0, 1], not normalized; rescale or clamp them")


def layer_name(blocks: Sequence[int]) -> Layer:
    """The inverse of `blocks_of`: a number, or several joined by "+"."""
    return blocks[0] if len(blocks) == 1 else "+".join(map(str, blocks))


def _told(pre: Pretrained, condition: FeatureCondition) -> tuple[Tensor | Captions | None, Tensor | None]:
    """The transformer's extra inputs: a class (1,) or a caption of one row, and the masked positions (N,)."""
    places = condition.masked(pre.config.generator.tokens)
    masked = None if places is None else torch.from_numpy(places)
    if condition.given is None:
        return None, masked
    if pre.config.generator.condition == "text":
        return read_captions(pre, [str(condition.given)]), masked
    return torch.tensor([condition.given]), masked


def _rows(told: Tensor | Captions | None, rows: int, device: torch.device) -> Tensor | Captions | None:
    """The same for `rows` images."""
    if isinstance(told, Captions):
        features, lengths = told.features.to(device), told.lengths.to(device)
        return Captions(features.expand(rows, -1, -1), lengths.expand(rows))
    return None if told is None else told.to(device).expand(rows)


def _images_at_a_time(side: int) -> int:
    """Images of this side per group of the tokenizer on a CPU: as fast as larger groups, without slowing down single
    images.

    Two of 256 pixels saturate a processor, as do eight small ones.
    """
    return max(2, min(8, 2 * 256**2 // side**2))


def _own(
    module: _M,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    layout: torch.memory_format = torch.preserve_format,
) -> _M:
    """New modules around the same weights, frozen; weights to be converted are copied. layout: of convolutions.

    Raises ValueError for a dtype that would pass rounded weights for exact ones.
    """
    memo: dict[int, Any] = {}
    for weight in module.parameters():
        has = weight.dtype
        if dtype is not None and has != torch.float32 and torch.promote_types(has, dtype) != has:
            raise ValueError(f"dtype={dtype}, but the model's weights were rounded to {has}; load it with {dtype}")
        form = layout if weight.ndim == 4 else torch.preserve_format
        own = weight.detach().to(device=device, dtype=dtype, memory_format=form)
        memo[id(weight)] = nn.Parameter(own, requires_grad=False)
    return copy.deepcopy(module, memo)
