"""Options for networks, probes and output that the benchmark commands share, in groups."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.flatten import values_of
from bigr_repr_cli.options import Device, Json, ReadWith
from bigr_repr_cli.parse import parse_layers, parse_numbers

if TYPE_CHECKING:
    from bigr_repr.evaluate.runs.settings import BenchSettings

Pooling = StrEnum(
    "Pooling",
    [("avg", "avg"), ("max", "max"), ("both", "avg+max"), ("grid2", "grid2"), ("cls", "cls"), ("cls_avg", "cls+avg")],
)
Format = StrEnum("Format", ["table", "json", "csv", "latex"])
Probe = StrEnum("Probe", ["logreg", "mae", "mage", "dinov2"])
Descent = StrEnum("Descent", ["mae", "mage", "dinov2"])
NAMES = ("mid", "best")
_ALL = "all"
_Seeds = Annotated[
    int, typer.Option(min=1, help="Number of times to train the probe, with consecutive random seeds from --seed.")
]
_Rates = Annotated[
    str,
    typer.Option(
        help=r"With mae, mage, dinov2: base rates to choose from, separated by commas \[default: the paper's]."
    ),
]
_Batch = Annotated[
    int | None, typer.Option(min=1, help=r"With mae, mage, dinov2: images per step \[default: the paper's].")
]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What computes features, and how its tokens become one vector."""

    model: Annotated[
        str | None,
        typer.Option(
            help="What to measure: a model's name or folder, tokenizer-bits, random, random-generator, "
            "timm:NAME?checkpoint=FILE, transformers:NAME, open_clip:ARCHITECTURE/TAG, module:package.function, "
            "efficientnet-lite0 or pixels "
            rf"\[default: {DEFAULT_MODEL}, or the model that made the embeddings].",
        ),
    ] = None
    pool: Annotated[
        Pooling,
        typer.Option(
            help="How a block's tokens become one vector: avg, max, both concatenated, the means over four "
            "quarters (grid2), or the class token (cls) if there is one."
        ),
    ] = Pooling.avg
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average the features of every image and its mirror image.")
    ] = False
    read_with: ReadWith

    def __post_init__(self) -> None:
        check_named(self.model)


@dataclass(frozen=True, kw_only=True)
class OneBlock(NetworkOptions):
    """The same, for one block."""

    layer: Annotated[
        list[str],
        typer.Option(
            help="Block to measure, counted from 0: 12; -1 (the last); mid; best (as bench layers, or linear-probe "
            "--layer all, found it on the same images); 4+8: both concatenated "
            r"\[default: 12, or the last if there are fewer]."
        ),
    ] = ()  # type: ignore[assignment]

    @property
    def block(self) -> Any:
        """The named block; None if none."""
        return single_layer(self.layer)

    @property
    def blocks(self) -> list[Any]:
        """The one named block, if any."""
        return [] if self.block is None else [self.block]


