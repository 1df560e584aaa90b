"""What exported networks cost and keep: three runtimes x three precisions x two architectures.

Data: CIFAR-10's test and training Parquet files (columns image or img, and label), resized as the model reads them.
Command: python benchmarks/exported.py --root data
Small: python benchmarks/exported.py --root data --small
Expected: int8 of OpenVINO 2.5 times eager PyTorch in float32 for bigr-tiny-aligned, cosine above 0.998; with the
tokenizer in float32 all bits equal, and 2 times. About an hour on two idle cores, most of it exporting preset L, whose
random weights say nothing about probes.

Speed is eager's processor time over the exported network's, one thread, the two alternating in one run. The probe is a
logistic regression on each network's own features.
"""

from __future__ import annotations

import argparse
import io
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
PHOTOGRAPHS = sorted((Path(__file__).parents[1] / "examples" / "images").glob("*.jpg"))


class Part(NamedTuple):
    """pixels: uint8 (n, 3, S, S); labels: (n,)."""

    pixels: torch.Tensor
    labels: np.ndarray[Any, np.dtype[np.int64]]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["bigr-tiny-aligned", "L"])
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=["onnx", "openvino", "torch"])
    parser.add_argument("--small", action="store_true", help="a try: few images, and no record")
    options = parser.parse_args()
    if options.small:
        options.train, options.test, options.repeats = min(options.train, 200), min(options.test, 100), 3
    torch.set_num_threads(1)
    results = {name: measure(name, options) for name in options.models}
    print(table(results))
    if not options.small:
        record.write("exported", {"options": {"batch": options.batch, "layer": 12, "pool": "avg"}, "models": results})


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All variants of one model, beside eager PyTorch in float32."""
    random = name == "L"
    pre = random_model(name) if random else record.load(name)
    side = pre.config.image_size
    few = 16 if random else options.test
    test = read(options.root / "cifar10-test.parquet", few, side)
    train = None if random else read(options.root / "cifar10-train.parquet", options.train, side)
    eager = FeatureExtractor(pre, (12,))
    base = features_of(eager, test, options.batch)
    own = None if train is None else probe(features_of(eager, train, options.batch)[0], train, base[0], test)
    found: dict[str, Any] = {"image_size": side, "images": len(test.labels), "probe": own, "variants": []}
    batch = test.pixels[: min(options.batch, 4 if random else options.batch)]
    for to, precision, tokenizer in VARIANTS:
        if to in options.only:
            row = variant(pre, eager, (to, precision, tokenizer), base, batch, train, test, own, options)
            found["variants"].append(row)
            print(name, row, flush=True)
    return found


def variant(
    pre: Pretrained, eager: FeatureExtractor, kind: tuple[str, str, str | None], base: tuple[Any, Any],
    batch: torch.Tensor, train: Part | None, test: Part, own: float | None, options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """One runtime in one precision."""
    to, precision, tokenizer = kind
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        calibration = test.pixels if train is None else train.pixels
        try:
            model = br.export_model(
                Path(folder) / "x", model=pre, to=to, precision=precision, tokenizer=tokenizer,
                calibrate=calibration[: 8 if train is None else 128] if precision == "int8" else None,
            )  # fmt: skip
        except (ValueError, RuntimeError, ImportError) as error:
            return {"to": to, "precision": precision, "tokenizer": tokenizer, "error": str(error).split("\n")[0]}
        seconds = time.process_time() - started
        fast = FeatureExtractor(model, (12,))
        vectors, codes = features_of(fast, test, options.batch)
        row: dict[str, Any] = {
            "to": to, "precision": precision, "tokenizer": model.manifest.tokenizer,
            "speed": round(ratio(lambda: eager(batch), lambda: fast(batch), options.repeats), 2),
            "speed_with_decoding": round(with_decoding(eager, fast, pre.config.image_size, options.repeats), 2),
            "cosine": round(float(cosine(base[0], vectors)), 5),
            "cosine_centered": round(float(cosine(base[0] - base[0].mean(0), vectors - base[0].mean(0))), 5),
            "bits_equal": round(float((base[1] == codes).mean()), 5),
            "megabytes": round(sum(file.stat().st_size for file in model.folder.iterdir()) / 1e6, 1),
            "export_processor_seconds": round(seconds, 1),
        }  # fmt: skip
        if train is not None and own is not None:
            theirs = probe(features_of(fast, train, options.batch)[0], train, vectors, test)
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
        pixels = np.stack([load_image(file, side) for file in PHOTOGRAPHS[: 4 if side > 64 else None]])
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


def read(file: Path, count: int, side: int) -> Part:
    """Rows of a Parquet file of images, at even distances."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(file)
    table = table.take(np.unique(np.linspace(0, len(table) - 1, count).astype(int)))  # rows may be sorted by class
    column = "img" if "img" in table.schema.names else "image"
    pixels = []
    for cell in table.column(column).to_pylist():
        content = cell["bytes"] if isinstance(cell, dict) else cell
        pixels.append(center_crop(Image.open(io.BytesIO(content)).convert("RGB"), side))
    labels = np.asarray(table.column("label").to_pylist())
    return Part(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), labels)


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
