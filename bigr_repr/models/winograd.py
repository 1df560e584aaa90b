"""GroupNorm, SiLU and 3x3 convolution in one pass over strips of rows, for CPUs. Knows nothing of networks or images.

Winograd's F(2x2, 3x3) needs 16 multiplications instead of 36. A strip stays in the cache from the normalization to the
sum with the residual, and the second convolution of a pair overwrites its own input, so large maps are written and
allocated no more often than necessary. Measured in float32 on AVX2, a residual block of
128 channels at 256 x 256 takes 0.6 of the time of PyTorch's operations one by one, with a third of their error. On
AVX-512, with one thread or two, blocks of 128 to 512 channels take 0.65 to 0.93 of the processor time, and the whole
encoder of preset L at 256 pixels 0.85. Nothing is timed at run time: codes must not depend on the load of a machine.
Source: Lavin and Gray, arXiv 1509.09308.
"""

# B batch, H W pixels, C channels in, O channels out, T rows of tiles in a strip; a tile is 2x2 pixels

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS = 128  # below this, too few multiplications are saved
_TILES = 512  # per strip: a few megabytes of transformed pixels
_PIXELS = 256  # minimum per map
_STATISTICS = 1 << 18  # numbers squared at a time
_KERNELS: WeakKeyDictionary[nn.Conv2d, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


def applies(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether `norm_silu_conv` applies: no gradients, float32, channels last, large enough, on a CPU with AVX2."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and min(conv.in_channels, conv.out_channels) >= _CHANNELS
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.shape[2] * x.shape[3] >= _PIXELS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@torch.no_grad()
def norm_silu_conv(
    norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor, residual: Tensor | None = None, *, in_place: bool = False
) -> Tensor:
    """conv(silu(norm(x))) + residual, for a 3x3 convolution with padding 1 and a bias.

    x (B, C, H, W) with even H and W, channels last in memory; residual (B, O, H, W) or None -> (B, O, H, W), channels
    last; with `in_place`, which requires C = O, in the memory of x. An image's result does not depend on the others.
    """
    pixels = x.permute(0, 2, 3, 1)
    out = pixels if in_place else pixels.new_empty(*pixels.shape[:3], conv.out_channels)
    added = None if residual is None else residual.permute(0, 2, 3, 1)
    strips = _Strips(conv, *pixels.shape[1:3])
    for image in range(len(pixels)):
        strips.run(pixels[image], _affine(norm, pixels[image]), None if added is None else added[image], out[image])
    return out.permute(0, 3, 1, 2)


def _affine(norm: nn.GroupNorm, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """GroupNorm of pixels (H, W, C) as scale (C,) and shift (C,)."""
    flat, groups = pixels.reshape(-1, pixels.shape[-1]), norm.num_groups
    total, squares = flat.new_zeros(2, flat.shape[1], dtype=torch.float64)
    for block in flat.split(max(1, _STATISTICS // flat.shape[1])):  # type: ignore[no-untyped-call]
        total += block.sum(dim=0)
        squares += block.square().sum(dim=0)
    count = flat.numel() // groups
    mean = total.view(groups, -1).sum(dim=1, keepdim=True) / count
    variance = squares.view(groups, -1).sum(dim=1, keepdim=True) / count - mean.square()
    scale = norm.weight.double().view(groups, -1) * torch.rsqrt(variance.clamp(min=0) + norm.eps)
    shift = norm.bias.double().view(groups, -1) - mean * scale
    return scale.flatten().float(), shift.flatten().float()


def _kernel(conv: nn.Conv2d) -> Tensor:
    """The transformed weights, (16, C, O); cached until the weights change."""
    key = (conv.weight.data_ptr(), conv.weight._version)
    known = _KERNELS.get(conv)
    if known is None or known[0] != key:
        g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
        transformed = torch.einsum("ai,ocij,bj->abco", g, conv.weight.double(), g)
        known = _KERNELS[conv] = (key, transformed.flatten(0, 1).float().contiguous())
    return known[1]


class _Strips:
    """The work arrays for one size of map, and the pass over it."""

    def __init__(self, conv: nn.Conv2d, height: int, width: int) -> None:
        self.kernel, self.bias, self.height = _kernel(conv), conv.bias, height
        c, o, half = conv.in_channels, conv.out_channels, width // 2
        t = max(1, min(height // 2, _TILES // half))
        while (height // 2) % t:
            t -= 1
        self.tile_rows = t
        empty = conv.weight.new_empty
        # Rows above and below the strip, and the convolution's zero padding left and right.
        self.rows = conv.weight.new_zeros(2 * t + 2, width + 2, c)
        self.by_row, self.by_column = empty(4, t, width + 2, c), empty(4, 4, t, half, c)
        self.product, self.half_done = empty(4, 4, t, half, o), empty(2, 4, t, half, o)

    def run(self, pixels: Tensor, affine: tuple[Tensor, Tensor], residual: Tensor | None, out: Tensor) -> None:
        """One image: pixels (H, W, C), residual (H, W, O) or None -> out (H, W, O), which may be `pixels`."""
        step = 2 * self.tile_rows
        for top in range(0, self.height, step):
            self._activate(pixels, affine, top)
            self._multiply()
            strip = out[top : top + step]
            self._combine(strip)
            if residual is not None:
                strip.add_(residual[top : top + step])

    def _activate(self, pixels: Tensor, affine: tuple[Tensor, Tensor], top: int) -> None:
        """Rows top - 1 to bottom + 1, normalized and through SiLU, into `rows`; each row of the map is read once."""
        rows, step, (scale, shift) = self.rows, 2 * self.tile_rows, affine
        if top == 0:
            rows[0].zero_()
        else:
            rows[:2].copy_(rows[step:])
        done = 1 if top == 0 else 2
        first, last = top - 1 + done, min(top + step + 1, self.height)
        new = rows[done : done + last - first, 1:-1]
        torch.addcmul(shift, pixels[first:last], scale, out=new)
        F.silu(new, inplace=True)
        if last == self.height:
            rows[-1].zero_()

    def _multiply(self) -> None:
        """B^T d B of every 4x4 neighborhood d, first down the rows, then across, and its products with the kernel."""
        rows, by_row, by_column = self.rows, self.by_row, self.by_column
        for source, target in (
            ([rows[i : len(rows) - 2 + i : 2] for i in range(4)], by_row),
            ([by_row[:, :, i : by_row.shape[2] - 2 + i : 2] for i in range(4)], by_column.transpose(0, 1)),
        ):
            torch.sub(source[0], source[2], out=target[0])
            torch.add(source[1], source[2], out=target[1])
            torch.sub(source[2], source[1], out=target[2])
            torch.sub(source[1], source[3], out=target[3])
        torch.bmm(
            by_column.view(16, -1, by_column.shape[-1]),
            self.kernel,
            out=self.product.view(16, -1, self.kernel.shape[2]),
        )

    def _combine(self, strip: Tensor) -> None:
        """A^T m A of every 4x4 product m, into the pixels of its tile: strip (2T, W, O)."""
        product, half_done = self.product, self.half_done
        if self.bias is not None:
            product[1, 1].add_(self.bias)  # the element that contributes once to each of the four pixels
        tiles = strip.view(self.tile_rows, 2, strip.shape[1] // 2, 2, -1).permute(3, 1, 0, 2, 4)
        for source, target in ((product, half_done), (half_done.transpose(0, 1), tiles)):
            torch.add(source[1], source[2], out=target[0]).add_(source[0])
            torch.sub(source[1], source[2], out=target[1]).sub_(source[3])
