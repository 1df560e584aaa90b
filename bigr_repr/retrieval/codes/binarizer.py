"""Binarizers of float features: fitted by FAISS's transforms, stored as the equivalent affine map. Knows no images.

Every binarizer here is bit j = [A x]_j > t_j with thresholds t and a matrix A, or none. FAISS fits A: PCA, a random
rotation, or ITQ (Gong and Lazebnik, 2011). FAISS's ITQ normalizes each centered vector to length 1 before rotating;
that changes no sign, so the same form holds.
"""

# n rows, D features, b bits

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bigr_repr.codes import code_bytes, to_bytes

__all__ = ["BINARIZERS", "Binarizer", "fit_binarizer", "rows_needed"]

BINARIZERS: Final = {
    "sign": "centered at the mean, one bit per feature",
    "median": "above or below the median, one bit per feature",
    "pca": "signs of the first principal components",
    "rotation": "centered, signs after a random rotation",
    "itq": "principal components, rotated to minimize quantization error (ITQ)",
}
MOST_SEED: Final = (1 << 31) - 1  # FAISS's seeds are 32-bit numbers
_MOST_BITS: Final = 46_340  # of a rotation: FAISS counts the numbers of a square matrix in 32 bits
_FULL: Final = ("sign", "median")  # exactly one bit per feature
_BLOCK: Final = 16 << 20  # bytes of float64 at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Binarizer:
    """A fitted map from features to bits.

    kind: one of BINARIZERS. matrix: float32 (b, D), or None for the features themselves. thresholds: float64 (b,).
    fitted_on: number of rows it was fitted on. scales: float32 (b,), their mean distance from each threshold; None
    in files of older versions.
    """

    kind: str
    matrix: NDArray[np.float32] | None
    thresholds: NDArray[np.float64]
    fitted_on: int
    scales: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.kind not in BINARIZERS:
            raise ValueError(f"binarizer={self.kind!r} is unknown; choose one of {', '.join(BINARIZERS)}")
        if self.thresholds.ndim != 1 or (self.matrix is not None and self.matrix.shape[:1] != self.thresholds.shape):
            raise ValueError(f"binarizer {self.kind}: a matrix and thresholds that do not match")
        if self.scales is not None and (self.scales.shape != self.thresholds.shape or not (self.scales >= 0).all()):
            raise ValueError(f"binarizer {self.kind}: scales that do not match the thresholds")
        if not np.isfinite(self.thresholds).all() or (self.matrix is not None and not np.isfinite(self.matrix).all()):
            raise ValueError(f"binarizer {self.kind}: numbers that are not finite")

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return len(self.thresholds)

    @property
    def width(self) -> int:
        """Number of input features D."""
        return self.n_bits if self.matrix is None else int(self.matrix.shape[1])

    def encode(self, vectors: ArrayLike) -> NDArray[np.uint8]:
        """Packed codes of features (n, D): uint8 (n, ceil(b / 8)), independent of how rows are batched.

        Raises ValueError for a wrong width or non-finite features.
        """
        features = self._checked(vectors)
        codes = np.empty((len(features), code_bytes(self.n_bits)), np.uint8)
        for rows, margins in self._margins(features):
            codes[rows] = to_bytes(margins > 0)
        return codes

    def margins(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """How far features (n, D) lie above each bit's threshold, (n, b): a bit is set where this is positive.

        Raises ValueError as encode does.
        """
        features = self._checked(vectors)
        found = np.empty((len(features), self.n_bits))
        for rows, margins in self._margins(features):
            found[rows] = margins
        return found

    def _checked(self, vectors: ArrayLike) -> NDArray[Any]:
        features = finite_rows("vectors", vectors)
        if features.shape[1] != self.width:
            raise ValueError(
                f"vectors have {features.shape[1]} features; this binarizer expects {self.width}; use the same model, "
                "layer and pooling"
            )
        return features

    def _margins(self, features: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        rows = max(1, _BLOCK // (8 * max(self.width, self.n_bits)))
        # In single precision, a product near its threshold would depend on how many rows are multiplied together.
        matrix = None if self.matrix is None else self.matrix.T.astype(np.float64)
        for start in range(0, len(features), rows):
            block = features[start : start + rows].astype(np.float64)
            yield slice(start, start + rows), (block if matrix is None else block @ matrix) - self.thresholds

    def to_safetensors(self) -> bytes:
        """The map as the bytes of a safetensors file."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {"thresholds": self.thresholds}
        if self.matrix is not None:
            tensors["matrix"] = np.ascontiguousarray(self.matrix)
        if self.scales is not None:
            tensors["scales"] = self.scales
        tensors["fitted_on"] = np.array([self.fitted_on], np.int64)
        return save(tensors, metadata={"binariser": self.kind})

    @classmethod
    def from_safetensors(cls, data: bytes, kind: str, name: str) -> Binarizer:
        """The inverse of to_safetensors.  Raises ValueError, which names the file `name`, for anything else."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(data)
            thresholds, matrix = tensors["thresholds"], tensors.get("matrix")
            scales = tensors.get("scales")
            wrong = thresholds.dtype != np.float64 or (matrix is not None and matrix.dtype != np.float32)
            wrong = wrong or (scales is not None and scales.dtype != np.float32)
            if wrong or (matrix is not None and matrix.ndim != 2):
                raise ValueError("tensors of another type")
            fitted_on = int(tensors["fitted_on"][0])
            return cls(kind=kind, matrix=matrix, thresholds=thresholds, fitted_on=fitted_on, scales=scales)
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: damaged, or not a binarizer ({error}); build the index again") from error


def fit_binarizer(kind: str, vectors: ArrayLike, *, n_bits: int | None = None, seed: int = 0) -> Binarizer:
    """Fit a binarizer on a sample of features (n, D), numbers.

    n_bits: always D for "sign" and "median"; 1..D for "pca" and "itq"; up to 46,340 or D for "rotation"; None: D. seed:
    in 0..2^31 - 1, for the random rotation and ITQ's initialization. Only FAISS's ITQ subsamples very large inputs.

    Raises ValueError for an unknown kind, n_bits or seed out of range, too few rows, or non-finite features.
    """
    sample = finite_rows("vectors", vectors)
    rows, width = sample.shape
    bits = width if n_bits is None else n_bits
    if kind not in BINARIZERS:
        raise ValueError(f"binarizer={kind!r} is unknown; choose one of {', '.join(BINARIZERS)}")
    if kind in _FULL and bits != width:
        raise ValueError(
            f"n_bits={bits}: {kind} gives one bit per feature, {width}; leave n_bits out, or use pca or itq"
        )
    most = max(width, _MOST_BITS) if kind == "rotation" else width
    if not 1 <= bits <= most:
        limit = f"in 1..{most}" if kind == "rotation" else f"in 1..{width}, the number of features"
        raise ValueError(f"n_bits={bits} must be {limit} for {kind}; only rotation gives more bits than features")
    check_seed(seed)
    need = rows_needed(kind, bits)
    if rows < need:
        raise ValueError(f"{rows} rows are too few to fit {kind} of {bits} bits: it needs {need}; ask for fewer bits")
    center = np.median(sample, axis=0) if kind == "median" else sample.mean(axis=0, dtype=np.float64)
    matrix = None
    if kind not in _FULL:
        centered = sample.astype(np.float32)
        centered -= center.astype(np.float32)
        matrix = _matrix(kind, centered, bits, seed)
    thresholds = center if matrix is None else matrix.astype(np.float64) @ center
    fitted = Binarizer(kind=kind, matrix=matrix, thresholds=thresholds.astype(np.float64), fitted_on=rows)
    scales = sum(np.abs(margins).sum(axis=0) for _, margins in fitted._margins(sample)) / rows
    return replace(fitted, scales=np.asarray(scales, np.float32))


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed out of range."""
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed={seed} must be in 0..{MOST_SEED}; choose another")


def rows_needed(kind: str, n_bits: int) -> int:
    """The minimum number of rows for fitting a binarizer."""
    return {"pca": n_bits, "itq": 2 * n_bits}.get(kind, 1)


def _matrix(kind: str, centered: NDArray[np.float32], bits: int, seed: int) -> NDArray[np.float32]:
    import faiss

    transform: Any
    width = centered.shape[1]
    if kind == "rotation":
        transform = faiss.RandomRotationMatrix(width, bits)
        transform.init(seed)
    elif kind == "pca":
        transform = faiss.PCAMatrix(width, bits)
        transform.train(centered)
    else:
        fitted = faiss.ITQTransform(width, bits, True)
        fitted.itq.seed = seed
        fitted.train(centered)
        transform = fitted.pca_then_itq
    matrix = faiss.vector_to_array(transform.A).reshape(-1, width)[:bits]
    if not np.isfinite(matrix).all():
        raise ValueError(f"{kind} of {bits} bits cannot be fitted: the features vary in fewer directions than that")
    return np.ascontiguousarray(matrix)


def finite_rows(name: str, vectors: ArrayLike) -> NDArray[Any]:
    """Features as an array (n, D) of numbers.  Raises ValueError for a wrong shape or type, or non-finite rows."""
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}; expected numbers (n, D)")
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{name}: {len(bad)} of {len(array)} rows are not finite (the first is row {bad[0]}); leave those out"
            )
    return array
