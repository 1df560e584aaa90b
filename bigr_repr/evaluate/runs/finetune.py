"""Fine-tunes a network with a linear head, with lower rates for earlier blocks. Knows neither commands nor
tables.

Source of the layer-wise rates: BEiT (arXiv 2106.08254), also used by MAE.
"""

# B batch, n rows (images), D width, K classes

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bigr_repr.datasets import ImageSet
from bigr_repr.evaluate.data.labeled import Labeled, class_indices, shared_classes
from bigr_repr.evaluate.data.splits import BenchData, Part
from bigr_repr.evaluate.probes.linear_probe import summarized
from bigr_repr.evaluate.probes.logreg import Trained
from bigr_repr.evaluate.representations.base import Representation, View
from bigr_repr.evaluate.representations.open import open_representation
from bigr_repr.evaluate.representations.trainable import Trainable, trainable
from bigr_repr.evaluate.runs.bench import BenchRow
from bigr_repr.evaluate.runs.cache import digests_of
from bigr_repr.evaluate.runs.extraction import BenchSettings, OnProgress
from bigr_repr.evaluate.runs.features import Wanted, count_duplicates, facts_of, seen_in_training
from bigr_repr.images.augment import random_resized_crop
from bigr_repr.system.devices import choose_device
from bigr_repr.system.threads import map_ahead

