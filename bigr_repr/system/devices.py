"""Devices and precisions by name. Knows nothing of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def choose_device(device: torch.device | str | None) -> torch.device:
    """The named device; for None or "auto", the first GPU if there is one, else the CPU.

    Raises ValueError for a name that torch does not know or a device that does not exist.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={str(device)!r} is unknown; try cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={str(device)!r} is not there: torch sees {torch.cuda.device_count()} GPUs; try cpu")
    if chosen.type == "cuda":  # not opened: networks may run only in other processes, some GPUs serve only one
        return chosen
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch knows more names than it has devices
        raise ValueError(f"device={str(device)!r} is not there, or torch was built without it; try cpu") from error
    return chosen


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name: float32, bfloat16, float16, or fp32, bf16, fp16. Raises ValueError for another name."""
    if not isinstance(dtype, str):
        return dtype
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def precision_name(mixed: str) -> str:
    """What users call a training precision in Accelerate's terms: float32, bfloat16 or float16; others as they are."""
    return next((dtype for dtype, known in _MIXED.items() if known == mixed), mixed)


def mixed_precision(name: str, choices: Sequence[str] = tuple(_MIXED)) -> str:
    """A training precision in Accelerate's terms, which checkpoints record: no, bf16 or fp16.

    name: one of choices, or Accelerate's own name. Raises ValueError for others.
    """
    for dtype in choices:
        if name in (dtype, _MIXED[dtype]):
            return _MIXED[dtype]
    known = ", ".join(f"{dtype} ({_MIXED[dtype]})" for dtype in choices)
    raise ValueError(f"precision={str(name)!r} is unknown; choose one of {known}")
