"""Every script of examples/ runs as it stands, on the example photographs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# What makes a script quick, and where it may write.
ARGUMENTS = {
    "compare": ["--limit", "60", "--layers", "4", "--cache", "{out}"],
    "embed": ["--out", "{out}"],
    "features": [],
    "inpaint": ["--steps", "1", "--out", "{out}.png"],
    "reconstruct": ["--out", "{out}.png"],
    "search": ["--out", "{out}"],
    "train": ["--steps", "1", "--out", "{out}"],
}
SAYS = {
    "compare": "bigr-tiny, layer 4",
    "embed": "12 images: 12 rows, 0 failures",
    "features": "grass.jpg: gravel.jpg",
    "inpaint": "512 x 384",
    "reconstruct": "12 images of 512 bytes each",
    "search": "   0 bits  grass.jpg",
    "train": "load it with",
}


def test_every_script_is_run_here() -> None:
    assert sorted(file.stem for file in EXAMPLES.glob("*.py")) == sorted(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(out=tmp_path / "out") for word in ARGUMENTS[name]]
    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out
