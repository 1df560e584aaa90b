"""timm backbones as representations: their own preprocessing, weights from a file or the user's cache. Knows no data.

The name of a timm model may end in `?random`, for untrained weights, or in `?checkpoint=FILE`: a state dict
(.safetensors, .pth, .pt) whose keys are matched by name, or else by order and shape; `package:NAME` selects the only
such file in an installed Python package.
"""

# B batch, h w grid, D width

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from bigr_repr.checkpoints.weights import fingerprint
from bigr_repr.evaluate.representations.backbone import Backbone, States, final_norm
from bigr_repr.evaluate.representations.weight_files import CHECKPOINT, RANDOM, checkpoint_file, fill

_FILES: Final = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class TimmBackbone(Backbone):
    """A backbone of timm. name: as in the module. Nothing is downloaded: weights come from a file, or the cache of the
    Hugging Face hub or of torch.
    """

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        model, given = _open(name, seed)
        config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
        super().__init__(model, create_transform(**config, is_training=False), device)
        self.name = f"timm:{name}"
        self.fingerprint = fingerprint({k: v for k, v in model.state_dict().items() if v.is_floating_point()})
        self.layers = len(model.feature_info) if hasattr(model, "forward_intermediates") else 0
        self.has_class_token = bool(getattr(model, "num_prefix_tokens", 0))
        self._with_pools()
        self.norm = final_norm(model, [each["num_chs"] for each in model.feature_info]) if self.layers else None
        preprocessing = {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
        self.record = {"model": self.name, "model_sha256": self.fingerprint, "image_size": config["input_size"][-1]}
        self.record |= {"preprocessing": json.loads(json.dumps(preprocessing)), "blocks": self.layers, **given}
        self.record["crop"] = config["crop_pct"]
        if RANDOM not in name:
            self.training = "ImageNet" if CHECKPOINT in name else str(model.pretrained_cfg.get("tag", ""))
            self.training = self.training.replace("in1k", "ImageNet").replace("in21k", "ImageNet")
            self.labels_seen = "ImageNet" in self.training

    def read(self, x: Tensor, layers: list[int], *, pooled: bool) -> tuple[dict[int, States], Tensor | None]:
        network: Any = self.network
        if not layers:
            return {}, network(x)
        options: dict[str, Any] = {"indices": layers, "output_fmt": "NCHW"}
        options |= {"intermediates_only": not pooled, "stop_early": not pooled}
        if self.has_class_token:
            options["return_prefix_tokens"] = True
        found = network.forward_intermediates(x, **options)
        last, states = found if pooled else (None, found)
        pairs = (States(state[0], state[1][:, 0]) if self.has_class_token else States(state, None) for state in states)
        return dict(zip(layers, pairs, strict=True)), None if last is None else network.forward_head(last)


# ---- weights


def _open(name: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """The network without classifier, and the record of its weights."""
    import timm

    plain, mark, file = name.partition(CHECKPOINT)
    plain, trained = plain.removesuffix(RANDOM), not plain.endswith(RANDOM)
    if not timm.is_model(plain.split(".")[0]):
        raise ValueError(f"timm has no model {plain!r}; see timm.list_models()")
    if mark:
        model = timm.create_model(plain, pretrained=False, num_classes=0)
        return model, {"checkpoint": fill(model, checkpoint_file(file))}
    if trained:
        overlay = _cached_weights(plain)
        return timm.create_model(plain, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay), {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(plain, pretrained=False, num_classes=0), {"weights_seed": seed}


def _cached_weights(name: str) -> dict[str, Any]:
    """Arguments that point timm to weights in the user's caches. Raises FileNotFoundError with the remedy."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise FileNotFoundError(f"timm has no weights for {name!r}; use timm:{name}?random, or a name with a tag")
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
        f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\"; or use timm:{name}?random"
    )
