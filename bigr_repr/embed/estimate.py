"""Estimates what a run would take: counts inputs, embeds a sample of them here, and extrapolates.

Writes only to a temporary folder. Independent of how rows are computed.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow.parquet as pq

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.embed.dataset.containers import stamp_of
from bigr_repr.embed.dataset.cut import Cut
from bigr_repr.embed.dataset.entry import as_entry
from bigr_repr.embed.job import Progress, usual_unit_size
from bigr_repr.embed.options import EmbedOptions
from bigr_repr.embed.run import Setup, embed_sources, found_sources, load_setup
from bigr_repr.images.containers import is_container, is_table
from bigr_repr.images.find import Source
from bigr_repr.system.object_store import is_url
from bigr_repr.system.scratch import scratch_folder
from bigr_repr.system.threads import map_ahead

if TYPE_CHECKING:
    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.features.exported.model import ExportedModel

__all__ = ["Counted", "Estimate", "Measured", "Prices", "Requests", "Stored", "count_inputs", "estimate_run"]

_STRETCH: Final = 32  # consecutive inputs that are sampled together, because containers are read in pieces
_SEED: Final = 0
_STATS: Final = 32  # size requests at a time
# Bytes per request: Parquet files, neighboring tar members, objects written in parts.
_PARQUET, _TAR, _PUT = 4 << 20, 8 << 20, 10 << 20
_HEADERS, _JUMP = 1 << 20, 64 << 10  # for listing tar shards; picture size from which only headers are read
_LISTED: Final = 1000  # names per listing request
_LOOKS: Final = 7  # requests per unit: its record and shard at the start and the end, and one for the plan
_BEAT: Final = 10.0  # seconds between lease renewals of a run into a store


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in one currency; 0: free.  Raises ValueError for a negative price.

    machine_hour: per hour of a machine like this one. million_reads, million_writes: per million requests to stores;
    listings count as writes. gb_read: per 10⁹ bytes of inputs. gb_month: per 10⁹ bytes of rows stored for a month.
    """

    machine_hour: float = 0.0
    million_reads: float = 0.0
    million_writes: float = 0.0
    gb_read: float = 0.0
    gb_month: float = 0.0

    def __post_init__(self) -> None:
        for name, price in vars(self).items():
            if not 0 <= price < math.inf:
                raise ValueError(f"{name}={price:g} must be a price: 0 or more")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The inputs in object stores. single: objects with one picture; tables, tars: numbers of containers.

    tar_images: pictures in those tar shards; table_bytes, tar_bytes: total size of each kind of container.
    """

    single: int = 0
    tables: int = 0
    table_bytes: int = 0
    tars: int = 0
    tar_bytes: int = 0
    tar_images: int = 0


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The result of listing the inputs. Nothing here is estimated.

    images: inputs; units: that they would be cut into. single, tables, tars: numbers of single pictures, Parquet files
    and tar shards; container_bytes: of the last two together. stored: those in object stores. seconds: time for
    listing.
    """

    images: int
    units: int
    single: int
    tables: int
    tars: int
    container_bytes: int
    stored: Stored
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements on a sample embedded on this machine.

    images: in the sample; failures: those without a row. images_per_second: from the end of the first batch, so that
    startup does not count. single_bytes: mean size of single files, 0.0 if there are none. row_bytes: per row in its
    Parquet file; shard_bytes: overhead per such file.
    """

    images: int
    failures: int
    images_per_second: float
    single_bytes: float
    row_bytes: float
    shard_bytes: float


class Requests(NamedTuple):
    """Requests to object stores: reads, and writes, which include listings."""

    reads: int
    writes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would take. counted: exact; measured: on a sample. Everything else is estimated from these two.

    rows: inputs that give one, at the sample's failure rate. input_bytes: to read; output_bytes: of the data set's
    Parquet files. hours: for embedding alone, on `machines` machines like this one. money: by item, at the given
    prices, including `total`; items without a price are left out.
    """

    counted: Counted
    measured: Measured
    machines: int
    rows: int
    input_bytes: int
    output_bytes: int
    requests: Requests
    hours: float
    money: dict[str, float]


