"""`bigr-repr train generator`."""

from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.progress import training_progress


def command(
    data: Annotated[list[str], typer.Argument(help="A folder made by `train codes`; or images, as for the others.")],
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer that made the codes, or a model's name.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the result.")],
    preset: Annotated[str, typer.Option(help="Architecture, as in: bigr-repr models list.")] = "tiny",
    name: Annotated[str, typer.Option(help="Name that the model carries.")] = "",
    initial: Annotated[str, typer.Option(help="Start from the weights of this model.")] = "",
    objective: Annotated[str, typer.Option(help="What the transcoder predicts: flip, x0 or bce.")] = "flip",
    attention: Annotated[str, typer.Option(help="full, or causal: an autoregressive model.")] = "full",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 500_000,
    batch_size: Annotated[int, typer.Option(help="Images a step, over all processes.")] = 1024,
    accumulate: Annotated[int, typer.Option(help="Passes that a batch is split into.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = 1e-4,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 0,
    schedule: Annotated[str, typer.Option(help="constant or cosine.")] = "constant",
    conditional: Annotated[
        bool | None, typer.Option(help="Learn classes. [default: where there are labels]", show_default=False)
    ] = None,
    class_dropout: Annotated[float, typer.Option(help="Chance that a label is hidden.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Dropout of each block's branches.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="On the transformer's matrices.")] = 0.02,
    diffusion_draws: Annotated[int, typer.Option(help="Noise draws a masked token and pass.")] = 1,
    sample_bits: Annotated[bool, typer.Option(help="From images: draw bits, instead of thresholding them.")] = True,
    optimizer: Annotated[str, typer.Option(help="adamw; or muon, for the matrices of the blocks.")] = "adamw",
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.9999,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    compile_blocks: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the blocks.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1000,
    sample_every: Annotated[int, typer.Option(help="Steps between sample grids; 0: none.")] = 1000,
    log_every: Annotated[int, typer.Option(help="Steps between log lines.")] = 50,
    workers: Annotated[int, typer.Option(help="Data processes; 0: in the training process.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, masks and draws.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")] = False,
) -> None:
    """Train the generator; the same command resumes a broken run. Writes OUT/model, which every command can load."""
    from bigr_repr.train.generator import GeneratorObjective
    from bigr_repr.train.loop import TrainSettings
    from bigr_repr.train.run import run_generator_training

    settings = TrainSettings(
        out=str(out),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
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
    towards = GeneratorObjective(
        conditional=conditional,
        class_dropout=class_dropout,
        dropout=dropout,
        weight_decay=weight_decay,
        diffusion_draws=diffusion_draws,
        accumulate=accumulate,
        sample_bits=sample_bits,
        optimizer=optimizer,
    )
    with training_progress(steps, "generator") as on_step:
        folder = run_generator_training(
            data,
            tokenizer,
            settings,
            towards,
            preset=preset,
            objective=objective,
            attention=attention,
            name=name,
            initial=initial,
            compile_blocks=compile_blocks,
            on_step=on_step,
        )
    typer.echo(f"model: {folder}")
