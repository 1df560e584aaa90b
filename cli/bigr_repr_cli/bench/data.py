"""Options for where the benchmark commands get images, features and labels, and how many. Knows no networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr_repr_cli.options import ImageColumn, LabelColumn

if TYPE_CHECKING:
    from bigr_repr.evaluate.data.splits import BenchData

Limit = Annotated[
    int | None,
    typer.Option(min=1, help=r"Training images to use, sampled in proportion to the classes \[default: all]."),
]
_Data = Annotated[
    str,
    typer.Option(
        help="Data set: digits, cifar10, cifar100, stl10, tiny-imagenet, imagenette, imagenet, places365, flowers102, "
        "pets, dtd, eurosat or food101; or an image folder, Parquet files, or embeddings."
    ),
]
_FEATURES = "Features from any tool instead of a model's: .npy, .npz, .parquet or a folder of Parquet files"
_LABELS = "Labels of --{}features: .npy, .npz, .parquet, or text with one per line"
TestSample = Annotated[
    int, typer.Option(min=1, help="Maximum number of test images, sampled in proportion to the classes.")
]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Where images and their labels come from."""

    dataset: _Data = ""
    train_on: Annotated[str, typer.Option(help="Instead of --dataset: data set whose training images to use.")] = ""
    test_on: Annotated[str, typer.Option(help="With --train-on: data set whose test images to use.")] = ""
    root: Annotated[Path, typer.Option(help="Folder of the data sets that are given by name.")] = Path("data")
    aliases: Annotated[
        Path | None,
        typer.Option(
            help="With --train-on: YAML file of class synonyms, CLASS: {same: [NAME], kinds: [NAME or "
            r"WordNet id]} \[default: the package's]."
        ),
    ] = None
    image_column: ImageColumn = "image"
    label_column: LabelColumn = "label"

    def open(self, seed: int, *, limit: int | None = None, test_limit: int | None = None) -> BenchData:
        """The data named by the options. Raises BadParameter unless they name one data set, or both sides."""
        self._check_named("give --dataset, or both --train-on and --test-on")
        from bigr_repr.evaluate.data.splits import open_data, transfer

        shared = self._shared(seed, limit, test_limit)
        if self.dataset:
            return open_data(self.dataset, **shared)
        return transfer(self.train_on, self.test_on, aliases=self.aliases, **shared)

    def _shared(self, seed: int, limit: int | None, test_limit: int | None) -> dict[str, Any]:
        from bigr_repr.images.parquet import Columns

        columns = Columns(image=self.image_column, label=self.label_column)
        return {"root": self.root, "limit": limit, "test_limit": test_limit, "seed": seed, "columns": columns}

    def _check_named(self, wanted: str) -> None:
        if bool(self.train_on) != bool(self.test_on) or bool(self.dataset) == bool(self.train_on):
            raise typer.BadParameter(wanted, param_hint="--dataset")
        self._check_aliases()

    def _check_aliases(self) -> None:
        if self.aliases is not None and not self.train_on:
            wanted = "applies only to --train-on and --test-on; leave it out, or give them"
            raise typer.BadParameter(wanted, param_hint="--aliases")


@dataclass(frozen=True, kw_only=True)
class DataOptions(ImageOptions):
    """Where images, or features, and labels come from."""

    features: Annotated[
        str, typer.Option(help=f"{_FEATURES}; in the order of --dataset's images, or with labels of their own.")
    ] = ""
    labels: Annotated[str, typer.Option(help=rf"{_LABELS.format('')} \[default: its array or column named label].")] = (
        ""
    )
    test_features: Annotated[
        str, typer.Option(help=r"The same for the test images \[default: hold out a fifth of the training images].")
    ] = ""
    test_labels: Annotated[str, typer.Option(help=f"{_LABELS.format('test-')}.")] = ""

    def open(self, seed: int, *, limit: int | None = None, test_limit: int | None = None) -> BenchData:
        """The data named by the options. Raises BadParameter unless they name one data set, or both sides."""
        self._check_features()
        from bigr_repr.evaluate.data.splits import open_data, transfer, with_features

        if self.dataset or not self.features:
            data = super().open(seed, limit=limit, test_limit=test_limit)
            return with_features(data, self.features, self.test_features or None) if self.features else data
        shared = self._shared(seed, limit, test_limit)
        train, test = _named(self.features, self.labels), _named(self.test_features, self.test_labels)
        return transfer(train, test, **shared) if self.test_features else open_data(train, **shared)

    def _check_features(self) -> None:
        if self.dataset or self.train_on or self.test_on or not self.features:
            self._check_named("give --dataset, or both --train-on and --test-on, or --features with --labels")
        own = {"--labels": self.labels, "--test-features": self.test_features, "--test-labels": self.test_labels}
        for option, value in own.items():
            if value and not self.features:
                raise typer.BadParameter("applies only to --features; give it too", param_hint=option)
        if self.features and (self.train_on or (self.dataset and (self.labels or self.test_labels))):
            raise typer.BadParameter("takes either --dataset or labels of its own, not both", param_hint="--features")
        if self.test_labels and not self.test_features:
            raise typer.BadParameter("applies only to --test-features; give it too", param_hint="--test-labels")
        self._check_aliases()


@dataclass(frozen=True, kw_only=True)
class TokenFiles:
    """Tokens of both sides' images, instead of a model's."""

    features: Annotated[
        str,
        typer.Option(
            help="Tokens from any tool instead of a model's: .npy, .npz or .parquet of (images, tokens, numbers), for "
            "the middle squares of all training images in the order of their names; a square number of tokens."
        ),
    ] = ""
    test_features: Annotated[str, typer.Option(help="The same for the test images.")] = ""

    @property
    def files(self) -> tuple[str, str] | None:
        """Of both sides; None if not given. Raises BadParameter for one side."""
        if bool(self.features) != bool(self.test_features):
            raise typer.BadParameter("belong together; give both, or neither", param_hint="--features, --test-features")
        return (self.features, self.test_features) if self.features else None


TestLimit = Annotated[
    int | None, typer.Option(min=1, help=r"Test images to use, sampled in proportion to the classes \[default: all].")
]


@dataclass(frozen=True, kw_only=True)
class SampleSizes:
    """How many images."""

    limit: Limit = None
    test_limit: TestLimit = None


def _named(features: str, labels: str) -> str:
    """The library's name for a file of features."""
    return f"features:{features}" + (f"?labels={labels}" if labels else "")
