"""Records which units are sealed and which inputs failed. Independent of images, models and vectors.

A unit is sealed by its record, which is written after its shard: one file per unit, so that it appears atomically,
whoever writes it. A unit without a record, or whose shard is not the recorded one, is not done.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa

from bigr_repr.embed.dataset.damage import PART
from bigr_repr.embed.dataset.plan import Plan
from bigr_repr.embed.dataset.schema import PLAN_KEY
from bigr_repr.embed.dataset.shards import ShardFile, read_shard, shard_file, write_shard
from bigr_repr.system.files import naming, remove, replacing
from bigr_repr.system.object_store import ObjectPath, Place
from bigr_repr.system.records import as_object, parsed, usable
from bigr_repr.system.sums import sealed, unsealed
from bigr_repr.system.threads import map_ahead

log = logging.getLogger(__name__)

CHANGED, GONE = "changed", "gone"  # failures of previously embedded inputs: see bigr_repr.embed.inputs.changed
LISTS: Final = ("failures.jsonl", "duplicates.jsonl", "gone.jsonl")  # next to the rows
_REQUESTS = 32


class Failure(NamedTuple):
    """An input without a row. place: its position in the unit; error: the kind, as in ImageError, or "non-finite"."""

    place: int
    path: str
    error: str
    message: str


@dataclass(frozen=True)
class UnitRecord:
    """The result of a unit. size, sha256: of its shard. stamps: of its inputs' files when they were read.

    released: places of inputs that are duplicates in the plan but have rows or failures of their own. digests: with
    dedup, SHA-256 in hexadecimal of inputs embedded anew, by place, which may differ from the plan's. labels: those
    that have changed since the plan was written, by place.
    """

    rows: int
    size: int
    failures: tuple[Failure, ...]
    released: tuple[int, ...] = ()
    stamps: str = ""
    sha256: str = ""  # unknown: written by an earlier version
    plan: str = ""  # likewise; else the unit's list of inputs, as from Plan.id_of
    digests: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[int, str | None] = field(default_factory=dict)

    @property
    def gone(self) -> int:
        """Number of inputs that no longer exist and whose rows were dropped."""
        return sum(failure.error == GONE for failure in self.failures)


class Ledger:
    """The records of a data set and the files they describe.

    out: the data set; folder: where the records are. writer: a unique name for each concurrent writer.
    plan: the units' plan, once known; records of other plans are then ignored.
    """

    def __init__(self, out: Place, folder: Place, writer: str = "", plan: Plan | None = None) -> None:
        self.out, self._folder, self.writer, self.plan = out, folder, writer, plan
        folder.mkdir(exist_ok=True)
        self.failures_file, self.duplicates_file, self.gone_file = (out / name for name in LISTS)

    def shard(self, unit: int) -> Place:
        """Where a unit's rows are."""
        return self.out / f"part-{unit:05d}.parquet"

    def write(self, unit: int, table: pa.Table) -> ShardFile:
        """Write a unit's rows.  Raises OSError; RuntimeError if another run has restarted the data set."""
        if self.plan is not None and not self.plan.stands:
            raise RuntimeError(
                f"{self.out}: another run has restarted this data set; this run stops and has left no rows"
            )
        metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != PLAN_KEY}
        named = {PLAN_KEY: self._plan_of(unit)} if self._plan_of(unit) else {}
        return write_shard(self.shard(unit), table.replace_schema_metadata(metadata | named), self.writer)

    def _plan_of(self, unit: int) -> str:
        return self.plan.id_of(unit) if self.plan is not None else ""

    def seal(self, unit: int, record: UnitRecord) -> None:
        """Record a unit whose shard is written."""
        plan = self._plan_of(unit)
        content = {
            "rows": record.rows,
            "size": record.size,
            "failures": [failure._asdict() for failure in record.failures],
            **({"released": record.released} if record.released else {}),
            **({"stamps": record.stamps} if record.stamps else {}),
            **({"sha256": record.sha256} if record.sha256 else {}),
            **({"plan": plan} if plan else {}),
            **({"digests": _by_text(record.digests)} if record.digests else {}),
            **({"labels": _by_text(record.labels)} if record.labels else {}),
        }
        with replacing(self._record(unit), self.writer) as file:
            file.write(json.dumps(sealed(content), indent=1).encode())
        if record.failures and not isinstance(self.failures_file, ObjectPath):  # objects do not grow
            # For people watching the run; list_failures writes the final file.
            with naming(self.failures_file), self.failures_file.open("ab") as lines:
                lines.writelines(map(_line, record.failures))

    def sealed(self, unit: int) -> UnitRecord | None:
        """A unit's record; None if the unit is not done."""
        try:
            text = self._record(unit).read_bytes()
            with usable(str(self._record(unit)), "its images will be re-embedded"):
                record = _record_of(unsealed(as_object(parsed(text))))
            if record.plan != self._plan_of(unit) and self.plan is not None and record.plan:
                log.warning("%s belongs to another run; its images will be re-embedded", self._record(unit))
                return None
            if self.shard(unit).stat().st_size == record.size:
                return record
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("%s", error)
            return None
        log.warning("%s is not the recorded file; its images will be re-embedded", self.shard(unit))
        return None

    def intact(self, unit: int, record: UnitRecord) -> bool:
        """Whether a unit's shard is byte for byte the recorded one; reads all of it.  Raises OSError."""
        if record.sha256:
            return shard_file(self.shard(unit)) == (record.size, record.sha256)
        try:
            return int(read_shard(self.shard(unit)).num_rows) == record.rows
        except (OSError, ValueError):  # pyarrow raises both
            return False

    def records(self, units: Iterable[int]) -> Iterator[UnitRecord | None]:
        """sealed() for several units, in order; stores are queried in parallel."""
        if isinstance(self._folder, ObjectPath):
            return map_ahead(self.sealed, units, workers=_REQUESTS)
        return map(self.sealed, units)

    def list_failures(self, units: int) -> Iterator[UnitRecord | None]:
        """Same as records(), and writes failures.jsonl, which is complete once the iterator is exhausted.

        Rows dropped because their inputs no longer exist are listed in gone.jsonl instead.
        """
        with replacing(self.failures_file) as file:
            for record in self.records(range(units)):
                failures = record.failures if record else ()
                file.writelines(_line(failure) for failure in failures if failure.error != GONE)
                yield record

    def list_gone(self, paths: Iterable[str]) -> int:
        """Write gone.jsonl: inputs that an update no longer found; returns their number."""
        count = 0
        with replacing(self.gone_file) as file:
            for count, path in enumerate(paths, 1):  # noqa: B007 - its last value is the number
                file.write(json.dumps({"path": path}, ensure_ascii=False).encode() + b"\n")
        return count

    def clear(self) -> None:
        """Remove records, shards and the lists next to them."""
        for name in self._folder.glob("*.json"):
            remove(name)
        for name in self.out.glob("part-*.parquet"):
            if PART.fullmatch(name.name):
                remove(name)
        for name in (self.failures_file, self.duplicates_file, self.gone_file):
            remove(name)

    def tidy(self) -> None:
        """Remove partial files of interrupted runs and lost workers; stores never contain any."""
        units = self._folder
        ours = ((self.out, "part-*.parquet*"), (self.out, "*.jsonl*"), (units, "*.json*"), (units.parent, "*"))
        for folder, pattern in () if isinstance(self.out, ObjectPath) else ours:
            for left in folder.glob(f".{pattern}.part"):
                left.unlink(missing_ok=True)

    def _record(self, unit: int) -> Place:
        return self._folder / f"{unit:05d}.json"


def _record_of(content: dict[str, Any]) -> UnitRecord:
    """A unit's record from its JSON. Raises what a wrong form makes Python raise."""
    digests, labels = (
        {int(place): value for place, value in content.get(name, {}).items()} for name in ("digests", "labels")
    )
    return UnitRecord(
        int(content["rows"]), int(content["size"]), tuple(Failure(**each) for each in content["failures"]),
        tuple(content.get("released", ())), str(content.get("stamps", "")), str(content.get("sha256", "")),
        str(content.get("plan", "")), digests, labels,
    )  # fmt: skip


def _by_text(values: Mapping[int, str | None]) -> dict[str, str | None]:
    """Values by place, as JSON holds them."""
    return {str(place): value for place, value in sorted(values.items())}


def _line(failure: Failure) -> bytes:
    content = {"path": failure.path, "error": failure.error, "message": failure.message}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
