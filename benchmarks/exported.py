"""What exporting a network gains and preserves: three runtimes x three precisions x two architectures.

    python benchmarks/exported.py --images cifar10-test.parquet                    # bigr-tiny-aligned, then preset L
    python benchmarks/exported.py --images cifar10-test.parquet --models L --only torch   # a part
    python benchmarks/exported.py --images cifar10-test.parquet --small            # a quick trial

Data: a Parquet file of labeled images (columns image or img, and label), such as CIFAR-10's test set. Every third image
is for testing; probes are trained on the others. L runs at 256 pixels with random weights, so it has no probe.

Speed is the processor time of eager PyTorch in float32 divided by that of the exported network, on one thread, the two
alternating in one run; "with decoding" starts from the example photographs as files. Cosine compares the features with
eager's. "bits equal" is the fraction of code bits that agree with eager's. The probe is a logistic regression on each
network's own features.

Each row is written to benchmarks/results/exported.json as soon as it is measured. Later runs skip rows that are in the
record, unless --again is given; --models and --only choose a part.

Expected: for bigr-tiny-aligned, ONNX Runtime in float32, and int8 of either runtime with the tokenizer in float32, run
at least 2 times as fast as eager, with all bits equal and cosines above 0.999; for L, OpenVINO int8 runs 3 times as
fast. About 10 minutes per model on an idle machine with a C++ compiler.
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
    parser.add_argument("--again", action="store_true", help="also measure rows that are already in the record")
    parser.add_argument("--small", action="store_true", help="a quick trial: few images, no record")
    options = parser.parse_args()
    if options.small:
        options.train, options.test, options.repeats = min(options.train, 200), min(options.test, 100), 3
    torch.set_num_threads(1)
    results = {} if options.small else known()
    for name in options.models:
        measure(name, options, results)
    print(table(results))


def known() -> dict[str, Any]:
    """Each model's results in the record; empty if there is no record."""
    file = record.RESULTS / f"{NAME}.json"
    return dict(json.loads(file.read_text())["models"]) if file.exists() else {}


def measure(name: str, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Compare one model's variants with eager PyTorch in float32. Adds each row to `results` and the record at once."""
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
    """The table row of one runtime in one precision."""
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
    """Median ratio of processor times over pairs of calls."""
    slow(), fast()  # warm up
    return statistics.median(processor_seconds(slow) / processor_seconds(fast) for _ in range(repeats))


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def with_decoding(eager: FeatureExtractor, fast: FeatureExtractor, side: int, repeats: int) -> float:
    """The ratio for the example photographs as files, including reading, decoding and resizing."""

    def embed(extractor: FeatureExtractor) -> object:
        pixels = np.stack([load_image(file, side) for file in PHOTOGRAPHS[: 2 if side > 64 else None]])
        return extractor(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    return ratio(lambda: embed(eager), lambda: embed(fast), repeats)


def cosine(a: Any, b: Any) -> Any:
    """Mean cosine of corresponding rows."""
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()


def features_of(extractor: FeatureExtractor, part: Part, batch: int) -> tuple[Any, Any]:
    """Features, float32 (n, D), and codes, bool (n, bits)."""
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
    """Evenly spaced images of a Parquet file, for training and testing: every third row is for testing."""
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
    """A model of a preset with random weights."""
    from bigr_repr.models import BiGR, BinaryAutoencoder

    config = preset(name)
    torch.manual_seed(0)
    return Pretrained(config, BinaryAutoencoder(config.tokenizer).eval(), BiGR(config.generator).eval())


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
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
