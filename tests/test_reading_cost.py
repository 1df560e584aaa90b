"""What is read of containers in a store: each of them once, whichever engine does it, and not again when resumed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from s3_server import BUCKET, s3_server
from store_proxy import StoreProxy, store_proxy

from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.embed import EmbedSummary, embed_images, read_embeddings
from bigr_repr.embed.dataset.plan import open_plan
from bigr_repr.system.object_store import ObjectPath

COUNT, AIM = 66, 1.05


@pytest.fixture(scope="module")
def proxy() -> Iterator[StoreProxy]:
    with (
        s3_server() as environment,
        store_proxy(environment["AWS_ENDPOINT_URL"]) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**environment, "AWS_ENDPOINT_URL": made.address}.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def sizes(proxy: StoreProxy) -> dict[str, int]:
    """A tar shard and two Parquet files of the same pictures, of some 90 kB each; returns their sizes."""
    pictures = []
    for number in range(COUNT):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (175, 175, 3), np.uint8)
        Image.fromarray(pixels).save(file, "png", compress_level=0)
        pictures.append(file.getvalue())
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number, picture in enumerate(pictures):
            info = tarfile.TarInfo(f"{number:05d}.png")
            info.size = len(picture)
            tar.addfile(info, io.BytesIO(picture))
    contents = {"x.tar": shard.getvalue()}
    for name, rows in (("small.parquet", 6), ("large.parquet", 33)):
        table = io.BytesIO()
        pq.write_table(pa.table({"image": pictures}), table, row_group_size=rows, compression="none")
        contents[name] = table.getvalue()
    for name, content in contents.items():
        with (ObjectPath(f"s3://{BUCKET}") / name).put() as file:
            file.write(content)
    return {name: len(content) for name, content in contents.items()}


def run(name: str, out: Any, model: Pretrained, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "unit_size": 10, "batch_size": 10, "decode_timeout": None}
    return embed_images(f"s3://{BUCKET}/{name}", out, model=model, **{**usual, **options})


ENGINES = {
    "local": {},
    "processes": {"device": "cpu,cpu"},
}


@pytest.mark.parametrize(
    "name", ["small.parquet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("large.parquet", "x.tar"))]
)
@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=[pytest.mark.slow] * (name != "local")) for name in ENGINES]
)
def test_a_container_is_read_once(
    engine: str, name: str, proxy: StoreProxy, sizes: dict[str, int], pre: Pretrained, tmp_path: Any
) -> None:
    proxy.sent.clear()
    proxy.requests.clear()
    assert run(name, tmp_path / "out", pre, **ENGINES[engine]).rows == COUNT
    assert sizes[name] * 0.9 < proxy.read(name) <= AIM * sizes[name]
    if name == "x.tar":  # pictures are had many at a time
        assert proxy.requests[f"/{BUCKET}/{name}"] < 1.4 * COUNT
    proxy.sent.clear()
    assert run(name, tmp_path / "out", pre).embedded == 0
    assert proxy.read(name) < 0.05 * sizes[name]


@pytest.mark.slow
def test_units_hold_whole_row_groups(sizes: dict[str, int], pre: Pretrained, tmp_path: Any) -> None:
    run("small.parquet", tmp_path / "small", pre)
    plan = open_plan(tmp_path / "small" / "_run")
    assert plan is not None
    assert [plan.size(unit) for unit in range(plan.units)] == [12, 12, 12, 12, 12, 6]
    assert list(plan.chains(range(plan.units))) == [[unit] for unit in range(6)]
    run("large.parquet", tmp_path / "large", pre)
    plan = open_plan(tmp_path / "large" / "_run")
    assert plan is not None
    assert [plan.size(unit) for unit in range(plan.units)] == [10, 10, 13, 10, 10, 13]
    assert list(plan.chains(range(plan.units))) == [[0, 1, 2], [3, 4, 5]]
    assert list(plan.chains([1, 2, 3, 5])) == [[1, 2], [3], [5]]
    read = [read_embeddings(tmp_path / name) for name in ("small", "large")]
    assert read[0].vectors.tobytes() == read[1].vectors.tobytes()


@pytest.mark.slow
def test_a_tar_that_grew_is_embedded_again_by_an_update(
    proxy: StoreProxy, sizes: dict[str, int], pre: Pretrained, tmp_path: Any
) -> None:
    place, copy = ObjectPath(f"s3://{BUCKET}/x.tar"), ObjectPath(f"s3://{BUCKET}/y.tar")
    with copy.put() as file:
        file.write(place.read_bytes())
    run("y.tar", tmp_path / "out", pre)
    more = io.BytesIO(place.read_bytes())
    with tarfile.open(fileobj=more, mode="a") as tar:
        info = tarfile.TarInfo("zzz.png")
        info.size = 1000
        tar.addfile(info, io.BytesIO(bytes(1000)))
    with copy.put() as file:
        file.write(more.getvalue())
    with pytest.raises(ValueError, match="inputs were 66, are 67"):
        run("y.tar", tmp_path / "out", pre)
    done = run("y.tar", tmp_path / "out", pre, update=True)
    assert (done.rows, done.changed, done.failures) == (66, 67, 1)
