"""Images in, embedding data set out: what is to be done, what is done already, and whether the two go together.

Knows nothing of how rows are computed (engine), what they are (recipe) or how files are written (ledger, shards).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from bigr_repr._objects import ObjectPath, Place, as_place
from bigr_repr.embed.engine import Engine, Task
from bigr_repr.embed.ledger import Ledger
from bigr_repr.embed.plan import RUN_FOLDER, Plan, commit_plan, list_inputs, open_plan, revoke_plan
from bigr_repr.embed.recipe import Recipe, differences
from bigr_repr.embed.sources import find_sources
from bigr_repr.images import MAX_PIXELS, Source

if TYPE_CHECKING:
    import torch

    from bigr_repr.checkpoints import Pretrained
    from bigr_repr.features import Layer

log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
_UNIT = 1024
_UNIT_BYTES = 256 << 20


class Progress(NamedTuple):
    """How far a run is. total: None while inputs are being listed, done being how many so far. failures: in all."""

    done: int
    total: int | None
    failures: int


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What a data set holds after a run, rows + failures = inputs, and what the run did for it.

    embedded: images that this run took on; the others were done before. seconds: for these, from the first to the last.
    """

    out: Place
    inputs: int
    rows: int
    failures: int
    shards: int
    embedded: int
    seconds: float


