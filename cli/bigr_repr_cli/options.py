"""Options, and their choices, that several groups of commands share. Knows no single command."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bigr_repr.features.condition import FeatureCondition

# Rich treats unescaped square brackets in help texts as markup.
Codes = StrEnum("Codes", ["bits", "sign", "median", "pca", "rotation", "itq"])
Computed = StrEnum("Computed", ["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"])

Engine = StrEnum("Engine", ["local", "ray"])

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
Model = Annotated[str, typer.Option(help="A model's name (see bigr-repr models list) or folder.")]
Device = Annotated[str, typer.Option(help="Where the network runs: auto (first GPU, else CPU), cpu, cuda or cuda:1.")]
Precision = Annotated[
    Computed,
    typer.Option(
        metavar="float32|bfloat16|float16",
        help="Number type of the network's computation; fp32, bf16 and fp16 are aliases.",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network first: slower to start, then faster.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        help=r"Address of the Ray cluster's head, such as HOST:6379 \[default: RAY_ADDRESS, else a temporary "
        "cluster on this machine]."
    ),
]

Searching = Annotated[
    int,
    typer.Option(min=1, help="Processes that search a sharded index, each on its share of the cores; 1: this one."),
]

ImageColumn = Annotated[str, typer.Option(help="Column of Parquet files with encoded images.")]
LabelColumn = Annotated[str, typer.Option(help="Column of Parquet files with labels.")]

# What becomes codes, from an embedding data set.
StoredLayer = Annotated[
    str | None,
    typer.Option(help=r"Block whose vectors to use, 12 or 4+8 \[default: the data set's only one]."),
]
CodeKind = Annotated[
    Codes,
    typer.Option(
        "--codes",
        "--binarizer",
        "--binariser",
        help="Kind of codes. bits: the tokenizer's own, which embed --codes stores; others: the data set's "
        "vectors, binarized.",
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
    """What a BiGR model is given in addition to an image's bits when features are extracted."""

    condition: Annotated[
        str | None,
        typer.Option(
            help="Extract features with this class, by number or name, or, for a text model, with this caption "
            r"\[default: neither].",
            metavar="CLASS|CAPTION",
        ),
    ] = None
    masked_share: Annotated[
        float, typer.Option(help="Share of the tokens to mask when features are extracted, from 0 to below 1.")
    ] = 0.0
    mask_seed: Annotated[
        int, typer.Option(min=0, help="Random seed for choosing the masked tokens, the same in every image.")
    ] = 0

    @property
    def value(self) -> FeatureCondition:
        """The library's equivalent. Raises ValueError for values out of range."""
        from bigr_repr.features.condition import FeatureCondition

        return FeatureCondition(given=self.condition, masked_share=self.masked_share, mask_seed=self.mask_seed)
