"""Laws of the documentation's examples: Python parses and imports public names; commands and their options exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli_help import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
PRIVATE = {"bigr_repr.system", "bigr_repr.options"}


def blocks(page: Path, language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return found


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_python_parses_and_imports_public_names(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("bigr_repr"):
                continue
            module = node.module or ""
            assert module not in PRIVATE, code
            public = importlib.import_module(module)
            assert module.count(".") <= 1, f"{module} is inside a package; import from the package"
            for alias in node.names:
                assert hasattr(public, alias.name), f"{module} has no {alias.name}"


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of every `bigr-repr` command in a page's shell examples, continued lines joined."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" #")[0])
            for start, word in enumerate(words):
                if word == "bigr-repr":
                    stop = next((i for i in range(start, len(words)) if words[i] in {"&&", "|", ";", ">", "&"}), None)
                    yield words[start + 1 : stop]


def unknown_of(words: list[str]) -> list[str]:
    """The command, if it does not exist, or those of its options that do not."""
    prefixes = [tuple(words[:count]) for count in (3, 2, 1)]
    name = next((prefix for prefix in prefixes if prefix in COMMANDS), None)
    if name is None:
        return [] if words[0].startswith("-") else words[:1]
    parameters = COMMANDS[name].params
    options = {option for one in parameters for option in (*one.opts, *one.secondary_opts)} | {"--help"}
    given = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    return [option for option in given if option not in options]


@pytest.mark.parametrize("page", with_blocks("bash"), ids=name_of)
def test_commands_and_their_options_exist(page: Path) -> None:
    wrong = {" ".join(words): unknown for words in commands_of(page) if (unknown := unknown_of(words))}
    assert not wrong


def test_what_does_not_exist_is_found() -> None:
    assert unknown_of(["embed", "photos", "--layer", "12", "--no-such"]) == ["--no-such"]
    assert unknown_of(["embark"]) == ["embark"]
