"""Embeds 100 000 images, some of them corrupted, is killed halfway and resumed, and measures what the run costs.

    python benchmarks/embed_scale.py --data FOLDER --work FOLDER

Data: --data holds Parquet files of encoded images, such as CIFAR-10 and Tiny-ImageNet (JPEG and WebP, 110 000). They
are unpacked into the work folder, one file per image. Each stage runs once per work folder and settings:

exact     embeds all images; then corrupts 1 % of them in four ways, embeds them again, kills that run (SIGKILL) halfway
          and resumes it. Expected: rows + failures = inputs, and resuming costs less than 2 % of the whole run: the
          time until it embeds again, plus the time of images that are embedded twice.
rows      compares the two. Expected: every intact image has a row of the same bits. A corrupted one may still be a
          picture: a WebP file whose data are all zeros decodes.
rate      images per second of decoding alone, of the network alone, and end to end. Expected: end to end reaches 90 %
          of the slower of the two.
memory    peak resident memory, decoders included, for 20 000 and 200 000 inputs. Expected: below 200 bytes per input.
decoders  threads, processes, and torchvision.io in place of Pillow: speed, and how far pixels differ.
engines   10 000 of the images, corrupted ones included, through the local engine, two processes on this device, and
          Ray. Expected: the same rows and failures, bit for bit. Without Ray the stage says so.

Writes benchmarks/results/embed_scale.json, and exits with an error if rows are not as expected. About 45 minutes on 2
cores with bigr-tiny (exact: 2 x 15, memory: 5). --limit 2000 is a small run of 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
from embed_decoders import decoders, seconds_to_decode

from bigr_repr.features.extractor import Features
from bigr_repr.features.network import Network

STAGES = ("exact", "rows", "rate", "memory", "decoders", "engines")
SMALL, LARGE = 20_000, 200_000  # inputs of the memory stage
SPOILED = 100  # one in 100 images is corrupted
RATE_IMAGES = 6400
ENGINE_IMAGES = 10_000


# ---- data


def unpack(data: Path, folder: Path, limit: int) -> int:
    """Unpack Parquet files, each into a subfolder of image files. Returns the number of images."""
    import pyarrow.parquet as pq

    done = folder / "complete"
    if done.exists():
        return int(done.read_text())
    sources = sorted(data.glob("*.parquet"), key=lambda file: ("train-" in file.name, file.name))
    if not sources:
        raise SystemExit(f"embed_scale.py: {data} holds no .parquet files; name another with --data")
    count = 0
    for source in sources:
        target = folder / "images" / source.stem
        target.mkdir(parents=True, exist_ok=True)
        row = 0
        for batch in pq.ParquetFile(source).iter_batches(1024, columns=["image"]):
            for image in batch.column("image").to_pylist():
                if count == limit:
                    break
                suffix = "webp" if image[:4] == b"RIFF" else "jpg"
                (target / f"{row:06d}.{suffix}").write_bytes(image)
                row, count = row + 1, count + 1
    done.write_text(str(count))
    return count


def spoil(clean: Path, folder: Path) -> int:
    """Hard-link the images into a folder, corrupting one in SPOILED. Returns the number of corrupted images."""
    chance, spoiled = random.Random(0), 0
    for file in sorted(clean.rglob("*.*")):
        target = folder / file.relative_to(clean)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if chance.randrange(SPOILED):
            target.hardlink_to(file)
            continue
        content = file.read_bytes()
        ways = (content[: len(content) // 2], b"", b"no picture at all", content[:40] + bytes(len(content)))
        target.write_bytes(ways[spoiled % len(ways)])
        spoiled += 1
    return spoiled


# ---- runs in processes of their own


def child(options: dict[str, Any]) -> None:
    """Run embed_images(**options). Prints its progress, a line of JSON per batch, and finally its peak memory."""
    from bigr_repr.embed import Progress, embed_images

    count = options.pop("synthetic", None)
    if count is not None:
        options["model"] = miniature()
        picture = options.pop("picture")
        options |= {"inputs": (picture for _ in range(count)), "literal": True}

    def show(progress: Progress) -> None:
        if progress.total is not None:
            print(json.dumps({"time": time.time(), "done": progress.done}), flush=True)

    summary = embed_images(on_progress=show, **options)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = [resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ended = {"rows": summary.rows, "failures": summary.failures, "inputs": summary.inputs}
    print(json.dumps({**ended, "embedded": summary.embedded, "seconds": summary.seconds, "peak": peak}), flush=True)


def embed(stop_at: int | None = None, **options: Any) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Run a child and return its summary and progress lines. stop_at: kill it once this many images are done."""
    started = time.time()
    command = [sys.executable, __file__, "--child"]
    lines: list[dict[str, Any]] = [{"time": started, "done": -1}]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        json.dump(options, process.stdin)
        process.stdin.close()
        for text in process.stdout:
            lines.append(json.loads(text))
            if stop_at is not None and lines[-1].get("done", 0) >= stop_at:
                process.kill()
                return {}, lines
    if process.returncode:
        raise SystemExit("embed_scale.py: a run failed (see its message above)")
    return lines.pop(), lines


