"""`bigr-repr bench attentive-probe`, `augmented-probe`, `finetune`, `few-shot` and `clusters`."""

import dataclasses
from typing import Annotated

import typer

from bigr_repr_cli.bench import data as d
from bigr_repr_cli.bench import options as o
from bigr_repr_cli.flatten import flattened
from bigr_repr_cli.parse import parse_numbers
from bigr_repr_cli.progress import bench_progress


@flattened
def attentive_probe(
    source: d.DataOptions,
    limits: d.SampleSizes,
    features: o.TokenBlocks,
    running: o.RunOptions,
    output: o.Printing,
    queries: Annotated[int, typer.Option(min=1, help="Learned queries; they must divide the tokens' width.")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    batch: Annotated[int, typer.Option(min=1, help="Images per step of the probe.")] = 256,
    rates: Annotated[
        str, typer.Option(help=r"Learning rates to choose from, separated by commas \[default: 3e-4,1e-3,3e-3,1e-2].")
    ] = "",
) -> None:
    """Train attention queries over a block's tokens and a linear classifier on the result; all blocks in one run.

    Rates are chosen on a held-out part of the training images, unless there is a single one.
    """
    settings, blocks = o.settings_of(features, running), features.blocks
    given = o.parse_rates(rates, "--rates")
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.evaluate.probes.attentive import AttentiveProbe
    from bigr_repr.evaluate.runs.attention import bench_attentive
    from bigr_repr.evaluate.runs.bench import chosen_row
    from bigr_repr_cli.bench.report import print_rows

    probe = AttentiveProbe(
        queries=queries,
        epochs=epochs,
        batch=batch,
        **({"rates": given} if given else {}),  # type: ignore[arg-type]
    )
    with bench_progress() as on_progress:
        rows = bench_attentive(features.model, data, settings, probe=probe, layers=blocks, on_progress=on_progress)
    print_rows(rows, output.chosen, best=chosen_row(rows) if len(rows) > 1 else None)


@flattened
def augmented_probe(
    source: d.ImageOptions,
    limits: d.SampleSizes,
    features: o.Blocks,
    probing: o.CropProbing,
    running: o.RunOptions,
    output: o.Printing,
    epochs: Annotated[
        int | None, typer.Option(min=1, help=r"Passes over the training images \[default: the protocol's].")
    ] = None,
) -> None:
    """Train the linear probe of mae, mage or dinov2 on random crops, drawn anew in every epoch.

    This is the published protocol; it takes a pass through the network per epoch and width of features, of which
    dinov2's grid has up to four. Rates are chosen on a held-out part.
    """
    settings, blocks = o.settings_of(features, probing, running), features.blocks
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.evaluate.runs.augmented import bench_augmented
    from bigr_repr.evaluate.runs.bench import chosen_row
    from bigr_repr_cli.bench.report import print_rows

    with bench_progress() as on_progress:
        rows = bench_augmented(features.model, data, settings, epochs=epochs, layers=blocks, on_progress=on_progress)
    print_rows(rows, output.chosen, best=chosen_row(rows) if len(rows) > 1 else None)


@flattened
def finetune(
    source: d.ImageOptions,
    limits: d.SampleSizes,
    features: o.OneBlock,
    running: o.RunOptions,
    output: o.Printing,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    rate: Annotated[float, typer.Option(help="Learning rate of the head for a batch of 256.")] = 1e-3,
    layer_decay: Annotated[
        float, typer.Option(help="Layer-wise decay: factor on a block's rate for each block after it, in (0, 1].")
    ] = 0.75,
    weight_decay: Annotated[float, typer.Option(min=0, help="Weight decay of AdamW.")] = 0.05,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 64,
    crops: Annotated[bool, typer.Option(help="Train on random crops and mirror images.")] = True,
) -> None:
    """Fine-tune a whole network with a linear head, with lower rates for early blocks; test it once, at the end.

    For BiGR models, whose tokenizer stays frozen, and timm backbones. The trained network is not kept.
    """
    settings, block = o.settings_of(features, running), features.block
    data = source.open(running.seed, limit=limits.limit, test_limit=limits.test_limit)
    from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
    from bigr_repr.evaluate.runs.finetune import FineTuning, bench_finetune
    from bigr_repr_cli.bench.report import print_rows

    tuning = FineTuning(
        epochs=epochs, rate=rate, layer_decay=layer_decay, weight_decay=weight_decay, batch=batch, crops=crops
    )
    with bench_progress() as on_progress:
        row = bench_finetune(
            features.model or DEFAULT_MODEL, data, settings, tuning=tuning, layer=block, on_progress=on_progress
        )
    print_rows([row], output.chosen)


@flattened
def few_shot(
    source: d.DataOptions,
    features: o.Blocks,
    running: o.RunOptions,
    output: o.Printing,
    shots: Annotated[str, typer.Option(help="Labeled images per class, separated by commas.")] = "1,5,10",
    draws: Annotated[int, typer.Option(min=1, help="Number of random draws.")] = 5,
    penalty: Annotated[float, typer.Option("--C", help="Fixed penalty C of the logistic regression.")] = 1,
    limit: d.Limit = None,
    test_limit: d.TestLimit = None,
) -> None:
    """Train the linear probe on a few images of each class, drawn several times."""
    settings = dataclasses.replace(o.settings_of(features, running), C=(penalty,))
    blocks, numbers = features.blocks, parse_numbers(shots, "--shots")
    data = source.open(running.seed, limit=limit, test_limit=test_limit)
    from bigr_repr.evaluate.runs.few_shot import bench_few_shot
    from bigr_repr_cli.bench.report import print_few_shot

    with bench_progress() as on_progress:
        rows = bench_few_shot(
            features.model, data, settings, shots=numbers, draws=draws, layers=blocks, on_progress=on_progress
        )
    print_few_shot(rows, data.name, output.chosen)


@flattened
def clusters(
    source: d.DataOptions,
    features: o.Blocks,
    running: o.RunOptions,
    output: o.Printing,
    test_limit: d.TestLimit = None,
) -> None:
    """Cluster the test images' features and compare with their classes; measure effective rank and uniformity."""
    settings, blocks = o.settings_of(features, running), features.blocks
    data = source.open(running.seed, test_limit=test_limit)
    from bigr_repr.evaluate.runs.few_shot import bench_clusters
    from bigr_repr_cli.bench.report import print_clusters

    with bench_progress() as on_progress:
        rows = bench_clusters(features.model, data, settings, layers=blocks, on_progress=on_progress)
    print_clusters(rows, data.name, output.chosen)
