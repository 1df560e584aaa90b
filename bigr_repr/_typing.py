"""Type aliases shared by all parts of the package."""

from __future__ import annotations

import os

PathLike = str | os.PathLike[str]  # a file or folder, as given by callers
