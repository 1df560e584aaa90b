"""Bytes that embedding reads from an object store and requests it makes, by container and engine.

    python benchmarks/reading_cost.py [--count 400]

Data: 400 pictures of random pixels, 92 kB each, created here in a tar shard, in a Parquet file with row groups of 50
and in one with row groups of 200. An S3 server on this machine (moto, from the `dev` extra) serves them behind a
counting proxy. Units have 64 images, so that row groups are both smaller and larger than units. Bytes are compared with
the container's size.

Writes benchmarks/results/reading_cost.json. Expected: every engine reads at most 1.05 times the container, and nothing
again when the run is resumed. Exits with an error above 1.05. Half a minute per engine on 2 cores; --engines local
--count 100 is a quick trial. The Ray engine is left out if Ray is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from s3_server import BUCKET, s3_server
from store_proxy import store_proxy
from tiny_model import tiny_model

ENGINES: dict[str, dict[str, Any]] = {
    "local": {"device": "cpu"},
    "two processes": {"device": "cpu,cpu"},
    "ray": {"engine": "ray", "device": "cpu"},
}
AIM, UNIT = 1.05, 64


def containers(count: int) -> dict[str, bytes]:
    """The same pictures in three containers, as bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    pictures, shard, found = [], io.BytesIO(), dict[str, bytes]()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number in range(count):
            file = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (175, 175, 3), np.uint8)
            Image.fromarray(pixels).save(file, "png", compress_level=0)
            pictures.append(file.getvalue())
            info = tarfile.TarInfo(f"{number:06d}.png")
            info.size = len(pictures[-1])
            tar.addfile(info, io.BytesIO(pictures[-1]))
    found["tar"] = shard.getvalue()
    for rows in (50, 200):
        table = io.BytesIO()
        pq.write_table(pa.table({"image": pictures}), table, row_group_size=rows, compression="none")
        found[f"parquet, row groups of {rows}"] = table.getvalue()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args()
    from bigr_repr.embed import embed_images
    from bigr_repr.system.object_store import ObjectPath

    pre, results = tiny_model(), dict[str, Any]()
    engines = [name for name in options.engines if name != "ray" or importlib.util.find_spec("ray")]
    with (
        s3_server() as environment,
        store_proxy(environment["AWS_ENDPOINT_URL"]) as proxy,
        tempfile.TemporaryDirectory() as work,
    ):
        os.environ.update({**environment, "AWS_ENDPOINT_URL": proxy.address})
        for number, (kind, content) in enumerate(containers(options.count).items()):
            name = f"{number}.{kind.partition(',')[0]}"
            url = f"s3://{BUCKET}/{name}"
            with ObjectPath(url).put() as file:
                file.write(content)
            results[kind] = {"bytes": len(content), "engines": {}}
            for engine in engines:
                out, usual = f"{work}/{number}-{engine}", {"layers": [2], "unit_size": UNIT, "batch_size": 32}
                found = []
                for _ in range(2):  # the run, and the same command again
                    proxy.sent.clear()
                    proxy.requests.clear()
                    done = embed_images(url, out, model=pre, **usual, **ENGINES[engine])
                    found.append((proxy.read(name), proxy.requests[f"/{BUCKET}/{name}"]))
                (read, requests), (again, _) = found
                results[kind]["engines"][engine] = {
                    "rows": done.rows, "bytes_read": read, "times_the_file": round(read / len(content), 4),
                    "requests": requests, "bytes_read_when_resumed": again,
                }  # fmt: skip
    record.write("reading_cost", {"count": options.count, "unit_size": UNIT, "containers": results}, pre)
    ratios = [each["times_the_file"] for kind in results.values() for each in kind["engines"].values()]
    if max(ratios) > AIM:
        raise SystemExit(f"reading_cost.py: {max(ratios)} times the size of a file was read, above the limit of {AIM}")


if __name__ == "__main__":
    main()
