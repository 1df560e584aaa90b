"""Image models of transformers as representations, from a folder or the user's cache. Knows no data.

`NAME` is a model on the Hugging Face hub, which must be in the cache, or a folder written by save_pretrained;
`?random` after it uses only its configuration. Of a model for images and text, only the image part is used.
"""

# B batch, N tokens, D width

from __future__ import annotations

import importlib
import json
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bigr_repr.checkpoints.text_encoders import quiet_transformers
from bigr_repr.checkpoints.weights import fingerprint
from bigr_repr.evaluate.representations.backbone import Backbone, States, final_norm, states_of
from bigr_repr.evaluate.representations.weight_files import RANDOM, missing_package


class TransformersBackbone(Backbone):
    """States after each block, before the final norm; "pooled" is the model's own pooled output if its weights are
    trained, else the class token after the final norm, else the mean over positions.
    """

    def __init__(self, name: str, device: torch.device, seed: int) -> None:
        model, processor, self._pools_itself, given = _open(name, seed)

        def transform(image: Image.Image) -> Tensor:
            pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
            return pixels

        super().__init__(model, transform, device)
        self.name = f"transformers:{name}"
        self.fingerprint = fingerprint({k: v for k, v in model.state_dict().items() if v.is_floating_point()})
        pixels = transform(Image.new("RGB", (64, 64)))
        with torch.no_grad():
            states = self._forward(pixels[None].to(device)).hidden_states[1:]
        self.layers = len(states)
        self.has_class_token = states_of(states[-1]).token is not None
        self._with_pools()
        self.norm = final_norm(model, [states_of(each).positions.shape[1] for each in states])
        self.record = {"model": self.name, "model_sha256": self.fingerprint, "image_size": pixels.shape[-1]}
        preprocessing = json.loads(processor.to_json_string())
        self.record |= {"preprocessing": preprocessing, "blocks": self.layers, **given}

    def read(self, x: Tensor, layers: list[int], *, pooled: bool) -> tuple[dict[int, States], Tensor | None]:
        found = self._forward(x)
        states = {layer: states_of(found.hidden_states[1 + layer]) for layer in layers}
        return states, self._pooled(found) if pooled else None

    def _forward(self, x: Tensor) -> Any:
        return self.network(pixel_values=x, output_hidden_states=True)

    def _pooled(self, found: Any) -> Tensor:
        own: Tensor | None = getattr(found, "pooler_output", None)
        if self._pools_itself and own is not None:
            return own.flatten(1)
        last = states_of(found.last_hidden_state)
        return last.positions.mean(dim=(2, 3)) if last.token is None else last.token


def _open(name: str, seed: int) -> tuple[Any, Any, bool, dict[str, Any]]:
    """The image model, its processor, whether its own pooling is trained, and the record of its weights."""
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise missing_package("transformers", f"transformers:{name}") from error
    plain, given = name.removesuffix(RANDOM), {}
    with quiet_transformers():  # the relevant part of their reports is checked below
        try:
            processor = library.AutoImageProcessor.from_pretrained(plain, local_files_only=True)
            if name.endswith(RANDOM):
                config, given = library.AutoConfig.from_pretrained(plain, local_files_only=True), {"weights_seed": seed}
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    model, missing = library.AutoModel.from_config(config), []
            else:
                model, loading = library.AutoModel.from_pretrained(
                    plain, local_files_only=True, output_loading_info=True
                )
                missing = sorted(loading["missing_keys"])
        except OSError as error:
            raise FileNotFoundError(
                f"transformers:{plain} is neither a folder of a model with an image processor nor in this machine's "
                f"cache; fetch it once, with a connection: hf download {plain}"
            ) from error
        except ValueError as error:
            raise ValueError(f"transformers:{plain} cannot be opened: {' '.join(str(error).split())[:200]}") from error
    part = getattr(model, "vision_model", model)
    lost = [key for key in missing if "pooler" not in key]
    if lost:
        raise ValueError(f"transformers:{plain}: its weights lack {len(lost)} tensors of the model, such as {lost[0]}")
    return part, processor, not missing, given
