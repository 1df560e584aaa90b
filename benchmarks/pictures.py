"""The README's pictures, made by commands on the example photographs: `generation.py pictures`.

Every picture is the output of the command printed above it, without selection: the first eight versions of seed 0, or
the only one. Run it again after changing the model to regenerate the page. Writes PNGs and GIFs into --out, a sheet of
them as page.png, and the commands into results/generation_pictures.json.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import record
from PIL import Image, ImageDraw

import bigr_repr as br
from bigr_repr.checkpoints.classes import class_number

EXAMPLES = Path("examples/images")
ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT, HEADING, GAP = 1600, 280, 24, 10
SHOWN = 8  # versions of a picture on the page

# The first eight of these that the model has are drawn; if it has fewer than three, numbers spread over all classes.
WISHED = (
    "seashore", "alp", "lakeside", "goldfish", "golden retriever", "school bus", "monarch", "cliff dwelling",
    "mushroom", "ship", "airplane", "truck", "volcano", "orange", "espresso",
)  # fmt: skip

# Name of the picture, its photograph (or ""), and the command's arguments. {first} to {third} are classes.
PICTURES = [
    ("classes", "", 'generate -l "{classes}" --count 32 --out {folder}/series --grid {out} --animate {gif}'),
    ("inpainted", "raccoon.jpg", "inpaint {photo} --box 150,80,280,230 --blend feather --fast --count 8 --out {out}"),
    ("retouched", "rocket.jpg", "inpaint {photo} --box 60,60,160,160 --blend feather --fast --count 8 --out {out}"),
    ("outpainted", "dandelions.jpg", "outpaint {photo} --aspect 21:9 --blend feather --fast --count 8 --out {out}"),
    (
        "edited",
        "coffee.jpg",
        'edit {photo} --to "{third}" --box 130,40,410,320 --blend feather --fast --count 8 --out {out}',
    ),
    ("interpolated", "", 'interpolate --from "{first}" --to "{second}" --steps 9 --out {out}'),
    ("enriched", "cat.jpg", "enrich {photo} --window 150 --fast --out {out}"),
]


def classes_to_draw(config: br.ModelConfig) -> list[str]:
    """Up to eight class names or numbers; fewer if the model has fewer classes."""
    found: list[str] = []
    for name in WISHED:
        try:
            class_number(config, name)
        except ValueError:
            continue
        found.append(name)
    count = config.generator.classes
    spread = [str(i * count // min(8, count)) for i in range(min(8, count))]
    return found[:8] if len(found) >= 3 else spread


def words(name: str, photo: str, template: str, classes: list[str], folder: Path) -> str:
    """The arguments of a command, as typed."""
    first, second, third = (classes * 3)[:3]
    return template.format(
        photo=EXAMPLES / photo, folder=folder, out=folder / f"{name}.png", gif=folder / f"{name}.gif",
        classes=",".join(classes), first=first, second=second, third=shlex.quote(third),
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Run the `pictures` subcommand."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    pre, started = record.load(options.model), time.perf_counter()
    classes = classes_to_draw(pre.config)
    shutil.rmtree(out / "series", ignore_errors=True)  # the command refuses a series of another model
    commands: dict[str, str] = {}
    for name, photo, template in PICTURES:
        line = words(name, photo, template, classes, out)
        print(f"bigr-repr {line}", flush=True)
        arguments = [*shlex.split(line), "--model", options.model, "--device", options.device]
        done = subprocess.run([sys.executable, "-m", "bigr_repr_cli", *arguments], cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"pictures.py: the command for {name} failed; see its message above")
        commands[name] = "bigr-repr " + words(name, photo, template, classes, Path())
    shutil.rmtree(out / "series")
    sheet(out, commands).save(out / "page.png", optimize=True)
    made = [{"picture": f"{name}.png", "command": command} for name, command in commands.items()]
    record.write("generation_pictures", {"pictures": made, "seconds": round(time.perf_counter() - started, 1)}, pre)


def sheet(out: Path, commands: dict[str, str]) -> Image.Image:
    """Photographs and the pictures made from them, each row below its command."""
    rows = []
    for name, photo, _ in PICTURES:
        versions = sorted(out.glob(f"{name}-[0-9].png")) or [out / f"{name}.png"]
        sources = ([ROOT / EXAMPLES / photo] if photo else []) + versions[:SHOWN]
        row = Image.new("RGB", (WIDTH, HEIGHT + HEADING), "white")
        ImageDraw.Draw(row).text((2, 4), commands[name], fill="black", font_size=13)
        left = bottom = 0
        for source in sources:
            with Image.open(source) as image:
                room = (WIDTH - left) if len(sources) < SHOWN else WIDTH / len(sources) - GAP
                scale = min(HEIGHT / image.height, room / image.width)
                size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                row.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, HEADING))
            left, bottom = left + size[0] + GAP, max(bottom, HEADING + size[1])
        rows.append(row.crop((0, 0, WIDTH, bottom)))
    page = Image.new("RGB", (WIDTH, sum(row.height + GAP for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height + GAP
    return page
