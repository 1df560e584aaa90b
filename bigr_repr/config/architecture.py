"""Architectures of tokenizer, generator and whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from bigr_repr.config.checks import block_index, check_counts, from_fields, require

OBJECTIVES = ("flip", "x0", "bce")
ATTENTIONS = ("full", "causal")
CONDITIONS = ("class", "text")
HEADS = ("bernoulli", "categorical")
_RENAMED = {"head": "output_head"}  # fields of a generator in files of earlier versions
MOST_CATEGORICAL_BITS = 14  # a softmax over 2^K codes
_OF_TEXT = ("condition", "caption_dim", "caption_tokens", "text_encoder", "text_encoder_sha256")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Architecture of the binary autoencoder.

    `image_size` is the side in pixels of the square images it was trained on; with `channel_multipliers` it determines
    where attention blocks are placed (`attention_resolutions`, feature-map sides). Every level except the last halves
    the image, so the token grid is `image_size / 2**(levels - 1)` wide.
    """

    image_size: int = 256
    in_channels: int = 3
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    embed_dim: int = 256
    code_bits: int = 24
    attention_resolutions: tuple[int, ...] = (16,)
    norm_first: bool = True
    norm_groups: int = 32

    def __post_init__(self) -> None:
        check_counts(self, "image_size", "in_channels", "base_channels", "res_blocks", "embed_dim", "code_bits")
        check_counts(self, "norm_groups")
        levels = self.channel_multipliers
        require(
            0 < len(levels) <= 16 and all(isinstance(m, int) and 1 <= m <= 1024 for m in levels),
            "channel_multipliers",
            levels,
            "one whole number a level, each at most 1024, of at most 16 levels",
        )
        rule = f"it must be a multiple of the down-sampling factor {self.downsample}"
        require(self.image_size % self.downsample == 0, "image_size", self.image_size, rule)
        for name, width in [
            ("embed_dim", self.embed_dim),
            *(("base_channels", self.base_channels * m) for m in levels),
        ]:
            require(
                width % self.norm_groups == 0, name, width, f"it must be a multiple of norm_groups={self.norm_groups}"
            )

    @property
    def downsample(self) -> int:
        """Pixels that a token spans in each direction."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    @property
    def grid(self) -> int:
        """Tokens in each direction at `image_size`."""
        return self.image_size // self.downsample


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Architecture of the transformer and its transcoder, and the noise schedule that both use.

    `objective` is what the transcoder is trained to predict: "flip" (which bits the noise flipped; the released
    weights), "x0" (the clean bits) or "bce" (the clean bits without any diffusion, in one step).
    `attention` is "full" (masked tokens are predicted from all others; BiGR) or "causal": an autoregressive model, in
    which a token sees the class and the tokens before it, in raster order, and predicts the bits of the next one.
    `output_head` draws a token's bits: "bernoulli" is BiGR's binary transcoder; "categorical", for comparison and for
    code_bits of at most 14, is a softmax over all 2^code_bits codes. `objective` concerns only the former.
    `sample_timesteps` and `sample_guidance` are the default diffusion steps and the default guidance scale toward a
    class or caption.
    `condition` is what pictures are conditioned on: "class", one of `classes`, or "text", a caption of at most
    `caption_tokens` tokens, each a text encoder's vector of width `caption_dim`. Both are 0 in class models.
    """

    layers: int = 24
    heads: int = 16
    dim: int = 1024
    transcoder_blocks: int = 3
    transcoder_dim: int = 1024
    classes: int = 1000
    code_bits: int = 24
    grid: int = 16
    objective: str = "flip"
    attention: str = "full"
    condition: str = "class"
    output_head: str = "bernoulli"
    caption_dim: int = 0
    caption_tokens: int = 0
    train_timesteps: int = 256
    sample_timesteps: int = 100
    sample_guidance: float = 2.5
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    ffn_multiple_of: int = 256

    def __post_init__(self) -> None:
        check_counts(self, "layers", "heads", "dim", "transcoder_blocks", "transcoder_dim", "classes", "code_bits")
        check_counts(self, "grid", "train_timesteps", "sample_timesteps", "ffn_multiple_of")
        for name in ("sample_guidance", "rope_base", "norm_eps"):
            value = getattr(self, name)
            is_positive = isinstance(value, int | float) and 0 < value < float("inf")
            require(is_positive, name, value, "it must be a positive number")
        require(self.dim % self.heads == 0, "heads", self.heads, f"it must divide dim={self.dim}")
        rule = "2-D rotary positions need a head width that is a multiple of 4"
        require(self.dim // self.heads % 4 == 0, "dim / heads", self.dim // self.heads, rule)
        require(self.objective in OBJECTIVES, "objective", self.objective, f"choose one of {', '.join(OBJECTIVES)}")
        require(self.attention in ATTENTIONS, "attention", self.attention, f"choose one of {', '.join(ATTENTIONS)}")
        require(self.condition in CONDITIONS, "condition", self.condition, f"choose one of {', '.join(CONDITIONS)}")
        self._check_head()
        for name in ("caption_dim", "caption_tokens"):
            if self.condition == "text":
                check_counts(self, name)
            else:
                require(
                    getattr(self, name) == 0,
                    name,
                    getattr(self, name),
                    "it applies only to models with condition='text'",
                )
        rule = f"it must not exceed train_timesteps={self.train_timesteps}"
        require(self.sample_timesteps <= self.train_timesteps, "sample_timesteps", self.sample_timesteps, rule)

    def _check_head(self) -> None:
        require(self.output_head in HEADS, "output_head", self.output_head, f"choose one of {', '.join(HEADS)}")
        if self.output_head == "categorical":
            most = MOST_CATEGORICAL_BITS
            rule = f"a softmax over 2^code_bits codes takes at most {most}; choose fewer, or output_head='bernoulli'"
            require(self.code_bits <= most, "code_bits", self.code_bits, rule)
            rule = "output_head='categorical' predicts the code itself; leave objective out"
            require(self.objective == OBJECTIVES[0], "objective", self.objective, rule)

    @property
    def tokens(self) -> int:
        """Tokens per image."""
        return self.grid * self.grid

    @property
    def ffn_dim(self) -> int:
        """Width of the SwiGLU feed-forward layers: int(8 D / 3), rounded up to a multiple of `ffn_multiple_of`."""
        multiple = self.ffn_multiple_of
        return -(-int(8 * self.dim / 3) // multiple) * multiple

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data; fields unknown to earlier versions are left out if unused."""
        ours = dataclasses.asdict(self)
        unused = () if self.condition == "text" else _OF_TEXT
        usual = {"output_head": "bernoulli", "sample_guidance": GeneratorConfig.sample_guidance}
        unused = (*unused, *(name for name, value in usual.items() if ours[name] == value))
        return {key: ours[key] for key in ours if key not in unused}

    def layer_index(self, layer: SupportsIndex | str, model: str = "this model") -> int:
        """Resolve `layer` (0-based, negative from the end, or "mid") to a block index in 0..layers-1.

        NumPy's whole numbers count as ints. Raises ValueError for anything else and for a layer out of range.
        """
        return block_index(layer, self.layers, model)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model: both architectures, and what its users must know about it.

    `training` records the training data, their terms and the procedure; `quality` has measured figures. Both are
    free-form records for people and never affect what the model computes. `text_encoder` names the network that encodes
    a text model's captions, `text_encoder_sha256` its weights; both are empty in class models.
    """

    name: str
    tokenizer: TokenizerConfig
    generator: GeneratorConfig
    class_names: tuple[str, ...] = ()
    text_encoder: str = ""
    text_encoder_sha256: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokenizer, generator = self.tokenizer, self.generator
        rule = f"the tokenizer has code_bits={tokenizer.code_bits}; both halves must agree"
        require(tokenizer.code_bits == generator.code_bits, "generator.code_bits", generator.code_bits, rule)
        rule = f"the tokenizer has a grid of {tokenizer.grid}; both halves must agree"
        require(tokenizer.grid == generator.grid, "generator.grid", generator.grid, rule)
        names = len(self.class_names)
        rule = f"the generator has {generator.classes} classes; give one name each, or none"
        require(names in (0, generator.classes), "len(class_names)", names, rule)
        rule = "a text model must name its caption encoder, and a class model must not"
        require(bool(self.text_encoder) == (generator.condition == "text"), "text_encoder", self.text_encoder, rule)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the model reads and draws."""
        return self.tokenizer.image_size

    @property
    def code_size(self) -> int:
        """Bits per image: tokens x code_bits."""
        return self.generator.tokens * self.generator.code_bits

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, ready for JSON."""
        ours = dataclasses.asdict(self) | {"generator": self.generator.to_dict()}
        return ours if self.text_encoder else {key: ours[key] for key in ours if key not in _OF_TEXT}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises ValueError on unknown or missing fields."""
        try:
            tokenizer = from_fields(TokenizerConfig, data["tokenizer"], "tokenizer")
            described = {_RENAMED.get(key, key): value for key, value in data["generator"].items()}
            generator = from_fields(GeneratorConfig, described, "generator")
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"model configuration: cannot read {error}; expected tokenizer, generator, name"
            ) from error
        return from_fields(cls, {**data, "tokenizer": tokenizer, "generator": generator}, "model configuration")
