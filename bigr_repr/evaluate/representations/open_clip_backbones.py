"""Image towers of open_clip as representations: weights from a file or the user's cache. Knows no data.

`ARCHITECTURE/TAG` as in open_clip.list_pretrained(), with weights in the cache; `ARCHITECTURE?checkpoint=FILE`,
or `ARCHITECTURE?random` for untrained ones. "pooled" is the embedding that is compared with texts, before
normalization.
"""

# B batch, h w grid, D width

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from bigr_repr.checkpoints.weights import fingerprint
from bigr_repr.evaluate.representations.backbone import Backbone, States, final_norm
from bigr_repr.evaluate.representations.weight_files import CHECKPOINT, RANDOM, missing_package

_FILES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CACHE: Final = "~/.cache/clip"  # open_clip's cache for weights that are not from a hub


class OpenClipBackbone(Backbone):
    """States after each block of the image tower."""

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        model, transform, given = _open(name, seed)
        super().__init__(model, transform, device)
        self.name = f"open_clip:{name}"
        self.fingerprint = fingerprint({k: v for k, v in model.visual.state_dict().items() if v.is_floating_point()})
        pixels = transform(Image.new("RGB", (64, 64)))
        with torch.no_grad():
            found = self._forward(pixels[None].to(device), None)
        self.layers = len(found["image_intermediates"])
        self.has_class_token = bool(found.get("image_intermediates_prefix"))
        self._with_pools()
        tower, widths = model.visual, [each.shape[1] for each in found["image_intermediates"]]
        self.norm = final_norm(getattr(tower, "trunk", tower), widths)
        self.record = {"model": self.name, "model_sha256": self.fingerprint, "image_size": pixels.shape[-1]}
        self.record |= {"preprocessing": str(transform), "blocks": self.layers, **given}

    def read(self, x: Tensor, layers: list[int], *, pooled: bool) -> tuple[dict[int, States], Tensor | None]:
        network: Any = self.network
        states: dict[int, States] = {}
        if layers:
            found = self._forward(x, layers)
            tokens = found.get("image_intermediates_prefix") or [None] * len(layers)
            for layer, positions, token in zip(layers, found["image_intermediates"], tokens, strict=True):
                states[layer] = States(positions, None if token is None else token[:, 0])
        return states, network.encode_image(x) if pooled else None

    def _forward(self, x: Tensor, layers: list[int] | None) -> dict[str, Any]:
        network: Any = self.network
        found: dict[str, Any] = network.forward_intermediates(
            image=x, image_indices=layers, stop_early=layers is not None, intermediates_only=True, normalize=False,
            image_output_extra_tokens=True,
        )  # fmt: skip
        return found


def _open(name: str, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """The network, its transform, and the record of its weights."""
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except ImportError as error:
        raise missing_package("open_clip_torch", f"open_clip:{name}") from error
    plain, mark, file = name.partition(CHECKPOINT)
    architecture, _, tag = plain.removesuffix(RANDOM).partition("/")
    if architecture not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {architecture!r}; see open_clip.list_models()")
    given: dict[str, Any] = {}
    if mark:
        if not Path(file).is_file():
            raise FileNotFoundError(f"checkpoint={file} is not a file; pass weights written by open_clip")
        options: dict[str, Any] = {"pretrained": file}
        given["checkpoint"] = Path(file).name
    elif plain.endswith(RANDOM):
        options = {"load_weights": False}
        given["weights_seed"] = seed
    else:
        options = _cached_weights(open_clip, architecture, tag)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model, _, transform = open_clip.create_model_and_transforms(architecture, **options)
        except RuntimeError as error:
            raise ValueError(f"open_clip:{name}: {' '.join(str(error).split())[:200]}") from error
    return model, transform, given


def _cached_weights(open_clip: Any, architecture: str, tag: str) -> dict[str, Any]:
    """Arguments that make open_clip use weights from the user's caches.  Raises FileNotFoundError with the remedy."""
    from huggingface_hub import try_to_load_from_cache

    known = [each for name, each in open_clip.list_pretrained() if name == architecture]
    if tag not in known:
        listed = ", ".join(known) or "none"
        raise ValueError(f"open_clip has no weights {tag!r} for {architecture}; available: {listed}; or use ?random")
    config = open_clip.get_pretrained_cfg(architecture, tag)
    hub, url = config.get("hf_hub", "").rstrip("/"), config.get("url", "")
    places = [try_to_load_from_cache(hub, file) for file in _FILES] if hub else []
    places += [str(Path(_CACHE).expanduser() / url.rsplit("/", 1)[-1])] if url else []
    file = next((place for place in places if isinstance(place, str) and Path(place).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"the weights of open_clip:{architecture}/{tag} are not in this machine's cache; fetch them once, with a "
            f"connection: python -c \"import open_clip; open_clip.create_model('{architecture}', '{tag}')\""
        )
    kept = {"image_mean": "mean", "image_std": "std", "image_interpolation": "interpolation"}
    options = {ours: config[theirs] for ours, theirs in kept.items() if config.get(theirs)}
    return {"pretrained": file, "force_quick_gelu": bool(config.get("quick_gelu")), **options}
