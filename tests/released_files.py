"""Random models in the released file format, for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigr_repr.config import GeneratorConfig, TokenizerConfig
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder


def randomize(module: nn.Module, seed: int) -> None:
    """Draw all weights anew so that none is zero or one and signals keep their size."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            spread = 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5
            is_scale = "norm" in name and name.endswith("weight") and weight.ndim == 1
            weight.normal_(float(is_scale), spread, generator=draws)


def random_release(
    folder: Path, tokenizer: TokenizerConfig, generator: GeneratorConfig, *, seed: int = 0
) -> tuple[Path, Path, dict[str, NDArray[np.float64]]]:
    """Write a random model as the two released files; returns their paths and all weights under the files' names."""
    autoencoder, bigr = BinaryAutoencoder(tokenizer), BiGR(generator)
    randomize(autoencoder, seed)
    randomize(bigr, seed + 1)
    bits: dict[str, Tensor] = {f"ae.{name}": weight for name, weight in autoencoder.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, weight in bigr.state_dict().items():
        if name.startswith("diffusion.denoiser."):
            state["denoise_mlp." + name.removeprefix("diffusion.denoiser.")] = weight
        else:
            state[name.removeprefix("transformer.")] = weight
    weights = {name: tensor.double().numpy() for name, tensor in (bits | state).items()}
    # What else the released files hold, and no model needs:
    bits |= {"ae.generator.logsigma.0.weight": torch.rand(3), "disc.main.3.num_batches_tracked": torch.tensor(7)}
    bits |= {"perceptual.net.slice1.0.weight": torch.rand(4, 3), "disc.main.0.bias": torch.rand(4)}
    for name, weight in list(state.items()):
        if name.startswith("denoise_mlp."):
            state["diffusion_processor._denoise_fn." + name.removeprefix("denoise_mlp.")] = weight
    keep = 1 - torch.arange(generator.train_timesteps + 1) / generator.train_timesteps
    state |= {"diffusion_processor.scheduler.k_final": keep, "diffusion_processor.scheduler.b_final": (1 - keep) / 2}
    paths = folder / "binaryae_ema.th", folder / "bigr.pt"
    torch.save(bits, paths[0])
    torch.save({"ema": state}, paths[1])
    return *paths, weights
