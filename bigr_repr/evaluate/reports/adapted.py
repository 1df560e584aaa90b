"""The report of an adaptation: figures before and after, and pictures of each class. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bigr_repr._typing import PathLike
from bigr_repr.evaluate.runs.bench import BenchRow
from bigr_repr.images.sheets import contact_sheet
from bigr_repr.system.files import replacing
from bigr_repr.system.pages import picture_url, render

__all__ = ["ClassShown", "adaptation_page", "fallen", "figures_of", "quality_of", "save_adaptation_page"]

_NOISE = 1.0  # points
_METHODS = {
    "lora": "low-rank changes of attention and feed-forward, and the classes",
    "full": "all weights of the generator",
    "classes": "nothing but the classes",
}


@dataclass(frozen=True, kw_only=True)
class ClassShown:
    """Pictures of one class: the user's held-out ones, and those drawn by the model before and after."""

    name: str
    real: Sequence[Image.Image]
    before: Sequence[Image.Image]
    after: Sequence[Image.Image]


def figures_of(rows: tuple[BenchRow, BenchRow] | None) -> dict[str, tuple[float, float]]:
    """Figures before and after, in percent: "linear probe" and "20-NN"; empty without rows."""
    if rows is None:
        return {}
    found: dict[str, tuple[float, float]] = {}
    before, after = rows
    if before.probe is not None and after.probe is not None:
        found["linear probe"] = round(before.probe.top1, 2), round(after.probe.top1, 2)
    if before.knn is not None and after.knn is not None:
        k = max(before.knn.top1)
        found[f"{k}-NN"] = round(before.knn.top1[k], 2), round(after.knn.top1[k], 2)
    return found


def fallen(figures: Mapping[str, tuple[float, float]]) -> list[str]:
    """The figures that dropped by more than a point: the cost of the adaptation."""
    return [name for name, (before, after) in figures.items() if after < before - _NOISE]


def quality_of(figures: Mapping[str, tuple[float, float]], record: Mapping[str, Any], held_out: int) -> dict[str, Any]:
    """The figures as a model's quality record."""
    decibels = record.get("reconstruction_after_db", record["reconstruction_db"])
    quality: dict[str, Any] = {"reconstruction": {"images": min(held_out, 64), "psnr_mean_of_images_db": decibels}}
    if figures:
        measured = {name: f"{after} % (before: {before} %)" for name, (before, after) in figures.items()}
        quality["held_out_pictures"] = {"images": held_out, **measured}
    return quality


def adaptation_page(
    name: str, record: Mapping[str, Any], figures: Mapping[str, tuple[float, float]], classes: Sequence[ClassShown]
) -> str:
    """The page as text. record: of the adaptation; classes: those to show, possibly none."""
    shown = [{"name": each.name, "sheets": list(_sheets(each))} for each in classes]
    losses = {int(step): loss for step, loss in record["held_out_losses"].items()}
    return render(
        Path(__file__).with_name("adapted.html"),
        name=name, record=record, figures=figures, classes=shown, method=_METHODS[record["method"]],
        curve=_curve(losses, record["best_step"]), best=record["best_step"], fell=fallen(figures),
        share=100 * record["trained_parameters"] / record["parameters"],
    )  # fmt: skip


def save_adaptation_page(
    path: PathLike, name: str, record: Mapping[str, Any], figures: Mapping[str, tuple[float, float]],
    classes: Sequence[ClassShown],
) -> None:  # fmt: skip
    """Write `adaptation_page` to a file, atomically. Raises OSError."""
    text = adaptation_page(name, record, figures, classes)
    with replacing(Path(path)) as file:
        file.write(text.encode())


def _sheets(each: ClassShown) -> list[tuple[str, str, int]]:
    """Caption, picture and width in percent of each sheet; all pictures have the same size."""
    parts = (("yours, held out", each.real), ("before", each.before), ("after", each.after))
    most = max(len(pictures) for _, pictures in parts)
    return [(caption, _sheet(pictures), 100 * len(pictures) // most) for caption, pictures in parts if pictures]


def _sheet(pictures: Sequence[Image.Image]) -> str:
    return picture_url(contact_sheet(pictures, len(pictures), gap=1))


def _curve(losses: Mapping[int, float], best: int) -> dict[str, Any] | None:
    """The held-out losses as a line in a box of 100 x 100, with axis labels; None for fewer than two.

    `points` of the line, `levels` (loss, position from the top) and `steps` (step, position from the left) of the axes,
    and the position of the `best` step.
    """
    if len(losses) < 2:
        return None
    last, low, high = max(losses), min(losses.values()), max(losses.values())
    points = [(100 * step / last, 100 * (high - loss) / (high - low or 1)) for step, loss in sorted(losses.items())]
    halves = (0, 50, 100)
    return {
        "points": " ".join(f"{x:.2f},{y:.2f}" for x, y in points),
        "levels": [(f"{high - (high - low) * place / 100:.4f}", place) for place in (halves if high > low else (0,))],
        "steps": [(round(last * place / 100), place) for place in halves],
        "best": 100 * best / last,
    }
