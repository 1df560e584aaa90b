"""The transformer over binary tokens, bidirectional or causal. Knows nothing of images, diffusion, sampling or files.

Module and parameter names follow the released weights. Source: BiGR (arXiv 2410.14672), section 3.2.
"""

# B batch, N tokens, K bits per token, D width, P rows of the condition (1, with a caption one more for each of its
# tokens), S sequence (P + N), M heads, d head width, T caption tokens, E width of the text encoder's vectors

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigr_repr.config import GeneratorConfig
from bigr_repr.models.blocks import Block, RMSNorm, rotary_table


class Captions(NamedTuple):
    """Encoded captions, one per image, and the number of tokens in each.

    features: (B, T, E), values past a caption's end are ignored; lengths: (B,), int64 in 0..T, where 0 is the null
    caption.
    """

    features: Tensor
    lengths: Tensor


def join_conditions(first: Tensor, second: Tensor) -> Tensor:
    """Conditions concatenated, (B1 + B2, D), or (B1 + B2, P, D) where P is the larger of the two."""
    if first.ndim == 3:
        rows = max(first.shape[1], second.shape[1])
        first, second = (F.pad(each, (0, 0, rows - each.shape[1], 0)) for each in (first, second))
    return torch.cat([first, second])


def trimmed(condition: Tensor) -> Tensor:
    """A condition trimmed to its longest caption, so that an image's result does not depend on the batch."""
    return condition if condition.ndim == 2 else condition[:, (condition != 0).any(-1).any(0)]


class ClassEmbedding(nn.Module):
    """One row per class and a last row for "no class"."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)


class CaptionEmbedding(nn.Module):
    """Captions as rows in front of the tokens, the last one for the whole caption; and a row for the null caption.

    The encoder's vectors are normalized, then projected to width D by two layers; their mean represents the whole.
    Positions in the caption are learned, so that encoders without context work too.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.first = nn.Linear(config.caption_dim, config.dim)
        self.second = nn.Linear(config.dim, config.dim)
        self.places = nn.Parameter(torch.empty(1, config.caption_tokens, config.dim))
        self.null = nn.Parameter(torch.empty(1, config.dim))

    def forward(self, captions: Captions) -> Tensor:
        """-> (B, T + 1, D), zeros where a caption has no token: rows of zeros are not attended to."""
        features = captions.features.to(self.null.dtype)
        features = F.rms_norm(features.float(), features.shape[-1:], None, self.eps).to(features.dtype)
        tokens = self.second(F.gelu(self.first(features)))
        there = torch.arange(tokens.shape[1], device=tokens.device) < captions.lengths[:, None]
        tokens = tokens * there[:, :, None]
        whole = tokens.sum(1) / captions.lengths.clamp(min=1)[:, None].to(tokens.dtype)
        whole = torch.where(captions.lengths[:, None] > 0, whole, self.null.to(tokens.dtype))
        placed = (tokens + self.places[:, : tokens.shape[1]].to(tokens.dtype)) * there[:, :, None]
        return torch.cat([placed, whole[:, None]], dim=1)


