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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bigr_repr.checkpoints.catalog import ADAPTER_FILE
from bigr_repr.config import ModelConfig

CLASSES_FILE: Final = "classes.safetensors"
LOW_RANK_SETTINGS: Final = "adapter_config.json"  # peft's names
LOW_RANK_FILE: Final = "adapter_model.safetensors"
CLASS_TABLE: Final = "transformer.cls_embedding.embedding_table.weight"

_FORMAT: Final = "bigr-repr adapter 1"
_PREFIX: Final = "base_model.model."
_PLAIN: Final = ("use_dora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")


@dataclass(frozen=True, kw_only=True)
class AdapterHeader:
    """Content of `adapter.json`: the adapted model's configuration, and the base model's name and fingerprint."""

    config: ModelConfig
    base: str
    base_sha256: str


def split_name(name: str) -> tuple[str, Path] | None:
    """Split "BASE+FOLDER" into a model's name and an adapter's folder; None for other names."""
    base, plus, folder = name.rpartition("+")
    if not plus or not base or Path(name).expanduser().is_dir():
        return None
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
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        if record.get("format") != _FORMAT:
            raise ValueError(f"format={record.get('format')!r} is unknown, this version reads {_FORMAT!r}")
        config = ModelConfig.from_dict(record["model"])
        return AdapterHeader(config=config, base=str(record["base"]), base_sha256=str(record["base_sha256"]))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def check_base(header: AdapterHeader, folder: Path, *, name: str, fingerprint: str) -> None:
    """Raises ValueError unless the model is the one that the adapter was made for."""
    if fingerprint != header.base_sha256:
        raise ValueError(
            f"the adapter {folder} belongs to {header.base} (SHA-256 {header.base_sha256[:12]}…); {name} is another "
            f"model (SHA-256 {fingerprint[:12]}…): load it as {header.base}+{folder}"
        )


def adapted_state(
    base: Mapping[str, Tensor],
    classes: Mapping[str, Tensor],
    low_rank: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> dict[str, Tensor]:
    """A generator's weights with an adapter's changes: new tensors where they change, otherwise those of `base`.

    classes: `taken` int64 (C + 1,), rows of the base's table, or -1 for the next of `rows` (n, D), float32. low_rank:
    peft's tensors, empty for an adapter of classes only. Raises ValueError if something does not fit.
    """
    state = dict(base)
    state[CLASS_TABLE] = class_table(base[CLASS_TABLE], classes["taken"], classes["rows"])
    if not low_rank:
        return state
    unusual = [name for name in _PLAIN if settings.get(name)]
    if settings.get("peft_type") != "LORA" or unusual or settings.get("bias", "none") != "none":
        said = settings.get("peft_type") if not unusual else ", ".join(unusual)
        raise ValueError(f"an adapter with {said} is not supported; only plain LoRA is")
    rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    for name, down in low_rank.items():
        if not name.endswith(".lora_A.weight"):
            continue
        matrix = name.removeprefix(_PREFIX).replace(".lora_A.weight", ".weight")
        up = low_rank[name.replace(".lora_A.", ".lora_B.")]
        if matrix not in base or base[matrix].shape != (up.shape[0], down.shape[1]):
            raise ValueError(f"{matrix} of the adapter, {up.shape[0]} x {down.shape[1]}, does not fit the model's")
        state[matrix] = base[matrix].float() + scale * (up.float() @ down.float())
    return state


def class_table(base: Tensor, taken: Tensor, rows: Tensor) -> Tensor:
    """The table (C + 1, D) of rows from `base` and, where `taken` (C + 1,) is -1, of `rows` in their order."""
    if rows.shape[1:] != base.shape[1:] or int((taken < 0).sum()) != len(rows) or int(taken.max()) >= len(base):
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
