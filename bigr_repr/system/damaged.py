"""Errors about damaged files that name the file. Knows nothing of what the files are."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def named_if_damaged(file: Path | str, remedy: str = "write it again") -> Iterator[None]:
    """Turn what NumPy and pyarrow raise for a damaged file into an error that names it.  Raises ValueError.

    NumPy parses headers as Python literals, so its errors are of many kinds.
    """
    import pyarrow as pa

    kinds = (ValueError, EOFError, KeyError, SyntaxError, MemoryError, OSError, pa.ArrowException)
    try:
        yield
    except (*kinds, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        if getattr(error, "errno", None):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file}: damaged, or of another kind ({said}); {remedy}") from error
