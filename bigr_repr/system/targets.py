"""Checks, before any work, whether the files that it ends in can be written. Knows nothing of their formats."""

from __future__ import annotations

import os
from pathlib import Path

from bigr_repr.system.files import partial_name


def check_target(path: Path, suffix: str = "", *, made: Path | None = None) -> None:
    """Check, before any work, whether a file can be written.

    suffix: the required one, lowercase; empty: any. made: a folder that will exist by then.

    Raises ValueError for a wrong suffix, OSError that names the folder or file otherwise.
    """
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"{path}: the name must end in {suffix}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; choose a file name" + f" that ends in {suffix}" * bool(suffix))
    if made is not None and not made.exists() and path.parent.resolve() == made.resolve():
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; create it first, or choose another")
    check_writable(path.parent)
    _check_name(path)


def check_writable(folder: Path) -> None:
    """Check whether files can be created in a folder. Raises OSError that names it otherwise."""
    probe = partial_name(folder / "writable")
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may check at the same time
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(folder)) from error


def _check_name(path: Path) -> None:
    """Check whether the temporary file that becomes path can have its name. Raises OSError that names path."""
    probe = partial_name(path)
    try:
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)
    except FileExistsError:
        pass  # of an interrupted write, or of another process that checks at the same time
    except OSError as error:
        own, whole = (len(os.fsencode(each.name)) for each in (path, probe))
        said = f"{error.strerror}: it has {own} bytes, and {whole - own} more while it is written; choose a shorter one"
        raise type(error)(error.errno, said, str(path)) from error
