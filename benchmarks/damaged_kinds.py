"""The kinds of files that damaged_files.py damages: how each is written, and what a program reads from it.

Knows nothing about damage.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


class Kind(NamedTuple):
    """Files of a kind. make(folder) writes them; read(folder) returns a digest of what a program reads from them."""

    make: Callable[[Path], None]
    read: Callable[[Path], str]


class Shared(NamedTuple):
    """The inputs that the kinds are made from."""

    model: Any
    photos: Path
    rows: Path


def digest(*parts: Any) -> str:
    """A digest of arrays, strings and JSON values."""
    made = hashlib.sha256()
    for part in parts:
        made.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return made.hexdigest()


def weights(model: Any) -> str:
    """A digest of a model's weights and configuration."""
    return digest(model.fingerprint, json.dumps(model.config.to_dict(), sort_keys=True))


def embeddings(shared: Shared) -> Kind:
    from bigr_repr.embed import read_embeddings

    def make(folder: Path) -> None:
        for part in shared.rows.glob("part-*"):
            shutil.copy(part, folder)

    def read(folder: Path) -> str:
        found = read_embeddings(folder)
        return digest(found.paths, found.vectors, found.codes, found.labels, found.sha256)

    return Kind(make, read)


def run_notes(shared: Shared) -> Kind:
    """A run's notes. Damage to them may cost repeated work, but rows and failures must be the same afterwards."""
    from bigr_repr.embed import embed_images, read_embeddings

    def make(folder: Path) -> None:
        shutil.copytree(shared.rows, folder, dirs_exist_ok=True)

    def read(folder: Path) -> str:
        embed_images(shared.photos, folder, model=shared.model, **EMBED)
        found = read_embeddings(folder)
        return digest(found.paths, found.vectors, found.codes, (folder / "failures.jsonl").read_text())

    return Kind(make, read)


def codes(shared: Shared, suffix: str) -> Kind:
    from bigr_repr.retrieval.codes.dataset import DataCodes
    from bigr_repr.retrieval.codes.files import export_data_codes, read_codes

    def read(folder: Path) -> str:
        found = read_codes(folder / f"codes{suffix}")
        return digest(found.ids, found.codes, found.n_bits, found.provenance)

    return Kind(lambda folder: void(export_data_codes(DataCodes(shared.rows, "sign"), folder / f"codes{suffix}")), read)


def index(shared: Shared, kind: str) -> Kind:
    from bigr_repr.retrieval import HammingIndex, build_index

    asked = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)

    def read(folder: Path) -> str:
        found = HammingIndex.load(folder, memory_map=False)
        hits = found.find(asked, 10)
        return digest(found.ids.to_pylist(), found.rows.codes, found.rows.vectors, hits.rows, hits.distances)

    return Kind(lambda folder: void(build_index(shared.rows, folder, kind=kind)), read)


def shards(shared: Shared) -> Kind:
    from bigr_repr.retrieval import HammingIndex, build_shards
    from bigr_repr.retrieval.index.shard_list import shard_folders

    def read(folder: Path) -> str:
        found = [HammingIndex.load(shard, memory_map=False) for shard in shard_folders(folder)]
        return digest(*[(each.ids.to_pylist(), each.rows.codes.tobytes()) for each in found])

    return Kind(lambda folder: void(build_shards(shared.rows, folder, 3)), read)


def code_set(shared: Shared) -> Kind:
    from bigr_repr.datasets import open_images
    from bigr_repr.train.code_set import CodeSet, write_codes

    def make(folder: Path) -> None:
        write_codes(open_images(shared.photos / "good"), shared.model.tokenizer, folder, tokenizer_name="tiny")

    def read(folder: Path) -> str:
        found = CodeSet(folder)
        return digest(found.header, found._codes, found.labels)

    return Kind(make, read)


def captions(shared: Shared) -> Kind:
    from bigr_repr.checkpoints.text_encoders import WordEncoder
    from bigr_repr.train.caption_set import CaptionStore, write_captions

    texts = [[f"a red circle left of {number} blue squares"] for number in range(20)]

    def make(folder: Path) -> None:
        write_captions(texts, WordEncoder(), folder, limit=12)

    def read(folder: Path) -> str:
        found = CaptionStore(folder)
        vectors, lengths = found.draw(range(20), [0.0] * 20)
        return digest(found.header, vectors, lengths, found.texts(20))

    return Kind(make, read)


