"""What a model is, in numbers and words, for people. Downloads and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints import adapters, catalog, hub, released
from bigr_repr.checkpoints.pretrained import empty_modules, load
from bigr_repr.config import ModelConfig, preset, preset_names

__all__ = ["Description", "Parameters", "count_parameters", "describe"]


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
    if (found := hub.parse_folder_name(text)) is not None:
        location = str(hub.fetch_folder(found, local_files_only=True))
        name = location
    elif text.startswith("hf:") and adapters.split_name(text) is None:
        _, variant = released.parse_hub_name(text)
        if not released.in_cache(text):
            config = catalog.released_config(variant)
            location = "not downloaded; load fetches it"
            return Description(config=config, parameters=count_parameters(config), fingerprint=None, location=location)
        location = "the hub's cache"
    elif text in preset_names() and not Path(text).is_dir():
        config = preset(text)
        location = "none: a preset to train"
        return Description(config=config, parameters=count_parameters(config), fingerprint=None, location=location)
    elif (parts := adapters.split_name(text)) is not None:
        location = f"{describe(parts[0]).location}, adapter {parts[1]}"
    else:
        location = str(catalog.find_folder(name))
    pre = load(name)
    counts = count_parameters(pre.config)
    return Description(config=pre.config, parameters=counts, fingerprint=pre.fingerprint, location=location)
