"""Names of types that every part of the package may use. Knows nothing of any part."""

from __future__ import annotations

import os

PathLike = str | os.PathLike[str]  # a file or folder as callers give it
