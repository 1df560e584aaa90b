"""The local engine: turns planned units into sealed units on this machine. Knows nothing of options or retries.

Pictures are decoded ahead in processes or threads, across units, so that neither the decoders nor the model wait at
the end of a unit. A batch is a fixed stretch of its unit: the place of an unreadable picture stays blank, and the last
batch is padded, so that no other row depends on which pictures failed.
"""

# B batch, S side in pixels

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigr_repr.codes import to_bytes
from bigr_repr.embed.dataset.entry import Entry
from bigr_repr.embed.dataset.ledger import Failure, Ledger
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.dataset.schema import Recipe
from bigr_repr.embed.dataset.shards import ShardRows, merge_rows, read_shard, rows_table
from bigr_repr.embed.engines.decoding import Decoded, Decoding, Unreadable
from bigr_repr.embed.engines.tasks import UnitTask, label, make_task
from bigr_repr.embed.inputs.fetch import EncodedPicture, fetch, pictures, pictures_of_units
from bigr_repr.features.network import Network
from bigr_repr.images.formats import ImageError
from bigr_repr.images.isolated import GuardedLoading
from bigr_repr.images.parquet import Columns
from bigr_repr.system.object_store import ObjectPath, is_url
from bigr_repr.system.threads import map_ahead

if TYPE_CHECKING:
    from bigr_repr.features.extractor import FeatureExtractor, Features

log = logging.getLogger(__name__)

_AWAY = 64  # unreadable objects in a row after which the store is considered at fault
_HOPELESS = 16  # images in a row without finite numbers after which the model is considered at fault
_REFUSED = 4  # refused units in a row after which the store is considered at fault
_NON_FINITE = "non-finite"
_OUT_OF_REACH = ("unreadable", "unreachable")


class _Doing(NamedTuple):
    """A task in progress, and its results so far."""

    task: UnitTask
    tables: list[pa.Table]
    failures: list[Failure]
    digests: dict[int, str]


class _Launched(NamedTuple):
    """A batch that the model is working on. features: None if none of its pictures could be read."""

    doing: _Doing
    part: slice
    decoded: list[Decoded]
    features: Callable[[], Features] | None


