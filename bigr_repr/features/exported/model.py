"""Runs an exported network: pictures in, features and packed codes out. Knows nothing of how it was written."""

# B batch, S side in pixels, N tokens, D width

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.pretrained import Pretrained, load
from bigr_repr.config import ModelConfig
from bigr_repr.features.exported.manifest import GRAPH_FILES, Manifest, is_exported, read_manifest

__all__ = ["ExportedModel", "load_exported", "open_model"]

Session = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
_SHOWN = 200  # characters of a runtime's error
_LIBRARIES = {
    "onnx": ("onnxruntime", "ONNX Runtime"),
    "openvino": ("openvino", "OpenVINO"),
    "torch": ("torch", "PyTorch"),
}


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported network, from `load_exported`; FeatureExtractor, embed_images and serve take it as a model.

    Its runtime uses as many threads as torch. manifest: its description. folder: the folder with its files.
    """

    manifest: Manifest
    folder: Path

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model that it was exported from."""
        return self.manifest.config

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that it was exported from."""
        return self.manifest.weights

    @property
    def precision(self) -> str:
        """The precision as recorded in provenance: "float32", or with the runtime, such as "openvino int8"."""
        return self.manifest.label

    def __call__(self, images: NDArray[np.float32]) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
        """images: float32 (B, 3, S, S) in [0, 1], RGB -> the features of each layer, float32 (B, D) or (B, N, D), and
        the codes, uint8 (B, bytes), packed as in bigr_repr.codes. NaN: the tokenizer's output was not finite.

        Raises ValueError for a wrong shape or dtype.
        """
        side = self.config.image_size
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != (3, side, side):
            found = f"{images.dtype} {images.shape}"
            raise ValueError(f"images is {found}; {self.config.name} reads float32 (B, 3, {side}, {side}) in [0, 1]")
        *features, code = self._session(np.ascontiguousarray(images))
        return features, code

    @cached_property
    def _session(self) -> Session:
        kind = self.manifest.to
        module, name = _LIBRARIES[kind]
        opened, path = {"onnx": _onnx, "openvino": _openvino, "torch": _torch}[kind], self.folder / GRAPH_FILES[kind]
        try:
            return opened(path, self.manifest)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise ImportError(f"{self.folder} needs {name}; install it with: pip install {module}") from error
        except (ImportError, OSError):
            raise
        except Exception as error:  # each runtime raises its own, over several lines
            said = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
            raise ValueError(
                f"{path} cannot be opened by {name} on this machine ({said}); export again here"
            ) from error


def load_exported(folder: PathLike) -> ExportedModel:
    """Open a network written by `export_model`, verifying its checksums.

    Raises FileNotFoundError if it or one of its files is missing, ValueError if it is damaged or its runtime cannot
    open it, ImportError without its runtime.
    """
    if not str(folder):
        raise ValueError("folder='' is empty; give the folder of an exported network")
    place = Path(folder).expanduser()
    model = ExportedModel(read_manifest(place), place)
    _ = model._session
    return model


def open_model(model: PathLike | Pretrained | ExportedModel) -> Pretrained | ExportedModel:
    """Open a model: as given, by a name for load(), or from the folder of an exported network. Raises as these do."""
    if isinstance(model, Pretrained | ExportedModel):
        return model
    return load_exported(model) if is_exported(model) else load(model)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _onnx(path: Path, manifest: Manifest) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads yield the processor
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    there = [each for each in providers if each in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(str(path), options, providers=there)
    names = list(manifest.outputs)
    return lambda images: session.run(names, {"images": images})


def _openvino(path: Path, manifest: Manifest) -> Session:
    import openvino

    wanted = "bf16" if "bfloat16" in (manifest.precision, manifest.tokenizer) else "f32"
    settings = {"INFERENCE_NUM_THREADS": _threads(), "INFERENCE_PRECISION_HINT": wanted}
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        found = compiled({"images": images})
        return [found[name] for name in manifest.outputs]

    return run


def _torch(path: Path, manifest: Manifest) -> Session:
    import torch

    compiled = torch._inductor.aoti_load_package(str(path))
    return lambda images: [each.numpy() for each in compiled(torch.from_numpy(images))]
