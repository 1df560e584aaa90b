"""`bigr-repr bench retrieval`."""

from typing import Annotated

import typer

from bigr_repr_cli.bench import data as d
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.parse import parse_numbers
from bigr_repr_cli.progress import bench_progress


@flattened
def command(
    source: d.DataOptions,
    limits: d.SampleSizes,
    features: o.OneBlock,
    running: o.RunOptions,
    output: o.Printing,
    bits: Annotated[
        str, typer.Option(help="Code lengths in bits, for pca, rotation and itq, separated by commas.")
    ] = "64,128,256",
    shortlist: Annotated[
        int, typer.Option(min=1, help="Images per query that rescoring reorders by their vectors.")
    ] = 1000,
) -> None:
    """Retrieve training images with test images as queries: floats, every binarizer, tokenizer bits.

    mAP over the relevant images in the database, averaged over all orders of ties.
    """
    block, numbers = features.block, parse_numbers(bits, "--bits")
    settings = o.settings_of(features, running)
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.evaluate.runs.bench import bench_retrieval
    from bigr_repr_cli.bench.report import print_retrieval

    with bench_progress() as on_progress:
        rows, found = bench_retrieval(
            features.model, data, settings, layer=block, bits=numbers, shortlist=shortlist, on_progress=on_progress
        )
    print_retrieval(rows, found, output.chosen)
