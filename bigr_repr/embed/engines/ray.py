"""The Ray engine: turns planned units into sealed units on a Ray cluster. Knows nothing of options or inputs.

One actor per GPU, or per core if there are none, holds the model and a local engine. Each reads the same plan and
writes shards and records where the local engine would, so either engine can resume the other's run. Each actor has two
units at a time, so that its decoders do not wait at the end of one. Units of a lost actor go to others; machines that
join the cluster get actors, and machines may leave.

These are plain actors, not Ray Data. Ray Data waits for a lost actor to restart, so a machine that leaves for good
would stall its work; and it reports a task when all of its rows are there, not when a unit is sealed.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from bigr_repr.embed.dataset.ledger import Ledger, UnitRecord
from bigr_repr.embed.dataset.plan import Plan, open_plan
from bigr_repr.embed.engines.gpus import EngineOptions
from bigr_repr.system.cluster import connected, last_line, require_cluster
from bigr_repr.system.object_store import as_place

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained

log = logging.getLogger(__name__)

_DEVICES = ("auto", "cpu", "cuda")
_AHEAD = 2  # units per actor at a time
_ATTEMPTS = 3  # maximum number of actors lost over one unit
_IDLE = 0.5  # seconds without another unit after which an actor finishes those it has
_LOOK = 10.0  # seconds between checks of the cluster's resources


def require_ray(address: str | None, device: str, batch_size: int | str | None) -> None:
    """Raise errors that can be detected before work begins.

    ImportError, which says what to install, if Ray is missing; ValueError for unsupported options;
    ConnectionError if nothing listens at the address, for which Ray itself would wait for minutes.
    """
    if device not in _DEVICES:
        raise ValueError(f"device={device!r}: Ray assigns the GPUs; choose one of {', '.join(_DEVICES)}")
    if batch_size == "auto":
        raise ValueError('batch_size="auto" measures this machine, not those of the cluster; give a number')
    require_cluster(address)


class Share(NamedTuple):
    """How many actors fit on a cluster, and the resources of each."""

    actors: int
    cores: int
    gpus: int


def share_out(machines: Sequence[Mapping[str, float]], device: str, workers: int | None) -> Share:
    """One actor per GPU or, with device="cpu" or without GPUs, per `workers` cores.

    machines: {"CPU": …, "GPU": …} of each. workers: cores per actor; None: a GPU's share of them, or one.
    Raises ValueError if not even one fits.
    """
    have = [(int(machine.get("CPU", 0)), int(machine.get("GPU", 0))) for machine in machines]
    with_gpus = [(cores, gpus) for cores, gpus in have if gpus and device != "cpu"]
    if device == "cuda" and not with_gpus:
        raise ValueError('device="cuda": the Ray cluster has no GPU; start machines that have one, or use "auto"')
    if with_gpus:
        own = workers or max(1, min(cores // gpus for cores, gpus in with_gpus))
        actors = sum(min(gpus, cores // own) for cores, gpus in with_gpus)
    else:
        own = workers or 1
        actors = sum(cores // own for cores, _ in have)
    if not actors:
        raise ValueError(
            f"workers={own}: no machine of the Ray cluster has that many cores; start others, or ask for fewer"
        )
    return Share(actors, own, int(bool(with_gpus)))


@dataclass(eq=False)
class _ActorState:
    """One of our actors. units: assigned to it; own: reserved for it, because they share row groups with those."""

    actor: Any
    ready: bool = False
    units: list[int] = field(default_factory=list)
    own: deque[int] = field(default_factory=deque)


class RayEngine:
    """Engines in Ray actors.

    address: of a cluster, as for ray.init; None: RAY_ADDRESS, or a temporary cluster on this machine; an existing
    connection of this process is reused. options: for each actor; its device is "auto", "cpu" or "cuda", and
    decoding.workers is the number of cores per actor (None: one, or a GPU's share). on_batch(images, failures, worker)
    is called for every unit, or on_aside(unit, why).
    """

    def __init__(
        self,
        address: str | None,
        options: EngineOptions,
        pre: Pretrained,
        on_batch: Callable[[int, int, str], None],
        on_aside: Callable[[int, str], None],
    ) -> None:
        self._address, self._options, self._pre = address, options, pre
        self._on_batch, self._on_aside = on_batch, on_aside
        self._members: list[_ActorState] = []
        self._pending: dict[
            Any, tuple[_ActorState, int | None]
        ] = {}  # by the reference that ray.wait waits for; None: the start
        self._todo: deque[list[int]] = deque()
        self._lost: Counter[int | None] = Counter()
        self._begun = False  # whether any actor was ever ready
        self._ledger = Ledger(as_place(options.out), as_place(options.folder) / "units")

    def run(self, plan: Plan, units: Iterable[int]) -> None:
        """Do units of a plan.

        Raises what an actor raises; RuntimeError if three actors are lost over one unit, or if their files are not
        visible from here; ConnectionError if there is no cluster.
        """
        import ray

        self._todo.extend(plan.chains(units))
        self._ledger.plan = plan
        with connected(self._address):
            model = ray.put(self._pre)
            try:
                while self._todo or any(member.units or member.own for member in self._members):
                    self._recruit(model)
                    self._hand_out()
                    if not self._pending:
                        time.sleep(_LOOK)
                        continue
                    done, _ = ray.wait(list(self._pending), timeout=_LOOK)
                    for reference in done:
                        if reference in self._pending:  # otherwise it belonged to a lost actor
                            self._take(reference)
            finally:
                for member in self._members:
                    ray.kill(member.actor)

    def _recruit(self, model: Any) -> None:
        """Start as many actors as fit on the cluster and have work."""
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        try:
            share = share_out(machines, self._options.device, self._options.decoding.workers)
        except ValueError as error:
            if not self._begun:
                raise
            if not self._members:
                log.warning("waiting for machines to join the Ray cluster: %s", error)
            return
        work = len(self._todo) + sum(bool(member.units) for member in self._members)
        decoding = replace(self._options.decoding, workers=share.cores)
        own = replace(self._options, device="cuda" if share.gpus else "cpu", decoding=decoding, threads=share.cores)
        options = {"num_cpus": share.cores, "num_gpus": share.gpus, "max_restarts": 0, "max_concurrency": 2 * _AHEAD}
        while len(self._members) < min(share.actors, work):
            member = _ActorState(ray.remote(_Worker).options(**options).remote(own, model))
            self._members.append(member)
            self._pending[member.actor.start.remote()] = member, None

    def _hand_out(self) -> None:
        """Assign units to actors that are ready for more."""
        for _ in range(_AHEAD):
            for member in self._members:
                if (self._todo or member.own) and member.ready and len(member.units) < _AHEAD:
                    chain = [] if member.own else self._todo.popleft()
                    member.own.extend(chain)
                    unit = member.own.popleft()
                    member.units.append(unit)
                    self._pending[member.actor.do.remote(unit, chain)] = member, unit

    def _take(self, reference: Any) -> None:
        """Handle an actor's result."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        member, unit = self._pending.pop(reference)
        try:
            counts = ray.get(reference)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:  # it died, was killed for lack of memory, or its machine is gone
            self._lose(member, error)
            return
        if unit is None:
            member.ready = self._begun = True
            return
        member.units.remove(unit)
        if isinstance(counts, str):
            self._on_aside(unit, counts)
            return
        if self._ledger.sealed(unit) is None:
            raise RuntimeError(
                f"{self._options.out}: a Ray worker's files are not visible from here; use a folder that all nodes "
                "share, or an object store"
            )
        self._on_batch(*counts)

    def _lose(self, member: _ActorState, error: Exception) -> None:
        """Give an actor's units to others. Raises RuntimeError if that has happened too often to one of them."""
        reason = last_line(error)
        units = len(member.units) + len(member.own)
        log.warning("a Ray worker was lost; others take over its %d units: %s", units, reason)
        self._members.remove(member)
        self._pending = {key: value for key, value in self._pending.items() if value[0] is not member}
        assert self._ledger.plan is not None
        self._todo.extendleft(reversed([*self._ledger.plan.chains(sorted([*member.units, *member.own]))]))
        others = any(other.ready for other in self._members)
        for unit in member.units if member.ready else [None]:
            self._lost[unit] += unit is not None or not others  # a failed start does not matter while other actors work
            if self._lost[unit] == _ATTEMPTS:
                what = "start" if unit is None else f"do unit {unit}"
                raise RuntimeError(
                    f"{_ATTEMPTS} Ray workers were lost when trying to {what}; finished units are kept ({reason})"
                )


class _Worker:
    """The actor class."""

    def __init__(self, options: EngineOptions, pre: Pretrained) -> None:
        self._options, self._pre = options, pre
        self._units: Queue[int] = Queue()
        self._sealed: dict[int, Future[tuple[int, int, str] | str]] = {}
        self._images = self._failures = 0

    def start(self) -> None:
        """Prepare the engine."""
        plan = open_plan(as_place(self._options.folder))
        if plan is None:
            raise FileNotFoundError(
                f"{self._options.folder}: a Ray worker cannot find the plan; use a folder that all nodes share, or an "
                "object store"
            )
        engine = self._options.engine(self._count, self._set_aside, self._pre)
        del self._pre
        engine.ledger = _Announcing(self._options, self._seal)
        Thread(target=self._serve, args=(engine.run_units, plan), daemon=True).start()

    def do(self, unit: int, chain: Sequence[int]) -> tuple[int, int, str] | str:
        """Do a unit; returns its numbers of images and failures, and the worker, once sealed; or why it was not.

        chain: units to start in sequence, because they share row groups; each is also requested in its turn.
        """
        for each in chain:
            self._units.put(each)
        result = self._done(unit).result()
        del self._sealed[unit]
        return result

    def _done(self, unit: int) -> Future[tuple[int, int, str] | str]:
        return self._sealed.setdefault(unit, Future())

    def _serve(self, run: Callable[[Plan, Iterable[int]], None], plan: Plan) -> None:
        try:
            while True:
                run(plan, chain([self._units.get()], self._following()))
        except BaseException as error:
            for done in list(self._sealed.values()):
                if not done.done():
                    done.set_exception(error)

    def _following(self) -> Iterator[int]:
        """Units as they arrive. If none arrives for a while, earlier ones must be finished: the engine reads ahead."""
        with suppress(Empty):
            while True:
                yield self._units.get(timeout=_IDLE)

    def _count(self, images: int, failures: int) -> None:
        self._images, self._failures = self._images + images, self._failures + failures

    def _set_aside(self, unit: int, why: str) -> None:
        self._images = self._failures = 0
        self._done(unit).set_result(why)

    def _seal(self, unit: int) -> None:
        counts, self._images, self._failures = (self._images, self._failures), 0, 0
        self._done(unit).set_result((*counts, f"{socket.gethostname()}, process {os.getpid()}"))


class _Announcing(Ledger):
    """A ledger that announces which units it has sealed.

    Its partial files have unique names: an actor that is wrongly believed to be lost may still be writing a unit that
    another one repeats.
    """

    def __init__(self, options: EngineOptions, on_sealed: Callable[[int], None]) -> None:
        super().__init__(as_place(options.out), as_place(options.folder) / "units", writer=uuid4().hex[:12])
        self._on_sealed = on_sealed

    def seal(self, unit: int, record: UnitRecord) -> None:
        super().seal(unit, record)
        self._on_sealed(unit)
