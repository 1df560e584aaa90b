"""Text in files is UTF-8 on every machine, whatever its locale."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bigr_repr_cli
import pytest

import bigr_repr

ROOTS = [Path(bigr_repr.__file__).parent, Path(bigr_repr_cli.__file__).parent]
FILES = [file for root in ROOTS for file in sorted(root.rglob("*.py"))]
READS = re.compile(r"\b(?:read_text|write_text|open|fdopen)\(")  # to parse only those files
TEXT_MODE = re.compile(r"[rwax+t]+")


def text_calls(source: str) -> Iterator[tuple[int, bool]]:
    """Each call that reads or writes a file of text: its line, and whether it states the encoding."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        stated = "encoding" in [keyword.arg for keyword in call.keywords]
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in ("read_text", "write_text"):
            yield call.lineno, stated or len(call.args) > (name == "write_text")
        elif name in ("open", "fdopen"):
            ours = call.args[:1] if isinstance(call.func, ast.Attribute) and name == "open" else call.args[1:2]
            modes = [each.value for each in ours if isinstance(each, ast.Constant)]
            plain = isinstance(call.func, ast.Name) and not ours
            if plain or any(isinstance(mode, str) and TEXT_MODE.fullmatch(mode) for mode in modes):
                yield call.lineno, stated


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("p.read_text()", [False]),
        ("p.read_text('utf-8')", [True]),
        ("p.write_text(a)", [False]),
        ("p.write_text(a, encoding='utf-8')", [True]),
        ("open(p)", [False]),
        ("open(p, 'rb')", []),
        ("p.open('a')", [False]),
        ("p.open('r+b')", []),
        ("os.fdopen(n, 'w')", [False]),
        ("image.open(p)", []),
    ],
)
def test_such_calls_are_recognized(source: str, wanted: list[bool]) -> None:
    assert [stated for _, stated in text_calls(source)] == wanted


def test_the_encoding_of_text_is_stated() -> None:
    """Otherwise it is that of the locale: a file written as UTF-8 cannot be read under another."""
    sources = {file: file.read_text(encoding="utf-8") for file in FILES}
    found = {file: list(text_calls(text)) for file, text in sources.items() if READS.search(text)}
    assert sum(map(len, found.values())) > 15
    assert [f"{file}:{line}" for file, calls in found.items() for line, stated in calls if not stated] == []


@pytest.mark.slow
def test_a_series_goes_on_in_another_locale(tmp_path: Path) -> None:
    (tmp_path / "generation.json").write_bytes('{"prompts": ["a café"]}'.encode())
    code = "import sys; from pathlib import Path; from bigr_repr.painting.series import _read_series as read; "
    code += "assert ascii(read(Path(sys.argv[1]))['prompts'][0]) == ascii('a caf' + chr(233))"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-c", code, str(tmp_path / "generation.json")]
    done = subprocess.run(words, env={**os.environ, **plain}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
