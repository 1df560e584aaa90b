"""Whether a caption model draws what captions say: color, shape, count, place, size and relation, by an exact judge.

    benchmarks/train_text.sh runs/text                      # trains one, about half an hour on a core
    python benchmarks/text.py --model runs/text/generator/model --count 300

Data: captions of scenes from a seed that no training set uses, in two groups: "seen", whose pairs of color and shape
occur in training, and "held out", where one pair of each scene never does.

Each caption is drawn once at every guidance, and `bigr_repr.captions.judge` reads the picture. Color, shape and pair
are fractions of the objects that captions name; count, place, size, relation and all are fractions of the pictures
whose captions mention them. For comparison, the judge also reads the real pictures, and the real pictures after
encoding and decoding by the tokenizer, which is what a perfect generator would reach.

Writes benchmarks/results/text[_NAME].json and .png, a grid of eight captions by guidance. About 5 minutes on a core for
300 captions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import record
import torch
from PIL import Image, ImageDraw

import bigr_repr as br
from bigr_repr.captions import judge, summarize
from bigr_repr.checkpoints.text_encoders import load_text_encoder
from bigr_repr.datasets import SceneSet
from bigr_repr.painting.files import to_pictures
from bigr_repr.sampling.canvas import decode, encode
from bigr_repr.train.caption_set import write_captions

GUIDANCE = (1.0, 2.5, 5.0)
SEED = 1  # training scenes use seed 0
SHOWN = (
    "a red circle left of a blue square", "a blue square left of a red circle", "a green cross above a purple triangle",
    "three yellow circles", "a large black square", "a small purple cross", "a red square at the top",
    "a red triangle below a green circle",
)  # fmt: skip
EACH = 4  # pictures per caption in the grid
TOGETHER = 64


def chosen(scenes: SceneSet) -> list[str]:
    """One caption per scene, a random one of its paraphrases."""
    rng = np.random.default_rng(SEED)
    return [own[int(rng.integers(len(own)))] for own in scenes.captions]


def real(scenes: SceneSet, texts: Sequence[str], pre: br.Pretrained) -> dict[str, Any]:
    """The judge's results on the scenes themselves, and on the tokenizer's reconstructions."""
    pictures = [scenes.load_square(i, pre.config.image_size) for i in range(len(scenes))]
    found = [judge(picture, text) for picture, text in zip(pictures, texts, strict=True)]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        again = [each for part in images.split(TOGETHER) for each in to_pictures(decode(pre, encode(pre, part)))]
    redrawn = [judge(picture, text) for picture, text in zip(again, texts, strict=True)]
    return {"real": _rounded(summarize(found)), "tokenizer": _rounded(summarize(redrawn))}


def _rounded(shares: dict[str, float | int | None]) -> dict[str, float | int | None]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in shares.items()}


def drawn(pre: br.Pretrained, texts: Sequence[str], guidance: float, options: argparse.Namespace) -> dict[str, Any]:
    """The judge's results on generated pictures of the captions."""
    images = br.generate(
        pre, prompt=texts, guidance=guidance, steps=options.steps, diffusion_steps=options.diffusion_steps,
        batch_size=TOGETHER, seed=0,
    )  # fmt: skip
    return _rounded(summarize([judge(p, text) for p, text in zip(to_pictures(images), texts, strict=True)]))


def sheet(pre: br.Pretrained, options: argparse.Namespace) -> Image.Image:
    """A sheet with a row per caption and a block of pictures per guidance."""
    side, gap, head = 2 * pre.config.image_size, 4, 22
    width = len(GUIDANCE) * (EACH * (side + gap) + 3 * gap)
    page = Image.new("RGB", (width, len(SHOWN) * (side + head + gap) + head), "white")
    pen = ImageDraw.Draw(page)
    for block, guidance in enumerate(GUIDANCE):
        left = block * (EACH * (side + gap) + 3 * gap)
        pen.text((left, 4), f"guidance {guidance:g}", fill="black", font_size=14)
        texts = [text for text in SHOWN for _ in range(EACH)]
        images = br.generate(
            pre, prompt=texts, guidance=guidance, steps=options.steps, diffusion_steps=options.diffusion_steps,
            batch_size=TOGETHER, seed=1,
        )  # fmt: skip
        for number, picture in enumerate(to_pictures(images)):
            row, column = divmod(number, EACH)
            top = head + row * (side + head + gap)
            if column == 0 and block == 0:
                pen.text((left, top + 3), SHOWN[row], fill="black", font_size=14)
            place = (left + column * (side + gap), top + head)
            page.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return page


def packing(count: int = 5000) -> dict[str, Any]:
    """The cost of encoding `count` different captions with "words", and of a million at the same rate."""
    texts = [(f"a red circle left of a blue square number {i}",) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        tracemalloc.start()
        began = time.process_time()
        store = write_captions(texts, load_text_encoder("words"), folder, limit=120)
        seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        per_caption = store.bytes_per_caption
    per_token = 2 * store.header.width
    million = 1_000_000 / count
    return {
        "captions": count,
        "tokens_per_caption": store.header.tokens / count,
        "bytes_per_caption": round(per_caption),
        "bytes_per_token": per_token,
        "processor_seconds_per_million": round(seconds * million),
        "disk_gb_per_million": round(per_caption * 1e6 / 1e9, 2),
        "memory_gb_per_million": round(peak * million / 1e9, 2),
        "disk_gb_per_million_of_width_2048": round(store.header.tokens / count * 4096 * 1e6 / 1e9, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=300, help="captions in each group")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--diffusion-steps", type=int, default=50)
    parser.add_argument("--name", default="")
    options = parser.parse_args()
    pre = record.load(options.model)
    results: dict[str, Any] = {"training": dict(pre.config.training), "packing": packing(), "groups": {}}
    for group, held_out in (("seen", False), ("held_out", True)):
        scenes = SceneSet(options.count, seed=SEED, held_out=held_out, side=pre.config.image_size)
        texts = chosen(scenes)
        rows = real(scenes, texts, pre)
        rows |= {f"guidance {g:g}": drawn(pre, texts, g, options) for g in GUIDANCE}
        results["groups"][group] = rows
    name = f"text_{options.name}" if options.name else "text"
    sheet(pre, options).save(record.RESULTS / f"{name}.png")
    record.write(name, results, pre)


if __name__ == "__main__":
    main()
