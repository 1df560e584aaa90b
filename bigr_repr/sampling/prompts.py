"""Validates prompts, and reads them from files. Knows nothing of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from bigr_repr._typing import PathLike

Prompt: TypeAlias = str | Sequence[str]
_SHOWN = 60  # characters of a prompt in a message


def prompt_list(prompt: Prompt, name: str = "prompt") -> list[str]:
    """Prompts as a list, stripped of surrounding white space.

    Raises ValueError if there are none, or for empty prompts or invalid Unicode, TypeError for anything but text.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts:
        raise ValueError(f"{name} is empty; say what to draw, or leave it out")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}={text!r} is a {type(text).__name__}; give text")
        if not text.strip():
            raise ValueError(f"{name}={text!r} is empty; say what to draw, or leave it out")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text[:_SHOWN].encode(errors="replace").decode()
            raise ValueError(f"{name}={shown!r} is not UTF-8 text; write it in UTF-8") from error
    return [text.strip() for text in texts]


def read_prompts(file: PathLike) -> list[str]:
    """The prompts in a text file, one per line; empty lines are ignored.

    Raises OSError for an unreadable file, ValueError for one that is not UTF-8 or contains no prompts.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{file} contains no prompts; write one per line")
    return found
