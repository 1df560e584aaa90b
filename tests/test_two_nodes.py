"""Two machines of a Ray cluster, as two nodes on this one: whichever is lost, the work is done, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_retrieval_growth import write_part
from tiny_model import tiny_model, write_pictures

from bigr_repr.embed import Progress, embed_images
from bigr_repr.retrieval import HammingIndex, build_shards
from bigr_repr.retrieval.index.shard_list import shard_folders

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of two nodes of a core each, which this process has joined; the second one may be removed."""
    from ray.cluster_utils import Cluster

    room = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=room)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_machine_costs_no_row(nodes: Any, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 60)
    (tmp_path / "photos" / "00011.png").write_bytes(b"junk")
    usual: dict[str, Any] = {"layers": [2], "codes": True, "unit_size": 3, "batch_size": 3, "decode_timeout": None}
    usual |= {"model": tiny_model()}

    def lose(progress: Progress) -> None:
        if progress.total and progress.done >= 12 and nodes.second is not None:
            nodes.remove_node(nodes.second, allow_graceful=False)
            nodes.second = None

    done = embed_images(tmp_path / "photos", tmp_path / "ray", engine="ray", on_progress=lose, **usual)
    assert nodes.second is None
    assert (done.rows, done.failures, done.embedded) == (59, 1, 60)
    embed_images(tmp_path / "photos", tmp_path / "local", **usual)
    mine, theirs = (
        {
            file.name: file.read_bytes()
            for file in [*(tmp_path / name).glob("part-*"), tmp_path / name / "failures.jsonl"]
        }
        for name in ("ray", "local")
    )
    assert mine == theirs


def test_shards_of_a_lost_machine_are_built_by_the_other(nodes: Any, tmp_path: Path) -> None:
    for number in range(8):
        write_part(tmp_path / "data", number, 50)

    def lose(done: int, total: int) -> None:
        if done >= 1 and nodes.second is not None:
            nodes.remove_node(nodes.second, allow_graceful=False)
            nodes.second = None

    build_shards(tmp_path / "data", tmp_path / "ray", 8, engine="ray", binarizer="bits", on_progress=lose)
    assert nodes.second is None
    build_shards(tmp_path / "data", tmp_path / "local", 8, binarizer="bits")
    one, two = (HammingIndex.load(tmp_path / name) for name in ("ray", "local"))
    queries = np.random.default_rng(0).integers(0, 256, (5, two.n_bits // 8), np.uint8)
    for mine, theirs in zip(one.find(queries, 30), two.find(queries, 30), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    held = [(folder / "index.json").stat().st_mtime_ns for folder in shard_folders(tmp_path / "ray")]
    build_shards(tmp_path / "data", tmp_path / "ray", 8, engine="ray", binarizer="bits")
    assert held == [(folder / "index.json").stat().st_mtime_ns for folder in shard_folders(tmp_path / "ray")]
