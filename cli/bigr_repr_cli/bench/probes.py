"""`bigr-repr bench linear-probe`, `knn` and `layers`."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.bench import data as d
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.progress import bench_progress


@flattened
def linear_probe(
    source: d.DataOptions, limits: d.SampleSizes, features: o.Blocks, probing: o.Probing, running: o.RunOptions,
    output: o.Printing,
) -> None:  # fmt: skip
    """Train a linear classifier on frozen features and test it.

    Rate or penalty is chosen on a held-out part of the training images; a warning says if it lies at the edge of its
    grid.
    """
    settings, blocks = o.settings_of(features, probing, running), features.blocks
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.evaluate.runs.bench import bench, chosen_row
    from bigr_repr_cli.bench.report import print_rows

    with bench_progress() as on_progress:
        rows = bench(features.model, data, settings, layers=blocks, neighbors=False, on_progress=on_progress)
    print_rows(rows, output.chosen, best=chosen_row(rows) if len(rows) > 1 else None)


@flattened
def knn(
    source: d.DataOptions,
    limits: d.SampleSizes,
    features: o.Blocks,
    voting: o.Voting,
    running: o.RunOptions,
    output: o.Printing,
) -> None:
    """Classify test images by their nearest training images: by cosine, or by Hamming distance with --codes.

    Votes are weighted by exp(similarity / 0.07), as in DINO.
    """
    settings, blocks = o.settings_of(features, voting, running), features.blocks
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.evaluate.runs.bench import bench
    from bigr_repr_cli.bench.report import print_rows

    with bench_progress() as on_progress:
        rows = bench(features.model, data, settings, layers=blocks, probe=False, on_progress=on_progress)
    print_rows(rows, output.chosen)


@flattened
def layers(
    source: d.DataOptions,
    limits: d.SampleSizes,
    network: o.NetworkOptions,
    probing: o.Probing,
    voting: o.Voting,
    running: o.RunOptions,
    output: o.Printing,
    plot: Annotated[Path | None, typer.Option(help="Also plot accuracy by layer to this .png or .svg file.")] = None,
) -> None:
    """Probe every block in one pass over the images; afterwards, --layer best names the best one."""
    if plot is not None:
        o.check_picture(plot, ".png", ".svg", option="--plot")
    settings = o.settings_of(network, probing, voting, running)
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.evaluate.reports.plots import plot_layers
    from bigr_repr.evaluate.runs.bench import bench, chosen_row
    from bigr_repr_cli.bench.report import print_rows

    with bench_progress() as on_progress:
        rows = bench(network.model, data, settings, layers=None, on_progress=on_progress)
    if plot is not None:
        plot_layers(rows, plot)
    print_rows(rows, output.chosen, best=chosen_row(rows))
