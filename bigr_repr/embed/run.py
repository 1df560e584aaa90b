"""Embeds images into a data set: brings together inputs, model, folder and engine.

Independent of how rows are computed (engines), what they are (recipe) and which are left to do (job).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.embed.dataset.ledger import LISTS
from bigr_repr.embed.dataset.plan import RUN_FOLDER, Plan, open_plan
from bigr_repr.embed.dataset.schema import Recipe, icc_of
from bigr_repr.embed.engines.batching import best_batch_size
from bigr_repr.embed.engines.eight_bits import in_8_bits, network_in_8_bits
from bigr_repr.embed.engines.gpus import Devices, EngineOptions, saved
from bigr_repr.embed.engines.local import LocalEngine
from bigr_repr.embed.engines.ray import RayEngine, require_ray
from bigr_repr.embed.inputs.remembered import RememberedTars
from bigr_repr.embed.inputs.sources import find_sources
from bigr_repr.embed.job import EmbedJob, EmbedSummary, Progress, RunUnits, check_rows
from bigr_repr.embed.options import EmbedOptions
from bigr_repr.images.find import Source
from bigr_repr.system.files import locked
from bigr_repr.system.lease import leased
from bigr_repr.system.object_store import ObjectPath, Place, as_place, is_url
from bigr_repr.system.retries import retrying_for
from bigr_repr.system.scratch import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.features.exported.model import ExportedModel
    from bigr_repr.features.extractor import FeatureExtractor

_BATCH = 32


def embed_images(
    inputs: PathLike | Iterable[PathLike],
    out: PathLike = "embeddings",
    options: EmbedOptions | None = None,
    *,
    model: PathLike | Pretrained | ExportedModel = DEFAULT_MODEL,
    on_progress: Callable[[Progress], None] | None = None,
    **fields: Any,
) -> EmbedSummary:
    """Embed images into a folder of Parquet files that records its provenance, and account for every image.

    inputs: as in bigr_repr.embed.inputs.sources.find_sources; memory use does not depend on their number. An image that
    cannot be read gives a line in failures.jsonl instead of a row: path, kind of error, message. out: a folder or a URL
    of an object store (`s3://bucket/run`). options and fields: see EmbedOptions, e.g. `layers=(4, 12), codes=True`;
    fields take precedence. Read the rows with read_embeddings.

    Inputs are listed first, then embedded in units, each written as a file atomically. A stopped run is resumed. Rows
    of different models, layers, preprocessing or lists of inputs are never mixed: ValueError says what differs. Rows
    are the same whichever engine does a unit; other batch sizes, devices and compile change them by no more than
    rounding.

    Raises FileNotFoundError for missing inputs or a missing model, ValueError for a layer out of range, a data set with
    a different provenance or a model that gives no finite numbers, OSError if out cannot be written, RuntimeError if
    another process is writing it. KeyboardInterrupt leaves finished units.
    """
    options = replace(options or EmbedOptions(), **fields)
    if options.engine == "ray":
        require_ray(options.ray_address, str(options.device or "auto"), options.batch_size)
    target = as_place(out)
    _ = options.devices  # checked before anything is listed
    sources = found_sources(inputs, target, options)  # before a model is loaded
    return embed_sources(sources, target, load_setup(model, options), options, on_progress)


def embed_sources(
    sources: Iterator[Source],
    target: Place,
    loaded: Setup,
    options: EmbedOptions,
    on_progress: Callable[[Progress], None] | None = None,
) -> EmbedSummary:
    """embed_images() for inputs already found and a model already loaded."""
    with _claimed(target, options.retry_for) as claim:
        return _embedded(claim, sources, loaded, options, on_progress)


def embed_in_8_bits(
    inputs: PathLike | Iterable[PathLike],
    out: PathLike,
    options: EmbedOptions,
    *,
    model: Pretrained,
    calibrate: Tensor,
    on_network: Callable[[FeatureExtractor, FeatureExtractor], None],
    on_progress: Callable[[Progress], None] | None = None,
) -> EmbedSummary:
    """embed_images() by the model's network in 8 bits, which is stored in out, for further rows and for queries.

    calibrate: images like the inputs, uint8 (n, 3, S, S), for a new network. on_network: called with the extractors of
    the network and of the model before anything in out changes. A network in out is replaced only once its rows are
    gone. Raises what embed_images and network_in_8_bits do, ValueError for an object store.
    """
    if is_url(str(out)):
        raise ValueError(f"out={out}: int8 stores its network next to the rows; choose a local folder")
    target = Path(out)
    sources = found_sources(inputs, target, options)
    exact = load_setup(model, replace(options, device="cpu"))
    with _claimed(target, options.retry_for) as claim:
        old = claim.earlier(options)
        recipe = replace(exact.recipe, dtype=in_8_bits(exact.recipe).label, icc=_icc(old, options))
        check_rows(target, old, recipe, options)
        with network_in_8_bits(target, recipe, model, calibrate, overwrite=options.overwrite) as (network, keep):
            eight = load_setup(network, options)
            on_network(eight.extractor, exact.extractor)
            return _embedded(claim, sources, eight, options, on_progress, keep)


def _embedded(
    claim: _Claim,
    sources: Iterator[Source],
    loaded: Setup,
    options: EmbedOptions,
    on_progress: Callable[[Progress], None] | None,
    on_planned: Callable[[], None] = lambda: None,
) -> EmbedSummary:
    """Embed into a claimed folder. on_planned: called once all rows there are of the plan, and before any is added."""
    with ExitStack() as stack:
        old = claim.earlier(options)
        size = _batch_size(options.batch_size, old, loaded.extractor)
        recipe = replace(loaded.recipe, batch_size=size, icc=_icc(old, options))
        report = on_progress or (lambda progress: None)
        job = EmbedJob(claim.out, claim.folder, recipe, report, claim.check, options.engine)
        plan = job.plan(old, sources, options)
        on_planned()
        return job.do(plan, _engine(loaded, job, options, claim.held, stack), retry_failed=options.retry_failed)


def found_sources(inputs: PathLike | Iterable[PathLike], out: Place | None, options: EmbedOptions) -> Iterator[Source]:
    """The pictures that inputs name, with the first one already found. out: a data set that may know some of them."""
    known = RememberedTars(None if options.overwrite or out is None else _plan_in(out))
    found = find_sources(
        inputs, root=options.root, literal=options.literal, labels=options.labels_from_folders, columns=options.columns,
        known=known.pictures,
    )  # fmt: skip
    return _begun(found)


def _plan_in(out: Place) -> Plan | None:
    """The plan of a data set, for reading only; None if there is none or it cannot be read."""
    try:
        return open_plan(out / RUN_FOLDER)
    except (OSError, ValueError):  # reported when the folder is claimed
        return None


@dataclass(frozen=True)
class Setup:
    """A model and how it computes. given: as passed by the caller; extractor, recipe: as it computes on this machine.

    pre: the model to send to other machines, with the Ray engine alone. devices: those that the options name, all of
    them used; empty for the usual one.
    """

    given: PathLike | Pretrained | ExportedModel
    extractor: FeatureExtractor
    recipe: Recipe
    pre: Pretrained | None
    devices: tuple[str, ...]


def load_setup(model: PathLike | Pretrained | ExportedModel, options: EmbedOptions) -> Setup:
    """Load a model, and determine how it computes with these options.  Raises as embed_images does."""
    from bigr_repr.checkpoints.pretrained import Pretrained
    from bigr_repr.features.exported.model import open_model
    from bigr_repr.features.extractor import FeatureExtractor, blocks_of, layer_name
    from bigr_repr.system.devices import as_dtype, choose_device

    on_ray, devices = options.engine == "ray", options.devices
    places = [choose_device(each) for each in devices or (None,)]
    pre = open_model(model)
    if not isinstance(pre, Pretrained) and (on_ray or len(places) > 1):
        raise ValueError("an exported network runs in one process on this machine: leave out engine and device")
    exported = not isinstance(pre, Pretrained)  # it runs on the hardware it was exported for
    place = None if (exported and devices in ((), ("auto",))) or (pre is model and not devices) else places[0]
    if on_ray or (len(places) > 1 and options.batch_size != "auto"):
        place = None  # the network will not run in this process
    layers = dict.fromkeys(layer_name(blocks_of(layer, pre.config)) for layer in options.blocks)
    extractor = FeatureExtractor(
        pre, layers, options.pool, mirror=options.mirror, condition=options.condition, dtype=as_dtype(options.dtype),
        device=place, compile=options.compile,
    )  # fmt: skip
    recipe = Recipe(
        config=pre.config, weights=pre.fingerprint, layers=tuple(layers), pool=options.pool, mirror=options.mirror,
        store_dtype=options.store_dtype, dtype=extractor.precision, codes=options.codes,
        labels=options.labels_from_folders, sha256=options.sha256, dedup=options.dedup,
        condition=extractor.condition, thumbnails=options.thumbnails, parquet=options.columns,
    )  # fmt: skip
    return Setup(model, extractor, recipe, pre if on_ray and isinstance(pre, Pretrained) else None, devices)


def _engine(loaded: Setup, job: EmbedJob, options: EmbedOptions, held: list[int], stack: ExitStack) -> RunUnits:
    """The function that does a job's units."""
    import torch

    recipe = job.recipe
    if loaded.pre is None and len(loaded.devices) <= 1:
        size, told = recipe.batch_size, (job.advance, job.set_aside)
        return LocalEngine(loaded.extractor, recipe, job.ledger, size, options.decoding, *told).run_units
    on_ray = loaded.pre is not None
    order = EngineOptions(
        model=recipe.config.name if on_ray else saved(loaded.given, stack.enter_context(scratch_folder())),
        device=str(options.device or "auto") if on_ray else "",
        compile=options.compile, recipe=recipe, decoding=options.decoding,
        out=str(job.out.resolve()), folder=str(job.folder.resolve()),
        threads=1 if on_ray else torch.get_num_threads(), retry_for=options.retry_for,
    )  # fmt: skip
    if loaded.pre is not None:
        return RayEngine(options.ray_address, order, loaded.pre, job.advance, job.set_aside).run
    return Devices(loaded.devices, order, job.advance, job.set_aside, held).run


