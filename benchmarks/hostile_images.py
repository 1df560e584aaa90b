"""Reads intact pictures with damaged metadata: how many are lost, and what JPEG decoding costs against another version.

    python benchmarks/hostile_images.py                                      # 10 000 files made here: half a minute
    python benchmarks/hostile_images.py --before CHECKOUT --jpegs FOLDER     # also the ratio of speeds in one run

Data: PNG, JPEG and WebP files written here with text, EXIF, XMP, a color profile and private blocks. In each file one
or two such blocks are damaged: bytes changed, cut short with and without a matching length, emptied, repeated, or given
a wrong checksum. Blocks that determine how pixels are interpreted (tRNS, Adobe's APP14) are left alone. A picture
counts as kept if its pixels, in any orientation that EXIF allows, equal those of the undamaged file.

Writes benchmarks/results/hostile_images.json. Expected: no picture lost, none with different pixels, and a speed ratio
of at least 0.98.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from struct import pack
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin
from record import write

Part = tuple[bytes, bytes]  # name or marker, and content
_CLOCK = """
import sys, time
from pathlib import Path
from bigr_repr.images.decode import decode_image
files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).rglob("*.jpg"))]
for data in files: decode_image(data)
started = time.process_time()
for _ in range(int(sys.argv[2])):
    for data in files: decode_image(data)
print(time.process_time() - started)
"""


def metadata(rng: random.Random) -> dict[str, Any]:
    """EXIF, color profile and XMP as cameras and editors write them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0131] = rng.randint(1, 8), "Maker", "Editor 1.0"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {"exif": exif.tobytes(), "icc_profile": profile, "xmp": b"<x:xmpmeta>" + bytes(200) + b"</x:xmpmeta>"}


def written(kind: str, image: Image.Image, rng: random.Random) -> bytes:
    file, options = io.BytesIO(), metadata(rng)
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Title", "a" * 50)
        text.add_text("Comment", "b" * 500, zip=True)
        text.add_itxt("Author", "c" * 50, "en", "Author", zip=True)
        for name, body in ((b"gAMA", pack(">I", 45455)), (b"tIME", bytes(7)), (b"prVt", b"private")):
            text.add(name, body)
        options |= {"pnginfo": text, "dpi": (72, 72)}
        options.pop("xmp")
    elif kind == "JPEG":
        options |= {"comment": b"a comment", "dpi": (72, 72), "quality": 90}
    else:
        options |= {"lossless": True}
    image.save(file, kind, **options)
    return file.getvalue()


def parts_of(kind: str, data: bytes) -> tuple[bytes, list[Part], bytes]:
    """Split a file into its header, its blocks, and what follows the last block."""
    start, parts = {"PNG": 8, "JPEG": 2, "WEBP": 12}[kind], list[Part]()
    head, at = data[:start], start
    while at < len(data):
        if kind == "PNG":
            size = int.from_bytes(data[at : at + 4])
            parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
            at += 12 + size
        elif kind == "WEBP":
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            parts.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
            at += 8 + size + size % 2
        else:
            if data[at + 1] == 0xDA:
                break
            size = int.from_bytes(data[at + 2 : at + 4])
            parts.append((data[at : at + 2], data[at + 4 : at + 2 + size]))
            at += 2 + size
    return head, parts, data[at:]


def joined(kind: str, head: bytes, parts: list[Part], tail: bytes, wrong: set[int]) -> bytes:
    """Assemble a file from blocks. wrong: numbers of the blocks that get a wrong checksum."""
    blocks = []
    for number, (name, body) in enumerate(parts):
        if kind == "PNG":
            check = crc32(name + body) ^ (number in wrong)
            blocks.append(pack(">I", len(body)) + name + body + pack(">I", check))
        elif kind == "WEBP":
            blocks.append(name + pack("<I", len(body)) + body + bytes(len(body) % 2))
        else:
            blocks.append(name + pack(">H", len(body) + 2) + body)
    if kind == "WEBP":
        head = b"RIFF" + pack("<I", 4 + sum(map(len, blocks))) + b"WEBP"
    return head + b"".join(blocks) + tail


def is_metadata(kind: str, name: bytes) -> bool:
    if kind == "PNG":
        return name[:1].islower() and name != b"tRNS"
    if kind == "WEBP":
        return name in (b"EXIF", b"XMP ", b"ICCP")
    return (0xE0 <= name[1] <= 0xEF and name[1] != 0xEE) or name[1] == 0xFE


def damaged(kind: str, data: bytes, rng: random.Random) -> bytes:
    head, parts, tail = parts_of(kind, data)
    wrong = set()
    for _ in range(rng.randint(1, 2)):
        number = rng.choice([place for place, (name, _) in enumerate(parts) if is_metadata(kind, name)])
        name, body = parts[number]
        how = rng.randrange(6)
        changed = bytearray(body)
        if how == 0 and body:
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(body))] = rng.randrange(256)
        elif how == 1:
            del changed[rng.randrange(len(body) + 1) :]
        elif how == 2:
            changed += rng.randbytes(rng.randrange(1, 2000))
        elif how == 3:
            changed[:] = rng.randbytes(len(body))
        elif how == 4:
            wrong.add(number)
        else:
            parts.insert(number, (name, body))
        parts[number] = (name, bytes(changed[:65000]))
    return joined(kind, head, parts, tail, wrong)


def judge(count: int, seed: int) -> dict[str, Any]:
    """Damage `count` files, and count how many are kept, changed and lost."""
    from bigr_repr.images.decode import decode_image
    from bigr_repr.images.formats import ImageError

    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for number in range(count):
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        image = Image.fromarray(numbers.integers(0, 256, (9, 12, 3), np.uint8)).resize((36, 28))
        data = written(kind, image, rng)
        bad = damaged(kind, data, rng)
        known = io.BytesIO(data)
        with Image.open(known) as opened:
            upright = np.asarray(opened.convert("RGB"))
        try:
            found = np.asarray(decode_image(bad, icc="ignore"))
        except ImageError as error:
            counts[f"{kind} lost"] += 1
            reasons[f"{kind} {error.kind}: {error.message[:120]}"] += 1
            continue
        same = any(
            np.array_equal(found, np.rot90(side, turn)) for side in (upright, upright[:, ::-1]) for turn in range(4)
        )
        counts[f"{kind} {'kept' if same else 'changed'}"] += 1
    return {
        "files": count,
        "seed": seed,
        "counts": dict(sorted(counts.items())),
        "reasons": dict(reasons.most_common(9)),
    }


def ratio(before: Path, folder: Path, repeats: int, rounds: int) -> dict[str, Any]:
    """Compare processor time on ordinary JPEG files between two versions of the package, run alternately."""
    here = Path(__file__).parent.parent
    times: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(rounds):
        for name, place in (("before", before), ("after", here)):
            command = [sys.executable, "-c", _CLOCK, str(folder), str(repeats)]
            done = subprocess.run(command, env={"PYTHONPATH": str(place)}, capture_output=True, text=True, check=True)
            times[name].append(float(done.stdout))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "jpegs": len(list(folder.rglob("*.jpg"))),
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "speed_ratio": round(medians["before"] / medians["after"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--before", type=Path, help="checkout of the version to compare speeds with")
    parser.add_argument("--jpegs", type=Path, default=Path(__file__).parent.parent / "examples" / "images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    results = judge(options.files, options.seed)
    if options.before:
        results["speed"] = ratio(options.before, options.jpegs, options.repeats, options.rounds)
    write("hostile_images", results)


if __name__ == "__main__":
    main()
