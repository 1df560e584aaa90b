"""Named tensors: assigns them to modules and computes fingerprints. Knows nothing of files or of what they mean."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_NAMES_SHOWN = 8


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


class _NoDraws(TorchFunctionMode):
    """Skips the random initialization of weights.

    The meta device has nothing to initialize, and torch would take two seconds to load what it needs for it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "normal_":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules created inside have names and shapes but no memory, for `assign`: no second set of weights is created."""
    with torch.device("meta"), _NoDraws():
        yield


def assign(
    module: nn.Module, state: Mapping[str, object], where: str, shown: Callable[[str], str] = lambda name: name
) -> None:
    """Give `module` (made `without_weights`) the tensors of `state` without copying them.

    Raises one ValueError that names every missing, surplus, misshapen or non-float tensor; the message starts with
    `where`, and `shown` converts the module's name of a tensor into the file's.
    """
    expected = module.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    misshapen = []
    for name in tensors.keys() & expected.keys():
        tensor, shape = tensors[name], tuple(expected[name].shape)
        if tuple(tensor.shape) != shape:
            misshapen.append(f"{shown(name)} {tuple(tensor.shape)} instead of {shape}")
        elif not tensor.is_floating_point():
            misshapen.append(f"{shown(name)} of {tensor.dtype} instead of a float type")
    parts = {
        "missing": [shown(name) for name in expected.keys() - tensors.keys()],
        "not expected": [shown(name) for name in state.keys() - expected.keys()],
        "of another shape or type": misshapen,
    }
    problems = [f"{len(names)} {problem}: {_some(names)}" for problem, names in parts.items() if names]
    if problems:
        raise ValueError(f"{where}: its tensors do not fit the architecture; {'; '.join(problems)}")
    module.load_state_dict(tensors, assign=True)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over the sorted names, the shapes and the float32 contents of `state`.

    It is computed over lines "name shape sha256(content)", with content as little-endian float32 in row-major order, so
    it does not depend on memory layout, device, or whether equal values are stored in half or single precision.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib releases the interpreter's lock
        digests = dict(zip(state, pool.map(_digest, state.values()), strict=True))
    lines = [f"{name} {'x'.join(map(str, state[name].shape))} {digests[name]}\n" for name in sorted(state)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().to("cpu", torch.float32).numpy().astype("<f4", copy=False)
    return hashlib.sha256(content.reshape(-1).data).hexdigest()
