"""What a model is, in numbers and words, for people. Downloads and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints import adapters, catalog, hub, released
from bigr_repr.checkpoints.pretrained import empty_modules, load
from bigr_repr.config import ModelConfig, preset, preset_names

__all__ = ["Description", "Parameters", "count_parameters", "describe"]


_PRESET: Final = "none: a preset to train"
_ABSENT: Final = "not downloaded; load fetches it"


class Parameters(NamedTuple):
    """Numbers of weights in the three parts of a model."""

    tokenizer: int
    transformer: int
    transcoder: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """The result of `describe`. `fingerprint` is None if no weights are available; `location` says where they are."""

    config: ModelConfig
    parameters: Parameters
    fingerprint: str | None
    location: str


def count_parameters(config: ModelConfig) -> Parameters:
    """Numbers of weights of an architecture, without creating them."""
    tokenizer, generator = empty_modules(config)
    modules = (tokenizer, generator.transformer, generator.head)
    return Parameters(*(sum(weight.numel() for weight in module.parameters()) for module in modules))


def describe(name: PathLike) -> Description:
    """Describe a model that `load` takes, or a preset. Downloads nothing.

    Raises as `load` does.
    """
    text = str(name)
    location = _location(text)
    if location in (_PRESET, _ABSENT):
        config = preset(text) if location == _PRESET else catalog.released_config(released.parse_hub_name(text)[1])
        return Description(config=config, parameters=count_parameters(config), fingerprint=None, location=location)
    pre = load(location if hub.parse_folder_name(text) is not None else name)
    counts = count_parameters(pre.config)
    return Description(config=pre.config, parameters=counts, fingerprint=pre.fingerprint, location=location)


def _location(name: str) -> str:
    """Where a model's weights are, without loading them. Raises as `load` does for a name that it does not know."""
    if (found := hub.parse_folder_name(name)) is not None:
        return str(hub.fetch_folder(found, local_files_only=True))
    if (parts := adapters.split_name(name)) is not None:
        return f"{_location(parts[0])}, adapter {parts[1]}"
    if name.startswith("hf:"):
        released.parse_hub_name(name)
        return "the hub's cache" if released.in_cache(name) else _ABSENT
    if name in preset_names() and not Path(name).is_dir():
        return _PRESET
    return str(catalog.find_folder(name))
