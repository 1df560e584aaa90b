"""The options that commands of several groups share, and their choices. Knows no single command."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bigr_repr.features.condition import FeatureCondition

# Rich takes square brackets in help texts for markup, unless they are escaped.
Codes = StrEnum("Codes", ["bits", "sign", "median", "pca", "rotation", "itq"])
Computed = StrEnum("Computed", ["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"])

Engine = StrEnum("Engine", ["local", "ray"])

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
Model = Annotated[str, typer.Option(help="A model's name, as bigr-repr models list gives it, or a model folder.")]
Device = Annotated[str, typer.Option(help="Where the network runs: auto (first GPU, else CPU), cpu, cuda or cuda:1.")]
Precision = Annotated[
    Computed,
    typer.Option(
        metavar="float32|bfloat16|float16",
        help="Number type that the network computes in; fp32, bf16 and fp16 are the same.",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network first: slow to start, then faster.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help="Address of the Ray cluster's head, as HOST:6379 "
        r"\[default: the environment's RAY_ADDRESS, else a cluster of only this machine]."
    ),
]

Searching = Annotated[
    int,
    typer.Option(min=1, help="Processes that search an index in shards, each on its share of the cores; 1: this one."),
]

ImageColumn = Annotated[str, typer.Option(help="Column of Parquet files with the bytes of image files.")]
LabelColumn = Annotated[str, typer.Option(help="Column of Parquet files with labels.")]

# Of an embedding data set, what becomes codes.
StoredLayer = Annotated[
    str | None,
    typer.Option(help=r"Block whose vectors to take, 12 or 4+8 \[default: the only one that the data set has]."),
]
CodeKind = Annotated[
    Codes,
    typer.Option(
        "--codes",
        "--binarizer",
        "--binariser",
        help="What the codes are. bits: the tokenizer's own, which a data set has after embed --codes; the others: the "
        "vectors of a data set made binary.",
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits",
        "--n-bits",
        min=1,
        help=r"Length of a code in bits, for pca, rotation and itq \[default: one per feature].",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ReadWith:
    """What a BiGR model is told beside an image's bits when features are read."""

    condition: Annotated[
        str | None,
        typer.Option(
            help="Read features with this class, by number or name, or, of a model of captions, with this caption "
            r"\[default: neither].",
            metavar="CLASS|CAPTION",
        ),
    ] = None
    masked_share: Annotated[
        float, typer.Option(help="Share of the tokens to mask when features are read, from 0 to below 1.")
    ] = 0.0
    mask_seed: Annotated[
        int, typer.Option(min=0, help="Random seed of which tokens are masked, the same in every image.")
    ] = 0

    @property
    def value(self) -> FeatureCondition:
        """As the library takes it. Raises ValueError for values out of range."""
        from bigr_repr.features.condition import FeatureCondition

        return FeatureCondition(given=self.condition, masked_share=self.masked_share, mask_seed=self.mask_seed)
