"""Adapts a trained model to a user's pictures. Knows nothing of probes or pages."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import CONFIG_FILE, config_text
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.config import require
from bigr_repr.datasets import ImageSet, open_images, stratified_split
from bigr_repr.datasets.subset import Subset
from bigr_repr.images.parquet import USUAL_COLUMNS, Columns
from bigr_repr.system.files import replacing
from bigr_repr.train.adapt_folder import check_free
from bigr_repr.train.adapt_job import ADAPTER, AdaptJob, OnProgress
from bigr_repr.train.adapt_recipe import AdaptRecipe
from bigr_repr.train.distributed import on_main_process, processes

log = logging.getLogger(__name__)
_FEWEST = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """An adapted model: its folder, its adapter's folder (None for "full"), and a record of the training.

    `kept` and `held_out` are row numbers of the training images and of the others. `record` is plain data.
    """

    folder: Path
    adapter: Path | None
    before: Pretrained
    after: Pretrained
    images: ImageSet
    kept: NDArray[np.int64]
    held_out: NDArray[np.int64]
    record: dict[str, Any]


def adapt(
    images: ImageSet | PathLike | Sequence[PathLike],
    *,
    model: str,
    out: PathLike,
    recipe: AdaptRecipe | None = None,
    name: str | None = None,
    precision: str = "auto",
    cpu: bool = False,
    columns: Columns = USUAL_COLUMNS,
    on_progress: OnProgress = lambda what, done, total: None,
    report: Callable[[Adapted], None] = lambda made: None,
) -> Adapted:
    """Adapt a model to your pictures, and write it to the new folder `out`, which `load` takes.

    images: as for `open_images`; with labels, classes are learned. model: as for `load`. name: of the new model, by
    default the folder's. columns: of Parquet files. `on_progress(what, done, total)` reports progress. `report(made)`,
    called on the main process, may add files to the model's folder, `made.folder`, before that becomes `out`.

    To resume a run that was stopped at any point, during the report too, repeat the call with the same images, model
    and recipe, except for its minutes and patience. Until it ends, its files are in a hidden folder next to `out`.
    Processes launched together (torchrun) split each batch and return the same model.
    Raises ValueError for unusable pictures, a batch of more than there are, or a rank above the model's width;
    FileExistsError if `out` is not empty; RuntimeError while another process adapts into it; TrainingError if another
    run into it was interrupted, and, including RunStoppedError, as `bigr_repr.train.loop.train` does.
    """
    recipe, out = recipe or AdaptRecipe(), Path(out).absolute()
    check_free(out)
    source = _without_empty_labels(images if isinstance(images, ImageSet) else open_images(images, columns=columns))
    kept, held_out = _split(source, recipe)
    with AdaptJob(out, model, source, recipe, on_progress, cpu=cpu) as job:
        after, record = job.run(kept, held_out, name or out.name, precision=precision)
        made = Adapted(
            folder=job.folder, adapter=None if recipe.method == "full" else job.folder / ADAPTER, before=job.start,
            after=after, images=source, kept=kept, held_out=held_out, record=record,
        )  # fmt: skip
        on_main_process(lambda: report(made))
        published = job.publish()
    return dataclasses.replace(made, folder=published, adapter=made.adapter and published / ADAPTER)


def note_quality(made: Adapted, quality: dict[str, Any]) -> None:
    """Add measurements to an adapted model's record, in its config.json."""
    config = dataclasses.replace(made.after.config, quality=quality)
    if processes().is_main_process:
        with replacing(made.folder / CONFIG_FILE) as file:
            file.write(config_text(config, made.after.fingerprint).encode())


def _without_empty_labels(images: ImageSet) -> ImageSet:
    """The images, without labels if none of them has one."""
    if images.labels is None or (images.labels >= 0).any():
        return images
    return Subset(images, np.arange(len(images)), None)


def _split(images: ImageSet, recipe: AdaptRecipe) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers to train on and to hold out, a share of each class; rows without a label are left out."""
    labels = images.labels
    if labels is None and recipe.method == "classes":
        raise ValueError('the pictures have no labels, and method="classes" learns nothing else; give class folders')
    rows = np.arange(len(images)) if labels is None else np.flatnonzero(labels >= 0)
    if len(rows) < _FEWEST:
        raise ValueError(f"{len(rows)} pictures are too few to adapt a model to; give at least {_FEWEST}")
    if len(rows) < len(images):
        log.warning("%d of %d pictures have no label and are left out", len(images) - len(rows), len(images))
    if labels is None:
        log.warning("the pictures have no classes (subfolders or labels): only unconditional drawing is adapted")
    elif len(np.unique(labels[rows])) == 1:
        log.warning("all pictures have the same class, so features are not measured")
    groups = np.zeros(len(rows), np.int64) if labels is None else labels[rows]
    single = [value for value, count in zip(*np.unique(groups, return_counts=True), strict=True) if count < 2]
    if single:
        names = ", ".join(images.class_names[value] if images.class_names else str(value) for value in single[:3])
        raise ValueError(f"{len(single)} classes have only one picture ({names}); give each at least 2")
    kept, held_out = stratified_split(groups, recipe.held_out, np.random.default_rng(recipe.seed))
    limit = f"choose at most {len(kept)}, the number of pictures to train on ({len(held_out)} others are held out)"
    require((recipe.batch_size or 1) <= len(kept), "batch_size", recipe.batch_size, limit)
    return rows[kept], rows[held_out]
