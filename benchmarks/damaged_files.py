"""Files of every kind with a byte changed or an end cut off: how many are read as other numbers without a word.

    python benchmarks/damaged_files.py                     # 10 000 mutations of 15 kinds: some minutes on a core
    python benchmarks/damaged_files.py --count 300         # a try

Data: small files that it makes with a model of random weights: embeddings, what a run notes beside them, codes as
Parquet, .npz and .npy, indexes (flat, ivf, hnsw, in shards), code sets, caption sets, training checkpoints, models,
files of the authors' form, and adapters. A mutation changes one byte, clears up to 64, or cuts the file; the place is
random. Then the files are read as programs read them. Indexes are read whole, as `index info --verify` does: searches
map the codes, unverified.

Expected: none read as other numbers, no crash, and every refusal names the file or its folder. Writes
benchmarks/results/damaged_files.json, and ends with an error otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

BATCH = 25  # mutations that a process tries, so that a crash takes no more with it
REFUSED = (ValueError, OSError, RuntimeError)


class Kind(NamedTuple):
    """Files of a kind. make(folder): writes them; read(folder): what a program gets of them, as a digest."""

    make: Callable[[Path], None]
    read: Callable[[Path], str]


class Shared(NamedTuple):
    """What kinds are made of."""

    model: Any
    photos: Path
    rows: Path


def digest(*parts: Any) -> str:
    """A digest of arrays, texts and whatever JSON holds."""
    made = hashlib.sha256()
    for part in parts:
        made.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return made.hexdigest()


def weights(model: Any) -> str:
    """A digest of a model: its weights and all that its configuration says."""
    return digest(model.fingerprint, json.dumps(model.config.to_dict(), sort_keys=True))


# ---- kinds


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
    """Of what a run notes, a mutation may cost work; rows and failures must be the same afterwards."""
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
    from bigr_repr.retrieval.index.shards import shard_folders

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
    """Read as `models import` does."""
    from released_files import random_release

    from bigr_repr.checkpoints.pretrained import load_official

    config = shared.model.config

    def read(folder: Path) -> str:
        files = {"tokenizer": folder / "binaryae_ema.th", "generator": folder / "bigr.pt"}
        return weights(load_official(**files, heads=config.generator.heads, verify=True))

    return Kind(lambda folder: void(random_release(folder, config.tokenizer, config.generator)), read)


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
    """Nothing."""


def kinds(shared: Shared) -> dict[str, Kind]:
    """All of them by name."""
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
    """Pictures, a model and a data set."""
    from tiny_model import tiny_model, write_pictures

    from bigr_repr.embed import embed_images

    photos, made = work / "photos", tiny_model()
    write_pictures(photos / "good", 48)
    (photos / "bad.png").write_bytes(b"no picture")
    embed_images(photos, work / "rows", model=made, **EMBED)
    return Shared(made, photos, work / "rows")


# ---- mutations


def mutate(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damaged content, and what was done."""
    place = rng.randrange(len(content))
    how = rng.choice(("byte", "byte", "cleared", "cut"))
    if how == "cut":
        return how, content[:place]
    size = 1 if how == "byte" else rng.randint(1, 64)
    new = bytes([content[place] ^ rng.randint(1, 255)]) if how == "byte" else bytes(min(size, len(content) - place))
    return how, content[:place] + new + content[place + len(new) :]


class Outcome(NamedTuple):
    """What became of a mutation: "refused", "refused without a name", "same", "other numbers" or "crash"."""

    what: str
    told: str


def attempt(kind: Kind, whole: Path, truth: str, place: Path, seed: int) -> Outcome:
    """Damage one file of a copy, and read it."""
    rng = random.Random(seed)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    files = sorted(file for file in place.rglob("*") if file.is_file() and file.stat().st_size)
    if (place / "_run").is_dir():  # of a run's notes, what the rows themselves do not hold
        files = [file for file in files if "_run" in file.parts]
    file = rng.choice(files)
    before = file.read_bytes()
    how, after = mutate(before, rng)
    if after == before:
        return Outcome("same", "nothing changed")
    file.write_bytes(after)
    told = f"{file.relative_to(place)}, {how}, seed {seed}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kind.read(place)
    except REFUSED as error:
        named = str(place) in str(error) or str(getattr(error, "filename", "")).startswith(str(place))
        return Outcome("refused" if named else "refused without a name", f"{told}: {error}"[:300])
    except Exception as error:
        return Outcome("crash", f"{told}: {type(error).__name__}: {error}"[:300])
    return Outcome("same" if found == truth else "other numbers", told)


def outcomes(kind: Kind, whole: Path, truth: str, work: Path, seeds: range) -> Iterator[Outcome]:
    """Outcomes of mutations, tried in processes that may crash."""
    for start in range(0, len(seeds), BATCH):
        some = seeds[start : start + BATCH]
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            with os.fdopen(theirs, "w") as answers:
                for seed in some:
                    print(json.dumps(attempt(kind, whole, truth, work / "copy", seed)), file=answers, flush=True)
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours) as answers:
            found = [Outcome(*json.loads(line)) for line in answers]
        os.waitpid(child, 0)
        yield from found
        if len(found) < len(some):
            yield Outcome("crash", f"seed {some[len(found)]}: the process was ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="mutations, evenly over the kinds")
    parser.add_argument("--kinds", nargs="+", help="only these")
    options = parser.parse_args()
    import torch

    logging.disable()  # what is mended is told, and not of interest here
    torch.set_num_threads(1)
    results, bad = dict[str, Any](), 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        work = Path(name)
        shared = prepared(work)
        listed = kinds(shared)
        chosen = options.kinds or list(listed)
        each = -(-options.count // len(chosen))
        for number, title in enumerate(chosen):
            whole, started = work / f"whole-{number}", time.perf_counter()
            whole.mkdir()
            listed[title].make(whole)
            truth = listed[title].read(whole)
            seeds = range(number * 1_000_000, number * 1_000_000 + each)
            found = list(outcomes(listed[title], whole, truth, work, seeds))
            counts = Counter(outcome.what for outcome in found)
            bad += counts["other numbers"] + counts["crash"] + counts["refused without a name"]
            worst = [f"{o.what}: {o.told}" for o in found if o.what not in ("same", "refused")]
            results[title] = {**counts, "mutations": len(found), "examples": worst[:5]}
            took = time.perf_counter() - started
            print(f"{title}: {dict(counts)} in {took:.1f} s", *worst[:3], sep="\n  ", file=sys.stderr, flush=True)
    record.write("damaged_files", {"mutations": each * len(chosen), "kinds": results})
    if bad:
        raise SystemExit(f"damaged_files.py: {bad} of {each * len(chosen)} were read as other numbers, or not named")


if __name__ == "__main__":
    main()
