"""The network as it is against that of another commit: processor time of one training step and of features.

    git worktree add /tmp/before COMMIT && python benchmarks/code_speed.py --before /tmp/before

Data: random codes and random weights of preset tiny, batches of 16, one thread, float32. A process of each of the two
trees takes its turn, and the medians of their times are divided: above 1, the tree that this file is in is faster.
Expected: 1.00 within 0.03 where a change was not to cost anything. A minute of processor time.
Prints one line; writes no record.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORK = """
import time, torch
from bigr_repr.config import preset
from bigr_repr.models.bigr import BiGR
torch.set_num_threads(1)
torch.manual_seed(0)
config = preset("tiny").generator
model = BiGR(config)
codes = (torch.rand(16, config.tokens, config.code_bits) > 0.5).float()
labels, masked = torch.zeros(16, dtype=torch.long), torch.rand(16, config.tokens) > 0.5
def step():
    model.train()(codes, labels, masked).loss.backward()
    model.zero_grad(set_to_none=True)
@torch.inference_mode()
def features():
    model.eval().hidden_states(codes, layers=(12,))
for work in (step, features):
    work()
    times = []
    for _ in range(5):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    print(min(times))
"""


def seconds(tree: Path) -> list[float]:
    """Processor seconds of a training step and of features, by the code of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="tree of the other commit")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rounds = [(seconds(given.before), seconds(Path(__file__).parents[1])) for _ in range(given.rounds)]
    for number, what in enumerate(("training step", "features")):
        old, new = (statistics.median(pair[side][number] for pair in rounds) for side in (0, 1))
        print(f"{what}: {old:.4f} s before, {new:.4f} s now, ratio {old / new:.3f}")


if __name__ == "__main__":
    main()
