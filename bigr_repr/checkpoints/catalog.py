"""The known models, the location of their files, and config.json of model folders. Knows nothing of tensors."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bigr_repr._typing import PathLike
from bigr_repr.config import ModelConfig, TokenizerConfig, from_fields, preset, preset_names
from bigr_repr.system.records import reading_record
from bigr_repr.system.sums import reading_sealed, sealed

DEFAULT_MODEL: Final = "bigr-tiny-aligned"  # bundled: available without a download
ASSETS = Path(__file__).parents[1] / "assets"
CONFIG_FILE = "config.json"
EXPORT_FILE: Final = "export.json"  # of an exported network: bigr_repr.features.exported
TOKENIZER_FILE = "tokenizer.safetensors"
GENERATOR_FILE = "generator.safetensors"
ADAPTER_FILE = "adapter.json"
RELEASE_REPOSITORY = "haoosz/BiGR"
HUB_PAGE = "https://huggingface.co/{}"

_FORMAT = 1
_REMEDY: Final = "copy the model again, or install a newer bigr-repr"
_PREPROCESSING = {"resize": "shorter side to image_size, box then bicubic", "crop": "centre", "range": [0, 1]}

ModelKind = Literal["bundled", "released", "preset"]


@dataclass(frozen=True, kw_only=True)
class Released:
    """One variant of the authors' release: its preset, and its two files in their repository."""

    preset: str
    tokenizer: str
    generator: str


_D24 = "bae/bae_d24/binaryae_ema_1000000.th"
_D32 = "bae/bae_d32/binaryae_ema_950000.th"
_D32_512 = "bae/bae_d32_512/binaryae_ema_720000.th"

RELEASED = {
    "L-d24": Released(preset="L-d24", tokenizer=_D24, generator="gpt/bigr_L_d24.pt"),
    "XL-d24": Released(preset="XL-d24", tokenizer=_D24, generator="gpt/bigr_XL_d24.pt"),
    "XXL-d24": Released(preset="XXL-d24", tokenizer=_D24, generator="gpt/bigr_XXL_d24.pt"),
    "XXL-d32": Released(preset="XXL-d32", tokenizer=_D32, generator="gpt/bigr_XXL_d32.pt"),
    "L-d32-512": Released(preset="L-512-d32", tokenizer=_D32_512, generator="gpt/bigr_L_d32_512.pt"),
}

# SHA-256 of released files, where known.
RELEASED_SHA256: Final = {
    "gpt/bigr_XL_d24.pt": "694cc5ea2a74dd2b5235a98db2914827c30e6f98e9577ca5fb595fe63082bb3c",
    "gpt/bigr_XXL_d24.pt": "0c5017f51d6cae218d3717286d89ee974c962a9a03c78ad4f0fdd529170aaef8",
    "gpt/bigr_XXL_d32.pt": "3ca9c1fdd0d745963db3c1ac335a7befff12f8d6cf9c3660b361a170a517d4e3",
    _D32: "df91b218c957756a80b2618941757a35d314b729625997e38421d636dc0c6607",
}

RELEASE_TRAINING = {
    "data": "ImageNet-1k (ILSVRC 2012)",
    "terms": "ImageNet is for non-commercial research and education; for the weights see the source page",
    "source": HUB_PAGE.format(RELEASE_REPOSITORY),
    "paper": "BiGR, arXiv 2410.14672",
}


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A known model. `name` is what `load` takes; a "preset" is an architecture without weights."""

    name: str
    kind: ModelKind
    config: ModelConfig


def released_config(variant: str) -> ModelConfig:
    """The configuration of a released variant as far as known without its files, hence without class names."""
    config = preset(RELEASED[variant].preset)
    return dataclasses.replace(config, name=f"bigr-{variant}", training=RELEASE_TRAINING)


@functools.cache
def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in label order, each with its synonyms: "tench, Tinca tinca"."""
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo("imagenet-1k")
    return tuple(info.label_descriptions())


def bundled_folders() -> dict[str, Path]:
    """Model folders inside the package, by name."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob(f"*/{CONFIG_FILE}"))}


def available_models() -> tuple[ModelEntry, ...]:
    """All known models: bundled models, the authors' release, presets. Reads only the bundled configurations."""
    bundled = [
        ModelEntry(name=name, kind="bundled", config=read_config(folder)[0])
        for name, folder in bundled_folders().items()
    ]
    released = [
        ModelEntry(name=f"hf:{RELEASE_REPOSITORY}/{variant}", kind="released", config=released_config(variant))
        for variant in RELEASED
    ]
    presets = [ModelEntry(name=name, kind="preset", config=preset(name)) for name in preset_names()]
    return (*bundled, *released, *presets)


