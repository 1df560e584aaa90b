"""`bigr-repr train …`: the group of training commands."""

import typer

from bigr_repr_cli.train import captions, codes, generator, tokenizer

app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, encode images into codes, train a generator on them.")
app.command("tokenizer")(tokenizer.command)
app.command("codes")(codes.command)
app.command("captions")(captions.command)
app.command("generator")(generator.command)
