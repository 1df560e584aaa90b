"""`bigr-repr train tokenizer`."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.progress import training_progress


def command(
    data: Annotated[list[str], typer.Argument(help="Folders, Parquet files, or torchvision:NAME:ROOT.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the result.")],
    preset: Annotated[str, typer.Option(help="Architecture, as in: bigr-repr models list.")] = "tiny",
    initial: Annotated[str, typer.Option(help="Start from this tokenizer: a folder, or a model's name.")] = "",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option(help="Images a step, over all processes.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="0: 4.5e-6 x batch size, as the paper.")] = 0.0,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 0,
    schedule: Annotated[str, typer.Option(help="constant or cosine.")] = "constant",
    crop: Annotated[int, typer.Option(help="Train on random squares of this side in pixels; 0: whole images.")] = 0,
    pixel_loss: Annotated[str, typer.Option(help="l1, or l2 (mean squared error: the better PSNR).")] = "l1",
    perceptual: Annotated[str, typer.Option(help='timm backbone of the perceptual loss, or "none".')] = "vgg16.tv_in1k",
    gan_start: Annotated[int, typer.Option(help="First step with the discriminator; -1: never.")] = 30_000,
    sample_bits: Annotated[bool, typer.Option(help="Draw bits in training instead of thresholding.")] = True,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.9999,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1000,
    sample_every: Annotated[int, typer.Option(help="Steps between reconstruction grids; 0: none.")] = 1000,
    log_every: Annotated[int, typer.Option(help="Steps between log lines.")] = 50,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: in the training process.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, flips and draws.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
) -> None:
    """Train the binary autoencoder; the same command resumes a broken run. Writes OUT/tokenizer."""
    from accelerate import PartialState

    from bigr_repr.checkpoints import load_tokenizer, save_tokenizer
    from bigr_repr.config import preset as architecture
    from bigr_repr.datasets import open_images
    from bigr_repr.train.loop import TrainSettings
    from bigr_repr.train.tokenizer import TokenizerObjective, train_tokenizer

    settings = TrainSettings(
        out=str(out),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate or 4.5e-6 * batch_size,
        warmup=warmup,
        schedule=schedule,
        seed=seed,
        ema=ema,
        precision=precision,
        save_every=save_every,
        sample_every=sample_every,
        log_every=log_every,
        workers=workers,
        cpu=cpu,
    )
    objective = TokenizerObjective(
        pixel_loss=pixel_loss,
        perceptual=None if perceptual == "none" else perceptual,
        gan_start=None if gan_start < 0 else gan_start,
        sample_bits=sample_bits,
        crop=crop or None,
    )
    with training_progress(steps, "tokenizer") as on_step:
        start = load_tokenizer(initial) if initial else None
        config = architecture(preset).tokenizer if start is None else start.config
        model = train_tokenizer(
            open_images(data), config, settings, objective, initial=start, initial_name=initial, on_step=on_step
        )
    if PartialState().is_main_process:
        save_tokenizer(model, out / "tokenizer")
        typer.echo(f"tokenizer: {out / 'tokenizer'}")
