"""Options that the benchmark commands share, and what they make of them. Knows no results."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr_cli.parse import parse_layers, parse_numbers

if TYPE_CHECKING:
    from bigr_repr.evaluate.data.splits import BenchData
    from bigr_repr.evaluate.runs.extraction import BenchSettings

Pooling = StrEnum("Pooling", [("avg", "avg"), ("max", "max"), ("both", "avg+max")])
Probe = StrEnum("Probe", ["logreg", "mae", "mage", "dinov2"])

Model = Annotated[
    str | None,
    typer.Option(
        help="What to measure: a model's name or folder, tokenizer-bits, random, random-generator, timm:NAME or "
        rf"pixels \[default: {DEFAULT_MODEL}, or the model that made the embeddings].",
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        help="Data set: digits, cifar10, cifar100, stl10, tiny-imagenet, imagenette, imagenet, places365, flowers102, "
        "pets, dtd, eurosat or food101; or an image folder, Parquet files, or embeddings."
    ),
]
TrainOn = Annotated[str, typer.Option(help="Instead of --dataset: data set whose training images to take.")]
TestOn = Annotated[str, typer.Option(help="With --train-on: data set whose test images to take.")]
Root = Annotated[Path, typer.Option(help="Folder that holds the data sets given by name.")]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help=r"Training images to take, from every class in proportion \[default: all]."),
]
TestLimit = Annotated[
    int | None, typer.Option(min=1, help=r"Test images to take, from every class in proportion \[default: all].")
]
TestSample = Annotated[int, typer.Option(min=1, help="Test images to take at most, from every class in proportion.")]
Layer = Annotated[
    list[str],
    typer.Option(
        help="Blocks to measure, counted from 0: 12; -1 (the last); mid; best (as bench layers found it); several: "
        r"4,8. May be repeated \[default: 12, or the last if there are fewer; all that embeddings hold]."
    ),
]
SingleLayer = Annotated[
    list[str],
    typer.Option(
        help="Block to measure, counted from 0: 12; -1 (the last); mid; best (as bench layers found it) "
        r"\[default: 12, or the last if there are fewer]."
    ),
]
Pool = Annotated[
    Pooling, typer.Option(help="How a block's tokens become one vector: their mean, their maximum, or both in a row.")
]
BitCodes = Annotated[bool, typer.Option("--codes", help="Measure the tokenizer's bits instead of hidden states.")]
Protocol = Annotated[
    Probe,
    typer.Option(
        help="How the linear probe is trained. logreg: logistic regression to its optimum; mae, mage, dinov2: gradient "
        "descent as in these papers, without augmentation."
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Times to train the probe, with random seeds counted up from --seed.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed, also of the choice of images where there is a limit.")]
Neighbors = Annotated[
    str, typer.Option("-k", "--k", help="Numbers of nearest neighbors that vote, separated by commas.")
]
Center = Annotated[bool, typer.Option("--center", help="Subtract the mean of the training features before the cosine.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that the network takes at a time.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help=r"Images decoded in parallel \[default: one per core, 32 at most].")
]
Cache = Annotated[
    Path | None,
    typer.Option(help=r"Folder to keep features in, to compute them once \[default: ~/.cache/bigr-repr]."),
]


def single_layer(values: list[str], names: tuple[str, ...] = ("mid", "best")) -> int | str | None:
    """The block that an option names; None for none. Raises BadParameter for several."""
    layers = parse_layers(values, names) if values else [None]
    if len(layers) > 1:
        raise typer.BadParameter(f"{','.join(values)!r} names several blocks; give one", param_hint="--layer")
    return layers[0]


def open_sides(
    dataset: str, train_on: str, test_on: str, root: Path, limit: int | None, test_limit: int | None, seed: int
) -> BenchData:
    """The data that the options name. Raises BadParameter unless they name one data set, or both sides."""
    if bool(train_on) != bool(test_on) or bool(dataset) == bool(train_on):
        raise typer.BadParameter("give --dataset, or both --train-on and --test-on", param_hint="--dataset")
    from bigr_repr.evaluate.data.splits import open_data, transfer

    if dataset:
        return open_data(dataset, root=root, limit=limit, test_limit=test_limit, seed=seed)
    return transfer(train_on, test_on, root=root, limit=limit, test_limit=test_limit, seed=seed)


def check_picture(path: Path, *endings: str, option: str = "--out") -> None:
    """Raises BadParameter for another ending or a folder that is not there, before anything is computed."""
    if path.suffix not in endings:
        raise typer.BadParameter(f"{path} must end in {' or '.join(endings)}", param_hint=option)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path.absolute().parent} is not a folder", param_hint=option)


def make_settings(
    *,
    protocol: Probe = Probe.logreg,
    seeds: int = 1,
    seed: int = 0,
    k: str = "10,20,100,200",
    center: bool = False,
    pool: Pooling = Pooling.avg,
    codes: bool = False,
    device: str = "auto",
    cache: Path | None = None,
    batch_size: int = 32,
    workers: int | None = None,
) -> BenchSettings:
    """Settings of the library from options."""
    neighbors = parse_numbers(k, "--k")
    from bigr_repr.evaluate.runs.cache import default_cache
    from bigr_repr.evaluate.runs.extraction import BenchSettings

    return BenchSettings(
        protocol=str(protocol), seeds=tuple(range(seed, seed + seeds)), k=neighbors, center=center, pool=str(pool),
        codes=codes, device=device, cache=cache or default_cache(), batch_size=batch_size, workers=workers,
    )  # fmt: skip