class Transformer(nn.Module):
    """Reads codes with some tokens masked, and a condition; returns hidden states of any blocks.

    Codes are 0/1 floats (B, N, K); conditions are embeddings from `condition_embedding`: (B, D), or for a text model
    (B, P, D), whose last row drives the modulation; rows of zeros are not attended to.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.mask_tok = nn.Parameter(torch.empty(1, dim))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, config.tokens, dim))
        if config.condition == "text":
            self.cap_embedding = CaptionEmbedding(config)
        else:
            self.cls_embedding = ClassEmbedding(config.classes, dim)
        self.tok_embeddings = nn.Linear(config.code_bits, dim)
        self.adaLN = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(dim, config.norm_eps)
        self.dropout = 0.0
        self.recompute = False
        self._initialize()

    def _initialize(self) -> None:
        nn.init.normal_(self.mask_tok, std=0.02)
        nn.init.normal_(self.diffusion_pos_embed_learned, std=0.02)
        if self.config.condition == "text":
            nn.init.normal_(self.cap_embedding.places, std=0.02)
            nn.init.normal_(self.cap_embedding.null, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.layers:
            assert isinstance(block, Block)
            # Small equal gates: near the identity at any depth, and every block learns from the first step.
            with torch.no_grad():
                block.ada_gss[:, :, 2::3] = self.config.layers**-0.5
        with torch.no_grad():
            nn.init.zeros_(self.adaLN[1].weight)  # type: ignore[arg-type]

    def condition_embedding(self, labels: Tensor | Captions | None, batch: int) -> Tensor:
        """Conditions from labels or captions; None: "no class", or the null caption, for all.

        Class models: rows of the class table, (B, D), for labels (B,), int64 in 0..C, where C means "no class". Text
        models: (B, P, D), see `CaptionEmbedding`. Raises ValueError for anything else.
        """
        if self.config.condition == "text":
            return self._of_captions(labels, batch)
        if isinstance(labels, Captions):
            raise ValueError("captions are for models with condition='text'; give labels to this one")
        table = self.cls_embedding.embedding_table.weight
        null = self.config.classes
        if labels is None:
            return table[null].expand(batch, -1)
        if labels.shape != (batch,):
            raise ValueError(f"labels has shape {tuple(labels.shape)}; expected ({batch},), one label per image")
        if labels.dtype not in (torch.int32, torch.int64):  # indexing would interpret 8-bit ones as a mask
            raise ValueError(f"labels has dtype {labels.dtype}; expected torch.int64")
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= null):
            found = f"{int(labels.min())}..{int(labels.max())}"
            raise ValueError(f"labels={found} is outside 0..{null} ({null} means no class)")
        return table[labels]

    def _of_captions(self, captions: Tensor | Captions | None, batch: int) -> Tensor:
        if captions is None:
            return self.cap_embedding.null.expand(batch, 1, -1)
        if not isinstance(captions, Captions):
            raise ValueError("labels are for models with condition='class'; give captions to this one")
        tokens, width = self.config.caption_tokens, self.config.caption_dim
        shape = tuple(captions.features.shape)
        if len(shape) != 3 or shape[0] != batch or shape[1] > tokens or shape[2] != width:
            raise ValueError(f"captions have shape {shape}; expected ({batch}, T, {width}), T at most {tokens}")
        if captions.lengths.shape != (batch,):
            raise ValueError(f"captions have lengths of shape {tuple(captions.lengths.shape)}; expected ({batch},)")
        return self.cap_embedding(captions)  # type: ignore[no-any-return]

    def embed_tokens(self, codes: Tensor, masked: Tensor | None) -> Tensor:
        """(B, N, K) of 0/1 and the masked positions (B, N) -> (B, N, D)."""
        x: Tensor = self.tok_embeddings(codes.to(self.mask_tok.dtype))
        return x if masked is None else torch.where(masked[:, :, None], self.mask_tok.to(x.dtype), x)

    def forward(
        self, codes: Tensor, condition: Tensor, masked: Tensor | None = None, *, layers: Collection[int] | None = None
    ) -> dict[int, Tensor]:
        """Hidden states after each block of `layers`, condition token dropped, no final norm: {layer: (B, N, D)}.

        Blocks past the last requested one do not run. `layers` holds indices in 0..L-1; None: the last block.
        Raises ValueError if `codes` is not (B, N, K).
        """
        wanted = {self.config.layers - 1} if layers is None else set(layers)
        tokens = codes.shape[1]
        return {layer: state[:, -tokens:] for layer, state in self.states(codes, condition, masked, wanted).items()}

    def states(
        self,
        codes: Tensor,
        condition: Tensor,
        masked: Tensor | None,
        wanted: Collection[int],
        *,
        read: Tensor | None = None,
    ) -> dict[int, Tensor]:
        """Hidden states after the given blocks, with the condition in front: {layer: (B, S, D)}.

        `read` (n,), int64, are the positions of the tokens to read, in raster order; None: all. S = P + n.
        """
        grid, bits = self.config.grid, self.config.code_bits
        if codes.shape[1:] != (grid * grid, bits):
            raise ValueError(f"codes has shape {tuple(codes.shape)}; expected (B, {grid * grid}, {bits})")
        tokens = self.embed_tokens(codes, masked)
        front = condition[:, None] if condition.ndim == 2 else condition
        rows = front.shape[1]
        x = torch.cat([front.to(self.mask_tok.dtype), tokens if read is None else tokens[:, read]], dim=1)
        head_dim = self.config.dim // self.config.heads
        table = rotary_table(grid, head_dim, self.config.rope_base, codes.device, captions=rows - 1)
        if read is not None:
            table = table[:, torch.cat([torch.arange(rows, device=read.device), read + rows])]
        shared = self.adaLN(front[:, -1]).unflatten(-1, (1, 6, -1))  # (B, 1, 6, D)
        present = None if rows == 1 else _present(front, x.shape[1] - rows)
        states: dict[int, Tensor] = {}
        for index, block in enumerate(self.layers):
            x = self._run(block, x, shared, table, self.dropout, present)
            if index in wanted:
                states[index] = x
                if len(states) == len(wanted):
                    break
        return states

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Run a block; with `recompute`, its activations are recomputed in the backward pass instead of stored."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return block(*inputs)  # type: ignore[no-any-return]

    def condition(self, codes: Tensor, condition: Tensor, masked: Tensor | None) -> Tensor:
        """The transcoder's input: final norm plus its positional embedding. -> (B, N, D).

        In a causal model, the output at the previous token, or at the condition for the first.
        """
        last = self.config.layers - 1
        return self.condition_of(self.states(codes, condition, masked, {last})[last])

    def condition_of(self, state: Tensor, read: Tensor | None = None) -> Tensor:
        """`condition` from the last block's state (B, P + n, D), the condition in front. -> (B, n, D)."""
        places = self.diffusion_pos_embed_learned
        place: Tensor = places if read is None else places[:, read]
        first = state.shape[1] - place.shape[1]
        hidden = state[:, first - 1 : -1] if self.config.attention == "causal" else state[:, first:]
        return self.norm(hidden) + place  # type: ignore[no-any-return]


def up_to_block(transformer: Transformer, block: int) -> Transformer:
    """A transformer without the blocks after `block`, around the same weights. The given one keeps all its blocks."""
    part = copy.copy(transformer)
    part._modules = {**transformer._modules, "layers": transformer.layers[: block + 1]}
    return part


def _present(front: Tensor, tokens: int) -> Tensor:
    """Which positions exist, (B, 1, 1, P + n): all tokens, and the nonzero rows of conditions (B, P, D)."""
    return F.pad((front != 0).any(-1), (0, tokens), value=True)[:, None, None]
