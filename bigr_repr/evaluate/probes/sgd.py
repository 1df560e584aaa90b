"""The protocols of MAE, MAGE and DINOv2 on features of many layers: choose on a held-out part, retrain, rank.

Knows no images; `heads` takes the steps.
"""

# L layers, S seeds, H heads, n rows (images), D features, K classes

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigr_repr.evaluate.data.labeled import Labeled, class_indices
from bigr_repr.evaluate.probes.edges import edge_of
from bigr_repr.evaluate.probes.heads import diverged, train_heads
from bigr_repr.evaluate.probes.logreg import Trained, hold_out
from bigr_repr.evaluate.probes.protocols import SgdProtocol

Rows = NDArray[np.int64]
_FEATURES: Final = 1 << 28  # maximum number of features stacked at a time
_WEIGHTS: Final = 1 << 26  # maximum number of weights trained at a time
_LOGITS: Final = 1 << 27  # maximum number of logits held by a step


def train_sgd(
    pairs: Sequence[tuple[Labeled, Labeled]],
    classes: Rows,
    protocol: SgdProtocol,
    seeds: Sequence[int],
    device: torch.device,
) -> list[list[Trained]]:
    """For each (train, test) of a layer and each seed, the head chosen on a held-out fifth and trained on all images.

    A protocol with one rate has no choice, and needs no held-out part if there is one image per class.

    All pairs have the same images. Layers of the same width train together, as many as fit in 1 GB of features, 256 MB
    of weights and 512 MB of a step's logits, but at least one. The held-out part is drawn with the first seed.
    """
    split = _split(pairs[0][0], classes, protocol, seeds[0])
    trained: list[list[Trained]] = [[] for _ in pairs]
    for group in _groups(pairs, len(classes), protocol, len(seeds)):
        x = torch.stack([_tensor(pairs[i][0], device) for i in group])
        y = class_indices(pairs[group[0]][0].labels, classes, device)
        choice, accuracy = _choose(x, y, len(classes), protocol, seeds, split)
        final = train_heads(x, y, len(classes), protocol, seeds, choice)
        if not final.finite.all():
            raise diverged(protocol.rates)
        del x
        for place, i in enumerate(group):
            test = _tensor(pairs[i][1], device)
            for s in range(len(seeds)):
                ranked = final.ranked(test, place, s, min(5, len(classes)))[0].cpu().numpy()
                rate = protocol.rates[int(choice[place, s])]
                scores = dict(zip(protocol.rates, accuracy[place, s].tolist(), strict=True))
                edge = None if split is None else edge_of("rate", rate, scores, protocol.rates)
                held_out = None if split is None else scores[rate]
                found = Trained(
                    ranked=ranked, settings={"rate": rate}, held_out_top1=held_out,
                    edge=edge,
                )  # fmt: skip
                trained[i].append(found)
    return trained


def _split(train: Labeled, classes: Rows, protocol: SgdProtocol, seed: int) -> tuple[Rows, Rows] | None:
    """Rows kept and held out; None if there are too few and the protocol needs no choice."""
    try:
        return hold_out(train, classes, np.arange(len(train)), np.random.default_rng(seed))
    except ValueError:
        if len(protocol.rates) > 1:
            raise
        return None


def _choose(
    x: Tensor,
    y: Tensor,
    classes: int,
    protocol: SgdProtocol,
    seeds: Sequence[int],
    split: tuple[Rows, Rows] | None,
) -> tuple[Tensor, Tensor]:
    """Indices (L, S) of the heads that are best on the held-out rows, the first of equals; accuracies of all (L, S, H).

    split: rows kept and held out; None: there is only one head, and nothing to hold out.
    """
    if split is None:
        none = torch.zeros(len(x), len(seeds), 1)
        return none[..., 0].long(), none
    kept, held = (torch.from_numpy(rows).to(x.device) for rows in split)
    heads = train_heads(x[:, kept], y[kept], classes, protocol, seeds)

    def right(layer: int, seed: int) -> Tensor:
        return (heads.ranked(x[layer, held], layer, seed, 1)[:, :, 0] == y[held]).double().mean(dim=1)

    found = torch.stack([torch.stack([right(layer, s) for s in range(len(seeds))]) for layer in range(len(x))])
    found = torch.where(heads.finite, found, -1.0)  # a head that diverged is right by chance where class 0 is
    if (found < 0).all(dim=2).any():
        raise diverged(protocol.rates)
    return found.argmax(dim=2).cpu(), 100 * found.clamp_min(0).cpu()


def _groups(
    pairs: Sequence[tuple[Labeled, Labeled]], classes: int, protocol: SgdProtocol, seeds: int
) -> Iterator[list[int]]:
    """Indices of pairs that are trained together: of the same width, and within the limits."""
    by_width: dict[int, list[int]] = {}
    for i, (train, _) in enumerate(pairs):
        by_width.setdefault(train.features.shape[1], []).append(i)
    heads = len(protocol.rates) * seeds
    rows = len(pairs[0][0])
    logits = min(protocol.batch, rows) * classes * heads
    for width, members in by_width.items():
        most = min(_FEATURES // (width * rows), _WEIGHTS // (width * classes * heads), _LOGITS // logits)
        step = max(1, most)
        for start in range(0, len(members), step):
            yield members[start : start + step]


def _tensor(data: Labeled, device: torch.device) -> Tensor:
    return torch.from_numpy(data.features.astype(np.float32)).to(device)
