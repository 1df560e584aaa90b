"""`bigr-repr bench retrieval`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.options import Device, Json
from bigr_repr_cli.parse import parse_numbers
from bigr_repr_cli.progress import bench_progress


def command(
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    test_limit: o.TestLimit = None,
    layer: o.SingleLayer = [],  # noqa: B006
    pool: o.Pool = o.Pooling.avg,
    bits: Annotated[
        str, typer.Option(help="Code lengths in bits, for pca, rotation and itq, separated by commas.")
    ] = "64,128,256",
    shortlist: Annotated[
        int, typer.Option(min=1, help="Images per query that rescoring puts in the order of their vectors.")
    ] = 1000,
    seed: o.Seed = 0,
    device: Device = "auto",
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: Json = False,
) -> None:
    """Retrieve images of the test images' classes among the training images: floats, every binarizer, tokenizer bits.

    mAP over the relevant images in the database; equal distances count as the mean over their orders.
    """
    block, numbers = o.single_layer(layer), parse_numbers(bits, "--bits")
    from bigr_repr.evaluate.runs.bench import bench_retrieval
    from bigr_repr_cli.bench.report import print_retrieval

    settings = o.make_settings(seed=seed, pool=pool, device=device, cache=cache, batch_size=batch_size, workers=workers)
    data = o.open_sides(dataset, train_on, test_on, root, limit, test_limit, seed)
    with bench_progress() as on_progress:
        rows, features = bench_retrieval(
            model, data, settings, layer=block, bits=numbers, shortlist=shortlist, on_progress=on_progress
        )
    if as_json:
        where = next(iter(features.train)).layer
        head = {"dataset": data.name, "representation": features.representation, "layer": where}
        typer.echo(json.dumps(head | {"rows": [row.record() for row in rows]} | features.facts, indent=2))
        return
    print_retrieval(rows, features)
