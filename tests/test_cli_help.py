"""Laws of the command line as a whole: what every help text keeps to, and choices that are the library's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from bigr_repr_cli import options
from bigr_repr_cli.bench import look
from bigr_repr_cli.bench import options as bench_options
from bigr_repr_cli.main import app
from bigr_repr_cli.search.index import StoreKind
from typer.testing import CliRunner

from bigr_repr.evaluate.probes.protocols import protocol_names
from bigr_repr.evaluate.reports.inspection import MAPS
from bigr_repr.evaluate.representations.hidden import VECTOR_POOLS
from bigr_repr.retrieval.codes.binarizer import BINARIZERS
from bigr_repr.retrieval.stores.open import KINDS
from bigr_repr.system.devices import as_dtype


def _commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, *name.split()), command


COMMANDS = dict(_commands(typer.main.get_command(app)))
NAMES = [" ".join(words) for words in COMMANDS]


@pytest.mark.parametrize("words", COMMANDS, ids=NAMES)
def test_every_option_says_what_it_sets_and_help_shows_all_of_it(words: tuple[str, ...]) -> None:
    done = CliRunner(env={"COLUMNS": "600"}).invoke(app, [*words, "--help"])
    shown = " ".join(done.stdout.split())
    for parameter in COMMANDS[words].params:
        if getattr(parameter, "hidden", False):  # a former name
            assert not re.search(rf"(?<![\w-]){parameter.opts[0]}(?![\w-])", done.stdout), parameter.opts[0]
            continue
        text = parameter.help
        assert text[0].isupper() or re.match(r"\w+: ", text), text  # a sentence, or what a choice means
        assert text.endswith("."), text
        assert not re.search(r"by default|(?<!\[)default:|^Of |^Over |\balone\b", text), text
        assert text.replace(r"\[", "[") in shown  # an unescaped bracket would vanish as markup


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [
        (bench_options.Pooling, VECTOR_POOLS),
        (bench_options.Probe, protocol_names()),
        (look.Method, MAPS),
        (StoreKind, KINDS),
        (options.Codes, ("bits", *BINARIZERS)),
    ],
)
def test_choices_are_the_librarys(choices: Any, wanted: tuple[str, ...]) -> None:
    assert tuple(map(str, choices)) == wanted


def test_precision_takes_what_the_library_takes() -> None:
    assert len({as_dtype(str(name)) for name in options.Computed}) == 3
    with pytest.raises(ValueError, match=", ".join(options.Computed)):
        as_dtype("float8")


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (["bench", "knn", "--pool", "mean"], "avg+max"),
        (["bench", "linear-probe", "--protocol", "moco"], "dinov2"),
        (["bench", "map", "--method", "lda"], "umap"),
        (["index", "push", "index", "--kind", "hnsw"], "ivf"),
        (["embed", "x.png", "--precision", "fp8"], "bf16"),
        (["generate", "--precision", "fp8"], "bfloat16"),
    ],
)
def test_a_misspelt_choice_is_wrong_usage_that_lists_the_choices(arguments: list[str], listed: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert listed in " ".join(done.output.replace("│", " ").split())
