"""`bigr-repr train generator`."""

from typing import Annotated

import typer

from bigr_repr_cli.progress import training_progress
from bigr_repr_cli.train import options as o


def command(
    data: Annotated[list[str], typer.Argument(help="A folder made by `train codes`; or images, as for the others.")],
    tokenizer: Annotated[str, typer.Option(help="Folder of the tokenizer that made the codes, or a model's name.")],
    out: o.Out,
    preset: o.Preset = "tiny",
    name: Annotated[str | None, typer.Option(help=r"Name that the model carries \[default: the preset's].")] = None,
    initial: Annotated[
        str | None, typer.Option(help=r"Start from the weights of this model \[default: random ones].")
    ] = None,
    objective: Annotated[o.Objective, typer.Option(help="What the transcoder predicts.")] = o.Objective.flip,
    attention: Annotated[
        o.Attention, typer.Option(help="full: masked tokens, both ways; causal: an autoregressive model.")
    ] = o.Attention.full,
    steps: o.Steps = 500_000,
    batch_size: o.BatchSize = 1024,
    accumulate: Annotated[int, typer.Option(min=1, help="Passes that a batch is split into.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate, above 0.")] = 1e-4,
    warmup: o.Warmup = 0,
    schedule: o.Schedule = o.Scheduled.constant,
    conditional: Annotated[bool | None, typer.Option(help=r"Learn classes \[default: where there are labels].")] = None,
    class_dropout: Annotated[
        float,
        typer.Option(min=0, max=1, help="Probability of hiding an image's label in training, which guidance needs."),
    ] = 0.1,
    dropout: Annotated[float, typer.Option(min=0, max=1, help="Dropout of each block's branches.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(min=0, help="Weight decay of the transformer's matrices.")] = 0.02,
    diffusion_draws: Annotated[int, typer.Option(min=1, help="Noise draws per masked token in each pass.")] = 1,
    sample_bits: Annotated[bool, typer.Option(help="From images: draw bits, instead of thresholding them.")] = True,
    optimizer: Annotated[
        o.Optimizer, typer.Option(help="muon: Muon for the matrices of the blocks, AdamW for the rest.")
    ] = o.Optimizer.adamw,
    masking: Annotated[o.Masking, typer.Option(help="cosine: as in drawing; half: shares around one half.")] = (
        o.Masking.cosine
    ),
    light_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the images with next to nothing masked.")
    ] = 0.0,
    read_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the tokens read at a step, above 0; all at the end.")
    ] = 1.0,
    align_weight: Annotated[
        float, typer.Option(min=0, help="Weight of predicting, token by token, what the network of the codes sees.")
    ] = 0.0,
    align_block: Annotated[
        int | None, typer.Option(help=r"Block whose states predict it \[default: after a third].")
    ] = None,
    pool_weight: Annotated[float, typer.Option(min=0, help="The same of the whole image.")] = 0.0,
    pool_block: Annotated[
        int | None, typer.Option(help=r"Block whose mean predicts that \[default: after three fifths].")
    ] = None,
    ema: o.Ema = 0.9999,
    precision: o.Precision = o.Computed.float32,
    compile_blocks: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the blocks: slow start, then faster.")
    ] = False,
    save_every: o.SaveEvery = 1000,
    sample_every: o.SampleEvery = 1000,
    log_every: o.LogEvery = 50,
    workers: o.Workers = 0,
    seed: o.Seed = 0,
    cpu: o.Cpu = False,
) -> None:
    """Train the generator; the same command resumes a broken run. Writes OUT/model, which every command can load."""
    from bigr_repr.train.generator import GeneratorRecipe
    from bigr_repr.train.loop import TrainSettings
    from bigr_repr.train.run import run_generator_training

    settings = TrainSettings(
        out=str(out), steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup,
        schedule=schedule, seed=seed, ema=ema, precision=precision, save_every=save_every, sample_every=sample_every,
        log_every=log_every, workers=workers, cpu=cpu,
    )  # fmt: skip
    recipe = GeneratorRecipe(
        conditional=conditional, class_dropout=class_dropout, dropout=dropout, weight_decay=weight_decay,
        diffusion_draws=diffusion_draws, accumulate=accumulate, sample_bits=sample_bits, optimizer=optimizer,
        masking=masking, light_share=light_share, read_share=read_share, align_weight=align_weight,
        align_block=align_block, pool_weight=pool_weight, pool_block=pool_block,
    )  # fmt: skip
    with training_progress(steps, "generator") as on_step:
        folder = run_generator_training(
            data, tokenizer, settings, recipe, preset=preset, objective=objective, attention=attention, name=name,
            initial=initial, compile_blocks=compile_blocks, on_step=on_step,
        )  # fmt: skip
    o.print_result("model", folder)
