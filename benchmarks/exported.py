"""What exported networks cost and keep: three runtimes x three precisions x two architectures.

    python benchmarks/exported.py --images cifar10-test.parquet                    # bigr-tiny-aligned, then preset L
    python benchmarks/exported.py --images cifar10-test.parquet --models L --only torch   # a part
    python benchmarks/exported.py --images cifar10-test.parquet --small            # a try

Data: a Parquet file of labeled images (columns image or img, and label), as CIFAR-10's test set; every third image is
tested on, probes learn from the others. L runs at 256 pixels with random weights, which say nothing about probes.

Speed is eager PyTorch's processor time in float32 over the exported network's, one thread, the two alternating in one
run; "with decoding" starts from the example photographs as files. Cosine is that of the features with eager's, bits
equal the share of code bits that are. The probe is a logistic regression on each network's own features.

Rows are written to benchmarks/results/exported.json as they come, and a run goes on after those that are there, which
--again measures anew; --models and --only run a part.
Expected: for bigr-tiny-aligned ONNX Runtime in float32, and int8 of either with the tokenizer in float32, at least 2
times eager's speed, with all bits equal and cosines above 0.999; for L int8 of OpenVINO 3 times. About 10 minutes for
each model on an idle machine with a C++ compiler.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record
import torch

import bigr_repr as br
from bigr_repr.checkpoints.pretrained import Pretrained
from bigr_repr.config import preset
from bigr_repr.features.extractor import FeatureExtractor
from bigr_repr.images import center_crop, load_image

VARIANTS = (
    ("onnx", "float32", None), ("onnx", "int8", "float32"), ("onnx", "int8", "int8"),
    ("openvino", "float32", None), ("openvino", "bfloat16", None), ("openvino", "int8", "float32"),
    ("openvino", "int8", "int8"), ("torch", "float32", None), ("torch", "bfloat16", "float32"),
    ("torch", "bfloat16", "bfloat16"),
)  # fmt: skip
NAME = "exported"
PHOTOGRAPHS = sorted((Path(__file__).parents[1] / "examples" / "images").glob("*.jpg"))


class Part(NamedTuple):
    """pixels: uint8 (n, 3, S, S); labels: (n,)."""

    pixels: torch.Tensor
    labels: np.ndarray[Any, np.dtype[np.int64]]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="PARQUET")
    parser.add_argument("--models", nargs="+", default=["bigr-tiny-aligned", "L"])
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=["onnx", "openvino", "torch"])
    parser.add_argument("--again", action="store_true", help="measure rows anew that the record has")
    parser.add_argument("--small", action="store_true", help="a try: few images, and no record")
    options = parser.parse_args()
    if options.small:
        options.train, options.test, options.repeats = min(options.train, 200), min(options.test, 100), 3
    torch.set_num_threads(1)
    results = {} if options.small else known()
    for name in options.models:
        measure(name, options, results)
    print(table(results))


def known() -> dict[str, Any]:
    """What the record has of each model; nothing where there is none."""
    file = record.RESULTS / f"{NAME}.json"
    return dict(json.loads(file.read_text())["models"]) if file.exists() else {}


def measure(name: str, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """The variants of one model, beside eager PyTorch in float32, into `results` and the record, as they come."""
    random = name == "L"
    pre = random_model(name) if random else record.load(name)
    side, batch_size = pre.config.image_size, 4 if random else options.batch
    train, test = read(options.images, 0 if random else options.train, 8 if random else options.test, side)
    eager = FeatureExtractor(pre, (12,))
    base = features_of(eager, test, batch_size)
    own = None if random else probe(features_of(eager, train, batch_size)[0], train, base[0], test)
    facts = {"image_size": side, "images": len(test.labels), "batch": batch_size, "probe": own}
    found = results.setdefault(name, {"variants": []})
    found |= {**facts, "model_sha256": pre.fingerprint}
    for kind in VARIANTS:
        there = [row for row in found["variants"] if (row["to"], row["precision"], row["asked"]) == kind]
        if kind[0] not in options.only or (there and not options.again):
            continue
        row = variant(pre, eager, kind, base, test.pixels[:batch_size], train, test, own, options)
        found["variants"] = [each for each in found["variants"] if each not in there] + [row]
        print(name, row, flush=True)
        if not options.small:
            record.write(NAME, {"layer": 12, "pool": "avg", "models": results})


def variant(
    pre: Pretrained, eager: FeatureExtractor, kind: tuple[str, str, str | None], base: tuple[Any, Any],
    batch: torch.Tensor, train: Part, test: Part, own: float | None, options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """One runtime in one precision."""
    to, precision, tokenizer = kind
    repeats = min(options.repeats, 3) if own is None else options.repeats
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        calibration = test.pixels if own is None else train.pixels[:128]
        try:
            model = br.export_model(
                Path(folder) / "x", model=pre, to=to, precision=precision, tokenizer=tokenizer,
                calibrate=calibration if precision == "int8" else None,
            )  # fmt: skip
        except (ValueError, RuntimeError, ImportError) as error:
            said = str(error).split("\n")[0]
            return {"to": to, "precision": precision, "asked": tokenizer, "tokenizer": tokenizer, "error": said}
        seconds = time.process_time() - started
        fast = FeatureExtractor(model, (12,))
        vectors, codes = features_of(fast, test, len(batch))
        row: dict[str, Any] = {
            "to": to, "precision": precision, "asked": tokenizer, "tokenizer": model.manifest.tokenizer,
            "speed": round(ratio(lambda: eager(batch), lambda: fast(batch), repeats), 2),
            "speed_with_decoding": round(with_decoding(eager, fast, pre.config.image_size, repeats), 2),
            "cosine": round(float(cosine(base[0], vectors)), 5),
            "cosine_centered": round(float(cosine(base[0] - base[0].mean(0), vectors - base[0].mean(0))), 5),
            "bits_equal": round(float((base[1] == codes).mean()), 5),
            "megabytes": round(sum(file.stat().st_size for file in model.folder.iterdir()) / 1e6, 1),
            "export_processor_seconds": round(seconds, 1),
        }  # fmt: skip
        if own is not None:
            theirs = probe(features_of(fast, train, len(batch))[0], train, vectors, test)
            row |= {"probe": theirs, "probe_change": round(theirs - own, 2)}
    return row


def ratio(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> float:
    """Median of the ratios of pairs, in processor time."""
    slow(), fast()  # warm up
    return statistics.median(processor_seconds(slow) / processor_seconds(fast) for _ in range(repeats))


def processor_seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def with_decoding(eager: FeatureExtractor, fast: FeatureExtractor, side: int, repeats: int) -> float:
    """The ratio for the example photographs as files, reading, decoding and resizing included."""

    def embed(extractor: FeatureExtractor) -> object:
        pixels = np.stack([load_image(file, side) for file in PHOTOGRAPHS[: 2 if side > 64 else None]])
        return extractor(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    return ratio(lambda: embed(eager), lambda: embed(fast), repeats)


def cosine(a: Any, b: Any) -> Any:
    """Mean over rows."""
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()


def features_of(extractor: FeatureExtractor, part: Part, batch: int) -> tuple[Any, Any]:
    """float32 (n, D) and bool (n, bits)."""
    found = [extractor(pixels) for pixels in part.pixels.split(batch)]
    vectors = torch.cat([each.layers[12] for each in found]).numpy()
    return vectors, torch.cat([each.codes for each in found]).flatten(1).numpy()


def probe(train: Any, train_part: Part, test: Any, test_part: Part) -> float:
    """Accuracy in percent of a logistic regression on standardized features, C = 0.01."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(train, train_part.labels)
    return round(100 * float(fitted.score(test, test_part.labels)), 2)