def count_inputs(
    inputs: PathLike | Iterable[PathLike],
    options: EmbedOptions | None = None,
    *,
    model: PathLike | Pretrained | ExportedModel = DEFAULT_MODEL,
    **fields: Any,
) -> Counted:
    """Count the inputs of embed_images, in the time that listing takes; memory use does not depend on their number.

    Arguments and errors as in embed_images, except those that only embedding can raise.
    """
    options = replace(options or EmbedOptions(), **fields)
    setup = load_setup(model, options)
    return _counted(found_sources(inputs, None, options), _unit_size(options, setup), _Sample(0))


def estimate_run(
    inputs: PathLike | Iterable[PathLike],
    out: PathLike = "embeddings",
    options: EmbedOptions | None = None,
    *,
    model: PathLike | Pretrained | ExportedModel = DEFAULT_MODEL,
    sample: int = 256,
    machines: int = 1,
    prices: Prices | None = None,
    **fields: Any,
) -> Estimate:
    """Estimate the time, bytes, requests and cost of embed_images with the same inputs, out and options.

    All inputs are listed; `sample` of them, in random stretches of 32 (always the same ones), are embedded on this
    machine by the local engine into a temporary folder. Nothing is written to out.
    Raises as embed_images does, and ValueError for sample or machines below 1, or a sample that gives no row.
    """
    options = replace(options or EmbedOptions(), **fields)
    if sample < 1 or machines < 1:
        raise ValueError(f"sample={sample} and machines={machines} must be at least 1")
    setup, chosen = load_setup(model, replace(options, engine="local")), _Sample(sample)
    counted = _counted(found_sources(inputs, None, options), _unit_size(options, setup), chosen)
    measured = _measured(chosen.sources, setup, options)
    return _worked_out(counted, measured, machines, is_url(str(out)), prices or Prices())


def _unit_size(options: EmbedOptions, setup: Setup) -> int:
    return options.unit_size or usual_unit_size(setup.recipe)


# ---- counting


