"""A model's card, with pictures drawn by the model. Knows nothing of publishing."""

from __future__ import annotations

import io
from pathlib import Path

from bigr_repr.checkpoints.card import model_card
from bigr_repr.checkpoints.classes import has_classes
from bigr_repr.checkpoints.description import count_parameters
from bigr_repr.checkpoints.hub import CARD_FILE, published_files
from bigr_repr.checkpoints.pretrained import Pretrained, load
from bigr_repr.images.sheets import contact_sheet
from bigr_repr.train.shown import class_pictures

_SAMPLES = "samples.png"
_IN_A_ROW = 8


def card_and_pictures(
    folder: Path, repository: str, *, license: str | None = None, samples: int = 8
) -> tuple[str, dict[str, bytes]]:
    """The card of a model folder (its README.md, if it has one) and its pictures, {name: PNG}.

    Raises as `load` does, and FileNotFoundError for a folder that cannot be published.
    """
    published_files(folder)
    model = load(folder)
    pictures = {_SAMPLES: sample_sheet(model, samples)} if samples else {}
    if (folder / CARD_FILE).is_file():
        return (folder / CARD_FILE).read_text(encoding="utf-8"), pictures
    text = model_card(
        model.config, repository=repository, fingerprint=model.fingerprint, license=license,
        parameters=sum(count_parameters(model.config)), pictures=dict.fromkeys(pictures, "Drawn by the model"),
    )  # fmt: skip
    return text, pictures


def sample_sheet(pre: Pretrained, count: int) -> bytes:
    """A PNG of `count` pictures drawn by a model, of classes spread over all it has."""
    classes, found = pre.config.generator.classes, []
    labeled = has_classes(pre.config) and pre.config.generator.condition == "class"
    for number in range(count):
        found += class_pictures(pre, number * classes // count if labeled else None, 1, seed=number)
    opened = io.BytesIO()
    contact_sheet(found, min(_IN_A_ROW, count)).save(opened, "PNG")
    return opened.getvalue()
