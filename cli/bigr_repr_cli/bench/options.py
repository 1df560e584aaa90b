"""Options that the benchmark commands share, in groups, and what they make of them. Knows no results."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.flatten import values_of
from bigr_repr_cli.options import Device, ImageColumn, Json, LabelColumn, ReadWith
from bigr_repr_cli.parse import parse_layers, parse_numbers

if TYPE_CHECKING:
    from bigr_repr.evaluate.data.splits import BenchData
    from bigr_repr.evaluate.runs.settings import BenchSettings

Pooling = StrEnum(
    "Pooling",
    [("avg", "avg"), ("max", "max"), ("both", "avg+max"), ("grid2", "grid2"), ("cls", "cls"), ("cls_avg", "cls+avg")],
)
Format = StrEnum("Format", ["table", "json", "csv", "latex"])
Probe = StrEnum("Probe", ["logreg", "mae", "mage", "dinov2"])
NAMES = ("mid", "best")

_Limit = Annotated[
    int | None,
    typer.Option(min=1, help=r"Training images to take, from every class in proportion \[default: all]."),
]
_Data = Annotated[
    str,
    typer.Option(
        help="Data set: digits, cifar10, cifar100, stl10, tiny-imagenet, imagenette, imagenet, places365, flowers102, "
        "pets, dtd, eurosat or food101; or an image folder, Parquet files, or embeddings."
    ),
]
_FEATURES = "Features of any tool instead of a model's: .npy, .npz, .parquet or a folder of Parquet files"
_LABELS = "Labels of --{}features: .npy, .npz, .parquet, or text with one a line"
TestSample = Annotated[int, typer.Option(min=1, help="Test images to take at most, from every class in proportion.")]
Limit = _Limit


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where images, or features, and labels come from."""

    dataset: _Data = ""
    train_on: Annotated[str, typer.Option(help="Instead of --dataset: data set whose training images to take.")] = ""
    test_on: Annotated[str, typer.Option(help="With --train-on: data set whose test images to take.")] = ""
    root: Annotated[Path, typer.Option(help="Folder that holds the data sets given by name.")] = Path("data")
    aliases: Annotated[
        Path | None,
        typer.Option(
            help="With --train-on: YAML file of names that mean one class, CLASS: {same: [NAME], kinds: [NAME or "
            r"WordNet id]} \[default: the package's]."
        ),
    ] = None
    features: Annotated[
        str, typer.Option(help=f"{_FEATURES}; of the images of --dataset in their order, or with labels of their own.")
    ] = ""
    labels: Annotated[str, typer.Option(help=rf"{_LABELS.format('')} \[default: an array or column label in it].")] = ""
    test_features: Annotated[
        str, typer.Option(help=r"The same of the test images \[default: a fifth of the training images is held back].")
    ] = ""
    test_labels: Annotated[str, typer.Option(help=f"{_LABELS.format('test-')}.")] = ""
    image_column: ImageColumn = "image"
    label_column: LabelColumn = "label"

    def open(self, seed: int, *, limit: int | None = None, test_limit: int | None = None) -> BenchData:
        """The data that the options name. Raises BadParameter unless they name one data set, or both sides."""
        self._check()
        from bigr_repr.evaluate.data.splits import open_data, transfer, with_features
        from bigr_repr.images.parquet import Columns

        shared: dict[str, Any] = {"root": self.root, "limit": limit, "test_limit": test_limit, "seed": seed}
        shared["columns"] = Columns(image=self.image_column, label=self.label_column)
        if self.features and not self.dataset:
            train, test = _named(self.features, self.labels), _named(self.test_features, self.test_labels)
            return transfer(train, test, **shared) if self.test_features else open_data(train, **shared)
        if self.dataset:
            data = open_data(self.dataset, **shared)
            return with_features(data, self.features, self.test_features or None) if self.features else data
        return transfer(self.train_on, self.test_on, aliases=self.aliases, **shared)

    def _check(self) -> None:
        named = bool(self.dataset), bool(self.train_on)
        if bool(self.train_on) != bool(self.test_on) or sum(named) > 1 or not (any(named) or self.features):
            wanted = "give --dataset, or both --train-on and --test-on, or --features with --labels"
            raise typer.BadParameter(wanted, param_hint="--dataset")
        if not self.features and (self.labels or self.test_features or self.test_labels):
            raise typer.BadParameter("belongs to --features; give these too", param_hint="--labels")
        if self.features and (self.train_on or (self.dataset and (self.labels or self.test_labels))):
            raise typer.BadParameter("takes --dataset, or labels of its own, not both", param_hint="--features")


TestLimit = Annotated[
    int | None, typer.Option(min=1, help=r"Test images to take, from every class in proportion \[default: all].")
]


@dataclass(frozen=True, kw_only=True)
class SampleSizes:
    """How many images."""

    limit: _Limit = None
    test_limit: TestLimit = None


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
            help="How a block's tokens become one vector: avg, max, both in a row, the means over four quarters "
            "(grid2), or a class token (cls) where there is one."
        ),
    ] = Pooling.avg
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average the features of every image and its mirror image.")
    ] = False
    read_with: ReadWith


