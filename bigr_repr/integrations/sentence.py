"""The model as the first module of a SentenceTransformer, for images. Knows nothing of networks."""

# B batch, D width

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from bigr_repr._typing import PathLike
from bigr_repr.checkpoints.catalog import CONFIG_FILE, DEFAULT_MODEL, GENERATOR_FILE, TOKENIZER_FILE
from bigr_repr.checkpoints.pretrained import Pretrained, save
from bigr_repr.features.condition import as_plain
from bigr_repr.features.exported.manifest import MANIFEST_FILE, exported_files
from bigr_repr.features.exported.model import ExportedModel, open_model
from bigr_repr.features.exported.write import replace_folder
from bigr_repr.features.extractor import FeatureExtractor, Layer
from bigr_repr.images.inputs import read, stack
from bigr_repr.system.files import naming, replacing, sync_tree
from bigr_repr.system.records import reading_record

__all__ = ["BigrModule"]

_SETTINGS = "bigr_module.json"
_MODEL = "model"


class BigrModule(nn.Module):
    """For `SentenceTransformer(modules=[BigrModule()])`, whose `encode` then takes paths and PIL images.

    Its `save` writes the model too; `SentenceTransformer(folder, trust_remote_code=True)` loads it again, where the
    second argument allows modules that are not its own.

    model: a name or folder, a model, or an exported network. layer, pool: as in FeatureExtractor. Raises likewise.
    """

    def __init__(
        self, model: PathLike | Pretrained | ExportedModel = DEFAULT_MODEL, layer: Layer = 12, pool: str = "avg"
    ) -> None:
        super().__init__()
        if pool == "none":
            raise ValueError("pool='none' gives one vector per token, but here an image has one: choose another")
        self._saved, self.layer = open_model(model), as_plain(layer)
        self.extractor = FeatureExtractor(self._saved, (self.layer,), pool)

    def preprocess(self, inputs: list[Any], **_: Any) -> dict[str, Tensor]:
        """Paths, PIL images or arrays -> {"pixel_values": uint8 (B, 3, S, S)}."""
        side = self.extractor.config.image_size
        return {"pixel_values": stack([read(each, side, number) for number, each in enumerate(inputs)])}

    tokenize = preprocess

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Adds "sentence_embedding", float32 (B, D)."""
        features["sentence_embedding"] = self.extractor(features["pixel_values"]).layers[self.layer]
        return features

    def get_sentence_embedding_dimension(self) -> int:
        """D."""
        return self.extractor.vector_shape(self.layer)[0]

    get_embedding_dimension = get_sentence_embedding_dimension

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the model and the settings to a folder; for SentenceTransformer.save.

        A model of an earlier save is replaced. Raises FileExistsError if anything else would be lost, OSError.
        """
        folder = Path(output_path)
        target = (folder / _MODEL).resolve()
        if isinstance(self._saved, Pretrained) or self._saved.folder.resolve() != target:
            self._save_model(target)
        with replacing(folder / _SETTINGS) as file:
            file.write(json.dumps({"layer": self.layer, "pool": self.extractor.pool}).encode())

    def _save_model(self, target: Path) -> None:
        """Write the model to a new folder, which then replaces `target` as a whole: kinds of models do not mix."""
        ours = {CONFIG_FILE, TOKENIZER_FILE, GENERATOR_FILE, *exported_files(target)}
        there = sorted(each.name for each in target.iterdir()) if target.exists() else []
        if others := [name for name in there if name not in ours]:
            raise FileExistsError(f"{target / others[0]} is not of a model that was saved here; move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
        with naming(target, staging):
            try:
                if isinstance(self._saved, Pretrained):
                    save(self._saved, staging)
                else:
                    staging.mkdir()
                    for name in (MANIFEST_FILE, *self._saved.manifest.files):
                        shutil.copy2(self._saved.folder / name, staging / name)
                sync_tree(staging)
                replace_folder(target, staging)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **_: Any,
    ) -> Self:
        """The module that `save` wrote, from a folder or the hub; for SentenceTransformer.

        Raises FileNotFoundError if it is not there, ValueError if it is damaged.
        """
        from sentence_transformers.util import load_dir_path

        found = load_dir_path(
            model_name_or_path, subfolder, token=token, cache_folder=cache_folder, revision=revision,
            local_files_only=local_files_only,
        )  # fmt: skip
        if found is None:
            raise FileNotFoundError(f"{model_name_or_path}/{subfolder}: no such folder or repository; check the name")
        file = Path(found) / _SETTINGS
        with reading_record(file, remedy="save the model again") as settings:
            layer, pool = settings["layer"], settings["pool"]
        return cls(Path(found) / _MODEL, layer, pool)

    @property
    def modalities(self) -> list[str]:
        """The supported inputs."""
        return ["image"]