def miniature() -> Any:
    """A network of random weights that takes almost no time, for runs whose results do not matter."""
    import torch

    import bigr_repr as br

    torch.manual_seed(0)
    tokenizer = br.TokenizerConfig(
        image_size=16, base_channels=32, channel_multipliers=(1, 1, 1), res_blocks=1, embed_dim=32, code_bits=8
    )
    generator = br.GeneratorConfig(
        layers=1, heads=1, dim=32, transcoder_blocks=1, transcoder_dim=32, classes=2, code_bits=8, grid=tokenizer.grid,
        ffn_multiple_of=32,
    )  # fmt: skip
    config = br.ModelConfig(name="miniature", tokenizer=tokenizer, generator=generator)
    return br.Pretrained(config, br.BinaryAutoencoder(tokenizer).eval(), br.BiGR(generator).eval())


# ---- stages


def exact(options: argparse.Namespace, images: Path) -> dict[str, Any]:
    """A run on intact images, and one with corrupted images that is killed and resumed."""
    unit = min(1024, max(8, options.limit // 100))  # a killed run loses all units that are not sealed
    usual = {"model": options.model, "layers": [options.layer], "codes": True, "unit_size": unit}
    out, spoiled_out = (options.work / name for name in ("clean-rows", "spoiled-rows"))
    clean, _ = embed(inputs=str(images), out=str(out), **usual)
    spoiled = spoil(images, options.work / "spoiled")
    run = usual | {"inputs": str(options.work / "spoiled"), "out": str(spoiled_out)}
    _, before = embed(stop_at=clean["inputs"] // 2, **run, overwrite=True)
    killed_at = before[-1]["done"]
    done, after = embed(**run)
    sealed = after[1]["done"]
    rate = clean["embedded"] / clean["seconds"] if clean["embedded"] else done["embedded"] / done["seconds"]
    start = next(line for line in after if line["done"] > sealed)["time"] - after[0]["time"]
    first_batch = (next(line for line in after if line["done"] > sealed)["done"] - sealed) / rate
    cost = start - first_batch + (killed_at - sealed) / rate
    whole = done["inputs"] / rate
    return {
        "inputs": done["inputs"], "spoiled": spoiled, "rows": done["rows"], "failures": done["failures"],
        "as_expected": done["rows"] + done["failures"] == done["inputs"],
        "images_per_s": round(rate, 1), "killed_at": killed_at, "sealed_then": sealed,
        "resumption_s": round(cost, 2), "resumption_share_of_whole": round(cost / whole, 4),
    }  # fmt: skip


def compare(options: argparse.Namespace, images: Path) -> dict[str, Any]:
    """Compare the rows of the clean run with those of the run on corrupted images."""
    spoiled = options.work / "spoiled"
    files = [str(file.relative_to(images)) for file in sorted(images.rglob("*.*"))]
    good = {file for file in files if (images / file).samefile(spoiled / file)}
    found = dict(rows(options.work / "spoiled-rows"))
    same = sum(found.get(path) == content for path, content in rows(options.work / "clean-rows") if path in good)
    return {
        "good_images": len(good), "good_rows_of_the_same_bits": same,
        "spoiled_images": len(files) - len(good), "spoiled_images_that_decode": len(found.keys() - good),
        "as_expected": same == len(good),
    }  # fmt: skip


def rows(out: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bits of every row, in order."""
    from bigr_repr.embed import EmbeddingSet

    for batch in EmbeddingSet(out).batches():
        codes = batch.codes if batch.codes is not None else [np.empty(0)] * len(batch.paths)
        for path, vector, code in zip(batch.paths, batch.vectors, codes, strict=True):
            yield path, vector.tobytes() + code.tobytes()


def rate(options: argparse.Namespace, images: Path) -> dict[str, Any]:
    """Median rates of decoding alone, the network alone, and both end to end, in alternating runs."""
    import bigr_repr as br

    pre = record.load(options.model)
    files = [str(file) for file in sorted(images.rglob("*.*"))[: min(RATE_IMAGES, options.limit)]]
    network = Network(br.FeatureExtractor(pre, (options.layer,)), options.batch)
    times: dict[str, list[float]] = {"decode": [], "network": [], "end_to_end": []}
    for number in range(options.repeats):
        times["decode"].append(seconds_to_decode(files, pre.config.image_size, timeout=120))
        times["network"].append(_seconds_of_network(network, pre.config.image_size, len(files), options.batch))
        out = options.work / f"rate-{number}"
        done = br.embed_images(
            files, out, model=pre, layers=[options.layer], batch_size=options.batch, overwrite=True, literal=True
        )
        times["end_to_end"].append(done.seconds)
    network.close()
    speeds = {name: len(files) / statistics.median(values) for name, values in times.items()}
    slower = min(speeds["decode"], speeds["network"])
    return {
        "images": len(files), **{f"{name}_per_s": round(speed, 1) for name, speed in speeds.items()},
        "share_of_the_slower": round(speeds["end_to_end"] / slower, 3),
    }  # fmt: skip


def _seconds_of_network(network: Network, side: int, count: int, batch: int) -> float:
    import torch

    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8)
    network.start(images)().codes.cpu()
    batches = -(-count // batch)
    flying: deque[Callable[[], Features]] = deque()
    started = time.perf_counter()
    for _ in range(batches):
        flying.append(network.start(images))
        if len(flying) > network.ahead:
            flying.popleft()().codes.cpu()
    while flying:
        flying.popleft()().codes.cpu()
    return (time.perf_counter() - started) * count / (batches * batch)


def memory(options: argparse.Namespace, images: Path) -> dict[str, Any]:
    """Peak memory for few and for many inputs. All inputs are the same file, so that only their number differs."""
    picture = str(next(iter(sorted(images.rglob("*.*")))))
    scale = min(1.0, options.limit / 100_000)
    found: dict[str, Any] = {}
    for name, count in (("small", int(SMALL * scale)), ("large", int(LARGE * scale))):
        out = str(options.work / f"memory-{name}")
        done, _ = embed(synthetic=count, picture=picture, out=out, layers=[0], overwrite=True)
        found[name] = {"inputs": count, "peak_mb": round(done["peak"][0] / 1e6, 1), "bytes": sum(done["peak"])}
    small, large = found["small"], found["large"]
    slope = (large.pop("bytes") - small.pop("bytes")) / (large["inputs"] - small["inputs"])
    return found | {"bytes_per_input": round(slope, 1)}


def engines(options: argparse.Namespace, images: Path) -> dict[str, Any]:
    """The same inputs through every installed engine."""
    import importlib.util

    spoiled = options.work / "spoiled"
    files = [str(file) for file in sorted(spoiled.rglob("*.*"))[: min(ENGINE_IMAGES, options.limit)]]
    ways: dict[str, dict[str, Any]] = {"local": {"device": "cpu"}, "two_processes": {"device": "cpu,cpu"}}
    if importlib.util.find_spec("ray"):
        ways["ray"] = {"engine": "ray", "device": "cpu"}
    found: dict[str, Any] = {"images": len(files), "ray": "not installed"}
    expected = None
    for name, how in ways.items():
        out = options.work / f"engine-{name}"
        usual = {"model": options.model, "layers": [options.layer], "codes": True, "literal": True, "unit_size": 256}
        done, _ = embed(inputs=files, out=str(out), overwrite=True, **usual, **how)
        content = [*rows(out), (out / "failures.jsonl").read_text()]
        expected = expected or content
        found[name] = {
            "rows": done["rows"], "failures": done["failures"], "same_as_local": content == expected,
            "seconds": round(done["seconds"], 1),
        }  # fmt: skip
    found["as_expected"] = all(found[name]["same_as_local"] for name in ways)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of Parquet files with encoded images")
    parser.add_argument("--work", type=Path, help="folder for images and results, which are kept")
    parser.add_argument("--model", default="bigr-tiny")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, default=100_000, help="maximum number of images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.load(sys.stdin))
        return
    if options.data is None or options.work is None:
        parser.error("--data and --work are required")
    pre = record.load(options.model)
    work = options.work / f"{pre.config.name}-{pre.fingerprint[:8]}-{options.layer}-{options.limit}"
    options.work = work
    count = unpack(options.data, work, options.limit)
    results: dict[str, Any] = {"images": count, "layer": options.layer}
    run: dict[str, Callable[..., dict[str, Any]]] = {
        "exact": exact, "rows": compare, "rate": rate, "memory": memory, "decoders": decoders, "engines": engines
    }  # fmt: skip
    for stage in options.stages:
        kept = work / f"{stage}.json"
        if not kept.exists():
            print(f"{stage} …", file=sys.stderr, flush=True)
            found = json.dumps(run[stage](options, work / "images"))
            kept.with_suffix(".new").write_text(found)
            kept.with_suffix(".new").replace(kept)
        results[stage] = json.loads(kept.read_text())
    record.write("embed_scale", results, pre)
    wrong = [stage for stage in options.stages if not results[stage].get("as_expected", True)]
    if wrong:
        raise SystemExit(f"embed_scale.py: unexpected results in {', '.join(wrong)}")


if __name__ == "__main__":
    main()
