"""Every example of the guide to other frameworks runs as it stands, with the real libraries."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import sqlglot

import bigr_repr as br
from bigr_repr.images import decode_image

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guides" / "integrations.md").read_text()
# Each section's code, and what it imports that a plain installation lacks.
SECTIONS = {
    title: code
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    for code in ["\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))]
    if code
}
NEEDED = {
    "datasets": ["datasets"], "sentence-transformers": ["sentence_transformers"], "usearch": ["usearch"],
    "DuckDB and Polars": ["duckdb", "polars"], "Qdrant": ["qdrant_client"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root after the guide's first command."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "examples").symlink_to(ROOT / "examples")
    br.embed_images(
        folder / "examples" / "images", folder / "embeddings", codes=True, thumbnails=96, decode_timeout=None
    )
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other libraries
@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_runs(place: Path, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDED.get(title, []):
        pytest.importorskip(package, reason="the extra interop is not installed")
    monkeypatch.chdir(place)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    names: dict[str, object] = {}
    exec(compile(SECTIONS[title], f"integrations.md, {title}", "exec"), names)
    for check in CHECKS.get(title, []):
        assert eval(check, {**names, "statements": _statements, "decode_image": decode_image}), check


def _statements(file: str) -> list[str]:
    """The kinds of the statements in a file of SQL, as a parser of PostgreSQL's reads them; values in rows of two."""
    kinds = []
    for each in sqlglot.parse(Path(file).read_text(), read="postgres"):
        assert each is not None
        kinds.append(f"{each.key.upper()} {each.args.get('kind') or ''}".strip())
        for row in each.find_all(sqlglot.exp.Tuple):
            assert len(row.expressions[1].name) == 4096
    return kinds


# What the examples find, where it can be said.
CHECKS = {
    "timm and torchvision": ["features.shape == (1, 192)", "[each.shape for each in maps] == [(1, 192, 8, 8)] * 3"],
    "datasets": [
        "len(embedded) == 2",
        "len(embedded[1]['embedding']) == 192",
        "len(embedded[0]['code']) == 512",
        "pictures.map(br_batch, batched=True, batch_size=32)._fingerprint == embedded._fingerprint",
    ],
    "sentence-transformers": ["vectors.shape == (3, 192)", "util.cos_sim(vectors, vectors)[0, 1] > 0.3"],
    "DuckDB and Polars": ["nearest[0][0] == 'grass.jpg'", "vectors.shape == (12, 192)"],
    "usearch": ["found.keys[0] == 0 and found.distances[0] == 0"],
    "Qdrant": ["distances[0] == 0", "hits[0].payload['path'] == data.paths[0]"],
    "pgvector": ["statements('codes.sql') == ['COMMAND', 'CREATE TABLE', 'INSERT', 'CREATE INDEX']", "bits == 4096"],
    "Embedding Atlas": [
        "str(table.schema.field('image').type) == 'struct<bytes: binary, path: string>'",
        "decode_image(table['image'][0]['bytes'].as_py()).width <= 96",
    ],
    "FiftyOne": ["vectors.shape == (len(files), 192)", "len(files) > 8"],
}
