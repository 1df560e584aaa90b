"""Adapters: small folders with the changes that an adaptation made to a model. Knows nothing of training.

The folder contains `adapter.json` (the adapted model's configuration, and its base model), `classes.safetensors` (the
class table: reused rows and new rows), the files of peft if matrices changed (`adapter_config.json` and
`adapter_model.safetensors`, low-rank), and `tokenizer.safetensors` if the tokenizer changed.
"""

# D width, C classes, r rank

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bigr_repr.checkpoints.catalog import ADAPTER_FILE, TOKENIZER_FILE
from bigr_repr.checkpoints.storage import read_safetensors
from bigr_repr.config import ModelConfig
from bigr_repr.system.records import reading_record
from bigr_repr.system.sums import SUMS, check_sums, read_sums

CLASSES_FILE: Final = "classes.safetensors"
LOW_RANK_SETTINGS: Final = "adapter_config.json"  # peft's names
LOW_RANK_FILE: Final = "adapter_model.safetensors"
CLASS_TABLE: Final = "transformer.cls_embedding.embedding_table.weight"

_FORMAT: Final = "bigr-repr adapter 1"
_REMEDY: Final = "copy the whole adapter again, or make a new one: bigr-repr adapt"
_PREFIX: Final = "base_model.model."
_DOWN: Final = ".lora_A.weight"
_UP: Final = ".lora_B.weight"
_FILES: Final = (ADAPTER_FILE, CLASSES_FILE, LOW_RANK_SETTINGS, LOW_RANK_FILE, TOKENIZER_FILE)  # all that is read
_LARGEST: Final = 1_000_000  # lora_alpha
_SHOWN: Final = 4  # names in a message
_PLAIN: Final = ("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


@dataclass(frozen=True, kw_only=True)
class AdapterHeader:
    """Content of `adapter.json`: the adapted model's configuration, and the base model's name and fingerprint."""

    config: ModelConfig
    base: str
    base_sha256: str


def split_name(name: str) -> tuple[str, Path] | None:
    """Split "BASE+FOLDER" into a model's name and an adapter's folder; None for other names.

    Raises ValueError for an empty FOLDER.
    """
    base, plus, folder = name.rpartition("+")
    if not plus or not base or Path(name).expanduser().is_dir():
        return None
    if not folder:  # it would be the current one
        raise ValueError(f"model={name!r} names no adapter after the +; give its folder, or the model alone: {base}")
    return base, Path(folder).expanduser()


def header_text(config: ModelConfig, *, base: str, base_sha256: str) -> str:
    """The text of `adapter.json`."""
    record = {"format": _FORMAT, "base": base, "base_sha256": base_sha256, "model": config.to_dict()}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def read_header(folder: Path) -> AdapterHeader:
    """The header of an adapter. Raises FileNotFoundError if there is none, ValueError if it is damaged."""
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not an adapter, as it has no {ADAPTER_FILE}; make one: bigr-repr adapt")
    with reading_record(path, remedy=_REMEDY) as record:
        if record.get("format") != _FORMAT:
            raise ValueError(f"format={record.get('format')!r} is unknown, this version reads {_FORMAT!r}")
        config = ModelConfig.from_dict(record["model"])
        return AdapterHeader(config=config, base=str(record["base"]), base_sha256=str(record["base_sha256"]))


def check_base(header: AdapterHeader, folder: Path, *, name: str, fingerprint: str) -> None:
    """Raises ValueError unless the model is the one that the adapter was made for."""
    if fingerprint != header.base_sha256:
        raise ValueError(
            f"the adapter {folder} belongs to {header.base} (SHA-256 {header.base_sha256[:12]}…); {name} is another "
            f"model (SHA-256 {fingerprint[:12]}…): load it as {header.base}+{folder}"
        )


def check_files(folder: Path) -> None:
    """Check the files of an adapter against its sha256.json; adapters of older versions have none.

    Raises ValueError, naming it, for a file that is damaged or missing, or that would be read but is not listed.
    """
    check_sums(folder)
    listed = read_sums(folder) if (folder / SUMS).exists() else _FILES
    for name in _FILES:
        if (folder / name).exists() and name not in listed:
            raise ValueError(f"{folder / name} is not listed in {SUMS}, so it is not of this adapter; remove it")


def adapted_state(base: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """A generator's weights with an adapter's changes: new tensors where they change, otherwise those of `base`.

    Raises FileNotFoundError for a missing file, ValueError, naming the file, for one that is damaged or does not fit.
    """
    state = dict(base)
    with _naming(folder / CLASSES_FILE) as path:
        classes = read_safetensors(path)
        _check_names(classes, {"taken", "rows"})
        state[CLASS_TABLE] = class_table(base[CLASS_TABLE], classes["taken"], classes["rows"])
    settings, weights = folder / LOW_RANK_SETTINGS, folder / LOW_RANK_FILE
    for path, other in ((settings, weights), (weights, settings)):
        if other.exists() and not path.exists():
            raise FileNotFoundError(f"{path} is missing, but {other.name} is there; copy the whole adapter again")
    if weights.exists():
        with reading_record(settings, remedy=_REMEDY) as found:
            rank, scale = _rank_and_scale(found)
        with _naming(weights) as path:
            state |= _low_rank(base, read_safetensors(path), rank, scale)
    return state


@contextmanager
def _naming(path: Path) -> Iterator[Path]:
    """Name the file in a ValueError about its content."""
    try:
        yield path
    except ValueError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {said}") from error


def _check_names(state: Mapping[str, Tensor], names: Set[str]) -> None:
    if state.keys() != names:
        wrong = ", ".join(sorted(state.keys() ^ names)[:_SHOWN])
        raise ValueError(f"tensors are missing or not expected: {wrong}; copy the whole adapter again")


def _rank_and_scale(settings: Mapping[str, Any]) -> tuple[int, float]:
    """The rank of an adapter's matrices, and what their product is multiplied by, from peft's settings."""
    unusual = [name for name in _PLAIN if settings.get(name)]
    if settings.get("peft_type") != "LORA" or unusual or settings.get("bias", "none") != "none":
        said = ", ".join(unusual) or f"peft_type={settings.get('peft_type')!r}, bias={settings.get('bias')!r}"
        raise ValueError(f"an adapter with {said} is not supported; only plain LoRA is")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"r={rank!r} is not a rank, an integer of at least 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST:
        raise ValueError(f"lora_alpha={alpha!r} is not a number below {_LARGEST:,}")
    return rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _low_rank(base: Mapping[str, Tensor], found: Mapping[str, Tensor], rank: int, scale: float) -> dict[str, Tensor]:
    """The matrices that low-rank tensors change: base + scale * up (out, r) @ down (r, in)."""
    matrices = sorted(name.removesuffix(_DOWN) for name in found if name.endswith(_DOWN))
    _check_names(found, {matrix + end for matrix in matrices for end in (_DOWN, _UP)})
    state = {}
    for matrix in matrices:
        up, down, name = found[matrix + _UP], found[matrix + _DOWN], matrix.removeprefix(_PREFIX) + ".weight"
        shapes = tuple(up.shape), tuple(down.shape)
        if name not in base or shapes != ((base[name].shape[0], rank), (rank, *base[name].shape[1:])):
            raise ValueError(f"{name} of the adapter, {shapes[0]} x {shapes[1]} of rank {rank}, does not fit the model")
        state[name] = base[name].float() + scale * (up.float() @ down.float())
    return state


def class_table(base: Tensor, taken: Tensor, rows: Tensor) -> Tensor:
    """The table (C + 1, D) of rows from `base` and, where `taken` (C + 1,) is -1, of `rows` in their order."""
    listed = taken.ndim == 1 and len(taken) > 0 and taken.dtype == torch.int64 and int(taken.max()) < len(base)
    if not listed or rows.shape[1:] != base.shape[1:] or int((taken < 0).sum()) != len(rows):
        raise ValueError(f"the adapter's classes ({len(rows)} rows) do not fit the model's table {tuple(base.shape)}")
    table = base[taken.clamp(min=0)].clone().float()
    table[taken < 0] = rows.float()
    return table


def with_classes(config: ModelConfig, names: tuple[str, ...], how: str) -> tuple[ModelConfig, Tensor]:
    """A configuration with classes added to those of a model, or replacing them.

    Also returns, for each row of the new table, "no class" last, the row of the old one it reuses: int64 (C + 1,), -1
    for a new class. Classes with the same name are the same class.
    """
    own = config.class_names or tuple(f"class {number}" for number in range(config.generator.classes))
    wanted = names if how == "replace" else (*own, *(name for name in names if name not in own))
    where = {name: row for row, name in enumerate(own)}
    taken = torch.tensor([*(where.get(name, -1) for name in wanted), config.generator.classes])
    generator = dataclasses.replace(config.generator, classes=len(wanted))
    return dataclasses.replace(config, generator=generator, class_names=wanted), taken