class _Sample:
    """A random sample of stretches of a stream (reservoir sampling)."""

    def __init__(self, images: int) -> None:
        self._most, self._seen = -(-images // _STRETCH), 0
        self._images, self._random = images, random.Random(_SEED)
        self._kept: list[tuple[int, list[Source]]] = []
        self._stretch: list[Source] = []

    def of(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The same stream, sampled as it passes."""
        for source in sources:
            self._stretch.append(source)
            if len(self._stretch) == _STRETCH:
                self._offer()
            yield source
        self._offer()

    def _offer(self) -> None:
        if not self._stretch:
            return
        number, self._stretch, stretch = self._seen, [], self._stretch
        self._seen += 1
        if len(self._kept) < self._most:
            self._kept.append((number, stretch))
        elif (place := self._random.randrange(self._seen)) < self._most:
            self._kept[place] = number, stretch

    @property
    def sources(self) -> list[Source]:
        """The chosen inputs, in order."""
        chosen = sorted(self._kept, key=lambda each: each[0])
        return [source for _, stretch in chosen for source in stretch][: self._images]


def _counted(sources: Iterable[Source], unit_size: int, sample: _Sample) -> Counted:
    started, cut = time.monotonic(), Cut(unit_size)
    images = single = stored_single = tar_images = 0
    containers = dict[str, None]()
    for unit in cut.units(sample.of(sources)):
        images += len(unit)
        for entry in unit:
            if is_container(entry.file):
                containers[entry.file] = None
                tar_images += _in_store(entry.file) and not is_table(entry.file)
            else:
                single += 1
                stored_single += _in_store(entry.file)
    sizes = {name: stamp[0] if stamp else 0 for name, stamp in _stamps(containers)}
    tables = {name: size for name, size in sizes.items() if is_table(name)}
    stored = [[size for name, size in sizes.items() if _in_store(name) and (name in tables) is table]
              for table in (True, False)]  # fmt: skip
    return Counted(
        images=images, units=cut.count, single=single, tables=len(tables), tars=len(sizes) - len(tables),
        container_bytes=sum(sizes.values()), seconds=time.monotonic() - started,
        stored=Stored(
            single=stored_single, tables=len(stored[0]), table_bytes=sum(stored[0]), tars=len(stored[1]),
            tar_bytes=sum(stored[1]), tar_images=tar_images,
        ),
    )  # fmt: skip


def _stamps(files: Iterable[str]) -> Iterator[tuple[str, tuple[int, int] | None]]:
    return map_ahead(lambda file: (file, stamp_of(file)), files, workers=_STATS)


def _in_store(file: str) -> bool:
    return is_url(file) and not file.startswith(("http://", "https://"))


# ---- measuring


def _measured(sources: list[Source], setup: Setup, options: EmbedOptions) -> Measured:
    """Embed the sample."""
    marks: list[tuple[float, int]] = []

    def mark(progress: Progress) -> None:
        if progress.total is not None:
            marks.append((time.perf_counter(), progress.done))

    with scratch_folder() as folder:
        batch = options.batch_size if isinstance(options.batch_size, int) else None
        many = len(setup.devices) > 1  # then in small units, so that processes report every batch
        size = batch or 32 if many else min(_unit_size(options, setup), max(1, len(sources)))
        own = replace(options, engine="local", unit_size=size, update=False, drop_gone=False)
        done = embed_sources(iter(sources), folder / "rows", setup, own, mark)
        if not done.rows:
            raise ValueError(f"none of {done.inputs} sampled images gave a row, so there is nothing to measure")
        parts = [pq.read_metadata(part) for part in sorted(done.out.glob("part-*.parquet"))]
        total = sum(part.stat().st_size for part in done.out.glob("part-*.parquet"))
    rows = [part.row_group(i).column(j).total_compressed_size for part in parts for i in range(part.num_row_groups)
            for j in range(part.num_columns)]  # fmt: skip
    begun = 1 if len(marks) > 2 else 0
    seconds = marks[-1][0] - marks[begun][0]
    single = [stamp[0] for _, stamp in _stamps(_alone(sources)) if stamp is not None]
    return Measured(
        images=done.inputs, failures=done.failures,
        images_per_second=(marks[-1][1] - marks[begun][1]) / max(seconds, 1e-9),
        single_bytes=sum(single) / max(1, len(single)), row_bytes=sum(rows) / done.rows,
        shard_bytes=(total - sum(rows)) / max(1, len(parts)),
    )  # fmt: skip


def _alone(sources: Iterable[Source]) -> list[str]:
    """Files that contain a single picture."""
    return [as_entry(source).file for source in sources if source.start is None and not is_container(source.file)]


# ---- estimating


def _worked_out(counted: Counted, measured: Measured, machines: int, out_in_store: bool, prices: Prices) -> Estimate:
    share = 1 - measured.failures / measured.images
    rows = round(counted.images * share)
    read = counted.container_bytes + round(counted.single * measured.single_bytes)
    written = round(rows * measured.row_bytes + counted.units * measured.shard_bytes)
    hours = counted.images / measured.images_per_second / 3600 / machines
    requests = _requests(counted, written, hours, out_in_store)
    held = counted.stored
    items = {
        "machines": hours * machines * prices.machine_hour,
        "read requests": requests.reads / 1e6 * prices.million_reads,
        "write requests": requests.writes / 1e6 * prices.million_writes,
        "inputs read": (held.table_bytes + held.tar_bytes + held.single * measured.single_bytes) / 1e9 * prices.gb_read,
    }
    money = {name: amount for name, amount in items.items() if amount}
    money |= {"total": sum(money.values())} if money else {}
    if prices.gb_month:
        money["rows, a month"] = written / 1e9 * prices.gb_month
    return Estimate(
        counted=counted, measured=measured, machines=machines, rows=rows, input_bytes=read, output_bytes=written,
        requests=requests, hours=hours, money=money,
    )  # fmt: skip


def _requests(counted: Counted, written: int, hours: float, out_in_store: bool) -> Requests:
    """Requests, from the bytes per request; retries are not counted."""
    held = counted.stored
    headers = held.tar_images if held.tar_bytes >= _JUMP * held.tar_images else -(-held.tar_bytes // _HEADERS)
    reads = 2 * (held.single + held.tables) + headers + -(-held.table_bytes // _PARQUET) + -(-held.tar_bytes // _TAR)
    writes = -(-(held.single + held.tables + held.tars) // _LISTED)
    if out_in_store:
        each = written / max(1, counted.units) / _PUT
        parts = 1 if each <= 1 else math.ceil(each) + 2  # multipart uploads also need a start and an end request
        beats = math.ceil(hours * 3600 / _BEAT)
        reads += _LOOKS * counted.units
        writes += (parts + 1) * counted.units + 2 * beats
    return Requests(reads, writes)
