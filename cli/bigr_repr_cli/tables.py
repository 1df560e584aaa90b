"""Tables of models, for terminals of at least 80 columns. Knows no commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from bigr_repr.checkpoints.catalog import ModelEntry
    from bigr_repr.checkpoints.description import Description

_TITLES = {"bundled": "bundled", "released": "released, downloaded on use", "preset": "presets, no weights"}


def print_models(models: Sequence[ModelEntry]) -> None:
    """One line per model, by kind."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    for heading in ("image", "tokens", "bits", "layers", "width", "code"):
        table.add_column(heading, justify="right", no_wrap=True)
    kind = None
    for model in models:
        if model.kind != kind:
            kind = model.kind
            table.add_row(*([""] if table.row_count else []))
            table.add_row(Text(_TITLES[kind], style="dim"))
        config, generator = model.config, model.config.generator
        table.add_row(
            model.name,
            f"{config.image_size} px",
            f"{generator.grid}x{generator.grid}",
            str(generator.code_bits),
            str(generator.layers),
            str(generator.dim),
            f"{config.code_size // 8:,} B",
        )
    console = Console()
    console.print(table)
    console.print("\ndetails of one: [bold]bigr-repr models info NAME[/]", highlight=False)


def print_description(description: Description) -> None:
    """Print everything about one model, at least one line per fact."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, value in _facts(description):
        table.add_row(heading, Text(value))
    Console().print(table)


def _facts(description: Description) -> Iterator[tuple[str, str]]:
    config, counts = description.config, description.parameters
    tokenizer, generator = config.tokenizer, config.generator
    size = config.image_size
    yield "name", config.name
    yield "weights", description.location
    yield "image", f"{size} x {size} px, {generator.grid} x {generator.grid} = {generator.tokens} tokens"
    yield (
        "code",
        f"{generator.code_bits} bits per token, {config.code_size:,} bits = {config.code_size // 8:,} B per image",
    )
    yield "layers", f"0..{generator.layers - 1}, each {generator.dim} wide in {generator.heads} heads"
    yield "transcoder", f"{generator.transcoder_blocks} blocks, {generator.transcoder_dim} wide, {_chain(description)}"
    yield "guidance", f"{generator.sample_guidance:g} for drawings of a class or prompt, unless one is given"
    yield "classes", _classes(config.class_names, generator.classes)
    shares = ", ".join(f"{part} {count / 1e6:,.1f}" for part, count in counts._asdict().items())
    yield "parameters", f"{sum(counts) / 1e6:,.1f} million: {shares}"
    levels = ", ".join(str(tokenizer.base_channels * factor) for factor in tokenizer.channel_multipliers)
    yield (
        "tokenizer",
        f"{len(tokenizer.channel_multipliers)} levels of {tokenizer.res_blocks} blocks, {levels} channels",
    )
    yield "training", _record(config.training)
    yield "quality", _record(config.quality)
    yield "SHA-256", description.fingerprint or "no local weights"


def _chain(description: Description) -> str:
    generator = description.config.generator
    if generator.output_head == "categorical":
        return f"one step (categorical, {2**generator.code_bits:,} codes)"
    if generator.objective == "bce":
        return "one step (bce)"
    return f"{generator.sample_timesteps} of {generator.train_timesteps} diffusion steps ({generator.objective})"


def _classes(names: Sequence[str], classes: int) -> str:
    shown = ", ".join(f"{index} {name.split(',')[0]}" for index, name in enumerate(names[:3]))
    return f"{classes:,}: {shown}{', … (all: --classes)' if classes > 3 else ''}" if names else f"{classes:,}"


def _record(record: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}: {_plain(value)}" for key, value in record.items()) or "not recorded"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        if any(str(item).startswith("|") for item in value):  # Markdown
            return f"of {len(value)} lines, with --json"
        return ", ".join(map(_plain, value))
    return str(value)
