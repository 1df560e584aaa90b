"""Laws of the command line as a whole: what every help text keeps to, and choices that are the library's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
import typer
from bigr_repr_cli import options, serve
from bigr_repr_cli.bench import few, look
from bigr_repr_cli.bench import options as bench_options
from bigr_repr_cli.draw import enrich, interpolate
from bigr_repr_cli.embed import options as embed_options
from bigr_repr_cli.main import app, application, main
from bigr_repr_cli.parse import parse_duration
from bigr_repr_cli.search import command as search
from bigr_repr_cli.search import index
from bigr_repr_cli.search.index import StoreKind
from bigr_repr_cli.train import codes
from bigr_repr_cli.train import options as train_options
from typer.testing import CliRunner

from bigr_repr.embed.options import EmbedOptions
from bigr_repr.evaluate.probes.attentive import AttentiveProbe
from bigr_repr.evaluate.probes.protocols import protocol_names
from bigr_repr.evaluate.reports.inspection import MAPS
from bigr_repr.evaluate.representations.base import VECTOR_POOLS
from bigr_repr.evaluate.runs.settings import BenchSettings
from bigr_repr.painting.files import enrich_file, interpolate_file
from bigr_repr.retrieval import IndexSettings, build_index, search_images
from bigr_repr.retrieval.codes.binarizer import BINARIZERS
from bigr_repr.retrieval.stores.limits import STEP
from bigr_repr.retrieval.stores.open import KINDS, push
from bigr_repr.serve.settings import Limits
from bigr_repr.system.devices import as_dtype
from bigr_repr.train import TokenizerRecipe, TrainSettings, write_codes
from bigr_repr.train.run import run_generator_training


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


def _defaults(of: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields or of a function's parameters, choices as text."""
    pairs = [(each.name, each.default) for each in inspect.signature(of).parameters.values()]
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in pairs}


@pytest.mark.parametrize(
    ("of_command", "of_library", "other"),
    [
        (train_options.TrainingOptions, TrainSettings, {"sample_every", "precision"}),
        (train_options.TokenizerLosses, TokenizerRecipe, set()),
        (train_options.Architecture, run_generator_training, set()),
        (codes.command, write_codes, {"device"}),
        (index.IndexOptions, IndexSettings, set()),
        (index.build, build_index, {"keep"}),
        (index.push, push, {"timeout"}),
        (embed_options.RowOptions, EmbedOptions, set()),
        (embed_options.OutputOptions, EmbedOptions, {"retry_for"}),
        (embed_options.DecodingOptions, EmbedOptions, {"max_pixels"}),
        (embed_options.NetworkSettings, EmbedOptions, {"device"}),
        (bench_options.NetworkOptions, BenchSettings, set()),
        (bench_options.Probing, BenchSettings, {"seeds", "rates"}),
        (bench_options.Voting, BenchSettings, {"k"}),
        (bench_options.RunOptions, BenchSettings, {"device", "cache"}),
        (few.attentive_probe, AttentiveProbe, {"rates"}),
        (search.Search, search_images, {"k"}),
        (interpolate.command, interpolate_file, set()),
        (enrich.command, enrich_file, set()),
    ],
)
def test_defaults_are_the_librarys(of_command: Any, of_library: Any, other: set[str]) -> None:
    """Of options that are named as the library's, but for those that are given in another form, or none, there."""
    ours, theirs = _defaults(of_command), _defaults(of_library)
    shared = {name for name in ours.keys() & theirs.keys() if theirs[name] is not inspect.Parameter.empty}
    assert other <= shared
    assert {name: ours[name] for name in shared - other} == {name: theirs[name] for name in shared - other}


def test_outages_are_sat_out_as_long_as_the_library_does() -> None:
    assert parse_duration(embed_options.OutputOptions().retry_for) == EmbedOptions().retry_for


def test_a_step_of_a_push_may_take_as_long_as_the_library_lets_it() -> None:
    assert parse_duration(_defaults(index.push)["timeout"]) == STEP


def test_a_server_accepts_what_the_library_would_have_it_accept() -> None:
    given, usual = serve.LimitOptions(), Limits()
    assert (given.max_body << 20, given.max_pixels, given.max_images) == (usual.body_bytes, usual.pixels, usual.images)
    assert (given.max_requests, given.batch_size, given.timeout) == (usual.requests, usual.batch, usual.seconds)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "generator", "x", "--tokenizer", "t", "--out", "o", "--read-share", "0"],
            "--read-share=0.0 is",
        ),
        (["train", "tokenizer", "x", "--out", "o", "--warmup", "9", "--steps", "5"], "--warmup=9 is"),
        (["embed", "x.png", "--drop-gone"], "--drop-gone needs update"),
        (["generate", "--temperature", "0", "--out", "steps"], "--temperature=0.0 is not allowed: it must be"),
    ],
)
def test_messages_of_the_library_speak_of_options(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bigr-repr", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert f"error: {said}" in capsys.readouterr().err


def test_precision_takes_what_the_library_takes() -> None:
    assert len({as_dtype(str(name)) for name in options.Computed}) == 3
    with pytest.raises(ValueError, match=", ".join(options.Computed)):
        as_dtype("float8")


@pytest.mark.slow
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


def test_help_asked_for_before_the_first_word_lists_all_commands() -> None:
    assert len(application(["--help", "embed"]).registered_commands) == len(app.registered_commands)
    assert len(application(["--debug", "embed", "--help"]).registered_commands) == 4
