"""One visual language: every page takes color, type and spacing from one file, and its colors can be read."""

from __future__ import annotations

import re
from pathlib import Path

import bigr_repr_cli
import pytest

import bigr_repr
from bigr_repr.system.pages import TOKENS

ROOTS = [Path(bigr_repr.__file__).parent, Path(bigr_repr_cli.__file__).parent]
STYLED = [
    file
    for root in ROOTS
    for file in sorted([*root.rglob("*.css"), *root.rglob("*.html")])
    if "assets" not in file.parts
]
COLOR = re.compile(r"#[0-9a-f]{3,8}\b(?=[^{}]*[;}])|\b(?:rgba?|hsla?|oklch)\(", re.IGNORECASE)


def schemes() -> dict[str, dict[str, str]]:
    """The tokens of the light scheme and of the dark one, which changes some."""
    light, dark = re.findall(r":root \{(.*?)\}", TOKENS.read_text(), re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): ([^;]+)", part)) for part in (light, dark)]
    return {"light": found[0], "dark": found[0] | found[1]}


def luminance(color: str) -> float:
    digits = color.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_ground(scheme: str) -> None:
    """WCAG's AA: 4.5 for text, 3 for what one has to see to use a control."""
    tokens = schemes()[scheme]
    texts = [(text, ground) for text in ("ink", "soft", "accent", "wrong") for ground in ("paper", "card")]
    texts += [("on-accent", "accent"), ("paper", "ink"), ("on-stage", "stage"), ("soft-stage", "stage"), ("ink", "bar")]
    for text, ground in texts:
        assert contrast(tokens[text], tokens[ground]) >= 4.5, (text, ground)
    for edge, ground in [("edge", "paper"), ("edge", "card"), ("accent", "bar"), ("accent", "stage")]:
        assert contrast(tokens[edge], tokens[ground]) >= (2.5 if ground == "stage" else 3), (edge, ground)


@pytest.mark.parametrize("file", STYLED, ids=lambda file: file.name)
def test_colors_are_the_tokens(file: Path) -> None:
    text = re.sub(r"<!--.*?-->|/\*.*?\*/", "", file.read_text(), flags=re.DOTALL)
    defined = set(re.findall(r"--([\w-]+):", TOKENS.read_text()))
    assert set(re.findall(r"var\(--([\w-]+)", text)) <= defined
    if file != TOKENS:
        assert not COLOR.findall(re.sub(r"#[\w-]+(?=[^{};]*\{)", "", text))
        assert not re.search(r"font(?:-family)?:[^;}]*(?:sans-serif|monospace|Georgia)", text)
