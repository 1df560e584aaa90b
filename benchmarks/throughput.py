"""Images per second, end to end and stage by stage, compared with a straightforward implementation of the same network.

    python benchmarks/throughput.py --models bigr-tiny preset:L-d24

A model is a name or folder that bigr_repr.load accepts, or preset:NAME for random weights. Data: the picture files of
--images (default: examples/images), repeated.

"plain" is plain.py: float32, unmodified batches, default memory format, an attention mask, and no decoding threads.
"ours" is what extract_features does. The two run in separate processes and alternate (A B A B ...), stop after the same
block and compute the same numbers, which is asserted first. Medians of the runs are reported; the ratio is plain's time
over ours. On a GPU, bfloat16 with and without torch.compile is measured too, along with the fraction of the speed of a
large matrix product that is reached.

Writes benchmarks/results/throughput.json. Expected on 2 cores: from files, L-d24 at block 12 faster than plain, below 4
GB at batch 8; bigr-tiny at least 60 images per second. Transformers are bound by matrix products, so that depending on
the machine either run of them is faster. About 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Any

import plain
import record
import torch

import bigr_repr as br
from bigr_repr.images.inputs import read_all, stack

STAGES = ("decode", "tokenizer", "transformer", "end_to_end")
EXAMPLES = Path(__file__).parent.parent / "examples" / "images"
SECONDS = 2.0  # target duration of a single run


def load(spec: str) -> br.Pretrained:
    """The model of a spec. A preset gets the same random weights in every process."""
    if not spec.startswith("preset:"):
        return record.load(spec)
    config = br.preset(spec.removeprefix("preset:"))
    torch.manual_seed(0)
    return br.Pretrained(config, br.BinaryAutoencoder(config.tokenizer).eval(), br.BiGR(config.generator).eval())


def photographs(folder: Path, count: int) -> list[str]:
    """`count` picture files, repeating those of the folder."""
    files = [
        str(file) for file in sorted(folder.iterdir()) if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    ]
    if not files:
        raise SystemExit(f"{folder} holds no .jpg, .png or .webp files; name another with --images")
    return list(islice(cycle(files), count))


# ---- the two implementations: one function per stage, which processes one batch


def plain_stages(pre: br.Pretrained, layer: int, files: list[str]) -> dict[str, Callable[[], object]]:
    """The stages of plain.py."""
    side = pre.config.image_size
    images = plain.decode(files, side)
    codes = plain.tokenize(pre, images)
    return {
        "decode": lambda: plain.decode(files, side),
        "tokenizer": lambda: plain.tokenize(pre, images),
        "transformer": lambda: plain.features(pre, codes, layer),
        "end_to_end": lambda: plain.features(pre, plain.tokenize(pre, plain.decode(files, side)), layer),
    }


def our_stages(pre: br.Pretrained, layer: int, files: list[str]) -> dict[str, Callable[[], object]]:
    """The stages of the package."""
    side, batch = pre.config.image_size, len(files)
    images = stack(list(read_all(files, side, workers=None, ahead=2 * batch)))
    tokenizer = br.FeatureExtractor(pre, ())
    codes = tokenizer(images).codes.float()

    def transformer() -> object:
        with torch.no_grad():
            return pre.generator.hidden_states(codes, layers=(layer,))[layer].mean(dim=1)

    return {
        "decode": lambda: list(read_all(files, side, workers=None, ahead=2 * batch)),
        "tokenizer": lambda: tokenizer(images),
        "transformer": transformer,
        "end_to_end": lambda: None,  # one call for many batches: see `work`
    }


def check(pre: br.Pretrained, layer: int, files: list[str]) -> dict[str, float]:
    """Assert that both compute the same results, and return how far they differ."""
    images = plain.decode(files, pre.config.image_size)
    ours = br.FeatureExtractor(pre, (layer,))(images)
    codes = plain.tokenize(pre, images)
    differing = int((codes.bool() != ours.codes).sum())
    # A logit within rounding error of 0 may become either bit, so features are compared on equal codes.
    assert differing <= 1e-4 * codes.numel(), f"{differing} of {codes.numel()} bits differ"
    features = plain.features(pre, ours.codes.float(), layer)
    difference = float((features - ours.layers[layer]).abs().max() / features.abs().max())
    assert difference < 1e-4, f"features differ by {difference:.2g} of their largest value"
    return {"differing_bits": differing, "bits": codes.numel(), "relative_difference": difference}


# ---- workers: one process per implementation, which reads requests as lines of JSON


def work(kind: str, spec: str, layer: int, folder: Path) -> None:
    """Answer requests {"stage", "batch", "repeats"} with {"seconds"} per image, until the input ends."""
    pre = load(spec)
    stages: dict[int, dict[str, Callable[[], object]]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        stage, batch, repeats = request["stage"], request.get("batch", 1), request.get("repeats", 1)
        answer: dict[str, Any]
        if stage == "check":
            answer = check(pre, layer, photographs(folder, 4))
        elif stage == "peak_memory":
            answer = {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 1e9}
        elif stage == "flops":
            answer = flops(pre, layer)
        elif stage == "end_to_end" and kind == "ours":
            files = photographs(folder, batch * repeats)
            started = time.perf_counter()
            br.extract_features(files, model=pre, layer=layer, batch_size=batch)
            answer = {"seconds": (time.perf_counter() - started) / len(files)}
        else:
            if batch not in stages:
                stages.clear()
                make = plain_stages if kind == "plain" else our_stages
                stages[batch] = make(pre, layer, photographs(folder, batch))
            run = stages[batch][stage]
            started = time.perf_counter()
            for _ in range(repeats):
                run()
            answer = {"seconds": (time.perf_counter() - started) / (batch * repeats)}
        print(json.dumps(answer), flush=True)


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def flops(pre: br.Pretrained, layer: int) -> dict[str, float]:
    """Floating-point operations per image, by stage, and per second of a large matrix product on this machine."""
    from torch.utils.flop_counter import FlopCounterMode

    for module in (pre.tokenizer, pre.generator):
        module.requires_grad_(False)  # the counter tracks modules by gradient hooks, but there are no gradients
    side = pre.config.image_size
    counts: dict[str, float] = {}
    images = torch.zeros(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        codes = plain.tokenize(pre, images)
    counts["tokenizer_gflop"] = counter.get_total_flops() / 1e9
    with FlopCounterMode(display=False) as counter:
        plain.features(pre, codes, layer)
    counts["transformer_gflop"] = counter.get_total_flops() / 1e9
    counts["matmul_gflop_per_s"] = matmul_speed(torch.device("cpu"), torch.float32, 1536) / 1e9
    return counts


def matmul_speed(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations per second of a square matrix product, the best of several runs."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def synchronize(device: torch.device) -> None:
    """Wait for the device, if it is a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Worker:
    """A process that runs one implementation of one model."""

    def __init__(self, kind: str, spec: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", kind, "--models", spec, "--layer", str(options.layer)]
        command += ["--images", str(options.images), "--threads", str(options.threads or torch.get_num_threads())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, stage: str, **request: int) -> dict[str, Any]:
        """Send a request and return its answer."""
        to, answers = self._pipes()
        try:
            print(json.dumps({"stage": stage, **request}), file=to, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"throughput.py: a worker failed at {stage} (see its message above)")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipes()[0].close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


# ---- measuring


def measure_cpu(spec: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all stages of a model at all batch sizes, and memory."""
    workers = {kind: Worker(kind, spec, options) for kind in ("plain", "ours")}
    found: dict[str, Any] = {"layer": options.layer, "same_results": workers["ours"].ask("check")}
    workers["ours"].close()
    workers["ours"] = Worker("ours", spec, options)  # the check needs more memory than the work
    for batch in options.batches:
        found[f"batch_{batch}"] = {stage: _interleaved(workers, stage, batch, options.repeats) for stage in STAGES}
    found["peak_memory_gb"] = {kind: round(w.ask("peak_memory")["peak_gb"], 2) for kind, w in workers.items()}
    counts = workers["plain"].ask("flops")
    for worker in workers.values():
        worker.close()
    largest = found[f"batch_{options.batches[-1]}"]
    for stage in ("tokenizer", "transformer"):
        speed = counts[f"{stage}_gflop"] / largest[stage]["ours_ms"] * 1e3
        largest[stage]["ours_share_of_matmul_speed"] = round(speed / counts["matmul_gflop_per_s"], 3)
    found["counts"] = {name: round(value, 3) for name, value in counts.items()}
    return found


def _interleaved(workers: dict[str, Worker], stage: str, batch: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds per image of both, and the ratio of plain to ours."""
    times: dict[str, list[float]] = {kind: [] for kind in workers}
    first = {kind: worker.ask(stage, batch=batch)["seconds"] for kind, worker in workers.items()}  # also warms up
    again = {kind: worker.ask(stage, batch=batch)["seconds"] for kind, worker in workers.items()}
    seconds = max(1e-6, min(*first.values(), *again.values()))
    loops = max(1, min(1000, round(SECONDS / (seconds * batch))))
    for _ in range(repeats):
        for kind, worker in workers.items():
            times[kind].append(worker.ask(stage, batch=batch, repeats=loops)["seconds"])
    middle = {kind: statistics.median(values) for kind, values in times.items()}
    print(
        f"{stage} batch {batch}: plain {1 / middle['plain']:.2f}/s, ours {1 / middle['ours']:.2f}/s, "
        f"ratio {middle['plain'] / middle['ours']:.2f}",
        flush=True,
    )
    return {
        "plain_ms": round(1e3 * middle["plain"], 3),
        "ours_ms": round(1e3 * middle["ours"], 3),
        "ours_images_per_s": round(1 / middle["ours"], 2),
        "ratio": round(middle["plain"] / middle["ours"], 3),
        "ratios_of_pairs": [round(a / b, 3) for a, b in zip(times["plain"], times["ours"], strict=True)],
    }


def measure_gpu(spec: str, options: argparse.Namespace) -> dict[str, Any] | str:
    """Images per second of FeatureExtractor on images that are already on the GPU."""
    if not torch.cuda.is_available():
        return "not measured: no GPU on this machine"
    pre, device = load(spec), torch.device("cuda")
    counts = flops(pre, options.layer)
    operations = 1e9 * (counts["tokenizer_gflop"] + counts["transformer_gflop"])
    peak = matmul_speed(device, torch.bfloat16, 8192)
    found: dict[str, Any] = {"matmul_bf16_tflop_per_s": round(peak / 1e12, 1), "gflop_per_image": operations / 1e9}
    for name, dtype, compiled in _gpu_variants():
        extractor = br.FeatureExtractor(pre, (options.layer,), dtype=dtype, device=device, compile=compiled)
        side = pre.config.image_size
        images = torch.randint(256, (options.gpu_batch, 3, side, side), dtype=torch.uint8, device=device)
        for _ in range(3):
            extractor(images)
        times = []
        for _ in range(options.repeats):
            synchronize(device)
            started = time.perf_counter()
            extractor(images)
            synchronize(device)
            times.append(time.perf_counter() - started)
        rate = options.gpu_batch / statistics.median(times)
        found[name] = {
            "batch": options.gpu_batch,
            "images_per_s": round(rate, 1),
            "share_of_bf16_matmul_speed": round(rate * operations / peak, 3),
        }
    return found


def _gpu_variants() -> Iterator[tuple[str, torch.dtype, bool]]:
    yield "float32", torch.float32, False
    yield "bfloat16", torch.bfloat16, False
    yield "bfloat16_compiled", torch.bfloat16, True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bigr-tiny", "preset:L-d24"])
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=Path, default=EXAMPLES, help="folder of pictures to read")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--gpu-batch", type=int, default=256)
    parser.add_argument("--only", choices=["cpu", "gpu"], help="measure on this kind of device only")
    parser.add_argument("--name", default="", help="suffix of the record: throughput_NAME.json")
    parser.add_argument("--worker", choices=["plain", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.worker:
        work(options.worker, options.models[0], options.layer, options.images)
        return
    results: dict[str, Any] = {}
    for spec in options.models:
        pre = load(spec)  # if it is not available, fails here in one line
        described = {"name": pre.config.name, "weights": "random" if spec.startswith("preset:") else pre.fingerprint}
        del pre
        print(spec, flush=True)
        measures = {"cpu": measure_cpu, "gpu": measure_gpu}
        results[described["name"]] = described | {
            place: measure(spec, options) for place, measure in measures.items() if options.only in (None, place)
        }
    name = "throughput" + ("_" + options.name if options.name else "")
    record.write(name, {"files": options.images.name, "repeats": options.repeats, "models": results})


if __name__ == "__main__":
    main()