def read(file: Path, train: int, test: int, side: int) -> tuple[Part, Part]:
    """Rows of a Parquet file of images at even distances: to train probes on, and every third to test on."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(file)
    column = "img" if "img" in table.schema.names else "image"
    rows = np.arange(len(table))
    parts = []
    for chosen, count in ((rows[rows % 3 != 0], train), (rows[rows % 3 == 0], test)):
        part = table.take(chosen[np.unique(np.linspace(0, len(chosen) - 1, count).astype(int))])
        cells = (cell["bytes"] if isinstance(cell, dict) else cell for cell in part.column(column).to_pylist())
        pixels = [center_crop(Image.open(io.BytesIO(cell)).convert("RGB"), side) for cell in cells]
        images = np.stack(pixels) if pixels else np.empty((0, side, side, 3), np.uint8)
        labels = np.asarray(part.column("label").to_pylist(), np.int64)
        parts.append(Part(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels))
    return parts[0], parts[1]


def random_model(name: str) -> Pretrained:
    """A preset with random weights."""
    from bigr_repr.models import BiGR, BinaryAutoencoder

    config = preset(name)
    torch.manual_seed(0)
    return Pretrained(config, BinaryAutoencoder(config.tokenizer).eval(), BiGR(config.generator).eval())


def table(results: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        "| model | runtime | precision | tokenizer | speed | with decoding | cosine | probe change | bits equal |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in results.items():
        for row in found["variants"]:
            if "error" in row:
                lines.append(f"| {name} | {row['to']} | {row['precision']} | | {row['error']} | | | | |")
                continue
            change = "" if "probe_change" not in row else f"{row['probe_change']:+.1f}"
            lines.append(
                f"| {name} | {row['to']} | {row['precision']} | {row['tokenizer']} | {row['speed']:.1f} | "
                f"{row['speed_with_decoding']:.1f} | {row['cosine']:.4f} | {change} | {100 * row['bits_equal']:.2f} % |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