@dataclass(frozen=True, kw_only=True)
class OneBlock(NetworkOptions):
    """The same, of one block."""

    layer: Annotated[
        list[str],
        typer.Option(
            help="Block to measure, counted from 0: 12; -1 (the last); mid; best (as bench layers found it on the same "
            r"images); 4+8: both side by side \[default: 12, or the last if there are fewer]."
        ),
    ] = ()  # type: ignore[assignment]

    @property
    def block(self) -> Any:
        """The block that is named; None for none."""
        return single_layer(self.layer)

    @property
    def blocks(self) -> list[Any]:
        """The one block that is named, if any."""
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
            help="Blocks to measure, counted from 0: 12; -1 (the last); mid; best (as bench layers found it on the "
            r"same images); several: 4,8; side by side: 4+8. May be repeated \[default: 12, or the last if there are "
            "fewer; with --protocol dinov2 the last, and the last four; all that embeddings hold]."
        ),
    ] = ()  # type: ignore[assignment]
    codes: Annotated[bool, typer.Option("--codes", help="Measure the tokenizer's bits instead of hidden states.")] = (
        False
    )

    @property
    def blocks(self) -> list[Any]:
        """All that are named."""
        return parse_blocks(self.layer) if self.layer else []


@dataclass(frozen=True, kw_only=True)
class TokenBlocks:
    """Any blocks, whose tokens are read one by one."""

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
            help="Blocks to measure, counted from 0: 12; -1 (the last); mid; several: 4,8. May be repeated "
            r"\[default: 12, or the last if there are fewer]."
        ),
    ] = ()  # type: ignore[assignment]

    @property
    def blocks(self) -> list[Any]:
        """All that are named."""
        return parse_blocks(self.layer, ("mid",)) if self.layer else []


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
    seeds: Annotated[
        int, typer.Option(min=1, help="Times to train the probe, with random seeds counted up from --seed.")
    ] = 1
    rates: Annotated[
        str,
        typer.Option(
            help=r"With mae, mage, dinov2: base rates to choose from, separated by commas \[default: the paper's]."
        ),
    ] = ""
    penalties: Annotated[
        str,
        typer.Option(
            "--C",
            help="With logreg: values of C to choose from, separated by commas; a single one is taken as it is, so "
            r"that one image per class is enough \[default: 17 of 1e-6..100].",
        ),
    ] = ""
    batch: Annotated[
        int | None,
        typer.Option(min=1, help=r"With mae, mage, dinov2: images per step \[default: the paper's]."),
    ] = None


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
        typer.Option(help=r"Folder to keep features in, to compute them once \[default: ~/.cache/bigr-repr]."),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images that the network takes at a time.")] = 32
    workers: Annotated[
        int | None, typer.Option(min=1, help=r"Images decoded in parallel \[default: one per core, 32 at most].")
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions(Machine):
    """The same with the random seed."""

    seed: Annotated[
        int, typer.Option(min=0, help="Random seed, also of the choice of images where there is a limit.")
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
        """Raises BadParameter where the two options contradict each other."""
        if self.as_json and self.form not in (None, Format.json):
            raise typer.BadParameter(f"{self.form} contradicts --json; give one of them", param_hint="--format")
        return Format.json if self.as_json else self.form or Format.table


def settings_of(*groups: Any) -> BenchSettings:
    """Settings of the library from groups of options. Raises BadParameter for numbers that cannot be read."""
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


def parse_blocks(values: list[str], names: tuple[str, ...] = NAMES) -> list[Any]:
    """Blocks out of options such as "12", "-1", "4,8,12", "4+8" (side by side) and the names. Raises BadParameter."""
    found: list[Any] = []
    for text in ",".join(values).split(","):
        parts = parse_layers([text.replace("+", ",")], names)
        found.append(parts[0] if len(parts) == 1 else tuple(parts))
    return found


def single_layer(values: list[str], names: tuple[str, ...] = NAMES) -> Any:
    """The block that an option names; None for none. Raises BadParameter for several."""
    layers = parse_blocks(values, names) if values else [None]
    if len(layers) > 1:
        raise typer.BadParameter(f"{','.join(values)!r} names several blocks; give one", param_hint="--layer")
    return layers[0]


def parse_rates(text: str, option: str) -> tuple[float, ...]:
    """Numbers above 0 separated by commas, none for "". Raises BadParameter for anything else."""
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (0.0,)
    if any(not 0 < value < float("inf") for value in found):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0, as 0.01,0.1", param_hint=option)
    return found


def check_picture(path: Path, *endings: str, option: str = "--out") -> None:
    """Raises BadParameter for another ending or a folder that is not there, before anything is computed."""
    if path.suffix not in endings:
        raise typer.BadParameter(f"{path} must end in {' or '.join(endings)}", param_hint=option)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path.absolute().parent} is not a folder", param_hint=option)


def _named(features: str, labels: str) -> str:
    """How the library calls a file of features."""
    return f"features:{features}" + (f"?labels={labels}" if labels else "")
