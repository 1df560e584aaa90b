"""Laws of a GPU: it computes what a CPU computes. All of this is skipped where PyTorch sees no GPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import bigr_repr as br
from bigr_repr.datasets import open_images
from bigr_repr.evaluate.metrics.generation import precision_recall
from bigr_repr.evaluate.probes.knn import knn
from bigr_repr.evaluate.probes.linear_probe import linear_probe
from bigr_repr.train.code_set import write_codes
from bigr_repr.train.recipe import GeneratorRecipe
from bigr_repr.train.run import run_generator_training
from bigr_repr.train.settings import TrainSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")

PHOTOS = Path(__file__).parent.parent / "examples" / "images"


@pytest.fixture(scope="module")
def cpu() -> br.Pretrained:
    return br.load("bigr-tiny")


@pytest.fixture(scope="module")
def gpu() -> br.Pretrained:
    return br.load("bigr-tiny", device="cuda")


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    products: NDArray[Any] = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return products


def test_features_and_codes_are_the_cpus(cpu: br.Pretrained, gpu: br.Pretrained) -> None:
    codes = [br.encode_codes(PHOTOS, model=model) for model in (cpu, gpu)]
    differing = np.unpackbits(codes[0] ^ codes[1]).sum()
    # A probability next to one half may fall on either side: cuDNN's convolutions round to TF32.
    assert differing <= 1e-2 * codes[0].size * 8
    features = [br.extract_features(PHOTOS, model=model, layer=(4, 12)) for model in (cpu, gpu)]
    for layer in (4, 12):
        assert cosines(features[0][layer], features[1][layer]).min() > 0.99


def test_half_precision_keeps_the_direction_of_features(gpu: br.Pretrained) -> None:
    images = torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    full = br.FeatureExtractor(gpu, (12,))(images).layers[12]
    half = br.FeatureExtractor(gpu, (12,), dtype=torch.bfloat16)(images).layers[12]
    assert full.device.type == half.device.type == "cuda"
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.98


def test_one_iteration_draws_the_cpus_bits(cpu: br.Pretrained, gpu: br.Pretrained) -> None:
    settings = br.SamplingSettings(steps=1, diffusion_steps=8)
    one, other = (br.generate(model, [1, 2], settings=settings, seed=5).cpu() for model in (cpu, gpu))
    assert (one - other).abs().mean() < 5e-3  # noise is the same on any device; a bit on the edge may differ


def test_an_image_is_the_same_in_any_batch(gpu: br.Pretrained) -> None:
    settings = br.SamplingSettings(steps=1, diffusion_steps=8)
    together = br.generate(gpu, [3, 4, 5], settings=settings, seed=1, batch_size=3)
    alone = br.generate(gpu, [4], settings=settings, seed=1, first=1)
    assert (together[1] - alone[0]).abs().mean() < 5e-3


@pytest.mark.parametrize("order", ["entropy", "margin", "reversed", "random", "raster", "halton"])
def test_known_tokens_stay(gpu: br.Pretrained, order: str) -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:40, 8:32] = True
    seen: list[torch.Tensor] = []
    settings = br.SamplingSettings(steps=3, diffusion_steps=4, order=order, guidance_schedule="linear")
    known = ~mask.view(8, 8, 8, 8).any(3).any(1).flatten()
    br.inpaint(gpu, image, mask, 3, settings=settings, callback=lambda at: seen.append(at.codes[:, known.to("cuda")]))
    assert len(seen) == 3
    assert all(torch.equal(seen[0], codes) for codes in seen)
    assert seen[0].any()


def test_embedding_writes_the_rows_of_the_cpu(tmp_path: Path) -> None:
    tables = {}
    for device in ("cpu", "cuda"):
        br.embed_images([PHOTOS], tmp_path / device, layers=(12,), device=device)
        tables[device] = br.read_embeddings(tmp_path / device)
    assert list(tables["cpu"].paths) == list(tables["cuda"].paths)
    one, other = (np.asarray(tables[device].vectors) for device in ("cpu", "cuda"))
    assert cosines(one, other).min() > 0.99


def test_a_resumed_training_goes_on_where_it_was(cpu: br.Pretrained, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    write_codes(open_images([PHOTOS]), cpu.tokenizer, codes, tokenizer_name="bigr-tiny", device="cuda")
    cpu.tokenizer.to("cpu")
    recipe = GeneratorRecipe(dropout=0.0, optimizer="muon" if hasattr(torch.optim, "Muon") else "adamw")

    def losses(name: str, *stops: int) -> list[float]:
        settings = TrainSettings(
            out=str(tmp_path / name), steps=6, batch_size=4, learning_rate=1e-3, save_every=3, log_every=1, ema=0.9,
            precision="bf16",
        )  # fmt: skip
        for steps in (*stops, 6):
            changed = dataclasses.replace(settings, steps=steps)
            run_generator_training([str(codes)], "bigr-tiny", changed, recipe, preset="tiny")
        return [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    unbroken = losses("unbroken")
    assert len(unbroken) == 6
    assert np.allclose(unbroken, losses("broken", 3), rtol=1e-3)


def test_probes_and_neighbors_agree_with_the_cpu() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    features = (rng.normal(size=(4, 32))[labels] + 1.5 * rng.normal(size=(400, 32))).astype(np.float32)
    parts = features[:300], labels[:300], features[300:], labels[300:]
    probes = [linear_probe(*parts, grid=(0.1,), device=device).top1 for device in ("cpu", "cuda")]
    assert abs(probes[0] - probes[1]) <= 1  # percent
    neighbors = [knn(*parts, k=(5,), device=device) for device in ("cpu", "cuda")]
    assert neighbors[0].top1 == neighbors[1].top1
    shares = [precision_recall(features[:200], features[200:], device=device) for device in ("cpu", "cuda")]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_a_flat_index_on_the_gpu_finds_the_same() -> None:
    faiss = pytest.importorskip("faiss")
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        pytest.skip("this FAISS sees no GPU")
    codes = np.random.default_rng(0).integers(0, 256, (500, 32), dtype=np.uint8)
    index = br.HammingIndex.build(codes)
    expected, found = index.search(codes[:10], 5), index.to("cuda").search(codes[:10], 5)
    assert np.array_equal(expected.distances, found.distances)
