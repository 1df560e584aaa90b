"""Images in, embedding data set out: what is to be done, what is done already, and whether the two go together.

Knows nothing of how rows are computed (engine), what they are (recipe) or how files are written (ledger, shards).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.embed.dataset.ledger import Ledger
from bigr_repr.embed.dataset.plan import RUN_FOLDER, Plan, commit_plan, extend_plan, list_inputs, open_plan, revoke_plan
from bigr_repr.embed.dataset.schema import Recipe, differences
from bigr_repr.embed.engines.batching import best_batch_size
from bigr_repr.embed.engines.gpus import Devices, EngineOptions, saved
from bigr_repr.embed.engines.local import Decoding, LocalEngine
from bigr_repr.embed.engines.ray import RayEngine, require_ray
from bigr_repr.embed.inputs.dedup import list_digests, list_duplicates, release_doubles
from bigr_repr.embed.inputs.sources import find_sources
from bigr_repr.embed.inputs.update import KnownInputs, changes
from bigr_repr.images.decode import MAX_PIXELS
from bigr_repr.images.find import Source
from bigr_repr.system.files import locked
from bigr_repr.system.object_store import ObjectPath, Place, as_place

if TYPE_CHECKING:
    import torch

    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.features.extractor import FeatureExtractor, Layer


RunUnits = Callable[[Plan, Iterable[int]], None]  # does units of a plan
_UNIT = 1024
_UNIT_BYTES = 256 << 20
_BATCH = 32
ENGINES = ("local", "ray")


class Progress(NamedTuple):
    """How far a run is. total: None while inputs are being listed, done being how many so far. failures: in all."""

    done: int
    total: int | None
    failures: int


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What a data set holds after a run, rows + failures + duplicates = inputs, and what the run did for it.

    duplicates: inputs without a row of their own, with dedup. gone: inputs that an update did not find again; their
    rows stay. embedded: images that this run took on; the others were done before. seconds: for these, from the first
    to the last. batch_size: images that the network took at a time.
    """

    out: Place
    inputs: int
    rows: int
    failures: int
    duplicates: int
    gone: int
    shards: int
    embedded: int
    seconds: float
    batch_size: int


