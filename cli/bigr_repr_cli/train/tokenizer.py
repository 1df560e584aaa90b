"""`bigr-repr train tokenizer`."""

from typing import Annotated

import typer

from bigr_repr_cli.progress import training_progress
from bigr_repr_cli.train import options as o


def command(
    data: o.Images,
    out: o.Out,
    preset: o.Preset = "tiny",
    initial: Annotated[
        str | None,
        typer.Option(help="Start from this tokenizer, of its own architecture: a folder, or a model's name."),
    ] = None,
    steps: o.Steps = 1_000_000,
    batch_size: o.BatchSize = 32,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, help=r"Peak learning rate \[default: 4.5e-6 times the batch size, as in the paper]."),
    ] = None,
    warmup: o.Warmup = 0,
    schedule: o.Schedule = o.Scheduled.constant,
    crop: Annotated[
        int | None,
        typer.Option(min=1, help=r"Train on random squares of this side in pixels \[default: on whole images]."),
    ] = None,
    pixel_loss: Annotated[
        o.PixelLoss, typer.Option(help="l1: mean absolute error; l2: mean squared error, for a better PSNR.")
    ] = o.PixelLoss.l1,
    perceptual: Annotated[
        str, typer.Option(help="Backbone of the perceptual loss, a name of timm's; none: no such loss.")
    ] = ("vgg16.tv_in1k"),
    gan_start: Annotated[
        int, typer.Option(help="First step with the discriminator; a negative number: it never takes part.")
    ] = 30_000,
    sample_bits: Annotated[bool, typer.Option(help="Draw bits in training instead of thresholding them.")] = True,
    ema: o.Ema = 0.9999,
    precision: o.Precision = o.Computed.float32,
    save_every: o.SaveEvery = 1000,
    sample_every: o.SampleEvery = 1000,
    log_every: o.LogEvery = 50,
    workers: o.Workers = 0,
    seed: o.Seed = 0,
    cpu: o.Cpu = False,
) -> None:
    """Train the binary autoencoder; the same command resumes a broken run. Writes OUT/tokenizer."""
    from bigr_repr.train.loop import TrainSettings
    from bigr_repr.train.run import run_tokenizer_training
    from bigr_repr.train.tokenizer import TokenizerRecipe

    settings = TrainSettings(
        out=str(out), steps=steps, batch_size=batch_size, warmup=warmup, schedule=schedule, seed=seed, ema=ema,
        learning_rate=4.5e-6 * batch_size if learning_rate is None else learning_rate, precision=precision,
        save_every=save_every, sample_every=sample_every, log_every=log_every, workers=workers, cpu=cpu,
    )  # fmt: skip
    recipe = TokenizerRecipe(
        pixel_loss=pixel_loss, perceptual=None if perceptual == "none" else perceptual, sample_bits=sample_bits,
        gan_start=None if gan_start < 0 else gan_start, crop=crop,
    )  # fmt: skip
    with training_progress(steps, "tokenizer") as on_step:
        folder = run_tokenizer_training(data, settings, recipe, preset=preset, initial=initial, on_step=on_step)
    o.print_result("tokenizer", folder)
