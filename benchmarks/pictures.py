"""The pictures of the README, made by the commands on the example photographs: `generation.py pictures`.

Every picture is what the command line printed beside it makes; run again after a change of the model, it makes the page
anew. Writes PNGs and GIFs into --out, a sheet of the page, and the commands into results/generation_pictures.json.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import record
from PIL import Image, ImageDraw

EXAMPLES = Path("examples/images")
ROOT = Path(__file__).parent.parent
HEIGHT, GAP = 256, 8

CLASSES = "seashore,volcano,golden retriever,goldfish,school bus,mushroom,ship,airplane"

# Name of the picture, what is shown beside it (a photograph, or nothing), and the command's words; OUT is filled in.
PICTURES: list[tuple[str, str, str]] = [
    (
        "classes",
        "",
        f'generate -l "{CLASSES}" --count 32 --seed 1 --out {{folder}}/classes --grid OUT '
        "--animate {folder}/classes.gif",
    ),
    ("inpainted", "raccoon.jpg", "inpaint {photo} --box 150,80,280,230 --blend feather --seed 3 --out OUT --animate"),
    ("poisson", "raccoon.jpg", "inpaint {photo} --box 150,80,280,230 --blend poisson --seed 3 --out OUT"),
    ("outpainted", "dandelions.jpg", "outpaint {photo} --aspect 21:9 --blend feather --seed 1 --out OUT"),
    ("edited", "coffee.jpg", "edit {photo} --to goldfish --box 130,40,410,320 --blend feather --seed 2 --out OUT"),
    ("interpolated", "", "interpolate --from seashore --to volcano --steps 9 --seed 4 --out OUT"),
    ("enriched", "cat.jpg", "enrich {photo} --blend feather --seed 0 --out OUT"),
]  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """The subcommand."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    for old in (out / "classes").glob("*"):  # a series of another model would be refused
        old.unlink()
    made, started = [], time.perf_counter()
    for name, photo, words in PICTURES:
        shown = words.format(photo=EXAMPLES / photo, folder=out).replace("OUT", str(out / f"{name}.png"))
        arguments = [*shlex.split(shown), "--model", options.model, "--device", options.device]
        print("bigr-repr", shlex.join(arguments), flush=True)
        done = subprocess.run([sys.executable, "-m", "bigr_repr_cli", *arguments], cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"pictures.py: the command for {name} failed; its message is above")
        printed = words.format(photo=EXAMPLES / photo, folder=".").replace("OUT", f"{name}.png")
        made.append({"picture": f"{name}.png", "photograph": photo or None, "command": f"bigr-repr {printed}"})
    for file in (out / "classes").glob("*"):
        file.unlink()
    (out / "classes").rmdir()
    sheet(out).save(out / "page.png", optimize=True)
    results = {"pictures": made, "seconds": round(time.perf_counter() - started, 1)}
    record.write("generation_pictures", results, record.load(options.model))


def sheet(out: Path) -> Image.Image:
    """Photographs and what became of them, row by row under their commands."""
    rows = []
    for name, photo, words in PICTURES:
        found = [Image.open(ROOT / EXAMPLES / photo).convert("RGB")] if photo else []
        found.append(Image.open(out / f"{name}.png").convert("RGB"))
        line = Image.new("RGB", (1200, HEIGHT + 26), "white")
        ImageDraw.Draw(line).text((4, 6), f"bigr-repr {words.format(photo=photo, folder='.')}"[:150], fill="black")
        left = 0
        for image in found:
            scale = min(HEIGHT / image.height, (1200 - left) / image.width)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            line.paste(image.resize(size, Image.Resampling.LANCZOS), (left, 26))
            left += size[0] + GAP
        rows.append(line)
    page = Image.new("RGB", (1200, sum(row.height + GAP for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height + GAP
    return page
