"""Memory used to list, update and deduplicate inputs, by their number: peak, and bytes per input.

    python benchmarks/listing_memory.py                       # 100 000, 1 million and 10 million names: half an hour
    python benchmarks/listing_memory.py --counts 20000 100000 # a quick trial

Data: synthetic names; no images exist. Each stage runs in its own process. It is measured by the peak resident memory
minus what the process used before the stage began:

folder  sorts the names of a folder and writes them into a plan
store   lists a flat prefix of objects into a plan, page by page; a stub stands in for the store
update  compares the same names plus one percent new ones with that plan
dedup   digests every input, one in ten a duplicate; digests are computed from names in place of image bytes

Writes benchmarks/results/listing_memory.json. Expected: less than 300 MB at ten million inputs, and about 20 bytes per
input between the first and the last count. Exits with an error above 300 MB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import record

STAGES = ("folder", "store", "update", "dedup")
AIM_MB, UNIT = 300, 1024
_PAGE = 1000


def names(count: int, every: int = 1, first: int = 0) -> Iterator[bytes]:
    """Unordered names like those of cameras and web crawls."""
    step = 7_368_787  # prime: no prefix repeats
    for number in range(first, count, every):
        yield b"%08x-IMG_%09d.jpg" % (number * step % 4_294_967_291, number)


def sources(given: Iterator[bytes]) -> Iterator[Any]:
    from bigr_repr.images.find import Source

    for name in given:
        text = name.decode()
        yield Source(text, f"/archive/photos/{text}")


def listed(run: Path, given: Iterator[Any]) -> Any:
    from bigr_repr.embed.dataset.lists import list_inputs
    from bigr_repr.embed.dataset.plan import commit_plan

    return commit_plan(run, list_inputs(run, given, UNIT, lambda found: None), UNIT, {})


def folder(run: Path, count: int) -> None:
    from bigr_repr.images.sorting import sorted_names

    listed(run, sources(sorted_names(names(count))))


def store(run: Path, count: int) -> None:
    from bigr_repr.embed.inputs.sources import find_sources
    from bigr_repr.system import object_store
    from bigr_repr.system.signed import Page

    object_store.has_pages = lambda path: True
    object_store.ObjectPath.is_file = lambda self: False  # type: ignore[method-assign]
    object_store.ObjectPath.is_dir = lambda self: True  # type: ignore[method-assign]

    def page(path: str, endpoint: object, process: int, following: str | None) -> Page:
        first = int(following or 0)
        found = [f"IMG_{number:012d}-abcdefgh.jpg" for number in range(first, min(count, first + _PAGE))]
        return Page(found, str(first + _PAGE) if first + _PAGE < count else None)

    object_store.page_of = page
    plan = listed(run, find_sources("s3://bucket/photos"))
    assert plan.inputs == count


def update(run: Path, count: int) -> None:
    from bigr_repr.embed.dataset.plan import open_plan
    from bigr_repr.embed.inputs.update import KnownInputs

    plan = open_plan(run)
    assert plan is not None
    known = KnownInputs(plan)
    again = sources(names(count + count // 100))
    new = sum(1 for _ in known.additions(again, lambda found: None))
    assert (new, sum(1 for _ in known.gone())) == (count // 100, 0)


def dedup(run: Path, count: int) -> None:
    from bigr_repr.embed.dataset.lists import list_inputs
    from bigr_repr.embed.dataset.plan import open_plan
    from bigr_repr.embed.inputs import dedup as doubles
    from bigr_repr.images.parquet import USUAL_COLUMNS

    before = open_plan(run)
    assert before is not None
    list_inputs(run, sources(names(count)), UNIT, lambda found: None)

    def digest(picture: Any) -> bytes:
        number = int(picture.name[-13:-4])
        return sha256(b"%d" % (number - number % 10 if number % 10 == 1 else number)).digest()

    doubles._digest = digest
    doubles.list_digests(run, None, 1, lambda found: None, USUAL_COLUMNS)


def peak() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def stage(name: str, run: Path, count: int) -> dict[str, float]:
    """Run a stage in this process."""
    import bigr_repr.embed.inputs.dedup
    import bigr_repr.embed.inputs.update  # noqa: F401 - so that imports are not counted

    before, started = peak(), time.perf_counter()
    globals()[name](run, count)
    return {"bytes": peak() - before, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        name, run, count = options.stage
        print(json.dumps(stage(name, Path(run), int(count))))
        return
    results: dict[str, Any] = {name: {} for name in options.stages}
    for count in options.counts:
        with tempfile.TemporaryDirectory() as work:
            for name in options.stages:
                run = Path(work) / ("store" if name == "store" else "run")
                run.mkdir(exist_ok=True)
                command = [sys.executable, __file__, "--stage", name, str(run), str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                results[name][count] = json.loads(done.stdout)
                print(f"{name}, {count:,}: {done.stdout.strip()}", file=sys.stderr, flush=True)
    for found in results.values():
        first, last = options.counts[0], options.counts[-1]
        found["bytes_per_input"] = round((found[last]["bytes"] - found[first]["bytes"]) / max(1, last - first), 1)
    record.write("listing_memory", {"counts": options.counts, "unit_size": UNIT, "stages": results})
    most = max(found[count]["bytes"] for found in results.values() for count in options.counts)
    if most > AIM_MB * 1_000_000:
        raise SystemExit(f"listing_memory.py: {most / 1e6:.0f} MB, above the limit of {AIM_MB}")


if __name__ == "__main__":
    main()
