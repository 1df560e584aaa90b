"""What adaptation gains on two domains the model never saw: full, low-rank and class-only training compared.

    python benchmarks/adapt.py                                # 60 pictures per class, 120 steps of 32
    python benchmarks/adapt.py --domains strokes --methods lora --pictures 15 --test 10 --steps 20   # a quick trial

digits: scikit-learn's handwritten digits, 8 x 8 pixels enlarged; one part to adapt to, the rest to test on.
strokes: six kinds of line drawings (circle, triangle, star, spiral, zigzag, cross) with random position, size, width
and colors, generated here from a seed; the test pictures use another seed. The bundled models were trained on
photographs only.

Measured for each method: trained parameters, processor minutes of training, held-out loss, and linear probe and 20-NN
before and after, on test pictures that took no part in the adaptation. "lora-free" is lora without the loss that
anchors the features (--anchor 0). Its 20-NN on held-out pictures at its last step, whichever step was kept, shows what
learning to draw does to the features.

Writes benchmarks/results/adapt.json after each row, and adapt_DOMAIN.png, a sheet of --drawn pictures per class.

Expected: the loss falls most when all weights are trained and least with classes alone, whose features do not change;
low-rank training comes close to full training with a twentieth of the parameters. 20-NN falls by at most a few points,
except at the last step of lora-free on strokes. About 10 processor minutes per domain, on one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record
from PIL import Image, ImageDraw

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.datasets import DigitsSet, ImageSet, JoinedSet
from bigr_repr.datasets.subset import Subset
from bigr_repr.evaluate.reports.adapted import figures_of
from bigr_repr.evaluate.runs.adapted import compare_models
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.images.sheets import contact_sheet
from bigr_repr.train import Adapted, AdaptRecipe, adapt
from bigr_repr.train.shown import class_pictures, held_out_pictures, subjects

KINDS = ("circle", "triangle", "star", "spiral", "zigzag", "cross")
SIDE = 96
METHODS: dict[str, dict[str, Any]] = {
    "classes": {},
    "lora": {},
    "lora-free": {"method": "lora", "anchor": 0.0},
    "full": {},
}


class Strokes(ImageSet):
    """`count` drawings of each kind."""

    class_names = KINDS

    def __init__(self, count: int, seed: int) -> None:
        self._seed, self.labels = seed, np.repeat(np.arange(len(KINDS)), count)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        random = np.random.default_rng([self._seed, index])
        dark, light = random.integers(0, 90, 3), random.integers(150, 256, 3)
        image = Image.new("RGB", (SIDE, SIDE), tuple(dark.tolist()))
        center, size = random.uniform(0.4, 0.6, 2) * SIDE, random.uniform(0.22, 0.38) * SIDE
        turn, width = random.uniform(0, 2 * math.pi), int(random.integers(3, 8))
        points = [(center[0] + size * x, center[1] + size * y) for x, y in _outline(KINDS[self.labels[index]], turn)]
        ImageDraw.Draw(image).line(points, fill=tuple(light.tolist()), width=width, joint="curve")
        return image

    def fingerprint(self) -> str:
        return f"{'strokes':x<30}{self._seed:010d}{len(self):024d}"


def _outline(kind: str, turn: float) -> list[tuple[float, float]]:
    """Points of the drawing's line, inside the unit circle, rotated by `turn`."""
    polar = {
        "circle": [(1.0, a / 40) for a in range(41)],
        "triangle": [(1.0, a / 3) for a in range(4)],
        "star": [(1.0, 2 * a / 5) for a in range(6)],
        "spiral": [(a / 60, a / 24) for a in range(61)],
        "cross": [(1.0, 0.0), (1.0, 0.5), (0.0, 0.0), (1.0, 0.25), (1.0, 0.75)],
    }
    if kind == "zigzag":
        flat = [(-1 + a / 3, (-1) ** a * 0.35) for a in range(7)]
        return [(x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)) for x, y in flat]
    return [(r * math.cos(2 * math.pi * a + turn), r * math.sin(2 * math.pi * a + turn)) for r, a in polar[kind]]


