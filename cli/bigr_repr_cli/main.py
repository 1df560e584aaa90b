"""The `bigr-repr` application: its commands and error handling. Light to import, so that --help answers at once.

Only the requested command is imported, and Typer builds a parser for it alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from bigr_repr_cli.parse import repeat_layer

# The location of each command: a function or a sub-application. The help lists them in this order.
_COMMANDS: Final = {
    "embed": "embed.command:command",
    "embed export": "embed.export:command",
    "embed plan": "embed.plan:command",
    "embed status": "embed.status:command",
    "codes": "search.codes:export",
    "decode": "search.codes:decode",
    "search": "search.command:command",
    "near-duplicates": "search.near_duplicates:command",
    "generate": "draw.generate:command",
    "inpaint": "draw.inpaint:command",
    "outpaint": "draw.outpaint:command",
    "edit": "draw.edit:command",
    "interpolate": "draw.interpolate:command",
    "enrich": "draw.enrich:command",
    "app": "app:command",
    "serve": "serve:command",
    "adapt": "adapt:command",
    "index": "search.index:app",
    "bench": "bench:app",
    "models": "models.command:app",
    "train": "train:app",
}


class _Commands(TyperGroup):
    """Commands of one word, or of two words if the first is itself a command: embed and embed export."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command at the beginning of the arguments."""
        two = " ".join(args[:2])
        if len(args) > 1 and two in self.commands:
            return two, self.commands[two], args[2:]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; on Ctrl-C, print a line with the command's own note, if any."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as end:
            typer.echo("; ".join(["interrupted", *map(str, end.args)]), err=True)
            raise typer.Exit(130) from None


_debug = False
# Typer may bundle its own copy of click, so click's errors are looked up through typer.
_UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _version(show: bool) -> None:
    if show:
        from bigr_repr._version import __version__

        typer.echo(__version__)
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    global _debug  # noqa: PLW0603 - read by main() after typer has returned or raised
    _debug = debug


def application(words: Sequence[str] = ()) -> typer.Typer:
    """All commands or, if the command line begins with one, only those that begin with the same word.

    A help flag before the first word asks for help on all commands.
    """
    made = typer.Typer(
        cls=_Commands,
        name="bigr-repr",
        help="Image representations from a generator: features, bit codes, search and edits from one model.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_options)
    flags = list(takewhile(lambda word: word.startswith("-"), words))
    first = "" if {"-h", "--help"}.intersection(flags) else "".join(words[len(flags) : len(flags) + 1])
    asked = [name for name in _COMMANDS if name.split()[0] == first]
    for name in asked or _COMMANDS:
        module, _, attribute = _COMMANDS[name].partition(":")
        found = getattr(import_module(f"bigr_repr_cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            made.add_typer(found, name=name)
        else:
            made.command(name)(found)
    return made


def __getattr__(name: str) -> typer.Typer:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return application()


def __dir__() -> list[str]:
    return [*globals(), "app"]


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure with one line on stderr, 2 usage error, 130 interrupted.

    75: a training run was told to stop; repeat the command to continue.
    """
    app = application(sys.argv[1:])
    try:
        code = app(repeat_layer(sys.argv[1:]), standalone_mode=False)
    except typer.Exit as end:
        code = end.exit_code
    except typer.Abort:
        code = 130
    except _UsageError as error:
        error.show()
        code = error.exit_code
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if _debug:
            raise
        code = getattr(error, "exit_code", 1)
        begins = "error: " if code == 1 else ""
        typer.echo(f"{begins}{_with_options(app, _one_line(error), sys.argv[1:])}", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _with_options(app: typer.Typer, text: str, words: list[str]) -> str:
    """A library message with argument names replaced by the options of the command that set them."""
    command: Any = typer.main.get_command(app)
    words = [word for word in words if not word.startswith("-")]
    while isinstance(command, TyperGroup) and words:
        _, command, words = command.resolve_command(command.context_class(command), words)
    for parameter in command.params:
        flag = next((flag for flag in parameter.opts if flag.startswith("--")), None)
        if flag is not None:
            # The flag of a switch implies its value.
            text = re.sub(rf"(?<![\w./-]){parameter.name}=True(?![\w./-])", flag, text)
            for other in parameter.secondary_opts[:1]:
                text = re.sub(rf"(?<![\w./-]){parameter.name}=False(?![\w./-])", other, text)
            # A one-word name counts as an argument only before a value: steps=0, but not "in few steps".
            value = "" if "_" in parameter.name else "(?==)"
            text = re.sub(rf"(?<![\w./-]){parameter.name}(?![\w./-]){value}", flag, text)
    return text


def _one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError):
        from bigr_repr.system.files import FULL_REMEDY, is_full

        if is_full(error) and FULL_REMEDY not in text:  # from a file that the library does not write itself
            text += f"; {FULL_REMEDY}"
    return " ".join(text.split())
