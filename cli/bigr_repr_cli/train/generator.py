"""`bigr-repr train generator`."""

from typing import Annotated

import typer

from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr_cli.flatten import flattened, values_of
from bigr_repr_cli.progress import training_progress
from bigr_repr_cli.train import options as o


@flattened
def command(
    data: Annotated[
        list[str],
        typer.Argument(
            help="Folders written by train codes, several with weights as in a:3 b:1; or images: folders, Parquet "
            "files, tar shards or torchvision:NAME:ROOT."
        ),
    ],
    tokenizer: Annotated[str, typer.Option(help="Tokenizer that made the codes: a folder, or a model's name.")],
    out: o.Out,
    architecture: o.Architecture,
    recipe: GeneratorRecipe,
    training: o.TrainingOptions,
    steps: o.Steps = 500_000,
    batch_size: o.BatchSize = 1024,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-4,
    *,
    columns: o.ParquetColumns,
) -> None:
    """Train the generator. To resume a stopped run, repeat the command.

    Writes OUT/model, which every command can load."""
    from bigr_repr.train.run import run_generator_training
    from bigr_repr.train.settings import TrainSettings

    settings = TrainSettings(
        out=str(out), steps=steps, batch_size=batch_size, learning_rate=learning_rate, **values_of(training)
    )
    with training_progress(steps, "generator") as on_step:
        folder = run_generator_training(
            data, tokenizer, settings, recipe, columns=columns.named, **values_of(architecture), on_step=on_step
        )
    o.print_result("model", folder)
