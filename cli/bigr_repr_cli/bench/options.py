"""Options that the benchmark commands share, and what they make of them. Knows no results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigr_repr_cli.parse import parse_numbers

if TYPE_CHECKING:
    from bigr_repr.evaluate.extraction import BenchSettings
    from bigr_repr.evaluate.splits import BenchData

Model = Annotated[
    str | None,
    typer.Option(
        help="A model's name or folder, timm:NAME, pixels, tokenizer-bits, random or random-generator. "
        "[default: bigr-tiny, or the one that made the embeddings]",
        show_default=False,
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        help="digits, cifar10, cifar100, stl10, tiny-imagenet, imagenette, imagenet, places365, flowers102, pets, dtd, "
        "eurosat, food101; an image folder, Parquet files, embeddings."
    ),
]
TrainOn = Annotated[str, typer.Option(help="Instead of --dataset: where the training side comes from.")]
TestOn = Annotated[str, typer.Option(help="And the test side.")]
Root = Annotated[Path, typer.Option(help="Folder that data sets given by name lie in.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Training images, drawn from all classes in proportion.")]
TestLimit = Annotated[int | None, typer.Option(min=1, help="Test images, likewise.")]
Layer = Annotated[list[str], typer.Option(help='Blocks, as 12, -1, "mid", "best" or 4,8; by default block 12.')]
Pool = Annotated[str, typer.Option(help="Of a block's tokens: avg, max or avg+max.")]
Codes = Annotated[bool, typer.Option("--codes", help="The tokenizer's bits instead of hidden states.")]
Protocol = Annotated[str, typer.Option(help="logreg, mae, mage or dinov2.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions with other seeds.")]
Seed = Annotated[int, typer.Option(min=0, help="The first seed; also of the images drawn.")]
Neighbours = Annotated[str, typer.Option("-k", "--k", help="Numbers of neighbours.")]
Center = Annotated[bool, typer.Option("--center", help="Subtract the mean of the training features first.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; by default a GPU if there is one.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images the model takes at a time.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that decode; by default one a core.")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for features. [default: ~/.cache/bigr-repr]", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def open_sides(
    dataset: str, train_on: str, test_on: str, root: Path, limit: int | None, test_limit: int | None, seed: int
) -> BenchData:
    """The data that the options name. Raises BadParameter unless they name one data set, or both sides."""
    if bool(train_on) != bool(test_on) or bool(dataset) == bool(train_on):
        raise typer.BadParameter("give --dataset, or both --train-on and --test-on", param_hint="--dataset")
    from bigr_repr.evaluate.splits import open_data, transfer

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
    protocol: str = "logreg",
    seeds: int = 1,
    seed: int = 0,
    k: str = "10,20,100,200",
    center: bool = False,
    pool: str = "avg",
    codes: bool = False,
    device: str | None = None,
    cache: Path | None = None,
    batch_size: int = 32,
    workers: int | None = None,
) -> BenchSettings:
    """Settings of the library from options."""
    neighbours = parse_numbers(k, "--k")
    from bigr_repr.evaluate.cache import default_cache
    from bigr_repr.evaluate.extraction import BenchSettings

    return BenchSettings(
        protocol=protocol, seeds=tuple(range(seed, seed + seeds)), k=neighbours, center=center, pool=pool, codes=codes,
        device=device, cache=cache or default_cache(), batch_size=batch_size, workers=workers,
    )  # fmt: skip
