"""Reads damaged files of every kind: how many are silently read with wrong content.

    python benchmarks/damaged_files.py                     # 10 000 mutations of 15 kinds: some minutes on a core
    python benchmarks/damaged_files.py --count 300         # a quick trial

Data: small files created with a model of random weights: embeddings, a run's notes, codes as Parquet, .npz and .npy,
indexes (flat, ivf, hnsw, sharded), code sets, caption sets, training checkpoints, models, files in the authors' format,
and adapters.

A mutation changes one byte, zeroes up to 64, or truncates the file, at a random position. The files are then read as
programs read them. Indexes are read whole, as by `index info --verify`, because searches memory-map the codes without
verifying them.

Writes benchmarks/results/damaged_files.json. Expected: no file read with wrong content, no crash, and every refusal
names the file or its folder. Exits with an error otherwise.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import record
from damaged_kinds import Kind, kinds, prepared

BATCH = 25  # mutations per process, so that a crash loses no more than these
REFUSED = (ValueError, OSError, RuntimeError)


def mutate(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """How the content was damaged, and the damaged content."""
    place = rng.randrange(len(content))
    how = rng.choice(("byte", "byte", "cleared", "cut"))
    if how == "cut":
        return how, content[:place]
    size = 1 if how == "byte" else rng.randint(1, 64)
    new = bytes([content[place] ^ rng.randint(1, 255)]) if how == "byte" else bytes(min(size, len(content) - place))
    return how, content[:place] + new + content[place + len(new) :]


class Outcome(NamedTuple):
    """The result of a mutation, with details.

    what: "refused", "refused without a name", "same", "other numbers" or "crash".
    """

    what: str
    told: str


def attempt(kind: Kind, whole: Path, truth: str, place: Path, seed: int) -> Outcome:
    """Damage one file of a copy, and read the copy."""
    rng = random.Random(seed)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    files = sorted(file for file in place.rglob("*") if file.is_file() and file.stat().st_size)
    if (place / "_run").is_dir():  # a run's notes: damage only what the rows do not hold themselves
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
    """Outcomes of mutations, tried in child processes, which may crash."""
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
    parser.add_argument("--count", type=int, default=10_000, help="number of mutations, spread evenly over the kinds")
    parser.add_argument("--kinds", nargs="+", help="only these kinds")
    options = parser.parse_args()
    import torch

    logging.disable()  # repairs are logged, and of no interest here
    torch.set_num_threads(1)
    results, bad = dict[str, Any](), 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        work = Path(name)
        shared = prepared(work)
        listed = kinds(shared)
        chosen = options.kinds or list(listed)
        if unknown := set(chosen) - listed.keys():
            parser.error(f"--kinds {', '.join(sorted(unknown))}: unknown; choose from {', '.join(listed)}")
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
        raise SystemExit(f"damaged_files.py: {bad} of {each * len(chosen)} misread, crashed, or refused without a name")


if __name__ == "__main__":
    main()
