"""`bigr-repr generate`, `inpaint`, `outpaint`, `edit`, `interpolate` and `enrich` as their users meet them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bigr_repr_cli import main
from PIL import Image, ImageCms, PngImagePlugin
from sampling_model import tiny_model
from tiny_model import picture

from bigr_repr.checkpoints.classes import class_list
from bigr_repr.checkpoints.pretrained import Pretrained, load, save
from bigr_repr.painting import files
from bigr_repr.painting.files import interpolate_file
from bigr_repr.painting.pasting import Pasting
from bigr_repr.painting.pictures import METADATA_KEY, read_provenance
from bigr_repr.painting.series import generate_files
from bigr_repr.sampling import FAST, SamplingSettings, generate

Run = Callable[..., tuple[int, str, str]]
SHORT = ["--iterations", "2", "--diffusion-steps", "2"]
PAINT = ["inpaint", "photo.png", "--mask", "mask.png", "--out", "o.png"]
NAMES = ("goldfish", "tabby cat", "great white shark, white shark", "ship", "tench")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pre, folder = tiny_model(), tmp_path_factory.mktemp("cli") / "model"
    config = dataclasses.replace(pre.config, class_names=NAMES)
    save(Pretrained(config, pre.tokenizer, pre.generator), folder)
    return folder


@pytest.fixture
def bigr(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, in a folder with photographs and masks: (exit code, stdout, stderr)."""
    picture(1, 50, 36).save(tmp_path / "photo.png")
    mark(tmp_path / "mask.png", 50, 36, (10, 5, 30, 20))

    def run(*arguments: str, options: list[str] = SHORT) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bigr-repr", *arguments, *options, "--model", str(model)])
        with pytest.raises(SystemExit) as caught:
            main.main()
        return (caught.value.code or 0, *capfd.readouterr())  # type: ignore[return-value]

    return run


