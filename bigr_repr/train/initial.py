"""Initializes a model from a trained one with another code width or other classes. Knows nothing of training."""

# K bits per token, C classes

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.config import ModelConfig
from bigr_repr.models.bigr import BiGR
from bigr_repr.models.tokenizer import BinaryAutoencoder
from bigr_repr.system.differences import differences

log = logging.getLogger(__name__)
_CLASSES = "transformer.cls_embedding.embedding_table.weight"
_CONDITIONS = ("transformer.cls_embedding.", "transformer.cap_embedding.")
_PLACES = "transformer.diffusion_pos_embed_learned"
_FREE = ("code_bits", "grid", "classes", "condition", "caption_dim", "caption_tokens")
_NEW_SCALE = 0.4  # of the existing standard deviation: new bits start weaker than trained ones


def widened(start: BinaryAutoencoder, code_bits: int, *, seed: int = 0) -> BinaryAutoencoder:
    """The tokenizer with `code_bits` bits per token: existing bits keep their weights, new ones are random.

    Raises ValueError for fewer bits than it has.
    """
    if code_bits < start.config.code_bits:
        raise ValueError(f"code_bits={code_bits} is less than the {start.config.code_bits} of the initial tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BinaryAutoencoder(dataclasses.replace(start.config, code_bits=code_bits))
        _take(model, start.state_dict())
    return model


def begun_from(start: Pretrained, config: ModelConfig, *, seed: int = 0) -> BiGR:
    """A generator of `config` initialized with another model's weights, where the two agree.

    Widths and depths must be equal; code width, grid, classes and captions may differ. Classes are matched by name, the
    position table is resized to another grid, and the caption layers are reused if the text encoder is the same. Random
    parts are logged. Raises ValueError, naming every difference, for another architecture.
    """
    theirs, ours = start.config.generator, config.generator
    free = {name: getattr(ours, name) for name in _FREE}
    comparable = dataclasses.asdict(theirs) | free
    if found := differences({"generator": comparable}, {"generator": dataclasses.asdict(ours)}):
        remedy = "choose another model to start from, or use its architecture"
        raise ValueError(f"initial={start.config.name} is of another architecture: {'; '.join(found)}; {remedy}")
    weights = dict(start.generator.state_dict())
    if start.config.text_encoder_sha256 != config.text_encoder_sha256:
        weights = {name: value for name, value in weights.items() if not name.startswith(_CONDITIONS)}
    weights[_PLACES] = _resized(weights[_PLACES], ours.grid)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BiGR(ours)
        names = config.class_names, start.config.class_names
        if _CLASSES in weights and (theirs.classes != ours.classes or (all(names) and names[0] != names[1])):
            table = model.state_dict()[_CLASSES]
            weights[_CLASSES] = _matched(table, weights[_CLASSES], *names)
        new = _take(model, weights) + sorted(model.state_dict().keys() - weights.keys())
    if new:
        log.warning("not in %s, so initialized wholly or partly at random: %s", start.config.name, ", ".join(new))
    return model


def _resized(places: Tensor, grid: int) -> Tensor:
    """Position vectors of a square grid (1, N, D), resized to another grid."""
    side = round(places.shape[1] ** 0.5)
    if side == grid:
        return places
    square = places.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    return F.interpolate(square, size=grid, mode="bicubic", align_corners=False).flatten(2).mT.to(places.dtype)


def _take(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy matching weights into a new module: equal shapes, else the common corner. Returns names of the latter."""
    state, partly = module.state_dict(), []
    for name, theirs in weights.items():
        ours = state[name]
        if ours.shape != theirs.shape:
            partly.append(name)
            if theirs.ndim > 1:
                ours.normal_(std=_NEW_SCALE * float(theirs.float().std()))
            else:
                ours.zero_()
        corner = tuple(slice(min(pair)) for pair in zip(ours.shape, theirs.shape, strict=True))
        ours[corner] = theirs[corner].to(ours.dtype)
    return partly


def _matched(ours: Tensor, theirs: Tensor, names: Sequence[str], their_names: Sequence[str]) -> Tensor:
    """The class table (C + 1, D), with "no class" last, and rows of classes with the same name taken from `theirs`."""
    table, where = ours.clone(), {name: row for row, name in enumerate(their_names)}
    table[-1] = theirs[-1]
    known = [(row, where[name]) for row, name in enumerate(names) if name in where]
    for row, their_row in known:
        table[row] = theirs[their_row]
    if len(known) < len(table) - 1:
        log.warning("%d of %d classes are new and start at random", len(table) - 1 - len(known), len(table) - 1)
    return table
