"""Processor time of the network and of commands, compared with the code of another commit.

    git worktree add /tmp/before COMMIT
    python benchmarks/code_speed.py --before /tmp/before             # a minute of processor time
    python benchmarks/code_speed.py --before /tmp/before --commands  # embed and generate too: ten minutes

One thread, float32. Training step and features: random codes and random weights of preset tiny, batches of 16. Search:
100 queries among a million random codes of 256 bits. Commands, with bigr-tiny, which both trees bundle: embed 100
copies of each example photograph, and generate 32 images.

Processes of the two trees alternate. The ratio divides the median times: above 1, the tree that contains this file is
faster. Expected: 1.00 within 0.03 if a change should cost nothing. Prints one line per measurement and writes no
record.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1]

WORK = """
import time, torch
import numpy as np
from bigr_repr.config import preset
from bigr_repr.models.bigr import BiGR
torch.set_num_threads(1)
torch.manual_seed(0)
config = preset("tiny").generator
model = BiGR(config)
codes = (torch.rand(16, config.tokens, config.code_bits) > 0.5).float()
labels, masked = torch.zeros(16, dtype=torch.long), torch.rand(16, config.tokens) > 0.5
def step():
    found = model.train()(codes, labels, masked)
    getattr(found, "loss", found).backward()  # older commits return the loss itself
    model.zero_grad(set_to_none=True)
@torch.inference_mode()
def features():
    model.eval().hidden_states(codes, layers=(12,))
from bigr_repr.retrieval import HammingIndex
packed = np.random.default_rng(0).integers(0, 256, (1_000_000, 32), dtype=np.uint8)
built = HammingIndex.build(packed)
def search():
    built.search(packed[:100], 10)
for work in (step, features, search):
    work()
    times = []
    for _ in range(5):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    print(min(times))
"""
PARTS = ("training step", "features", "search")
COMMANDS = {
    "embed": "embed images --model bigr-tiny --layer 12 --codes --out {out}/embedded",
    "generate": "generate --model bigr-tiny -l 7 --count 32 --seed 0 --out {out}/generated",
}


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'cli'}", "OMP_NUM_THREADS": "1"}


def calls(tree: Path) -> dict[str, float]:
    """Processor seconds of each of PARTS with the code of a tree."""
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=_environment(tree), capture_output=True, text=True, check=True
    )
    return dict(zip(PARTS, map(float, done.stdout.split()), strict=True))


def commands(tree: Path, data: Path) -> dict[str, float]:
    """Processor seconds of each command with the code of a tree."""
    found = {}
    with tempfile.TemporaryDirectory() as out:
        for name, words in COMMANDS.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            line = [sys.executable, "-m", "bigr_repr_cli", *words.format(out=out).split()]
            done = subprocess.run(line, env=_environment(tree), cwd=data, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"code_speed.py: {' '.join(line)} in {tree} failed: {done.stderr.strip()[-300:]}")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def prepare(data: Path) -> None:
    """Write the images that the commands read."""
    (data / "images").mkdir()
    for image in sorted((HERE / "examples" / "images").glob("*.jpg")):
        for number in range(100):
            shutil.copy(image, data / "images" / f"{image.stem}-{number}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="working tree of the other commit")
    parser.add_argument("--commands", action="store_true", help="measure commands too")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    trees = given.before.resolve(), HERE
    with tempfile.TemporaryDirectory() as folder:
        if given.commands:
            prepare(Path(folder))
        rounds = [
            [calls(tree) | (commands(tree, Path(folder)) if given.commands else {}) for tree in trees]
            for _ in range(given.rounds)
        ]
    for what in rounds[0][0]:
        old, new = (statistics.median(pair[side][what] for pair in rounds) for side in (0, 1))
        print(f"{what}: {old:.4f} s before, {new:.4f} s now, ratio {old / new:.3f}")


if __name__ == "__main__":
    main()
