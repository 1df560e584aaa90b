"""The released model once more, written plainly in NumPy and float64 for one image at a time, to compare with.

Shares no code with the package. Weights are a dictionary under the names of the released files ("ae." included).
"""

# C channels, H W pixels, h w token grid, K bits, N tokens, D width

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def linear(weights: Weights, name: str, x: Array) -> Array:
    """x (..., in) -> (..., out), with a bias where there is one."""
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


# ---- the binary autoencoder; x is (C, H, W)


def conv(weights: Weights, name: str, x: Array, *, stride: int = 1, before: int = 1, after: int = 1) -> Array:
    """Convolution with zero padding `before` at the top and left, `after` at the bottom and right, tap by tap."""
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    size = kernel.shape[2]
    x = np.pad(x, ((0, 0), (before, after), (before, after)))
    height, width = ((side - size) // stride + 1 for side in x.shape[1:])
    y = np.zeros((kernel.shape[0], height, width)) + bias[:, None, None]
    for i in range(size):
        for j in range(size):
            taken = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            y += np.einsum("oc,chw->ohw", kernel[:, :, i, j], taken)
    return y


def group_norm(weights: Weights, name: str, x: Array) -> Array:
    y = np.empty_like(x)
    size = x.shape[0] // 32
    for group in range(32):
        part = x[group * size : (group + 1) * size]
        y[group * size : (group + 1) * size] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    return y * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def res_block(weights: Weights, name: str, x: Array) -> Array:
    y = conv(weights, f"{name}.conv1", silu(group_norm(weights, f"{name}.norm1", x)))
    y = conv(weights, f"{name}.conv2", silu(group_norm(weights, f"{name}.norm2", y)))
    if x.shape[0] != y.shape[0]:
        x = conv(weights, f"{name}.conv_out", x, before=0, after=0)
    return x + y


def attn_block(weights: Weights, name: str, x: Array) -> Array:
    channels, height, width = x.shape
    y = group_norm(weights, f"{name}.norm", x)
    q, k, v = (conv(weights, f"{name}.{part}", y, before=0, after=0).reshape(channels, -1) for part in "qkv")
    mixed = v @ softmax(q.T @ k / math.sqrt(channels)).T
    return x + conv(weights, f"{name}.proj_out", mixed.reshape(channels, height, width), before=0, after=0)


def _levels(sides: Sequence[int], res_blocks: int, attended: Sequence[int], scale: str) -> Iterator[str]:
    for index, side in enumerate(sides):
        for _ in range(res_blocks):
            yield "res"
            if side in attended:
                yield "attn"
        if index < len(sides) - 1:
            yield scale


def _run(weights: Weights, prefix: str, blocks: Sequence[str], x: Array) -> Array:
    for index, block in enumerate(blocks):
        name = f"{prefix}.blocks.{index}"
        if block == "conv":
            x = conv(weights, name, x)
        elif block == "norm":
            x = group_norm(weights, name, x)
        elif block == "res":
            x = res_block(weights, name, x)
        elif block == "attn":
            x = attn_block(weights, name, x)
        elif block == "down":
            x = conv(weights, f"{name}.conv", x, stride=2, before=0)
        elif block == "up":
            x = conv(weights, f"{name}.conv", x.repeat(2, axis=1).repeat(2, axis=2))
    return x


def bit_probabilities(
    weights: Weights, image: Array, *, levels: int, res_blocks: int, attended: Sequence[int]
) -> Array:
    """(3, H, W) in [0, 1] -> P(bit = 1), (K, h, w)."""
    sides = [image.shape[1] // 2**level for level in range(levels)]
    blocks = ["conv", *_levels(sides, res_blocks, attended, "down"), "res", "attn", "res", "norm", "conv"]
    features = _run(weights, "ae.encoder", blocks, image)
    return sigmoid(conv(weights, "ae.quantize.proj.0", features, before=0, after=0))


def decode(
    weights: Weights, bits: Array, *, levels: int, res_blocks: int, attended: Sequence[int], norm_first: bool
) -> Array:
    """(K, h, w) of 0/1 -> (3, H, W)."""
    embed = weights["ae.quantize.embed.weight"]
    features = np.zeros((embed.shape[1], *bits.shape[1:]))
    for k in range(bits.shape[0]):
        features += bits[k] * embed[k][:, None, None]
    sides = [bits.shape[1] * 2**level for level in range(levels)]
    blocks = ["norm"] * norm_first + ["conv", "res", "attn", "res"]
    blocks += [*_levels(sides, res_blocks, attended, "up"), "norm", "conv"]
    return _run(weights, "ae.generator", blocks, features)


# ---- the transformer; x is (1 + N, D), the condition token first


def rms_norm(weights: Weights, name: str, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]


def rotary(x: Array, grid: int) -> Array:
    """Turn the rows of x (1 + N, d) by their places in the grid, as complex numbers; the condition's becomes zero."""
    half = x.shape[1] // 2
    y = np.zeros_like(x)
    for token in range(grid * grid):
        for start, place in ((0, token // grid), (half, token % grid)):
            for pair in range(half // 2):
                i = start + 2 * pair
                angle = place * 10000.0 ** (-2 * pair / half)
                turned = complex(x[token + 1, i], x[token + 1, i + 1]) * complex(math.cos(angle), math.sin(angle))
                y[token + 1, i], y[token + 1, i + 1] = turned.real, turned.imag
    return y


def attention(weights: Weights, name: str, x: Array, heads: int) -> Array:
    dim = x.shape[1]
    size, grid = dim // heads, math.isqrt(x.shape[0] - 1)
    q, k, v = np.split(linear(weights, f"{name}.wqkv", x), 3, axis=1)
    mixed = np.empty_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = rotary(q[:, part], grid) @ rotary(k[:, part], grid).T / math.sqrt(size)
        mixed[:, part] = softmax(scores) @ v[:, part]
    return linear(weights, f"{name}.wo", mixed)


def hidden_states(
    weights: Weights, codes: Array, label: int, *, layers: int, heads: int, masked: NDArray[np.bool_] | None = None
) -> list[Array]:
    """codes (N, K) of 0/1 -> what each block gives, (N, D), the condition token dropped."""
    condition = weights["cls_embedding.embedding_table.weight"][label]
    tokens = linear(weights, "tok_embeddings", codes)
    if masked is not None:
        tokens[masked] = weights["mask_tok"][0]
    x = np.concatenate([condition[None], tokens])
    states = []
    for layer in range(layers):
        name = f"layers.{layer}"
        modulation = linear(weights, "adaLN.1", silu(condition)).reshape(6, -1) + weights[f"{name}.ada_gss"][0, 0]
        b1, s1, g1, b2, s2, g2 = modulation
        h = rms_norm(weights, f"{name}.attention_norm", x) * (1 + s1) + b1
        x = x + g1 * attention(weights, f"{name}.attention", h, heads)
        h = rms_norm(weights, f"{name}.ffn_norm", x) * (1 + s2) + b2
        gated = silu(linear(weights, f"{name}.feed_forward.w1", h)) * linear(weights, f"{name}.feed_forward.w3", h)
        x = x + g2 * linear(weights, f"{name}.feed_forward.w2", gated)
        states.append(x[1:])
    return states


def transcoder_condition(weights: Weights, last: Array) -> Array:
    """The last block's hidden state (N, D) -> what the transcoder reads, (N, D)."""
    return rms_norm(weights, "norm", last) + weights["diffusion_pos_embed_learned"][0]


# ---- the transcoder; one token at a time: bits (K,), condition (D,)


def layer_norm(x: Array) -> Array:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-6)


def denoiser_logits(weights: Weights, bits: Array, t: int, condition: Array, *, blocks: int) -> Array:
    """x_t (K,), t in 1..T, condition (D,) -> logits of the flip, (K,)."""
    place = [(t - 1) * math.exp(-math.log(10000) * i / 128) for i in range(128)]
    time = np.array([math.cos(angle) for angle in place] + [math.sin(angle) for angle in place])
    time = linear(weights, "denoise_mlp.t_embedder.mlp.2", silu(linear(weights, "denoise_mlp.t_embedder.mlp.0", time)))
    x = linear(weights, "denoise_mlp.x_embedder", 2 * bits - 1)
    c = silu(linear(weights, "denoise_mlp.c_embedder", condition) + time)
    for block in range(blocks):
        name = f"denoise_mlp.blocks.{block}"
        shift, scale, gate = np.split(linear(weights, f"{name}.adaLN_modulation.1", c), 3)
        h = linear(weights, f"{name}.mlp.0", layer_norm(x) * (1 + scale) + shift)
        x = x + gate * linear(weights, f"{name}.mlp.2", silu(h))
    shift, scale = np.split(linear(weights, "denoise_mlp.final_layer.adaLN_modulation.1", c), 2)
    return linear(weights, "denoise_mlp.final_layer.linear", layer_norm(x) * (1 + scale) + shift)


def step_probability(p_0: Array, x_t: Array, t: int, s: int, steps: int) -> Array:
    """P(x_s = 1 | x_t) by enumeration of both values of x_s."""
    weight = {}
    for value in (0, 1):
        prior = sum(
            (p_0 if clean else 1 - p_0) * ((1 - s / steps) * (clean == value) + s / steps / 2) for clean in (0, 1)
        )
        stay = (steps - t) / (steps - s)
        weight[value] = prior * (stay * (x_t == value) + (1 - stay) / 2)
    return np.asarray(weight[1] / (weight[0] + weight[1]))


def loss_per_bit(
    weights: Weights, clean: Array, condition: Array, t: int, uniform: Array, *, steps: int, blocks: int
) -> Array:
    """Weighted binary cross-entropy of the flip, bit by bit: clean (K,), uniform (K,) -> (K,)."""
    keep = 1 - t / steps
    noisy = (uniform < keep * clean + (1 - keep) / 2).astype(np.float64)
    flip = (noisy != clean).astype(np.float64)
    p = sigmoid(denoiser_logits(weights, noisy, t, condition, blocks=blocks))
    share = flip.mean()
    losses = []
    for k in range(len(clean)):
        entropy = -math.log(p[k]) if flip[k] else -math.log(1 - p[k])
        losses.append(entropy * ((1 - share if flip[k] else share) + 1 / len(clean)))
    return np.array(losses)
