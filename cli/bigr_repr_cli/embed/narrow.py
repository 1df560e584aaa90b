"""`bigr-repr embed --precision int8` and bfloat16: reports their gain and cost in one line."""

from __future__ import annotations

from typing import Any

import typer

NARROW = ("bfloat16", "bf16", "int8")


def measured(inputs: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of embed_images for a reduced precision, after comparing it with float32.

    For int8, the model is replaced by its 8-bit network.
    """
    from bigr_repr.checkpoints import load
    from bigr_repr.embed.options import EmbedOptions
    from bigr_repr.embed.precision import measure_tradeoff, network_in_8_bits, sample_images
    from bigr_repr.features import FeatureExtractor
    from bigr_repr.system import as_dtype, choose_device

    usual = {"engine": ("local",), "device": ("auto", "cpu"), "compile": (False,)}
    if options["dtype"] == "int8" and (other := [name for name in usual if options[name] not in usual[name]]):
        hint = [f"--{name}" for name in other]
        raise typer.BadParameter("int8 runs on this machine's CPU only; leave it out", param_hint=hint)
    if options["dtype"] == "int8" and options["condition"]:
        raise ValueError(f"int8 networks have no condition ({options['condition'].words}); use another precision")
    given = {name: value for name, value in options.items() if name not in ("out", "model", "dtype")}
    chosen, eight = EmbedOptions(**given), options["dtype"] == "int8"
    pre = load(options["model"])
    images = sample_images(inputs, chosen, pre.config.image_size)
    device = "cpu" if eight else choose_device(chosen.devices[0] if chosen.devices else None)
    how: dict[str, Any] = {"layers": chosen.layers, "pool": chosen.pool, "mirror": chosen.mirror}
    how["condition"] = chosen.condition
    if eight:
        model = network_in_8_bits(options["out"], images, pre, chosen)
        options = options | {"model": model, "dtype": None}
        fast = FeatureExtractor(model, **how)
    else:
        fast = FeatureExtractor(pre, dtype=as_dtype(options["dtype"]), device=device, **how)
    found = measure_tradeoff(fast, FeatureExtractor(pre, device=device, **how), images)
    name = "int8" if eight else "bfloat16"
    typer.echo(
        f"{name}: {found.speed:.1f} times float32's speed on this machine; cosine of features {found.cosine:.4f}; "
        f"{100 * found.bits:.2f} % of the codes' bits equal ({len(images)} images)",
        err=True,
    )
    return options
