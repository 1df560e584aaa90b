"""What representation.py compares: pixels, codes and hidden states of labelled images, each computed once and cached.

Files in the cache are named by what they hold, so another model, source or limit never meets an old file.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bigr_repr as br
from bigr_repr._ahead import map_ahead
from bigr_repr.codes import from_bytes, to_bytes
from bigr_repr.datasets import ImageSet, open_images
from bigr_repr.evaluate.linear_probe import stratified_split
from bigr_repr.images import center_crop

BATCH = 64
PIXELS = 32  # side of the raw-pixel baseline


@dataclass(frozen=True, kw_only=True)
class Split:
    """A labelled image set, or the stratified part of it that `limit` leaves, and how messages and caches call it."""

    name: str
    images: ImageSet
    rows: np.ndarray
    labels: np.ndarray
    source: str

    @classmethod
    def open(cls, name: str, pattern: str, *, train: bool, limit: int | None, seed: int) -> Split:
        """`pattern` is a source of bigr_repr.datasets.open_images, or a file pattern for several."""
        found = glob.glob(pattern)  # noqa: PTH207  (a pattern may be absolute)
        files = [pattern] if pattern in found else sorted(found)
        images = open_images(files or [pattern], train=train)
        if images.labels is None:
            raise SystemExit(f"{name}: {pattern} has no labels; a probe needs them")
        rows = np.arange(len(images))
        if limit is not None and limit < len(images):
            _, rows = stratified_split(images.labels, limit / len(images), np.random.default_rng(seed))
        stamps = [[str(Path(file).absolute()), int(Path(file).stat().st_mtime)] for file in files]
        source = json.dumps([stamps or pattern, train, len(images), limit, seed])
        return cls(name=name, images=images, rows=rows, labels=images.labels[rows], source=source)


class Cache:
    """Arrays by the facts that determine them, as npz files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, facts: Sequence[str], compute: Callable[[], dict[str, np.ndarray]]) -> Any:
        """The opened npz (arrays are read when indexed), computed at first."""
        path = self._folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.npz"
        if not path.exists():
            started = time.perf_counter()
            beside = path.with_suffix(".tmp.npz")
            np.savez(beside, **compute())  # type: ignore[arg-type]
            beside.replace(path)
            print(f"  {facts[0]}: computed in {time.perf_counter() - started:.0f} s", flush=True)
        return np.load(path)


def pixels_and_codes(
    cache: Cache, split: Split, tokenizers: dict[str, br.Pretrained], device: str | None
) -> dict[str, np.ndarray]:
    """{"pixels": uint8 (n, 32, 32, 3), name of tokenizer: packed codes uint8 (n, bytes)}."""
    prints = [f"{name}={pre.fingerprint}" for name, pre in tokenizers.items()]
    facts = [f"codes of {split.name}", split.source, str(PIXELS), *prints]
    return dict(cache.get(facts, lambda: _encode(split, tokenizers, device)))


def _encode(split: Split, tokenizers: dict[str, br.Pretrained], device: str | None) -> dict[str, np.ndarray]:
    side = next(iter(tokenizers.values())).config.image_size
    extractors = {name: br.FeatureExtractor(pre, (), device=device) for name, pre in tokenizers.items()}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("pixels", *extractors)}

    def load(row: int) -> tuple[np.ndarray, np.ndarray]:
        image = split.images.load(int(row))
        return center_crop(image, PIXELS), center_crop(image, side)

    stream = map_ahead(load, split.rows, ahead=4 * BATCH)
    while batch := list(islice(stream, BATCH)):
        kept["pixels"].append(np.stack([small for small, _ in batch]))
        images = torch.from_numpy(np.stack([large for _, large in batch])).permute(0, 3, 1, 2)
        for name, extractor in extractors.items():
            found = extractor(images)
            if not bool(found.finite.all()):
                raise SystemExit(f"{split.name}: the tokenizer's numbers are not finite; are the weights damaged?")
            kept[name].append(to_bytes(found.codes.flatten(1).cpu().numpy()))
    return {name: np.concatenate(blocks) for name, blocks in kept.items()}


def hidden_means(
    cache: Cache,
    split: Split,
    name: str,
    pre: br.Pretrained,
    codes: np.ndarray,
    layers: Iterable[int],
    device: str | None,
) -> Any:
    """Mean hidden states by layer number (as str): float32 (n, D), all layers in one pass over the codes."""
    layers = sorted(layers)
    digest = hashlib.sha256(codes.tobytes()).hexdigest()
    facts = [f"hidden states of {split.name}, {name}", pre.fingerprint, digest, str(layers)]
    return cache.get(facts, functools.partial(_hidden, pre, codes, layers, device))


@torch.no_grad()
def _hidden(pre: br.Pretrained, codes: np.ndarray, layers: list[int], device: str | None) -> dict[str, np.ndarray]:
    shape = (pre.config.generator.tokens, pre.config.generator.code_bits)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = pre.generator.to(target)
    means: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    for start in range(0, len(codes), BATCH):
        bits = torch.from_numpy(from_bytes(codes[start : start + BATCH], pre.config.code_size)).float()
        states = generator.hidden_states(bits.reshape(-1, *shape).to(target), layers=layers)
        for layer in layers:
            means[layer].append(states[layer].mean(dim=1).cpu().numpy())
    generator.to("cpu")
    return {str(layer): np.concatenate(blocks) for layer, blocks in means.items()}


def check_against_extractor(pre: br.Pretrained, split: Split, codes: np.ndarray, means: Any, layer: int) -> None:
    """The features measured are those that users get: FeatureExtractor's, from the images."""
    side = pre.config.image_size
    images = np.stack([center_crop(split.images.load(int(row)), side) for row in split.rows[:4]])
    found = br.FeatureExtractor(pre, (layer,))(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert np.array_equal(to_bytes(found.codes.flatten(1).numpy()), codes[:4])
    np.testing.assert_allclose(found.layers[layer].numpy(), means[str(layer)][:4], atol=1e-4)
