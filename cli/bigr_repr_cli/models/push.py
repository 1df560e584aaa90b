"""`bigr-repr models push`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bigr_repr_cli.options import Json


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Model folder, as written by adapt or train.")],
    repository: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Repository on the hub, created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    branch: Annotated[
        str | None, typer.Option(help=r"Branch to write to, created if it does not exist \[default: main].")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help=r"License of the weights, by its hub name, such as mit or cc-by-4.0 \[default: none]."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Sample pictures to draw for the card; 0: none.")] = 8,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload model",
    card_only: Annotated[
        Path | None, typer.Option(help="Write the card and its pictures to this folder, and upload nothing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish a model folder on the Hugging Face hub, with a model card generated from its record.

    FOLDER/README.md, if it exists, replaces the card. You need a token: hf auth login, or HF_TOKEN. To resume an
    interrupted upload, repeat the command."""
    from bigr_repr.checkpoints.hub import CARD_FILE, push
    from bigr_repr.train.card import card_and_pictures

    _check(repository, card_only)
    text, pictures = card_and_pictures(folder, repository, license=license, samples=samples)
    if card_only is not None:
        _write(card_only, {CARD_FILE: text.encode(), **pictures})
        typer.echo(f"card: {card_only / CARD_FILE}")
        return
    done = push(folder, repository, card=text, pictures=pictures, private=private, branch=branch, message=message)
    if as_json:
        typer.echo(json.dumps(done._asdict(), indent=2))
    else:
        typer.echo(f"{done.url}\nload it with: --model hf:{repository}@{done.commit[:12]}")


def _check(repository: str, card_only: Path | None) -> None:
    """Raise before pictures are drawn if the card could not be written, or nothing uploaded."""
    from bigr_repr.checkpoints.hub import CARD_FILE, check_repository
    from bigr_repr.system.targets import check_target

    check_repository(repository, writing=card_only is None)
    if card_only is not None:
        check_target(card_only / CARD_FILE, made=card_only)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    from bigr_repr.system.files import replacing

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replacing(folder / name) as file:
            file.write(content)