def checkpoint(shared: Shared) -> Kind:
    import torch
    from accelerate import Accelerator

    from bigr_repr.train.ema import ExponentialAverage
    from bigr_repr.train.resume import find_checkpoints, load_checkpoint, read_record, save_checkpoint

    def begun() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        module = torch.nn.Linear(24, 24)
        one = Accelerator(cpu=True)
        one.prepare(module, torch.optim.AdamW(module.parameters()))
        return one, module, ExponentialAverage(module, 0.9)

    def make(folder: Path) -> None:
        one, _, average = begun()
        save_checkpoint(folder, 7, one, average, {"settings": {"steps": 9}}, keep=1)

    def read(folder: Path) -> str:
        one, module, average = begun()
        ((_, place),) = find_checkpoints(folder)
        noted = read_record(place)
        load_checkpoint(place, one, average)
        held = [value.numpy() for state in (module.state_dict(), average.state()) for value in state.values()]
        return digest(noted, *held)

    return Kind(make, read)


def model(shared: Shared) -> Kind:
    from bigr_repr.checkpoints.pretrained import load, save

    return Kind(lambda folder: void(save(shared.model, folder)), lambda folder: weights(load(folder)))


def released(shared: Shared) -> Kind:
    """The authors' files, read as `models import` reads them."""
    from released_files import random_release

    from bigr_repr.checkpoints.pretrained import load_official

    config = shared.model.config
    tokenizer = replace(config.tokenizer, base_channels=32, embed_dim=32, norm_groups=32)  # as in the authors' model

    def read(folder: Path) -> str:
        files = {"tokenizer": folder / "binaryae_ema.th", "generator": folder / "bigr.pt"}
        return weights(load_official(**files, heads=config.generator.heads, verify=True))

    return Kind(lambda folder: void(random_release(folder, tokenizer, config.generator)), read)


def adapter(shared: Shared) -> Kind:
    import torch

    from bigr_repr.checkpoints.adapters import with_classes
    from bigr_repr.checkpoints.pretrained import with_adapter
    from bigr_repr.train.adapt_recipe import AdaptRecipe
    from bigr_repr.train.trained_part import TrainedPart, begun_with_classes

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        config, taken = with_classes(shared.model.config, ("dog", "owl"), "add")
        part = TrainedPart(begun_with_classes(shared.model, config, taken), taken, [0], AdaptRecipe(method="classes"))
        folder.rmdir()
        part.write(folder, config, base="tiny", base_sha256=shared.model.fingerprint)

    return Kind(make, lambda folder: weights(with_adapter(shared.model, folder)))


def void(value: object) -> None:
    """Discard a return value."""


def kinds(shared: Shared) -> dict[str, Kind]:
    """All kinds by name."""
    return {
        "embeddings": embeddings(shared), "a run's notes": run_notes(shared),
        **{f"codes {suffix}": codes(shared, suffix) for suffix in (".parquet", ".npz", ".npy")},
        **{f"index, {kind}": index(shared, kind) for kind in ("flat", "ivf", "hnsw")},
        "index in shards": shards(shared), "code set": code_set(shared), "caption set": captions(shared),
        "training checkpoint": checkpoint(shared), "model": model(shared), "released files": released(shared),
        "adapter": adapter(shared),
    }  # fmt: skip


EMBED: dict[str, Any] = {
    "layers": [2], "codes": True, "sha256": True, "labels_from_folders": True, "unit_size": 16, "batch_size": 16,
    "decode_timeout": None,
}  # fmt: skip


def prepared(work: Path) -> Shared:
    """Create pictures, a model and an embedding data set."""
    from tiny_model import tiny_model, write_pictures

    from bigr_repr.embed import embed_images

    photos, made = work / "photos", tiny_model()
    write_pictures(photos / "good", 48)
    (photos / "bad.png").write_bytes(b"no picture")
    embed_images(photos, work / "rows", model=made, **EMBED)
    return Shared(made, photos, work / "rows")