def embed_images(
    inputs: PathLike | Iterable[PathLike],
    out: PathLike = "embeddings",
    *,
    model: PathLike | Pretrained = DEFAULT_MODEL,
    layers: Iterable[Layer] = (12,),
    pool: str = "avg",
    codes: bool = False,
    labels_from_folders: bool = False,
    sha256: bool = False,
    dedup: str | None = None,
    dtype: str = "float32",
    precision: str | None = None,
    resume: bool = True,
    retry_failed: bool = False,
    update: bool = False,
    overwrite: bool = False,
    root: PathLike | None = None,
    literal: bool = False,
    max_pixels: int = MAX_PIXELS,
    decode_timeout: float | None = 120.0,
    batch_size: int | str | None = None,
    workers: int | None = None,
    unit_size: int | None = None,
    device: torch.device | str | Sequence[str] | None = None,
    compile: bool = False,
    engine: str = "local",
    ray_address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> EmbedSummary:
    """Embed images into a folder of Parquet files that states its origin, and account for every one of them.

    inputs, root, literal: as bigr_repr.embed.inputs.sources.find_sources takes; however many, memory stays the same.
    A picture that cannot be read gives no row but a line in failures.jsonl: path, kind of error, message. out: a folder
    or a URL of an object store (`s3://bucket/run`).

    Columns: path; embedding, or embedding_4 and so on for several layers, a vector of dtype ("float32" or "float16"),
    pool="none": of all tokens one after the other; with codes, code: packed bits as bigr_repr.codes states; with
    labels_from_folders, label: the name of the folder that the file lies in, or what a Parquet or tar file states; with
    sha256, sha256: of the encoded image, hexadecimal. Read them with read_embeddings. dedup="exact": of inputs that are
    the same bytes only the first gets a row (or a failure); the others are listed in duplicates.jsonl with the path of
    that one. retry_failed then also takes those whose first one failed and that are other bytes by now.

    Inputs are listed first, and done in units of unit_size (1024, fewer if rows are large), each a file that appears
    whole. A run that was stopped, however, goes on where it was: units that are done stay as they are (resume=False: it
    is an error that there are any). retry_failed: try the failed images again, and put rows in their places.
    update: also embed inputs that were added since, as units of their own at the end; inputs that are gone keep their
    rows, and are listed in gone.jsonl. overwrite: begin anew, removing the data set that stands in out. What belongs to
    another model, layer, preprocessing or list of inputs is never mixed: ValueError says what differs.

    A picture of more than max_pixels, one that takes more than decode_timeout seconds and one that crashes its decoder
    are failures. decode_timeout=None: decode in threads of this process instead of in processes that can be ended, a
    little faster, but no guard against either of the latter. workers: pictures decoded at a time.

    precision: what the network computes in, "float32", "bfloat16" or "float16"; None: as the weights are. device:
    "cuda", "cuda:1" and so on, several as "cuda:0,cuda:1" or a sequence, "all" for every GPU: with several, each has a
    process of its own. batch_size: images that the network takes at a time; "auto": the fastest, measured; None: as the
    data set was begun, or 32. It is recorded, and a run that goes on keeps it ("auto" as well), so that rows do not
    depend on where a run was stopped; other sizes, devices and compile change rows by no more than rounding.

    engine="ray": do units on the machines of a Ray cluster, at ray_address, RAY_ADDRESS or, without either, only
    this machine; device is then "auto" (all GPUs, or all cores), "cpu" or "cuda", and workers the cores of each actor.
    Inputs and out must be what every machine sees. Rows are the local engine's, and one goes on where the other was.

    Raises FileNotFoundError for inputs or a model that are not there, ValueError for a layer out of range, data of
    another origin or a model that gives no finite numbers, OSError when out cannot be written, RuntimeError when
    another process is writing it. KeyboardInterrupt leaves finished units.
    """
    import torch

    from bigr_repr.checkpoints.pretrained import Pretrained, load
    from bigr_repr.features.extractor import FeatureExtractor
    from bigr_repr.system.devices import as_dtype, choose_device

    if not (batch_size in (None, "auto") or (isinstance(batch_size, int) and batch_size >= 1)):
        raise ValueError(f'batch_size={batch_size!r} must be at least 1, or "auto"')
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    on_ray = engine == "ray"
    if on_ray:
        require_ray(ray_address, str(device or "auto"), batch_size)
    decoding = Decoding(workers=workers, timeout=decode_timeout, max_pixels=max_pixels)
    devices = [] if on_ray else _devices(device)
    sources = _begun(
        find_sources(inputs, root=root, literal=literal, labels=labels_from_folders)
    )  # before a model is loaded
    places = [choose_device(each) for each in devices or (None,)]
    pre = model if isinstance(model, Pretrained) else load(model)
    place = None if isinstance(model, Pretrained) and not devices else places[0]
    if on_ray or (len(places) > 1 and batch_size != "auto"):
        place = None  # the network will not run in this process
    blocks = dict.fromkeys(pre.config.generator.layer_index(layer, pre.config.name) for layer in layers)
    extractor = FeatureExtractor(pre, blocks, pool, dtype=as_dtype(precision), device=place, compile=compile)
    recipe = Recipe(
        config=pre.config, weights=pre.fingerprint, layers=tuple(blocks), pool=pool, dtype=dtype,
        precision=str(extractor.dtype).removeprefix("torch."), codes=codes, labels=labels_from_folders, sha256=sha256,
        dedup=dedup,
    )  # fmt: skip
    shipped = pre if on_ray else None
    del pre
    target = as_place(out)
    with ExitStack() as stack:
        folder, held = stack.enter_context(_claimed(target))
        old = None if overwrite else open_plan(folder)
        size = _batch_size(batch_size, old, extractor)
        recipe = replace(recipe, batch_size=size)
        job = _Job(target, folder, recipe, on_progress or (lambda progress: None))
        plan = job.plan(old, sources, unit_size, resume=resume, update=update, workers=workers)
        if shipped is not None:
            options = EngineOptions(
                model=recipe.config.name, device=str(device or "auto"), compile=compile, recipe=recipe,
                decoding=decoding, out=str(target.resolve()), folder=str(folder.resolve()), threads=1,
            )  # fmt: skip
            run: RunUnits = RayEngine(ray_address, options, shipped, job.advance).run
        elif len(places) == 1:
            run = LocalEngine(extractor, recipe, job.ledger, size, decoding, job.advance).run_units
        else:
            del extractor
            options = EngineOptions(
                model=saved(model, stack.enter_context(TemporaryDirectory())), device="", compile=compile,
                recipe=recipe, decoding=decoding, out=str(target), folder=str(folder), threads=torch.get_num_threads(),
            )  # fmt: skip
            run = Devices(devices, options, job.advance, held).run
        return job.do(plan, run, retry_failed=retry_failed)


def _devices(device: torch.device | str | Sequence[str] | None) -> list[str]:
    """Names of devices; none for the usual one."""
    import torch

    if device is None:
        return []
    if device == "all":
        if not torch.cuda.is_available():
            raise ValueError("device='all': this machine has no GPU that PyTorch sees; leave it out for the CPU")
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if isinstance(device, torch.device):
        return [str(device)]
    return device.split(",") if isinstance(device, str) else list(device)


def _batch_size(asked: int | str | None, old: Plan | None, extractor: FeatureExtractor) -> int:
    """The batch size to use: an existing data set goes on with its own unless a number is asked for."""
    if isinstance(asked, int):
        return asked
    if old is not None and isinstance(size := old.provenance.get("batch_size"), int):
        return size
    return _BATCH if asked is None else best_batch_size(extractor)


class _Job:
    """One run on one folder: what of the plan is done, and how far it is."""

    def __init__(self, out: Place, folder: Place, recipe: Recipe, report: Callable[[Progress], None]) -> None:
        self.out, self.folder, self.recipe, self._report = out, folder, recipe, report
        self.ledger = Ledger(out, folder / "units")
        self._progress, self._gone = Progress(0, None, 0), 0

    def plan(
        self, old: Plan | None, sources: Iterable[Source], unit_size: int | None, *, resume: bool, update: bool,
        workers: int | None,
    ) -> Plan:  # fmt: skip
        """The plan to follow: the old one, if it is for the same rows of the same inputs; without one, a new one."""
        if unit_size is not None and unit_size < 1:
            raise ValueError(f"unit_size={unit_size} must be at least 1")
        if old is None:
            unit_size = unit_size or max(1, min(_UNIT, _UNIT_BYTES // self.recipe.row_bytes))
            count = list_inputs(self.folder, sources, unit_size, self._listed)
            self._find_duplicates(None, workers)
            revoke_plan(self.folder)
            self.ledger.clear()
            self.ledger.tidy()
            return commit_plan(self.folder, count, unit_size, self.recipe.provenance())
        remedy = "name another output folder, or overwrite it"
        if not resume:
            raise ValueError(f"{self.out} holds embeddings already; resume, {remedy}")
        found = differences(old.provenance, self.recipe.provenance())
        if unit_size not in (None, old.unit_size):
            found.append(f"unit_size was {old.unit_size}, is {unit_size}")
        if not found and not update:
            once = len(old.lists) == 1
            changed = old.difference(sources, self._listed) if once else changes(old, sources, self._listed)
            if changed:
                found.append(changed)
                remedy = f"take in what was added with update, {remedy}"
        if found:
            raise ValueError(f"{self.out} holds other embeddings: {'; '.join(found)}; {remedy}")
        self.ledger.tidy()
        return self._updated(old, sources, workers) if update else old

    def _updated(self, old: Plan, sources: Iterable[Source], workers: int | None) -> Plan:
        """The plan and what it lacks of the sources."""
        known = KnownInputs(old)
        count = list_inputs(self.folder, known.additions(sources, self._listed), old.unit_size, lambda found: None)
        self._gone = self.ledger.list_gone(known.gone())
        if not count:
            return old
        self._find_duplicates(old, workers)
        return extend_plan(old, count)

    def _find_duplicates(self, before: Plan | None, workers: int | None) -> None:
        if self.recipe.dedup:
            list_digests(self.folder, before, workers, self._listed)

    def do(self, plan: Plan, run: RunUnits, *, retry_failed: bool) -> EmbedSummary:
        """Do what is not done."""
        todo, sealed, failed = [], 0, 0
        if self.recipe.dedup and retry_failed:
            release_doubles(plan, self.ledger)
        duplicates = list_duplicates(plan, self.ledger) if self.recipe.dedup else 0
        for unit, record in enumerate(self.ledger.list_failures(plan.units)):
            if record is not None:
                sealed += record.rows
            if record is not None and not (retry_failed and record.failures):
                sealed, failed = sealed + len(record.failures), failed + len(record.failures)
            else:
                todo.append(unit)
        self._advance_to(Progress(sealed + duplicates, plan.inputs, failed))
        started = time.monotonic()
        try:
            run(plan, todo)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                deque(self.ledger.list_failures(plan.units), maxlen=0)
            raise
        seconds = time.monotonic() - started
        rows, failures = 0, 0
        for record in filter(None, self.ledger.list_failures(plan.units)):
            rows, failures = rows + record.rows, failures + len(record.failures)
        if rows + failures + duplicates != plan.inputs:
            raise RuntimeError(f"{self.out}: files were changed while this ran; run it again to do what they held")
        return EmbedSummary(
            out=self.out, inputs=plan.inputs, rows=rows, failures=failures, duplicates=duplicates, gone=self._gone,
            shards=plan.units, embedded=plan.inputs - duplicates - sealed, seconds=seconds,
            batch_size=self.recipe.batch_size,
        )  # fmt: skip

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
def _claimed(out: Place) -> Iterator[tuple[Place, list[int]]]:
    """The folder in out for what a run has to remember, held for only this process; in a store nothing is held.

    Also the descriptors that hold it: as long as any process has one open, another run is refused.
    """
    folder = out / RUN_FOLDER
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a folder for the embeddings")
    if out.is_dir() and not folder.exists() and (foreign := next(out.glob("part-*.parquet"), None)):
        raise ValueError(f"{foreign} was not written by this program; name another output folder")
    if isinstance(folder, ObjectPath):
        yield folder, []
        return
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{out}: another process is embedding into this folder; wait for it"
    with locked(folder / "lock", busy) as descriptor:
        yield folder, [] if descriptor is None else [descriptor]
