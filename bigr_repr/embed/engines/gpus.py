"""Several devices of one machine, each with a process that asks for units and seals them. Knows nothing about units.

Each process has the model and an engine on its device. Units are handed out on request, so a slower device does fewer.
Rows do not depend on which device did a unit, because all of them use the same batch size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr_repr.embed.dataset.ledger import Ledger
from bigr_repr.embed.dataset.plan import Plan, open_plan
from bigr_repr.embed.dataset.schema import Recipe
from bigr_repr.embed.engines.decoding import Decoding
from bigr_repr.embed.engines.local import LocalEngine
from bigr_repr.system.object_store import as_place
from bigr_repr.system.processes import Child, supported
from bigr_repr.system.retries import set_retry_time
from bigr_repr.system.threads import default_workers

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What a process needs to know. model: a name or folder for load(); out, folder: as in Ledger, as text.

    threads: for the network, on a CPU. retry_for: seconds to retry unreachable stores.
    """

    model: str
    device: str
    compile: bool
    recipe: Recipe
    decoding: Decoding
    out: str
    folder: str
    threads: int
    retry_for: float = 0.0

    def engine(
        self,
        on_batch: Callable[[int, int], None],
        on_aside: Callable[[int, str], None],
        pre: Pretrained | None = None,
    ) -> LocalEngine:
        """Load the model unless given as pre.  Raises ValueError if it is not the recipe's."""
        import torch

        from bigr_repr.checkpoints.pretrained import load
        from bigr_repr.features.extractor import FeatureExtractor
        from bigr_repr.system.devices import as_dtype, choose_device

        set_retry_time(self.retry_for)
        device = choose_device(self.device)
        if device.type == "cpu":
            torch.set_num_threads(self.threads)
        pre = pre or load(self.model)
        if pre.fingerprint != self.recipe.weights:
            raise ValueError(f"{self.model} has changed since the run began; start the run again")
        extractor = FeatureExtractor(
            pre, self.recipe.layers, self.recipe.pool, mirror=self.recipe.mirror, condition=self.recipe.condition,
            dtype=as_dtype(self.recipe.dtype), device=device, compile=self.compile,
        )  # fmt: skip
        ledger = Ledger(as_place(self.out), as_place(self.folder) / "units")
        return LocalEngine(extractor, self.recipe, ledger, self.recipe.batch_size, self.decoding, on_batch, on_aside)


class Devices:
    """Engines in processes. options: for each, except the device; workers and threads are divided among them.

    keep_open: descriptors that the processes keep open. Raises ValueError if processes cannot be started.
    """

    def __init__(
        self,
        devices: Sequence[str],
        options: EngineOptions,
        on_batch: Callable[[int, int], None],
        on_aside: Callable[[int, str], None],
        keep_open: Sequence[int],
    ) -> None:
        if not supported():
            raise ValueError(f"this system can use only one device at a time; choose one of {', '.join(devices)}")
        self._devices, self._options, self._keep_open = devices, options, keep_open
        self._on_batch, self._on_aside = on_batch, on_aside
        self._own: dict[Any, deque[int]] = {}  # by connection: the rest of its current chain of units

    def run(self, plan: Plan, units: Iterable[int]) -> None:
        """Do units of a plan.  Raises what a process raises, RuntimeError if one ends unexpectedly."""
        children: dict[Any, tuple[str, Child]] = {}
        try:
            for device in self._devices:
                child = Child("bigr_repr.embed.engines.gpus", "_serve", self._keep_open)
                children[child.connection] = device, child
                child.connection.send(self._for(device))
            waiting: list[Any] = list(children)
            todo = plan.chains(units)
            while waiting:
                for connection in wait(waiting):
                    if not self._answer(connection, *children[connection], todo):
                        waiting.remove(connection)
        finally:
            for _, child in children.values():
                child.end()

    def _for(self, device: str) -> EngineOptions:
        from dataclasses import replace

        count = len(self._devices)
        workers = max(1, (self._options.decoding.workers or default_workers()) // count)
        decoding = replace(self._options.decoding, workers=workers)
        return replace(self._options, device=device, decoding=decoding, threads=max(1, self._options.threads // count))

    def _answer(self, connection: Any, device: str, child: Child, todo: Iterator[list[int]]) -> bool:
        """Handle one message of a process; returns False if it was the last."""
        own = self._own.setdefault(connection, deque())
        try:
            message = connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(
                f"the process on {device} ended ({child.outcome()}); finished units are kept; run it again to continue"
            ) from None
        if isinstance(message, BaseException):
            raise message
        if message == "unit":
            own.extend(() if own else next(todo, ()))
            connection.send(own.popleft() if own else None)
        elif message == "end":
            return False
        elif isinstance(message[1], str):
            self._on_aside(*message)
        else:
            self._on_batch(*message)
        return True


def saved(model: object, folder: Path) -> str:
    """A name or folder for load(): as given, or where the model was saved."""
    from bigr_repr.checkpoints.pretrained import Pretrained, save

    if isinstance(model, Pretrained):
        save(model, folder / "model")
        return str(folder / "model")
    return str(model)


def _serve(connection: Connection[Any, Any]) -> None:
    """The main function of a process."""
    options: EngineOptions = connection.recv()
    try:
        engine = options.engine(lambda *counts: connection.send(counts), lambda *aside: connection.send(aside))
        plan = open_plan(as_place(options.folder))
        assert plan is not None

        def units() -> Iterator[int]:
            connection.send("unit")
            while (unit := connection.recv()) is not None:
                yield unit
                connection.send("unit")

        engine.run_units(plan, units())
    except (OSError, ValueError, RuntimeError) as error:
        connection.send(error)  # fails if the parent is gone
        return
    connection.send("end")
