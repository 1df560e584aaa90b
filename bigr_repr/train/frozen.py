"""Frozen, trained timm networks that return their blocks' feature maps. Knows nothing of losses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from bigr_repr.checkpoints.state_files import state_dict
from bigr_repr.checkpoints.weights import fingerprint


def frozen_maps(name: str, weights: str | os.PathLike[str] | None = None) -> Any:
    """A timm network in eval mode that returns its blocks' feature maps, with frozen weights.

    weights: a file from timm or from any code with the same tensors in the same order; None: timm's own, downloaded if
    needed. Raises ValueError for weights that do not match or cannot be read, FileNotFoundError for a missing file.
    """
    import timm

    # timm loads a state before it wraps the blocks, whose names then differ from the file's in many families
    given = None if weights is None else {"state_dict": classifier(name, weights).state_dict()}
    network: Any = timm.create_model(name, pretrained=True, features_only=True, pretrained_cfg_overlay=given)
    network.pretrained_cfg.pop("state_dict", None)  # a second copy of the weights, classifier and all
    return network.eval().requires_grad_(False)


def classifier(name: str, weights: str | os.PathLike[str]) -> Any:
    """A complete timm network in eval mode, frozen, with weights from a file. Raises as frozen_maps does."""
    import timm

    network: Any = timm.create_model(name, pretrained=False)
    _assign_in_order(network, Path(weights), name)
    return network.eval().requires_grad_(False)


def float_fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's weights, without counters of training steps."""
    return fingerprint({name: value for name, value in network.state_dict().items() if value.is_floating_point()})


def _assign_in_order(network: nn.Module, file: Path, name: str) -> None:
    """Load weights by name or, if all names differ, by order. Raises ValueError if neither matches.

    Files of safetensors are in alphabetical order, so that only their names say what is what.
    """
    found = state_dict(file)
    wanted = network.state_dict()
    if found.keys() != wanted.keys():
        shapes = [tuple(v.shape) for v in found.values()]
        if file.suffix == ".safetensors" or shapes != [tuple(v.shape) for v in wanted.values()]:
            raise ValueError(f"{file} does not hold the weights of {name}: neither names nor the order of shapes match")
        found = dict(zip(wanted, found.values(), strict=True))
    network.load_state_dict(found)
