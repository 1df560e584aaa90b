"""`bigr-repr train tokenizer`."""

from typing import Annotated

import typer

from bigr_repr_cli.flatten import flattened, values_of
from bigr_repr_cli.progress import training_progress
from bigr_repr_cli.train import options as o


@flattened
def command(
    data: o.Images,
    out: o.Out,
    losses: o.TokenizerLosses,
    training: o.TrainingOptions,
    preset: o.Preset = "tiny",
    initial: Annotated[
        str | None,
        typer.Option(help="Start from this tokenizer and its architecture: a folder, or a model's name."),
    ] = None,
    code_bits: Annotated[
        int | None, typer.Option(min=1, help=r"Bits per token \[default: the preset's, or the initial tokenizer's].")
    ] = None,
    steps: o.Steps = 1_000_000,
    batch_size: o.BatchSize = 32,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help=r"Peak learning rate \[default: 4.5e-6 times the batch size, as in the paper]."),
    ] = None,
    *,
    columns: o.ParquetColumns,
) -> None:
    """Train the binary autoencoder. To resume a stopped run, repeat the command.

    Writes OUT/tokenizer."""
    from bigr_repr.train.run import run_tokenizer_training
    from bigr_repr.train.settings import TrainSettings

    rate = 4.5e-6 * batch_size if learning_rate is None else learning_rate
    settings = TrainSettings(
        out=str(out), steps=steps, batch_size=batch_size, learning_rate=rate, **values_of(training)
    )
    with training_progress(steps, "tokenizer") as on_step:
        folder = run_tokenizer_training(
            data, settings, losses.recipe(), preset=preset, code_bits=code_bits, initial=initial,
            columns=columns.named, on_step=on_step,
        )  # fmt: skip
    o.print_result("tokenizer", folder)
