"""Laws of how units are shared out to processes and to a cluster, with doubles of both that live in this process."""

from __future__ import annotations

import dataclasses
import logging
import sys
import types
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from multiprocessing.connection import Pipe
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
import torch
from tiny_model import tiny_model, write_pictures

from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.embed import EmbedSummary, Progress, embed_images
from bigr_repr.embed.dataset.schema import Recipe
from bigr_repr.embed.engines import gpus
from bigr_repr.embed.engines import ray as ray_engine
from bigr_repr.embed.engines.decoding import Decoding
from bigr_repr.embed.engines.gpus import Devices, EngineOptions
from bigr_repr.embed.engines.local import LocalEngine
from bigr_repr.system import cluster


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, one of them unreadable: five units of two."""
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder, 10)[7].write_bytes(b"junk")
    return folder


@pytest.fixture(scope="module")
def local(pre: Pretrained, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the local engine writes."""
    out = tmp_path_factory.mktemp("local")
    run(photos, out, pre)
    return files_of(out)


def run(inputs: Any, out: Path, model: Any, **options: Any) -> EmbedSummary:
    usual = {"layers": [2], "unit_size": 2, "batch_size": 2, "decode_timeout": None, "workers": 1}
    return embed_images(inputs, out, model=model, **{**usual, **options})


def files_of(out: Path) -> dict[str, bytes]:
    """All that the data set consists of, but for who wrote it."""
    files = [*out.glob("part-*"), out / "failures.jsonl", *(out / "_run" / "units").glob("*")]
    return {file.name: file.read_bytes() for file in files}


def order(pre: Pretrained, folder: Path, **fields: Any) -> EngineOptions:
    return EngineOptions(
        model=str(folder / "model"), device="cpu", compile=False, out=str(folder), folder=str(folder / "_run"),
        recipe=Recipe(config=pre.config, weights=pre.fingerprint, layers=(2,)), decoding=Decoding(workers=1),
        **{"threads": 1, **fields},
    )  # fmt: skip


# ---- processes


class ChildThread:
    """Of `Child` what gpus needs, as a thread; `ended` says why it ends before it has done anything."""

    ended: str | None = None
    all: list[ChildThread]

    def __init__(self, module: str, function: str, keep_open: Any = ()) -> None:
        self.connection, theirs = Pipe()
        self.keep_open, self.closed = keep_open, False
        serve: Callable[[Any], None] = getattr(sys.modules[module], function)

        def work() -> None:
            with suppress(OSError, EOFError):  # the other end was closed
                theirs.recv() if self.ended else serve(theirs)
            theirs.close()

        self._thread = Thread(target=work, daemon=True)
        self._thread.start()
        self.all.append(self)

    def end(self) -> str:
        self.connection.close()
        self.closed = True
        self._thread.join(5)
        return ""

    def outcome(self) -> str:
        return str(self.ended)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> type[ChildThread]:
    monkeypatch.setattr(ChildThread, "all", [], raising=False)
    monkeypatch.setattr(gpus, "Child", ChildThread)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return ChildThread


def test_devices_share_the_units_and_their_rows_are_those_of_one(
    pre: Pretrained, photos: Path, tmp_path: Path, local: dict[str, bytes], threads: type[ChildThread]
) -> None:
    seen: list[Progress] = []
    done = run(photos, tmp_path / "out", pre, device="cpu,cpu", on_progress=seen.append)
    assert (done.rows, done.failures) == (9, 1)
    assert seen[-1] == Progress(10, 10, 1)
    assert files_of(tmp_path / "out") == local
    assert len(threads.all) == 2
    assert all(child.closed for child in threads.all)
    assert all(child.keep_open for child in threads.all)  # the lock of the run


