"""One JSON record a benchmark: the numbers, and what it takes to believe and repeat them. Knows no benchmark.

`write(name, results, pre)` makes benchmarks/results/<name>.json of the results with machine, date, command and model.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigr_repr import Pretrained

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, GPU and versions."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        described["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return described


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def command() -> str:
    """The command line as one can type it: of absolute paths only the last part, for the rest is this machine's."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def load(model: str, **options: Any) -> Pretrained:
    """bigr_repr.load, with its error as the one line that ends the benchmark: no other model takes its place."""
    import bigr_repr as br

    try:
        return br.load(model, **options)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from error


def write(name: str, results: dict[str, Any], pre: Pretrained | None = None) -> Path:
    """Write benchmarks/results/<name>.json, print it, and return its path."""
    record: dict[str, Any] = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "machine": machine(),
    }
    if pre is not None:
        record["model"] = {"name": pre.config.name, "fingerprint": pre.fingerprint}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps(record | results, indent=1) + "\n"
    path.write_text(text)
    print(text, end="")
    return path
