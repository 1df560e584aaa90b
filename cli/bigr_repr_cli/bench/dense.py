"""`bigr-repr bench multi-label` and `segment`."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import data as d
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.progress import bench_progress

_SOURCE = "a folder, Parquet file, or features:FILE"
_LABELS = "labels in their order: .npy of 0 and 1, (images, classes), or text with a line of names per image"
_Penalties = Annotated[
    str,
    typer.Option(
        "--C",
        help=r"Values of C to choose from, separated by commas; a single one is used as is \[default: a grid].",
    ),
]


@flattened
def multi_label(
    images: Annotated[str, typer.Option(help=f"Training images: {_SOURCE}.")],
    labels: Annotated[Path, typer.Option(help=f"Their {_LABELS}.")],
    test_images: Annotated[str, typer.Option(help="Test images, likewise.")],
    test_labels: Annotated[Path, typer.Option(help="Their labels, likewise.")],
    features: o.Blocks,
    running: o.RunOptions,
    output: o.Printing,
    penalties: _Penalties = "",
) -> None:
    """Train a linear classifier per class on images with several labels; report mean average precision."""
    settings, blocks = o.settings_of(features, running, o.Probing(penalties=penalties)), features.blocks
    from bigr_repr.evaluate.runs.multi_label import bench_multi_label
    from bigr_repr_cli.bench.report import print_multi_label

    with bench_progress() as on_progress:
        rows = bench_multi_label(
            features.model, (images, test_images), (labels, test_labels), settings, layers=blocks,
            on_progress=on_progress,
        )  # fmt: skip
    print_multi_label(rows, output.chosen)


@flattened
def segment(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with train and test, each with images and masks: for each picture a PNG of the same name "
            "with a class per pixel, 255 for none; classes.txt may name the classes."
        ),
    ],
    tokens: d.TokenFiles,
    limits: d.SampleSizes,
    features: o.TokenBlocks,
    running: o.RunOptions,
    output: o.Printing,
    penalties: _Penalties = "",
    side: Annotated[
        int, typer.Option(min=1, help="Resolution, in pixels, at which predictions are compared with masks.")
    ] = 256,
) -> None:
    """Train a linear head on tokens to predict the class of every pixel; report mean intersection over union."""
    settings, blocks = o.settings_of(features, running, o.Probing(penalties=penalties)), features.blocks
    files = tokens.files
    from bigr_repr.evaluate.runs.segment import bench_segment
    from bigr_repr_cli.bench.report import print_segment

    with bench_progress() as on_progress:
        rows = bench_segment(
            features.model, data, settings, layers=blocks, limit=limits.limit, test_limit=limits.test_limit, side=side,
            features=files, on_progress=on_progress,
        )  # fmt: skip
    print_segment(rows, data.name, output.chosen)
