"""Infers the architecture of released weights from the names and shapes of their tensors. Knows nothing of files.

Nothing about the size of a model is assumed: widths, depths, bits, tokens and classes are inferred. If several tensors
determine a size, the majority decides, so that a missing or misshapen one does not mislead: the subsequent check of the
tensors reports it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor

from bigr_repr.config import GeneratorConfig, TokenizerConfig

_HEAD_DIM = 64  # in all released sizes
_FFN_MULTIPLES = (256, 512, 1024, 128, 64, 32, 16, 8, 4, 2, 1)  # the released one first

State = Mapping[str, object]  # tensors by name, and any other content of a file


def infer_generator(state: State, *, steps: int | None, heads: int | None) -> GeneratorConfig:
    """The generator to which tensors, named as in the released file, belong.

    steps: T, None for the released 256. heads: dim / 64 unless given, because shapes do not reveal it.
    Raises ValueError if the tensors are not a generator's.
    """
    layers = _count(state, "layers")
    blocks = _count(state, "denoise_mlp.blocks")
    classes, positions = "cls_embedding.embedding_table.weight", "diffusion_pos_embed_learned"
    x_in, c_in, out = (f"denoise_mlp.{name}.weight" for name in ("x_embedder", "c_embedder", "final_layer.linear"))
    dim = _size(state, [("tok_embeddings.weight", 0), (classes, 1), (positions, 2), ("mask_tok", 1), (c_in, 1)])
    feed_forward = [("w1", 0), ("w3", 0), ("w2", 1)]
    ffn = [(f"layers.{n}.feed_forward.{name}.weight", axis) for n in range(layers) for name, axis in feed_forward]
    tokens = _size(state, [(positions, 1)], fallback=1)
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{positions} has {tokens} positions, which do not form a square grid")
    if heads is None and dim % _HEAD_DIM:
        raise ValueError(f"the width {dim} is not a multiple of {_HEAD_DIM}, so the head count is unknown; give heads=")
    steps = steps or GeneratorConfig.train_timesteps
    config = GeneratorConfig(
        layers=layers,
        heads=dim // _HEAD_DIM if heads is None else heads,
        dim=dim,
        transcoder_blocks=blocks,
        transcoder_dim=_size(state, [(x_in, 0), (c_in, 0), (out, 1)]),
        classes=_size(state, [(classes, 0)], fallback=2) - 1,
        code_bits=_size(state, [("tok_embeddings.weight", 1), (x_in, 1), (out, 0)]),
        grid=math.isqrt(tokens),
        train_timesteps=steps,
        sample_timesteps=min(GeneratorConfig.sample_timesteps, steps),
    )
    return _with_ffn_dim(config, _size(state, ffn))


def _with_ffn_dim(config: GeneratorConfig, ffn_dim: int) -> GeneratorConfig:
    for multiple in (*_FFN_MULTIPLES, ffn_dim):
        fitting = dataclasses.replace(config, ffn_multiple_of=max(1, multiple))
        if fitting.ffn_dim == ffn_dim:
            return fitting
    least = int(8 * config.dim / 3)
    raise ValueError(f"the feed-forward width {ffn_dim} is below {least} = 8/3 of the width {config.dim}; not a BiGR")


def infer_tokenizer(state: State, *, grid: int) -> TokenizerConfig:
    """The tokenizer to which tensors, named as in the released file without "ae.", belong, for `grid` tokens per side.

    The encoder's flat list of blocks reveals its levels and where attention is; the decoder's must mirror it.
    Raises ValueError if the tensors are not such a tokenizer's.
    """
    layout = _layout(state, "encoder.blocks")
    match = re.fullmatch(r"C(?P<levels>[RAS]+)RARNC", layout)
    levels = match["levels"].split("S") if match else [""]
    res_blocks = levels[0].count("R")
    if any(level not in ("R" * res_blocks, "RA" * res_blocks) or not level for level in levels):
        raise ValueError(
            f"the encoder's blocks are laid out as {layout} (C conv, R residual, A attention, S scale, N norm); "
            "expected C, then levels of as many R or RA each with S between them, then RARNC"
        )
    first = "encoder.blocks.0.weight"
    base = _size(state, [(first, 0), ("encoder.blocks.0.bias", 0), ("encoder.blocks.1.norm1.weight", 0)])
    widths = _level_widths(state, levels)
    if any(width % base for width in widths):
        raise ValueError(f"the levels' widths {widths} are not multiples of the first width {base}")
    sides = [grid << level for level in reversed(range(len(levels)))]
    attended = tuple(side for side, level in zip(sides, levels, strict=True) if "A" in level)
    default = TokenizerConfig.attention_resolutions
    embed, project = "quantize.embed.weight", "quantize.proj.0.weight"
    return TokenizerConfig(
        image_size=sides[0],
        in_channels=_size(state, [(first, 1)], fallback=3),
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        res_blocks=res_blocks,
        embed_dim=_size(state, [(embed, 1), (project, 1), (f"encoder.blocks.{len(layout) - 1}.weight", 0)]),
        code_bits=_size(state, [(embed, 0), (project, 0), ("quantize.proj.0.bias", 0)]),
        # If no level has attention, none has a default side either: written as in the presets.
        attention_resolutions=attended if attended or set(sides) & set(default) else default,
        norm_first=_layout(state, "generator.blocks")[1:2] == "C",  # otherwise its second block is residual
    )


def _level_widths(state: State, levels: list[str]) -> list[int]:
    """Channels after each level, taken from its first residual block."""
    widths, index = [], 1
    for level in levels:
        block = f"encoder.blocks.{index}."
        names = ("conv1.weight", "conv1.bias", "norm2.weight", "conv2.weight", "conv2.bias", "conv_out.weight")
        widths.append(_size(state, [(block + name, 0) for name in names]))
        index += len(level) + 1
    return widths


def _layout(state: State, prefix: str) -> str:
    """One letter per block: C convolution, N norm, R residual, A attention, S down- or up-sampling."""
    parts: defaultdict[int, set[str]] = defaultdict(set)
    for name in state:
        if match := re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+)", name):
            parts[int(match[1])].add(match[2].split(".")[0])
    letters = ""
    for index in range(_count(state, prefix)):
        if parts[index] & {"norm1", "conv1", "norm2", "conv2", "conv_out"}:
            letters += "R"
        elif parts[index] & {"q", "k", "v", "proj_out"}:
            letters += "A"
        elif "conv" in parts[index]:
            letters += "S"
        else:
            weight = state.get(f"{prefix}.{index}.weight")
            # A block without its weight is assumed to be the usual one: a convolution at either end, otherwise a norm.
            convolution = weight.ndim == 4 if isinstance(weight, Tensor) else index in (0, len(parts) - 1)
            letters += "C" if convolution else "N"
    return letters


def _size(state: State, sources: Iterable[tuple[str, int]], fallback: int | None = None) -> int:
    """The size on which most of the given (tensor, axis) agree. Raises ValueError if none exists, without fallback."""
    sources = list(sources)
    shapes = [(tensor.shape, axis) for name, axis in sources if isinstance(tensor := state.get(name), Tensor)]
    found = Counter(int(shape[axis]) for shape, axis in shapes if len(shape) > axis)
    if found:
        return found.most_common(1)[0][0]
    if fallback is None:
        raise ValueError(f"holds none of {', '.join(name for name, _ in sources[:8])}")
    return fallback


def _count(state: State, prefix: str) -> int:
    """The number of parts prefix.0, prefix.1 … . Raises ValueError if there are none or a number is missing."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    numbers = {int(match[1]) for name in state if (match := pattern.match(name))}
    missing = sorted(set(range(min(max(numbers, default=0) + 1, 10_000))) - numbers)
    if missing:
        raise ValueError(f"holds no {', '.join(f'{prefix}.{number}.*' for number in missing[:8])}")
    return len(numbers)
