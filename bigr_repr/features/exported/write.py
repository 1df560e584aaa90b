"""Exports models as one graph, with what others need to feed it. Knows nothing of running it."""

# B batch, S side in pixels

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.checkpoints.pretrained import Pretrained, load
from bigr_repr.features.condition import as_plain
from bigr_repr.features.exported.manifest import (
    GRAPH_FILES,
    MANIFEST_FILE,
    PRECISIONS,
    TARGETS,
    Manifest,
    exported_files,
)
from bigr_repr.features.exported.model import ExportedModel, load_exported
from bigr_repr.features.extractor import FeatureExtractor, Layer, blocks_of, layer_name
from bigr_repr.images.inputs import Pictures, read_all, singles
from bigr_repr.system.devices import as_dtype
from bigr_repr.system.files import is_full, naming, sha256_of, sync_folder, sync_tree

if TYPE_CHECKING:
    from bigr_repr.features.exported.targets import Calibration

__all__ = ["export_model", "replace_folder"]

OnProgress = Callable[[str, int, int], None]

_NEEDED = {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}
_INSTALL = "exporting to {} needs {}; install it with: pip install 'bigr-repr[export]'"
_CALIBRATED = 128  # images: ranges converge with fewer
_REFUSED = {
    ("onnx", "bfloat16"): "ONNX Runtime does not support bfloat16 on CPUs; choose openvino or torch, or int8",
    ("torch", "int8"): "int8 is not supported with AOTInductor; choose onnx or openvino, or bfloat16",
}


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """OpenVINO's converter and NNCF report what they do to their makers, but not from where this variable is set."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


@_unreported()
def export_model(
    out: PathLike,
    *,
    model: PathLike | Pretrained = DEFAULT_MODEL,
    layer: Layer | Iterable[Layer] = 12,
    pool: str = "avg",
    to: str = "onnx",
    precision: str = "float32",
    tokenizer: str | None = None,
    calibrate: Pictures | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> ExportedModel:
    """Write a model's feature network for another runtime, and open what was written.

    The graph takes images, float32 (B, 3, S, S) in [0, 1], with any B, and returns the features of each layer, float32,
    and the packed codes, uint8 (B, bytes). export.json next to it describes preprocessing, names and shapes.

    out: a new folder. layer, pool: as in FeatureExtractor; a list gives one output per layer. to: "onnx" (ONNX Runtime
    and others), "openvino", or "torch" (compiled ahead of time by AOTInductor, for this kind of machine only).
    precision: "float32", "bfloat16" or "int8", which NNCF calibrates on 128 of the images in calibrate, for int8 only.
    tokenizer: its number type: "float32" keeps the bits, the same as `precision` is faster; None: float32 if the
    runtime supports both. `on_progress(what, done, total)` reports the stages.

    Raises ValueError for an unknown layer, pool, runtime or precision, or rounded weights, FileExistsError unless `out`
    is new, empty or, with overwrite, holds only an exported network, ImportError without the runtime's packages.
    """
    manifest_of = _plan(to, precision, tokenizer, calibrate is not None)
    target = Path(out).expanduser().resolve()
    _check_place(target, overwrite)
    pre = _whole(model)
    manifest = manifest_of(config=pre.config, weights=pre.fingerprint, layers=_layers(layer, pre), pool=pool)
    extractor = FeatureExtractor(pre, manifest.layers, pool, dtype=as_dtype("float32"), device="cpu")
    ranges = None if calibrate is None else _calibration(calibrate, pre.config.image_size)
    with _new_folder(target, overwrite) as staging:
        manifest = replace(manifest, calibration=0 if ranges is None else len(ranges))
        _write_graph(extractor, manifest, staging, ranges, on_progress)
        files = {file.name: sha256_of(file) for file in sorted(staging.iterdir())}
        (staging / MANIFEST_FILE).write_text(replace(manifest, files=files).text(), encoding="utf-8")
    return load_exported(target)


def _plan(to: str, precision: str, tokenizer: str | None, calibrated: bool) -> Callable[..., Manifest]:
    """A manifest for the request, except for the model. Raises ValueError for unsupported combinations."""
    together = (to, precision) == ("openvino", "bfloat16")  # a single setting for everything that is not 8-bit
    own = tokenizer or (precision if together else "float32")
    for name, value, known in (
        ("to", to, TARGETS),
        ("precision", precision, PRECISIONS),
        ("tokenizer", own, PRECISIONS),
    ):
        if value not in known:
            raise ValueError(f"{name}={str(value)!r} is unknown; choose one of {', '.join(known)}")
    if (to, precision) in _REFUSED:
        raise ValueError(f"precision={str(precision)!r} to {to}: {_REFUSED[to, precision]}")
    if own not in ("float32", precision) or (together and own != precision):
        raise ValueError(
            f"tokenizer={str(own)!r} does not work with precision={str(precision)!r} to {to}; leave it out"
        )
    if precision == "int8" and not calibrated:
        raise ValueError("precision='int8' needs calibrate: a hundred images like those you will embed")
    if precision != "int8" and calibrated:
        raise ValueError(
            f"precision={str(precision)!r} takes no calibrate: leave the images out, or choose precision='int8'"
        )
    packages = (*_NEEDED[to], *(("nncf",) if precision == "int8" else ()))
    for package in packages:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise ImportError(_INSTALL.format(to, package)) from error
    versions = {package: metadata.version(package) for package in ("bigr-repr", "torch", "numpy", *packages)}
    return partial(Manifest, to=to, precision=precision, tokenizer=own, versions=versions)


def _whole(model: PathLike | Pretrained) -> Pretrained:
    """The model itself. Raises ValueError for an exported network, otherwise as `load`."""
    if isinstance(model, ExportedModel):
        raise ValueError(f"model is the exported network in {model.folder}; give the model that it was exported from")
    return model if isinstance(model, Pretrained) else load(model)


def _calibration(images: Pictures, side: int) -> Calibration:
    """Evenly spaced images, float32 (n, 3, S, S) in [0, 1]."""
    listed = list(singles(images))
    if not listed:
        raise ValueError("calibrate has no images; give some like those you will embed")
    places = np.unique(np.linspace(0, len(listed) - 1, min(_CALIBRATED, len(listed))).astype(int))
    with contextlib.closing(read_all([listed[place] for place in places], side, workers=None, ahead=16)) as pixels:
        return np.ascontiguousarray(np.stack(list(pixels)).transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def _layers(given: Layer | Iterable[Layer], pre: Pretrained) -> tuple[Layer, ...]:
    plain = as_plain(given)
    listed = [plain] if isinstance(plain, int | str) else list(plain)
    if not listed:
        raise ValueError("layer=[] names no layer; an exported network needs at least one")
    return tuple(dict.fromkeys(layer_name(blocks_of(each, pre.config)) for each in listed))


def _check_place(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    own = exported_files(target)
    if not own:
        raise FileExistsError(f"{target} exists and is not an exported network; choose another folder, or remove it")
    if not overwrite:
        raise FileExistsError(f"{target} holds an exported network; choose another folder, or overwrite it")
    others = sorted(each.name for each in target.iterdir() if each.name not in own or each.is_dir())
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise FileExistsError(
            f"{target / others[0]}{more} would be lost: the exported network in its folder does not list it; move it "
            "away, or choose another folder"
        )


@contextlib.contextmanager
def _new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which replaces `target` when complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    with naming(target, staging):
        staging.mkdir()
        try:
            yield staging
            sync_tree(staging)
            _check_place(target, overwrite)  # again: something may have been put there since
            replace_folder(target, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def replace_folder(target: Path, new: Path) -> None:
    """Give a folder the name of another, which keeps its files until then, whatever happens."""
    aside, known = new.with_suffix(".old"), target.exists()
    if known:
        target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        if known:
            aside.rename(target)
        raise
    sync_folder(target.parent)
    if known:
        shutil.rmtree(aside)


def _write_graph(
    extractor: FeatureExtractor,
    manifest: Manifest,
    folder: Path,
    calibration: Calibration | None,
    on_progress: OnProgress,
) -> None:
    import torch

    from bigr_repr.features.exported.graph import FeatureGraph, trace
    from bigr_repr.features.exported.targets import WRITERS

    assert extractor.transformer is not None
    if manifest.to == "torch" and manifest.precision == "bfloat16":
        extractor.transformer.to(torch.bfloat16)
        extractor.tokenizer.to(torch.bfloat16 if manifest.tokenizer == "bfloat16" else torch.float32)
    try:
        with _quiet():
            on_progress("tracing the network", 0, 1)
            program = trace(FeatureGraph(extractor))
            on_progress("tracing the network", 1, 1)
            written = f"making the {manifest.to} network"
            on_progress(written, 0, 1)
            WRITERS[manifest.to](program, manifest, folder / GRAPH_FILES[manifest.to], calibration)
            on_progress(written, 1, 1)
    except (ImportError, OSError):
        raise
    except Exception as error:  # each exporter raises its own, pages long
        if is_full(error, folder):
            raise
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RuntimeError(
            f"to={manifest.to!r}, precision={manifest.precision!r}: {manifest.config.name} cannot be exported ({said})"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' output and warnings, which do not help users."""
    import io
    import warnings

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as said:
        warnings.simplefilter("ignore")
        yield
    logging.getLogger(__name__).debug("%s", said.getvalue())