def mark(path: Path, width: int, height: int, box: tuple[int, int, int, int]) -> None:
    """A mask image that is white inside the box."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    mask.save(path)


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("command", ["generate", "inpaint", "outpaint", "edit", "interpolate", "enrich"])
def test_every_option_of_the_library_is_one_of_the_commands(bigr: Run, command: str) -> None:
    code, text, _ = bigr(command, "--help", options=[])
    assert code == 0
    words = set(re.findall(r"--[a-z-]+", text))
    fields = {field.name for field in dataclasses.fields(SamplingSettings)} - {"steps"}
    if command not in ("generate", "interpolate"):
        fields |= {field.name for field in dataclasses.fields(Pasting)}
    assert {f"--{name.replace('_', '-')}" for name in fields} | {"--iterations"} <= words


# ---- painting into a photograph
@pytest.mark.parametrize("command", ["inpaint", "edit", "enrich"])
def test_only_what_is_marked_changes(bigr: Run, tmp_path: Path, command: str) -> None:
    to = ["--to", "tabby cat"] if command == "edit" else []
    code, text, error = bigr(command, "photo.png", "--mask", "mask.png", "--box", "40,30,60,60", *to, "--out", "o.png")
    assert (code, error) == (0, "")
    assert text.splitlines()[-1] == "o.png"
    before, after = pixels(tmp_path / "photo.png"), pixels(tmp_path / "o.png")
    marked = np.zeros((36, 50), np.bool_)
    marked[5:20, 10:30] = marked[30:, 40:] = True
    assert np.array_equal(after[~marked], before[~marked])
    assert (after[marked] != before[marked]).any()


def test_the_picture_says_how_it_was_made_and_can_be_made_again(bigr: Run, tmp_path: Path, model: Path) -> None:
    arguments = ["edit", "photo.png", "--mask", "mask.png", "--to", "great white shark", "--seed", "3"]
    assert bigr(*arguments, "--blend", "feather", "--guidance", "3", "--order", "halton", "--out", "a.png")[0] == 0
    made = read_provenance(tmp_path / "a.png")
    assert made["command"] == "edit"
    assert made["seed"] == 3
    assert made["labels"] == [2]
    assert made["classes"] == [NAMES[2]]
    assert made["weights_sha256"] == load(model).fingerprint
    assert made["settings"]["steps"] == 2
    assert made["settings"]["order"] == "halton"
    assert made["settings"]["guidance"] == 3
    # Nothing is left to defaults, which may change.
    assert made["settings"]["diffusion_steps"] == 2
    assert made["settings"]["gumbel"] == 0.17
    fitting = {"fit": "surroundings", "follow": 0.5, "best_of": 1, "max_windows": 1000}
    assert made["pasting"] == {"window": 36, "blend": "feather", "band": 4} | fitting
    sums = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("photo.png", "mask.png")}
    told = [made["photograph"], *made["masks"]]
    assert told == [{"name": name, "sha256": digest} for name, digest in sums.items()]
    assert made["boxes"] == []
    assert str(tmp_path) not in json.dumps(made)
    bigr(*arguments, "--blend", "feather", "--guidance", "3", "--order", "halton", "--out", "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_without_provenance_is_said_to_be_foreign_or_stripped(bigr: Run, tmp_path: Path) -> None:
    assert bigr(*PAINT)[0] == 0
    with Image.open(tmp_path / "o.png") as image:
        Image.fromarray(np.asarray(image)).save(tmp_path / "stripped.png")
    with pytest.raises(ValueError, match="not written by bigr-repr, or its metadata was stripped"):
        read_provenance(tmp_path / "stripped.png")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 10_000])
def test_a_picture_with_a_damaged_provenance_is_named(tmp_path: Path, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(METADATA_KEY, text)
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png", pnginfo=info)
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'p.png'} cannot be used: .*; make the picture again"):
        read_provenance(tmp_path / "p.png")


def test_the_picture_says_what_else_the_command_was_told(bigr: Run, tmp_path: Path) -> None:
    assert bigr("enrich", "photo.png", "--box", "1,2,9,9", "--scale", "3", "--out", "o.png")[0] == 0
    made = read_provenance(tmp_path / "o.png")
    assert (made["scale"], made["masks"], made["boxes"]) == (3, [], [[1, 2, 9, 9]])
    assert bigr("outpaint", "photo.png", "--aspect", "60:36", "--out", "o.png")[0] == 0
    assert read_provenance(tmp_path / "o.png")["margins"] == [5, 0, 5, 0]


@pytest.mark.slow
def test_what_is_transparent_in_a_mask_is_not_marked(bigr: Run, tmp_path: Path) -> None:
    """White strokes on a transparent layer mark the strokes, though what lies under the transparency is white too."""
    layer = Image.new("RGBA", (50, 36), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (10, 5, 30, 20))
    layer.save(tmp_path / "layer.png")
    assert bigr(*PAINT)[0] == 0
    wanted = pixels(tmp_path / "o.png")
    assert bigr("inpaint", "photo.png", "--mask", "layer.png", "--out", "o.png")[0] == 0
    assert np.array_equal(pixels(tmp_path / "o.png"), wanted)
    Image.new("RGBA", (50, 36), (255, 255, 255, 0)).save(tmp_path / "layer.png")
    code, _, error = bigr("inpaint", "photo.png", "--mask", "layer.png", "--out", "o.png")
    assert code == 1
    assert "layer.png is empty: nothing in it is light (128 or more) and opaque" in error


@pytest.mark.parametrize("kind", ["1", "P", "RGB", "16", "turned"])
def test_masks_of_any_kind_mark_the_same(bigr: Run, tmp_path: Path, kind: str) -> None:
    assert bigr(*PAINT)[0] == 0
    wanted = pixels(tmp_path / "o.png")
    exif = Image.Exif()
    with Image.open(tmp_path / "mask.png") as image:
        if kind == "16":
            mask = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        elif kind == "turned":
            exif[0x0112] = 6
            mask = image.transpose(Image.Transpose.ROTATE_90)
        else:
            mask = image.convert(kind)
    mask.save(tmp_path / "mask.png", exif=exif)
    assert bigr(*PAINT)[0] == 0
    assert np.array_equal(pixels(tmp_path / "o.png"), wanted)


@pytest.mark.parametrize(
    ("source", "out", "options"),
    [("a.png", "a.png", []), ("a.gif", "a.png", ["--animate"]), ("a-1.png", "a.png", ["--count", "2"])],
)
def test_results_never_replace_the_photograph(
    bigr: Run, tmp_path: Path, source: str, out: str, options: list[str]
) -> None:
    picture(1, 50, 36).save(tmp_path / source)
    before = (tmp_path / source).read_bytes()
    code, _, error = bigr("inpaint", source, "--mask", "mask.png", "--out", out, *options)
    assert (code, error.count("\n")) == (1, 1)
    assert f"writing {source} would overwrite an input" in error
    assert (tmp_path / source).read_bytes() == before
    assert not (tmp_path / "a-0.png").exists()


def test_frames_of_large_photographs_are_kept_small(bigr: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "write_gif", lambda path, frames, **_: kept.extend(frame.size for frame in frames[:-1]))
    picture(1, 800, 40).save(tmp_path / "photo.png")
    assert bigr("inpaint", "photo.png", "--box", "9,9,20,20", "--out", "o.png", "--animate")[0] == 0
    assert kept == [(384, 19)] * 2


def test_versions_are_numbered_and_an_animation_goes_beside(bigr: Run, tmp_path: Path) -> None:
    code, text, _ = bigr(*PAINT, "--count", "2", "--animate", "--json", "--blend", "feather")
    assert code == 0
    record = json.loads(text)
    assert (record["images"], record["also"], record["drawn"]) == (["o-0.png", "o-1.png"], ["o.gif"], 2)
    with Image.open(tmp_path / "o.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]  # two iterations and the result
        assert animation.size == (50, 36)
    assert not (tmp_path / "o.png").exists()


def test_every_version_says_its_own_class(bigr: Run, tmp_path: Path) -> None:
    assert bigr(*PAINT, "--label", "goldfish,3", "--count", "3", "--seed", "2")[0] == 0
    made = [read_provenance(tmp_path / f"o-{i}.png") for i in range(3)]
    assert [each["labels"] for each in made] == [[0], [3], [0]]
    assert [each["classes"] for each in made] == [["goldfish"], ["ship"], ["goldfish"]]
    assert [each["image"] for each in made] == [0, 1, 2]


def test_limits_can_be_raised(bigr: Run, tmp_path: Path) -> None:
    code, _, error = bigr(*PAINT, "--max-pixels", "1000")
    assert (code, "1800 pixels" in error or "50 x 36 pixels are more than --max-pixels=1000" in error) == (1, True)
    code, _, error = bigr("enrich", "photo.png", "--max-windows", "3", "--out", "o.png")
    assert code == 1
    assert "this takes up to 24 windows of 16 pixels, more than --max-windows=3" in error
    assert not (tmp_path / "o.png").exists()
    assert bigr("enrich", "photo.png", "--max-windows", "24", "--out", "o.png", options=["--steps", "1"])[0] == 0


def test_the_color_profile_goes_with_the_picture(bigr: Run, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture(1, 50, 36).save(tmp_path / "photo.png", icc_profile=profile)
    assert bigr(*PAINT)[0] == 0
    with Image.open(tmp_path / "o.png") as image:
        assert image.info["icc_profile"] == profile


def test_photographs_are_upright_and_of_any_kind(bigr: Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(1, 36, 50).convert("L").save(tmp_path / "turned.jpg", exif=exif)
    assert bigr("inpaint", "turned.jpg", "--mask", "mask.png", "--out", "o.png")[0] == 0
    assert pixels(tmp_path / "o.png").shape == (36, 50, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["--left", "5", "--bottom", "60"], (55, 96)),
        (["--aspect", "2:1"], (72, 36)),
        (["--aspect", "0.5"], (50, 100)),
    ],
)
def test_outpaint_grows_and_keeps_the_photograph(
    bigr: Run, tmp_path: Path, arguments: list[str], size: tuple[int, int]
) -> None:
    assert bigr("outpaint", "photo.png", *arguments, "--label", "3", "--out", "o.png")[0] == 0
    grown, before = pixels(tmp_path / "o.png"), pixels(tmp_path / "photo.png")
    assert grown.shape == (*size[::-1], 3)
    left = 5 if "--left" in arguments else (size[0] - 50) // 2
    top = 0 if "--left" in arguments else (size[1] - 36) // 2
    assert np.array_equal(grown[top : top + 36, left : left + 50], before)


# ---- pictures from nothing
def test_generate_writes_files_grid_array_and_animation(bigr: Run, tmp_path: Path, model: Path) -> None:
    extra = ["--grid", "grid.png", "--npz", "samples.npz", "--animate", "unmasking.gif"]
    code, text, error = bigr(
        "generate", "-l", "goldfish,3", "--count", "5", "--seed", "7", "--out", "some/where", *extra
    )
    assert (code, error) == (0, "")
    assert text.startswith("5 drawn")
    images = generate(load(model), [0, 3, 0, 3, 0], seed=7, steps=2, diffusion_steps=2)
    wanted = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    files = sorted((tmp_path / "some/where").glob("*.png"))
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(5)]
    assert np.array_equal(np.stack([pixels(file) for file in files]), wanted)
    with np.load(tmp_path / "samples.npz") as stored:
        assert np.array_equal(stored["arr_0"], wanted)
    assert pixels(tmp_path / "grid.png").shape == (3 * 16 + 4, 2 * 16 + 2, 3)  # a column a class
    assert np.array_equal(pixels(tmp_path / "grid.png")[18:34, 18:], wanted[3])
    with Image.open(tmp_path / "unmasking.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]
    made = read_provenance(files[1])
    assert (made["image"], made["labels"], made["classes"]) == (1, [3], ["ship"])


def test_an_animation_ends_with_the_pictures_however_many_are_drawn_at_a_time(bigr: Run, tmp_path: Path) -> None:
    extra = ["--count", "18", "--grid", "grid.png", "--animate", "a.gif"]
    assert bigr("generate", "--labels", "all", "--out", "series", *extra)[0] == 0
    with Image.open(tmp_path / "a.gif") as animation:
        animation.seek(animation.n_frames - 1)  # type: ignore[attr-defined]
        end = np.asarray(animation.convert("RGB")).reshape(-1, 3).mean(axis=0)
        assert animation.size == (88, 70)  # a column a class
    wanted = pixels(tmp_path / "grid.png").reshape(-1, 3).mean(axis=0)
    assert np.abs(end - wanted).max() < 3


def test_a_series_goes_on_where_it_was_and_grows(bigr: Run, tmp_path: Path) -> None:
    arguments = ["generate", "--labels", "all", "--out", "series"]
    bigr(*arguments, "--count", "4")
    first = {file.name: file.read_bytes() for file in (tmp_path / "series").glob("*.png")}
    (tmp_path / "series/000001.png").unlink()
    code, text, _ = bigr(*arguments, "--count", "7", "--npz", "all.npz")
    assert code == 0
    assert text.startswith("4 drawn")
    assert "3 already existed" in text
    assert all((tmp_path / "series" / name).read_bytes() == data for name, data in first.items())
    bigr("generate", "--labels", "all", "--out", "whole", "--count", "7", "--npz", "whole.npz")
    assert (tmp_path / "all.npz").read_bytes()[:200] == (tmp_path / "whole.npz").read_bytes()[:200]
    for file in (tmp_path / "whole").glob("*.png"):
        assert file.read_bytes() == (tmp_path / "series" / file.name).read_bytes()


def test_series_do_not_mix(bigr: Run, tmp_path: Path) -> None:
    bigr("generate", "--labels", "1", "--out", "series")
    code, text, error = bigr("generate", "--labels", "1", "--seed", "1", "--out", "series", "--count", "3")
    assert (code, text, error.count("\n")) == (1, "", 1)
    assert "seed was 0, is 1; choose another folder" in error
    assert len(list((tmp_path / "series").glob("*.png"))) == 1
    picture(1).save(tmp_path / "000000.png")
    assert "do not record how they were made" in bigr("generate", "--out", ".")[2]


def test_a_refused_series_names_the_setting_that_differs(bigr: Run) -> None:
    bigr("generate", "--out", "series")
    error = bigr("generate", "--out", "series", "--gumbel", "0.5")[2]
    assert "holds another series: gumbel was 0.17, is 0.5; choose another folder" in error


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_series_file_is_named(bigr: Run, tmp_path: Path, content: bytes) -> None:
    bigr("generate", "--out", "series")
    (tmp_path / "series/generation.json").write_bytes(content)
    code, _, error = bigr("generate", "--out", "series")
    assert (code, error.count("\n")) == (1, 1)
    assert "series/generation.json cannot be used" in error


def test_a_run_that_is_interrupted_keeps_what_it_has_drawn(tmp_path: Path) -> None:
    pre, out = tiny_model(), tmp_path / "series"

    def interrupt(done: float, total: float) -> None:
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_files(pre, out, count=5, on_progress=interrupt, steps=2)
    assert sorted(path.name for path in out.iterdir()) == [f"{i:06d}.png" for i in range(3)] + ["generation.json"]
    assert generate_files(pre, out, count=5, steps=2).drawn == 2


@pytest.mark.parametrize(
    ("command", "function", "said"),
    [
        ("generate", "bigr_repr.painting.series.generate_files", "interrupted; finished pictures are kept"),
        ("enrich photo.png", "bigr_repr.painting.files.enrich_file", "interrupted\n"),
    ],
)
def test_ctrl_c_ends_with_a_line(
    bigr: Run, monkeypatch: pytest.MonkeyPatch, command: str, function: str, said: str
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupt)
    code, _, error = bigr(*command.split())
    assert code == 130
    assert error.startswith(said)
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_grid_and_an_array_may_go_into_the_folder_of_the_pictures(bigr: Run, tmp_path: Path) -> None:
    extra = ["--grid", "new/grid.png", "--npz", "new/all.npz"]
    assert bigr("generate", "--out", "new", *extra)[0] == 0
    assert (tmp_path / "new/grid.png").is_file()
    assert (tmp_path / "new/all.npz").is_file()
    assert "must end in .png" in bigr("generate", "--out", "newer", "--grid", "newer/grid.gif")[2]
    assert not (tmp_path / "newer").exists()


def test_a_series_draws_damaged_pictures_again(bigr: Run, tmp_path: Path) -> None:
    bigr("generate", "--out", "series", "--count", "3")
    pictures = [tmp_path / f"series/{i:06d}.png" for i in range(3)]
    before = [path.read_bytes() for path in pictures]
    pictures[0].write_bytes(b"")
    pictures[1].write_bytes(before[1][:-30])
    flipped = bytearray(before[2])
    flipped[-40] ^= 1
    pictures[2].write_bytes(flipped)
    code, text, _ = bigr("generate", "--out", "series", "--count", "3")
    assert code == 0
    assert text.startswith("3 drawn")
    assert [path.read_bytes() for path in pictures] == before


@pytest.mark.parametrize("kind", ["foreign", "of another number", "of another seed"])
def test_a_series_keeps_off_pictures_that_are_not_its_own(bigr: Run, tmp_path: Path, kind: str) -> None:
    bigr("generate", "--out", "series", "--count", "2")
    bigr("generate", "--out", "other", "--count", "2", "--seed", "8")
    place = tmp_path / "series/000001.png"
    if kind == "foreign":
        picture(1, 16, 16).save(place)
    else:
        place.write_bytes((tmp_path / ("series/000000.png" if "number" in kind else "other/000001.png")).read_bytes())
    before = place.read_bytes()
    code, _, error = bigr("generate", "--out", "series", "--count", "3", "--npz", "all.npz")
    assert (code, error.count("\n")) == (1, 1)
    assert "series/000001.png is not picture 1 of this series; move it away" in error
    assert place.read_bytes() == before
    assert not list(tmp_path.glob("*all.npz*"))
    assert not (tmp_path / "series/000002.png").exists()


def test_a_series_of_labels_may_be_guided(tmp_path: Path, model: Path) -> None:
    options: Any = {"steps": 2, "diffusion_steps": 1, "guidance": 3.0}
    pre = load(model)
    assert generate_files(pre, tmp_path / "labeled", [1], count=1, **options).drawn == 1
    with pytest.raises(ValueError, match="no class to guide toward"):
        generate_files(pre, tmp_path / "free", count=1, **options)


def test_callers_are_told_of_every_iteration_and_a_series_begins_at_0(tmp_path: Path, model: Path) -> None:
    pre, seen = load(model), list[tuple[int, ...]]()
    options: Any = {"steps": 2, "diffusion_steps": 1, "callback": lambda at: seen.append(at.images)}
    generate_files(pre, tmp_path / "series", [1], count=2, **options)
    assert seen == [(0,), (0,), (1,), (1,)]
    interpolate_file(pre, [0, 1], tmp_path / "walk.png", frames=2, **options)
    assert seen[4:] == [(0,), (0,), (1,), (1,)]
    with pytest.raises(ValueError, match=r"first=3 is not allowed: a series starts at 0"):
        generate_files(pre, tmp_path / "later", [1], first=3, **options)


@pytest.mark.parametrize("batch", ["2", "5"])
def test_a_picture_is_the_same_file_in_any_batch(bigr: Run, tmp_path: Path, batch: str) -> None:
    for out, size in (("one", "1"), ("many", batch)):
        assert bigr("generate", "-l", "0,1", "--count", "5", "--out", out, "--batch-size", size)[0] == 0
    for number in range(5):
        name = f"{number:06d}.png"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


@pytest.mark.parametrize("name", ["000001.png", "000020.png"])  # the second of a series that may be made longer
def test_the_grid_never_takes_the_place_of_a_picture(bigr: Run, tmp_path: Path, name: str) -> None:
    code, _, error = bigr("generate", "--out", "series", "--count", "2", "--grid", f"series/{name}")
    assert (code, error.count("\n")) == (1, 1)
    assert f"series/{name} has the name of a picture of the series itself" in error
    assert not list(tmp_path.glob("series/*.png"))


def test_names_that_are_no_utf8_are_written_escaped(bigr: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "photo.png").rename(tmp_path / name)
    assert bigr("inpaint", name, "--mask", "mask.png", "--out", "o.png")[0] == 0
    assert read_provenance(tmp_path / "o.png")["photograph"]["name"] == r"caf\xe9.png"


def test_the_grid_may_lie_in_the_folder_to_be_made(bigr: Run, tmp_path: Path) -> None:
    assert bigr("generate", "--out", str(tmp_path / "new"), "--grid", "new/grid.png")[0] == 0
    assert (tmp_path / "new" / "grid.png").exists()


@pytest.mark.slow
def test_pictures_of_another_class_or_origin_are_refused(bigr: Run, tmp_path: Path) -> None:
    assert bigr("generate", "-l", "0,1", "--count", "2", "--out", "two")[0] == 0
    assert bigr("generate", "-l", "2", "--count", "2", "--out", "other")[0] == 0
    picture, kept = tmp_path / "two" / "000001.png", (tmp_path / "two" / "000001.png").read_bytes()
    info = PngImagePlugin.PngInfo()
    info.add_itxt("bigr_repr", "[1, 2]")
    for make in (
        lambda: picture.write_bytes((tmp_path / "other" / "000001.png").read_bytes()),
        lambda: Image.new("RGB", (16, 16)).save(picture, pnginfo=info),
    ):
        make()
        code, _, error = bigr("generate", "-l", "0,1", "--count", "2", "--out", "two")
        assert (code, error.count("\n")) == (1, 1)
        assert "two/000001.png is not picture 1 of this series" in error
    picture.unlink()
    assert bigr("generate", "-l", "0,1", "--count", "2", "--out", "two")[0] == 0
    assert picture.read_bytes() == kept


def test_interpolate_refuses_what_is_no_png_before_it_draws(tmp_path: Path, model: Path) -> None:
    drawn = list[Any]()
    options: Any = {"frames": 2, "steps": 2, "diffusion_steps": 1, "callback": drawn.append}
    with pytest.raises(ValueError, match=r"walk.jpg: the name must end in .png"):
        interpolate_file(load(model), [0, 1], tmp_path / "walk.jpg", **options)
    (tmp_path / "taken.gif").mkdir()
    with pytest.raises(IsADirectoryError, match=r"taken.gif is a folder"):
        interpolate_file(load(model), [0, 1], tmp_path / "taken.png", **options)
    assert not drawn


def test_interpolate_draws_a_strip_and_a_walk(bigr: Run, tmp_path: Path) -> None:
    code, text, _ = bigr("interpolate", "--from", "tench", "--to", "goldfish", "--steps", "4", "--out", "walk.png")
    assert code == 0
    assert text.splitlines()[-2:] == ["walk.png", "walk.gif"]
    strip = pixels(tmp_path / "walk.png")
    assert strip.shape == (16, 4 * 16 + 6, 3)
    with Image.open(tmp_path / "walk.gif") as animation:
        assert animation.n_frames == 6  # type: ignore[attr-defined]  # there and back
        times = []
        for frame in range(6):
            animation.seek(frame)
            times.append(animation.info["duration"])
    assert times == [1500, 250, 250, 1500, 250, 250]  # it rests at both ends
    code, _, error = bigr("interpolate", "--from", "tench", "--to", "goldfish,1,2", "--steps", "3", "--out", "w.png")
    assert (code, "--steps=3 is too few; 4 classes need at least 4" in error) == (1, True)
    bigr("generate", "--labels", "tench", "--out", "end")
    assert np.array_equal(strip[:, :16], pixels(tmp_path / "end/000000.png"))


def test_the_fast_preset_is_the_librarys_and_options_change_it(bigr: Run, tmp_path: Path) -> None:
    short = ["--diffusion-steps", "2"]
    for out, options in [("a", short), ("b", ["--iterations", "3", *short])]:
        assert bigr("generate", "--fast", "--labels", "1", "--out", out, options=options)[0] == 0
    found = [read_provenance(tmp_path / out / "000000.png")["settings"] for out in "ab"]
    assert found[0] == dataclasses.asdict(FAST) | {"diffusion_steps": 2, "guidance": 2.5}
    assert found[1] == {**found[0], "steps": 3}


@pytest.mark.parametrize(
    ("command", "iterations"),
    [
        (["generate", "--out", "o", "--steps", "3"], 3),
        ([*PAINT, "--steps", "3"], 3),
        (["interpolate", "--from", "0", "--to", "1", "--out", "o.png", "--frames", "2", "--iterations", "3"], 3),
        (["interpolate", "--from", "0", "--to", "1", "--out", "o.png", "--steps", "2", "--fast"], FAST.steps),
    ],
)
def test_steps_are_iterations_but_for_interpolate(
    bigr: Run, tmp_path: Path, command: list[str], iterations: int
) -> None:
    code, _, error = bigr(*command, options=["--diffusion-steps", "2"])
    assert (code, error) == (0, "")
    made = read_provenance(tmp_path / ("o/000000.png" if command[0] == "generate" else "o.png"))
    assert made["settings"]["steps"] == iterations
    assert made.get("frames", 2) == 2


@pytest.mark.parametrize("name", ["bf16", "bfloat16"])
def test_precision_by_either_name(bigr: Run, tmp_path: Path, name: str) -> None:
    assert bigr("generate", "--out", "o", "--precision", name)[0] == 0
    assert read_provenance(tmp_path / "o" / "000000.png")["precision"] == "bfloat16"


# ---- what goes wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inpaint", "photo.png", "--out", "o.png"], "nothing is marked"),
        (["inpaint", "photo.png", "--mask", "small.png", "--out", "o.png"], "9x9 pixels, the photograph 50x36"),
        (["inpaint", "photo.png", "--mask", "black.png", "--out", "o.png"], "black.png is empty"),
        (["inpaint", "photo.png", "--mask", "junk.png", "--out", "o.png"], "junk.png"),
        (["inpaint", "junk.png", "--mask", "mask.png", "--out", "o.png"], "junk.png"),
        (["inpaint", "gone.png", "--mask", "mask.png", "--out", "o.png"], "gone.png: no such file"),
        (["inpaint", "photo.png", "--box", "50,0,60,9", "--out", "o.png"], "box=50,0,60,9 contains no pixel"),
        ([*PAINT, "--window", "37"], "window=37 is outside 1..36"),
        ([*PAINT, "--guidance", "3"], "no class to guide toward"),
        ([*PAINT, "--iterations", "17"], "17 iterations are more than the 16 tokens of test's grid; ask"),
        (["inpaint", "photo.png", "--mask", "mask.png", "--out", "o.jpg"], "must end in .png"),
        (["inpaint", "photo.png", "--mask", "mask.png", "--out", "nowhere/o.png"], "nowhere: no such folder"),
        (["inpaint", "photo.png", "--mask", "mask.png", "--out", "folder.png"], "folder.png is a folder"),
        ([*PAINT, "--temperature", "0"], "temperature=0"),
        (["edit", "photo.png", "--mask", "mask.png", "--to", "goldfihs", "--out", "o.png"], "nearest: 'goldfish'"),
        (["edit", "photo.png", "--mask", "mask.png", "--to", "5", "--out", "o.png"], "class 5 is outside 0..4"),
        (["outpaint", "photo.png", "--aspect", "50:36", "--out", "o.png"], "there is nothing to paint"),
        (["outpaint", "photo.png", "--left", "1000000000", "--out", "o.png"], "choose smaller margins"),
        (["generate", "--labels", "cat", "--out", "o"], "class 'cat' is not one of test's; nearest: 'tabby cat'"),
        (["generate", "--guidance", "2", "--out", "o"], "no class to guide toward"),
        (["inpaint", "photo.png", "--mask", "mask.png", "--out", ""], "must end in .png"),
        ([*PAINT, "--label", ""], "no class is named"),
        (["generate", "--count", "1000001", "--out", "o"], "more than 1,000,000 pictures"),
        (["generate", "--out", "photo.png"], "photo.png is a file"),
        (["generate", "--out", "o", "--grid", "grid.gif"], "must end in .png"),
        (["generate", "--out", "o", "--npz", "nowhere/a.npz"], "nowhere: no such folder"),
        (["generate", "--out", "o", "--order", "raster", "--confidence-steps", "3"], "--confidence-steps=3"),
        (["interpolate", "--from", "1", "--to", "xyzzy", "--out", "o.png"], "class 'xyzzy'"),
        (["interpolate", "--from", "1", "--to", "2", "--out", "o.gif"], "must end in .png"),
        (["enrich", "photo.png", "--device", "quantum", "--out", "o.png"], "device='quantum' is unknown"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(bigr: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    mark(tmp_path / "small.png", 9, 9, (0, 0, 9, 9))
    mark(tmp_path / "black.png", 50, 36, (0, 0, 0, 0))
    (tmp_path / "junk.png").write_bytes(b"\x89PNG\r\n\x1a\njunk")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    options = [] if "--iterations" in arguments else SHORT
    code, text, error = bigr(*arguments, options=options)
    assert (code, text) == (1, "")
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["inpaint"],
        ["inpaint", "photo.png", "--box", "1,2,3"],
        ["inpaint", "photo.png", "--mask", "mask.png", "--blend", "soft"],
        ["edit", "photo.png", "--mask", "mask.png"],
        ["outpaint", "photo.png"],
        ["outpaint", "photo.png", "--left", "3", "--aspect", "2:1"],
        ["outpaint", "photo.png", "--aspect", "wide"],
        ["outpaint", "photo.png", "--aspect", "16:"],
        ["outpaint", "photo.png", "--left", "-3"],
        ["interpolate", "--from", "1", "--to", "2", "--steps", "1"],
        ["interpolate", "--from", "1", "--to", "2", "--steps", "1001"],
        ["generate", "--count", "0"],
        ["generate", "--seed", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(bigr: Run, arguments: list[str]) -> None:
    code, text, error = bigr(*arguments)
    assert (code, text) == (2, "")
    assert "Traceback" not in error


def test_the_bundled_model_has_every_class_that_the_readme_names() -> None:
    root = Path(__file__).parent.parent
    readme = "\n".join(page.read_text() for page in [root / "README.md", root / "docs" / "guides" / "draw.md"])
    named = re.findall(r"^bigr-repr (?:generate|edit|interpolate) .*", readme, flags=re.MULTILINE)
    texts = [text for line in named for text in re.findall(r'(?:-l|--labels|--to|--from) "?([^" ]+)', line)]
    assert len(texts) >= 4
    assert class_list(load("bigr-tiny").config, texts)


def test_an_interrupted_command_says_so(bigr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "inpaint_file", interrupt)
    code, text, error = bigr(*PAINT)
    assert (code, text, error.strip()) == (130, "", "interrupted")
