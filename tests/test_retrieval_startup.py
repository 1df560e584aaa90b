"""Commands that need neither network nor FAISS load neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigr_repr.codes import hamming
from bigr_repr.retrieval import HammingIndex
from bigr_repr.retrieval.index import scan as scanning

HEAVY = (
    "torch",
    "faiss",
    "pandas",
    "timm",
    "sklearn",
    "matplotlib",
    "scipy",
    "sqlglot",
    "lancedb",
    "pymilvus",
    "fastapi",
)


OTHERS = ("bigr_repr_cli.embed", "bigr_repr_cli.train", "bigr_repr_cli.draw")  # commands that are not asked for
READING = ("PIL", "pyarrow.parquet", "pyarrow.dataset", "bigr_repr.embed.dataset.schema")  # pictures and data sets


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "more"),
    [
        (["--help"], ("numpy", "pyarrow", "PIL")),
        (["near-duplicates", "--help"], ("numpy", "pyarrow", "PIL", *OTHERS)),
        (["models", "list"], ("pyarrow", "PIL", *OTHERS[1:])),
        (["index", "info", "i"], ("pyarrow.compute", *READING, *OTHERS)),
        (["search", "7.jpg", "--id", "--index", "i", "-k", "3"], ("rich.console", *READING, *OTHERS)),
    ],
)
def test_a_look_at_an_index_loads_nothing_heavy(command: list[str], more: tuple[str, ...], tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (100, 32), np.uint8)
    HammingIndex.build(codes, ids=[f"{i}.jpg" for i in range(100)]).save(tmp_path / "i")
    script = (
        "import sys; from bigr_repr_cli import main\n"
        f"sys.argv = ['bigr-repr', *{command!r}]\n"
        "try: main.main()\n"
        f"except SystemExit as end: print(end.code, [name for name in {HEAVY + more!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_what_is_found_before_faiss_is_loaded_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    codes, wanted = random.integers(0, 4, (500, 9), np.uint8), random.integers(0, 4, (3, 9), np.uint8)
    whole = scanning.scan(codes, wanted, 40)
    distances = hamming(wanted[:, None], codes)
    np.testing.assert_array_equal(whole.rows, np.argsort(distances, axis=1, kind="stable")[:, :40])
    small = scanning._split(scanning._small_scan(codes, wanted, 40))
    for one, other in zip(whole, small, strict=True):
        np.testing.assert_array_equal(one, other)