def _icc(old: Plan | None, options: EmbedOptions) -> str:
    """How color profiles are treated: as in an existing data set unless stated."""
    return options.icc or (icc_of(old.provenance) if old else "convert")


def _batch_size(asked: int | str | None, old: Plan | None, extractor: FeatureExtractor) -> int:
    """The batch size to use: an existing data set keeps its own unless a number is given."""
    if isinstance(asked, int):
        return asked
    if old is not None and isinstance(size := old.provenance.get("batch_size"), int):
        return size
    return _BATCH if asked is None else best_batch_size(extractor)


def _begun(sources: Iterator[Source]) -> Iterator[Source]:
    """The same stream, with its first item already found, so that errors about inputs come before anything is made."""
    first = next(sources, None)
    return iter(()) if first is None else chain([first], sources)


@dataclass(frozen=True)
class _Claim:
    """A data set that only this run may write. folder: in out, for the run's records.

    held: descriptors that hold the lock: as long as any process has one open, another run is refused. check: raises
    RuntimeError once another run has taken over.
    """

    out: Place
    folder: Place
    held: list[int]
    check: Callable[[], None]

    def earlier(self, options: EmbedOptions) -> Plan | None:
        """The plan to continue; None if there is none, or it is to be overwritten."""
        return None if options.overwrite else open_plan(self.folder)


def _foreign(out: Place) -> Place | None:
    """A file in a folder without a data set that a data set would replace or seem to hold; None if there is none."""
    listed = (out / name for name in LISTS)
    return next(chain(out.glob("part-*.parquet"), (each for each in listed if each.exists())), None)


@contextmanager
def _claimed(out: Place, retry_for: float) -> Iterator[_Claim]:
    """Lock a data set for this process; in a store, by a lease. Store outages are then retried for retry_for."""
    folder = out / RUN_FOLDER
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; choose a folder for the embeddings")
    if out.is_dir() and not folder.exists() and (foreign := _foreign(out)):
        raise ValueError(f"{foreign} was not written by bigr-repr; choose another output folder")
    if isinstance(folder, ObjectPath):
        with leased(folder / "lease", str(out)) as lease, retrying_for(retry_for):
            yield _Claim(out, folder, [], lease.check)
        return
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{out}: another process is embedding into this folder; wait for it"
    with locked(folder / "lock", busy) as descriptor, retrying_for(retry_for):
        yield _Claim(out, folder, [] if descriptor is None else [descriptor], lambda: None)
