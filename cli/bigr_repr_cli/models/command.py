"""`bigr-repr models`: list, info, import, export and push."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from bigr_repr_cli.models import export, push
from bigr_repr_cli.options import Json

app = typer.Typer(
    no_args_is_help=True, help="List and inspect models, import released weights, export a network, publish a model."
)
app.command("export")(export.command)
app.command("push")(push.command)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List what --model takes (bundled models and the authors' release), and the presets that training takes."""
    from bigr_repr.checkpoints.catalog import available_models
    from bigr_repr_cli.tables import print_models

    models = available_models()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(model) for model in models], indent=2))
    else:
        print_models(models)


@app.command()
def info(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A model's name (see bigr-repr models list) or folder."),
    ],
    classes: Annotated[
        bool, typer.Option("--classes", help="List the classes instead, one per line, with their numbers.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one model: architecture, sizes, layers, training data and its terms, quality. Downloads nothing."""
    from bigr_repr.checkpoints.classes import class_names
    from bigr_repr.checkpoints.description import describe
    from bigr_repr_cli.tables import print_description

    description = describe(name)
    if classes:
        names, count = class_names(description.config), description.config.generator.classes
        if not names:
            raise ValueError(f"{name} has no class names, only numbers 0..{count - 1}")
        listed = "\n".join(f"{number} {each}" for number, each in enumerate(names))
        typer.echo(json.dumps(names, ensure_ascii=False) if as_json else listed)
    elif as_json:
        record = {**dataclasses.asdict(description), "parameters": description.parameters._asdict()}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        print_description(description)


@app.command("import")
def import_released(
    tokenizer: Annotated[Path, typer.Option(help="Tokenizer file of the release, *.th.")],
    generator: Annotated[Path, typer.Option(help="Generator file of the release, *.pt.")],
    out: Annotated[Path, typer.Option(help="Model folder to write, new or empty.")],
    image_size: Annotated[
        int | None,
        typer.Option(
            help=r"Side of the model's images in pixels; checked if given \[default: inferred from the files]."
        ),
    ] = None,
    heads: Annotated[int | None, typer.Option(help=r"Attention heads of the generator \[default: width / 64].")] = None,
    name: Annotated[
        str | None,
        typer.Option(help=r"Name of the model \[default: the release's, if the files have their original names]."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16: half the size, rounded.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the model in OUT.")] = False,
) -> None:
    """Convert the two files of a model in the authors' release, of any size, to a model folder."""
    if not force and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; choose a new folder, or replace the model there with --force")
    import torch

    from bigr_repr.checkpoints.catalog import GENERATOR_FILE
    from bigr_repr.checkpoints.pretrained import load_official, save
    from bigr_repr.checkpoints.storage import check_folder

    check_folder(out, [GENERATOR_FILE])  # before gigabytes are read
    model = load_official(
        tokenizer=tokenizer, generator=generator, image_size=image_size, heads=heads, name=name, verify=True
    )
    save(model, out, store_dtype=torch.float16 if half else None)
    size = sum(file.stat().st_size for file in out.iterdir())
    typer.echo(f"{model.config.name}: {out} ({decimal(size)})\nshow it with: bigr-repr models info {out}")
