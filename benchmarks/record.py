"""One JSON record per benchmark: the results, and what is needed to verify and repeat them. Knows no benchmark.

`write(name, results, pre)` writes the results to benchmarks/results/<name>.json, with machine, date, command and model.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr_repr.system.machine import describe_machine

if TYPE_CHECKING:
    from bigr_repr import Pretrained

RESULTS = Path(__file__).parent / "results"


def command() -> str:
    """The command line as typed."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def without_machine_paths(text: str) -> str:
    """Shorten every occurrence of an absolute path from the command line to its last part."""
    for word in sorted(sys.argv[1:], key=len, reverse=True):
        if Path(word).is_absolute() and Path(word).name:
            whole = rf"(?<![\w.\-/]){re.escape(word.rstrip('/'))}(?![\w.\-])"  # not /data in /more/data or /data2
            text = re.sub(whole, Path(word).name.replace("\\", r"\\"), text)
    return text


def load(model: str, **options: Any) -> Pretrained:
    """bigr_repr.load, but exits with the error as a one-line message."""
    import bigr_repr as br

    try:
        return br.load(model, **options)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from error


def write(name: str, results: dict[str, Any], pre: Pretrained | None = None, *, folder: Path = RESULTS) -> Path:
    """Write <name>.json into a folder (default: benchmarks/results), print it, and return its path."""
    record: dict[str, Any] = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "machine": describe_machine(),
    }
    if pre is not None:
        record["model"] = {"name": pre.config.name, "fingerprint": pre.fingerprint}
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    text = without_machine_paths(json.dumps(record | results, indent=1)) + "\n"
    path.write_text(text)
    print(text, end="")
    return path
