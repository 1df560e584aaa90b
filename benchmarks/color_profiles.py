"""How color profiles change codes: bits that differ from the same picture in sRGB, with profiles ignored and converted.

    python benchmarks/color_profiles.py            # the example photographs, bigr-tiny: half a minute

Each photograph is converted to a wider color space, stored as PNG with its profile, and encoded from that file.
imagecodecs builds the profiles from the published primaries, white points and exponents.

Writes benchmarks/results/color_profiles.json. Expected: dozens of bits differ with profiles ignored, and a few with
profiles converted, because values are rounded to 8 bits twice.
"""

from __future__ import annotations

import argparse
import io
import statistics
from pathlib import Path
from typing import Any

import record
from PIL import Image, ImageCms

from bigr_repr import encode_codes
from bigr_repr.images.decode import as_rgb, decode_image

# x, y of the red, green and blue primaries; x, y of the white point; exponent.
SPACES = {
    "Display P3": ((0.680, 0.320, 0.265, 0.690, 0.150, 0.060), (0.3127, 0.3290), 2.2),
    "Adobe RGB": ((0.6400, 0.3300, 0.2100, 0.7100, 0.1500, 0.0600), (0.3127, 0.3290), 2.19921875),
    "ProPhoto": ((0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001), (0.3457, 0.3585), 1.8),
}


def profile_of(space: str) -> bytes:
    """The ICC profile of one of SPACES."""
    import imagecodecs

    points, white, gamma = SPACES[space]
    primaries = [value for x, y in zip(points[::2], points[1::2], strict=True) for value in (x, y, 1.0)]
    profile: bytes = imagecodecs.cms_profile("rgb", whitepoint=(*white, 1.0), primaries=primaries, gamma=gamma)
    return profile


def tagged(image: Image.Image, profile: bytes) -> bytes:
    """An sRGB image as a PNG file in another color space, with its profile."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode="RGB")
    assert converted is not None
    file = io.BytesIO()
    converted.save(file, "PNG", icc_profile=profile)
    return file.getvalue()


def main() -> None:
    """Count differing bits and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path(__file__).parent.parent / "examples" / "images")
    parser.add_argument("--model", default="bigr-tiny")
    options = parser.parse_args()
    pre = record.load(options.model)
    photos = [as_rgb(decode_image(file)) for file in sorted(options.images.glob("*.jpg"))]
    known = encode_codes(photos, model=pre)
    spaces: dict[str, dict[str, Any]] = {}
    for space in SPACES:
        files = [tagged(photo, profile_of(space)) for photo in photos]
        spaces[space] = {}
        for choice in ("ignore", "convert"):
            codes = encode_codes([decode_image(data, icc=choice) for data in files], model=pre)
            bits = [int(sum(byte.bit_count() for byte in (a ^ b).tobytes())) for a, b in zip(codes, known, strict=True)]
            spaces[space][choice] = {"mean": round(statistics.mean(bits), 1), "most": max(bits)}
    results = {"images": len(photos), "bits_of_a_code": pre.config.code_size, "differing_bits": spaces}
    record.write("color_profiles", results, pre)


if __name__ == "__main__":
    main()