__all__ = ["FineTuning", "bench_finetune"]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a network is fine-tuned. rate: for a batch of 256, following half a cosine after a linear warm-up over a
    tenth of the steps. layer_decay: factor of a block's rate for each later block. crops: train on random
    resized crops and mirror images. No value is tuned. Raises ValueError for values out of range.
    """

    epochs: int = 10
    rate: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    batch: int = 64
    smoothing: float = 0.1
    crops: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not 0 < self.rate < math.inf or not 0 <= self.weight_decay < math.inf:
            said = f"epochs={self.epochs}, batch={self.batch}, rate={self.rate}, weight_decay={self.weight_decay}"
            raise ValueError(f"{said}: the first three must be above 0, the last at least 0, all finite")
        if not 0 < self.layer_decay <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1], smoothing={self.smoothing} in [0, 1)")

    def words(self, count: int) -> str:
        """The protocol, for reports."""
        crops = "random resized crops (0.08..1) and mirror images" if self.crops else "whole images"
        passes = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return (
            f"fine-tuned with a linear head by AdamW: {passes} of {count} images, batch {self.batch}, rate "
            f"{self.rate:g} x batch/256, layer decay {self.layer_decay:g}, weight decay {self.weight_decay:g}, label "
            f"smoothing {self.smoothing:g}; {crops}; settings given, not chosen"
        )


def bench_finetune(
    model: str,
    data: BenchData,
    settings: BenchSettings,
    *,
    tuning: FineTuning | None = None,
    layer: int | str | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> BenchRow:
    """Fine-tune a network with a linear head, and test it once, at the end.

    model: a BiGR model, whose tokenizer is frozen, or a timm backbone. layer: the last block that is used.
    settings: only the first seed, pool and where to compute are used. The trained network is not kept.

    Raises ValueError for a representation that cannot be fine-tuned, a condition, means over mirror images, features
    instead of images, or losses that are not finite.
    """
    given = tuning or FineTuning()
    if not (isinstance(data.train.source, ImageSet) and isinstance(data.test.source, ImageSet)):
        raise ValueError(f"{data.name}: networks are trained on images; choose a data set of images")
    if settings.condition:
        raise ValueError(f"fine-tuning takes no condition ({settings.condition.words}); leave it out")
    if settings.mirror:
        raise ValueError("fine-tuning takes no means over mirror images (mirror=True); leave it out")
    device, seed = choose_device(settings.device), settings.seeds[0]
    representation = open_representation(model, device=str(device), seed=seed)
    block = None if layer is None else representation.layer_index(layer)
    network = trainable(representation, block, settings.pool)
    sides = [Labeled(part.name, np.empty((len(part), 0)), part.labels) for part in (data.train, data.test)]
    classes = shared_classes(sides[0], sides[1])
    facts = _facts(representation, data, settings)  # which warns of repeated images now, not after hours
    tuner = _Tuner(representation, network, given, settings, len(classes), device)
    tuner.train(data.train, class_indices(data.train.labels, classes, device), on_progress)
    heads = [Trained(ranked=tuner.ranked(data.test), settings={"rate": given.rate}, held_out_top1=None)]
    return BenchRow(
        representation=representation.name, view=View(item="fine-tuned", layer=block), dataset=data.name, knn=None,
        probe=summarized(sides[0], sides[1], classes, heads, (seed,), given.words(len(data.train))),
        facts=facts,
    )  # fmt: skip


def _facts(representation: Representation, data: BenchData, settings: BenchSettings) -> dict[str, Any]:
    wanted = Wanted(
        model=representation.name, data=data, settings=settings, layers=(), train=True, tokens=False,
        on_progress=lambda what, done, total: None,
    )  # fmt: skip
    sides = [digests_of(part, settings.workers) for part in (data.train, data.test)]
    duplicates = count_duplicates(sides[0], sides[1], data, "pixel for pixel")
    seen = seen_in_training(representation.name, representation.training, data, labels=representation.labels_seen)
    return facts_of(wanted, representation.record, duplicates) | seen


class _Tuner:
    def __init__(
        self,
        representation: Representation,
        network: Trainable,
        given: FineTuning,
        settings: BenchSettings,
        classes: int,
        device: torch.device,
    ) -> None:
        self._representation, self._network, self._given, self._settings = representation, network, given, settings
        self._device, self._seed = device, settings.seeds[0]
        blank = np.zeros((8, 8, 3), np.uint8)
        with torch.no_grad():
            width = network.forward([representation.prepare(_image(blank))] * 2).shape[1]
        self._head = nn.Linear(width, classes).to(device)
        draw = torch.Generator().manual_seed(self._seed)
        self._head.weight.data = (torch.randn(classes, width, generator=draw) * 0.01).to(device)
        self._head.bias.data.zero_()
        groups = [
            *network.groups(given.weight_decay, given.layer_decay),
            {"params": list(self._head.parameters()), "weight_decay": given.weight_decay, "lr_scale": 1.0},
        ]
        for group in groups:
            for value in group["params"]:
                value.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(groups, lr=given.rate)

    def train(self, part: Part, labels: Tensor, on_progress: OnProgress) -> None:
        """All epochs.  Raises ValueError for a loss that is not finite."""
        given, done = self._given, 0
        total = given.epochs * math.ceil(len(part) / given.batch)
        self._network.modules.train()
        for epoch in range(given.epochs):
            order = np.random.default_rng((self._seed, epoch)).permutation(len(part))
            for places, batch in self._batches(part, order, self._loader(part, epoch)):
                self._rates(done, total)
                logits = self._head(self._network.forward(batch))
                loss = F.cross_entropy(logits, labels[torch.from_numpy(places)], label_smoothing=given.smoothing)
                if not bool(loss.isfinite()):
                    raise ValueError(f"the loss is not finite after {done} steps; {self._remedy}")
                self._optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                done += 1
                on_progress("fine-tuning", done, total)
        self._network.modules.eval()

    @torch.no_grad()
    def ranked(self, part: Part) -> NDArray[np.int64]:
        """The classes with the largest logits for whole images, best first: (n, at most 5).

        Raises ValueError for logits that are not finite.
        """
        found = []
        for _, batch in self._batches(part, np.arange(len(part)), self._loader(part, None)):
            logits = self._head(self._network.forward(batch))
            if not bool(logits.isfinite().all()):
                raise ValueError(f"the trained network's logits are not finite; {self._remedy}")
            found.append(logits.topk(min(5, logits.shape[1])).indices.cpu().numpy())
        return np.concatenate(found)

    @property
    def _remedy(self) -> str:
        return f"use a smaller rate than {self._given.rate}"

    def _rates(self, step: int, total: int) -> None:
        """Linear warm-up over a tenth of the steps, then cosine decay to zero."""
        warmup = max(1, total // 10)
        decayed = (step - warmup) / max(1, total - warmup)
        share = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * decayed))
        for group in self._optimizer.param_groups:
            group["lr"] = self._given.rate * self._given.batch / 256 * share * group["lr_scale"]

    def _loader(self, part: Part, epoch: int | None) -> Callable[[int], NDArray[Any]]:
        """A function that prepares a part's row: an epoch's crop, or the whole image."""
        source, side = part.source, self._representation.record["image_size"]
        assert isinstance(source, ImageSet)

        def load(place: int) -> NDArray[Any]:
            image = source.load(int(part.rows[place]))
            if epoch is not None and self._given.crops:
                random = np.random.default_rng((self._seed, epoch, int(part.rows[place])))
                image = random_resized_crop(image, side, random)
            return self._representation.prepare(image)

        return load

    def _batches(
        self, part: Part, order: NDArray[np.int64], load: Callable[[int], NDArray[Any]]
    ) -> Iterator[tuple[NDArray[np.int64], list[NDArray[Any]]]]:
        size = self._given.batch
        stream = map_ahead(load, order.tolist(), workers=self._settings.workers, ahead=2 * size)
        for start in range(0, len(part), size):
            yield order[start : start + size], list(islice(stream, size))


def _image(pixels: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
