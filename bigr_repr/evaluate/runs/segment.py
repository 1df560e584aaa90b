"""The dense probe of a representation on folders of images and masks. Knows neither commands nor tables."""

# n images, S side of masks in pixels

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.evaluate.data.segments import SegmentSet, class_names_of, open_segments
from bigr_repr.evaluate.data.splits import BenchData, Part, short_name, with_features
from bigr_repr.evaluate.probes.edges import warn_of_edges
from bigr_repr.evaluate.probes.segment import C_SEGMENT, SegmentProbe, segment_probe
from bigr_repr.evaluate.representations.base import TOKENS, View
from bigr_repr.evaluate.runs.extraction import BenchSettings, Layers, OnProgress, features_of

__all__ = ["SegmentRow", "bench_segment"]

_SIDE: Final = 256  # resolution for comparing predictions, in pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentRow:
    """One representation, at one layer. class_names: of masks' numbers, or none."""

    representation: str
    view: View
    probe: SegmentProbe
    class_names: tuple[str, ...]
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Ready for JSON, without the facts common to all rows."""
        where = {"representation": self.representation, "layer": self.view.layer, "features": self.view.item}
        return where | dataclasses.asdict(self.probe)


def bench_segment(
    model: str | None,
    folder: PathLike,
    settings: BenchSettings,
    *,
    layers: Layers | None = (),
    limit: int | None = None,
    test_limit: int | None = None,
    side: int = _SIDE,
    features: tuple[PathLike, PathLike] | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[SegmentRow]:
    """A linear head on the tokens of each layer, by mIoU: a row for each layer.

    folder: as in `segments`. limit, test_limit: images of each side, drawn at random with the first seed. side: of the
    squares in which predictions and masks are compared, in pixels. model, settings, layers: as in `bench`; of the
    settings, only C, the first seed, and where features are computed and stored are used. features: files of tokens
    (n, N, D), N a square number, of the middle squares of all training and all test images in the order of their names,
    instead of a model's; model then names them.
    """
    if side < 1:
        raise ValueError(f"side={side} must be at least 1")
    images = _opened(folder, limit, test_limit, settings.seeds[0])
    data = images if features is None else with_features(images, *features)
    tokens = dataclasses.replace(settings, pool=TOKENS)
    found = features_of(model, data, tokens, layers=layers, on_progress=on_progress)
    share = float(found.facts["model"].get("crop", 1.0))
    masks = [_masks(part, side, share) for part in (images.train, images.test)]
    rows = list[SegmentRow]()
    named: dict[str, Any] = {"class_names": class_names_of(folder), "facts": found.facts}
    for done, view in enumerate(found.train):
        on_progress("segment probe", done, len(found.train))
        probe = segment_probe(
            found.train[view], masks[0], found.test[view], masks[1],
            grid=settings.C or C_SEGMENT, seed=settings.seeds[0], device=settings.device,
        )  # fmt: skip
        warn_of_edges(view, [probe.edge])
        rows.append(SegmentRow(representation=found.representation, view=view, probe=probe, **named))
    on_progress("segment probe", len(rows), len(rows))
    return rows


def _opened(folder: PathLike, limit: int | None, test_limit: int | None, seed: int) -> BenchData:
    train, test = open_segments(folder)
    sides = _part("train", train, limit, seed), _part("test", test, test_limit, seed)
    return BenchData(name=short_name(str(folder)), train=sides[0], test=sides[1])


def _part(name: str, source: SegmentSet, count: int | None, seed: int) -> Part:
    rows = np.arange(len(source))
    record: dict[str, Any] = {"source": name, "images": len(rows)}
    if count is not None and count < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
        record = {"source": name, "images": count, "of": len(source), "drawn": f"at random, seed {seed}"}
    return Part(name=name, source=source, rows=rows, labels=np.zeros_like(rows), record=record)


def _masks(part: Part, side: int, share: float) -> NDArray[np.uint8]:
    assert isinstance(part.source, SegmentSet)
    return np.stack([part.source.mask(int(row), side, share) for row in part.rows])