def test_a_device_that_ends_before_its_time_ends_the_run(
    pre: Pretrained, photos: Path, tmp_path: Path, threads: type[ChildThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "ended", "SIGKILL")
    with pytest.raises(
        RuntimeError, match=r"the process on cpu ended \(SIGKILL\); finished units are kept; run it again"
    ):
        run(photos, tmp_path / "out", pre, device="cpu,cpu")
    assert all(child.closed for child in threads.all)


def test_what_a_device_raises_comes_from_the_run(
    pre: Pretrained, photos: Path, tmp_path: Path, threads: type[ChildThread], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalEngine, plan: Any, units: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalEngine, "run_units", full)
    with pytest.raises(OSError, match="No space left"):
        run(photos, tmp_path / "out", pre, device="cpu,cpu")


def test_workers_and_threads_are_divided_among_devices(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shares(count: int, workers: int | None, threads: int) -> tuple[int | None, int, str]:
        given = order(pre, tmp_path, threads=threads)
        given = dataclasses.replace(given, decoding=dataclasses.replace(given.decoding, workers=workers))
        found = Devices(["cuda:0"] * count, given, print, print, ())._for("cuda:1")
        return found.decoding.workers, found.threads, found.device

    monkeypatch.setattr(gpus, "default_workers", lambda: 12)
    assert shares(2, 6, 8) == (3, 4, "cuda:1")
    assert shares(3, None, 2) == (4, 1, "cuda:1")
    assert shares(4, 2, 4) == (1, 1, "cuda:1")
    monkeypatch.setattr(gpus, "supported", lambda: False)
    with pytest.raises(ValueError, match="one device at a time; choose one of cuda:0, cuda:1"):
        Devices(["cuda:0", "cuda:1"], order(pre, tmp_path), print, print, ())


def test_what_a_process_tells_is_told_on(pre: Pretrained, tmp_path: Path) -> None:
    """Counts of batches, and units that a store refused; units are asked for one by one, and what belongs together
    goes to one process."""
    batches: list[tuple[int, int]] = []
    aside: list[tuple[int, str]] = []
    devices = Devices(
        ["cpu"] * 2, order(pre, tmp_path), lambda *each: batches.append(each), lambda *each: aside.append(each), ()
    )
    pairs = [Pipe() for _ in range(2)]
    todo = iter([[0, 1], [2], [3]])

    def tell(number: int, message: Any) -> Any:
        ours, theirs = pairs[number]
        theirs.send(message)
        on = devices._answer(ours, "cpu", None, todo)  # type: ignore[arg-type]
        return theirs.recv() if message == "unit" else on

    assert [tell(0, "unit"), tell(1, "unit"), tell(0, "unit"), tell(0, "unit")] == [0, 2, 1, 3]
    assert [tell(0, "unit"), tell(1, "unit")] == [None, None]
    assert tell(0, (8, 1))
    assert tell(1, (5, "the store refused it"))
    assert not tell(0, "end")
    assert (batches, aside) == ([(8, 1)], [(5, "the store refused it")])
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_a_process_tells_of_batches_and_of_units_set_aside(
    pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions that an engine is given send what `Devices` takes apart."""
    run(photos, tmp_path, pre)
    ours, theirs = Pipe()
    done: list[list[int]] = []

    class Engine:
        def run_units(self, plan: Any, units: Any) -> None:
            done.append(list(units))

    def engine(self: EngineOptions, on_batch: Callable[..., None], on_aside: Callable[..., None]) -> Engine:
        on_batch(3, 1)
        on_aside(4, "why")
        return Engine()

    monkeypatch.setattr(EngineOptions, "engine", engine)
    for message in (order(pre, tmp_path), 2, 0, None):
        ours.send(message)
    gpus._serve(theirs)
    assert [ours.recv() for _ in range(6)] == [(3, 1), (4, "why"), "unit", "unit", "unit", "end"]
    assert done == [[2, 0]]


def test_an_engine_is_of_the_model_that_the_run_began_with(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    save(pre, tmp_path / "model")
    (tmp_path / "_run").mkdir()
    given = order(pre, tmp_path, threads=3)
    engine = given.engine(print, print)
    assert counts == [3]
    assert (engine.batch_size, engine.recipe, engine.decoding) == (
        given.recipe.batch_size,
        given.recipe,
        given.decoding,
    )
    assert engine.extractor.layers == {2: (2,)}
    other = dataclasses.replace(given, recipe=dataclasses.replace(given.recipe, weights="0" * 64))
    with pytest.raises(ValueError, match="has changed since the run began; start the run again"):
        other.engine(print, print)
    with pytest.raises(ValueError, match="has changed since the run began"):
        given.engine(print, print, tiny_model(1))


# ---- a cluster


class RayError(Exception):
    """A process was lost."""


class RayTaskError(RayError):
    """Code raised; cause: what."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


class Actor:
    """A worker whose methods run in threads of its own. loses: raised by what it does, by the method's name."""

    def __init__(self, double: RayDouble, options: dict[str, Any], worker: Any) -> None:
        self.double, self.options, self.worker, self.number = double, options, worker, len(double.actors)
        self.killed, self.asked = False, list[Any]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if self.double.lose(self.number, name, arguments):
                raise RayError("\x1b[36mThe actor died.\x1b[39m\nmore\nlast words")
            try:
                return getattr(self.worker, name)(*arguments)
            except Exception as error:
                raise RayTaskError(error) from error

        def remote(*arguments: Any) -> Future[Any]:
            if name == "do":
                self.asked.append(arguments)
                self.double.most = max(self.double.most, self.double.busy(self) + 1)
            future = Future[Any]()
            self.double.began[future] = self, name

            def work() -> None:
                try:
                    future.set_result(call(*arguments))
                except RayError as error:
                    future.set_exception(error)

            Thread(target=work, daemon=True).start()  # what is lost waits for ever
            return future

        return types.SimpleNamespace(remote=remote)


class RayDouble(types.ModuleType):
    """Of Ray what the engine needs. machines: resources of each; lose(actor, method, arguments): whether it dies."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.machines = [{"CPU": 2.0}, {"CPU": 7.0, "dead": True}]
        self.actors: list[Actor] = []
        self.calls: list[Any] = []
        self.began: dict[Future[Any], tuple[Actor, str]] = {}
        self.here, self.most, self.lock = False, 0, Lock()
        self.lose: Callable[[int, str, tuple[Any, ...]], bool] = lambda actor, method, arguments: False
        self.exceptions = types.ModuleType("ray.exceptions")
        self.exceptions.RayError, self.exceptions.RayTaskError = RayError, RayTaskError  # type: ignore[attr-defined]

    def busy(self, actor: Actor) -> int:
        return sum(of is actor and name == "do" and not each.done() for each, (of, name) in self.began.items())

    def is_initialized(self) -> bool:
        return self.here

    def init(self, **options: Any) -> None:
        self.calls.append(options)

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": each, "Alive": "dead" not in each} for each in self.machines]

    def remote(self, kind: type) -> Any:
        def make(options: dict[str, Any], arguments: tuple[Any, ...]) -> Actor:
            self.actors.append(Actor(self, options, kind(*arguments)))
            return self.actors[-1]

        return types.SimpleNamespace(
            options=lambda **options: types.SimpleNamespace(remote=lambda *arguments: make(options, arguments))
        )

    def wait(self, futures: list[Future[Any]], timeout: float) -> tuple[list[Future[Any]], list[Future[Any]]]:
        done, left = wait(futures, timeout, FIRST_COMPLETED)
        return list(done), list(left)

    def get(self, future: Future[Any]) -> Any:
        return future.result()

    def kill(self, actor: Actor) -> None:
        actor.killed = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> RayDouble:
    double = RayDouble()
    monkeypatch.setitem(sys.modules, "ray", double)
    monkeypatch.setitem(sys.modules, "ray.exceptions", double.exceptions)
    monkeypatch.setattr(ray_engine, "_IDLE", 0.02)
    monkeypatch.setattr(ray_engine, "_LOOK", 0.05)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return double


def test_actors_share_the_units_and_their_rows_are_the_local_engines(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, local: dict[str, bytes]
) -> None:
    seen: list[Progress] = []
    done = run(photos, tmp_path / "out", pre, engine="ray", on_progress=seen.append)
    assert (done.rows, done.failures) == (9, 1)
    assert files_of(tmp_path / "out") == local
    assert (seen[-1].done, seen[-1].failures) == (10, 1)
    assert len(ray.actors) == 2  # a core each, and none of the machine that is gone
    assert ray.actors[0].options == {"num_cpus": 1, "num_gpus": 0, "max_restarts": 0, "max_concurrency": 4}
    own = ray.actors[0].worker._options
    assert (own.device, own.threads, own.decoding.workers) == ("cpu", 1, 1)
    asked = [unit for actor in ray.actors for unit, _ in actor.asked]
    assert sorted(asked) == list(range(5))
    assert ray.most <= 2
    assert all(actor.killed for actor in ray.actors)
    assert [call if isinstance(call, str) else call["address"] for call in ray.calls] == ["local", "shutdown"]
    assert ray.calls[0]["include_dashboard"] is False
    assert ray.calls[0]["log_to_driver"] is False


def test_no_more_actors_than_units_and_a_connection_that_is_there_stays(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path
) -> None:
    ray.here, ray.machines = True, [{"CPU": 8.0}]
    run(sorted(photos.iterdir())[:3], tmp_path / "out", pre, engine="ray")
    assert len(ray.actors) == 2
    assert ray.calls == []


def test_units_of_a_lost_actor_are_done_by_others(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, local: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    ray.lose = lambda actor, method, arguments: actor == 0 and method == "do"
    run(photos, tmp_path / "out", pre, engine="ray")
    assert files_of(tmp_path / "out") == local
    assert len(ray.actors) == 3  # one in the lost one's place
    assert caplog.messages.count("a Ray worker was lost; others take over its 2 units: last words") == 1
    assert not [
        unit for unit, count in Counter(unit for each in ray.actors for unit, _ in each.asked).items() if count > 2
    ]


@pytest.mark.parametrize(("method", "said"), [("do", "do unit [23]"), ("start", "start")])
def test_three_actors_lost_over_one_thing_end_the_run(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, method: str, said: str
) -> None:
    ray.machines = [{"CPU": 1.0}]
    ray.lose = lambda actor, called, arguments: called == method and (method == "start" or arguments[0] == 3)
    with pytest.raises(
        RuntimeError, match=rf"3 Ray workers were lost when trying to {said}; finished units are kept \(last words\)"
    ):
        run(photos, tmp_path / "out", pre, engine="ray")
    assert len(ray.actors) == 3


def test_what_an_actor_raises_is_raised(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalEngine, plan: Any, units: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalEngine, "run_units", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run(photos, tmp_path / "out", pre, engine="ray")
    assert not isinstance(caught.value, RayError)
    assert all(actor.killed for actor in ray.actors)


def test_rows_that_cannot_be_seen_from_here_are_not_believed(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine.Ledger, "sealed", lambda self, unit: None)
    with pytest.raises(RuntimeError, match="a Ray worker's files are not visible from here; use a folder that all"):
        run(photos, tmp_path / "out", pre, engine="ray")


def test_a_unit_that_was_set_aside_is_told_and_not_looked_for(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tmp_path / "out", pre)
    batches: list[Any] = []
    aside: list[tuple[int, str]] = []

    def refused(self: Any, unit: int, chain: Any) -> Any:
        return "the store said no" if unit == 1 else (2, 0, "me")

    monkeypatch.setattr(ray_engine._Worker, "start", lambda self: None)
    monkeypatch.setattr(ray_engine._Worker, "do", refused)
    engine = ray_engine.RayEngine(
        None, order(pre, tmp_path / "out"), pre, lambda *each: batches.append(each), lambda *each: aside.append(each)
    )
    plan = ray_engine.open_plan(tmp_path / "out" / "_run")
    assert plan is not None
    engine.run(plan, [0, 1, 2])
    assert aside == [(1, "the store said no")]
    assert batches == [(2, 0, "me")] * 2


def test_a_worker_counts_a_unit_until_it_is_sealed_or_set_aside(pre: Pretrained, tmp_path: Path) -> None:
    worker = ray_engine._Worker(order(pre, tmp_path), pre)
    worker._count(2, 1)
    worker._count(3, 0)
    worker._seal(7)
    worker._count(4, 4)
    worker._set_aside(8, "why")
    worker._count(1, 0)
    worker._seal(9)
    images, failures, who = worker.do(7, [])
    assert (images, failures) == (5, 1)
    assert who.endswith(f", process {ray_engine.os.getpid()}")
    assert (worker.do(8, []), worker.do(9, [])[:2]) == ("why", (1, 0))


def test_a_run_waits_for_machines_once_it_has_begun(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, local: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    ray.machines = []
    with pytest.raises(ValueError, match="no machine of the Ray cluster has that many cores"):
        run(photos, tmp_path / "none", pre, engine="ray")
    ray.machines = [{"CPU": 1.0}]

    def lose(actor: int, method: str, arguments: tuple[Any, ...]) -> bool:
        gone = actor == 0 and method == "do"
        if gone:
            ray.machines = []
        return gone

    def joins(record: logging.LogRecord) -> bool:
        if "waiting for machines" in record.getMessage():
            ray.machines = [{"CPU": 1.0}]
        return True

    ray.lose = lose
    ray_engine.log.addFilter(joins)
    try:
        run(photos, tmp_path / "out", pre, engine="ray")
    finally:
        ray_engine.log.removeFilter(joins)
    assert files_of(tmp_path / "out") == local
    assert any("waiting for machines to join the Ray cluster" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("1.2.3.4:6379", ("1.2.3.4", 6379)), ("ray://head.example:10001", ("head.example", 10001)),
        ("[::1]:6379", ("::1", 6379)), ("ray://[fe80::1]:1", ("fe80::1", 1)), ("auto", None), ("local", None),
    ],
)  # fmt: skip
def test_an_address_is_tried_before_ray_waits_for_it(
    address: str, asked: tuple[str, int] | None, ray: RayDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def nobody(place: tuple[str, int], timeout: float) -> None:
        tried.append(place)
        raise OSError("nobody listens")

    monkeypatch.setattr(cluster.socket, "create_connection", nobody)
    if asked is None:
        cluster.require_cluster(address)
        assert not tried
        return
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers \(nobody listens\)"):
        cluster.require_cluster(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError):
        cluster.require_cluster(None)
    assert tried == [asked] * 2
    ray.here = True
    cluster.require_cluster(address)
    assert len(tried) == 2


@pytest.mark.parametrize(
    ("machines", "device", "workers", "share"),
    [
        ([{"CPU": 4.0}, {"CPU": 2.0, "memory": 1e9}, {}], "auto", None, (6, 1, 0)),
        ([{"CPU": 4.0}, {"CPU": 3.0}], "auto", 2, (3, 2, 0)),
        ([{"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}], "auto", None, (4, 8, 1)),
        ([{"CPU": 32.0, "GPU": 4.0}, {"CPU": 6.0, "GPU": 1.0}], "cuda", None, (5, 6, 1)),
        ([{"CPU": 2.0, "GPU": 4.0}], "cuda", None, (2, 1, 1)),
        ([{"CPU": 32.0, "GPU": 4.0}], "cuda", 16, (2, 16, 1)),
        ([{"CPU": 32.0, "GPU": 4.0}], "cpu", None, (32, 1, 0)),
    ],
)
def test_what_each_actor_gets(
    machines: list[dict[str, float]], device: str, workers: int | None, share: tuple[int, int, int]
) -> None:
    assert ray_engine.share_out(machines, device, workers) == share


def test_a_cluster_without_room_is_said() -> None:
    with pytest.raises(ValueError, match="no machine of the Ray cluster has that many cores"):
        ray_engine.share_out([{"CPU": 4.0}, {"CPU": 4.0}], "auto", 6)
    with pytest.raises(ValueError, match="the Ray cluster has no GPU"):
        ray_engine.share_out([{"CPU": 4.0}], "cuda", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:1"}, "Ray assigns the GPUs"),
        ({"batch_size": "auto"}, "give a number"),
        ({"engine": "spark"}, "engine='spark' is unknown; choose one of local, ray"),
    ],
)
def test_what_ray_is_not_to_decide(
    ray: RayDouble, pre: Pretrained, photos: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(photos, tmp_path / "out", pre, **{"engine": "ray", **options})
    assert not (tmp_path / "out").exists()


def test_without_ray_it_is_said_what_to_install(
    pre: Pretrained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'bigr-repr\[ray\]'"):
        run(photos, tmp_path / "out", pre, engine="ray")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_a_worker_does_not_see_is_said(pre: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a folder that all nodes share, or an object store"):
        ray_engine._Worker(order(pre, tmp_path / "elsewhere"), pre).start()
