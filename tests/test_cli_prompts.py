"""Prompts on the command line, as their users meet them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bigr_repr_cli import main
from PIL import Image
from text_model import text_model
from tiny_model import picture

from bigr_repr.checkpoints.pretrained import load, save
from bigr_repr.painting.pictures import read_provenance
from bigr_repr.painting.recorded import recorded_options
from bigr_repr.sampling import generate

Run = Callable[..., tuple[int, str, str]]
SHORT = ["--diffusion-steps", "2", "--iterations", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(text_model(), tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def bigr(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, in a folder with a photograph and prompts: (exit code, stdout, stderr)."""
    picture(1, 50, 36).save(tmp_path / "photo.png")
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a blue square \n", encoding="utf-8")

    def run(*arguments: str, options: list[str] = SHORT) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bigr-repr", *arguments, *options, "--model", str(model)])
        with pytest.raises(SystemExit) as caught:
            main.main()
        said = capfd.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


def test_a_series_of_a_file_goes_on_where_it_stopped(bigr: Run, tmp_path: Path, model: Path) -> None:
    code, _, err = bigr("generate", "--prompts", "prompts.txt", "--count", "3", "--npz", "all.npz", "--out", "o")
    assert code == 0, err
    said = [read_provenance(tmp_path / f"o/00000{number}.png") for number in range(3)]
    assert [each["prompts"] for each in said] == [["a red circle"], ["a blue square"], ["a red circle"]]
    first = (tmp_path / "o/000000.png").read_bytes()
    (tmp_path / "o/000001.png").unlink()
    code, out, _ = bigr("generate", "--prompts", "prompts.txt", "--count", "4", "--out", "o", "--json")
    assert json.loads(out)["drawn"] == 2
    assert (tmp_path / "o/000000.png").read_bytes() == first
    again = generate(load(model), **{k: v for k, v in recorded_options(said[1]).items() if k != "pasting"})  # type: ignore[arg-type]
    pixels = (again[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "o/000001.png")))


def test_a_folder_of_other_prompts_is_refused(bigr: Run) -> None:
    assert bigr("generate", "--prompt", "a cat", "--out", "o")[0] == 0
    code, _, err = bigr("generate", "--prompt", "a dog", "--out", "o")
    assert code == 1
    assert "o holds another series: prompts was" in err
    code, _, err = bigr("generate", "--prompt", "a cat", "--negative", "a dog", "--out", "o")
    assert "negative was null, is a dog" in err


def test_painting_commands_take_prompts(bigr: Run, tmp_path: Path) -> None:
    box = ("--box", "5,5,30,30")
    assert bigr("edit", "photo.png", *box, "--to-prompt", "a cat", "--negative", "a dog", "--out", "e.png")[0] == 0
    assert bigr("inpaint", "photo.png", *box, "-p", "a cat", "-p", "a dog", "--out", "i.png")[0] == 0
    assert bigr("interpolate", "--from", "a cat", "--to", "a dog", "--steps", "3", "--out", "w.png")[0] == 0
    assert read_provenance(tmp_path / "e.png")["negative"] == "a dog"
    assert [read_provenance(tmp_path / f"i-{i}.png")["prompts"] for i in (0, 1)] == [["a cat"], ["a dog"]]
    assert read_provenance(tmp_path / "w.png")["prompts"] == ["a cat", "a dog"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("generate", "--prompt", ""), "prompt='' is empty", 1),
        (("generate", "--prompts", "none.txt"), "none.txt", 1),
        (("generate", "--prompts", "photo.png"), "photo.png is not UTF-8 text", 1),
        (("generate", "-l", "3"), "tiny-text draws from captions, not classes; pass a prompt", 1),
        (("generate", "-l", "all"), "tiny-text draws from captions, not classes; pass a prompt", 1),
        (("generate", "--negative", "a cat"), "needs a prompt", 1),
        (("edit", "photo.png", "--box", "1,1,9,9"), "say what to paint", 2),
    ],
)
def test_mistakes_end_in_one_line(bigr: Run, arguments: tuple[str, ...], said: str, code: int) -> None:
    found, _, err = bigr(*arguments, options=[])
    assert said in err
    assert found == code
    assert code == 2 or err.count("\n") == 1
