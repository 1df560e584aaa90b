"""Reads the lines of text files. Knows nothing of what they say."""

from __future__ import annotations

from pathlib import Path

from bigr_repr._typing import PathLike

__all__ = ["text_lines"]


def text_lines(file: PathLike) -> list[str]:
    """The lines of a UTF-8 text, without a byte-order mark. Raises OSError, or ValueError for another encoding."""
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
