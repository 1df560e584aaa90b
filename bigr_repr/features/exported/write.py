"""Models to exported networks: one graph, and what others need to feed it. Knows nothing of running it."""

# B batch, S side in pixels

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import DEFAULT_MODEL
from bigr_repr.checkpoints.pretrained import Pretrained, load
from bigr_repr.features.exported.manifest import MANIFEST_FILE, PRECISIONS, TARGETS, Manifest, is_exported
from bigr_repr.features.exported.model import GRAPH_FILES, ExportedModel, load_exported
from bigr_repr.features.extractor import FeatureExtractor, Layer, blocks_of, layer_name
from bigr_repr.system.files import sha256_of, sync_tree

__all__ = ["export_model"]

_NEEDED = {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}
_INSTALL = "exporting to {} needs {}; install it with: pip install 'bigr-repr[export]'"
_OPSET = 20


def export_model(
    out: PathLike,
    *,
    model: PathLike | Pretrained = DEFAULT_MODEL,
    layer: Layer | Iterable[Layer] = 12,
    pool: str = "avg",
    to: str = "onnx",
    precision: str = "float32",
    overwrite: bool = False,
) -> ExportedModel:
    """Write a model's feature network for another runtime, and open what was written.

    The graph takes images, float32 (B, 3, S, S) in [0, 1], B of any size, and gives the features of each layer,
    float32, and the packed code, uint8 (B, bytes). export.json beside it says all that is needed to use it elsewhere:
    preprocessing, names, shapes, the model's fingerprint.

    out: a new folder. layer, pool: as of FeatureExtractor; a list gives one result per layer. to: "onnx" (ONNX Runtime
    and others), "openvino", or "torch" (compiled ahead of time by AOTInductor, for this kind of machine only).
    precision: what the network computes in, "float32".

    Raises ValueError for a layer, pool, runtime or precision that is not there, FileExistsError unless `out` is new,
    empty or, with overwrite, another exported network, ImportError without the runtime's packages.
    """
    _check(to, precision)
    target = Path(out).expanduser().resolve()
    _check_place(target, overwrite)
    pre = model if isinstance(model, Pretrained) else load(model)
    manifest = Manifest(
        config=pre.config, weights=pre.fingerprint, layers=_layers(layer, pre), pool=pool, to=to, precision=precision,
        versions=_versions(to),
    )  # fmt: skip
    extractor = FeatureExtractor(pre, manifest.layers, pool, device="cpu")
    with _new_folder(target) as staging:
        _write_graph(extractor, manifest, staging)
        files = {file.name: sha256_of(file) for file in sorted(staging.iterdir())}
        (staging / MANIFEST_FILE).write_text(replace(manifest, files=files).text(), encoding="utf-8")
    return load_exported(target)


def _layers(given: Layer | Iterable[Layer], pre: Pretrained) -> tuple[Layer, ...]:
    listed = [given] if isinstance(given, int | str) else list(given)
    if not listed:
        raise ValueError("layer=[] names no layer; an exported network gives features of one at least")
    return tuple(dict.fromkeys(layer_name(blocks_of(each, pre.config)) for each in listed))


def _check(to: str, precision: str) -> None:
    if to not in TARGETS:
        raise ValueError(f"to={to!r} is unknown; choose one of {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    for package in _NEEDED[to]:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise ImportError(_INSTALL.format(to, package)) from error


def _check_place(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not is_exported(target):
        raise FileExistsError(f"{target} exists and is no exported network; name another place, or remove it")
    if not overwrite:
        raise FileExistsError(f"{target} holds an exported network; name another place, or overwrite it")


def _versions(to: str) -> dict[str, str]:
    packages = ("bigr-repr", "torch", "numpy", *_NEEDED[to])
    return {package: metadata.version(package) for package in packages}


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which appears as `target` when it is complete; what stood there is removed then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_graph(extractor: FeatureExtractor, manifest: Manifest, folder: Path) -> None:
    from bigr_repr.features.exported.graph import FeatureGraph, trace

    with _quiet():
        program = trace(FeatureGraph(extractor))
        _write_onnx(program, manifest, folder / GRAPH_FILES["onnx"])


def _write_onnx(program: Any, manifest: Manifest, file: Path) -> None:
    import torch

    written = torch.onnx.export(
        program, input_names=["images"], output_names=list(manifest.outputs), opset_version=_OPSET, dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert written is not None
    written.model.metadata_props["bigr_repr"] = manifest.text()
    written.save(file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own words on stdout and in warnings: they are about graphs, not about what to do."""
    import io
    import warnings

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as said:
        warnings.simplefilter("ignore")
        yield
    logging.getLogger(__name__).debug("%s", said.getvalue())