def config_text(config: ModelConfig | TokenizerConfig, fingerprint: str) -> str:
    """The text of config.json for a model's or tokenizer's folder. `fingerprint` is that of the weights next to it."""
    architecture = config.to_dict() if isinstance(config, ModelConfig) else {"tokenizer": dataclasses.asdict(config)}
    record = {
        "format": _FORMAT,
        **architecture,
        "preprocessing": _PREPROCESSING,
        "weights_sha256": fingerprint,
    }
    return json.dumps(sealed(record), indent=2, ensure_ascii=False) + "\n"


def read_config(folder: Path) -> tuple[ModelConfig, str | None]:
    """The configuration in a model folder, and the fingerprint recorded for its weights, if any.

    Raises FileNotFoundError if there is no config.json, and ValueError, naming the file, if it cannot be used.
    """
    with _reading(folder) as (record, fingerprint):
        if "tokenizer" not in record or "generator" in record:
            return ModelConfig.from_dict(record), fingerprint
    raise ValueError(f"{folder} holds only a tokenizer; train a generator for it: bigr-repr train generator")


def read_tokenizer_config(folder: Path) -> tuple[TokenizerConfig, str | None]:
    """The same for a folder with only a tokenizer."""
    with _reading(folder) as (record, fingerprint):
        return from_fields(TokenizerConfig, record["tokenizer"], "tokenizer"), fingerprint


@contextmanager
def _reading(folder: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    path = folder / CONFIG_FILE
    if not path.is_file() and (folder / EXPORT_FILE).is_file():
        raise ValueError(f"{folder} is an exported network, only for embed, serve and search")
    if (folder / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"{folder} is an adapter, which loads onto its model: name it as MODEL+{folder}")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a model folder, as it has no {CONFIG_FILE}; see: bigr-repr models list")
    with reading_sealed(path, remedy=_REMEDY) as record:
        _check_format(record)
        fingerprint = record.pop("weights_sha256", None)
        if fingerprint is not None and not isinstance(fingerprint, str):
            raise ValueError(f"weights_sha256={fingerprint!r} is not text")
        yield record, fingerprint


def _check_format(record: dict[str, Any]) -> None:
    found = record.pop("format", _FORMAT)
    if found != _FORMAT:
        raise ValueError(f"format={found!r} is unknown, this version reads {_FORMAT}")
    preprocessing = record.pop("preprocessing", _PREPROCESSING)
    if preprocessing != _PREPROCESSING:
        raise ValueError(f"preprocessing={preprocessing!r} is unknown; this version does {_PREPROCESSING}")


def holds_model(folder: Path) -> bool:
    """Whether a folder's config.json is one of ours, of a model or a tokenizer; its weights may be damaged."""
    try:
        with reading_record(folder / CONFIG_FILE, remedy=_REMEDY) as record:
            from_fields(TokenizerConfig, record["tokenizer"], "tokenizer")
            return bool(record["tokenizer"])
    except (OSError, ValueError):
        return False


def find_folder(name: PathLike) -> Path:
    """The folder of a bundled model, or the folder of this path.

    Raises ValueError for an empty name or a file, FileNotFoundError, with what there is, for anything else.
    """
    if not str(name):  # it would be the current folder
        raise ValueError("model='' is empty; give a model's name or folder, see: bigr-repr models list")
    bundled = bundled_folders()
    if str(name) in bundled:
        return bundled[str(name)]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(
            f"model={str(name)!r} is a file; a model is a folder. For the authors' .th and .pt files: "
            "bigr-repr models import, or bigr_repr.load_official"
        )
    variant = str(name).removeprefix("bigr-")
    if variant in RELEASED:
        known = f"did you mean hf:{RELEASE_REPOSITORY}/{variant}?"
    else:
        known = f"bundled are {', '.join(bundled) or 'none'}; all: bigr-repr models list"
    raise FileNotFoundError(f"model={str(name)!r} is neither a bundled model nor a folder; {known}")
