"""What arrays of packed codes have to be. Knows nothing of ids or indexes."""

# n rows (images)

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import code_bytes


def packed(codes: ArrayLike, length: int | None, name: str) -> NDArray[np.uint8]:
    """Codes as a contiguous uint8 array (n, bytes).  Raises ValueError for another type, shape or length."""
    array = np.asarray(codes)
    if array.dtype != np.uint8:
        raise ValueError(f"{name} have dtype {array.dtype}; packed codes are uint8 (see bigr_repr.codes.to_bytes)")
    if array.ndim == 1 and length is not None:
        array = array[None]
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} have shape {array.shape}; expected packed codes (n, bytes)")
    if length is not None and array.shape[1] != length:
        raise ValueError(
            f"{name} have {array.shape[1]} bytes per code, the index's have {length}; take both from the same model, "
            "layer and binariser"
        )
    return np.ascontiguousarray(array)


def check_padding(codes: NDArray[np.uint8], n_bits: int) -> None:
    """Raises ValueError if codes (n, bytes) are not of `n_bits`, or have bits set past them."""
    if code_bytes(n_bits) != codes.shape[1]:
        raise ValueError(
            f"n_bits={n_bits} takes {code_bytes(n_bits)} bytes per code; these codes have {codes.shape[1]}"
        )
    spare = 8 * codes.shape[1] - n_bits
    if spare and np.any(codes[:, -1] & np.uint8((1 << spare) - 1)):
        raise ValueError(f"codes have bits set past n_bits={n_bits}; is n_bits right?")
