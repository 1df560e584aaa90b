"""What a model predicts for each token of an image, given the others. Knows nothing of images or drawing."""

# B batch, N tokens, K bits per token, D width

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.sampling.chain import make_chain
from bigr_repr.sampling.noise import SeededDraws
from bigr_repr.sampling.orders import halton_order

__all__ = ["predict_bits"]


@torch.inference_mode()
def predict_bits(
    pre: Pretrained, codes: Tensor, *, rounds: int = 4, condition: Tensor | None = None, seed: int = 0
) -> Tensor:
    """P(bit = 1) of every token while it is masked: (B, N, K), float32, on the model's device.

    codes: bits (B, N, K), 0/1 or bool. rounds: each round masks every `rounds`-th token along a Halton sequence over
    the grid, so that each has known neighbors on all sides; with as many rounds as tokens, each is predicted from all
    others. condition: class embeddings (B, D); None: no class. The transcoder takes a single step from pure noise,
    because its full chain would settle on one answer. `bit_entropy` measures a token's uncertainty, `bit_surprise` how
    unexpected its bits are.

    Raises ValueError for a wrong shape of codes, rounds outside 2..N, or an autoregressive model, which sees only
    earlier tokens.
    """
    config, transformer = pre.config.generator, pre.generator.transformer
    if codes.ndim != 3 or tuple(codes.shape[1:]) != (config.tokens, config.code_bits):
        shape = f"(B, {config.tokens}, {config.code_bits})"
        raise ValueError(f"codes has shape {tuple(codes.shape)}; {pre.config.name} has {shape}")
    if not 2 <= rounds <= config.tokens:
        raise ValueError(f"rounds={rounds} is outside 2..{config.tokens}, the tokens of {pre.config.name}")
    if config.attention == "causal":
        raise ValueError(f"{pre.config.name} is autoregressive: it cannot predict tokens from all others")
    device, count = pre.device, len(codes)
    bits = codes.to(device, torch.float32)
    given = transformer.condition_embedding(None, count) if condition is None else condition.to(device)
    turn = torch.empty(config.tokens, dtype=torch.long, device=device)
    turn[torch.tensor(halton_order(config.grid), device=device)] = torch.arange(config.tokens, device=device) % rounds
    chain, draws = make_chain(pre.generator, 1), SeededDraws(seed, range(count))
    found = torch.empty(count, config.tokens, config.code_bits, device=device)
    for index in range(rounds):
        masked = (turn == index).expand(count, -1)
        hidden = transformer.condition(bits.masked_fill(masked[:, :, None], 0), given, masked)
        uniform = partial(_uniform, draws, [int(masked[0].sum())] * count, config.code_bits, device)
        found[masked] = chain.bit_probabilities(chain(hidden[masked][None], uniform))
    return found


def _uniform(draws: SeededDraws, counts: list[int], width: int, device: torch.device, blocks: int) -> Tensor:
    return draws.uniform(counts, blocks, width).to(device)
