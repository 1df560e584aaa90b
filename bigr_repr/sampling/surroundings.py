"""Extends the surroundings of a hole into it, and fits paintings to them. Knows no model.

Smooth colors are extended by a membrane: the solution of Laplace's equation in the hole, given its border. Fitting a
painting by the membrane of its error at the border follows Pérez et al., Poisson image editing, 2003.
"""

# B batch, S side of the canvas in pixels, g tokens per side, N = g*g tokens in raster order, h pixels of the hole

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Hole = NDArray[np.bool_]
_FINE = 0.1  # of a token: finer differences at the border are texture and not extended into the hole
_COARSE = 0.5  # of a token: anything finer is texture
_TEXTURE = 0.5  # share of the mirrored texture: all of it would be sharper, but misplaced
_NEIGHBORS = ((0, 1), (1, 0), (0, -1), (-1, 0))


class Surroundings:
    """The known pixels of canvases around one hole.

    hole: (S, S), bool, True where to paint; neither empty nor full. grid: g, tokens per side. Raises ValueError for an
    empty or full hole, which has no surroundings.
    """

    def __init__(self, hole: Hole, grid: int) -> None:
        if hole.all() or not hole.any():
            raise ValueError(f"hole marks {int(hole.sum())} of {hole.size} pixels; it must leave some and mark some")
        self.hole, self.grid, self.step = hole, grid, len(hole) // grid

    def continued(self, images: Tensor) -> Tensor:
        """Canvases (B, 3, S, S) with the surrounding colors extended smoothly into the hole, and texture mirrored into
        it."""
        from scipy.ndimage import gaussian_filter

        known, sigma = _values(images), _COARSE * self.step
        rows, columns = self._mirror
        mirrored = known[:, rows, columns]
        texture = mirrored - gaussian_filter(mirrored, (0, sigma, sigma, 0))
        inside = np.clip(self._membrane(known) + _TEXTURE * texture, 0, 1)
        return _images(np.where(self.hole[..., None], inside, known), images)

    def fitted(self, painted: Tensor, images: Tensor) -> Tensor:
        """Paintings (B, 3, S, S) in [0, 1] whose colors match those of the images (B, 3, S, S) at the hole's border.

        A painting's difference from the known pixels around the hole is extended into it and added; detail is kept.
        """
        ours = _values(painted)
        return _images(np.clip(ours + self._membrane(_values(images) - ours), 0, 1), painted)

    def trust(self, follow: float) -> Tensor:
        """How much the bits of `continued` canvases count as known, per token: (N,) in [0, 1], float32.

        A token's known pixels count fully, those in the hole by exp(-d / follow), where d is the distance in tokens
        from the nearest known one; not at all for follow=0.
        """
        from scipy.ndimage import distance_transform_edt

        away = distance_transform_edt(self.hole) / self.step
        counts = np.exp(-away / follow) if follow > 0 else (~self.hole).astype(float)
        tokens = counts.reshape(self.grid, self.step, self.grid, self.step).mean(axis=(1, 3))
        return torch.from_numpy(tokens.flatten()).float()

    def border_steps(self, painted: Tensor, images: Tensor) -> Tensor:
        """Mean difference across the hole's border once paintings are put into it: (B,)."""
        ours, theirs = _values(painted), _values(images)
        pasted = np.where(self.hole[..., None], ours, theirs)
        across = [
            np.abs(np.diff(pasted, axis=1 + axis)).mean(axis=3)[:, np.diff(self.hole, axis=axis)] for axis in (0, 1)
        ]
        return torch.from_numpy(np.concatenate(across, axis=1).mean(axis=1))

    @cached_property
    def _mirror(self) -> tuple[NDArray[np.intp], ...]:
        """The known pixel that each pixel of the hole mirrors at its nearest border: rows and columns, (S, S) each."""
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(self.hole, return_distances=False, return_indices=True)
        last = len(self.hole) - 1
        behind = [2 * near - here for near, here in zip(nearest, np.indices(self.hole.shape), strict=True)]
        behind = [last - np.abs(last - np.abs(place)) for place in behind]  # mirrored at the canvas's edges, too
        hidden = self.hole[tuple(behind)]
        return tuple(np.where(hidden, near, place) for near, place in zip(nearest, behind, strict=True))

    def _membrane(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Known values (B, S, S, C), without texture, with a membrane across the hole."""
        from scipy.ndimage import gaussian_filter

        sigma = _FINE * self.step
        share = gaussian_filter((~self.hole).astype(float), sigma)[..., None]
        known = np.where(self.hole[..., None], 0, values)
        smooth = gaussian_filter(known, (0, sigma, sigma, 0)) / np.maximum(share, 1e-6)
        border, solve = self._laplacian
        # (B, S, S, C) -> (S*S, B*C), and back
        batch, _, _, channels = values.shape
        flat = smooth.transpose(1, 2, 0, 3).reshape(self.hole.size, -1)
        flat[self.hole.flatten()] = solve(np.ascontiguousarray(border @ flat))
        result: NDArray[np.float64] = flat.reshape(*self.hole.shape, batch, channels).transpose(2, 0, 1, 3)
        return result

    @cached_property
    def _laplacian(self) -> tuple[Any, Any]:
        """The sum of known neighbors of each pixel of the hole, a sparse (h, S*S), and the solver for these pixels."""
        from scipy.sparse import coo_array, diags_array
        from scipy.sparse.linalg import splu

        side, rows, columns = len(self.hole), *np.nonzero(self.hole)
        here, there = [], []
        for down, right in _NEIGHBORS:
            row, column = rows + down, columns + right
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            here.append(np.flatnonzero(inside))
            there.append((row * side + column)[inside])
        pixel, neighbor = np.concatenate(here), np.concatenate(there)
        links = coo_array((np.ones(len(pixel)), (pixel, neighbor)), (len(rows), self.hole.size)).tocsr()
        hidden = self.hole.flatten()
        matrix = diags_array(links.sum(axis=1)) - links[:, hidden]
        border = links @ diags_array((~hidden).astype(float))
        return border, splu(matrix.tocsc()).solve


def _values(images: Tensor) -> NDArray[np.float64]:
    """Images (B, 3, S, S) as an array (B, S, S, 3)."""
    return images.double().permute(0, 2, 3, 1).cpu().numpy()


def _images(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """An array (B, S, S, 3) as images (B, 3, S, S) with the dtype and device of `like`."""
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2))).to(like)