def embed_images(
    inputs: PathLike | Iterable[PathLike],
    out: PathLike = "embeddings",
    *,
    model: PathLike | Pretrained = "bigr-tiny",
    layers: Iterable[Layer] = (12,),
    pool: str = "avg",
    codes: bool = False,
    labels_from_folders: bool = False,
    dtype: str = "float32",
    precision: str | None = None,
    resume: bool = True,
    retry_failed: bool = False,
    overwrite: bool = False,
    root: PathLike | None = None,
    literal: bool = False,
    max_pixels: int = MAX_PIXELS,
    batch_size: int = 32,
    workers: int | None = None,
    unit_size: int | None = None,
    device: torch.device | str | None = None,
    compile: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> EmbedSummary:
    """Embed images into a folder of Parquet files that states its origin, and account for every one of them.

    inputs, root, literal: as bigr_repr.embed.sources.find_sources takes; memory does not depend on how many there are.
    A picture that cannot be read gives no row but a line in failures.jsonl: path, kind of error, message. out: a folder
    or a URL of an object store (`s3://bucket/run`).

    Columns: path; embedding, or embedding_4 and so on for several layers, a vector of dtype ("float32" or "float16"),
    pool="none": of all tokens one after the other; with codes, code: packed bits as bigr_repr.codes states; with
    labels_from_folders, label: the name of the folder that the file lies in. Read them with read_embeddings.

    Inputs are listed first, and done in units of unit_size (1024, fewer if rows are large), each a file that appears
    whole. A run that was stopped, however, goes on where it was: units that are done stay as they are (resume=False: it
    is an error that there are any). retry_failed: try the failed images again, and put rows in their places.
    overwrite: begin anew, removing the data set that stands in out. What belongs to another model, layer, preprocessing
    or list of inputs is never mixed: ValueError says what differs.

    precision: what the network computes in, "float32", "bfloat16" or "float16"; None: as the weights are. batch_size,
    workers (threads that decode), device and compile change the speed, and rows by no more than rounding.

    Raises FileNotFoundError for inputs or a model that are not there, ValueError for a layer out of range, data of
    another origin or a model that gives no finite numbers, OSError when out cannot be written, RuntimeError when
    another process is writing it. KeyboardInterrupt leaves finished units.
    """
    from bigr_repr._placement import as_dtype, choose_device
    from bigr_repr.checkpoints import Pretrained, load
    from bigr_repr.features import FeatureExtractor

    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    sources = _begun(
        find_sources(inputs, root=root, literal=literal, labels=labels_from_folders)
    )  # before a model is loaded
    if isinstance(model, Pretrained):
        pre, place = model, None if device is None else choose_device(device)
    else:
        pre, place = load(model), choose_device(device)
    blocks = dict.fromkeys(pre.config.generator.layer_index(layer, pre.config.name) for layer in layers)
    extractor = FeatureExtractor(pre, blocks, pool, dtype=as_dtype(precision), device=place, compile=compile)
    recipe = Recipe(
        config=pre.config, weights=pre.fingerprint, layers=tuple(blocks), pool=pool, dtype=dtype,
        precision=str(extractor.dtype).removeprefix("torch."), codes=codes, labels=labels_from_folders,
    )  # fmt: skip
    del pre
    target = as_place(out)
    with _claimed(target) as folder:
        job = _Job(target, folder, recipe, on_progress or (lambda progress: None))
        plan = job.plan(sources, unit_size, resume=resume, overwrite=overwrite)
        engine = Engine(extractor, recipe, job.ledger, batch_size, workers, max_pixels, job.advance)
        return job.do(plan, engine, retry_failed=retry_failed)


class _Job:
    """One run on one folder: what of the plan is done, and how far it is."""

    def __init__(self, out: Place, folder: Place, recipe: Recipe, report: Callable[[Progress], None]) -> None:
        self.out, self.folder, self.recipe, self._report = out, folder, recipe, report
        self.ledger = Ledger(out, folder / "units")
        self._progress = Progress(0, None, 0)

    def plan(self, sources: Iterable[Source], unit_size: int | None, *, resume: bool, overwrite: bool) -> Plan:
        """The plan to follow: the folder's, if it is for the same rows of the same inputs; a new one if it has none."""
        old = open_plan(self.folder) if not overwrite else None
        if old is None:
            if unit_size is None:
                unit_size = max(1, min(_UNIT, _UNIT_BYTES // self.recipe.row_bytes))
            if unit_size < 1:
                raise ValueError(f"unit_size={unit_size} must be at least 1")
            count = list_inputs(self.folder, sources, unit_size, self._listed)
            revoke_plan(self.folder)
            self.ledger.clear()
            return commit_plan(self.folder, count, unit_size, self.recipe.provenance())
        remedy = "name another output folder, or overwrite it"
        if not resume:
            raise ValueError(f"{self.out} holds embeddings already; resume, {remedy}")
        found = differences(old.provenance, self.recipe.provenance())
        if unit_size not in (None, old.unit_size):
            found.append(f"unit_size was {old.unit_size}, is {unit_size}")
        if not found and (changed := old.difference(sources, self._listed)):
            found.append(changed)
        if found:
            raise ValueError(f"{self.out} holds other embeddings: {'; '.join(found)}; {remedy}")
        self.ledger.tidy()
        return old

    def do(self, plan: Plan, engine: Engine, *, retry_failed: bool) -> EmbedSummary:
        """Do what is not done."""
        todo, sealed, failed = [], 0, 0
        for unit in range(plan.units):
            record = self.ledger.sealed(unit)
            size = min(plan.unit_size, plan.inputs - unit * plan.unit_size)
            if record is not None and not (retry_failed and record.failures):
                sealed, failed = sealed + size, failed + len(record.failures)
            else:
                sealed += 0 if record is None else record.rows
                todo.append(unit)
        self.ledger.list_failures(plan.units)
        self._advance_to(Progress(sealed, plan.inputs, failed))
        started = time.monotonic()
        try:
            engine.run(self._tasks(plan, todo))
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                self.ledger.list_failures(plan.units)
            raise
        seconds = time.monotonic() - started
        rows, failures = self.ledger.list_failures(plan.units)
        assert rows + failures == plan.inputs
        return EmbedSummary(
            out=self.out, inputs=plan.inputs, rows=rows, failures=failures, shards=plan.units,
            embedded=plan.inputs - sealed, seconds=seconds,
        )  # fmt: skip

    def _tasks(self, plan: Plan, units: Iterable[int]) -> Iterator[Task]:
        for unit in units:
            entries, record = plan.entries(unit), self.ledger.sealed(unit)
            places = list(range(len(entries))) if record is None else [failure.place for failure in record.failures]
            yield Task(unit, [entries[place] for place in places], places, record)

    def _listed(self, count: int) -> None:
        self._advance_to(Progress(count, None, 0))

    def advance(self, images: int, failures: int) -> None:
        """Count images that have been dealt with, failures among them."""
        done, total, failed = self._progress
        self._advance_to(Progress(done + images, total, failed + failures))

    def _advance_to(self, progress: Progress) -> None:
        self._progress = progress
        self._report(progress)


def _begun(sources: Iterator[Source]) -> Iterator[Source]:
    """The same stream, its first item already found: errors about inputs come now, before anything is made."""
    first = next(sources, None)
    return iter(()) if first is None else chain([first], sources)


@contextmanager
def _claimed(out: Place) -> Iterator[Place]:
    """The folder in out for what a run has to remember, held for this process alone; in a store nothing is held."""
    folder = out / RUN_FOLDER
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a folder for the embeddings")
    if out.is_dir() and not folder.exists() and (foreign := next(out.glob("part-*.parquet"), None)):
        raise ValueError(f"{foreign} was not written by this program; name another output folder")
    if isinstance(folder, ObjectPath):
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            log.info("this system has no file locks: do not run twice at once on %s", out)
        except BlockingIOError:
            raise RuntimeError(f"{out}: another process is embedding into this folder; wait for it") from None
        yield folder
