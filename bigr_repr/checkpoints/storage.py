"""Reads and writes the files of a model folder. Knows nothing of what the tensors mean."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bigr_repr.checkpoints.catalog import CONFIG_FILE, GENERATOR_FILE, holds_model
from bigr_repr.system.files import naming, sync_file, sync_folder

STORED: Final = (torch.float16, torch.bfloat16, torch.float32)  # number types that `load` reads


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, by name. Raises OSError for a file that cannot be opened, ValueError for a damaged one."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; download or copy the whole folder again")
    with path.open("rb"):  # raises a plain OSError for an unreadable file
        pass
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # the parser raises its own error and several others
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error}); download the folder again") from error


def check_folder(target: Path, files: Collection[str]) -> bool:
    """Check whether `files` of a model may be written to a folder: one that is new, empty, or holds a model.

    Returns whether it holds a model. Raises FileExistsError for anything else, and for a whole model that `files` would
    leave without its generator.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not holds_model(target):
        raise FileExistsError(f"{target} exists and is not a model folder; choose another folder, or remove it")
    if GENERATOR_FILE not in files and (target / GENERATOR_FILE).exists():
        raise FileExistsError(
            f"{target} holds a whole model, not only a tokenizer; choose another folder, or remove it"
        )
    return True


def write_folder(target: Path, parts: Mapping[str, Mapping[str, Tensor]], config: str) -> Path:
    """Write a folder of config.json and one safetensors file per part, as `save` documents. Returns its full path."""
    target, files = target.resolve(), (*parts, CONFIG_FILE)
    occupied = check_folder(target, files)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    with naming(target, staging):
        staging.mkdir()
        try:
            with naming(target / CONFIG_FILE, staging):
                (staging / CONFIG_FILE).write_text(config, encoding="utf-8")
            for file, state in parts.items():
                with naming(target / file, staging):
                    _write_safetensors(staging / file, state)
                shutil.copymode(staging / CONFIG_FILE, staging / file)  # safetensors creates files for the owner only
            for file in files:
                with naming(target / file, staging):
                    sync_file(staging / file)
            _put(target, staging, files if occupied else ())
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _put(target: Path, staging: Path, files: Collection[str]) -> None:
    """Move complete files to where they belong: each of `files` into a folder that holds a model, or a new folder."""
    if files:
        for file in files:
            with naming(target / file, staging):
                (staging / file).replace(target / file)
        sync_folder(target)
    else:
        sync_folder(staging)
        if target.exists():
            target.rmdir()  # empty; not every system can rename over it
        staging.rename(target)
    sync_folder(target.parent)


def _write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    content = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    safetensors.torch.save_file(content, path, metadata={"format": "pt"})


def state_in(module: nn.Module, store_dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Weights in `store_dtype`. Raises ValueError if it is not one of STORED or None, or a weight not finite in it."""
    if store_dtype is not None and store_dtype not in STORED:
        known = ", ".join(map(str, STORED))
        raise ValueError(f"store_dtype={store_dtype!r} cannot hold weights; choose {known}, or None")
    state = {}
    for key, value in module.state_dict().items():
        state[key] = value if store_dtype is None else value.to(store_dtype)
        if state[key].dtype != value.dtype and not state[key].isfinite().all():
            found = f"{key} reaches {value.abs().max().item():.3g}, which is not finite in store_dtype={store_dtype}"
            raise ValueError(f"{found}; use torch.bfloat16")
    return state
