"""Bit codes as bytes: packing, token layouts, Hamming distances. Knows nothing of images, models or files; NumPy only.

An image's code is token-major: bit k of token n is bit n * K + k. Bits are packed in the order of numpy.packbits,
most significant bit of a byte first; padding bits in the last byte are 0. Bytes are unsigned.
"""

# B batch, N tokens, K bits per token, h w token grid

from __future__ import annotations

import math
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BIT_ORDER",
    "check_length",
    "code_bytes",
    "from_bytes",
    "grid_to_tokens",
    "hamming",
    "to_bytes",
    "tokens_to_grid",
]

BIT_ORDER: Final = "bit n*K+k is bit k of token n; most significant bit of a byte first"  # as files state it
_CHUNK: Final = 1 << 26  # bytes compared at a time


class _Array(Protocol):
    """The methods of NumPy arrays and torch tensors that the layouts need."""

    @property
    def shape(self) -> Any: ...

    def reshape(self, shape: Any, /) -> Any: ...

    def swapaxes(self, axis0: int, axis1: int, /) -> Any: ...


_A = TypeVar("_A", bound=_Array)


def code_bytes(n_bits: int) -> int:
    """Number of bytes of a code of n_bits. Raises ValueError for n_bits below 1."""
    if n_bits < 1:
        raise ValueError(f"n_bits={n_bits} must be at least 1")
    return -(-n_bits // 8)


def to_bytes(bits: ArrayLike) -> NDArray[np.uint8]:
    """Pack bits (..., n_bits), bool or numbers 0 and 1, into uint8 (..., ceil(n_bits / 8)).

    For the codes of a model (B, N, K), give bits.reshape(B, N * K).
    Raises ValueError for empty input or values other than 0 and 1 (threshold probabilities first).
    """
    array = np.asarray(bits)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"bits has shape {array.shape}; the last axis must hold at least one bit")
    if array.dtype != np.bool_:
        flags = array.astype(np.bool_)
        if not np.array_equal(flags, array):
            raise ValueError("bits holds a value other than 0 and 1; threshold probabilities first, as in p > 0.5")
        array = flags
    return np.packbits(array, axis=-1)


def from_bytes(packed: ArrayLike, n_bits: int) -> NDArray[np.bool_]:
    """The inverse of to_bytes: uint8 (..., ceil(n_bits / 8)) -> bool (..., n_bits).

    Raises ValueError for a wrong dtype or length, or if a bit past n_bits is set.
    """
    array = _unsigned(packed, "packed")
    check_length(array, n_bits)
    return np.unpackbits(array, axis=-1, count=n_bits).astype(np.bool_)


def check_length(packed: NDArray[np.uint8], n_bits: int) -> None:
    """Raise ValueError if codes (..., bytes) do not have the length for `n_bits`, or have bits set past them."""
    length = code_bytes(n_bits)
    if packed.shape[-1] != length:
        raise ValueError(f"n_bits={n_bits} takes {length} bytes per code; these codes have {packed.shape[-1]}")
    spare = 8 * length - n_bits
    if spare and np.any(packed[..., -1] & np.uint8((1 << spare) - 1)):
        raise ValueError(f"codes have bits set past n_bits={n_bits}; is n_bits right?")


def grid_to_tokens(grid: _A) -> _A:
    """From the tokenizer's layout to the transformer's: (..., K, h, w) -> (..., h*w, K), row-major; array or tensor.

    Raises ValueError for fewer than 3 axes.
    """
    if len(grid.shape) < 3:
        raise ValueError(f"grid has shape {tuple(grid.shape)}; expected (..., K, h, w)")
    *batch, bits, height, width = grid.shape
    return grid.reshape((*batch, bits, height * width)).swapaxes(-1, -2)  # type: ignore[no-any-return]


def tokens_to_grid(tokens: _A, grid: tuple[int, int] | None = None) -> _A:
    """The inverse of grid_to_tokens: (..., N, K) -> (..., K, h, w); array or tensor.

    grid is (h, w); None: a square.  Raises ValueError unless h * w = N.
    """
    if len(tokens.shape) < 2:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}; expected (..., N, K)")
    *batch, count, bits = tokens.shape
    height, width = grid or (math.isqrt(count), math.isqrt(count))
    if height * width != count:
        remedy = (
            f"grid={grid} holds {height * width}" if grid else "give grid=(h, w), because they do not make a square"
        )
        raise ValueError(f"tokens has {count} tokens; {remedy}")
    return tokens.swapaxes(-1, -2).reshape((*batch, bits, height, width))  # type: ignore[no-any-return]


def hamming(a: ArrayLike, b: ArrayLike) -> NDArray[np.int32]:
    """Number of differing bits of packed codes: uint8 (..., bytes), broadcast against each other -> int32 (...).

    hamming(a[:, None], b) gives all pairs, (len(a), len(b)).
    Raises ValueError for another dtype (such as signed bytes), codes of different length, or incompatible shapes.
    """
    left, right = _unsigned(a, "a"), _unsigned(b, "b")
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(f"a has {left.shape[-1]} bytes per code and b has {right.shape[-1]}; they are not comparable")
    shape = np.broadcast_shapes(left.shape, right.shape)
    left, right = np.broadcast_to(left, shape), np.broadcast_to(right, shape)
    if left.size <= _CHUNK or len(shape) < 2:
        return _differing(left, right)
    distances = np.empty(shape[:-1], np.int32)
    step = max(1, _CHUNK * shape[0] // left.size)
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        distances[rows] = hamming(left[rows], right[rows]) if step > 1 else hamming(left[start], right[start])
    return distances


_ONES: Final = np.array([value.bit_count() for value in range(256)], np.uint8)


def _differing(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int32]:
    different = np.bitwise_xor(a, b)
    if hasattr(np, "bitwise_count"):  # NumPy 2
        if different.shape[-1] % 8 == 0 and different.size:
            different = different.view(np.uint64)
        counts = np.bitwise_count(different)
    else:
        counts = _ONES[different]
    return counts.sum(axis=-1, dtype=np.int32)  # type: ignore[no-any-return]


def _unsigned(codes: ArrayLike, name: str) -> NDArray[np.uint8]:
    array = np.asarray(codes)
    if array.dtype != np.uint8:
        raise ValueError(f"{name} has dtype {array.dtype}; packed codes are uint8 (see to_bytes)")
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"{name} has shape {array.shape}; the last axis must hold the bytes of a code")
    return array
