"""`bigr-repr bench retrieval`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import options as o
from bigr_repr_cli.parse import parse_layers, parse_numbers
from bigr_repr_cli.progress import bench_progress


def command(
    model: o.Model = None,
    dataset: o.Dataset = "",
    train_on: o.TrainOn = "",
    test_on: o.TestOn = "",
    root: o.Root = Path("data"),
    limit: o.Limit = None,
    test_limit: o.TestLimit = None,
    layer: Annotated[str | None, typer.Option(help='A block, as 12, -1, "mid" or "best"; by default 12.')] = None,
    pool: o.Pool = "avg",
    bits: Annotated[str, typer.Option(help="Of the binarisers that have a choice.")] = "64,128,256",
    shortlist: Annotated[int, typer.Option(min=1, help="Rows a query that rescoring orders by their floats.")] = 1000,
    seed: o.Seed = 0,
    device: o.Device = None,
    cache: o.Cache = None,
    batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    as_json: o.AsJson = False,
) -> None:
    """Retrieve images of the test images' classes among the training images: floats, every binariser, tokenizer bits.

    mAP over the relevant in the data base; equal distances count as the mean over their orders.
    """
    layers = parse_layers([layer], ("mid", "best")) if layer else [None]
    if len(layers) > 1:
        raise typer.BadParameter(f"{layer!r} names several blocks; give one", param_hint="--layer")
    numbers = parse_numbers(bits, "--bits")
    from bigr_repr.evaluate.bench import bench_retrieval
    from bigr_repr_cli.bench.report import print_retrieval

    settings = o.make_settings(seed=seed, pool=pool, device=device, cache=cache, batch_size=batch_size, workers=workers)
    data = o.open_sides(dataset, train_on, test_on, root, limit, test_limit, seed)
    with bench_progress() as on_progress:
        rows, features = bench_retrieval(
            model, data, settings, layer=layers[0], bits=numbers, shortlist=shortlist, on_progress=on_progress
        )
    if as_json:
        where = next(iter(features.train)).layer
        head = {"dataset": data.name, "representation": features.representation, "layer": where}
        typer.echo(json.dumps(head | {"rows": [row.record() for row in rows]} | features.facts, indent=2))
        return
    print_retrieval(rows, features)
