"""Trained networks of timm as judges: frozen, giving the maps of their blocks. Knows nothing of losses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigr_repr.checkpoints.weights import fingerprint


def frozen_maps(name: str, weights: str | os.PathLike[str] | None = None) -> Any:
    """A timm network in eval mode that gives the maps of its blocks, without gradients for its own weights.

    weights: a file of them, of timm or of any code that names the same tensors in the same order; None: timm's own,
    which it may have to fetch. Raises ValueError for weights that do not fit, FileNotFoundError for a missing file.
    """
    import timm

    network: Any = timm.create_model(name, pretrained=weights is None, features_only=True)
    if weights is not None:
        network.load_state_dict(classifier(name, weights).state_dict(), strict=False)
    return network.eval().requires_grad_(False)


def classifier(name: str, weights: str | os.PathLike[str]) -> Any:
    """The whole of a timm network in eval mode, frozen, with the weights of a file. Raises as frozen_maps does."""
    import timm

    network: Any = timm.create_model(name, pretrained=False)
    _assign_in_order(network, Path(weights), name)
    return network.eval().requires_grad_(False)


def float_fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's weights, without what only counts training steps."""
    return fingerprint({name: value for name, value in network.state_dict().items() if value.is_floating_point()})


def _assign_in_order(network: nn.Module, file: Path, name: str) -> None:
    """Load weights by name or, where all names differ, by order. Raises ValueError when neither fits."""
    found: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    wanted = network.state_dict()
    if found.keys() != wanted.keys():
        if [tuple(v.shape) for v in found.values()] != [tuple(v.shape) for v in wanted.values()]:
            raise ValueError(
                f"{file} does not hold the weights of {name}: other names, and other shapes in their order"
            )
        found = dict(zip(wanted, found.values(), strict=True))
    network.load_state_dict(found)
