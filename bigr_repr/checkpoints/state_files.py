"""Reads files of tensors that any library wrote. Knows no network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["state_dict"]


def state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors by key. Pickles are loaded with weights_only, so that none of their code is run."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read ({error}); give a complete safetensors file") from error
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{file} cannot be read ({reason}); give a state dict that torch.save wrote") from error
    for key in ("state_dict", "model", "state_dict_ema"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} holds no state dict: a mapping of names to tensors")
    return {key.removeprefix("module."): value for key, value in found.items()}