@dataclass(frozen=True, kw_only=True)
class OneBlockOrBits(OneBlock):
    """One block, or the bits."""

    codes: Annotated[bool, typer.Option("--codes", help="Measure the tokenizer's bits instead of hidden states.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class Blocks(NetworkOptions):
    """Any blocks, or the bits."""

    layer: Annotated[
        list[str],
        typer.Option(
            help="Blocks to measure, counted from 0: 12; -1 (the last); mid; best (as bench layers, or linear-probe "
            "--layer all, found it on the same images); several: 4,8; concatenated: 4+8; all. May be repeated "
            r"\[default: 12, or the last if there are fewer; with --protocol dinov2 the last, and the last four; for "
            "embeddings, all stored]."
        ),
    ] = ()  # type: ignore[assignment]
    codes: Annotated[bool, typer.Option("--codes", help="Measure the tokenizer's bits instead of hidden states.")] = (
        False
    )

    @property
    def blocks(self) -> list[Any]:
        """All that are named."""
        return several_blocks(self.layer)


@dataclass(frozen=True, kw_only=True)
class TokenBlocks:
    """Any blocks, whose tokens are used one by one."""

    model: Annotated[
        str | None,
        typer.Option(help=rf"A model's name or folder, or timm:NAME?checkpoint=FILE \[default: {DEFAULT_MODEL}]."),
    ] = None
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average the features of every image and its mirror image.")
    ] = False
    read_with: ReadWith
    layer: Annotated[
        list[str],
        typer.Option(
            help="Blocks to measure, counted from 0: 12; -1 (the last); mid; several: 4,8; all. May be repeated "
            r"\[default: 12, or the last if there are fewer]."
        ),
    ] = ()  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_named(self.model)

    @property
    def blocks(self) -> list[Any]:
        """All that are named."""
        return several_blocks(self.layer, ("mid",))


@dataclass(frozen=True, kw_only=True)
class Probing:
    """How the linear probe is trained."""

    protocol: Annotated[
        Probe,
        typer.Option(
            help="How the linear probe is trained. logreg: logistic regression to its optimum; mae, mage, dinov2: "
            "gradient descent as in these papers, without augmentation."
        ),
    ] = Probe.logreg
    seeds: _Seeds = 1
    rates: _Rates = ""
    penalties: Annotated[
        str,
        typer.Option(
            "--C",
            help="With logreg: values of C to choose from, separated by commas; a single one is used as is, so "
            r"one image per class is enough \[default: 17 of 1e-6..100].",
        ),
    ] = ""
    batch: _Batch = None


@dataclass(frozen=True, kw_only=True)
class CropProbing:
    """How the linear probe is trained on crops."""

    protocol: Annotated[
        Descent, typer.Option(help="How the linear probe is trained: by gradient descent as in the paper of this name.")
    ] = Descent.mae
    seeds: _Seeds = 1
    rates: _Rates = ""
    batch: _Batch = None


@dataclass(frozen=True, kw_only=True)
class Voting:
    """How neighbors vote."""

    k: Annotated[
        str, typer.Option("-k", "--k", help="Numbers of nearest neighbors that vote, separated by commas.")
    ] = "10,20,100,200"
    center: Annotated[
        bool, typer.Option("--center", help="Subtract the mean of the training features before the cosine.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how features are computed and kept."""

    device: Device = "auto"
    cache: Annotated[
        Path | None,
        typer.Option(help=r"Folder in which features are cached \[default: ~/.cache/bigr-repr]."),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch of the network.")] = 32
    workers: Annotated[
        int | None, typer.Option(min=1, help=r"Images decoded in parallel \[default: one per core, at most 32].")
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions(Machine):
    """The same with the random seed."""

    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Random seed, also for sampling images if there is a limit.")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class Printing:
    """How a result is printed."""

    form: Annotated[
        Format | None,
        typer.Option(
            "--format", help=r"Print a table for the terminal, JSON, CSV, or LaTeX for booktabs \[default: table]."
        ),
    ] = None
    as_json: Json = False

    @property
    def chosen(self) -> Format:
        """The chosen format. Raises BadParameter if the two options contradict each other."""
        if self.as_json and self.form not in (None, Format.json):
            raise typer.BadParameter(f"{self.form} contradicts --json; give one of them", param_hint="--format")
        return Format.json if self.as_json else self.form or Format.table


def settings_of(*groups: Any) -> BenchSettings:
    """Library settings from groups of options. Raises BadParameter for malformed numbers."""
    values = values_of(*groups)
    if "k" in values:
        values["k"] = parse_numbers(values["k"], "--k")
    values["rates"] = parse_rates(values.get("rates", ""), "--rates")
    values["C"] = parse_rates(values.pop("penalties", ""), "--C")
    seed = values.pop("seed", 0)
    values["seeds"] = tuple(range(seed, seed + values.pop("seeds", 1)))
    if "read_with" in values:
        values["condition"] = values.pop("read_with").value
    values |= {name: str(values[name]) for name in ("protocol", "pool") if name in values}
    from bigr_repr.evaluate.runs.cache import default_cache
    from bigr_repr.evaluate.runs.settings import BenchSettings

    values["cache"] = values.get("cache") or default_cache()
    return BenchSettings(**{field.name: values[field.name] for field in fields(BenchSettings) if field.name in values})


def check_named(model: str | None, option: str = "--model") -> None:
    """Raises BadParameter for "", as an unset variable of the shell gives: the default would be measured unnoticed."""
    if model is not None and not model.strip():
        raise typer.BadParameter("the name is empty; leave the option out for the default", param_hint=option)


def parse_blocks(values: list[str], names: tuple[str, ...] = NAMES) -> list[Any]:
    """Parse blocks such as "12", "-1", "4,8,12", "4+8" (concatenated) and the names. Raises BadParameter."""
    found: list[Any] = []
    for text in ",".join(values).split(","):
        parts = parse_layers([text.replace("+", ",")], names)
        found.append(parts[0] if len(parts) == 1 else tuple(parts))
    return found


def several_blocks(values: list[str], names: tuple[str, ...] = NAMES) -> list[Any]:
    """The blocks that an option names, or "all" alone. Raises BadParameter."""
    if _ALL in re.split(r"[\s,+]+", " ".join(values)):
        if len(values) > 1 or values[0].strip() != _ALL:
            wanted = f"{','.join(values)!r}: {_ALL} stands alone, for every block; leave out the others, or {_ALL}"
            raise typer.BadParameter(wanted, param_hint="--layer")
        return [_ALL]
    return parse_blocks(values, names) if values else []


def single_layer(values: list[str], names: tuple[str, ...] = NAMES) -> Any:
    """The block that an option names; None if none. Raises BadParameter for several."""
    layers = parse_blocks(values, names) if values else [None]
    if len(layers) > 1:
        raise typer.BadParameter(f"{','.join(values)!r} names several blocks; give one", param_hint="--layer")
    return layers[0]


def parse_rates(text: str, option: str) -> tuple[float, ...]:
    """Parse numbers in 1e-30..1e38 separated by commas; "" gives none. Raises BadParameter for anything else."""
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (0.0,)
    if any(not 1e-30 <= value <= 1e38 for value in found):
        wanted = "a list of positive numbers, 1e-30..1e38, such as 0.01,0.1"
        raise typer.BadParameter(f"{text!r} is not {wanted}", param_hint=option)
    return found


def check_picture(path: Path, *endings: str, option: str = "--out") -> None:
    """Raise BadParameter for a wrong ending or a missing folder, before anything is computed."""
    if path.suffix not in endings:
        raise typer.BadParameter(f"{path} must end in {' or '.join(endings)}", param_hint=option)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path.absolute().parent} is not a folder", param_hint=option)
