"""The Ray engine on a real cluster of this machine: the local engine's files to the byte, whoever is killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
from forks import COMMAND, start
from s3_server import BUCKET, free_port, s3_server
from tiny_model import tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.embed import EmbedSummary, Progress, embed_images
from bigr_repr.embed.dataset.schema import Recipe
from bigr_repr.embed.engines import ray as ray_engine
from bigr_repr.embed.engines.decoding import Decoding
from bigr_repr.embed.engines.gpus import EngineOptions
from bigr_repr.system import cluster
from bigr_repr.system.object_store import ObjectPath

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def joined() -> Iterator[None]:
    """A cluster of two cores, whose workers know of an S3 server; this process has joined it."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=80 << 20,
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    paths = write_pictures(folder / "a", 20) + write_pictures(folder / "b", 20, first=20)
    paths[7].write_bytes(b"junk")
    paths[31].write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def whole(pre: Pretrained, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the local engine writes."""
    out = tmp_path_factory.mktemp("whole")
    run(photos, out, pre, engine="local")
    return files_of(out)


def run(inputs: Any, out: Any, model: Pretrained, **options: Any) -> EmbedSummary:
    columns = {"layers": [2], "codes": True, "sha256": True, "labels_from_folders": True}
    # With as many threads each as the cluster has cores there is one worker, which starts in half the time of two.
    usual = {"unit_size": 4, "batch_size": 3, "engine": "ray", "decode_timeout": None, "workers": 2}
    return embed_images(inputs, out, model=model, **{**columns, **usual, **options})


def files_of(out: Any) -> dict[str, bytes]:
    """All that the data set consists of, but for who wrote it."""
    files = [*out.glob("part-*"), out / "failures.jsonl", *(out / "_run" / "units").glob("*")]
    return {file.name: file.read_bytes() for file in files}


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Ray's processes that do units."""
    found = []
    for child in process.children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith("ray::_Worker"):
                found.append(child)
        except psutil.Error:  # it has ended
            continue
    return found


# ---- the same rows


def test_a_killed_worker_costs_nothing_and_rows_are_the_local_engines(
    joined: None, pre: Pretrained, photos: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    out, killed = ObjectPath(f"s3://{BUCKET}/out"), []

    def kill(progress: Progress) -> None:
        if progress.total and 0 < progress.done < 20 and not killed:
            killed.append(workers_of(psutil.Process())[0])
            killed[0].kill()

    summary = run(photos, str(out), pre, on_progress=kill, workers=1)
    assert killed
    assert "a Ray worker was lost" in caplog.text
    assert (summary.rows, summary.failures, summary.shards, summary.embedded) == (38, 2, 10, 40)
    assert files_of(out) == whole


def test_each_engine_goes_on_where_the_other_was_stopped(
    joined: None, pre: Pretrained, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def stop_after(images: int) -> Any:
        def stop(progress: Progress) -> None:
            if progress.total and progress.done >= images:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        run(photos, out, pre, engine="local", on_progress=stop_after(10))
    first = {path: path.stat().st_ino for path in out.glob("part-*")}
    assert len(first) == 2
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, pre, on_progress=stop_after(20))
    deadline = time.monotonic() + 60
    while workers_of(psutil.Process()):  # they are told to end, and take their time
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # A worker may have been ended between a part and its record; such a part counts for nothing.
    sealed = {f"part-{path.stem}.parquet" for path in (out / "_run" / "units").glob("*.json")}
    second = {path: path.stat().st_ino for path in out.glob("part-*") if path.name in sealed}
    assert len(second) == len(sealed)
    assert first.items() <= second.items()
    summary = run(photos, out, pre, engine="local")
    assert summary.embedded == 40 - 4 * len(second)
    assert second.items() <= {path: path.stat().st_ino for path in out.glob("part-*")}.items()
    assert files_of(out) == whole


def test_a_killed_driver_leaves_what_is_done(
    joined: None, pre: Pretrained, photos: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    save(pre, tmp_path / "model")
    out = tmp_path / "out"
    options = ["--layer", "2", "--codes", "--sha256", "--labels-from-folders", "--unit-size", "4", "--batch-size", "3"]
    options += ["--engine", "ray", "--ray-address", ray.get_runtime_context().gcs_address, "--decode-timeout", "0"]
    arguments = [photos, "--out", out, "--model", tmp_path / "model", "--workers", 2, *options]
    process = start(COMMAND, ["embed", *arguments])
    deadline = time.monotonic() + 600
    while not list((out / "_run/units").glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    while workers_of(psutil.Process()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    summary = run(photos, out, pre, engine="local")
    assert 0 < summary.embedded < 40
    assert files_of(out) == whole


# ---- what goes wrong


def test_what_the_model_raises_is_raised(joined: None, photos: Path, tmp_path: Path) -> None:
    broken = tiny_model()
    broken.tokenizer.quantize.proj[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="16 images in a row"):
        run(photos / "a", tmp_path / "out", broken, unit_size=20)


def test_a_worker_ended_for_want_of_memory_is_a_lost_worker(
    joined: None, pre: Pretrained, photos: Path, whole: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    get, ended = ray.get, list[Any]()

    def full(reference: Any) -> Any:
        answer = get(reference)
        if answer is not None and not ended:
            ended.append(reference)
            raise ray.exceptions.OutOfMemoryError("the memory monitor ended it")
        return answer

    monkeypatch.setattr(ray, "get", full)
    summary = run(photos, tmp_path / "out", pre)
    assert ended
    assert summary.rows == 38
    assert files_of(tmp_path / "out") == whole


def deadly(module: torch.nn.Module, inputs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_unit_that_kills_every_worker_ends_the_run(
    joined: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tiny_model()
    broken.tokenizer.quantize.register_forward_pre_hook(deadly)
    monkeypatch.setattr(ray_engine, "_ATTEMPTS", 2)
    monkeypatch.setattr(deadly, "__module__", "__main__")  # so that it is sent by value
    with pytest.raises(RuntimeError, match="2 Ray workers were lost when trying to do unit 0") as caught:
        run(photos / "a", tmp_path / "out", broken, unit_size=20)
    assert "\n" not in str(caught.value)


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(ConnectionError, match="no Ray cluster answers"):
        cluster._reach(f"127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        cluster._reach(f"127.0.0.1:{listening.getsockname()[1]}")
    cluster._reach("auto")


def test_units_that_share_a_row_group_are_read_in_one_go_however_slowly_they_are_asked_for(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = EngineOptions(
        model="", device="cpu", compile=False, recipe=Recipe(config=pre.config, weights=pre.fingerprint, layers=(2,)),
        decoding=Decoding(), out=str(tmp_path), folder=str(tmp_path / "_run"), threads=1,
    )  # fmt: skip
    monkeypatch.setattr(ray_engine, "_IDLE", 0.01)
    worker, runs = ray_engine._Worker(order, pre), list[list[int]]()

    def run_units(plan: None, units: Iterable[int]) -> None:
        runs.append([])
        for unit in units:
            runs[-1].append(unit)
            worker._count(unit, 0)
            worker._seal(unit)

    Thread(target=worker._serve, args=(run_units, None), daemon=True).start()
    for unit, chain in ((4, [4, 5, 6]), (5, []), (6, []), (9, [9])):
        assert worker.do(unit, chain)[:2] == (unit, 0)
        time.sleep(0.05)
    assert runs == [[4, 5, 6], [9]]
