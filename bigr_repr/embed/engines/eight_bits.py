"""The 8-bit network of a data set: stored beside its rows, and never replaced while they are there.

Independent of inputs and of how rows are stored.
"""

# n images, S side in pixels

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bigr_repr.embed.dataset.parts import find_parts
from bigr_repr.embed.dataset.schema import Recipe
from bigr_repr.system.differences import differences
from bigr_repr.system.files import partial_name, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.features.exported.manifest import Manifest
    from bigr_repr.features.exported.model import ExportedModel

__all__ = ["NETWORK", "in_8_bits", "network_in_8_bits"]

NETWORK: Final = "network-int8"  # in the data set's folder
_REMEDY: Final = "choose another output folder, or overwrite it"


def in_8_bits(recipe: Recipe) -> Manifest:
    """The description of the 8-bit network for rows of a recipe, before it is made."""
    from bigr_repr.features.exported.manifest import Manifest

    return Manifest(
        config=recipe.config, weights=recipe.weights, layers=recipe.layers, pool=recipe.pool, to="openvino",
        precision="int8",
    )  # fmt: skip


@contextmanager
def network_in_8_bits(
    out: Path, recipe: Recipe, model: Pretrained, images: Tensor, *, overwrite: bool
) -> Iterator[tuple[ExportedModel, Callable[[], None]]]:
    """The model's network in 8 bits, with the tokenizer in float32, for OpenVINO: that in out, or a new one.

    Also yields a function that stores a new one in out, to be called once no rows of another are there; without that
    call, out stays as it is. recipe: of the rows. images: uint8 (n, 3, S, S), to calibrate a new one. overwrite: make a
    new one in any case. The folder must be locked.

    Raises ValueError if the network there is another model's, or is missing although its rows are there;
    FileExistsError if something else has its name; ImportError without OpenVINO.
    """
    from bigr_repr.features.exported.manifest import is_exported
    from bigr_repr.features.exported.model import load_exported
    from bigr_repr.features.exported.write import export_model

    folder = out / NETWORK
    if is_exported(folder) and not overwrite:
        kept = load_exported(folder)
        _check_same(folder, kept.manifest, in_8_bits(recipe))
        yield kept, lambda: None
        return
    if not overwrite and find_parts(out):
        raise ValueError(f"{folder}: the network that made the rows in {out} is missing; {_REMEDY}")
    _check_replaceable(folder)
    made = partial_name(folder)
    shutil.rmtree(made, ignore_errors=True)  # of an interrupted run
    try:
        network = export_model(
            made, model=model, layer=recipe.layers, pool=recipe.pool, to="openvino", precision="int8", calibrate=images
        )
        yield network, lambda: _put(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _check_same(folder: Path, kept: Manifest, wanted: Manifest) -> None:
    """Raise ValueError that says how a network differs from the one that a run needs."""
    before, after = (
        {"weights": each.weights, "layers": list(each.layers), "pool": each.pool, "precision": each.label}
        for each in (kept, wanted)
    )
    if found := differences(before, after):
        raise ValueError(f"{folder} is another network: {'; '.join(found)}; {_REMEDY}")


def _check_replaceable(folder: Path) -> None:
    """Raise FileExistsError for a path that holds anything but an exported network."""
    from bigr_repr.features.exported.manifest import exported_files

    if not folder.exists():
        return
    own = exported_files(folder) if folder.is_dir() else frozenset()
    others = [folder] if not folder.is_dir() else [each for each in folder.iterdir() if each.name not in own]
    if others:
        raise FileExistsError(f"{min(others)} is not part of a network in 8 bits; move it away, or choose another out")


def _put(made: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)
    sync_folder(folder.parent)
