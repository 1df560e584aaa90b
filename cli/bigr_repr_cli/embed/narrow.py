"""`bigr-repr embed --precision int8` and bfloat16: reports their gain and cost in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from bigr_repr.embed import EmbedSummary, Progress
    from bigr_repr.features import FeatureExtractor

NARROW = ("bfloat16", "bf16")


def embed_in_int8(
    inputs: list[str], *, on_progress: Callable[[Progress], None], out: str, model: str, dtype: str, **options: Any
) -> EmbedSummary:
    """embed_images() by the model's 8-bit network, after comparing that with float32.  Raises BadParameter."""
    from bigr_repr.checkpoints import load
    from bigr_repr.embed.options import EmbedOptions
    from bigr_repr.embed.precision import sample_images
    from bigr_repr.embed.run import embed_in_8_bits

    usual = {"engine": ("local",), "device": ("auto", "cpu"), "compile": (False,)}
    if other := [f"--{name}" for name in usual if options[name] not in usual[name]]:
        raise typer.BadParameter("int8 runs on this machine's CPU only; leave it out", param_hint=other)
    if options["condition"]:
        raise ValueError(f"int8 networks have no condition ({options['condition'].words}); use another precision")
    chosen, pre = EmbedOptions(**options), load(model)
    images = sample_images(inputs, chosen, pre.config.image_size)
    return embed_in_8_bits(
        inputs, out, chosen, model=pre, calibrate=images, on_progress=on_progress,
        on_network=lambda fast, exact: _report(dtype, fast, exact, images),
    )  # fmt: skip


def measure_bfloat16(inputs: list[str], options: dict[str, Any]) -> None:
    """Compare bfloat16 with float32, before embed_images is called with these options."""
    from bigr_repr.checkpoints import load
    from bigr_repr.embed.options import EmbedOptions
    from bigr_repr.embed.precision import sample_images
    from bigr_repr.features import FeatureExtractor
    from bigr_repr.system import as_dtype, choose_device

    chosen = EmbedOptions(**{name: value for name, value in options.items() if name not in ("out", "model")})
    pre = load(options["model"])
    images = sample_images(inputs, chosen, pre.config.image_size)
    how: dict[str, Any] = {name: getattr(chosen, name) for name in ("pool", "mirror", "condition")}
    how |= {"layers": chosen.blocks, "device": choose_device(chosen.devices[0] if chosen.devices else None)}
    fast = FeatureExtractor(pre, dtype=as_dtype(chosen.dtype), **how)
    _report("bfloat16", fast, FeatureExtractor(pre, **how), images)


def _report(name: str, fast: FeatureExtractor, exact: FeatureExtractor, images: Tensor) -> None:
    from bigr_repr.embed.precision import measure_tradeoff

    found = measure_tradeoff(fast, exact, images)
    typer.echo(
        f"{name}: {found.speed:.1f} times float32's speed on this machine; cosine of features {found.cosine:.4f}; "
        f"{100 * found.bits:.2f} % of the codes' bits equal ({len(images)} images)",
        err=True,
    )
