"""Reads and writes the files of a model folder. Knows nothing of what the tensors mean."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bigr_repr.checkpoints.catalog import CONFIG_FILE
from bigr_repr.system.files import naming, sync_file, sync_folder


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, by name. Raises OSError for a file that cannot be opened, ValueError for a damaged one."""
    with path.open("rb"):  # raises a plain OSError for a missing or unreadable file
        pass
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # the parser raises its own error and several others
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error}); download the folder again") from error


def write_folder(target: Path, parts: Mapping[str, Mapping[str, Tensor]], config: str) -> Path:
    """Write a folder of config.json and one safetensors file per part, as `save` documents. Returns its full path."""
    target = target.resolve()
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (target / CONFIG_FILE).is_file():
        raise FileExistsError(f"{target} exists and is not a model folder; choose another folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    staging.mkdir()
    try:
        with naming(target / CONFIG_FILE, staging):
            (staging / CONFIG_FILE).write_text(config, encoding="utf-8")
        for file, state in parts.items():
            with naming(target / file, staging):
                _write_safetensors(staging / file, state)
            shutil.copymode(staging / CONFIG_FILE, staging / file)  # safetensors creates files for the owner only
        files = (*parts, CONFIG_FILE)
        for file in files:
            with naming(target / file, staging):
                sync_file(staging / file)
        if occupied:
            for file in files:
                (staging / file).replace(target / file)
            sync_folder(target)
        else:
            sync_folder(staging)
            if target.exists():
                target.rmdir()  # empty; not every system can rename over it
            staging.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    content = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    safetensors.torch.save_file(content, path, metadata={"format": "pt"})


def state_in(module: nn.Module, store_dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Weights in `store_dtype`. Raises ValueError if one is not finite in it."""
    state = {}
    for key, value in module.state_dict().items():
        state[key] = value if store_dtype is None else value.to(store_dtype)
        if state[key].dtype != value.dtype and not state[key].isfinite().all():
            found = f"{key} reaches {value.abs().max().item():.3g}, which is not finite in store_dtype={store_dtype}"
            raise ValueError(f"{found}; use torch.bfloat16")
    return state
