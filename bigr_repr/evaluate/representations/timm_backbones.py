"""timm backbones as representations: their own preprocessing, weights from the user's cache. Knows no data sets."""

# B batch, N tokens, h w grid, D width

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr_repr.checkpoints.weights import fingerprint
from bigr_repr.evaluate.representations.base import Representation, View

_RANDOM = "?random"
_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class TimmBackbone(Representation):
    """Pooled features before the classifier ("pooled"), or the mean over the positions after a block.

    name: a model of timm, with `?random` for untrained weights. Nothing is downloaded: weights come from the cache of
    the Hugging Face hub or of torch.
    """

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        import timm
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        name, trained = name.removesuffix(_RANDOM), not name.endswith(_RANDOM)
        if not timm.is_model(name.split(".")[0]):
            raise ValueError(f"timm has no model {name!r}; see timm.list_models()")
        if trained:
            model: Any = timm.create_model(
                name, pretrained=True, num_classes=0, pretrained_cfg_overlay=_cached_weights(name)
            )
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = timm.create_model(name, pretrained=False, num_classes=0)
        self._model = model.eval().to(device)
        self._device = device
        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        self._transform = create_transform(**config, is_training=False)
        self.name = f"timm:{name}" + ("" if trained else _RANDOM)
        self.fingerprint = fingerprint({k: v for k, v in model.state_dict().items() if v.is_floating_point()})
        self.layers = len(self._model.feature_info) if hasattr(model, "forward_intermediates") else 0
        preprocessing = {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
        self.record = {"model": self.name, "model_sha256": self.fingerprint, "image_size": config["input_size"][-1]}
        self.record["preprocessing"] = json.loads(json.dumps(preprocessing))
        if not trained:
            self.record["weights_seed"] = seed

    def views(self, layers: Sequence[int], pool: str, *, codes: bool) -> list[View]:
        if codes:
            raise ValueError(f"{self.name} has no bits; leave codes out")
        if pool != "avg":
            raise ValueError(f"pool={pool!r} is for BiGR models; {self.name} takes the mean")
        return [View(item=f"layer-{layer}", layer=layer) for layer in layers] or [View(item="pooled")]

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        pixels: Tensor = self._transform(image)
        return pixels.numpy()

    @torch.no_grad()
    def compute(self, batch: list[NDArray[Any]], items: Sequence[str]) -> dict[str, NDArray[Any]]:
        x = torch.from_numpy(np.stack(batch)).to(self._device)
        layers = sorted(int(item.removeprefix("layer-")) for item in items if item != "pooled")
        arrays: dict[str, NDArray[Any]] = {}
        if layers:
            early = "pooled" not in items
            options = {"indices": layers, "output_fmt": "NCHW", "intermediates_only": early, "stop_early": early}
            found = self._model.forward_intermediates(x, **options)
            last, states = (None, found) if early else found
            for layer, state in zip(layers, states, strict=True):
                arrays[f"layer-{layer}"] = state.mean(dim=(2, 3)).float().cpu().numpy()
            if last is not None:
                arrays["pooled"] = self._model.forward_head(last).float().cpu().numpy()
        else:
            arrays["pooled"] = self._model(x).float().cpu().numpy()
        for item, values in arrays.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{self.name}: features of {item} are not finite; are the weights damaged?")
        return arrays


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