def first_of_each(images: ImageSet, count: int) -> ImageSet:
    """The first `count` pictures of each class."""
    assert images.labels is not None
    rows = np.concatenate([np.flatnonzero(images.labels == label)[:count] for label in np.unique(images.labels)])
    return Subset(images, np.sort(rows), images.labels[np.sort(rows)], images.class_names)


def domain(name: str, count: int, test: int) -> tuple[ImageSet, ImageSet]:
    """Pictures to adapt to, and pictures to test on."""
    if name == "digits":
        return first_of_each(DigitsSet(), count), first_of_each(DigitsSet(train=False), test)
    return Strokes(count, 0), Strokes(test, 1)


def row(made: Adapted, model: str, images: ImageSet, test: ImageSet) -> dict[str, Any]:
    """One row of the table."""
    both, first = JoinedSet([images, test]), len(images)
    kept, tested = np.arange(first), np.arange(first, len(both))
    figures = figures_of(compare_models((model, str(made.folder)), both, kept, tested, BenchSettings(k=(20,))))
    facts = made.record
    names = ("trained_parameters", "parameters", "steps", "best_step", "batch_size", "learning_rate")
    more = ("precision", "training_cpu_minutes", "ended_by", "reconstruction_db", "recorded_db")
    found = {name: facts[name] for name in (*names, *more)}
    found |= {"anchor": facts["anchor"], "held_out_20nn": list(facts["held_out_neighbors"].values())}
    found |= {"held_out_loss": list(facts["held_out_loss"].values()), "images": len(images), "test_images": len(test)}
    if made.adapter is not None:
        found["adapter_bytes"] = sum(file.stat().st_size for file in made.adapter.iterdir())
    return found | {name.replace(" ", "_"): list(pair) for name, pair in figures.items()}


def sheet(made: dict[str, Adapted], path: Path, count: int) -> None:
    """A row per class: pictures of the domain, then pictures drawn before adapting and after each method."""
    first = next(iter(made.values()))
    before, tiles = class_pictures(first.before, None, count), []
    for number, subject in enumerate(subjects(first, 10)):
        tiles += [*held_out_pictures(first, subject.rows[:count]), *before]
        for each in made.values():
            tiles += class_pictures(each.after, subjects(each, 10)[number].after, count)
    contact_sheet(tiles, (2 + len(made)) * count, gap=2).save(path)


def kept(given: argparse.Namespace) -> dict[str, Any]:
    """The record's rows of other domains, if it used the same model and number of pictures."""
    file = record.RESULTS / "adapt.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    weights = found.get("model", {}).get("fingerprint"), found.get("pictures_a_class")
    if weights != (record.load(given.model).fingerprint, given.pictures):
        return {}
    return {name: rows for name, rows in found["domains"].items() if name not in given.domains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--domains", nargs="+", default=["digits", "strokes"], choices=["digits", "strokes"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--pictures", type=int, default=60, help="per class, including the held-out ones")
    parser.add_argument("--test", type=int, default=40, help="test pictures per class")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=600.0, help="maximum training time of each method")
    parser.add_argument("--drawn", type=int, default=2, help="pictures per class on the sheet; 0: no sheet")
    given = parser.parse_args()
    results: dict[str, Any] = {"pictures_a_class": given.pictures, "domains": kept(given)}
    for name in given.domains:
        images, test = domain(name, given.pictures, given.test)
        made: dict[str, Adapted] = {}
        rows: list[dict[str, Any]] = []
        results["domains"][name] = rows
        with tempfile.TemporaryDirectory(prefix="adapt-") as folder:
            for method in given.methods:
                chosen: dict[str, Any] = {"method": method, **METHODS[method]}
                recipe = AdaptRecipe(
                    steps=given.steps, batch_size=given.batch_size, minutes=given.minutes, mirror=name != "digits",
                    **chosen,
                )  # fmt: skip
                made[method] = adapt(images, model=given.model, out=Path(folder) / method, recipe=recipe)
                rows.append({"method": method, **row(made[method], given.model, images, test)})
                record.write("adapt", results, made[method].before)
            if given.drawn:
                sheet(made, record.RESULTS / f"adapt_{name}.png", given.drawn)


if __name__ == "__main__":
    main()