@dataclass
class LocalEngine:
    """Runs tasks in sequence. on_batch(images, failures) is called after each batch, from the same thread.

    on_aside(unit, why) is called for a unit that a store refused; the next run does it.
    """

    extractor: FeatureExtractor
    recipe: Recipe
    ledger: Ledger
    batch_size: int
    decoding: Decoding
    on_batch: Callable[[int, int], None]
    on_aside: Callable[[int, str], None] = lambda unit, why: None
    _refused: int = 0
    _hopeless: int = 0
    _away: int = 0
    _within_reach: Entry | None = None

    def run_units(self, plan: Plan, units: Iterable[int]) -> None:
        """Do units of a plan; see run()."""
        self.ledger.plan = plan
        self.run(make_task(plan, self.ledger, unit) for unit in units)

    def _entries(self, tasks: Iterable[UnitTask], queue: list[UnitTask]) -> Iterator[list[Entry]]:
        """The entries of tasks; tasks join the queue as their entries are yielded; empty ones are sealed at once."""
        for task in tasks:
            if task.entries:
                queue.append(task)
            else:
                self._seal(_Doing(task, [], [], {}))
            yield task.entries

    def run(self, tasks: Iterable[UnitTask]) -> None:
        """Do all tasks. Raises OSError if writing fails, ValueError if the model gives no finite numbers."""
        queue: list[UnitTask] = []  # tasks whose pictures are being decoded ahead
        recipe = self.recipe
        load = self.decoding.loader(
            recipe.config.image_size, sha256=recipe.sha256 or bool(recipe.dedup), icc=recipe.icc,
            thumbnail=recipe.thumbnails,
        )  # fmt: skip

        def decode(picture: EncodedPicture) -> Decoded:
            try:
                return load(fetch(picture), picture.name)
            except ImageError as error:
                return Unreadable(error.kind, str(error))

        network = Network(self.extractor, self.batch_size)
        ahead = (1 + network.ahead) * self.batch_size
        stop = load.stop if isinstance(load, GuardedLoading) else None
        decoded = map_ahead(
            decode, pictures_of_units(self._entries(tasks, queue), recipe.parquet), workers=self.decoding.workers,
            ahead=ahead, stop=stop,
        )  # fmt: skip
        flying: deque[_Launched] = deque()  # in progress on the device while the next batch's pictures are awaited
        try:
            for first in decoded:
                doing, rest = _Doing(queue.pop(0), [], [], {}), chain([first], decoded)
                for start in range(0, len(doing.task.entries), self.batch_size):
                    flying.append(self._launch(network, doing, slice(start, start + self.batch_size), rest))
                    if len(flying) > network.ahead:
                        self._land(flying.popleft())
            while flying:
                self._land(flying.popleft())
        finally:
            decoded.close()
            network.close()
            if isinstance(load, GuardedLoading):
                load.close()

    def _launch(self, network: Network, doing: _Doing, part: slice, decoded: Iterator[Decoded]) -> _Launched:
        import torch

        pictures = list(islice(decoded, len(doing.task.entries[part])))
        if all(isinstance(picture, Unreadable) for picture in pictures):
            return _Launched(doing, part, pictures, None)
        side = self.recipe.config.image_size
        pixels = np.zeros((self._filled(len(pictures)), side, side, 3), np.uint8)
        for place, picture in enumerate(pictures):
            if not isinstance(picture, Unreadable):
                pixels[place] = picture.pixels
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if self.extractor.device.type == "cuda":
            batch = batch.pin_memory().to(self.extractor.device, non_blocking=True)
        return _Launched(doing, part, pictures, network.start(batch))

    def _filled(self, count: int) -> int:
        """Padded size of a batch: whole groups if rows then stay bit-identical, else the full batch size."""
        group = self.extractor.group
        return self.batch_size if group == 1 else -(-count // group) * group

    def _land(self, batch: _Launched) -> None:
        """Append a batch's rows and failures to its task's, and seal the task if it was the last batch."""
        doing = batch.doing
        entries, places = doing.task.entries[batch.part], doing.task.places[batch.part]
        reasons = [picture if isinstance(picture, Unreadable) else None for picture in batch.decoded]
        if not doing.task.again:
            self._watch(entries, reasons)
        if batch.features is not None:
            features = batch.features()
            vectors = self._vectors(features, len(reasons))
            reasons = self._judge(reasons, features.finite[: len(reasons)].cpu().numpy(), vectors)
            if not doing.task.again:
                self._despair(reasons)
            good = [row for row, reason in enumerate(reasons) if reason is None]
            doing.tables.append(self._table(batch, features, vectors, good))
        failed = [
            Failure(place, entry.path, *reason)
            for entry, place, reason in zip(entries, places, reasons, strict=True)
            if reason is not None
        ]
        doing.failures.extend(failed)
        if doing.task.again and self.recipe.dedup:
            doing.digests.update(_digests(places, batch.decoded))
        self.on_batch(len(entries), len(failed))
        if batch.part.stop >= len(doing.task.entries):
            self._seal(doing)

    def _table(
        self, batch: _Launched, features: Features, vectors: dict[int | str, NDArray[Any]], good: list[int]
    ) -> pa.Table:
        """The valid rows of a batch."""
        entries, recipe = batch.doing.task.entries[batch.part], self.recipe
        rows = ShardRows(
            paths=[entries[row].path for row in good],
            vectors={layer: values[good] for layer, values in vectors.items()},
            codes=to_bytes(features.codes.flatten(1).cpu().numpy())[good],
            labels=[label(entries[row]) for row in good] if recipe.labels else [],
            sha256=[getattr(batch.decoded[row], "sha256", "") for row in good] if recipe.sha256 else [],
            thumbnails=[getattr(batch.decoded[row], "thumbnail", b"") for row in good],
        )
        return rows_table(recipe, rows)

    def _watch(self, entries: Sequence[Entry], reasons: Sequence[Unreadable | None]) -> None:
        """Raise ConnectionError if object stores no longer return anything, not even what they returned before."""
        for entry, reason in zip(entries, reasons, strict=True):
            away = reason is not None and reason.error in _OUT_OF_REACH and is_url(entry.file)
            self._away = self._away + 1 if away else 0
            if reason is None and is_url(entry.file):
                self._within_reach = entry
            if reason is not None and self._away == _AWAY:
                self._away = 0
                if not _can_be_had(self._within_reach, self.recipe.parquet):
                    raise ConnectionError(
                        f"{_AWAY} pictures in a row could not be fetched; run it again later ({reason.message})"
                    )

    def _vectors(self, features: Features, count: int) -> dict[int | str, NDArray[Any]]:
        stored = {}
        with np.errstate(over="ignore"):  # float16 overflow becomes infinite, and is judged below
            for layer in self.recipe.layers:
                stored[layer] = features.layers[layer][:count].cpu().numpy().astype(self.recipe.store_dtype, copy=False)
        return stored

    def _judge(
        self, reasons: list[Unreadable | None], finite: NDArray[np.bool_], vectors: dict[int | str, NDArray[Any]]
    ) -> list[Unreadable | None]:
        """The reasons, plus one for every row that is not finite."""
        for rows in vectors.values():
            finite = finite & np.isfinite(rows).reshape(len(rows), -1).all(1)
        unfit = Unreadable(_NON_FINITE, f"the model gives a non-finite number: {self._remedy}")
        return [reason or (None if finite[row] else unfit) for row, reason in enumerate(reasons)]

    def _despair(self, reasons: Sequence[Unreadable | None]) -> None:
        """Raise ValueError if too many images in a row gave no finite numbers: the model or its dtype is at fault."""
        for reason in reasons:
            if reason is None or reason.error == _NON_FINITE:
                self._hopeless = 0 if reason is None else self._hopeless + 1
            if self._hopeless == _HOPELESS:
                raise ValueError(f"for {_HOPELESS} images in a row the model gave no finite numbers: {self._remedy}")

    @property
    def _remedy(self) -> str:
        if self.recipe.dtype != "float32":
            return f"{self.recipe.dtype} has too small a range; compute in float32"
        if self.recipe.store_dtype != "float32":
            return f"{self.recipe.store_dtype} may have too small a range; store float32"
        return "its weights are damaged"

    def _seal(self, doing: _Doing) -> None:
        """Write a unit's rows and its record; skip a unit that a store refuses."""
        try:
            self._write(doing)
            self._refused = 0
        except OSError as error:
            self._refused += 1
            if not isinstance(self.ledger.out, ObjectPath) or self._refused > _REFUSED:
                raise
            log.warning("unit %d skipped for now: %s", doing.task.unit, error)
            self.on_aside(doing.task.unit, str(error))

    def _write(self, doing: _Doing) -> None:
        task = doing.task
        table = pa.concat_tables([self.recipe.schema.empty_table(), *doing.tables]).combine_chunks()
        if task.kept:
            table = self._merged(task, table, doing.failures)
        size, sha256 = self.ledger.write(task.unit, table)
        failures = tuple(sorted([*doing.failures, *task.record.failures]))
        digests = {place: digest for place, digest in task.record.digests.items() if place not in task.places}
        done = replace(
            task.record, rows=table.num_rows, size=size, sha256=sha256, failures=failures,
            digests={**digests, **doing.digests},
        )  # fmt: skip
        self.ledger.seal(task.unit, done)

    def _merged(self, task: UnitTask, table: pa.Table, failures: list[Failure]) -> pa.Table:
        """The rows of a sealed unit, merged with those of retried failures."""
        still = {failure.place for failure in failures}
        new = [place for place in task.places if place not in still]
        return merge_rows(read_shard(self.ledger.shard(task.unit)), task.kept, table, new)


def _digests(places: Sequence[int], decoded: Sequence[Decoded]) -> dict[int, str]:
    """SHA-256 of the pictures that could be read, by place."""
    found = ((place, getattr(picture, "sha256", None)) for place, picture in zip(places, decoded, strict=True))
    return {place: digest for place, digest in found if digest}


def _can_be_had(entry: Entry | None, columns: Columns) -> bool:
    """Whether an object can still be read."""
    if entry is None:
        return False
    with closing(pictures([entry], columns)) as found:
        try:
            fetch(next(found))
        except ImageError:
            return False
    return True
